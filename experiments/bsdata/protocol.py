"""Measures finished runs on BSData, and the ensembles of those that differ in their seed.

    python experiments/bsdata/protocol.py --out=runs/protocol --runs runs/seed_0 runs/seed_1

The runs are of one method. Those with the same `data.split` and `data.fold` form a group. Each run
of it is measured, and where there are several their ensemble: the mean of their probabilities, cut
like that of a run. The figures are in percent of pixels or pits at the resolution of the files,
with 95 % intervals over bootstrapped images; only two are of maps shrunk to 256x512, see
`measures.ZNet`. Of a split with several folds there is one more table: pooled over the folds, as
each image is tested once, but of random splits their mean and sample standard deviation.

Writes `protocol.json`, and of the first group `best.png` and `worst.png`, the test images with the
highest and lowest IoU of their own. The pictures hold images of the dataset, and its licence, CC
BY-SA 4.0, holds for them too.
"""

import argparse
import math
import pathlib
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from defect_jax import checkpoint, runtime, visualize
from defect_jax.errors import UserError
from defect_jax.evaluate import draw_sheet
from defect_jax.metrics import Detection, Estimate, Example, Metric, Segmentation
from defect_jax.paths import check_writable
from experiments.bsdata import ensemble, measures

METRICS: dict[str, type[Metric]] = {
    "segmentation": Segmentation,
    "two_class": measures.TwoClass,
    "znet": measures.ZNet,
    "detection": Detection,
    "pits": measures.PitRecall,
}
FIGURES = {
    "iou": "foreground IoU, pooled",
    "dice": "Dice, pooled",
    "iou_per_image": "IoU, mean of images",
    "dice_per_image": "Dice, mean of images",
    "iou_two_class": "IoU, mean of both classes",
    "iou_type 2": "foreground IoU, type 2",
    "iou_type 1": "foreground IoU, type 1",
    "dice_type 2": "Dice, type 2",
    "dice_type 1": "Dice, type 1",
    "iou_per_image_type 2": "IoU, mean of images of type 2",
    "iou_per_image_type 1": "IoU, mean of images of type 1",
    "dice_per_image_type 2": "Dice, mean of images of type 2",
    "dice_per_image_type 1": "Dice, mean of images of type 1",
    "znet": "ZNet's IoU at 256x512",
    "iou_256x512": "foreground IoU at 256x512, pooled",
    "object_recall": "recall of pits",
    "object_precision": "precision of pits",
    "object_f1": "F1 of pits",
    "object_recall_01": "recall at 0.1 false alarms an image",
    "object_recall_1": "recall at 1 false alarm an image",
}
BY_PITS = {
    "iou": "foreground IoU, images",
    "dice": "Dice, images",
    "iou_per_image": "IoU, mean of images",
    "dice_per_image": "Dice, mean of images",
}
FIGURES |= {
    f"{figure}_{name}": f"{heading} with {name} px² of pits"
    for figure, heading in BY_PITS.items()
    for name in measures.PIT_BINS.values()
}
FIGURES |= {
    f"recall_{name}": f"recall of pits of {name} px²" for name in measures.PIT_BINS.values()
}
NUM_SHOWN = 10
# In what the runs of one method differ.
MAY_DIFFER = {"seed", "data.split", "data.fold", "data.train_digest", "data.validation_files"}
_UNKNOWN = Estimate(math.nan, np.zeros(0))

# name of a metric, or for the segmentation of a part of the images a type of spindle or a bin of
# `measures.PIT_BINS` -> its state
Totals = dict[str, Metric]
Figures = dict[str, Estimate]


class Measured(NamedTuple):
    """What a group's runs achieve.

    Attributes:
        group: the runs.
        num_images: how many they were tested on.
        runs: the totals of each.
        final: the totals of their ensemble; of the one run where there is one.
        shown: the ensemble's images with the highest and the lowest IoU, the highest first.
    """

    group: ensemble.Group
    num_images: int
    runs: list[Totals]
    final: Totals
    shown: list[Example]


# ----------------------------------------------------------------------------------- measuring


def measure(group: ensemble.Group) -> Measured:
    """Goes through a group's test images once.

    Raises:
        UserError: the runs cut their maps differently, so that it is not said how an ensemble does.
    """
    cuts = {(one.config.eval.min_log_odds, one.config.eval.min_area) for one in group.entries}
    if len(cuts) > 1:
        raise UserError(
            f"the runs on {group.name} differ in eval.min_log_odds or eval.min_area: pass "
            "--min_log_odds and --min_area"
        )
    cut = cuts.pop()
    runs: list[Totals] = [{} for _ in group.entries]
    final: Totals = {} if len(runs) > 1 else runs[0]
    ranked: list[tuple[float, Example]] = []
    count = 0
    for together in ensemble.predict_together(group):
        for totals, example in zip(runs, together, strict=True):
            add(totals, example)
        last = together[0]
        if len(runs) > 1:
            last = ensemble.average(together, *cut)
            add(final, last)
        ranked = rank(ranked, last)
        count += 1
    return Measured(group, count, runs, final, [example for _, example in ranked])


def check_one_method(entries: Sequence[ensemble.Entry]) -> None:
    """Raises UserError where runs differ in more than seed, split and what follows from these."""
    differing = {name for fields in ensemble.differences(entries) for name in fields}
    other = sorted(differing - MAY_DIFFER)
    if other:
        raise UserError(
            f"the runs differ in {', '.join(other)}: their mean would be of several methods; give "
            "each method a call of its own"
        )


def add(totals: Totals, example: Example) -> None:
    """Adds one example to what is measured of all, of its type of spindle and of its bin."""
    parts = (example["defect_type"], measures.pit_bin(example["mask"]))
    for name, metric in (METRICS | dict.fromkeys(parts, Segmentation)).items():
        one = metric.from_example(example)
        totals[name] = totals[name].merge(one) if name in totals else one


def merge(parts: Sequence[Totals]) -> Totals:
    """The totals over the images of all parts."""
    merged: Totals = {}
    for part in parts:
        for name, metric in part.items():
            merged[name] = merged[name].merge(metric) if name in merged else metric
    return merged


def figures(totals: Totals) -> Figures:
    """The estimates under the names of `FIGURES`, NaN where there is nothing to measure."""
    known: Figures = {}
    for name, metric in totals.items():
        if name in METRICS:
            known |= metric.compute()
        else:
            known |= {f"{figure}_{name}": one for figure, one in metric.compute().items()}
    return {name: known.get(name, _UNKNOWN) for name in FIGURES}


def rank(ranked: list[tuple[float, Example]], example: Example) -> list[tuple[float, Example]]:
    """The images so far by their own IoU, the highest first, without those in the middle."""
    iou = Segmentation.from_example(example).compute()["iou"].value
    slim = {**example, "class_map": example["class_map"].astype(np.uint8)}
    ranked = sorted([*ranked, (iou, slim)], key=lambda one: -one[0])
    if len(ranked) > 2 * NUM_SHOWN:
        del ranked[NUM_SHOWN]
    return ranked


# ----------------------------------------------------------------------------------- reporting


def spread(parts: Sequence[Figures]) -> dict[str, tuple[float, float]]:
    """The mean and the sample standard deviation of each figure; NaN where a part has none."""
    values = {name: [part[name].value for part in parts] for name in FIGURES}
    return {name: (float(np.mean(v)), float(np.std(v, ddof=1))) for name, v in values.items()}


def over_folds(measured: Sequence[Measured]) -> dict[str, Figures | dict[str, tuple[float, float]]]:
    """Split -> the figures over its folds, of every split with several.

    Random splits share test images, so of these the mean and the standard deviation.
    """
    results: dict[str, Any] = {}
    for split in dict.fromkeys(one.group.split for one in measured):
        finals = [one.final for one in measured if one.group.split == split]
        if len(finals) > 1 and split == "random":
            results[split] = spread([figures(final) for final in finals])
        elif len(finals) > 1:
            results[split] = figures(merge(finals))
    return results


def labels(group: ensemble.Group) -> list[str]:
    """What each run of a group is called: what it differs in, or its folder where it is alone."""
    fields = ensemble.differences(group.entries)
    if len(fields) == 1:
        return [group.entries[0].folder.name]
    return [", ".join(f"{name}={value}" for name, value in one.items()) for one in fields]


def pit_counts(totals: Totals) -> dict[str, int]:
    """The number of true pits in each bin of their area."""
    pits = totals["pits"]
    assert isinstance(pits, measures.PitRecall)
    return pits.counts()


def image_counts(totals: Totals) -> dict[str, int]:
    """The number of images in each bin, of those that show a pit or have one predicted."""
    counts = dict.fromkeys(measures.PIT_BINS.values(), 0)
    for name in counts.keys() & totals.keys():
        part = totals[name]
        assert isinstance(part, Segmentation)
        counts[name] = int(part.overlap.sums[0, -1])
    return counts


def as_json(measured: Sequence[Measured]) -> dict[str, Any]:
    """What `protocol.json` holds; all figures in percent."""
    return {
        "bootstrap_samples": ensemble.BOOTSTRAP_SAMPLES,
        "groups": [_group_json(one) for one in measured],
        "over_folds": {
            split: {name: _value_json(value) for name, value in row.items()}
            for split, row in over_folds(measured).items()
        },
    }


def _group_json(one: Measured) -> dict[str, Any]:
    group = one.group
    cut = group.entries[0].config.eval
    result: dict[str, Any] = {
        "split": group.split,
        "fold": group.fold,
        "num_images": one.num_images,
        "num_pits": pit_counts(one.final),
        "num_images_by_pits": image_counts(one.final),
        "min_log_odds": cut.min_log_odds,
        "min_area": cut.min_area,
        "runs": [
            {
                "folder": str(entry.folder),
                "differs_in": fields,
                "seed": entry.config.seed,
                "num_steps": entry.config.train.num_steps,
                "figures": {n: _value_json(v) for n, v in figures(totals).items()},
            }
            for entry, fields, totals in zip(
                group.entries, ensemble.differences(group.entries), one.runs, strict=True
            )
        ],
    }
    if len(one.runs) > 1:
        over_runs = spread([figures(totals) for totals in one.runs])
        result["over_runs"] = {n: _value_json(v) for n, v in over_runs.items()}
        result["ensemble"] = {n: _value_json(v) for n, v in figures(one.final).items()}
    return result


def _value_json(value: Estimate | tuple[float, float]) -> dict[str, Any]:
    if isinstance(value, Estimate):
        interval = value.interval()
        percent = [100 * end for end in interval] if interval else None
        return {"value": _percent(value.value), "ci": percent}
    return {"mean": _percent(value[0]), "std": _percent(value[1])}


def _percent(value: float) -> float | None:
    return None if math.isnan(value) else 100 * value


def as_markdown(measured: Sequence[Measured]) -> str:
    """A table for each group, and one for each split with several folds."""
    parts = []
    for one in measured:
        columns: dict[str, dict[str, Any]] = {
            label: figures(totals)
            for label, totals in zip(labels(one.group), one.runs, strict=True)
        }
        if len(one.runs) > 1:
            columns["mean ± std"] = spread(list(columns.values()))
            columns["ensemble"] = figures(one.final)
        cut = one.group.entries[0].config.eval
        title = (
            f"{one.group.name}, {one.num_images} test images, log-odds above {cut.min_log_odds:g}, "
            f"at least {cut.min_area:g} px"
        )
        parts.append(table(title, columns, one.final))
    for split, row in over_folds(measured).items():
        finals = [one.final for one in measured if one.group.split == split]
        title = f"{split}, {len(finals)} folds"
        column = "mean ± std" if split == "random" else "pooled"
        parts.append(table(title, {column: row}, merge(finals)))
    return "\n\n".join(parts)


def table(title: str, columns: dict[str, dict[str, Any]], totals: Totals) -> str:
    """A markdown table of figures, a column each.

    Args:
        title: stands above it.
        columns: heading -> what `figures` or `spread` returns.
        totals: of any of the columns: how many true pits and images are in each bin.
    """
    headings = dict(FIGURES)
    for name, count in pit_counts(totals).items():
        headings[f"recall_{name}"] += f" ({count})"
    for name, count in image_counts(totals).items():
        for figure in BY_PITS:
            headings[f"{figure}_{name}"] += f" ({count})"
    lines = [["%", *columns], ["---"] * (1 + len(columns))]
    for name, heading in headings.items():
        lines.append([heading, *(_cell(column[name]) for column in columns.values())])
    return "\n".join([f"**{title}**", "", *(f"| {' | '.join(line)} |" for line in lines)])


def _cell(value: Estimate | tuple[float, float]) -> str:
    if math.isnan(value[0]):
        return "–"  # noqa: RUF001
    if not isinstance(value, Estimate):
        return f"{100 * value[0]:.1f} ± {100 * value[1]:.1f}"
    interval = value.interval()
    ends = f" [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]" if interval else ""
    return f"{100 * value.value:.1f}{ends}"


def main(arguments: list[str] | None = None) -> None:
    """Measures, prints the tables and writes the files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=pathlib.Path, nargs="+", required=True, metavar="FOLDER")
    parser.add_argument("--root", help="clone of BSData, if no longer where it was")
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("runs/protocol"), metavar="FOLDER"
    )
    cut = "for the official split, from calibrate.py, instead of the runs' own"
    parser.add_argument("--min_log_odds", type=float, help=cut)
    parser.add_argument("--min_area", type=int, help=cut)
    ensemble.add_flip_average(parser)
    options = parser.parse_args(arguments)
    cuts = {"min_log_odds": options.min_log_odds, "min_area": options.min_area}
    logging.set_verbosity(logging.ERROR)  # Orbax and tfds tell their inner life at INFO
    runtime.set_up()
    try:
        path = options.out / "protocol.json"
        if path.exists():
            raise UserError(f"{path} is there already: name another folder as --out or remove it")
        given = {name: value for name, value in cuts.items() if value is not None}
        entries = ensemble.read_runs(options.runs, options.root, given, options.flip_average)
        check_one_method(entries)
        check_writable(path)
        measured = [measure(group) for group in ensemble.group_runs(entries)]
        checkpoint.write_json(path, as_json(measured))
        shown = measured[0].shown
        visualize.save(draw_sheet(shown[:NUM_SHOWN], None), options.out / "best.png")
        visualize.save(draw_sheet(shown[: -NUM_SHOWN - 1 : -1], None), options.out / "worst.png")
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")
    print(as_markdown(measured))
    print(f"\n{options.out}: protocol.json, best.png, worst.png", flush=True)


if __name__ == "__main__":
    main()
