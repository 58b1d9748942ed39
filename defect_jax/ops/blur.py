"""Gaussian blur, one direction after the other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def blur(x: jax.Array, sigma: float, radius: int) -> jax.Array:
    """Blurs images along height and width.

    The image continues beyond its border as its mirror image, the last pixel repeated (d c b a |
    a b c d | d c b a): SciPy's `mode='reflect'`, NumPy's 'symmetric'. With this border and
    symmetric weights the blur is its own adjoint, so its gradient is a blur.

    Args:
        x: [B, H, W] or [B, H, W, C] float32.
        sigma: standard deviation of the Gaussian in pixels, above 0.
        radius: the window reaches this many pixels to each side and sums to 1.

    Returns:
        The shape of `x`.
    """
    weights = _weights(sigma, radius)
    for axis in (1, 2):
        size = x.shape[axis]
        beyond = [(0, 0)] * x.ndim
        beyond[axis] = (radius, radius)
        padded = jnp.pad(x, beyond, mode="symmetric")
        # Shifted copies are not made: XLA reads them in one pass. At the sizes of images this is
        # faster than depthwise convolution and than products with banded matrices.
        x = sum(
            (
                weight * jax.lax.slice_in_dim(padded, start, start + size, axis=axis)
                for start, weight in enumerate(weights)
            ),
            jnp.zeros_like(x),
        )
    return x


def _blur_fwd(x: jax.Array, sigma: float, radius: int):
    return blur(x, sigma, radius), None


def _blur_bwd(sigma: float, radius: int, residuals: None, cotangent: jax.Array):
    del residuals
    return (blur(cotangent, sigma, radius),)


blur.defvjp(_blur_fwd, _blur_bwd)


def gaussian_blur(x: jax.Array, sigma: float) -> jax.Array:
    """Computes `scipy.ndimage.gaussian_filter(mode='reflect', truncate=4)` of each channel.

    Args:
        x: [B, H, W] or [B, H, W, C] float32.
        sigma: standard deviation in pixels, above 0.

    Returns:
        The shape of `x`.
    """
    return blur(x, sigma, int(4 * sigma + 0.5))


def _weights(sigma: float, radius: int) -> np.ndarray:
    """The Gaussian's weights [2 * radius + 1] float32, of sum 1."""
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    weights = (weights / weights.sum()).astype(np.float32)
    # What rounding took goes to the middle: constants stay constant to the last bits.
    weights[radius] += 1 - weights.sum(dtype=np.float64)
    return weights
