"""Segmentation losses on cases worked out by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from defect_jax.devices import AXIS
from defect_jax.losses.segmentation import (
    SEGMENTATION_LOSSES,
    batch_dice,
    cross_entropy,
    dice,
    focal_tversky,
    outline_cross_entropy,
)


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


def over_devices(loss, logits, mask, devices):
    """A loss [B] under the mapped axis, the batch divided over so many virtual devices."""

    def split(values):
        return values.reshape(devices, -1, *values.shape[1:])

    return jax.vmap(loss, axis_name=AXIS)(split(logits), split(mask)).reshape(-1)


def test_batch_dice_is_dice_of_the_batch_as_one_image():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4, 6, 5, 3)).astype(np.float32)
    mask = rng.integers(0, 3, (4, 6, 5))
    whole = dice(logits.reshape(1, 24, 5, 3), mask.reshape(1, 24, 5))
    for devices in (1, 2, 4):
        actual = over_devices(batch_dice, logits, mask, devices)
        np.testing.assert_allclose(actual, np.full(4, whole[0]), rtol=1e-5)


def test_the_gradient_of_batch_dice_does_not_depend_on_the_devices():
    rng = np.random.default_rng(1)
    logits = jnp.asarray(rng.normal(size=(4, 6, 5, 2)), jnp.float32)
    mask = rng.integers(0, 2, (4, 6, 5))

    def mean(logits, devices):
        return jnp.mean(over_devices(batch_dice, logits, mask, devices))

    one, four = (jax.grad(mean)(logits, devices) for devices in (1, 4))
    assert np.abs(one).max() > 1e-4
    np.testing.assert_allclose(four, one, atol=1e-7)


def test_focal_tversky_by_hand():
    mask = np.zeros((1, 4, 4), int)
    mask[0, 0, :3] = 1
    predicted = np.zeros((1, 4, 4), int)
    predicted[0, 0, 2:] = 1  # one of three hit, one false
    errors = 0.7 * 2 + 0.3 * 1
    np.testing.assert_allclose(
        focal_tversky(certain(predicted, 2), mask), (errors / (1 + errors + 1)) ** 0.75, rtol=1e-5
    )


def test_focal_tversky_has_a_finite_gradient_where_all_is_right():
    mask = np.zeros((2, 4, 4), int)
    mask[0, 1:3, 1:3] = 1
    gradient = jax.grad(lambda logits: focal_tversky(logits, mask).sum())(certain(mask, 2))
    assert np.isfinite(gradient).all()


def test_outline_cross_entropy_weighs_by_hand():
    """Each pixel's own cross-entropy, averaged by 1 + 20 |mask - blurred mask|."""
    mask = np.zeros((1, 40, 40), int)
    mask[0, 10:25, 12:30] = 1
    logits = np.random.default_rng(0).normal(size=(1, 40, 40, 2)).astype(np.float32)
    blurred = ndimage.gaussian_filter(mask[0].astype(float), 5.0, mode="reflect", truncate=4)
    weight = 1 + 20 * np.abs(mask[0] - blurred)
    one_hot = np.eye(2)[mask[0]]
    losses = -(one_hot * jax.nn.log_softmax(logits)[0]).sum(-1)
    expected = np.average(losses, weights=weight)
    np.testing.assert_allclose(outline_cross_entropy(logits, mask), [expected], rtol=1e-4)
    assert weight[:, 20].argmax() in (9, 10, 24, 25)


@pytest.mark.parametrize("name", sorted(SEGMENTATION_LOSSES))
def test_a_certain_right_answer_costs_nothing_even_without_foreground(name):
    mask = np.zeros((2, 4, 4), int)
    mask[0, 1:3, 1:3] = 1
    loss = functools.partial(over_devices, SEGMENTATION_LOSSES[name], devices=1)
    np.testing.assert_allclose(loss(certain(mask, 2), mask), 0, atol=1e-4)
