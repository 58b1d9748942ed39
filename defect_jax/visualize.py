"""Pictures and tables of results: overlays, curves, histograms.

Figures are matplotlib `Figure` objects on an Agg canvas, free of pyplot's global state, so any
number of them can be made anywhere, with or without a display. The line and area colours are
those of Okabe and Ito, "Color Universal Design" (2008), which the colour-blind tell apart.
"""

import io
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import patheffects, ticker
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from defect_jax import distributed
from defect_jax.paths import to_path, write_atomically

Curve = tuple[np.ndarray, np.ndarray]

BLUE, ORANGE, SKY, GREY = "#0072B2", "#E69F00", "#56B4E9", "#666666"
TRUTH, FOUND = SKY, ORANGE
SCORE_COLOURS = "inferno"
DPI = 110
PRO_LIMIT = 0.3

# Inches on the overlay sheet.
GAP, MARGIN, HEADER, LABEL = 0.1, 0.15, 0.8, 0.32
CHARACTER = 0.085  # the mean width of one at 9 points, rounded up


def overlay_sheet(
    examples: Sequence[Mapping[str, Any]],
    pixel_threshold: float | None,
    score_range: tuple[float, float],
) -> Figure:
    """Draws a row of pictures for each example, at the aspect of its native resolution.

    The columns are the image, the ground truth on the image, the reconstruction (where any
    example has one), the score map, and on the image what was found: the class map's defects (where
    any example has one), or else what lies above the threshold (where there is one).

    Args:
        examples: dicts of `image` uint8 [H, W, C] with C 1 or 3, `mask` [h, w] (nonzero:
            defective), `score_map` float32 [h, w], optionally `reconstruction` float [H, W, C]
            in [0, 1] and `class_map` [h, w] (0 is background), `score`, `defect_type` and
            `filename`.
        pixel_threshold: score above which a pixel counts as defective.
        score_range: scores at the two ends of the colour scale, which all score maps share.
    """
    columns = ["image", "ground truth", "score map"]
    if any("reconstruction" in example for example in examples):
        columns.insert(2, "reconstruction")
    if any("class_map" in example for example in examples):
        columns.append("found")
    elif pixel_threshold is not None:
        columns.append(f"score map > {pixel_threshold:.3g}")
    if not examples:
        return _notice("no images to show")
    norm = _colour_scale(score_range)
    width, heights = _cell_sizes([example["score_map"].shape for example in examples])
    size = (
        max(2 * MARGIN + len(columns) * (width + GAP) - GAP, 5.5),
        MARGIN + HEADER + sum(heights) + LABEL * len(heights),
    )
    figure = _new_figure(size)
    lefts = [MARGIN + number * (width + GAP) for number in range(len(columns))]
    _draw_header(figure, columns, lefts, width, norm, pixel_threshold)
    top = size[1] - HEADER
    for example, height in zip(examples, heights, strict=True):
        _write(figure, MARGIN, top - 0.21, _row_label(example, size[0] - 2 * MARGIN))
        top -= LABEL + height
        row = [_place(figure, left, top, width, height) for left in lefts]
        _draw_row(row, columns, example, pixel_threshold, norm)
    return figure


def _cell_sizes(shapes: list[tuple[int, int]]) -> tuple[float, list[float]]:
    """Width of all cells and height of each row in inches: the same area for any aspect."""
    typical = float(np.median([width / height for height, width in shapes]))
    cell = min(max(2.3 * math.sqrt(typical), 1.6), 3.6)
    return cell, [min(cell * height / width, 3.6) for height, width in shapes]


def _colour_scale(score_range: tuple[float, float]) -> Normalize:
    low, high = score_range
    if not low < high:  # a constant score map has no range of its own
        low, high = low - 0.5, low + 0.5
    return Normalize(low, high, clip=True)


def _place(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Adds axes at a place given in inches from the lower left corner."""
    across, up = figure.get_size_inches()
    return figure.add_axes((left / across, bottom / up, width / across, height / up))


def _write(figure: Figure, left: float, bottom: float, text: str, **style: Any) -> None:
    across, up = figure.get_size_inches()
    # File names may hold dollar signs, which would start a formula.
    figure.text(left / across, bottom / up, text, parse_math=False, **({"fontsize": 9} | style))


def _row_label(example: Mapping[str, Any], width: float) -> str:
    """File name, defect type and score; a long file name loses its beginning."""
    rest = f"   |   {example['defect_type']}   |   score {example['score']:.4g}"
    name = str(example["filename"])
    room = max(int(width / CHARACTER) - len(rest), 12)
    return (name if len(name) <= room else "…" + name[1 - room :]) + rest


def _draw_header(
    figure: Figure,
    columns: list[str],
    lefts: list[float],
    width: float,
    norm: Normalize,
    threshold: float | None,
) -> None:
    """Writes the columns' titles, and under that of the score maps their colour bar."""
    top = figure.get_size_inches()[1]
    for title, left in zip(columns, lefts, strict=True):
        middle = left + width / 2
        _write(figure, middle, top - 0.28, title, ha="center", fontsize=10, fontweight="bold")
    left = lefts[columns.index("score map")]
    axes = _place(figure, left, top - 0.5, width, 0.12)
    axes.set_label("colour bar")
    mappable = ScalarMappable(norm, SCORE_COLOURS)
    bar = figure.colorbar(mappable, cax=axes, orientation="horizontal")
    bar.locator = ticker.MaxNLocator(4)
    bar.ax.tick_params(labelsize=8, length=2, pad=1)
    if threshold is not None and 0 < norm(threshold) < 1:
        bar.ax.axvline(threshold, color="white", linewidth=3)
        bar.ax.axvline(threshold, color="black", linewidth=1)


def _draw_row(
    row: list[Axes],
    columns: list[str],
    example: Mapping[str, Any],
    threshold: float | None,
    norm: Normalize,
) -> None:
    native = example["score_map"].shape
    for axes, title in zip(row, columns, strict=True):
        axes.set(xticks=[], yticks=[], label=title)
        if title == "score map":
            _show(axes, example["score_map"], native, cmap=SCORE_COLOURS, norm=norm)
        elif title == "reconstruction":
            if title in example:
                _show(axes, np.clip(example[title], 0, 1), native, cmap="gray", vmin=0, vmax=1)
            else:
                axes.set_axis_off()
        else:
            _show(axes, example["image"], native, cmap="gray", vmin=0, vmax=255)
    _outline(row[1], example["mask"] != 0, TRUTH, "no defect")
    if "class_map" in example:
        _outline(row[-1], example["class_map"] > 0, FOUND, "nothing found")
    elif threshold is not None:
        _outline(row[-1], example["score_map"] > threshold, FOUND, "nothing above")


def _show(axes: Axes, image: np.ndarray, native: tuple[int, int], **style: Any) -> None:
    """Shows an image of any resolution over the native one's extent, in pixels."""
    if image.ndim == 3 and image.shape[-1] == 1:
        image = image[..., 0]
    axes.imshow(image, extent=(0, native[1], native[0], 0), **style)


def _outline(axes: Axes, region: np.ndarray, colour: str, nothing: str) -> None:
    """Tints and outlines a region [h, w]; says so in the corner where it is empty."""
    height, width = region.shape
    if not region.any():
        box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 2}
        axes.text(0.03, 0.04, nothing, transform=axes.transAxes, fontsize=8, bbox=box)
        return
    # A border of zeros closes the outline of a region that touches the edge of the image.
    padded = np.pad(region, 1).astype(np.float32)
    x, y = np.arange(-0.5, width + 1), np.arange(-0.5, height + 1)
    axes.contourf(x, y, padded, levels=[0.5, 1.5], colors=[colour], alpha=0.3)
    lines = axes.contour(x, y, padded, levels=[0.5], colors=[colour], linewidths=1.2)
    lines.set_path_effects([patheffects.withStroke(linewidth=2.4, foreground="black")])
    axes.set(xlim=(0, width), ylim=(height, 0))


def overlay(
    axes: Axes,
    image: np.ndarray,
    heat: np.ndarray | None = None,
    region: np.ndarray | None = None,
    colour: str = TRUTH,
) -> None:
    """Shows an image, on it a score map as heat, and a region outlined.

    Args:
        axes: where; loses its ticks.
        image: [H, W, C] uint8, stretched to the size of the heat or the region.
        heat: [h, w] in [0, 1], transparent at 0; or None.
        region: [h, w] bool; or None.
        colour: of the outline.
    """
    native = next((one.shape for one in (heat, region) if one is not None), image.shape)[:2]
    axes.set(xticks=[], yticks=[])
    _show(axes, image, native, cmap="gray", vmin=0, vmax=255)
    if heat is not None:
        _show(axes, heat, native, cmap=SCORE_COLOURS, vmin=0, vmax=1, alpha=heat)
    if region is not None and region.any():
        _outline(axes, region, colour, "")


def curves(curves: dict[str, Curve], values: dict[str, Any]) -> Figure:
    """Draws the ROC, precision-recall and per-region-overlap curves side by side.

    The area under the PRO curve is shaded up to the integration limit 0.30 (Bergmann et al.,
    "The MVTec Anomaly Detection Dataset", IJCV 2021, section 5.2).

    Args:
        curves: x and y, each [N] in [0, 1], under any of 'image_roc' and 'pixel_roc' (false and
            true positive rate), 'image_pr' and 'pixel_pr' (recall and precision) and 'pro'
            (false positive rate and mean overlap).
        values: areas to be named in the legends, under 'image_auroc', 'pixel_auroc', 'image_ap',
            'pixel_ap' and 'aupro_30'; other keys are not read.
    """
    figure = _new_figure((13.2, 4.6), layout="constrained")
    roc, precision_recall, pro = figure.subplots(1, 3)
    for axes, kind, name in ((roc, "roc", "auroc"), (precision_recall, "pr", "ap")):
        for level, colour, line in (("image", BLUE, "-"), ("pixel", ORANGE, "--")):
            if f"{level}_{kind}" in curves:
                x, y = curves[f"{level}_{kind}"]
                value = _decimals(values.get(f"{level}_{name}"))
                label = f"{level}s: {'AUROC' if kind == 'roc' else 'AP'} {value}"
                style = _steps(x) if kind == "pr" else "default"
                axes.plot(x, y, line, color=colour, drawstyle=style, label=label, linewidth=2)
    if roc.lines:
        roc.plot([0, 1], [0, 1], ":", color=GREY, linewidth=1, label="chance")
    if "pro" in curves:
        _draw_pro(pro, curves["pro"], _decimals(values.get("aupro_30")))
    _finish_unit(roc, "ROC", "false positive rate", "true positive rate")
    _finish_unit(precision_recall, "Precision-recall", "recall", "precision")
    _finish_unit(pro, "Per-region overlap", "false positive rate of pixels", "mean overlap")
    return figure


def _steps(recall: np.ndarray) -> str:
    """Holds each precision over the recall gained at it, in whichever order the points are."""
    return "steps-pre" if recall[-1] >= recall[0] else "steps-post"


def _draw_pro(axes: Axes, curve: Curve, value: str) -> None:
    x, y = curve
    axes.plot(x, y, color=BLUE, linewidth=2, label=f"AUPRO up to {PRO_LIMIT:.2f}: {value}")
    inside = x < PRO_LIMIT
    end = np.interp(PRO_LIMIT, x, y)
    shaded = np.append(x[inside], PRO_LIMIT), np.append(y[inside], end)
    axes.fill_between(*shaded, color=BLUE, alpha=0.15, linewidth=0)
    label = f"integration limit {PRO_LIMIT:.2f}"
    axes.axvline(PRO_LIMIT, color=GREY, linestyle=":", linewidth=1.5, label=label)


def _finish_unit(axes: Axes, title: str, x_label: str, y_label: str) -> None:
    axes.set_title(title, fontsize=11, fontweight="bold")
    axes.set(xlabel=x_label, ylabel=y_label, aspect="equal")
    # The margin keeps a perfect curve off the frame.
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(loc="lower right", fontsize=9, framealpha=0.9)
    else:
        axes.text(0.5, 0.5, "not available for this data", ha="center", color=GREY)


def score_histogram(
    scores: np.ndarray, labels: np.ndarray, threshold: float | None = None
) -> Figure:
    """Draws how the scores of good and of defective images are distributed.

    Args:
        scores: of the images, float [N].
        labels: 0 good, 1 defective, [N].
        threshold: score above which an image is flagged, drawn as a line.
    """
    scores, labels = np.asarray(scores), np.asarray(labels)
    if not scores.size:
        return _notice("no scores to show")
    figure = _new_figure((7.5, 4.2), layout="constrained")
    axes = figure.subplots()
    edges = np.histogram_bin_edges(scores, bins=min(max(10, scores.size // 4), 40))
    for name, label, colour, hatch in (("good", 0, BLUE, ""), ("defective", 1, ORANGE, "///")):
        chosen = scores[labels == label]
        if chosen.size:
            style: dict[str, Any] = {"facecolor": (colour, 0.45), "edgecolor": colour}
            style |= {"histtype": "stepfilled", "hatch": hatch, "linewidth": 1.5}
            text = f"{name} ({chosen.size})"
            axes.hist(chosen, edges.tolist(), label=text, **style)
    if threshold is not None:
        text = f"threshold {threshold:.4g}"
        axes.axvline(threshold, color="black", linestyle="--", linewidth=1.5, label=text)
    axes.set(xlabel="image score", ylabel="images")
    axes.yaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    axes.grid(axis="y", alpha=0.3)
    figure.legend(loc="outside upper center", ncols=3, fontsize=9, frameon=False)
    return figure


def training_curves(metrics: Sequence[dict[str, float]]) -> Figure:
    """Draws each metric of a run over its steps, on a log scale where all values are positive.

    Args:
        metrics: the rows of a run's `metrics.jsonl`: `step` and the metrics logged at it.
    """
    keys = list(dict.fromkeys(key for row in metrics for key in row if key != "step"))
    if not keys:
        return _notice("no training metrics yet")
    columns = min(len(keys), 3)
    rows = math.ceil(len(keys) / columns)
    figure = _new_figure((4.4 * columns, 3.0 * rows), layout="constrained")
    for number, key in enumerate(keys, 1):
        points = [(row["step"], row[key]) for row in metrics if key in row]
        steps, values = np.array(points, np.float64).T
        axes = figure.add_subplot(rows, columns, number)
        axes.plot(steps, values, "." if len(steps) == 1 else "-", color=BLUE, linewidth=1.5)
        axes.set_title(key.replace("_", " "), fontsize=11)
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(ticker.MaxNLocator(5, integer=True))
        axes.grid(alpha=0.3)
        _scale(axes, values[np.isfinite(values)])
    return figure


def _scale(axes: Axes, values: np.ndarray) -> None:
    if not values.size or values.min() <= 0:
        return
    axes.set_yscale("log")
    if values.max() < 30 * values.min():  # too few powers of ten to read the scale by
        axes.yaxis.set_major_locator(ticker.MaxNLocator(5))
        axes.yaxis.set_major_formatter(ticker.FormatStrFormatter("%.4g"))
        axes.yaxis.set_minor_locator(ticker.NullLocator())


def results_table(rows: dict[str, dict[str, Any]], keys: Sequence[str]) -> str:
    """Formats results as aligned plain text.

    Args:
        rows: name of a row -> its values by key; None, NaN or a missing key shows as '–'.
        keys: the columns, in order.

    Returns:
        A header, a line for each row, and where there are several their 'mean', each column's
        over the rows that have a value.
    """
    table = {name: [_number(row.get(key)) for key in keys] for name, row in rows.items()}
    lines = [["", *keys]]
    lines += [[name, *map(_decimals, values)] for name, values in table.items()]
    if len(rows) > 1:
        means = (_mean(column) for column in zip(*table.values(), strict=True))
        lines.append(["mean", *map(_decimals, means)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
        for line in lines
    )


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def _decimals(value: float | None) -> str:
    return "–" if math.isnan(_number(value)) else f"{value:.3f}"  # noqa: RUF001


def to_array(figure: Figure) -> np.ndarray:
    """Renders a figure to uint8 [H, W, 3]."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def save(figure: Figure, path: str | pathlib.Path) -> None:
    """Writes a figure as PNG; the file takes its name when it is complete.

    Makes the folders that lead to it. Of several processes the first alone writes.

    Raises:
        UserError: the file cannot be written.
    """
    if not distributed.is_first():
        return
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=figure.dpi)
    write_atomically(to_path(path), buffer.getvalue())


def _new_figure(size: tuple[float, float], layout: Any = None) -> Figure:
    figure = Figure(figsize=size, dpi=DPI, layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _notice(text: str) -> Figure:
    """A figure that says there is nothing to see."""
    figure = _new_figure((5, 1.5))
    figure.text(0.5, 0.5, text, ha="center", va="center", fontsize=11, color=GREY)
    return figure
