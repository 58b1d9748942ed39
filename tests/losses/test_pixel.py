"""Residuals against what they are defined to be."""

import functools

import jax
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from defect_jax.losses.pixel import RESIDUALS


@pytest.fixture(scope="module")
def pair():
    rng = np.random.default_rng(0)
    x = rng.uniform(size=(2, 32, 40, 3)).astype(np.float32)
    return x, np.clip(x + rng.normal(0, 0.1, x.shape), 0, 1).astype(np.float32)


def test_squared_residual_averages_channels(pair):
    x, y = pair
    expected = ((x - y) ** 2).mean(-1)
    np.testing.assert_allclose(RESIDUALS["l2"](x, y), expected, rtol=1e-5)


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
    value, gradient = jax.value_and_grad(lambda y: RESIDUALS[name](x, y, (11,)).mean())(x)
    assert abs(value) < 1e-6
    assert np.abs(gradient).max() < 1e-4
