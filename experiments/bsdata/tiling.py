"""How far a run's predictions on tiles are from those on whole images.

    python experiments/bsdata/tiling.py --runs runs/official_0

What a network reads beyond the border of a tile it misses there (see `evaluate.predict_tiles`).
Takes a finished run's test images, brought to its `data.frame_height`, whole and in tiles of
several sizes and overlaps, one view of each, and compares probabilities, and classes at a
probability of 0.5. An image is whole where one tile covers it, continued to multiples of 32 pixels.
"""

import argparse
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import ml_collections
import numpy as np
import tqdm
from absl import logging
from scipy import special

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from defect_jax import checkpoint, runtime
from defect_jax.data import datasets, pipeline
from defect_jax.data.examples import Examples
from defect_jax.errors import UserError
from defect_jax.evaluate import Predict, make_predict, predict_tiles
from defect_jax.methods import make_method
from defect_jax.ops import tiles
from experiments.bsdata import ensemble

# (height, width) of the tiles, and how many pixels they share at least.
TILINGS = (
    ((192, 192), 64),
    ((192, 192), 128),
    ((192, 384), 64),
    ((192, 384), 128),
    ((256, 384), 64),
    ((256, 384), 128),
)


class Difference(NamedTuple):
    """Between the map of whole images and that merged from tiles, over all images so far.

    Attributes:
        pixels: how many were compared.
        total: sum of the absolute differences of a pit's probability.
        largest: the largest of these.
        intersection: pixels that both call a pit's.
        union: pixels that either calls one's.
    """

    pixels: int = 0
    total: float = 0.0
    largest: float = 0.0
    intersection: int = 0
    union: int = 0

    def add(self, whole: np.ndarray, tiled: np.ndarray) -> "Difference":
        """Takes in one more image: its log-odds [h, w], seen whole and merged from tiles."""
        distance = np.abs(special.expit(whole) - special.expit(tiled))
        return Difference(
            self.pixels + distance.size,
            self.total + float(distance.sum(dtype=np.float64)),
            float(np.maximum(self.largest, distance.max())),
            self.intersection + int(np.count_nonzero((whole > 0) & (tiled > 0))),
            self.union + int(np.count_nonzero((whole > 0) | (tiled > 0))),
        )


def score_maps(
    config: ml_collections.ConfigDict, image: Examples, predict: Predict
) -> Iterator[np.ndarray]:
    """The log-odds [h, w] of one image, seen whole and then in each of `TILINGS`."""
    size = pipeline.fitted_size(config.data, pipeline.native_size(image, 0))
    whole = tiles.covered(size, (tiles.GRID, tiles.GRID))
    config = config.copy_and_resolve_references()
    for tile, overlap in ((whole, 0), *TILINGS):
        config.eval.update(tile=tile, overlap=overlap)
        ((_, prediction),) = predict_tiles(config, image, predict)
        yield prediction["score_map"][: size[0], : size[1]]


def compare(folder: pathlib.Path, root: str | None, num_images: int) -> list[Difference]:
    """A Difference for each of `TILINGS`, over images taken evenly from a run's test images.

    Raises:
        UserError: no finished run of a segmenter on crops of BSData, or one without test images.
    """
    (entry,) = ensemble.read_runs([folder], root, flip_average=False)
    config = entry.config
    if config.data.fit != "crop":
        raise UserError(f"{folder} takes its images whole: give a run with data.fit 'crop'")
    predict = make_predict(make_method(config), checkpoint.load_run(folder).state)
    examples = datasets.load_split(config, "test")
    if not len(examples):
        raise UserError(f"{folder} has no test images in {config.data.root}: pass --root")
    chosen = np.linspace(0, len(examples) - 1, min(num_images, len(examples))).astype(int)
    differences = [Difference() for _ in TILINGS]
    for number in tqdm.tqdm(chosen, desc=str(folder), unit=" images"):
        whole, *tiled = score_maps(config, examples.take(np.array([number])), predict)
        differences = [
            difference.add(whole, merged)
            for difference, merged in zip(differences, tiled, strict=True)
        ]
    return differences


def as_markdown(differences: Sequence[Difference]) -> str:
    """A row for each of `TILINGS`."""
    lines = [
        "| tiles | overlap | IoU of the pits found both ways, % | mean difference of probability | "
        "largest |",
        "|---|---:|---:|---:|---:|",
    ]
    for (tile, overlap), (pixels, total, largest, intersection, union) in zip(
        TILINGS, differences, strict=True
    ):
        iou = f"{100 * intersection / union:.1f}" if union else "none found"
        lines.append(
            f"| {tile[0]}x{tile[1]} | {overlap} | {iou} | {total / pixels:.1e} | {largest:.2f} |"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Compares, and prints a table for each run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=pathlib.Path, nargs="+", required=True, metavar="FOLDER")
    parser.add_argument("--root", help="clone of BSData, if no longer where it was")
    parser.add_argument("--images", type=int, default=20, help="how many of the test images")
    options = parser.parse_args(arguments)
    logging.set_verbosity(logging.ERROR)  # Orbax and tfds tell their inner life at INFO
    runtime.set_up()
    try:
        if options.images < 1:
            raise UserError(f"--images is {options.images}: compare at least one")
        for folder in options.runs:
            differences = compare(folder, options.root, options.images)
            print(f"**{folder}**\n\n{as_markdown(differences)}\n", flush=True)
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
