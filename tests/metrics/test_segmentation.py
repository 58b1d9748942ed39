import functools

import numpy as np
import pytest

from defect_jax.metrics import Segmentation


def example(predicted, mask, bootstrap=(1.0,)):
    return {
        "class_map": np.array(predicted),
        "mask": np.array(mask),
        "bootstrap": np.array(bootstrap, np.float64),
    }


def run(*cases):
    states = [Segmentation.from_example(case) for case in cases]
    return functools.reduce(lambda a, b: a.merge(b), states).compute()


HALF = example([[1, 1, 0, 0]], [[0, 1, 1, 0]], (0.0, 2.0))  # TP 1, FP 1, FN 1
WHOLE = example([[2, 2], [2, 0]], [[255, 255], [255, 0]], (1.0, 1.0))  # TP 3
EMPTY = example([[0, 0, 0]], [[0, 0, 0]], (1.0, 0.0))
ALARM = example([[0, 3]], [[0, 0]], (3.0, 0.0))  # FP 1


def test_pooled_and_per_image_overlap_by_hand():
    result = run(HALF, WHOLE, EMPTY, ALARM)
    assert result["iou"].value == pytest.approx(4 / 7)
    assert result["dice"].value == pytest.approx(8 / 11)
    assert result["iou_per_image"].value == pytest.approx((1 / 3 + 1 + 0) / 3)
    assert result["dice_per_image"].value == pytest.approx((1 / 2 + 1 + 0) / 3)


def test_samples_weigh_the_images():
    result = run(HALF, WHOLE, EMPTY, ALARM)
    np.testing.assert_allclose(result["iou"].samples, [3 / 6, 5 / 9])
    np.testing.assert_allclose(result["dice"].samples, [6 / 9, 10 / 14])
    np.testing.assert_allclose(result["iou_per_image"].samples, [1 / 4, (2 / 3 + 1) / 3])
    np.testing.assert_allclose(result["dice_per_image"].samples, [1 / 4, (2 * 1 / 2 + 1) / 3])


def test_of_several_classes_each_has_its_own_iou():
    mixed_up = example([[1, 1, 2, 0]], [[1, 2, 2, 0]], (0.0, 1.0))
    one_only = example([[1, 0, 1, 1]], [[1, 1, 1, 0]], (1.0, 1.0))
    result = run(mixed_up, one_only)
    assert result["iou"].value == pytest.approx(5 / 7)
    assert result["iou_class_1"].value == pytest.approx((1 + 2) / (2 + 4))
    assert result["iou_class_2"].value == pytest.approx(1 / 2)
    np.testing.assert_allclose(result["iou_class_1"].samples, [2 / 4, 3 / 6])
    assert not any(name.startswith("iou_class") for name in run(one_only))


def test_a_background_everywhere_prediction_scores_nothing():
    result = run(example([[0, 0]], [[0, 1]]), EMPTY | {"bootstrap": np.ones(1)})
    names = ("iou", "dice", "iou_per_image", "dice_per_image")
    assert [result[name].value for name in names] == [0] * 4


def test_without_any_foreground_overlap_is_undefined():
    assert all(np.isnan(e.value) and e.interval() is None for e in run(EMPTY).values())


def test_dice_follows_from_iou_under_the_same_pooling():
    rng = np.random.default_rng(0)
    cases = [example(rng.integers(0, 3, (9, 7)), rng.integers(0, 2, (9, 7))) for _ in range(5)]
    result = run(*cases)
    iou = result["iou"].value
    assert result["dice"].value == pytest.approx(2 * iou / (1 + iou))


def test_shapes_that_would_broadcast_are_refused():
    with pytest.raises(ValueError, match=r"\(1, 4\).*\(3, 4\)"):
        Segmentation.from_example(example(np.zeros((1, 4)), np.zeros((3, 4))))
