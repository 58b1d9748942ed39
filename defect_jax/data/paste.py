"""Copy-paste of defects onto good crops, in JAX, inside the jitted step."""

import functools

import jax
import jax.numpy as jnp
import ml_collections

from defect_jax.method import to_float
from defect_jax.ops.blur import gaussian_blur
from defect_jax.ops.poisson import blend

# How softly a pasted defect ends, in pixels: twice as many from a straight outline a tenth of it is
# left, and beyond four times as many nothing.
_FEATHER = 4.0


def paste(
    config: ml_collections.ConfigDict,
    image: jax.Array,
    mask: jax.Array,
    donors: dict[str, jax.Array],
    keys: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Blends a patch with a defect into crops that have none.

    After Dwibedi et al. 2017, "Cut, Paste and Learn", https://arxiv.org/abs/1708.01642: the patch
    is flipped at random and blended by Poisson's equation (see `ops/poisson.py`), at a random
    place. What lies further than some pixels from the defect stays the crop's, so that a patch of
    another surface leaves no rectangle.

    Args:
        config: `config.augment`; `paste_probability` is that of a paste onto a crop without
            defects, 0 for none.
        image: [B, H, W, C] float32 in [0, 1].
        mask: [B, H, W] uint8 class ids.
        donors: of a batch of crops: `donor_image` uint8 [B, p, p, C] and `donor_mask` uint8
            [B, p, p], without a defect on the border.
        keys: uint32 [B, 2], one for each example.

    Returns:
        image and mask of the same shapes and types.
    """
    if not config.paste_probability:
        return image, mask
    one = functools.partial(_paste_one, config.paste_probability)
    return jax.vmap(one)(image, mask, donors["donor_image"], donors["donor_mask"], keys)


def _paste_one(
    probability: float,
    image: jax.Array,
    mask: jax.Array,
    donor_image: jax.Array,
    donor_mask: jax.Array,
    key: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    draw, place, *flips = jax.random.split(key, 4)
    donor = to_float(donor_image)
    for axis, flip in enumerate(flips):
        turned = jax.random.bernoulli(flip)
        donor = jnp.where(turned, jnp.flip(donor, axis), donor)
        donor_mask = jnp.where(turned, jnp.flip(donor_mask, axis), donor_mask)
    side = donor_mask.shape[0]
    room = jnp.array(mask.shape) - side
    top, left = jax.random.randint(place, (2,), 0, room + 1)
    patch = jax.lax.dynamic_slice(image, (top, left, 0), donor.shape)
    defect = (donor_mask > 0).astype(jnp.float32)
    around = jnp.minimum(1.0, 4.0 * gaussian_blur(defect, _FEATHER))
    weight = jnp.maximum(defect, around)[..., None]
    blended = patch + weight * (jnp.clip(blend(patch, donor), 0.0, 1.0) - patch)
    pasted = jax.lax.dynamic_update_slice(image, blended, (top, left, 0))
    with_defect = jax.lax.dynamic_update_slice(mask, donor_mask, (top, left))
    chosen = jax.random.bernoulli(draw, probability) & ~mask.any()
    return jnp.where(chosen, pasted, image), jnp.where(chosen, with_defect, mask)
