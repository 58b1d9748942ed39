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
from defect_jax.evaluate import calibrate, evaluate, make_predict, predictions
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
