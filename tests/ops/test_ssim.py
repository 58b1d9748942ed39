"""SSIM against scikit-image's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.data
import skimage.metrics

from defect_jax.ops import ssim


def _structured(rng):
    """A photograph beside itself with noise, a bright square and an inverted one."""
    x = skimage.data.astronaut()[:64, 200:248].astype(np.float32) / 255
    y = np.clip(x + rng.normal(0, 0.05, x.shape), 0, 1).astype(np.float32)
    y[10:20, 5:15] = 1
    y[:8, -8:] = 1 - y[:8, -8:]
    return x, y


def _pairs():
    rng = np.random.default_rng(0)
    noise = rng.random((2, 40, 33, 3), np.float32)
    flat = np.full((40, 33, 1), 0.5, np.float32)
    stripes = np.zeros((40, 33, 1), np.float32)
    stripes[::2] = 1
    return {
        "noise": tuple(noise),
        "photograph": _structured(rng),
        "flat": (flat, flat + 0.25),
        "inverted_stripes": (stripes, 1 - stripes),
    }


@pytest.mark.parametrize("window", [11, 7])
@pytest.mark.parametrize("case", _pairs())
def test_map_equals_scikit_image_borders_included(case, window):
    x, y = _pairs()[case]
    sigma = 1.5 if window == 11 else 0.9  # scikit-image derives the window: 2 * int(3.5 s + .5) + 1
    expected = skimage.metrics.structural_similarity(
        *(x.astype(np.float64), y.astype(np.float64)),
        gaussian_weights=True,
        sigma=sigma,
        use_sample_covariance=False,
        data_range=1,
        channel_axis=-1,
        full=True,
    )[1].mean(-1)
    result = ssim.ssim(x[None], y[None], window, sigma)
    assert result.shape == (1, *x.shape[:2])
    np.testing.assert_allclose(result[0], expected, atol=1e-4)


def test_identical_images_give_one_and_no_gradient():
    x = jnp.asarray(_structured(np.random.default_rng(0))[0])[None]
    np.testing.assert_allclose(ssim.ssim(x, x), 1, atol=1e-5)
    gradient = jax.grad(lambda y: ssim.ssim(x, y).mean())(x)
    np.testing.assert_allclose(gradient, 0, atol=1e-5)


def test_gradient_equals_a_difference_quotient():
    x, y = (jnp.asarray(image)[None] for image in _structured(np.random.default_rng(0)))
    direction = jax.random.normal(jax.random.key(0), x.shape)

    def along(t):
        return ssim.ssim(x + t * direction, y).sum()

    step = 1e-3
    quotient = (along(step) - along(-step)) / (2 * step)
    np.testing.assert_allclose(jax.grad(along)(0.0), quotient, rtol=5e-3)


def test_images_of_a_batch_do_not_mix():
    x = jax.random.uniform(jax.random.key(0), (3, 16, 16, 2))
    y = jax.random.uniform(jax.random.key(1), x.shape)
    alone = jnp.concatenate([ssim.ssim(a[None], b[None]) for a, b in zip(x, y, strict=True)])
    np.testing.assert_allclose(ssim.ssim(x, y), alone, atol=1e-5)
