"""What scores on BSData without looking at an image: the controls that a segmenter must beat.

    python experiments/bsdata/controls.py --root=/path/to/BSData

Two controls, on masks at native resolution. 'background' predicts no pit anywhere. 'copy' predicts
the mask of the training frame of the same place that is nearest in time (background for type 1,
which has no such frame). The official split has every place of type 2 on both sides, so copying
reaches a foreground IoU of 47.4 there (68.5 on type 2 alone; 35.1 as the mean over images; 73.7
as the mean with the background's IoU). On the folds grouped by place it finds nothing to copy.
"""

import argparse
import functools
from typing import NamedTuple

import ml_collections
import numpy as np
from PIL import Image

from defect_jax.data import bsdata, pipeline
from defect_jax.data.examples import Examples
from defect_jax.metrics import Segmentation

_NO_BOOTSTRAP = np.zeros(0)


class Case(NamedTuple):
    """One test frame: its file name, what a control predicts and the truth, both [h, w]."""

    name: str
    predicted: np.ndarray
    mask: np.ndarray


class Scores(NamedTuple):
    """In percent: IoU of all pixels pooled, on type 2 alone, per image, mean of both classes."""

    foreground: float
    type_2: float
    per_image: float
    two_class: float


def load_masks(data: ml_collections.ConfigDict, split: str) -> dict[str, np.ndarray]:
    """Returns the mask of every labelled frame of 'train' or 'test' by file name."""
    examples: Examples = bsdata.load(data, split)
    labelled = examples.take(np.flatnonzero(examples.label))
    names = [name.removeprefix("data/") for name in labelled.filename.tolist()]
    decoded = [pipeline.native_mask(labelled, number) for number in range(len(labelled))]
    return dict(zip(names, decoded, strict=True))


def background(masks: dict[str, np.ndarray]) -> list[Case]:
    """Predicts no pit anywhere: foreground IoU 0, mean of both classes 49.9 (official split)."""
    return [Case(name, np.zeros_like(mask), mask) for name, mask in masks.items()]


def copy_nearest(train: dict[str, np.ndarray], test: dict[str, np.ndarray]) -> list[Case]:
    """Predicts the mask of the training frame of the same place nearest in time.

    Where sizes differ, it is resized by nearest neighbour. Background where there is no such
    frame, and for type 1, whose frames have no time.
    """
    return [Case(name, _copied(train, name, mask.shape), mask) for name, mask in test.items()]


def score(cases: list[Case]) -> Scores:
    """Scores a control; on the official split copying gives (47.4, 68.5, 35.1, 73.7)."""
    whole = _overlap(cases)
    # Background's IoU is the foreground's with both maps inverted.
    inverted = _overlap([Case(c.name, c.predicted == 0, c.mask == 0) for c in cases])
    of_type_2 = [case for case in cases if _is_type_2(case.name)]
    type_2 = _overlap(of_type_2)["iou"] if of_type_2 else np.nan
    two_class = (whole["iou"] + inverted["iou"]) / 2
    values = (whole["iou"], type_2, whole["iou_per_image"], two_class)
    return Scores(*(100 * float(value) for value in values))


def table(root: str, cache_dir: str = "") -> dict[str, Scores]:
    """Scores both controls on the official split, and copying on each fold grouped by place."""
    data = ml_collections.ConfigDict(
        {"root": root, "cache_dir": cache_dir, "split": "official", "fold": 0, "normals": False}
    )
    train, test = load_masks(data, "train"), load_masks(data, "test")
    rows = {
        "official, background": score(background(test)),
        "official, copy": score(copy_nearest(train, test)),
    }
    data.split = "grouped"
    for data.fold in range(bsdata.NUM_FOLDS):
        train, test = load_masks(data, "train"), load_masks(data, "test")
        rows[f"grouped fold {data.fold}, copy"] = score(copy_nearest(train, test))
    return rows


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description="Scores the controls of BSData.")
    parser.add_argument("--root", required=True, help="clone of BSData")
    parser.add_argument("--cache_dir", default="", help="of prepared datasets")
    flags = parser.parse_args()
    print(f"{'IoU in %':24}" + "".join(f"{name:>12}" for name in Scores._fields))
    for name, scores in table(flags.root, flags.cache_dir).items():
        print(f"{name:24}" + "".join(f"{value:12.1f}" for value in scores))


def _is_type_2(name: str) -> bool:
    return name.startswith("01_")


def _copied(train: dict[str, np.ndarray], name: str, shape: tuple[int, int]) -> np.ndarray:
    same = [other for other in train if bsdata.place(other) == bsdata.place(name)]
    if not same or not _is_type_2(name):
        return np.zeros(shape, np.uint8)
    time = bsdata.taken_at(name)
    nearest = min(same, key=lambda other: (abs(bsdata.taken_at(other) - time), other))
    resized = Image.fromarray(train[nearest]).resize(shape[::-1], Image.Resampling.NEAREST)
    return np.asarray(resized)


def _overlap(cases: list[Case]) -> dict[str, float]:
    states = (
        Segmentation.from_example(
            {"class_map": case.predicted, "mask": case.mask, "bootstrap": _NO_BOOTSTRAP}
        )
        for case in cases
    )
    merged = functools.reduce(Segmentation.merge, states)
    return {name: estimate.value for name, estimate in merged.compute().items()}


if __name__ == "__main__":
    main()
