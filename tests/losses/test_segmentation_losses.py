"""Segmentation losses on cases worked out by hand."""

import numpy as np
import pytest

from defect_jax.losses.segmentation import SEGMENTATION_LOSSES, cross_entropy, dice


def certain(mask: np.ndarray, classes: int) -> np.ndarray:
    """Logits that are all but sure of a mask."""
    return 30.0 * np.eye(classes, dtype=np.float32)[mask]


def test_cross_entropy_of_even_logits_is_log_k():
    mask = np.array([[[0, 1], [2, 1]]])
    np.testing.assert_allclose(cross_entropy(np.zeros((1, 2, 2, 3)), mask), np.log(3), rtol=1e-6)


def test_cross_entropy_is_per_image():
    mask = np.stack([np.zeros((4, 4), int), np.ones((4, 4), int)])
    logits = certain(np.zeros((2, 4, 4), int), 2)
    np.testing.assert_allclose(cross_entropy(logits, mask), [0, 30], atol=1e-5)


def test_dice_by_hand():
    mask = np.zeros((1, 4, 4), int)
    mask[0, 0, :3] = 1
    predicted = np.zeros((1, 4, 4), int)
    predicted[0, 0, 1:] = 1  # two of three hit, one false
    np.testing.assert_allclose(
        dice(certain(predicted, 2), mask), 1 - (2 * 2 + 1) / (6 + 1), rtol=1e-5
    )


def test_dice_averages_foreground_classes_only():
    mask = np.zeros((1, 4, 4), int)
    mask[0, 0], mask[0, 1] = 1, 2
    predicted = np.where(mask == 2, 0, mask)  # class 2 is missed wholly
    expected = (0 + 1 - 1 / (4 + 1)) / 2
    np.testing.assert_allclose(dice(certain(predicted, 3), mask), expected, atol=1e-5)


@pytest.mark.parametrize("name", sorted(SEGMENTATION_LOSSES))
def test_a_certain_right_answer_costs_nothing_even_without_foreground(name):
    mask = np.zeros((2, 4, 4), int)
    mask[0, 1:3, 1:3] = 1
    np.testing.assert_allclose(SEGMENTATION_LOSSES[name](certain(mask, 2), mask), 0, atol=1e-5)
