"""Residuals against what they are defined to be."""

import jax
import numpy as np
import pytest
from skimage.metrics import structural_similarity

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


@pytest.mark.parametrize("windows", [(11,), (3, 7, 15)])
def test_ssim_residual_sums_one_minus_ssim_over_windows(pair, windows):
    x, y = pair
    expected = np.zeros(x.shape[:3])
    for window in windows:
        for n in range(len(x)):
            # truncate makes scikit-image's Gaussian as wide as the window.
            _, ssim = structural_similarity(
                x[n], y[n], gaussian_weights=True, sigma=1.5, truncate=(window // 2) / 1.5,
                use_sample_covariance=False, data_range=1.0, channel_axis=-1, full=True,
            )  # fmt: skip
            expected[n] += 1 - ssim.mean(-1)
    np.testing.assert_allclose(RESIDUALS["ssim"](x, y, windows), expected, atol=1e-4)


@pytest.mark.parametrize("name", sorted(RESIDUALS))
def test_a_perfect_reconstruction_costs_nothing_and_has_no_gradient(pair, name):
    x, _ = pair
    value, gradient = jax.value_and_grad(lambda y: RESIDUALS[name](x, y, (11,)).mean())(x)
    assert abs(value) < 1e-6
    assert np.abs(gradient).max() < 1e-4
