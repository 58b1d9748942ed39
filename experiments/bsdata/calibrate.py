"""Chooses a segmenter's threshold and minimum area on BSData, without the official test frames.

    python experiments/bsdata/calibrate.py --runs runs/tuning_0 runs/tuning_1 ... runs/tuning_4

The runs have `data.split` 'tuning', a fold each: what they are tested on are training frames of
places that they have not seen. Their test images are pooled, and each pair of a grid of thresholds
on the log-odds and of minimum areas is scored by the pooled foreground IoU. Several runs of one
fold count as the ensemble that protocol.py makes of them, so give as many of each fold as the
ensemble to be cut has. The best pair's IoU is the best of many, so report that of other images.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

import numpy as np
from absl import logging
from scipy import ndimage

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from defect_jax import runtime
from defect_jax.data.bsdata import NUM_FOLDS
from defect_jax.errors import UserError
from defect_jax.ops.objects import label_regions
from experiments.bsdata import ensemble

LOG_ODDS = np.arange(-4, 4.125, 0.25)
MIN_AREAS = (0, 10, 25, 50, 100, 200)  # pixels of the file
NUM_ROWS = 8
_FLAT = 0.5  # points of IoU: pairs this close to the best are as good


def score_grid(groups: Sequence[ensemble.Group]) -> np.ndarray:
    """The foreground IoU pooled over all groups' test images at each pair: [T, A], percent."""
    counts = np.zeros((len(LOG_ODDS), len(MIN_AREAS), 2), np.int64)
    true = 0
    for group in groups:
        for together in ensemble.predict_together(group):
            mask = together[0]["mask"] != 0
            counts += count(ensemble.mean_log_odds(together), mask)
            true += int(np.count_nonzero(mask))
    predicted, hits = counts[..., 0], counts[..., 1]
    return 100 * hits / (predicted + true - hits)


def count(log_odds: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Counts one image's pixels at each pair.

    Args:
        log_odds: [h, w] of a pit.
        mask: [h, w] bool, where a pit is.

    Returns:
        [T, A, 2] int64: predicted pixels, as `ops.objects.remove_small` would leave them, and
        those of them that are true.
    """
    counts = np.zeros((len(LOG_ODDS), len(MIN_AREAS), 2), np.int64)
    # Above all other thresholds lies only what is above the first one.
    above = ndimage.find_objects((log_odds > LOG_ODDS[0]).astype(np.uint8))
    if not above:
        return counts
    log_odds, mask = log_odds[above[0]], mask[above[0]]
    for row, threshold in enumerate(LOG_ODDS):
        labels, number = label_regions(log_odds > threshold)
        areas = np.bincount(labels.ravel(), minlength=number + 1)[1:]
        hits = np.bincount(labels[mask], minlength=number + 1)[1:]
        for column, min_area in enumerate(MIN_AREAS):
            kept = areas >= min_area
            counts[row, column] = areas[kept].sum(), hits[kept].sum()
    return counts


def best_pairs(iou: np.ndarray) -> list[tuple[int, int]]:
    """The grid's places [T, A], the highest IoU first; of equals the mildest cut comes first."""
    rows, columns = np.unravel_index(np.arange(iou.size), iou.shape)
    order = np.lexsort((columns, np.abs(LOG_ODDS[rows]), -iou.ravel()))
    return list(zip(rows[order].tolist(), columns[order].tolist(), strict=True))


def report(iou: np.ndarray) -> str:
    """The best rows of the grid, how flat it is around them, and the flags to evaluate with."""
    pairs = best_pairs(iou)
    best, column = pairs[0]
    lines = ["| log-odds above | pixels at least | foreground IoU |", "| --- | --- | --- |"]
    for pair in pairs[:NUM_ROWS]:
        lines.append(f"| {LOG_ODDS[pair[0]]:g} | {MIN_AREAS[pair[1]]} | {iou[pair]:.2f} |")
    near = iou >= iou[pairs[0]] - _FLAT
    thresholds, areas = LOG_ODDS[near[:, column]], np.array(MIN_AREAS)[near[best]]
    zero = iou[np.searchsorted(LOG_ODDS, 0), 0]
    lines += [
        "",
        f"Within {_FLAT:g} points of the best: {near.sum()} of {iou.size} pairs; at its area "
        f"log-odds from {thresholds[0]:g} to {thresholds[-1]:g}, at its log-odds areas from "
        f"{areas[0]} to {areas[-1]}. Log-odds 0 without a minimum area: {zero:.2f}.",
    ]
    if best in (0, len(LOG_ODDS) - 1) or column == len(MIN_AREAS) - 1:
        lines.append("The best pair lies on the border of the grid: a better one may lie outside.")
    cut = {"min_log_odds": f"{LOG_ODDS[best]:g}", "min_area": f"{MIN_AREAS[column]}"}
    lines += [
        "",
        "python -m defect_jax.main --mode=evaluate ... "
        + " ".join(f"--config.eval.{name}={value}" for name, value in cut.items()),
        "python experiments/bsdata/protocol.py ... "
        + " ".join(f"--{name}={value}" for name, value in cut.items()),
    ]
    return "\n".join(lines)


def describe(groups: Sequence[ensemble.Group]) -> str:
    """Which folds there are, how many runs of each, which are missing, and what runs differ in."""
    folds = {group.fold: len(group.entries) for group in groups}
    missing = [str(fold) for fold in range(NUM_FOLDS) if fold not in folds]
    entries = [entry for group in groups for entry in group.entries]
    fields = set(ensemble.differences(entries)[0]) - {"data.fold", "data.train_digest", "seed"}
    lines = [
        "Runs of each fold: " + ", ".join(f"{folds[fold]} of {fold}" for fold in sorted(folds)),
        f"Missing folds: {', '.join(missing) or 'none'}",
    ]
    if fields:
        lines.append(f"The runs differ in {', '.join(sorted(fields))}: is this one method?")
    return "\n".join(lines)


def open_tuning(
    folders: Sequence[pathlib.Path], root: str | None, flip_average: bool | None = None
) -> list[ensemble.Group]:
    """The groups of runs on the folds of 'tuning'.

    Raises:
        UserError: see `ensemble.read_runs`; or a run of another split.
    """
    entries = ensemble.read_runs(folders, root, flip_average=flip_average)
    for entry in entries:
        if entry.config.data.split != "tuning":
            raise UserError(
                f"{entry.folder} is a run of data.split '{entry.config.data.split}': thresholds "
                "are chosen on runs of 'tuning'"
            )
    return ensemble.group_runs(entries)


def main(arguments: list[str] | None = None) -> None:
    """Scores the grid and prints what came out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=pathlib.Path, nargs="+", required=True, metavar="FOLDER")
    parser.add_argument("--root", help="clone of BSData, if no longer where it was")
    ensemble.add_flip_average(parser)
    options = parser.parse_args(arguments)
    logging.set_verbosity(logging.ERROR)  # Orbax and tfds tell their inner life at INFO
    runtime.set_up()
    try:
        groups = open_tuning(options.runs, options.root, options.flip_average)
        iou = score_grid(groups)
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"{describe(groups)}\n\n{report(iou)}", flush=True)


if __name__ == "__main__":
    main()
