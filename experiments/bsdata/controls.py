"""What scores on BSData without looking at an image: the controls that a segmenter must beat.

    python experiments/bsdata/controls.py --root=/path/to/BSData

Two controls, on masks at native resolution. 'background' predicts no pit anywhere. 'copy' predicts
the mask of the training frame of the same place that is nearest in time (background for type 1,
which has no such frame). The official split has every place of type 2 on both sides, so copying
reaches a foreground IoU of 47.4 there (68.5 on type 2 alone; 35.1 as the mean over images; 73.7
as the mean with the background's IoU). On the folds grouped by place it finds nothing to copy. On
random splits like that of ZNet's authors, and by their own metric, it reaches 52.5 on average, with
a standard deviation of 2.9 over five seeds; they report 46.5 for their network.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

import ml_collections
import numpy as np
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from defect_jax.data import bsdata, pipeline
from defect_jax.metrics import Example, Metric, Segmentation
from experiments.bsdata.measures import TwoClass, ZNet

RANDOM_SEEDS = range(5)
_NO_BOOTSTRAP = np.zeros(0)


class Case(NamedTuple):
    """One test frame: its file name, what a control predicts and the truth, both [h, w]."""

    name: str
    predicted: np.ndarray
    mask: np.ndarray


class Scores(NamedTuple):
    """In percent: IoU of all pixels pooled, on type 2 alone, per image, mean of both classes.

    And what ZNet's authors call IoU, see `measures.ZNet`.
    """

    foreground: float
    type_2: float
    per_image: float
    two_class: float
    znet: float


def load_masks(root: str, cache_dir: str) -> dict[str, np.ndarray]:
    """Returns the mask of every labelled frame by file name."""
    masks = {}
    for split in ("train", "test"):
        fields = {"split": "official", "fold": 0, "normals": False}
        data = ml_collections.ConfigDict({"root": root, "cache_dir": cache_dir, **fields})
        examples = bsdata.load(data, split)
        for number, name in enumerate(examples.filename.tolist()):
            masks[name.removeprefix("data/")] = pipeline.native_mask(examples, number)
    return masks


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
    """Scores a control; on the official split copying gives (47.4, 68.5, 35.1, 73.7, 35.9)."""
    figures = _figures(cases, (Segmentation, TwoClass, ZNet))
    of_type_2 = [case for case in cases if _is_type_2(case.name)]
    type_2 = _figures(of_type_2, (Segmentation,))["iou"] if of_type_2 else np.nan
    names = ("iou_per_image", "iou_two_class", "znet")
    values = (figures["iou"], type_2, *(figures[name] for name in names))
    return Scores(*(100 * float(value) for value in values))


def table(root: str, cache_dir: str = "") -> dict[str, Scores]:
    """Scores both controls on the official split and on random ones, and copying on each fold.

    Of the random splits, the mean and the sample standard deviation over `RANDOM_SEEDS`.
    """
    masks = load_masks(root, cache_dir)
    entries = json.loads((pathlib.Path(root) / "image_data.json").read_text("utf-8"))["images"]

    def sides(split: str, fold: int = 0) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        names = bsdata.split_names(entries, split, fold, normals=False)
        train, test = ({n: masks[n] for n in names[side]} for side in ("train", "test"))
        return train, test

    train, test = sides("official")
    rows = {
        "official, background": score(background(test)),
        "official, copy": score(copy_nearest(train, test)),
    }
    for fold in range(bsdata.NUM_FOLDS):
        rows[f"grouped fold {fold}, copy"] = score(copy_nearest(*sides("grouped", fold)))
    parts = [sides("random", seed) for seed in RANDOM_SEEDS]
    controls = {
        "background": [score(background(test)) for _, test in parts],
        "copy": [score(copy_nearest(*part)) for part in parts],
    }
    for name, scores in controls.items():
        rows[f"random, {name}: mean"] = Scores(*np.mean(scores, axis=0).tolist())
        rows[f"random, {name}: deviation"] = Scores(*np.std(scores, axis=0, ddof=1).tolist())
    return rows


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description="Scores the controls of BSData.")
    parser.add_argument("--root", required=True, help="clone of BSData")
    parser.add_argument("--cache_dir", default="", help="of prepared datasets")
    flags = parser.parse_args()
    print(f"{'IoU in %':30}" + "".join(f"{name:>12}" for name in Scores._fields))
    for name, scores in table(flags.root, flags.cache_dir).items():
        print(f"{name:30}" + "".join(f"{value:12.1f}" for value in scores))


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


def _figures(cases: Sequence[Case], metrics: Sequence[type[Metric]]) -> dict[str, float]:
    states: list[Metric] = []
    for case in cases:
        example = _example(case)
        ones = [metric.from_example(example) for metric in metrics]
        pairs = zip(states, ones, strict=True)
        states = [one.merge(other) for one, other in pairs] if states else ones
    estimates = (state.compute().items() for state in states)
    return {name: estimate.value for named in estimates for name, estimate in named}


def _example(case: Case) -> Example:
    return {
        "class_map": case.predicted,
        # Log-odds of who is certain.
        "score_map": np.where(case.predicted, np.float32(np.inf), np.float32(-np.inf)),
        "mask": case.mask,
        "bootstrap": _NO_BOOTSTRAP,
    }


if __name__ == "__main__":
    main()
