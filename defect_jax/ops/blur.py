"""Gaussian blur as products with banded matrices.

A separable filter is two linear maps, one along the height and one along the width. As [H, H] and
[W, W] matrices they hold the border's reflection too, cost two matrix products forward and two
backward, and are many times faster on CPUs than 1-D depthwise convolutions at the sizes of maps.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np


@functools.lru_cache(maxsize=64)
def blur_matrix(size: int, sigma: float, radius: int) -> np.ndarray:
    """Returns the matrix that blurs a line of pixels.

    The line continues beyond its ends as its mirror image, the last pixel repeated (d c b a | a b
    c d | d c b a): SciPy's `mode='reflect'`, NumPy's 'symmetric'.

    Args:
        size: number of pixels.
        sigma: standard deviation of the Gaussian in pixels, above 0.
        radius: the window reaches this many pixels to each side and sums to 1.

    Returns:
        [size, size] float32, read-only: row i holds the weights of output pixel i.
    """
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    taps /= taps.sum()
    source = np.pad(np.arange(size), radius, mode="symmetric")
    matrix = np.zeros((size, size))
    for offset, weight in enumerate(taps):
        np.add.at(matrix, (np.arange(size), source[offset : offset + size]), weight)
    matrix = matrix.astype(np.float32)
    # What rounding took from a row goes to its middle: constants stay constant to the last bits.
    np.fill_diagonal(matrix, np.diag(matrix) + 1 - matrix.sum(axis=1, dtype=np.float64))
    matrix.flags.writeable = False
    return matrix


def blur(x: jax.Array, sigma: float, radius: int) -> jax.Array:
    """Blurs images along height and width.

    Args:
        x: [B, H, W] or [B, H, W, C] float32.
        sigma: standard deviation in pixels, above 0.
        radius: of the window in pixels.

    Returns:
        The shape of `x`.
    """
    rows = blur_matrix(x.shape[1], sigma, radius)
    columns = blur_matrix(x.shape[2], sigma, radius)
    # Full float32 also where a backend would round factors to fewer bits: the variances of SSIM
    # are small differences of blurred squares.
    product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    return product("kw,bhw...->bhk...", columns, product("kh,bhw...->bkw...", rows, x))


def gaussian_blur(x: jax.Array, sigma: float) -> jax.Array:
    """Computes `scipy.ndimage.gaussian_filter(mode='reflect', truncate=4)` of each channel.

    Args:
        x: [B, H, W] or [B, H, W, C] float32.
        sigma: standard deviation in pixels, above 0.

    Returns:
        The shape of `x`.
    """
    return blur(x, sigma, int(4 * sigma + 0.5))
