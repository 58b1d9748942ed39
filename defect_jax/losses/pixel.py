"""Residuals between an image and its reconstruction.

A residual is a map; its mean is the loss and, at test time, the map itself is the score map, so
both come from one function.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from defect_jax.ops.ssim import ssim


def squared_residual(x: jax.Array, y: jax.Array, windows: Sequence[int] = ()) -> jax.Array:
    """(x - y)^2, averaged over channels.

    Args:
        x: [B, H, W, C] in [0, 1].
        y: [B, H, W, C] in [0, 1].
        windows: not used; every residual takes the same arguments.

    Returns:
        [B, H, W], in [0, 1].
    """
    del windows
    return jnp.mean((x - y) ** 2, axis=-1)


def ssim_residual(x: jax.Array, y: jax.Array, windows: Sequence[int] = (11,)) -> jax.Array:
    """1 - SSIM (Wang et al. 2004), summed over window sizes.

    One window of 11 is the loss of Bergmann et al. 2019 (eq. 6); several make the multi-scale
    variant. The Gaussian has sigma 1.5 whatever the window.

    Args:
        x: [B, H, W, C] in [0, 1].
        y: [B, H, W, C] in [0, 1].
        windows: odd window sizes, in pixels.

    Returns:
        [B, H, W], in [0, 2] times the number of windows.
    """
    return sum((1.0 - ssim(x, y, window) for window in windows), jnp.zeros(x.shape[:3], x.dtype))


RESIDUALS = {"l2": squared_residual, "ssim": ssim_residual}
