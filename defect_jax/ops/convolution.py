"""Convolution, its adjoint and its kernel gradient, in the forms that run fast.

The three belong together: a transposed convolution is the adjoint, and the gradients of each are
the other two. So there are three linear maps to make fast, and two `custom_vjp` rules that tie
them together; the rules hold for gradients of gradients too.

XLA's CPU backend is fast only where a convolution has
stride 1, no dilation and enough channels, so there each map is written in terms of such ones and
of matrix products. Forms differ in rounding alone. What was measured is in experiments/RESULTS.md;
on other backends nothing was yet, and each map is XLA's own.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

Pair = tuple[int, int]
Pads = tuple[Pair, Pair]

_NHWC = ("NHWC", "HWIO", "NHWC")
_UNPADDED: Pads = ((0, 0), (0, 0))
# Below this many channels a strided convolution is faster as space-to-depth.
_FEW_CHANNELS = 8


def _reformulate() -> bool:
    return jax.default_backend() == "cpu"


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolve(x: jax.Array, kernel: jax.Array, strides: Pair, pads: Pads) -> jax.Array:
    """Computes `lax.conv_general_dilated`.

    Args:
        x: [B, H, W, C].
        kernel: [kh, kw, C, D].
        strides: window strides along H and W.
        pads: zeros (before, after) H and W.

    Returns:
        [B, (H + sum(pads[0]) - kh) // strides[0] + 1, likewise along W, D].
    """
    if not _reformulate():
        return _plain(x, kernel, strides, pads)
    size = _pair(kernel.shape[:2])
    if pads == _UNPADDED and size == x.shape[1:3]:
        return jnp.einsum("bhwc,hwcd->bd", x, kernel)[:, None, None]
    if strides != (1, 1) and (x.shape[-1] < _FEW_CHANNELS or size == strides):
        out = _out_size(x, size, strides, pads)
        x = _space_to_depth(x, size, strides, pads, out)
        return convolve(x, _kernel_to_depth(kernel, strides), (1, 1), _UNPADDED)
    if size == strides == (1, 1) and pads == _UNPADDED:
        return x @ kernel[0, 0]
    return _plain(x, kernel, strides, pads)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def adjoint(y: jax.Array, kernel: jax.Array, strides: Pair, pads: Pads, size: Pair) -> jax.Array:
    """The adjoint of `convolve` with respect to `x`: a transposed convolution.

    With a stride the result is a stride-1 convolution that yields every phase of the output as
    channels, then depth-to-space (Shi et al. 2016, https://arxiv.org/abs/1609.07009).

    Args:
        y: [B, h, w, D].
        kernel: [kh, kw, C, D].
        strides: of `convolve`.
        pads: of `convolve`.
        size: (H, W) of `convolve`'s `x`, which `convolve` maps to (h, w).

    Returns:
        [B, H, W, C].
    """
    (kh, kw, c, _), (h, w) = kernel.shape, y.shape[1:3]
    if not _reformulate():
        x = jnp.zeros((y.shape[0], *size, c), y.dtype)
        return jax.linear_transpose(lambda x: _plain(x, kernel, strides, pads), x)(y)[0]
    if pads == _UNPADDED and (kh, kw) == size:
        return jnp.einsum("bd,hwcd->bhwc", y[:, 0, 0], kernel)
    (top, _), (left, _) = pads
    if strides == (1, 1):
        flipped = kernel[::-1, ::-1].swapaxes(2, 3)
        rows = (kh - 1 - top, size[0] - h + top)
        columns = (kw - 1 - left, size[1] - w + left)
        return convolve(y, flipped, (1, 1), (rows, columns))
    # Output pixel s * q + r of phase r sums y[q - j] * kernel[s * j + r] over j.
    phases = _kernel_to_depth(kernel, strides)
    m, n = phases.shape[:2]
    flipped = phases[::-1, ::-1].swapaxes(2, 3)
    full = convolve(y, flipped, (1, 1), ((m - 1, m - 1), (n - 1, n - 1)))
    (s, t), batch = strides, y.shape[0]
    height, width = (h + m - 1) * s, (w + n - 1) * t
    full = full.reshape(batch, h + m - 1, w + n - 1, s, t, c).transpose(0, 1, 3, 2, 4, 5)
    full = full.reshape(batch, height, width, c)
    return _pad(full, ((-top, size[0] - height + top), (-left, size[1] - width + left)))


def kernel_gradient(x: jax.Array, y: jax.Array, size: Pair, strides: Pair, pads: Pads) -> jax.Array:
    """The adjoint of `convolve` with respect to `kernel`.

    Args:
        x: [B, H, W, C].
        y: [B, h, w, D], the cotangent of `convolve`'s result.
        size: (kh, kw) of the kernel.
        strides: of `convolve`.
        pads: of `convolve`.

    Returns:
        [kh, kw, C, D].
    """
    c, d = x.shape[-1], y.shape[-1]
    if not _reformulate():
        kernel = jnp.zeros((*size, c, d), x.dtype)
        return jax.linear_transpose(lambda k: _plain(x, k, strides, pads), kernel)(y)[0]
    if pads == _UNPADDED and size == x.shape[1:3]:
        return jnp.einsum("bhwc,bd->hwcd", x, y[:, 0, 0])
    if strides != (1, 1):
        (s, t), (m, n) = strides, _blocks(size, strides)
        x = _space_to_depth(x, size, strides, pads, _pair(y.shape[1:3]))
        phases = kernel_gradient(x, y, (m, n), (1, 1), _UNPADDED).reshape(m, n, s, t, c, d)
        return phases.transpose(0, 2, 1, 3, 4, 5).reshape(m * s, n * t, c, d)[: size[0], : size[1]]
    if size == (1, 1) and pads == _UNPADDED:
        return jnp.einsum("bhwc,bhwd->cd", x, y)[None, None]
    if c <= d:
        return _correlate_rows(x, y, size, pads).transpose(2, 0, 1, 3)
    # The other way round, y moves over x, and every tap is where its opposite was.
    (kh, kw), ((top, bottom), (left, right)) = size, pads
    opposite = ((kh - 1 - top, kh - 1 - bottom), (kw - 1 - left, kw - 1 - right))
    return _correlate_rows(y, x, size, opposite)[::-1, :, ::-1].transpose(2, 0, 3, 1)


def _correlate_rows(moving: jax.Array, fixed: jax.Array, size: Pair, pads: Pads) -> jax.Array:
    """All channels of one array, moved about, times all of another, summed over pixels and images.

    This is a convolution along H whose channels are the pixels of rows, where XLA's own form has
    as many channels as there are images, which is few. It yields the taps along H; those along W
    are copies of `moving`, stacked, so that should be the array with fewer channels.

    Args:
        moving: [B, H, W, C], which `pads` brings to kh - 1 rows and kw - 1 columns more than:
        fixed: [B, h, w, D].
        size: (kh, kw).
        pads: zeros (before, after) H and W of `moving`.

    Returns:
        [kw, C, kh, D].
    """
    (kh, kw), c, d = size, moving.shape[-1], fixed.shape[-1]
    (top, bottom), (left, right) = pads
    # In a loop over images, since XLA would merge the transposition into the copies below and
    # read strided memory for each of them.
    moving = lax.map(lambda image: image.transpose(2, 0, 1), moving)
    moving = moving.transpose(1, 2, 0, 3)  # [C, H, B, W]
    zero = jnp.zeros((), moving.dtype)
    # Rows are padded here too: with pads of its own XLA's convolution may fall to naive loops.
    shifts = [
        ((0, 0, 0), (top, bottom, 0), (0, 0, 0), (left - j, right + j - (kw - 1), 0))
        for j in range(kw)
    ]
    copies = jnp.concatenate([lax.pad(moving, zero, shift) for shift in shifts])
    rows = copies.reshape(kw * c, copies.shape[1], -1)  # [kw * C, h + kh - 1, B * w]
    fixed = fixed.transpose(1, 0, 2, 3).reshape(fixed.shape[1], -1, d)  # [h, B * w, D]
    taps = lax.conv_general_dilated(
        rows, fixed, (1,), ((0, 0),), dimension_numbers=("NHC", "HIO", "NHC")
    )
    return taps.reshape(kw, c, kh, d)


def _convolve_fwd(x: jax.Array, kernel: jax.Array, strides: Pair, pads: Pads):
    return convolve(x, kernel, strides, pads), (x, kernel)


def _convolve_bwd(strides: Pair, pads: Pads, residuals, y: jax.Array):
    x, kernel = residuals
    return (
        adjoint(y, kernel, strides, pads, x.shape[1:3]),
        kernel_gradient(x, y, kernel.shape[:2], strides, pads),
    )


def _adjoint_fwd(y: jax.Array, kernel: jax.Array, strides: Pair, pads: Pads, size: Pair):
    return adjoint(y, kernel, strides, pads, size), (y, kernel)


def _adjoint_bwd(strides: Pair, pads: Pads, size: Pair, residuals, x: jax.Array):
    y, kernel = residuals
    return (
        convolve(x, kernel, strides, pads),
        kernel_gradient(x, y, kernel.shape[:2], strides, pads),
    )


convolve.defvjp(_convolve_fwd, _convolve_bwd)
adjoint.defvjp(_adjoint_fwd, _adjoint_bwd)


def _pair(shape: tuple[int, ...]) -> Pair:
    first, second = shape
    return first, second


def _plain(x: jax.Array, kernel: jax.Array, strides: Pair, pads: Pads) -> jax.Array:
    return lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=_NHWC)


def _pad(x: jax.Array, pads: Pads) -> jax.Array:
    """Puts zeros around H and W; negative numbers crop."""
    zero = jnp.zeros((), x.dtype)
    return lax.pad(x, zero, ((0, 0, 0), *((before, after, 0) for before, after in pads), (0, 0, 0)))


def _out_size(x: jax.Array, size: Pair, strides: Pair, pads: Pads) -> Pair:
    h, w = (
        (side + sum(pad) - k) // s + 1
        for side, pad, k, s in zip(x.shape[1:3], pads, size, strides, strict=True)
    )
    return h, w


def _blocks(size: Pair, strides: Pair) -> Pair:
    """How many strides a kernel spans along H and W."""
    return -(-size[0] // strides[0]), -(-size[1] // strides[1])


def _space_to_depth(x: jax.Array, size: Pair, strides: Pair, pads: Pads, out: Pair) -> jax.Array:
    """Padded x in blocks of `strides`, as many as a result of size `out` reads; each a pixel."""
    (s, t), (m, n), batch, c = strides, _blocks(size, strides), x.shape[0], x.shape[-1]
    h, w = out[0] + m - 1, out[1] + n - 1
    (top, _), (left, _) = pads
    x = _pad(x, ((top, h * s - x.shape[1] - top), (left, w * t - x.shape[2] - left)))
    x = x.reshape(batch, h, s, w, t, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, h, w, s * t * c)


def _kernel_to_depth(kernel: jax.Array, strides: Pair) -> jax.Array:
    """The kernel [kh, kw, C, D] that goes with `_space_to_depth`: [m, n, s * t * C, D]."""
    (kh, kw, c, d), (s, t) = kernel.shape, strides
    m, n = _blocks((kh, kw), strides)
    kernel = jnp.pad(kernel, ((0, m * s - kh), (0, n * t - kw), (0, 0), (0, 0)))
    kernel = kernel.reshape(m, s, n, t, c, d).transpose(0, 2, 1, 3, 4, 5)
    return kernel.reshape(m, n, s * t * c, d)
