"""The blur against SciPy's."""

import jax
import numpy as np
import pytest
import scipy.ndimage

from defect_jax.ops import blur


@pytest.mark.parametrize("sigma", [0.6, 1.5, 4.0])
@pytest.mark.parametrize("shape", [(2, 20, 31), (2, 7, 5, 3)])
def test_gaussian_blur_equals_scipy(sigma, shape):
    """With sigma 4 the window is wider than the images, so the reflection repeats."""
    x = np.random.default_rng(0).random(shape, np.float32)
    sigmas = (0, sigma, sigma, 0)[: x.ndim]
    expected = scipy.ndimage.gaussian_filter(x, sigmas, mode="reflect", truncate=4)
    np.testing.assert_allclose(blur.gaussian_blur(x, sigma), expected, atol=1e-5)


def test_gradient_is_the_adjoint():
    rng = np.random.default_rng(0)
    x, cotangent = rng.normal(size=(2, 1, 9, 6, 2)).astype(np.float32)
    y, pull = jax.vjp(lambda x: blur.gaussian_blur(x, 1.0), x)
    np.testing.assert_allclose(np.sum(y * cotangent), np.sum(x * pull(cotangent)[0]), rtol=1e-4)


def test_rows_of_the_matrix_sum_to_one_and_are_banded():
    matrix = blur.blur_matrix(30, 1.5, 5)
    np.testing.assert_allclose(matrix.sum(1), 1, rtol=1e-6)
    distance = np.abs(np.subtract.outer(np.arange(30), np.arange(30)))
    assert np.all(matrix[distance > 5] == 0)
    assert np.all(matrix[distance <= 5] > 0)
