"""What a run calls a pit on labelled frames where no label is, largest first, for eyes to judge.

    python experiments/bsdata/audit.py --run runs/official_0

A label of BSData may leave out a pit. Who finds it is counted wrong, and who is trained on it
unlearns pits. This draws a run's false alarms, those that share no pixel with a labelled pit, from
the frames at their own resolution: a sheet of the largest, and a table that says how much of all
false pixels they are. The others are of what overlaps a labelled pit and reaches beyond it. What
looks like a pit is for the reader to say. The IoU on these frames says what the run has learned.
"""

import argparse
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import tqdm
from absl import logging
from matplotlib.figure import Figure

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from defect_jax import checkpoint, runtime, visualize
from defect_jax.data import datasets, pipeline
from defect_jax.errors import UserError
from defect_jax.evaluate import check_defect_fields, make_predict, predictions
from defect_jax.methods import make_method
from defect_jax.metrics import Example
from defect_jax.ops.objects import Defect, find_defects
from experiments.bsdata import ensemble

# A side of each picture of the sheet, in pixels of the frame, and how many stand in a row.
SIDE = 280
COLUMNS = 6


class Pixels(NamedTuple):
    """How many pixels of some frames are pits' by label and found, found alone, and missed."""

    true: int
    false: int
    missed: int

    def add(self, example: Example) -> "Pixels":
        """With those of one more frame, as `evaluate.predictions` yields it."""
        found, labelled = example["class_map"] > 0, example["mask"] > 0
        parts = (found & labelled, found & ~labelled, labelled & ~found)
        counts = (int(np.count_nonzero(part)) for part in parts)
        return Pixels(*(before + more for before, more in zip(self, counts, strict=True)))


class Alarm(NamedTuple):
    """A false alarm, and what a square of at most `SIDE` pixels around it shows.

    Attributes:
        filename: of the frame.
        defect_type: of the frame.
        defect: what was found.
        image: uint8 [h, w, C].
        found: [h, w] bool, the pixels of this alarm.
        labelled: [h, w] bool, those that a label calls defective.
    """

    filename: str
    defect_type: str
    defect: Defect
    image: np.ndarray
    found: np.ndarray
    labelled: np.ndarray


def false_alarms(example: Example, image: np.ndarray) -> list[Alarm]:
    """The defects that were found and share no pixel with a labelled one.

    Args:
        example: as `evaluate.predictions` yields it, with a `class_map`.
        image: uint8 [h, w, C], the frame at its own resolution.
    """
    labelled, alarms = example["mask"] > 0, []
    for defect in find_defects(example["class_map"], example["score_map"]):
        pixels = tuple(defect.pixels.T)
        if labelled[pixels].any():
            continue
        top, left = (max(0, round(middle) - SIDE // 2) for middle in (defect.row, defect.column))
        inside = np.s_[top : top + SIDE, left : left + SIDE]
        found = np.zeros_like(labelled)
        found[pixels] = True
        # Copies, so that no frame is kept for its alarms.
        shown = (values[inside].copy() for values in (image, found, labelled))
        alarms.append(Alarm(example["filename"], example["defect_type"], defect, *shown))
    return alarms


def audit(
    folder: pathlib.Path, root: str | None, split: str, min_log_odds: float | None
) -> tuple[list[Alarm], dict[str, Pixels]]:
    """A run's false alarms on a split, largest first, and its pixels by the type of frames.

    Args:
        folder: of the run.
        root: where BSData lies; None for where the run found it.
        split: 'train' or 'test'.
        min_log_odds: above which a pixel is a pit's; None for as the run has it.

    Raises:
        UserError: no finished run of a segmenter on BSData, a split without frames, or log-odds
            that are not finite.
    """
    (entry,) = ensemble.read_runs([folder], root)
    config = entry.config
    if min_log_odds is not None:
        config.eval.min_log_odds = min_log_odds
        check_defect_fields(config)
    examples = datasets.load_split(config, split)
    if not len(examples):
        raise UserError(f"{folder} has no {split} images in {config.data.root}: pass --root")
    predict = make_predict(make_method(config), checkpoint.load_run(folder).state)
    alarms, pixels = [], dict[str, Pixels]()
    for example in tqdm.tqdm(
        predictions(config, examples, predict), str(folder), len(examples), unit=" images"
    ):
        image = pipeline.native_image(examples, example["number"], config.data.channels)
        alarms += false_alarms(example, image)
        defect_type = example["defect_type"]
        pixels[defect_type] = pixels.get(defect_type, Pixels(0, 0, 0)).add(example)
    return sorted(alarms, key=lambda alarm: -alarm.defect.area), pixels


def describe(pixels: dict[str, Pixels]) -> str:
    """The IoU of pits pooled over all frames, and over those of each type."""
    pooled = {"all frames": Pixels(*map(sum, zip(*pixels.values(), strict=True)))} | pixels
    parts = [f"{name} {100 * one.true / max(1, sum(one)):.1f}" for name, one in pooled.items()]
    return f"IoU, pooled, in percent: {', '.join(parts)}"


def as_markdown(alarms: Sequence[Alarm], false_pixels: int) -> Iterator[str]:
    """The lines of a table; the last column is the share of all false pixels, added up."""
    yield "| | frame | type | row | column | area, px² | of all false pixels, % |"
    yield "|---:|---|---|---:|---:|---:|---:|"
    total = 0
    for number, (filename, defect_type, defect, *_) in enumerate(alarms, start=1):
        total += defect.area
        place = f"{defect.row:.0f} | {defect.column:.0f} | {defect.area}"
        share = f"{100 * total / false_pixels:.1f}"
        yield f"| {number} | {filename} | {defect_type} | {place} | {share} |"


def sheet(alarms: Sequence[Alarm]) -> Figure:
    """A picture of each alarm, outlined as the overlays outline what was found and what is true."""
    rows = -(-len(alarms) // COLUMNS)
    figure = Figure((2.2 * COLUMNS, 2.5 * rows), dpi=visualize.DPI, layout="constrained")
    axes = figure.subplots(rows, COLUMNS, squeeze=False)
    for cell in axes.flat:
        cell.axis("off")
    for number, (cell, alarm) in enumerate(zip(axes.flat, alarms, strict=False), start=1):
        cell.imshow(alarm.image.squeeze(), cmap="gray")
        for region, colour in ((alarm.labelled, visualize.TRUTH), (alarm.found, visualize.FOUND)):
            if region.any() and not region.all():
                cell.contour(region, [0.5], colors=colour, linewidths=0.9)
        name = pathlib.PurePath(alarm.filename).stem
        cell.set_title(f"{number}: {name}\n{alarm.defect.area} px²", fontsize=6)
    return figure


def main(arguments: list[str] | None = None) -> None:
    """Looks for false alarms, prints the table of the largest and draws their sheet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=pathlib.Path, required=True, metavar="FOLDER")
    parser.add_argument("--split", default="train", choices=("train", "test"))
    parser.add_argument("--root", help="clone of BSData, if no longer where it was")
    parser.add_argument("--min_log_odds", type=float, help="instead of the run's own")
    parser.add_argument("--most", type=int, default=24, help="how many are shown")
    options = parser.parse_args(arguments)
    logging.set_verbosity(logging.ERROR)  # Orbax and tfds tell their inner life at INFO
    runtime.set_up()
    try:
        if options.most < 1:
            raise UserError(f"--most is {options.most}: show at least one")
        alarms, pixels = audit(options.run, options.root, options.split, options.min_log_odds)
        print(describe(pixels))
        false_pixels = sum(one.false for one in pixels.values())
        if not alarms:
            print(f"{options.run} has no false alarm off all labels")
            return
        area = sum(alarm.defect.area for alarm in alarms)
        print(
            f"{false_pixels} false pixels, {100 * area / false_pixels:.1f} % of them in "
            f"{len(alarms)} false alarms off all labels"
        )
        print("\n".join(as_markdown(alarms[: options.most], false_pixels)))
        path = options.run / "eval" / f"audit_{options.split}.png"
        visualize.save(sheet(alarms[: options.most]), path)
    except UserError as error:
        sys.exit(f"error: {error}")
    print(f"pictures: {path}")


if __name__ == "__main__":
    main()
