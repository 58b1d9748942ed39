"""The one evaluation path: predict a split, run the metrics, write the results."""

import csv
import io
import itertools
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from PIL import Image
from scipy import special

from defect_jax import checkpoint, devices, distributed, report, visualize, watch
from defect_jax.data import datasets, pipeline
from defect_jax.data.examples import Examples
from defect_jax.errors import UserError
from defect_jax.method import Method, State
from defect_jax.methods import make_method
from defect_jax.methods.scoring import score_image
from defect_jax.metrics import (
    METRICS,
    Calibration,
    Estimate,
    Example,
    ImageRanking,
    Metric,
    PixelRanking,
    Thresholds,
    bootstrap_weights,
    is_flagged,
)
from defect_jax.metrics.histogram import pr_curve, pro_curve, roc_curve
from defect_jax.ops import tiles
from defect_jax.ops.objects import Defect, find_defects, remove_small
from defect_jax.paths import to_writable_path, write_atomically

Predict = Callable[[pipeline.HostBatch], dict[str, np.ndarray]]
# defect type -> metric name -> the metric's state after the images of that type
Totals = dict[str, dict[str, Metric]]

IMAGE_FIELDS = ("filename", "defect_type", "label", "score", "defect_pixels")
FLAG_FIELDS = ("flagged", "flagged_pixels")
DEFECT_FIELDS = tuple(field for field in Defect._fields if field != "pixels")
# column -> what it is of, and the power of the scale that it goes with
MILLIMETRES = {
    "area_mm2": ("area", 2),
    "length_mm": ("length", 1),
    "width_mm": ("width", 1),
    "row_mm": ("row", 1),
    "column_mm": ("column", 1),
}


def evaluate(
    config: ml_collections.ConfigDict,
    workdir: str | pathlib.Path,
    split: str = "test",
    results_folder: str | pathlib.Path | None = None,
    step: int | None = None,
) -> dict[str, Any]:
    """Evaluates a checkpoint of a run.

    Writes `calibration.json` (thresholds, from normal validation images only) and, into
    `eval/<split>/`, `metrics.json`, `images.csv`, of a segmenter `defects.csv` (see
    `ops.objects.Defect`), and `overlays/sheet.png`, `curves.png` and `scores.png`, which go to
    TensorBoard too.

    Args:
        config: as `run.open_run` resolved it; of a run over all categories, what
            `datasets.of_category` makes of it.
        workdir: the run's folder.
        split: 'test', 'validation' or 'train'.
        results_folder: where all this is written; None for the run's folder.
        step: which checkpoint; None for the last one.

    Returns:
        What `metrics.json` holds: each metric's value under its name and its 95 % interval over
        bootstrapped images under `<name>_ci`, then the same under `calibrated` and
        `by_defect/<type>`. None where the split leaves it undefined.

    Raises:
        UserError: no checkpoint, bad files, a score that is NaN, or see `check_defect_fields`.
    """
    check_defect_fields(config)
    home = to_writable_path(workdir if results_folder is None else results_folder)
    predict, step = _load(config, workdir, step)
    thresholds = calibrate(config, predict, home)
    examples = datasets.load_split(config, split)
    folder = home / "eval" / split
    start = time.monotonic()
    totals, shown = _measure(config, examples, predict, thresholds, folder)
    seconds = time.monotonic() - start
    results = _results(totals) | {"num_images": len(examples), "step": step, "seconds": seconds}
    checkpoint.write_json(folder / "metrics.json", results)
    _warn_of_brightness(results["brightness_auroc"])
    if distributed.is_first():
        _draw(home, folder, totals, shown, results, thresholds)
    return results


def check_defect_fields(config: ml_collections.ConfigDict) -> None:
    """Raises UserError where what makes a defect of predicted pixels makes no sense."""
    for field in ("min_area", "mm_per_pixel"):
        value = getattr(config.eval, field)
        if not 0 <= value < float("inf"):
            raise UserError(f"eval.{field} is {value}: it must be finite and at least 0")
    if not np.isfinite(config.eval.min_log_odds):
        raise UserError(f"eval.min_log_odds is {config.eval.min_log_odds}: it must be finite")


def make_predict(method: Method, state: State) -> Predict:
    """The method's `predict`, compiled once per shape, each batch spread over the local devices.

    A batch's size must be a multiple of their number.
    """
    state = devices.replicate(state)
    compiled = jax.jit(method.predict)
    return lambda batch: jax.device_get(compiled(state, devices.spread(batch)))


def predictions(
    config: ml_collections.ConfigDict, examples: Examples, predict: Predict
) -> Iterator[Example]:
    """Each example with its prediction, in order, maps at the resolution of the example's file.

    Of several processes each gets its share: every so many-th example.

    Yields:
        dicts with `number` in the split, `filename`, `defect_type`, `label`, `image` [H, W, C]
        uint8 as the model saw it, padding cut off, `mask` [h, w], `score`, `score_map` [h, w], and
        where the method has them `reconstruction` [H, W, C] and `class_map` [h, w], the class of
        each pixel, without defects of fewer than `config.eval.min_area` pixels. They stay in the
        scores.
    """
    run = predict_tiles if config.data.fit == "crop" else _predict_images
    predicted = run(config, examples, predict)
    for number in range(jax.process_index(), len(examples), jax.process_count()):
        with watch.waiting(None, watch.PREDICTION):
            image, prediction = next(predicted)
        yield at_native_size(config, examples, number, image, prediction)


def at_native_size(
    config: ml_collections.ConfigDict,
    examples: Examples,
    number: int,
    image: np.ndarray,
    prediction: dict[str, np.ndarray],
) -> Example:
    """An example with its prediction, as `predictions` yields it.

    Args:
        config: the run's.
        examples: of a split.
        number: which of them.
        image: [H, W, C] uint8 as the model saw it, with its padding.
        prediction: what the method predicts for it, without the batch.
    """
    size = pipeline.native_size(examples, number)
    filled = pipeline.fitted_size(config.data, size)
    example = {
        "number": number,
        "filename": str(examples.filename[number]),
        "defect_type": str(examples.defect_type[number]),
        "label": int(examples.label[number]),
        "image": image[: filled[0], : filled[1]],
        "mask": pipeline.native_mask(examples, number),
        "score": float(prediction["score"]),
        "score_map": _resize_map(prediction["score_map"], filled, size),
        "bootstrap": bootstrap_weights(config.seed, number, config.eval.bootstrap_samples),
    }
    if "reconstruction" in prediction:
        example["reconstruction"] = prediction["reconstruction"][: filled[0], : filled[1]]
    if "mask_logits" in prediction:
        logits = np.moveaxis(prediction["mask_logits"], -1, 0)
        resized = np.stack([_resize_map(channel, filled, size) for channel in logits])
        classes = _classes(resized, config.eval.min_log_odds)
        example["class_map"] = remove_small(classes, config.eval.min_area)
    return example


def read_images(workdir: str | pathlib.Path, split: str = "test") -> list[dict[str, Any]]:
    """The rows of a run's `eval/<split>/images.csv`, in the order of the split.

    Raises:
        UserError: the split has not been evaluated.
    """
    path = to_writable_path(workdir) / "eval" / split / "images.csv"
    if not path.is_file():
        raise UserError(f"{path} is not there: evaluate the run first (--mode=evaluate)")
    text = io.StringIO(path.read_bytes().decode(), newline="")
    return [
        row | {"label": int(row["label"]), "score": float(row["score"])}
        for row in csv.DictReader(text)
    ]


def worst_images(rows: list[dict[str, Any]], count: int) -> list[int]:
    """The numbers of the images that are ranked worst, the worst first.

    A defective image is ranked badly by the share of good images that score at least as high, a
    good one by the share of defective images that score at most as high; among equals the less
    telling score comes first.
    """
    scores = np.array([row["score"] for row in rows])
    labels = np.array([row["label"] for row in rows])

    def badness(number: int) -> tuple[float, float]:
        sign = 1 if labels[number] == 0 else -1
        others = sign * scores[labels != labels[number]]
        share = np.mean(others <= sign * scores[number]) if others.size else 0.0
        return float(share), sign * scores[number]

    return sorted(range(len(rows)), key=badness, reverse=True)[:count]


def draw_sheet(shown: list[Example], thresholds: Thresholds | None) -> visualize.Figure:
    """Overlays of predicted examples: what a segmenter decided, else what lies above the threshold.

    The colour scale runs from the median pixel, as most are normal, to a typical image's highest.
    """
    maps = [example["score_map"] for example in shown]
    low = float(np.median(np.concatenate([values.ravel() for values in maps])))
    high = float(np.median([values.max() for values in maps]))
    threshold = thresholds.pixel if thresholds and "class_map" not in shown[0] else None
    return visualize.overlay_sheet(shown, threshold, (low, high))


def calibrate(
    config: ml_collections.ConfigDict, predict: Predict, workdir: pathlib.Path
) -> Thresholds | None:
    """Chooses thresholds on the validation images and writes `calibration.json`.

    Returns:
        The thresholds by the rule that `config.eval.threshold_rule` names; None where the
        dataset has no normal validation images.

    Raises:
        UserError: a validation image that is not good.
    """
    examples = datasets.load_split(config, "validation")
    if not len(examples):
        if distributed.is_first():
            (workdir / "calibration.json").unlink(missing_ok=True)
        return None
    if examples.label.any():
        name = examples.filename[examples.label.argmax()]
        raise UserError(
            f"validation image {name} is labelled defective: calibration needs good ones"
        )
    states = distributed.everywhere(
        lambda: _merge(
            Calibration.from_example(example, config.eval.max_flagged_pixels)
            for example in predictions(config, examples, predict)
        )
    )
    rules = _merge(states).compute(
        config.eval.image_quantile, config.eval.pixel_quantile, config.eval.unflagged_share
    )
    if config.eval.threshold_rule not in rules:
        raise UserError(
            f"validation images have fewer than {config.eval.max_flagged_pixels} pixels: lower "
            "eval.max_flagged_pixels or set eval.threshold_rule to quantile"
        )
    checkpoint.write_json(
        workdir / "calibration.json", {"rule": config.eval.threshold_rule} | rules
    )
    return Thresholds(**rules[config.eval.threshold_rule])


def read_thresholds(workdir: str | pathlib.Path) -> Thresholds | None:
    """The thresholds of a run's last evaluation; None where it has none.

    Raises:
        UserError: its `calibration.json` is damaged.
    """
    path = to_writable_path(workdir) / "calibration.json"
    if not path.is_file():
        return None
    calibration = checkpoint.read_json(path)
    try:
        return Thresholds(**calibration[calibration["rule"]])
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}): evaluate the run again") from error


def _load(
    config: ml_collections.ConfigDict, workdir: str | pathlib.Path, step: int | None
) -> tuple[Predict, int]:
    """What a run's checkpoint predicts, the last one's where `step` is None, and its step."""
    method = make_method(config)
    state = checkpoint.restore(workdir, checkpoint.abstract_state(config, method), step)
    return make_predict(method, state), int(state.step)


def eval_batch_size(config: ml_collections.ConfigDict) -> int:
    """As the config has it, raised to a multiple of the number of devices."""
    count = jax.local_device_count()
    return -(-config.eval.batch_size // count) * count


def _predict_images(
    config: ml_collections.ConfigDict, examples: Examples, predict: Predict
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Each image as the model sees it, with what is predicted for it."""
    shard = (jax.process_index(), jax.process_count())
    for batch in pipeline.eval_batches(config, examples, eval_batch_size(config), shard):
        prediction = predict(batch)
        for row in np.flatnonzero(batch["weight"]):
            yield batch["image"][row], {name: values[row] for name, values in prediction.items()}


def predict_tiles(
    config: ml_collections.ConfigDict, examples: Examples, predict: Predict
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Each image at its `pipeline.fitted_size`, with the merged predictions of its tiles.

    Where tiles reach beyond an image, it is continued by its last row and column. The score is
    that of the merged map, by `config.method.top_fraction`.

    A method that reads at most a quarter of `config.eval.overlap` pixels around each predicts what
    it would for the whole image, to a millionth of its values; see `tiles.merge`. What a network
    reads further away, or of the whole tile (group normalisation, ZNet's gates), differs.
    """
    tile, overlap = tuple(config.eval.tile), config.eval.overlap
    for number in range(jax.process_index(), len(examples), jax.process_count()):
        image = pipeline.fitted_image(config.data, examples, number)
        fitted = image.shape[:2]
        image = pipeline.pad_to(image, tiles.covered(fitted, tile))
        size = image.shape[:2]
        starts = tiles.corners(size, tile, overlap)
        cuts = tiles.cut(image, starts, tile)
        parts = list(_predict_all(predict, cuts, eval_batch_size(config)))
        prediction = {
            name: tiles.merge([part[name] for part in parts], starts, size, overlap)
            for name in parts[0]
            if name != "score"
        }
        seen = jnp.asarray(prediction["score_map"][None, : fitted[0], : fitted[1]])
        score = score_image(seen, 0.0, config.method.top_fraction)["score"][0]
        yield image, prediction | {"score": np.asarray(score)}


def _predict_all(
    predict: Predict, images: np.ndarray, batch_size: int
) -> Iterator[dict[str, np.ndarray]]:
    """What is predicted for each of [n, H, W, C], by batches; the last is filled up by copies."""
    for start in range(0, len(images), batch_size):
        index = np.minimum(np.arange(start, start + batch_size), len(images) - 1)
        batch = {"image": images[index], "index": index.astype(np.int32)}
        prediction = predict(batch)
        for row in range(min(batch_size, len(images) - start)):
            yield {name: values[row] for name, values in prediction.items()}


def _classes(logits: np.ndarray, min_log_odds: float) -> np.ndarray:
    """The class of each pixel from logits [K, h, w]: the likeliest defect, or 0.

    Where the log-odds of a defect of any class against the background are at most `min_log_odds`.
    """
    defect = special.logsumexp(logits[1:], axis=0) - logits[0] > min_log_odds
    return np.where(defect, 1 + np.argmax(logits[1:], axis=0), 0)


def _resize_map(values: np.ndarray, filled: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """Takes the part [filled] of a map that the image fills to the file's size, bilinearly."""
    part = Image.fromarray(np.ascontiguousarray(values[: filled[0], : filled[1]], np.float32))
    if filled != size:
        part = part.resize(size[::-1], Image.Resampling.BILINEAR)
    return np.asarray(part)


class _Measured(NamedTuple):
    """What came of some of a split's examples, whose numbers the dicts have as keys."""

    totals: Totals
    image_rows: dict[int, dict[str, Any]]
    defect_rows: dict[int, list[dict[str, Any]]]  # empty where no classes are predicted
    shown: dict[int, Example]


def _measure(
    config: ml_collections.ConfigDict,
    examples: Examples,
    predict: Predict,
    thresholds: Thresholds | None,
    folder: pathlib.Path,
) -> tuple[Totals, list[Example]]:
    """Runs every metric over a split; keeps only the few examples to be shown."""
    parts = distributed.everywhere(lambda: _measure_share(config, examples, predict, thresholds))
    totals: Totals = {}
    for part in parts:
        for kind, total in part.totals.items():
            totals[kind] = _merge_types([totals.get(kind, {}), total])
    image_fields = IMAGE_FIELDS if thresholds is None else IMAGE_FIELDS + FLAG_FIELDS
    _write_csv(folder / "images.csv", image_fields, _in_order(part.image_rows for part in parts))
    defect_rows = _in_order(part.defect_rows for part in parts)
    if defect_rows:
        fields = _defect_fields(config.eval.mm_per_pixel)
        _write_csv(folder / "defects.csv", fields, itertools.chain.from_iterable(defect_rows))
    return totals, _in_order(part.shown for part in parts)


def _measure_share(
    config: ml_collections.ConfigDict,
    examples: Examples,
    predict: Predict,
    thresholds: Thresholds | None,
) -> _Measured:
    """What comes of this process's share of the examples."""
    measured = _Measured({}, {}, {}, {})
    chosen = set(choose_shown(examples, config.eval.num_shown))
    for example in predictions(config, examples, predict):
        if thresholds is not None:
            example = {**example, "thresholds": thresholds}
        number = example["number"]
        _add(example, measured.totals.setdefault(example["defect_type"], {}))
        measured.image_rows[number] = _image_row(example)
        if "class_map" in example:
            measured.defect_rows[number] = _defect_rows(example, config.eval.mm_per_pixel)
        if number in chosen:
            measured.shown[number] = example
    return measured


def _in_order(parts: Iterable[dict[int, Any]]) -> list[Any]:
    """The values of all parts, by their keys."""
    return [value for _, value in sorted(itertools.chain(*(part.items() for part in parts)))]


def _add(example: Example, total: dict[str, Metric]) -> None:
    """Adds an example to each metric that can read it."""
    for name, metric in METRICS.items():
        if all(key in example for key in metric.reads):
            one = metric.from_example(example)
            total[name] = total[name].merge(one) if name in total else one


def choose_shown(examples: Examples, count: int) -> list[int]:
    """The first example of each defect type, then the second of each, and so on."""
    order = []
    for kind in np.unique(examples.defect_type):
        order += list(enumerate(np.flatnonzero(examples.defect_type == kind).tolist()))
    return [number for _, number in sorted(order)[:count]]


def _write_csv(path: pathlib.Path, fields: Sequence[str], rows: Iterable[dict[str, Any]]) -> None:
    """Writes a header and rows; of several processes the first alone does."""
    if not distributed.is_first():
        return
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fields)
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue().encode())


def _image_row(example: Example) -> dict[str, Any]:
    row = {
        "filename": example["filename"],
        "defect_type": example["defect_type"],
        "label": example["label"],
        "score": example["score"],
        "defect_pixels": int(np.count_nonzero(example["mask"])),
    }
    if "thresholds" in example:
        above = example["score_map"] > example["thresholds"].pixel
        row["flagged"] = int(is_flagged(example))
        row["flagged_pixels"] = int(np.count_nonzero(above))
    return row


def _defect_fields(mm_per_pixel: float) -> list[str]:
    in_mm = MILLIMETRES if mm_per_pixel > 0 else {}
    return ["filename", *DEFECT_FIELDS, *in_mm]


def _defect_rows(example: Example, mm_per_pixel: float) -> list[dict[str, Any]]:
    rows = []
    for defect in find_defects(example["class_map"], example["score_map"]):
        values = defect._asdict()
        row = {"filename": example["filename"]} | {name: values[name] for name in DEFECT_FIELDS}
        if mm_per_pixel > 0:
            for name, (field, power) in MILLIMETRES.items():
                row[name] = values[field] * mm_per_pixel**power
        rows.append(row)
    return rows


def _results(totals: Totals) -> dict[str, Any]:
    """The metrics over all images, and over each defect type together with the good images."""
    results: dict[str, Any] = _named(_merge_types(totals.values()))
    types = [kind for kind in totals if kind != "good"]
    good = [totals["good"]] if "good" in totals else []
    results["by_defect"] = {
        kind: _named(_merge_types([*good, totals[kind]])) for kind in sorted(types)
    }
    return results


def _warn_of_brightness(auroc: float | None) -> None:
    if auroc is not None and not 0.1 < auroc < 0.9:
        print(
            f"note: brightness alone separates good from defective test images (AUROC {auroc:.3f}, "
            "brightness_auroc): image-level figures may show the light, not the defects",
            flush=True,
        )


def _merge(states: Iterable[Any]) -> Any:
    """The state after the examples of all; None is that after none."""
    merged = None
    for state in states:
        if state is not None:
            merged = state if merged is None else merged.merge(state)
    return merged


def _merge_types(totals: Any) -> dict[str, Metric]:
    merged: dict[str, Metric] = {}
    for total in totals:
        for name, metric in total.items():
            merged[name] = merged[name].merge(metric) if name in merged else metric
    return merged


def _named(metrics: dict[str, Metric]) -> dict[str, Any]:
    named: dict[str, Any] = {}
    for name, metric in metrics.items():
        values = _with_intervals(metric.compute())
        named |= {"calibrated": values} if name == "calibrated" else values
    return named


def _with_intervals(estimates: dict[str, Estimate]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, estimate in estimates.items():
        values[name] = None if np.isnan(estimate.value) else estimate.value
        values[f"{name}_ci"] = estimate.interval()
    return values


def _draw(
    workdir: pathlib.Path,
    folder: pathlib.Path,
    totals: Totals,
    shown: list[Example],
    results: dict[str, Any],
    thresholds: Thresholds | None,
) -> None:
    merged = _merge_types(totals.values())
    image, pixel = merged["image_ranking"], merged["pixel_ranking"]
    assert isinstance(image, ImageRanking) and isinstance(pixel, PixelRanking)
    curves = {
        "image_roc": roc_curve(image.fine),
        "image_pr": pr_curve(image.fine),
        "pixel_roc": roc_curve(pixel.fine),
        "pixel_pr": pr_curve(pixel.fine),
        "pro": pro_curve(pixel.fine),
    }
    curves = {name: curve for name, curve in curves.items() if len(curve[0])}
    rows = read_images(workdir, folder.name)
    scores = np.array([row["score"] for row in rows])
    labels = np.array([row["label"] for row in rows])
    figures = {
        "overlays/sheet": draw_sheet(shown, thresholds),
        "curves": visualize.curves(curves, results),
        "scores": visualize.score_histogram(
            scores, labels, thresholds.image if thresholds else None
        ),
    }
    with report.tensorboard(workdir) as events:
        for name, figure in figures.items():
            visualize.save(figure, folder / f"{name}.png")
            pixels = visualize.to_array(figure)[None]
            events.write_images(results["step"], {f"eval/{folder.name}/{name}": pixels})
    print(f"pictures: {folder / 'overlays/sheet.png'}", flush=True)
