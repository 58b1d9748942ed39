"""The blur against SciPy's."""

import jax
import numpy as np
import pytest
import scipy.ndimage

from defect_jax.ops import blur


@pytest.mark.parametrize("sigma", [0.6, 1.5, 4.0])
@pytest.mark.parametrize("shape", [(2, 20, 31), (2, 3, 7, 5), (150, 70)])
def test_gaussian_blur_equals_scipy(sigma, shape):
    """With sigma 4 the window is wider than the images, so the reflection repeats."""
    x = np.random.default_rng(0).random(shape, np.float32)
    sigmas = (*[0] * (x.ndim - 2), sigma, sigma)
    expected = scipy.ndimage.gaussian_filter(x, sigmas, mode="reflect", truncate=4)
    np.testing.assert_allclose(blur.gaussian_blur(x, sigma), expected, atol=1e-5)


@pytest.mark.parametrize("sigma", [1.0, 4.0])
def test_gradient_is_the_adjoint(sigma):
    """The rule by hand against what autodiff finds; both directions reflect, twice with 4.0."""
    rng = np.random.default_rng(0)
    x, cotangent = rng.normal(size=(2, 2, 9, 6)).astype(np.float32)
    radius = int(4 * sigma + 0.5)
    plain = blur.blur.fun
    expected = jax.vjp(lambda x: plain(x, sigma, radius), x)[1](cotangent)[0]
    actual = jax.vjp(lambda x: blur.blur(x, sigma, radius), x)[1](cotangent)[0]
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_constants_stay_and_a_point_spreads_as_far_as_the_window():
    np.testing.assert_allclose(blur.blur(np.full((1, 8, 9), 0.7, np.float32), 1.5, 5), 0.7, 3e-7)
    point = np.zeros((1, 21, 21), np.float32)
    point[0, 10, 10] = 1
    spread = np.asarray(blur.blur(point, 1.5, 5))[0]
    inside = np.zeros((21, 21), bool)
    inside[5:16, 5:16] = True
    assert (spread[~inside] == 0).all() and (spread[inside] > 0).all()
