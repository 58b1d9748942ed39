"""Convolutions, pooling and normalisation that all models share.

`Conv`, `ConvTranspose`, `BatchNorm` and `max_pool` compute what flax's layers of the same names
compute, from parameters of the same names and shapes, so a checkpoint does not depend on how; they
do it in forms that are faster, most of all on CPUs (see `ops/convolution.py`).
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
from defect_jax.ops.convolution import Pads, Pair, adjoint, convolve

Padding = str | int | Sequence[Pair]
Normalize = Callable[[jax.Array], jax.Array]

_EPSILON = 1e-5  # added to variances


def _explicit(padding: int | Sequence[Pair]) -> Pads:
    if isinstance(padding, int):
        return (padding, padding), (padding, padding)
    (top, bottom), (left, right) = padding
    return (top, bottom), (left, right)


def _transpose_pads(size: int, stride: int, padding: str) -> Pair:
    """The zeros that `lax.conv_transpose` puts around the dilated input for a named padding."""
    if padding == "SAME":
        total = size + stride - 2
        before = size - 1 if stride > size - 1 else -(-total // 2)
    else:
        total = size + stride - 2 + max(size - stride, 0)
        before = size - 1
    return before, total - before


def convolve_transpose(x: jax.Array, kernel: jax.Array, strides: Pair, pads: Pads) -> jax.Array:
    """Computes `lax.conv_transpose`.

    Args:
        x: [B, H, W, C].
        kernel: [k, l, C, D].
        strides: the up-sampling along H and W.
        pads: zeros (before, after) H and W of the input, dilated by the strides.

    Returns:
        [B, (H - 1) * strides[0] + 2 + sum(pads[0]) - k, likewise along W, D].
    """
    size, own_pads = [], []
    for side, stride, k, (before, after) in zip(
        x.shape[1:3], strides, kernel.shape[:2], pads, strict=True
    ):
        size.append((side - 1) * stride + 2 + before + after - k)
        own_pads.append((k - 1 - before, k - 1 - after))
    flipped = kernel[::-1, ::-1].swapaxes(2, 3)
    return adjoint(x, flipped, strides, _explicit(own_pads), (size[0], size[1]))


class _Layer(nn.Module):
    """The parameters of `nn.Conv` and `nn.ConvTranspose`: kernel [k, l, C, features], bias."""

    features: int
    kernel_size: Pair
    strides: Pair = (1, 1)
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


class BatchNorm(nn.Module):
    """`nn.BatchNorm` on [B, H, W, C] with momentum 0.9, with a backward rule of its own.

    Ioffe and Szegedy 2015, https://arxiv.org/abs/1502.03167. Parameters, statistics and their
    sums are float32. Training on maps of one pixel takes a batch of two or more: UserError.

    Attributes:
        train: True normalises by the batch and averages its statistics, False by the averages.
        dtype: of the result.
        axis_name: mapped axis to average batch statistics over, or None.
    """

    train: bool
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to the same shape in `dtype`."""
        shape = (x.shape[-1],)
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        var = self.variable("batch_stats", "var", jnp.ones, shape)
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        if not self.train:
            factor = scale * lax.rsqrt(var.value + _EPSILON)
            return (x * factor + (bias - mean.value * factor)).astype(self.dtype)
        axis_name = None if self.is_initializing() else self.axis_name
        if not self.is_initializing():
            _check_variance_exists(x.shape, axis_name)
        y, batch_mean, batch_var = _normalize(x, scale, bias, axis_name)
        if not self.is_initializing():
            mean.value = 0.9 * mean.value + 0.1 * lax.stop_gradient(batch_mean)
            var.value = 0.9 * var.value + 0.1 * lax.stop_gradient(batch_var)
        return y.astype(self.dtype)


def _check_variance_exists(shape: tuple[int, ...], axis_name: str | None) -> None:
    batch_size = shape[0] * (1 if axis_name is None else lax.psum(1, axis_name))
    if batch_size * shape[1] * shape[2] < 2:
        raise errors.UserError(
            f"batch normalisation of a batch of one on {shape[1]}x{shape[2]} maps would give zeros "
            "for every image: raise train.batch_size or data.image_size"
        )


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _normalize(
    x: jax.Array, scale: jax.Array, bias: jax.Array, axis_name: str | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalises x [B, H, W, C]; returns also mean and variance [C], which have no gradient."""
    return _normalize_plainly(x, scale, bias, axis_name)


def _normalize_plainly(
    x: jax.Array, scale: jax.Array, bias: jax.Array, axis_name: str | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    x = x.astype(jnp.float32)
    mean, squares = _mean(x, axis_name), _mean(x * x, axis_name)
    var = jnp.maximum(squares - mean * mean, 0.0)
    factor = scale * lax.rsqrt(var + _EPSILON)
    return x * factor + (bias - mean * factor), mean, var


def _normalize_fwd(x: jax.Array, scale: jax.Array, bias: jax.Array, axis_name: str | None):
    # Not `_normalize`: a gradient of the gradient goes through the mean and variance kept here.
    y, mean, var = _normalize_plainly(x, scale, bias, axis_name)
    return (y, mean, var), (x, scale, mean, var)


def _normalize_bwd(axis_name: str | None, residuals, cotangents):
    """Two sums and one pass; the rule that autodiff finds keeps and reads more arrays of x's size.

    With n pixels, u = (x - mean) / sigma and g the cotangent of y, the cotangent of x is
    scale / sigma * (g - sum(g) / n - u * sum(g * u) / n).
    """
    x, scale, mean, var = residuals
    g = cotangents[0]
    inverse = lax.rsqrt(var + _EPSILON)
    centred = x.astype(jnp.float32) - mean
    bias_gradient = jnp.sum(g, axis=(0, 1, 2))
    scale_gradient = inverse * jnp.sum(g * centred, axis=(0, 1, 2))
    sums = bias_gradient, scale_gradient
    pixels = g.shape[0] * g.shape[1] * g.shape[2]
    if axis_name is not None:
        sums = lax.pmean(sums, axis_name)
    offset, slope = sums[0] / pixels, inverse * sums[1] / pixels
    x_gradient = (scale * inverse) * (g - offset - centred * slope)
    return x_gradient.astype(x.dtype), scale_gradient, bias_gradient


_normalize.defvjp(_normalize_fwd, _normalize_bwd)


def _mean(x: jax.Array, axis_name: str | None) -> jax.Array:
    mean = jnp.mean(x, axis=(0, 1, 2))
    return mean if axis_name is None else lax.pmean(mean, axis_name)


def _batch(x: jax.Array, *, train: bool, dtype: Any, axis_name: str | None) -> jax.Array:
    return BatchNorm(train, dtype, axis_name)(x)


def _group(x: jax.Array, *, train: bool, dtype: Any, axis_name: str | None) -> jax.Array:
    return nn.GroupNorm(math.gcd(8, x.shape[-1]), epsilon=_EPSILON, dtype=dtype)(x)


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
    if min(height, width) < multiple or height % multiple or width % multiple:
        raise errors.UserError(
            f"{name} takes image sizes that are multiples of {multiple}, found {height}x{width}: "
            "set data.image_size, or of tiles eval.tile"
        )
