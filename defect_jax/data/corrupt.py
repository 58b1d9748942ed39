"""What a restoration method is trained to undo, in JAX, inside the jitted step.

A network that must undo a corruption cannot get by with copying its input. Every random choice
comes from the example's own key, so it does not depend on the batch, the number of devices or the
number of hosts.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections

from defect_jax.errors import UserError, lookup
from defect_jax.ops.blur import gaussian_blur

# Cells of coarse noise along each side of the image, whatever its size.
_COARSE_CELLS = 16


class Views(NamedTuple):
    """Corrupted copies of images, and which of them each pixel is to be rebuilt from.

    The reconstruction of a network f is the sum over v of share_v * f(image_v).

    Attributes:
        image: [V, B, H, W, C] in [0, 1].
        share: [V, B, H, W, 1] in [0, 1], adds up to 1 over V.
    """

    image: jax.Array
    share: jax.Array


class Corruption(NamedTuple):
    """A way to corrupt images.

    Attributes:
        train: (image [B, H, W, C] in [0, 1], keys uint32 [B, 2]) -> Views. The keys are one for
            each example and serve nothing else.
        test: image [B, H, W, C] in [0, 1] -> one Views for each attempt at rebuilding it, the same
            whenever it is called; residuals are averaged over attempts.
    """

    train: Callable[[jax.Array, jax.Array], Views]
    test: Callable[[jax.Array], tuple[Views, ...]]


def make_corruption(config: ml_collections.ConfigDict) -> Corruption:
    """Builds the corruption that `config.method.corruption.name` names.

    Beside the name it reads `strength` for 'white_noise', 'salt_pepper', 'coarse_noise' and
    'blur', and `cell_sizes` and `num_parts` for 'masks'; see the functions of these names.

    Raises:
        UserError: an unknown name, or a field with a value that its corruption cannot take.
    """
    corruption = config.method.corruption
    return lookup(CORRUPTIONS, corruption.name, "method.corruption.name")(corruption)


def white_noise(strength: float, image: jax.Array, key: jax.Array) -> jax.Array:
    """Adds noise that is independent in every pixel and channel.

    Args:
        strength: standard deviation, on the scale of the image.
        image: [H, W, C] in [0, 1].
        key: uint32 [2].

    Returns:
        [H, W, C], clipped to [0, 1].
    """
    return jnp.clip(image + strength * jax.random.normal(key, image.shape), 0.0, 1.0)


def salt_pepper(strength: float, image: jax.Array, key: jax.Array) -> jax.Array:
    """Turns pixels black or white, all channels together.

    Args:
        strength: probability of a pixel to be turned, in [0, 1]; half of these become white.
        image: [H, W, C] in [0, 1].
        key: uint32 [2].

    Returns:
        [H, W, C] in [0, 1].
    """
    draw = jax.random.uniform(key, (*image.shape[:2], 1))
    image = jnp.where(draw < strength / 2, 0.0, image)
    return jnp.where(draw >= 1 - strength / 2, 1.0, image)


def coarse_noise(strength: float, image: jax.Array, key: jax.Array) -> jax.Array:
    """Adds noise that is smooth over a sixteenth of the image.

    Kascenas et al. 2022, "Denoising Autoencoders for Unsupervised Anomaly Detection in Brain MRI":
    normal noise on a grid of 16x16 cells, independent in every channel, is enlarged bilinearly and
    rolled at random along both sides. Theirs falls on the foreground only; here it falls on the
    whole image and the sum is clipped.

    Args:
        strength: standard deviation on the grid, on the scale of the image; theirs is 0.2.
        image: [H, W, C] in [0, 1].
        key: uint32 [2].

    Returns:
        [H, W, C], clipped to [0, 1].
    """
    height, width, channels = image.shape
    noise_key, row_key, column_key = jax.random.split(key, 3)
    grid = jax.random.normal(noise_key, (_COARSE_CELLS, _COARSE_CELLS, channels))
    noise = jax.image.resize(grid, image.shape, "bilinear")
    noise = jnp.roll(noise, jax.random.randint(row_key, (), 0, height), axis=0)
    noise = jnp.roll(noise, jax.random.randint(column_key, (), 0, width), axis=1)
    return jnp.clip(image + strength * noise, 0.0, 1.0)


def blur(strength: float, image: jax.Array) -> jax.Array:
    """Blurs with a Gaussian.

    Args:
        strength: standard deviation in pixels, above 0.
        image: [B, H, W, C] in [0, 1].

    Returns:
        [B, H, W, C] in [0, 1].
    """
    blurred = gaussian_blur(jnp.moveaxis(image, -1, 1), strength)
    return jnp.clip(jnp.moveaxis(blurred, 1, -1), 0.0, 1.0)  # rounding may lead out of [0, 1]


def deal_cells(
    height: int, width: int, cell_size: int, num_parts: int, key: jax.Array
) -> jax.Array:
    """Divides an image in square cells and deals these at random into parts of equal size.

    Zavrtanik et al. 2021, "Reconstruction by inpainting for visual anomaly detection" (RIAD),
    Pattern Recognition 112: a network rebuilds each part from an image in which it is black.

    Args:
        height: of the image, in pixels; cells at the far borders are cut where it is no multiple
            of their size.
        width: likewise.
        cell_size: side of a cell, in pixels.
        num_parts: into which the cells are dealt; their numbers of cells differ by one at most.
        key: uint32 [2].

    Returns:
        [H, W] int32 in [0, num_parts), the part of each pixel.

    Raises:
        UserError: the image has fewer cells than there are parts.
    """
    rows, columns = -(-height // cell_size), -(-width // cell_size)
    if rows * columns < num_parts:
        raise UserError(
            f"method.corruption.cell_sizes has {cell_size}, which divides images of "
            f"{height}x{width} in {rows * columns} cells for method.corruption.num_parts "
            f"{num_parts}: choose smaller cells"
        )
    parts = jax.random.permutation(key, rows * columns).reshape(rows, columns) % num_parts
    parts = jnp.repeat(jnp.repeat(parts, cell_size, axis=0), cell_size, axis=1)
    return parts[:height, :width]


def _deal_any(
    cell_sizes: tuple[int, ...], num_parts: int, height: int, width: int, key: jax.Array
) -> jax.Array:
    """As `deal_cells`, with a cell size drawn from those given."""
    size_key, deal_key = jax.random.split(key)
    deals = [deal_cells(height, width, size, num_parts, deal_key) for size in cell_sizes]
    return jnp.stack(deals)[jax.random.randint(size_key, (), 0, len(cell_sizes))]


def _whole(image: jax.Array) -> Views:
    """One view that every pixel is rebuilt from."""
    return Views(image[None], jnp.ones((1, *image.shape[:3], 1), image.dtype))


def _hide(image: jax.Array, parts: jax.Array, num_parts: int) -> Views:
    """One view for each part, black there; parts [B, H, W] or [H, W], the same in all images."""
    parts = jnp.broadcast_to(parts, image.shape[:3])
    share = jax.nn.one_hot(parts, num_parts, dtype=image.dtype, axis=0)[..., None]
    return Views(image * (1 - share), share)


def _train_noise(noise: Callable, strength: float, image: jax.Array, keys: jax.Array) -> Views:
    return _whole(jax.vmap(functools.partial(noise, strength))(image, keys))


def _train_masks(
    cell_sizes: tuple[int, ...], num_parts: int, image: jax.Array, keys: jax.Array
) -> Views:
    height, width = image.shape[1:3]
    deal = functools.partial(_deal_any, cell_sizes, num_parts, height, width)
    return _hide(image, jax.vmap(deal)(keys), num_parts)


def _test_clean(image: jax.Array) -> tuple[Views, ...]:
    return (_whole(image),)


def _test_masks(cell_sizes: tuple[int, ...], num_parts: int, image: jax.Array) -> tuple[Views, ...]:
    height, width = image.shape[1:3]
    key = jax.random.PRNGKey(0)  # one for all images: a score depends on the image alone
    return tuple(
        _hide(image, deal_cells(height, width, size, num_parts, key), num_parts)
        for size in cell_sizes
    )


def _make_none(config: ml_collections.ConfigDict) -> Corruption:
    del config
    return Corruption(train=lambda image, keys: _whole(image), test=_test_clean)


def _make_noise(noise: Callable, highest: float, config: ml_collections.ConfigDict) -> Corruption:
    strength = config.strength
    if not (0 <= strength <= highest and math.isfinite(strength)):
        bounds = f"between 0 and {highest:g}" if math.isfinite(highest) else "of 0 or more"
        raise UserError(f"method.corruption.strength is {strength}: choose a number {bounds}")
    return Corruption(functools.partial(_train_noise, noise, strength), _test_clean)


def _make_blur(config: ml_collections.ConfigDict) -> Corruption:
    strength = config.strength
    if not 0 < strength < math.inf:
        raise UserError(
            f"method.corruption.strength is {strength}: choose a blur of more than 0 pixels"
        )
    return Corruption(
        train=lambda image, keys: _whole(blur(strength, image)),
        test=lambda image: (_whole(blur(strength, image)),),
    )


def _make_masks(config: ml_collections.ConfigDict) -> Corruption:
    cell_sizes = tuple(config.cell_sizes)
    num_parts = config.num_parts
    if not cell_sizes or min(cell_sizes) < 1:
        raise UserError(
            f"method.corruption.cell_sizes is {cell_sizes}: choose one size or more, each of at "
            "least 1 pixel"
        )
    if num_parts < 2:
        raise UserError(f"method.corruption.num_parts is {num_parts}: choose 2 or more")
    return Corruption(
        train=functools.partial(_train_masks, cell_sizes, num_parts),
        test=functools.partial(_test_masks, cell_sizes, num_parts),
    )


CORRUPTIONS = {
    "none": _make_none,
    "white_noise": functools.partial(_make_noise, white_noise, math.inf),
    "salt_pepper": functools.partial(_make_noise, salt_pepper, 1.0),
    "coarse_noise": functools.partial(_make_noise, coarse_noise, math.inf),
    "blur": _make_blur,
    "masks": _make_masks,
}
