"""Gaussian blur, one direction after the other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

_BLOCK = 64  # pixels, at most


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def blur(x: jax.Array, sigma: float, radius: int) -> jax.Array:
    """Blurs along the last two axes, height and width.

    The image continues beyond its border as its mirror image, the last pixel repeated (d c b a |
    a b c d | d c b a): SciPy's `mode='reflect'`, NumPy's 'symmetric'. With this border and
    symmetric weights the blur is its own adjoint, so its gradient is a blur.

    Args:
        x: [..., H, W] float32.
        sigma: standard deviation of the Gaussian in pixels, above 0.
        radius: the window reaches this many pixels to each side and sums to 1.

    Returns:
        The shape of `x`.
    """
    for axis in (-1, -2):
        x = _blur_along(x, axis, sigma, radius)
    return x


def _blur_fwd(x: jax.Array, sigma: float, radius: int):
    return blur(x, sigma, radius), None


def _blur_bwd(sigma: float, radius: int, residuals: None, cotangent: jax.Array):
    del residuals
    return (blur(cotangent, sigma, radius),)


blur.defvjp(_blur_fwd, _blur_bwd)


def gaussian_blur(x: jax.Array, sigma: float) -> jax.Array:
    """Computes `scipy.ndimage.gaussian_filter(mode='reflect', truncate=4)` along the last two axes.

    Args:
        x: [..., H, W] float32.
        sigma: standard deviation in pixels, above 0.

    Returns:
        The shape of `x`.
    """
    return blur(x, sigma, int(4 * sigma + 0.5))


def _blur_along(x: jax.Array, axis: int, sigma: float, radius: int) -> jax.Array:
    """Blurs one axis, as products of blocks of it with a banded matrix.

    A sum of shifted copies has fewer operations, but XLA computes it anew in every place where
    its result is read; a product it computes once. Blocks keep the cost of a pixel the same in
    images of any size.
    """
    axis += x.ndim
    size = x.shape[axis]
    count = -(-size // _BLOCK)
    block = -(-size // count)
    beyond = [(0, 0)] * x.ndim
    beyond[axis] = (radius, radius)
    x = jnp.pad(x, beyond, mode="symmetric")
    beyond[axis] = (0, count * block - size)
    x = jnp.pad(x, beyond)
    starts = range(0, count * block, block)
    blocks = jnp.stack(
        [jax.lax.slice_in_dim(x, i, i + block + 2 * radius, axis=axis) for i in starts], axis
    )
    # Full float32 also where a backend would round factors to fewer bits: the variances of SSIM
    # are small differences of blurred squares.
    product = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    matrix = _banded(block, sigma, radius)
    if axis == x.ndim - 1:
        y = product(blocks, matrix.T)
    else:
        # A matrix for each block, since XLA would transpose the blocks to multiply all by one.
        y = product(jnp.broadcast_to(matrix, (*blocks.shape[:-2], *matrix.shape)), blocks)
    y = y.reshape(*x.shape[:axis], count * block, *x.shape[axis + 1 :])
    return jax.lax.slice_in_dim(y, 0, size, axis=axis)


@functools.lru_cache(maxsize=64)
def _banded(size: int, sigma: float, radius: int) -> np.ndarray:
    """The matrix [size, size + 2 * radius] float32 that blurs a line with what lies beyond it."""
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    weights = (weights / weights.sum()).astype(np.float32)
    # What rounding took goes to the middle: constants stay constant to the last bits.
    weights[radius] += 1 - weights.sum(dtype=np.float64)
    matrix = np.zeros((size, size + 2 * radius), np.float32)
    for row in range(size):
        matrix[row, row : row + 2 * radius + 1] = weights
    matrix.flags.writeable = False
    return matrix
