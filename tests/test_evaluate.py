"""The evaluation path: what it writes, and that its figures are those of the predictions."""

import csv
import json

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score

from configs import bsdata_unet, mvtec_autoencoder
from defect_jax import checkpoint, run
from defect_jax.data import datasets
from defect_jax.errors import UserError
from defect_jax.evaluate import (
    _measure,
    calibrate,
    evaluate,
    make_predict,
    predictions,
    read_thresholds,
)
from defect_jax.ops.objects import find_defects
from defect_jax.train import train


def trained(config, workdir):
    config = run.open_run(config, workdir, "train")
    train(config, workdir)
    return config, workdir, evaluate(config, workdir)


@pytest.fixture(scope="module")
def autoencoder(shrink, tmp_path_factory):
    config = shrink(mvtec_autoencoder.get_config())
    config.data.image_size = (32, 64)  # neither the files' size nor their aspect
    config.method.update(model="ssim_net", code_dim=4)
    return trained(config, tmp_path_factory.mktemp("autoencoder"))


@pytest.fixture(scope="module")
def segmenter(shrink, tmp_path_factory):
    config = shrink(bsdata_unet.get_config())
    config.data.fit = "pad"
    return trained(config, tmp_path_factory.mktemp("segmenter"))


@pytest.fixture(scope="module")
def predicted(autoencoder):
    config, workdir, _ = autoencoder
    loaded = checkpoint.load_run(workdir)
    predict = make_predict(loaded.method, loaded.state)
    return list(predictions(config, datasets.load_split(config, "test"), predict))


def test_every_image_is_predicted_once_at_the_size_of_its_file(predicted):
    assert [one["filename"] for one in predicted] == [
        "test/good/000.png", "test/good/001.png", "test/spot/000.png", "test/spot/001.png",
    ]  # fmt: skip
    for one in predicted:
        assert one["score_map"].shape == one["mask"].shape == (48, 48)
        assert one["mask"].any() == one["label"]


def test_figures_are_those_of_the_predictions(autoencoder, predicted):
    results = autoencoder[2]
    labels = [one["label"] for one in predicted]
    scores = [one["score"] for one in predicted]
    pixels = np.concatenate([one["score_map"].ravel() for one in predicted])
    truth = np.concatenate([one["mask"].ravel() for one in predicted]) > 0
    assert results["image_auroc"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-4)
    assert results["image_ap"] == pytest.approx(average_precision_score(labels, scores), abs=1e-4)
    assert results["pixel_auroc"] == pytest.approx(roc_auc_score(truth, pixels), abs=1e-4)
    assert results["pixel_ap"] == pytest.approx(average_precision_score(truth, pixels), abs=1e-4)
    threshold = checkpoint_json(autoencoder, "calibration.json")["quantile"]["pixel"]
    above = pixels > threshold
    overlap = (above & truth).sum() / (above | truth).sum()
    assert results["calibrated"]["iou"] == pytest.approx(overlap, abs=1e-6)


def checkpoint_json(finished, name):
    return json.loads((finished[1] / name).read_text())


def test_only_one_defect_type_makes_the_types_equal_to_the_whole(autoencoder):
    results = autoencoder[2]
    assert results["by_defect"].keys() == {"spot"}
    assert results["by_defect"]["spot"]["pixel_auroc"] == results["pixel_auroc"]


def test_every_figure_has_an_interval_around_it(autoencoder):
    results = autoencoder[2]
    for key in ("image_auroc", "pixel_auroc", "aupro_30"):
        low, high = results[f"{key}_ci"]
        assert 0 <= low <= results[key] + 1e-3 and results[key] - 1e-3 <= high <= 1


def test_the_file_holds_what_is_returned(autoencoder):
    stored = checkpoint_json(autoencoder, "eval/test/metrics.json")
    assert stored == json.loads(json.dumps(autoencoder[2]))


def test_a_row_for_each_image(autoencoder, predicted):
    with (autoencoder[1] / "eval/test/images.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["filename"] for row in rows] == [one["filename"] for one in predicted]
    np.testing.assert_allclose(
        [float(row["score"]) for row in rows], [one["score"] for one in predicted], rtol=1e-6
    )
    assert [int(row["defect_pixels"]) for row in rows] == [one["mask"].sum() for one in predicted]


def test_pictures_are_there(autoencoder):
    for name in ("overlays/sheet", "curves", "scores"):
        with Image.open(autoencoder[1] / f"eval/test/{name}.png") as picture:
            assert np.asarray(picture.convert("L")).std() > 5


def test_thresholds_see_validation_images_alone(autoencoder):
    config, workdir, _ = autoencoder
    loaded = checkpoint.load_run(workdir)
    predict = make_predict(loaded.method, loaded.state)
    validation = datasets.load_split(config, "validation")
    assert tuple(validation.filename) == tuple(config.data.validation_files)
    scores = [one["score"] for one in predictions(config, validation, predict)]
    assert calibrate(config, predict, workdir).image == pytest.approx(max(scores), rel=1e-6)


def test_the_area_rule_flags_by_area(autoencoder, tmp_path):
    config, workdir, _ = autoencoder
    config = config.copy_and_resolve_references()
    config.eval.threshold_rule = "area"
    loaded = checkpoint.load_run(workdir)
    thresholds = calibrate(config, make_predict(loaded.method, loaded.state), tmp_path)
    assert thresholds.max_flagged == config.eval.max_flagged_pixels


def test_a_segmenter_is_measured_by_overlap_too(segmenter):
    config, workdir, results = segmenter
    assert {"iou", "iou_per_image", "dice", "pixel_auroc", "calibrated"} <= results.keys()
    assert results["image_auroc"] is None  # no good image in the test split
    loaded = checkpoint.load_run(workdir)
    examples = datasets.load_split(config, "test")
    hit = union = 0
    for one in predictions(config, examples, make_predict(loaded.method, loaded.state)):
        assert one["class_map"].shape == one["mask"].shape == (46, 113)
        assert one["image"].shape == (26, 64, 3)  # the padding below is cut off
        hit += ((one["class_map"] > 0) & (one["mask"] > 0)).sum()
        union += ((one["class_map"] > 0) | (one["mask"] > 0)).sum()
    assert results["iou"] == pytest.approx(hit / union, abs=1e-9)


def rows_of(path):
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        return list(reader), reader.fieldnames


IN_PIXELS = [
    "filename", "class_id", "score", "area", "length", "width", "row", "column", "top", "left",
    "bottom", "right",
]  # fmt: skip


def test_a_row_for_each_predicted_defect(segmenter, autoencoder):
    config, workdir, _ = segmenter
    loaded = checkpoint.load_run(workdir)
    examples = datasets.load_split(config, "test")
    expected = [
        (one["filename"], *defect[:-1])
        for one in predictions(config, examples, make_predict(loaded.method, loaded.state))
        for defect in find_defects(one["class_map"], one["score_map"])
    ]
    rows, fields = rows_of(workdir / "eval/test/defects.csv")
    assert fields == IN_PIXELS
    assert len(rows) == len(expected) > 0
    for row, (filename, *numbers) in zip(rows, expected, strict=True):
        assert row.pop("filename") == filename
        np.testing.assert_allclose([float(value) for value in row.values()], numbers, rtol=1e-4)
    assert not (autoencoder[1] / "eval/test/defects.csv").exists()


def dark_is_defective(batch):
    """Predicts the drawn pits, which are rows 20 to 29 and columns 40 to 59 of every test image."""
    odds = (75.0 - batch["image"].mean(axis=-1)).astype(np.float32)
    logits = np.stack([np.zeros_like(odds), odds], axis=-1)
    return {"score": odds.max(axis=(1, 2)), "score_map": odds, "mask_logits": logits}


@pytest.fixture
def measured(segmenter, tmp_path):
    """Measures `dark_is_defective` with some fields of `eval`: metrics, rows and fields."""

    def measured(**fields):
        config = segmenter[0].copy_and_resolve_references()
        config.eval.update(fields)
        examples = datasets.load_split(config, "test")
        totals, _ = _measure(config, examples, dark_is_defective, None, tmp_path)
        (total,) = totals.values()
        return total, *rows_of(tmp_path / "defects.csv")

    return measured


def test_defects_are_where_and_as_large_as_drawn(measured):
    total, rows, _ = measured()
    assert len(rows) == 5
    for row in rows:
        assert float(row["area"]) == pytest.approx(10 * 20, rel=0.2)
        assert float(row["length"]) == pytest.approx(np.hypot(10, 20), abs=2)
        assert float(row["width"]) == pytest.approx(10, abs=2)
        assert (float(row["row"]), float(row["column"])) == pytest.approx((24.5, 49.5), abs=1)
    assert total["detection"].compute()["object_f1"].value == 1


def test_with_a_scale_defects_are_in_millimetres_too(measured):
    _, rows, fields = measured(mm_per_pixel=0.02)
    assert fields == [*IN_PIXELS, "area_mm2", "length_mm", "width_mm", "row_mm", "column_mm"]
    for row in rows:
        assert float(row["area_mm2"]) == pytest.approx(float(row["area"]) * 0.0004)
        for name in ("length", "width", "row", "column"):
            assert float(row[f"{name}_mm"]) == pytest.approx(float(row[name]) * 0.02)


def test_defects_below_the_smallest_area_are_not_predicted(measured):
    total, rows, fields = measured(min_area=1000)
    assert (rows, fields) == ([], IN_PIXELS)
    assert total["segmentation"].compute()["iou"].value == 0
    assert total["detection"].compute()["object_recall"].value == 0
    assert total["pixel_ranking"].compute()["pixel_auroc"].value > 0.9  # the scores stay


@pytest.mark.parametrize(("min_log_odds", "areas"), [(1000, []), (-1000, [46 * 113] * 5)])
def test_the_least_log_odds_decide_what_is_a_defect(measured, min_log_odds, areas):
    total, rows, _ = measured(min_log_odds=min_log_odds)
    assert [int(row["area"]) for row in rows] == areas
    assert total["pixel_ranking"].compute()["pixel_auroc"].value > 0.9  # the scores stay


@pytest.mark.parametrize(
    "field, value",
    [
        ("min_area", -1),
        ("mm_per_pixel", -0.1),
        ("min_log_odds", float("nan")),
        ("min_log_odds", float("-inf")),
    ],
)
def test_what_makes_no_defect_is_refused(segmenter, field, value):
    config, workdir, _ = segmenter
    config = config.copy_and_resolve_references()
    config.eval[field] = value
    with pytest.raises(UserError, match=f"eval.{field} is {value}"):
        evaluate(config, workdir)


def test_a_padded_prediction_comes_back_to_its_place():
    """The score map of a method that predicts its input is the input."""
    from defect_jax.evaluate import _resize_map

    ramp = np.zeros((8, 8), np.float32)
    ramp[:4] = np.linspace(0, 1, 8)
    resized = _resize_map(ramp, (4, 8), (8, 16))
    assert resized.shape == (8, 16)
    np.testing.assert_allclose(resized[:, ::15], [[0, 1]] * 8)


def test_evaluating_twice_gives_the_same(autoencoder):
    config, workdir, results = autoencoder
    again = evaluate(config, workdir)
    drop = {"seconds"}
    assert {k: v for k, v in again.items() if k not in drop} == {
        k: v for k, v in results.items() if k not in drop
    }


def test_predictions_do_not_depend_on_the_batch(autoencoder, predicted):
    config, workdir, _ = autoencoder
    config = config.copy_and_resolve_references()
    config.eval.batch_size = 3
    loaded = checkpoint.load_run(workdir)
    others = predictions(
        config, datasets.load_split(config, "test"), make_predict(loaded.method, loaded.state)
    )
    for one, other in zip(predicted, others, strict=True):
        np.testing.assert_allclose(one["score_map"], other["score_map"], atol=1e-6)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"rule": "area", "area": {"image": 1}}'])
def test_damaged_thresholds_are_named(tmp_path, content):
    assert read_thresholds(tmp_path) is None
    (tmp_path / "calibration.json").write_text(content)
    with pytest.raises(UserError, match=r"calibration\.json is damaged"):
        read_thresholds(tmp_path)
