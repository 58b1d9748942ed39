"""Convolutions, pooling and normalisation that all models share.

`Conv`, `ConvTranspose` and `max_pool` compute what flax's layers of the same names compute, from
parameters of the same names and shapes, so a checkpoint does not depend on the form. They never
dilate: a dilated convolution, which is what a transposed convolution and the gradient of a strided
one are, falls to slow loops on XLA's CPU backend. A stride moves into the channels instead
(space-to-depth, depth-to-space; Shi et al. 2016, https://arxiv.org/abs/1609.05158, section 3.1),
and what then covers or starts from a single pixel is a matrix product.
"""

import functools
import math
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from defect_jax import errors

Padding = str | int | Sequence[tuple[int, int]]


def space_to_depth(x: jax.Array, block: tuple[int, int]) -> jax.Array:
    """Moves blocks of pixels into channels: [B, H, W, C] to [B, H / s, W / t, s * t * C]."""
    batch, height, width, channels = x.shape
    s, t = block
    x = x.reshape(batch, height // s, s, width // t, t, channels).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, height // s, width // t, s * t * channels)


def depth_to_space(x: jax.Array, block: tuple[int, int]) -> jax.Array:
    """The inverse of `space_to_depth`: [B, H, W, s * t * C] to [B, H * s, W * t, C]."""
    batch, height, width, channels = x.shape
    s, t = block
    x = x.reshape(batch, height, width, s, t, -1).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, height * s, width * t, channels // (s * t))


def conv(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding: Padding
) -> jax.Array:
    """Convolves as `lax.conv_general_dilated` does, a stride moved into the channels.

    Args:
        x: [B, H, W, C].
        kernel: [k, l, C, D].
        strides: window strides along H and W.
        padding: 'SAME', 'VALID', an integer for all sides, or (low, high) along H and W.

    Returns:
        [B, (H + low + high - k) // stride + 1, likewise W, D].
    """
    size = kernel.shape[:2]
    pads = _window_pads(x.shape[1:3], size, strides, padding)
    padded = [n + sum(pad) for n, pad in zip(x.shape[1:3], pads, strict=True)]
    out = [(n - k) // s + 1 for n, k, s in zip(padded, size, strides, strict=True)]
    if out == [1, 1]:
        window = _pad(x, [(low, k - n - low) for (low, _), k, n in zip(pads, size, x.shape[1:3])])
        return jnp.einsum("bklc,klcd->bd", window, kernel)[:, None, None]
    if strides != (1, 1):
        blocks = [-(-k // s) for k, s in zip(size, strides, strict=True)]
        kernel = _pad(
            kernel[None], [(0, n * s - k) for n, s, k in zip(blocks, strides, size)]
        )
        kernel = space_to_depth(kernel.reshape(1, *kernel.shape[1:3], -1), strides)
        kernel = kernel.reshape(*blocks, -1, size_out)
    return lax.conv_general_dilated(x, kernel, (1, 1), pads, dimension_numbers=_DIMENSIONS)
