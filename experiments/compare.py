"""What several runs see on the same test images, in one picture.

    python experiments/compare.py --out=compare.png \
        --runs "vae=runs/sweep/mvtec_vae/screw/0" "autoencoder=runs/screw"

Above are the images, the good ones first, and their true defects; below is a row for each run: its
score map on the images, outlined where it lies above the run's own calibrated threshold. Methods
score on scales of their own, so each row's colours run over the range of its run. The picture holds
images of the dataset: what that dataset's licence says of them holds for it too.
"""

import argparse
import pathlib
import sys
import textwrap
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from absl import logging
from matplotlib.axes import Axes
from matplotlib.figure import Figure

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from defect_jax import checkpoint, runtime, visualize
from defect_jax.data import datasets
from defect_jax.data.examples import Examples
from defect_jax.errors import UserError, naming_missing_fields
from defect_jax.evaluate import choose_shown, make_predict, predictions, read_thresholds
from defect_jax.methods import make_method
from defect_jax.metrics import Example
from defect_jax.paths import check_writable
from defect_jax.train import check_finished, phase_ends

# Inches: a cell's height, the column of the runs' names, and the strip above the cells.
CELL, NAMES, GAP, HEADER = 1.05, 1.55, 0.05, 0.5
LEGEND = (
    "colour: score, from a typical pixel's (none) to a typical image's highest (yellow), by run; "
    "outline: above the run's threshold, of a segmenter its own, else from good validation images"
)


class Row(NamedTuple):
    """A run in the picture.

    Attributes:
        name: what it is called.
        measured: what it achieved on all test images, as its `metrics.json` says.
        examples: the N images with their predictions, as `evaluate.predictions` yields them.
        threshold: score above which a pixel counts as defective, of a segmenter its
            `eval.min_log_odds`; None where there is none.
    """

    name: str
    measured: dict[str, Any]
    examples: list[Example]
    threshold: float | None


# ------------------------------------------------------------------------------------ the runs


def compare(runs: dict[str, pathlib.Path], count: int, root: str | None) -> list[Row]:
    """What each run makes of the same test images, good ones first.

    Args:
        runs: name -> folder of a finished run, all of one dataset and category.
        count: how many images, of each defect type as many; all where there are fewer.
        root: where the dataset lies; None for where each run found it.

    Raises:
        UserError: no run, one that is not finished, or runs of other images.
    """
    folders = list(runs.values())
    configs = [_finished_config(folder) for folder in folders]
    for folder, config in zip(folders, configs, strict=True):
        theirs, ours = (f"{one.data.name} '{one.data.category}'" for one in (config, configs[0]))
        if theirs != ours:
            raise UserError(
                f"{folder} is a run on {theirs}, {folders[0]} on {ours}: compare runs on the same"
            )
        if root is not None:
            config.data.root = root
        check_finished(config, folder)
        datasets.check_same_images(config, folder)
    splits = [_choose(config, count) for config in configs]
    for folder, examples in zip(folders, splits, strict=True):
        _check_same_images(folder, examples, folders[0], splits[0])
    return [_row(*one) for one in zip(runs, folders, configs, splits, strict=True)]


def _finished_config(folder: pathlib.Path) -> ml_collections.ConfigDict:
    """The config of a run whose last step has been evaluated."""
    config = checkpoint.read_config(folder)
    path = folder / "eval/test/metrics.json"
    if not path.is_file():
        raise UserError(f"{folder} is not evaluated: no eval/test/metrics.json there")
    with naming_missing_fields(folder):
        last = phase_ends(config, make_method(config))[-1]
    step = checkpoint.read_json(path).get("step")
    if step != last:
        raise UserError(f"{folder} was evaluated at step {step} of {last}: finish it first")
    return config


def _choose(config: ml_collections.ConfigDict, count: int) -> Examples:
    """The test examples to be shown, good ones first, each defect type together."""
    examples = datasets.load_split(config, "test")
    chosen = examples.take(np.array(choose_shown(examples, count)))
    return chosen.take(np.lexsort((chosen.filename, chosen.defect_type, chosen.label)))


def _check_same_images(
    folder: pathlib.Path, examples: Examples, first_folder: pathlib.Path, first: Examples
) -> None:
    """Drawn surfaces, say, are others at another size; that one run sees them grey is no matter."""
    for name in ("filename", "mask"):
        ours, theirs = getattr(examples, name), getattr(first, name)
        if not np.array_equal(ours, theirs):
            raise UserError(
                f"{folder} was tested on other images than {first_folder}, though of one "
                "category: compare runs on the same images"
            )


def _row(
    name: str, folder: pathlib.Path, config: ml_collections.ConfigDict, examples: Examples
) -> Row:
    run = checkpoint.load_run(folder)
    shown = list(predictions(config, examples, make_predict(run.method, run.state)))
    jax.clear_caches()
    thresholds = read_thresholds(folder)
    threshold = thresholds.pixel if thresholds else None
    if "class_map" in shown[0]:
        threshold = config.eval.min_log_odds
    measured = checkpoint.read_json(folder / "eval/test/metrics.json")
    return Row(name, measured, shown, threshold)


# --------------------------------------------------------------------------------- the picture


def draw(rows: list[Row]) -> Figure:
    """A column for each image; rows of images, true defects, and of score maps for each run."""
    shown = rows[0].examples
    widths = [CELL * np.clip(one["mask"].shape[1] / one["mask"].shape[0], 0.5, 3) for one in shown]
    num_rows = 2 + len(rows)
    width = NAMES + sum(widths) + GAP * len(shown)
    legend = textwrap.wrap(LEGEND, max(20, int(15 * (width - 0.2))))  # letters of 8 points
    footer = 0.25 + 0.15 * len(legend)
    height = HEADER + num_rows * (CELL + GAP) + footer
    figure = Figure((width, height), dpi=visualize.DPI, facecolor="white")
    cells = figure.subplots(
        num_rows,
        len(shown),
        squeeze=False,
        gridspec_kw={
            "left": NAMES / width,
            "right": 1 - GAP / width,
            "bottom": footer / height,
            "top": 1 - HEADER / height,
            "wspace": GAP * len(widths) / sum(widths),
            "hspace": GAP / CELL,
            "width_ratios": widths,
        },
    )
    for (above, below), example in zip(cells[:2].T, shown, strict=True):
        above.set_title(example["defect_type"].replace("_", "\n"), fontsize=8)
        visualize.overlay(above, example["image"])
        visualize.overlay(below, example["image"], region=example["mask"] != 0)
    _name_row(cells[0, 0], "image")
    _name_row(cells[1, 0], "true defect")
    for axes, row in zip(cells[2:], rows, strict=True):
        _draw_row(axes, row)
    figure.text(0.1 / width, 0.1 / height, "\n".join(legend), fontsize=8)
    return figure


def _draw_row(cells: np.ndarray, row: Row) -> None:
    maps = [example["score_map"] for example in row.examples]
    low = float(np.median(np.concatenate([values.ravel() for values in maps])))
    high = float(np.median([values.max() for values in maps]))
    for axes, example, score_map in zip(cells, row.examples, maps, strict=True):
        heat = np.clip((score_map - low) / max(high - low, 1e-30), 0, 1)
        region = None if row.threshold is None else score_map > row.threshold
        visualize.overlay(axes, example["image"], heat, region, visualize.FOUND)
    figures = {"image AUROC": "image_auroc", "pixel AUROC": "pixel_auroc", "AUPRO": "aupro_30"}
    values = {name: row.measured.get(key) for name, key in figures.items()}
    lines = [f"{name} {value:.2f}" for name, value in values.items() if value is not None]
    _name_row(cells[0], row.name, "\n".join(lines))


def _name_row(axes: Axes, name: str, below: str = "") -> None:
    place: dict[str, Any] = {"x": -0.08, "ha": "right", "transform": axes.transAxes}
    axes.text(y=0.6 if below else 0.5, s=name, va="center", fontsize=9, weight="bold", **place)
    axes.text(y=0.45, s=below, va="top", fontsize=7, color=visualize.GREY, **place)


def _named_folder(text: str) -> tuple[str, pathlib.Path]:
    name, equals, folder = text.partition("=")
    if not (name and equals and folder):
        raise argparse.ArgumentTypeError(f"'{text}' is not of the form NAME=FOLDER")
    return name, pathlib.Path(folder)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--runs", type=_named_folder, nargs="+", required=True, metavar="NAME=FOLDER"
    )
    parser.add_argument("--out", type=pathlib.Path, required=True, help="the picture, .png")
    parser.add_argument("--images", type=int, default=10, help="how many, 10 by default")
    parser.add_argument("--root", help="where the images lie now, if no longer where they were")
    options = parser.parse_args(arguments)
    if options.images < 1:
        parser.error("--images must be at least 1")
    runs = dict(options.runs)
    if len(runs) < len(options.runs):
        parser.error("--runs has a name twice: each run needs its own")
    logging.set_verbosity(logging.ERROR)  # Orbax and tfds tell their inner life at INFO
    runtime.set_up()
    try:
        if options.out.is_file():
            raise UserError(f"{options.out} is there already: name another file or remove it")
        check_writable(options.out)
        rows = compare(runs, options.images, options.root)
        visualize.save(draw(rows), options.out)
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"picture: {options.out}", flush=True)


if __name__ == "__main__":
    main()
