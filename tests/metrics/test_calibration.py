import functools
import json

import numpy as np
import pytest

from defect_jax.errors import UserError
from defect_jax.metrics import Calibration, Thresholds, calibration
from defect_jax.metrics.anomaly import is_flagged


def maps(number, shape=(16, 20), seed=0):
    rng = np.random.default_rng(seed)
    return [rng.gamma(rng.uniform(1, 3), size=shape).astype(np.float32) for _ in range(number)]


def calibrate(score_maps, max_flagged):
    states = [
        Calibration.from_example({"score": float(m.max()), "score_map": m}, max_flagged)
        for m in score_maps
    ]
    return functools.reduce(lambda a, b: a.merge(b), states)


def test_image_threshold_by_hand():
    scores = np.arange(1.0, 11.0)
    assert calibration.image_threshold(scores, 0.5) == 6
    assert calibration.image_threshold(scores, 0.95) == 10
    assert calibration.image_threshold(scores, 1.0) == 10
    assert calibration.image_threshold(np.array([3.0]), 0.99) == 3


@pytest.mark.parametrize("q", [0.5, 0.9, 0.99])
def test_at_most_the_share_lies_above_the_image_threshold(q):
    scores = np.random.default_rng(0).normal(size=137)
    threshold = calibration.image_threshold(scores, q)
    assert np.mean(scores > threshold) <= 1 - q


def test_area_threshold_by_hand():
    # Second-highest pixels are 3, 7 and 5; two of three images need a threshold of 5.
    score_maps = [
        np.array([[9, 3, 1]], np.float32),
        np.array([[8, 7, 2]], np.float32),
        np.array([[5, 5, 5]], np.float32),
    ]
    state = calibrate(score_maps, max_flagged=2)
    np.testing.assert_array_equal(state.peaks, [3, 7, 5])
    assert state.compute(1.0, 1.0, 2 / 3)["area"]["pixel"] == 5
    assert state.compute(1.0, 1.0, 0.99)["area"]["pixel"] == 7
    assert state.compute(1.0, 1.0, 0.01)["area"]["pixel"] == 3


@pytest.mark.parametrize("number", [1, 7, 100, 250])
@pytest.mark.parametrize("share", [0.99, 0.9, 0.07])
def test_area_threshold_is_the_smallest_that_spares_the_share(number, share):
    score_maps = maps(number)
    result = calibrate(score_maps, 30).compute(0.99, 0.99, share)
    threshold = result["area"]["pixel"]

    def spared(t):
        return sum(np.count_nonzero(m > t) < 30 for m in score_maps)

    assert spared(threshold) >= share * number - 1e-9
    assert spared(np.nextafter(np.float32(threshold), np.float32(-1))) < share * number


def test_area_thresholds_decide_as_promised():
    score_maps = maps(200)
    thresholds = Thresholds(**calibrate(score_maps, 30).compute(0.99, 0.99, 0.99)["area"])
    flagged = [is_flagged({"score_map": m, "thresholds": thresholds}) for m in score_maps]
    assert 0 < sum(flagged) <= 2


@pytest.mark.parametrize("capacity", [2**17, 2**11])
def test_pixel_quantile_never_flags_more_than_its_share(capacity, monkeypatch):
    monkeypatch.setattr(calibration, "CAPACITY", capacity)
    score_maps = maps(50)
    result = calibrate(score_maps, 30).compute(0.99, 0.995, 0.99)
    above = np.mean(np.stack(score_maps) > result["quantile"]["pixel"])
    assert 0.0045 < above <= 0.005


def test_pixel_quantile_is_numpys_higher():
    score_maps = maps(5)
    result = calibrate(score_maps, 30).compute(0.99, 0.9, 0.99)
    assert result["quantile"]["pixel"] == np.quantile(score_maps, 0.9, method="higher")


def test_the_result_survives_json_exactly():
    result = calibrate(maps(5), 30).compute(0.99, 0.9, 0.99)
    back = json.loads(json.dumps(result, allow_nan=False))
    assert back == result
    assert back["num_images"] == 5
    assert Thresholds(**back["quantile"]).max_flagged is None
    assert Thresholds(**back["area"]).max_flagged == 30


def test_a_method_without_maps_has_an_image_threshold_alone():
    states = [Calibration.from_example({"score": s}, 400) for s in (1.0, 3.0, 2.0)]
    result = functools.reduce(lambda a, b: a.merge(b), states).compute(1.0, 0.99, 0.99)
    assert Thresholds(**result["quantile"]) == Thresholds(3.0, None, None)
    assert "area" not in result


@pytest.mark.parametrize("scores", [[], [0.0, np.nan]])
def test_empty_and_nan_scores_are_refused(scores):
    with pytest.raises(UserError):
        calibration.image_threshold(np.array(scores), 0.99)
    with pytest.raises(UserError):
        calibration.area_threshold(np.array(scores), 0.99)


def test_bad_arguments_are_refused():
    score_map = np.ones((2, 2), np.float32)
    with pytest.raises(UserError, match="NaN"):
        Calibration.from_example({"score": np.nan}, 4)
    with pytest.raises(UserError, match="NaN"):
        Calibration.from_example({"score": 0.0, "score_map": score_map * np.nan}, 4)
    with pytest.raises(UserError, match="max_flagged is 0"):
        Calibration.from_example({"score": 0.0, "score_map": score_map}, 0)
    with pytest.raises(UserError, match=r"is 1\.5"):
        calibrate([score_map], 4).compute(0.99, 1.5, 0.99)
    with pytest.raises(UserError, match="fewer pixels"):
        calibration.area_threshold(np.array([-np.inf]), 0.99)


def test_images_too_small_for_the_area_rule_have_only_the_other():
    rules = calibrate([np.ones((2, 2), np.float32)], 5).compute(0.99, 0.99, 0.99)
    assert "quantile" in rules and "area" not in rules
