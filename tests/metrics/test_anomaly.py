import functools

import numpy as np
import pytest
from scipy import ndimage
from sklearn import metrics as sklearn_metrics

from defect_jax.errors import UserError
from defect_jax.metrics import (
    METRICS,
    BrightnessRanking,
    Calibrated,
    ImageRanking,
    PixelRanking,
    Thresholds,
    anomaly,
    histogram,
)
from defect_jax.metrics.histogram import ScoreHistogram
from defect_jax.metrics.metric import bootstrap_weights

NUM_SAMPLES = 200


def examples(number=40, size=48, seed=0):
    rng = np.random.default_rng(seed)
    result = []
    for index in range(number):
        mask = np.zeros((size, size + index % 3), np.uint8)
        if index % 2:
            for _ in range(rng.integers(1, 4)):
                y, x = rng.integers(0, size - 12, 2)
                mask[y : y + rng.integers(2, 12), x : x + rng.integers(2, 12)] = 255
        noise = 3 * ndimage.gaussian_filter(rng.normal(size=mask.shape), 1) + 0.3 * rng.normal()
        score_map = (noise + rng.uniform(0.5, 2.5) * (mask > 0)).astype(np.float32)
        result.append(
            {
                "score": float(np.sort(score_map.ravel())[-20:].mean()),
                "label": int(mask.any()),
                "image": rng.integers(0, 200 + 4 * (index % 2), (5, 7, 3)).astype(np.uint8),
                "score_map": score_map,
                "mask": mask,
                "class_map": (score_map > 1.5).astype(np.int32),
                "bootstrap": bootstrap_weights(7, index, NUM_SAMPLES),
                "thresholds": Thresholds(3.0, 1.5, None),
            }
        )
    return result


def run(metric, cases):
    states = [metric.from_example(case) for case in cases]
    return functools.reduce(lambda a, b: a.merge(b), states).compute()


def pooled(cases):
    scores = np.concatenate([c["score_map"].ravel() for c in cases])
    return np.concatenate([c["mask"].ravel() > 0 for c in cases]), scores


@pytest.mark.parametrize("name", sorted(METRICS))
def test_every_metric_does_with_the_keys_it_reads(name):
    metric = METRICS[name]
    cases = [{k: c[k] for k in (*metric.reads, "bootstrap")} for c in examples(6)]
    for estimate in run(metric, cases).values():
        assert 0 <= estimate.value <= 1
        assert estimate.samples.shape == (NUM_SAMPLES,)


def test_values_agree_with_sklearn():
    cases = examples()
    labels, scores = [c["label"] for c in cases], [c["score"] for c in cases]
    image, pixel = run(ImageRanking, cases), run(PixelRanking, cases)
    auroc, ap = sklearn_metrics.roc_auc_score, sklearn_metrics.average_precision_score
    assert abs(image["image_auroc"].value - auroc(labels, scores)) < 1e-6
    assert abs(image["image_ap"].value - ap(labels, scores)) < 1e-6
    assert abs(pixel["pixel_auroc"].value - auroc(*pooled(cases))) < 1e-6
    assert abs(pixel["pixel_ap"].value - ap(*pooled(cases))) < 1e-6


def test_brightness_ranks_by_the_mean_of_the_image():
    cases = examples()
    labels, means = [c["label"] for c in cases], [c["image"].mean() for c in cases]
    value = run(BrightnessRanking, cases)["brightness_auroc"].value
    assert abs(value - sklearn_metrics.roc_auc_score(labels, means)) < 1e-6
    assert 0.5 < value < 1
    darker = [c | {"image": 255 - c["image"]} for c in cases]
    assert abs(run(BrightnessRanking, darker)["brightness_auroc"].value - (1 - value)) < 1e-6


def test_bins_joined_at_the_default_capacity_stay_within_1e_4():
    cases = sorted(examples(number=10, size=256), key=lambda case: case["label"])
    counts = [anomaly.pixel_counts(c["score_map"], c["mask"]) for c in cases]
    exact = ScoreHistogram.from_scores(pooled(cases)[1], np.concatenate(counts), 10**9)
    assert len(exact.scores) > 3 * anomaly.FINE_CAPACITY
    result = run(PixelRanking, cases)
    auroc, ap = sklearn_metrics.roc_auc_score, sklearn_metrics.average_precision_score
    assert abs(result["pixel_auroc"].value - auroc(*pooled(cases))) < 1e-4
    assert abs(result["pixel_ap"].value - ap(*pooled(cases))) < 1e-4
    assert abs(result["aupro_30"].value - histogram.aupro(exact, 0.30)) < 1e-4
    assert abs(result["aupro_05"].value - histogram.aupro(exact, 0.05)) < 1e-4


def test_small_tables_stay_close_to_large_ones(monkeypatch):
    cases = examples()
    exact = run(PixelRanking, cases)
    monkeypatch.setattr(anomaly, "FINE_CAPACITY", 2**13)
    small = run(PixelRanking, cases)
    assert small["pixel_auroc"].value != exact["pixel_auroc"].value
    for name, estimate in exact.items():
        assert abs(small[name].value - estimate.value) < 3e-4


def test_without_defects_everything_is_undefined():
    cases = examples()[::2]
    metrics = ImageRanking, BrightnessRanking, PixelRanking
    estimates = {name: one for metric in metrics for name, one in run(metric, cases).items()}
    for name, estimate in estimates.items():
        assert np.isnan(estimate.value), name
        assert estimate.interval() is None, name


def test_values_and_intervals_do_not_depend_on_the_order():
    cases = examples()
    shuffled = [cases[i] for i in np.random.default_rng(1).permutation(len(cases))]
    forward, backward = run(PixelRanking, cases), run(PixelRanking, shuffled)
    for name, estimate in forward.items():
        assert abs(estimate.value - backward[name].value) < 1e-9
        low, high = estimate.interval()
        np.testing.assert_allclose(backward[name].interval(), (low, high), atol=0.05 * (high - low))


def test_intervals_hold_the_value():
    cases = examples()
    for metric in METRICS.values():
        for name, estimate in run(metric, cases).items():
            low, high = estimate.interval()
            assert low <= estimate.value <= high, name


def test_intervals_are_as_wide_as_those_of_a_direct_bootstrap():
    cases = examples(size=24)
    rng = np.random.default_rng(11)
    direct = {"image_auroc": [], "pixel_auroc": [], "pixel_ap": []}
    for _ in range(NUM_SAMPLES):
        drawn = [cases[i] for i in rng.integers(0, len(cases), len(cases))]
        labels, scores = [c["label"] for c in drawn], [c["score"] for c in drawn]
        direct["image_auroc"].append(sklearn_metrics.roc_auc_score(labels, scores))
        labels, scores = pooled(drawn)
        direct["pixel_auroc"].append(sklearn_metrics.roc_auc_score(labels, scores))
        direct["pixel_ap"].append(sklearn_metrics.average_precision_score(labels, scores))
    ours = run(ImageRanking, cases) | run(PixelRanking, cases)
    for name, samples in direct.items():
        low, high = ours[name].interval()
        expected = np.subtract(*np.percentile(samples, [97.5, 2.5]))
        assert 0.75 < (high - low) / expected < 1.33, name


def test_bootstrap_tables_give_what_reweighted_images_give():
    """A resampling with weights 0, 1 and 2 is the test set with images left out or doubled."""
    cases = examples(12)
    ours = run(PixelRanking, cases)
    for sample in range(3):
        drawn = [c for c in cases for _ in range(int(c["bootstrap"][sample]))]
        for name, estimate in run(PixelRanking, drawn).items():
            assert abs(ours[name].samples[sample] - estimate.value) < 5e-3, name


def test_bootstrap_weights_depend_on_seed_and_index_alone():
    first = bootstrap_weights(0, 5, 1000)
    bootstrap_weights(0, 6, 1000)
    np.testing.assert_array_equal(first, bootstrap_weights(0, 5, 1000))
    assert (first != bootstrap_weights(0, 6, 1000)).any()
    assert (first != bootstrap_weights(1, 5, 1000)).any()
    assert abs(first.mean() - 1) < 0.1
    assert abs(first.var() - 1) < 0.2


ABOVE_HALF = Thresholds(0.5, None, None)


def decision(score, label, thresholds=ABOVE_HALF, **more):
    return {
        "score": score,
        "label": label,
        "thresholds": thresholds,
        "bootstrap": np.ones(3),
        **more,
    }


def test_calibrated_decisions_by_hand():
    cases = [decision(0.9, 1), decision(0.6, 1), decision(0.5, 1), decision(0.7, 0)]
    cases += [decision(0.1, 0)] * 4
    result = run(Calibrated, cases)
    expected = {"precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "false_alarm_rate": 1 / 5}
    assert {k: pytest.approx(v.value) for k, v in result.items()} == expected
    assert result["precision"].samples == pytest.approx([2 / 3] * 3)


def test_precision_is_undefined_where_nothing_is_flagged():
    result = run(Calibrated, [decision(0.1, 1), decision(0.2, 0)])
    assert np.isnan(result["precision"].value)
    assert result["recall"].value == 0
    assert result["false_alarm_rate"].value == 0


def test_the_area_rule_counts_pixels_and_ignores_the_score():
    score_map = np.array([[0.9, 0.8], [0.3, 0.1]], np.float32)
    mask = np.array([[1, 0], [1, 0]])
    thresholds = Thresholds(image=-1.0, pixel=0.5, max_flagged=2)
    flagged = decision(0.0, 1, thresholds, score_map=score_map, mask=mask)
    passed = decision(0.0, 0, thresholds, score_map=score_map - 0.35, mask=0 * mask)
    assert anomaly.is_flagged(flagged)
    assert not anomaly.is_flagged(passed)
    result = run(Calibrated, [flagged, passed])
    assert result["recall"].value == 1
    assert result["false_alarm_rate"].value == 0
    # One pixel is hit, one missed, and each image has a false alarm.
    assert result["iou"].value == pytest.approx(1 / 4)
    assert result["dice"].value == pytest.approx(2 / 5)
    assert result["iou_per_image"].value == pytest.approx((1 / 3 + 0) / 2)


def test_the_area_rule_without_a_map_is_refused():
    with pytest.raises(UserError, match="needs score maps"):
        Calibrated.from_example(decision(0.9, 1, Thresholds(0.5, None, 400)))


def test_maps_and_masks_of_different_shape_are_refused():
    case = examples(1)[0] | {"mask": np.zeros((48, 1))}
    with pytest.raises(ValueError, match="must agree"):
        PixelRanking.from_example(case)
