"""Residuals between an image and its reconstruction, and what a reconstruction costs by itself.

A residual is a map; its mean is the loss and, at test time, the map itself is the score map, so
both come from one function.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from defect_jax.errors import UserError
from defect_jax.ops.ssim import ssim

# Scales of the gradient residual, each half the one before.
_SCALES = 4


def absolute_residual(x: jax.Array, y: jax.Array, windows: Sequence[int] = ()) -> jax.Array:
    """|x - y|, averaged over channels.

    Args:
        x: [B, H, W, C] in [0, 1].
        y: [B, H, W, C] in [0, 1].
        windows: not used; every residual takes the same arguments.

    Returns:
        [B, H, W], in [0, 1].
    """
    del windows
    difference = x - y
    # Not jnp.abs, whose slope JAX takes to be 1 at 0: a perfect pixel would pull at the network.
    return jnp.mean(difference * jnp.sign(difference), axis=-1)


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


def gradient_residual(x: jax.Array, y: jax.Array, windows: Sequence[int] = ()) -> jax.Array:
    """1 - multi-scale gradient magnitude similarity, of the mean over channels.

    Zavrtanik et al. 2021, "Reconstruction by inpainting for visual anomaly detection", equations 3
    to 5: the map of Xue et al. 2014 (https://arxiv.org/abs/1308.3052) at the full size and at
    1/2, 1/4 and 1/8 of it, enlarged bilinearly and averaged. An odd last row or column is dropped
    before it is halved.

    Args:
        x: [B, H, W, C] in [0, 1].
        y: [B, H, W, C] in [0, 1].
        windows: not used; every residual takes the same arguments.

    Returns:
        [B, H, W], in [0, 1].

    Raises:
        UserError: H or W is below 8 pixels.
    """
    del windows
    shape, least = x.shape[:3], 2 ** (_SCALES - 1)
    if min(shape[1:]) < least:
        raise UserError(
            f"msgms takes images of at least {least}x{least} pixels, found {shape[1]}x{shape[2]}: "
            "set a larger image size"
        )
    x, y = jnp.mean(x, axis=-1), jnp.mean(y, axis=-1)
    maps = []
    for scale in range(_SCALES):
        if scale:
            x, y = _halve(x), _halve(y)
        maps.append(jax.image.resize(_gradient_dissimilarity(x, y), shape, "bilinear"))
    return sum(maps[1:], maps[0]) / _SCALES


def total_variation(x: jax.Array) -> jax.Array:
    """Mean squared difference of neighbours along H, plus that along W.

    Args:
        x: [B, H, W, C] in [0, 1], H and W of at least 2.

    Returns:
        [B], in [0, 2].
    """
    down, right = jnp.diff(x, axis=1), jnp.diff(x, axis=2)
    return jnp.mean(down**2, axis=(1, 2, 3)) + jnp.mean(right**2, axis=(1, 2, 3))


def _gradient_dissimilarity(x: jax.Array, y: jax.Array, c: float = 0.0026) -> jax.Array:
    """1 - GMS of Xue et al. 2014, equation 4: x and y [B, H, W] -> [B, H, W] in [0, 1].

    Their constant is c = 170 for pixels in [0, 255]; here it is 170 / 255^2.
    """
    a, b = _gradient_magnitude(x), _gradient_magnitude(y)
    # 1 - (2ab + c) / (a^2 + b^2 + c), written so that equal images give exactly 0.
    return (a - b) ** 2 / (a * a + b * b + c)


def _gradient_magnitude(x: jax.Array, eps: float = 1e-12) -> jax.Array:
    """Length of the Prewitt gradient, [B, H, W] -> [B, H, W]; border pixels are repeated.

    A border of zeros would draw an edge around every image. `eps` under the root keeps the
    derivative finite in flat places.
    """
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1)), mode="edge")
    down = (x[:, 2:] - x[:, :-2]) / 3
    right = (x[:, :, 2:] - x[:, :, :-2]) / 3
    down = down[:, :, :-2] + down[:, :, 1:-1] + down[:, :, 2:]
    right = right[:, :-2] + right[:, 1:-1] + right[:, 2:]
    return jnp.sqrt(down**2 + right**2 + eps)


def _halve(x: jax.Array) -> jax.Array:
    """Means of 2x2 pixels, [B, H, W] -> [B, H // 2, W // 2]."""
    batch, height, width = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    return jnp.mean(x.reshape(batch, height // 2, 2, width // 2, 2), axis=(2, 4))


RESIDUALS = {
    "l1": absolute_residual,
    "l2": squared_residual,
    "ssim": ssim_residual,
    "msgms": gradient_residual,
}
