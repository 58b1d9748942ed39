"""Copy-paste of defects onto crops, in JAX, inside the jitted step."""

import jax
import jax.numpy as jnp

from defect_jax.method import to_float
from defect_jax.ops.blur import gaussian_blur
from defect_jax.ops.poisson import blend

# How softly a pasted defect ends, in pixels: twice as many from a straight outline a tenth of it is
# left, and beyond four times as many nothing.
_FEATHER = 4.0


def paste(
    image: jax.Array, mask: jax.Array, donors: dict[str, jax.Array], keys: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Blends patches with a defect into crops.

    After Dwibedi et al. 2017, "Cut, Paste and Learn", https://arxiv.org/abs/1708.01642: the patch
    is flipped at random and blended by Poisson's equation (see `ops/poisson.py`). What lies further
    than some pixels from the defect stays the crop's, so that a patch of another surface leaves no
    rectangle. A patch that would touch a defect of the crop is not pasted.

    Args:
        image: [B, H, W, C] float32 in [0, 1].
        mask: [B, H, W] uint8 class ids.
        donors: of a batch of crops, as `crops.train_crops` gives them: `donor_image` uint8
            [B, p, p, C], `donor_mask` uint8 [B, p, p], without a defect on the border, or none at
            all where nothing is pasted, and `donor_corner` int32 [B, 2], where in the crop the
            patch begins. A batch without these stays as it is.
        keys: uint32 [B, 2], one for each example.

    Returns:
        image and mask of the same shapes and types.
    """
    if "donor_image" not in donors:
        return image, mask
    return jax.vmap(_paste_one)(
        image, mask, donors["donor_image"], donors["donor_mask"], donors["donor_corner"], keys
    )


def _paste_one(
    image: jax.Array,
    mask: jax.Array,
    donor_image: jax.Array,
    donor_mask: jax.Array,
    corner: jax.Array,
    key: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    donor = to_float(donor_image)
    for axis, flip in enumerate(jax.random.split(key)):
        turned = jax.random.bernoulli(flip)
        donor = jnp.where(turned, jnp.flip(donor, axis), donor)
        donor_mask = jnp.where(turned, jnp.flip(donor_mask, axis), donor_mask)
    top, left = corner
    patch = jax.lax.dynamic_slice(image, (top, left, 0), donor.shape)
    free = ~jax.lax.dynamic_slice(mask, (top, left), donor_mask.shape).any()
    defect = (donor_mask > 0).astype(jnp.float32)
    around = jnp.minimum(1.0, 4.0 * gaussian_blur(defect, _FEATHER))
    weight = jnp.maximum(defect, around)[..., None]
    blended = patch + weight * (jnp.clip(blend(patch, donor), 0.0, 1.0) - patch)
    pasted = jax.lax.dynamic_update_slice(image, blended, (top, left, 0))
    with_defect = jax.lax.dynamic_update_slice(mask, donor_mask, (top, left))
    return jnp.where(free, pasted, image), jnp.where(free, with_defect, mask)
