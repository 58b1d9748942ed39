"""What scores on BSData without looking at an image: the controls that a segmenter must beat.

    python experiments/bsdata/controls.py --root=/path/to/BSData
    python experiments/bsdata/controls.py --root=/path/to/BSData --random=0

Two controls, on masks at native resolution, measured as protocol.py measures networks: on the same
images, with the same resamplings of them. 'background' predicts no pit anywhere. 'copy' predicts
the mask of the training frame of the same place that is nearest in time (background for type 1,
which has no such frame). The official split has every place of type 2 on both sides, so copying
reaches a foreground IoU of 47.4 there (68.5 on type 2 alone; 35.1 as the mean over images; 73.7
as the mean with the background's IoU). On the folds grouped by place it finds nothing to copy. On
random splits like that of ZNet's authors, and by their own metric, it reaches 52.5 on average, with
a standard deviation of 2.9 over five seeds; they report 46.5 for their network.

At the end it says how well labels agree with each other: each one of type 2 with that of the next
frame of its place, moved onto it.
"""

import argparse
import itertools
import json
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import ml_collections
import numpy as np
from absl import logging
from PIL import Image
from scipy import signal

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from defect_jax.data import bsdata, pipeline
from defect_jax.errors import UserError
from defect_jax.metrics import Example, bootstrap_weights
from defect_jax.paths import to_path
from experiments.bsdata import ensemble, protocol

# The folds of each split; of 'random' its seeds.
FOLDS = {"official": range(1), "grouped": range(bsdata.NUM_FOLDS), "random": range(5)}
Masks = dict[str, np.ndarray]  # file name -> mask [h, w]


class Case(NamedTuple):
    """One test frame: its file name, what a control predicts and the truth, both [h, w]."""

    name: str
    predicted: np.ndarray
    mask: np.ndarray


def load_masks(root: str, cache_dir: str) -> Masks:
    """Returns the mask of every labelled frame."""
    masks = {}
    for split in ("train", "test"):
        fields = {"split": "official", "fold": 0, "normals": False}
        data = ml_collections.ConfigDict({"root": root, "cache_dir": cache_dir, **fields})
        examples = bsdata.load(data, split)
        for number, name in enumerate(examples.filename.tolist()):
            masks[name.removeprefix("data/")] = pipeline.native_mask(examples, number)
    return masks


def background(train: Masks, test: Masks) -> Iterator[Case]:
    """Predicts no pit anywhere: foreground IoU 0, mean of both classes 49.9 (official split)."""
    del train
    for name, mask in test.items():
        yield Case(name, np.zeros_like(mask), mask)


def copy_nearest(train: Masks, test: Masks) -> Iterator[Case]:
    """Predicts the mask of the training frame of the same place nearest in time.

    Where sizes differ, it is resized by nearest neighbour. Background where there is no such
    frame, and for type 1, whose frames have no time.
    """
    for name, mask in test.items():
        yield Case(name, _copied(train, name, mask.shape), mask)


CONTROLS: dict[str, Callable[[Masks, Masks], Iterator[Case]]] = {
    "background": background,
    "copy": copy_nearest,
}


def measure(cases: Iterable[Case], fold: int) -> protocol.Totals:
    """The totals of a control on the test frames of a fold, in the order of the split."""
    totals: protocol.Totals = {}
    for number, case in enumerate(cases):
        weights = bootstrap_weights(fold, number, ensemble.BOOTSTRAP_SAMPLES)
        protocol.add(totals, _example(case, weights))
    return totals


def measure_split(
    masks: Masks, entries: list[dict[str, Any]], split: str, folds: Iterable[int]
) -> dict[str, list[protocol.Totals]]:
    """The totals of each control on each fold of a split.

    Args:
        masks: of every labelled frame.
        entries: of `image_data.json`.
        split: a key of `FOLDS`.
        folds: of that split.
    """
    measured: dict[str, list[protocol.Totals]] = {name: [] for name in CONTROLS}
    for fold in folds:
        names = bsdata.split_names(entries, split, fold, normals=False)
        train, test = ({name: masks[name] for name in names[side]} for side in ("train", "test"))
        for name, control in CONTROLS.items():
            measured[name].append(measure(control(train, test), fold))
    return measured


def label_agreement(masks: Masks) -> tuple[float, int]:
    """How well two labels of the same pits agree, those of a frame and of the next of its place.

    The later mask is moved by whole pixels to where the two have most in common, so that neither
    the camera nor the spindle has to stand still. What is left is how pits grow in between and how
    differently they are drawn.

    Returns:
        The IoU, pooled over all pairs of frames of type 2 of one size, NaN where there is no pit,
        and the number of pairs.
    """
    places: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for name in sorted(filter(_is_type_2, masks), key=bsdata.taken_at):
        places.setdefault((bsdata.place(name), masks[name].shape), []).append(name)
    pairs = [pair for names in places.values() for pair in itertools.pairwise(names)]
    common, either = 0, 0
    for earlier, later in pairs:
        one, other = (np.float32(masks[name] > 0) for name in (earlier, later))
        most = int(np.rint(signal.correlate(one, other, method="fft").max()))
        common += most
        either += int(one.sum() + other.sum()) - most
    return common / either if either else np.nan, len(pairs)


def as_markdown(split: str, measured: dict[str, list[protocol.Totals]]) -> str:
    """A table of one split: over folds pooled, but of several random ones mean and deviation."""
    columns: dict[str, dict[str, Any]] = {}
    for name, totals in measured.items():
        if split == "random" and len(totals) > 1:
            columns[name] = protocol.spread([protocol.figures(one) for one in totals])
        else:
            columns[name] = protocol.figures(protocol.merge(totals))
    count = len(measured["copy"])
    folds = f"{count} folds" if count > 1 else "one fold"
    title = split if split == "official" else f"{split}, {folds}"
    return protocol.table(title, columns, protocol.merge(measured["copy"]))


def main(arguments: list[str] | None = None) -> None:
    """Prints a table for each split."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", required=True, help="clone of BSData")
    parser.add_argument("--cache_dir", default="", help="of prepared datasets")
    parser.add_argument("--random", type=int, metavar="FOLD", help="only this random split")
    options = parser.parse_args(arguments)
    folds = (
        FOLDS if options.random is None else {"random": range(options.random, options.random + 1)}
    )
    logging.set_verbosity(logging.ERROR)  # tfds tells its inner life at INFO
    try:
        masks = load_masks(options.root, options.cache_dir)
        content = (to_path(options.root) / "image_data.json").read_text("utf-8")
        for split in folds:
            measured = measure_split(masks, json.loads(content)["images"], split, folds[split])
            print(as_markdown(split, measured) + "\n", flush=True)
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")
    agreement, count = label_agreement(masks)
    print(f"labels of type 2 against those of the next frame, {count} pairs: IoU {agreement:.1%}")


def _is_type_2(name: str) -> bool:
    return name.startswith("01_")


def _copied(train: Masks, name: str, shape: tuple[int, int]) -> np.ndarray:
    same = [other for other in train if bsdata.place(other) == bsdata.place(name)]
    if not same or not _is_type_2(name):
        return np.zeros(shape, np.uint8)
    time = bsdata.taken_at(name)
    nearest = min(same, key=lambda other: (abs(bsdata.taken_at(other) - time), other))
    resized = Image.fromarray(train[nearest]).resize(shape[::-1], Image.Resampling.NEAREST)
    return np.asarray(resized)


def _example(case: Case, weights: np.ndarray) -> Example:
    return {
        "defect_type": "type 2" if _is_type_2(case.name) else "type 1",
        "class_map": case.predicted,
        # Log-odds of who is certain.
        "score_map": np.where(case.predicted, np.float32(np.inf), np.float32(-np.inf)),
        "mask": case.mask,
        "bootstrap": weights,
    }


if __name__ == "__main__":
    main()
