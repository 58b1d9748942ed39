"""Random views of a batch, in JAX, inside the jitted step.

Every choice comes from the example's own key, so it does not depend on the batch, the number of
devices or the number of hosts.
"""

import functools
import math

import jax
import jax.numpy as jnp
import ml_collections
from jax.scipy.ndimage import map_coordinates

from defect_jax.data import photometry
from defect_jax.errors import UserError

# What the fields may be at most; none may be negative.
_HIGHEST = {
    "rotation": math.inf,
    "lighting_probability": 1.0,
    "lighting_slope": math.inf,
    "lighting_bias": math.inf,
    "gamma": math.inf,
    "contrast": math.inf,
    "hue": 0.5,
    "blur": math.inf,
    "noise": math.inf,
    "jpeg": 100,
}


def augment(
    config: ml_collections.ConfigDict, image: jax.Array, mask: jax.Array, keys: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Flips, rotates, crops, lights and alters each image; its mask follows the geometry.

    Args:
        config: `config.augment`. All draws are uniform, and 0 turns off what has no other value
            for that.

            `flip_horizontal` and `flip_vertical` are booleans, each drawn with probability 1/2.
            `rotation` is the largest angle in degrees, either way. `min_crop` and `max_crop` bound
            the side of a crop as a share of the image's; both are 1 for none. The crop is brought
            to the full size; where it is larger than the image, it holds the whole image anywhere
            in it, made smaller, and around that its reflections.

            `lighting_probability`, `lighting_slope` and `lighting_bias` change x to k x + b with
            k in 1 ± slope and b in ± bias, on the scale of x. Then, in this order:

            `gamma` changes x to x^exp(u) with u in ± gamma; `contrast` changes x to m + exp(u)
            (x - m) with u in ± contrast and m the mean over all pixels and channels; `hue`, up to
            0.5, rotates the hue by ± that share of a full turn and leaves luma and grey images as
            they are; `blur` is the largest standard deviation of a Gaussian, in pixels; `noise`
            the largest standard deviation of normal noise, independent in every pixel and
            channel, on the scale of x; `jpeg` the lowest quality, 1 to 100, of a JPEG whose
            highest is 100.
        image: [B, H, W, C] float32 in [0, 1].
        mask: [B, H, W] class ids.
        keys: uint32 [B, 2], one for each example.

    Returns:
        image and mask of the same shapes and types.

    Raises:
        UserError: a field is out of its range.
    """
    _check(config)
    return jax.vmap(functools.partial(_augment_one, config))(image, mask, keys)


def _augment_one(
    config: ml_collections.ConfigDict, image: jax.Array, mask: jax.Array, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    horizontal, vertical, warp, light = jax.random.split(key, 4)
    if config.flip_horizontal:
        flip = jax.random.bernoulli(horizontal)
        image = jnp.where(flip, image[:, ::-1], image)
        mask = jnp.where(flip, mask[:, ::-1], mask)
    if config.flip_vertical:
        flip = jax.random.bernoulli(vertical)
        image = jnp.where(flip, image[::-1], image)
        mask = jnp.where(flip, mask[::-1], mask)
    crop = (config.min_crop, config.max_crop)
    if config.rotation or crop != (1, 1):
        rows, columns = _warp_coordinates(warp, image.shape, config.rotation, crop)
        sample = functools.partial(
            map_coordinates, coordinates=[rows, columns], order=1, mode="reflect"
        )
        image = jax.vmap(sample, in_axes=-1, out_axes=-1)(image)
        mask = map_coordinates(mask, [rows, columns], order=0, mode="reflect")
    if config.lighting_probability:
        image = _light(
            light, image, config.lighting_probability, config.lighting_slope, config.lighting_bias
        )
    return photometry.alter(config, image, key), mask


def _check(config: ml_collections.ConfigDict) -> None:
    for name, highest in _HIGHEST.items():
        value = getattr(config, name)
        if not (0 <= value <= highest and math.isfinite(value)):
            bounds = f"between 0 and {highest:g}" if math.isfinite(highest) else "of 0 or more"
            raise UserError(f"augment.{name} is {value}: choose a number {bounds}")
    if config.jpeg != int(config.jpeg):
        raise UserError(f"augment.jpeg is {config.jpeg}: choose a whole number, 0 for none")
    if not 0 < config.min_crop <= config.max_crop < math.inf:
        raise UserError(
            f"augment.min_crop is {config.min_crop} and augment.max_crop {config.max_crop}: choose "
            "numbers above 0, the first no more than the second"
        )


def _warp_coordinates(
    key: jax.Array, shape: tuple[int, ...], rotation: float, crop: tuple[float, float]
) -> tuple[jax.Array, jax.Array]:
    """Where each output pixel lies in the input: row and column coordinates, each [H, W].

    Before the rotation, of the crop and the image the smaller lies wholly inside the larger,
    anywhere; what comes in from outside of the image is reflected at its border.
    """
    height, width = shape[:2]
    angle_key, scale_key, row_key, column_key = jax.random.split(key, 4)
    angle = jnp.deg2rad(jax.random.uniform(angle_key, minval=-rotation, maxval=rotation))
    scale = jax.random.uniform(scale_key, minval=crop[0], maxval=crop[1])
    row_shift = (1 - scale) * height / 2 * jax.random.uniform(row_key, minval=-1, maxval=1)
    column_shift = (1 - scale) * width / 2 * jax.random.uniform(column_key, minval=-1, maxval=1)
    centre_row, centre_column = (height - 1) / 2, (width - 1) / 2
    rows, columns = jnp.meshgrid(
        jnp.arange(height) - centre_row, jnp.arange(width) - centre_column, indexing="ij"
    )
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return (
        scale * (cos * rows - sin * columns) + centre_row + row_shift,
        scale * (sin * rows + cos * columns) + centre_column + column_shift,
    )


def _light(
    key: jax.Array, image: jax.Array, probability: float, slope: float, bias: float
) -> jax.Array:
    """x -> k x + b, clipped to [0, 1]; DeeCamp's group 10 draws k in 1 ± 0.05, b in ± 10/255."""
    apply_key, slope_key, bias_key = jax.random.split(key, 3)
    k = 1 + slope * jax.random.uniform(slope_key, minval=-1, maxval=1)
    b = bias * jax.random.uniform(bias_key, minval=-1, maxval=1)
    lit = jnp.clip(k * image + b, 0.0, 1.0)
    return jnp.where(jax.random.bernoulli(apply_key, probability), lit, image)
