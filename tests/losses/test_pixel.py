"""Residuals against what they are defined to be."""

import functools

import jax
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from defect_jax.errors import UserError
from defect_jax.losses.pixel import RESIDUALS, total_variation


@pytest.fixture(scope="module")
def pair():
    rng = np.random.default_rng(0)
    x = rng.uniform(size=(2, 32, 40, 3)).astype(np.float32)
    return x, np.clip(x + rng.normal(0, 0.1, x.shape), 0, 1).astype(np.float32)


def test_squared_residual_averages_channels(pair):
    x, y = pair
    expected = ((x - y) ** 2).mean(-1)
    np.testing.assert_allclose(RESIDUALS["l2"](x, y), expected, rtol=1e-5)


def test_absolute_residual_averages_channels():
    x = np.array([[[[0.0, 0.5, 1.0], [0.2, 0.2, 0.2]]]])
    y = np.array([[[[0.3, 0.5, 0.4], [0.2, 0.3, 0.0]]]])
    np.testing.assert_allclose(RESIDUALS["l1"](x, y), [[[0.3, 0.1]]], rtol=1e-6)


def slow_ssim(x, y, window):
    """SSIM [H, W] of two channels [H, W], written down from Wang et al. 2004, equation 13."""
    mean = functools.partial(gaussian_filter, sigma=1.5, truncate=(window // 2) / 1.5)
    x, y = np.float64(x), np.float64(y)
    mx, my = mean(x), mean(y)
    vx, vy, cov = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    c1, c2 = 0.01**2, 0.03**2
    return ((2 * mx * my + c1) * (2 * cov + c2)) / ((mx**2 + my**2 + c1) * (vx + vy + c2))


@pytest.mark.parametrize("windows", [(11,), (3, 7, 15)])
def test_ssim_residual_sums_one_minus_ssim_over_windows(pair, windows):
    x, y = pair
    expected = np.zeros(x.shape[:3])
    for window in windows:
        for n, channel in np.ndindex(len(x), 3):
            expected[n] += (1 - slow_ssim(x[n, ..., channel], y[n, ..., channel], window)) / 3
    np.testing.assert_allclose(RESIDUALS["ssim"](x, y, windows), expected, atol=1e-4)


@pytest.mark.parametrize("name", sorted(RESIDUALS))
def test_a_perfect_reconstruction_costs_nothing_and_has_no_gradient(pair, name):
    x, _ = pair
    cost = jax.jit(jax.value_and_grad(lambda y: RESIDUALS[name](x, y, (11,)).mean()))
    value, gradient = cost(x)
    assert abs(value) < 1e-6
    assert np.abs(gradient).max() < 1e-4


def slow_magnitude(x):
    """Length of the Prewitt gradient [H, W] of one channel [H, W], border pixels repeated."""
    prewitt = np.array([[1, 1, 1], [0, 0, 0], [-1, -1, -1]]) / 3
    padded = np.pad(x, 1, mode="edge")
    magnitude = np.zeros(x.shape)
    for i, j in np.ndindex(x.shape):
        window = padded[i : i + 3, j : j + 3]
        magnitude[i, j] = np.hypot((window * prewitt).sum(), (window * prewitt.T).sum())
    return magnitude


def slow_halve(x):
    small = np.zeros((x.shape[0] // 2, x.shape[1] // 2))
    for i, j in np.ndindex(small.shape):
        small[i, j] = x[2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean()
    return small


def slow_enlarge(x, shape):
    """Bilinear, pixels being squares; what lies beyond the last centres is as they are."""
    for axis in (0, 1):
        place = (np.arange(shape[axis]) + 0.5) * x.shape[axis] / shape[axis] - 0.5
        x = np.apply_along_axis(
            lambda line, place=place: np.interp(place, np.arange(len(line)), line), axis, x
        )
    return x


def slow_msgms(x, y):
    """[H, W] of two images [H, W, C], written down from Xue et al. 2014, equations 1 to 4."""
    shape = x.shape[:2]
    x, y = np.float64(x).mean(-1), np.float64(y).mean(-1)
    total = np.zeros(shape)
    for _ in range(4):
        a, b = slow_magnitude(x), slow_magnitude(y)
        total += slow_enlarge(1 - (2 * a * b + 0.0026) / (a**2 + b**2 + 0.0026), shape) / 4
        x, y = slow_halve(x), slow_halve(y)
    return total


@pytest.mark.parametrize("size", [(19, 30), (8, 15)])
def test_gradient_residual_averages_dissimilarity_over_four_scales(pair, size):
    x, y = (image[:, : size[0], : size[1]] for image in pair)
    expected = np.stack([slow_msgms(*images) for images in zip(x, y, strict=True)])
    residual = np.asarray(jax.jit(RESIDUALS["msgms"])(x, y))
    assert residual.shape == (2, *size)
    np.testing.assert_allclose(residual, expected, atol=1e-5)


def test_gradient_residual_sees_edges_and_not_brightness():
    msgms = jax.jit(RESIDUALS["msgms"])
    x = np.full((1, 32, 32, 3), 0.2, np.float32)
    assert np.abs(msgms(x, x + 0.6)).max() < 1e-6
    edge = np.where(np.arange(32)[:, None] < 16, x, 1)
    residual = np.asarray(msgms(x, edge))
    assert residual[0, 16, 16] > 0.9 and residual[0, 2, 2] < 0.1 and residual.max() <= 1


def test_gradient_residual_can_be_descended_from_flat_images():
    flat = np.full((1, 16, 16, 1), 0.5, np.float32)
    other = np.random.default_rng(1).uniform(size=flat.shape).astype(np.float32)
    slope = jax.jit(jax.grad(lambda y, x: RESIDUALS["msgms"](x, y).mean()))
    for x in (flat, other):
        assert np.isfinite(slope(flat, x)).all()


@pytest.mark.parametrize("size", [(7, 32), (32, 7)])
def test_gradient_residual_refuses_images_that_cannot_be_halved_so_often(size):
    x = np.zeros((1, *size, 3), np.float32)
    with pytest.raises(UserError, match=f"8x8 pixels, found {size[0]}x{size[1]}"):
        RESIDUALS["msgms"](x, x)


def test_total_variation_by_hand():
    x = np.array([[[0.0, 1.0, 0.5], [0.5, 1.0, 0.0]]])[..., None]
    down = (0.25 + 0 + 0.25) / 3
    right = (1 + 0.25 + 0.25 + 1) / 4
    both = np.concatenate([x, np.full_like(x, 0.3)])
    np.testing.assert_allclose(total_variation(both), [down + right, 0], atol=1e-6)


def test_total_variation_averages_channels():
    x = np.zeros((1, 4, 4, 2), np.float32)
    x[..., 1] = np.linspace(0, 0.3, 4)  # steps of 0.1 along W, in one channel of two
    np.testing.assert_allclose(total_variation(x), [0.005], rtol=1e-4)
