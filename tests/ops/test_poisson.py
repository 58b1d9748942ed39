"""Poisson blending against a sparse direct solution, and its invariants."""

import jax
import numpy as np
import pytest
import scipy.sparse.linalg

from defect_jax.ops import poisson

blend = jax.jit(poisson.blend)


def images(*shape, count=2):
    return np.random.default_rng(sum(shape)).random((count, *shape), np.float32)


def laplacian(height, width):
    """The 5-point stencil on every pixel, sparse [height * width, height * width]."""
    second = [scipy.sparse.diags_array([1.0, -2.0, 1.0], offsets=[-1, 0, 1], shape=(n, n))
              for n in (height, width)]  # fmt: skip
    return scipy.sparse.kronsum(second[1], second[0], format="csr")


def solve(background, patch):
    """Solves for the inner pixels directly, in float64."""
    height, width, channels = background.shape
    inner = np.zeros((height, width), bool)
    inner[1:-1, 1:-1] = True
    inner = inner.ravel()
    stencil = laplacian(height, width)
    result = np.float64(background.reshape(-1, channels))
    wanted = stencil @ np.float64(patch.reshape(-1, channels)) - stencil[:, ~inner] @ result[~inner]
    factors = scipy.sparse.linalg.splu(stencil[inner][:, inner].tocsc())
    result[inner] = factors.solve(wanted[inner])
    return result.reshape(background.shape)


@pytest.mark.parametrize("shape", [(3, 3, 1), (4, 9, 2), (37, 20, 3), (192, 160, 1)])
def test_equals_a_direct_solution(shape):
    background, patch = images(*shape)
    result = blend(background, patch)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, solve(background, patch), atol=1e-4)


def test_a_smooth_difference_all_along_the_border_is_solved_as_well():
    """Long waves have the smallest eigenvalues, which rounding is divided by."""
    shape = (192, 192, 1)
    background = np.full(shape, 0.9, np.float32)
    patch = np.broadcast_to(np.linspace(0, 1, 192, dtype=np.float32)[:, None, None], shape)
    np.testing.assert_allclose(blend(background, patch), solve(background, patch), atol=1e-5)


@pytest.mark.parametrize("offset", [0.0, -0.4, 3.0])
def test_the_background_with_itself_is_itself_whatever_its_brightness(offset):
    background = images(64, 50, 3)[0]
    np.testing.assert_allclose(blend(background, background + offset), background, atol=5e-6)


def test_the_border_is_the_background_and_the_laplacian_the_patch():
    background, patch = images(24, 31, 3)
    result = np.asarray(blend(background, patch))
    border = np.ones((24, 31), bool)
    border[1:-1, 1:-1] = False
    np.testing.assert_array_equal(result[border], background[border])
    expected, actual = (
        (laplacian(24, 31) @ np.float64(image.reshape(-1, 3))).reshape(24, 31, 3)[~border]
        for image in (patch, result)
    )
    np.testing.assert_allclose(actual, expected, atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 7, 1), (5, 1, 3)])
def test_a_rectangle_without_inner_pixels_is_the_background(shape):
    background, patch = images(*shape)
    np.testing.assert_array_equal(blend(background, patch), background)


def test_maps_over_a_batch():
    backgrounds, patches = images(2, 12, 17, 3)
    blended = jax.jit(jax.vmap(poisson.blend))(backgrounds, patches)
    for one, background, patch in zip(blended, backgrounds, patches, strict=True):
        np.testing.assert_allclose(one, solve(background, patch), atol=1e-5)
