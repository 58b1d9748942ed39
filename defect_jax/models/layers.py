"""Convolutions, pooling and normalisation that all models share.

`Conv`, `ConvTranspose` and `max_pool` compute what flax's layers of the same names compute, from
parameters of the same names and shapes, so a checkpoint does not depend on the form. The form is
chosen for XLA's CPU backend, where it was measured, and is the only one on every backend:

* A transposed convolution with a stride becomes a stride-1 convolution that yields every phase of
  the output as channels, then depth-to-space (Shi et al. 2016, https://arxiv.org/abs/1609.07009).
  The kernel gradient of the dilated form falls to loops that take 8 to 60 times as long.
* A convolution with one output pixel, a transposed one with one input pixel, and a 1x1 kernel are
  matrix products.
* A strided convolution stays as it is: space-to-depth in its place was slower in the forward pass
  and the kernel gradient.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from defect_jax import errors

Pads = tuple[tuple[int, int], tuple[int, int]]
Padding = str | int | Sequence[tuple[int, int]]
Normalize = Callable[[jax.Array], jax.Array]

_NHWC = ("NHWC", "HWIO", "NHWC")


def _explicit(padding: int | Sequence[tuple[int, int]]) -> Pads:
    if isinstance(padding, int):
        return (padding, padding), (padding, padding)
    (top, bottom), (left, right) = padding
    return (top, bottom), (left, right)


def convolve(x: jax.Array, kernel: jax.Array, strides: tuple[int, int], pads: Pads) -> jax.Array:
    """Computes `lax.conv_general_dilated`, as a matrix product where it is one.

    Args:
        x: [B, H, W, C].
        kernel: [k, l, C, D].
        strides: window strides along H and W.
        pads: zeros (before, after) H and W.

    Returns:
        [B, (H + sum(pads[0]) - k) // strides[0] + 1, likewise along W, D].
    """
    unpadded = pads == ((0, 0), (0, 0))
    if unpadded and kernel.shape[:2] == (1, 1) and strides == (1, 1):
        return x @ kernel[0, 0]
    if unpadded and kernel.shape[:2] == x.shape[1:3]:
        return jnp.einsum("bhwc,hwcd->bd", x, kernel)[:, None, None]
    return lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=_NHWC)


def _transpose_pads(size: int, stride: int, padding: str) -> tuple[int, int]:
    """The zeros that `lax.conv_transpose` puts around the dilated input for a named padding."""
    if padding == "SAME":
        total = size + stride - 2
        before = size - 1 if stride > size - 1 else -(-total // 2)
    else:
        total = size + stride - 2 + max(size - stride, 0)
        before = size - 1
    return before, total - before


def _phases(x: jax.Array, kernel: jax.Array, strides: tuple[int, int]) -> jax.Array:
    """Transposed convolution in full: every output pixel that an input pixel reaches.

    Output pixel s * q + r of phase r sums x[q - j] * kernel[k - 1 - r - s * j] over j, so each
    phase is a convolution with the kernel's taps of that phase, and all phases are one.

    Args:
        x: [B, H, W, C].
        kernel: [k, l, C, D].
        strides: (s, t), the up-sampling along H and W.

    Returns:
        [B, at least (H - 1) * s + k, likewise along W, D]; zero beyond that size.
    """
    (height, width, c, d), (s, t) = kernel.shape, strides
    m, n = -(-height // s), -(-width // t)
    kernel = jnp.pad(kernel, ((m * s - height, 0), (n * t - width, 0), (0, 0), (0, 0)))
    kernel = kernel.reshape(m, s, n, t, c, d)[:, ::-1, :, ::-1]
    kernel = kernel.transpose(0, 2, 4, 1, 3, 5).reshape(m, n, c, s * t * d)
    # Zeros inside the array, not in the convolution's own padding: with those XLA's CPU backend
    # takes 30 times as long for the kernel gradient.
    x = jnp.pad(x, ((0, 0), (m - 1, m - 1), (n - 1, n - 1), (0, 0)))
    y = convolve(x, kernel, (1, 1), ((0, 0), (0, 0)))
    batch, height, width, _ = y.shape
    y = y.reshape(batch, height, width, s, t, d).transpose(0, 1, 3, 2, 4, 5)
    return y.reshape(batch, height * s, width * t, d)


def convolve_transpose(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, int], pads: Pads
) -> jax.Array:
    """Computes `lax.conv_transpose` without dilating.

    Args:
        x: [B, H, W, C].
        kernel: [k, l, C, D].
        strides: the up-sampling along H and W.
        pads: zeros (before, after) H and W of the dilated input.

    Returns:
        [B, (H - 1) * strides[0] + 2 + sum(pads[0]) - k, likewise along W, D].
    """
    size = kernel.shape[:2]
    if x.shape[1:3] == (1, 1):
        full = jnp.einsum("bc,hwcd->bhwd", x[:, 0, 0], kernel[::-1, ::-1])
    elif strides == (1, 1):
        return convolve(x, kernel, strides, pads)
    else:
        full = _phases(x, kernel, strides)
    crop = [(0, 0, 0)]
    for axis in (0, 1):
        before = pads[axis][0] - (size[axis] - 1)
        out = (x.shape[axis + 1] - 1) * strides[axis] + 2 + sum(pads[axis]) - size[axis]
        crop.append((before, out - before - full.shape[axis + 1], 0))
    return lax.pad(full, jnp.zeros((), full.dtype), [*crop, (0, 0, 0)])


class _Layer(nn.Module):
    """The parameters of `nn.Conv` and `nn.ConvTranspose`: kernel [k, l, C, features], bias."""

    features: int
    kernel_size: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    padding: Padding = "SAME"
    use_bias: bool = True
    dtype: Any = jnp.float32

    def _weights(self, channels: int) -> tuple[jax.Array, jax.Array | None]:
        shape = (*self.kernel_size, channels, self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        if not self.use_bias:
            return kernel.astype(self.dtype), None
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        return kernel.astype(self.dtype), bias.astype(self.dtype)


class Conv(_Layer):
    """`nn.Conv` on [B, H, W, C]: float32 parameters, computed in `dtype`."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to [B, H', W', features] in `dtype`."""
        kernel, bias = self._weights(x.shape[-1])
        if isinstance(self.padding, str):
            named = lax.padtype_to_pads(x.shape[1:3], self.kernel_size, self.strides, self.padding)
            pads = _explicit(named)
        else:
            pads = _explicit(self.padding)
        y = convolve(x.astype(self.dtype), kernel, self.strides, pads)
        return y if bias is None else y + bias


class ConvTranspose(_Layer):
    """`nn.ConvTranspose` on [B, H, W, C]: float32 parameters, computed in `dtype`."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to [B, H', W', features] in `dtype`."""
        kernel, bias = self._weights(x.shape[-1])
        if isinstance(self.padding, str):
            height, width = zip(self.kernel_size, self.strides, strict=True)
            pads = _transpose_pads(*height, self.padding), _transpose_pads(*width, self.padding)
        else:
            pads = _explicit(self.padding)
        y = convolve_transpose(x.astype(self.dtype), kernel, self.strides, pads)
        return y if bias is None else y + bias


def _first_largest(a: jax.Array, b: jax.Array) -> jax.Array:
    # A NaN in `a` must come through; one in `b` does, since no comparison with it holds.
    return jnp.where((a >= b) | jnp.isnan(a), a, b)


def max_pool(x: jax.Array) -> jax.Array:
    """Computes `nn.max_pool(x, (2, 2), strides=(2, 2))`.

    Among equal pixels the gradient goes to the first in row order, as it does there.

    Args:
        x: [B, H, W, C]; a last odd row or column is dropped.

    Returns:
        [B, H // 2, W // 2, C].
    """
    x = x[:, : x.shape[1] // 2 * 2, : x.shape[2] // 2 * 2]
    top = _first_largest(x[:, ::2, ::2], x[:, ::2, 1::2])
    bottom = _first_largest(x[:, 1::2, ::2], x[:, 1::2, 1::2])
    return _first_largest(top, bottom)


def _batch(x: jax.Array, *, train: bool, dtype: Any, axis_name: str | None) -> jax.Array:
    norm = nn.BatchNorm(not train, momentum=0.9, epsilon=1e-5, dtype=dtype, axis_name=axis_name)
    return norm(x)


def _group(x: jax.Array, *, train: bool, dtype: Any, axis_name: str | None) -> jax.Array:
    return nn.GroupNorm(math.gcd(8, x.shape[-1]), epsilon=1e-5, dtype=dtype)(x)


def _none(x: jax.Array, *, train: bool, dtype: Any, axis_name: str | None) -> jax.Array:
    return x


NORMALIZATIONS = {"batch": _batch, "group": _group, "none": _none}


def normalization(name: str, train: bool, dtype: Any, axis_name: str | None) -> Normalize:
    """Returns a function from [B, H, W, C] to the same shape, normalised, in `dtype`.

    Statistics, scale and offset are float32 whatever `dtype` is. Each call inside a compact module
    makes a new layer of that module.

    Args:
        name: 'batch' (running averages with momentum 0.9), 'group' (8 groups, or as many of 4, 2
            and 1 as divide the channels) or 'none'.
        train: True uses and averages the batch's statistics, False the running averages.
        dtype: of the result.
        axis_name: the mapped axis over which batch statistics are averaged, so that several
            devices compute what one would; None for statistics of each device's own part.

    Raises:
        UserError: unknown name.
    """
    layer = errors.lookup(NORMALIZATIONS, name, "normalization")
    return functools.partial(layer, train=train, dtype=dtype, axis_name=axis_name)


def check_multiple(name: str, shape: tuple[int, ...], multiple: int) -> None:
    """Checks that images [B, H, W, C] of this shape can be halved often enough.

    Raises:
        UserError: H or W is not a multiple of `multiple`.
    """
    height, width = shape[1:3]
    if height % multiple or width % multiple:
        raise errors.UserError(
            f"{name} takes image sizes that are multiples of {multiple}, found {height}x{width}: "
            f"resize or pad the images"
        )
