"""Losses between class logits and a mask of class ids."""

import jax
import jax.numpy as jnp
import optax

from defect_jax.devices import AXIS
from defect_jax.ops.blur import gaussian_blur

# Abraham and Khan 2019: what a missed pixel weighs (a false one weighs the rest), and the exponent.
_MISSED_WEIGHT, _FOCUS = 0.7, 0.75
# How much more a pixel on a straight outline weighs than one far from any, and how far it reaches.
_OUTLINE_WEIGHT, _OUTLINE_PIXELS = 10.0, 5.0


def cross_entropy(logits: jax.Array, mask: jax.Array) -> jax.Array:
    """Cross-entropy, averaged over the pixels of each image.

    Args:
        logits: [B, H, W, K] float32.
        mask: [B, H, W] class ids in [0, K).

    Returns:
        [B], nats a pixel.
    """
    return jnp.mean(_pixel_cross_entropy(logits, mask), axis=(1, 2))


def outline_cross_entropy(logits: jax.Array, mask: jax.Array) -> jax.Array:
    """Cross-entropy that weighs pixels near the outline of a defect about eleven times.

    After the weight map of Ronneberger et al. 2015, equation 2, which falls off with the distance
    from the outline; here it is twice the difference of the foreground and its Gaussian blur. That
    is 1 at a straight outline, less outside of corners and of what is smaller than the blur, and
    more inside of it, up to 2.

    Args:
        logits: [B, H, W, K] float32, class 0 the background.
        mask: [B, H, W] class ids in [0, K).

    Returns:
        [B], nats a pixel, averaged by weight.
    """
    foreground = (mask > 0).astype(logits.dtype)
    nearness = 2.0 * jnp.abs(foreground - gaussian_blur(foreground, _OUTLINE_PIXELS))
    weight = 1.0 + _OUTLINE_WEIGHT * nearness
    losses = weight * _pixel_cross_entropy(logits, mask)
    return jnp.sum(losses, axis=(1, 2)) / jnp.sum(weight, axis=(1, 2))


def dice(logits: jax.Array, mask: jax.Array) -> jax.Array:
    """1 - soft Dice (Milletari et al. 2016), averaged over the foreground classes of each image.

    One pixel is added to numerator and denominator, so a class that is neither there nor
    predicted costs nothing.

    Args:
        logits: [B, H, W, K] float32, class 0 the background.
        mask: [B, H, W] class ids in [0, K).

    Returns:
        [B], in [0, 1].
    """
    truth, probability = _foreground(logits, mask)
    overlap, total = _sums(truth * probability), _sums(truth + probability)
    return jnp.mean(1.0 - (2.0 * overlap + 1.0) / (total + 1.0), axis=-1)


def batch_dice(logits: jax.Array, mask: jax.Array) -> jax.Array:
    """1 - soft Dice of the pixels of the whole global batch, averaged over the foreground classes.

    Where most images have few defects or none, Dice by image is 0 or 1 by a handful of pixels; of
    a batch it is steady. Runs under the mapped axis of `train`, over all of whose devices it sums.

    Args:
        logits: [B, H, W, K] float32, class 0 the background.
        mask: [B, H, W] class ids in [0, K).

    Returns:
        [B], in [0, 1], the same number for every image.
    """
    truth, probability = _foreground(logits, mask)
    sums = jnp.stack([_sums(truth * probability), _sums(truth + probability)])
    overlap, total = jax.lax.psum(jnp.sum(sums, axis=1), AXIS)
    loss = jnp.mean(1.0 - (2.0 * overlap + 1.0) / (total + 1.0))
    return jnp.full(len(logits), loss)


def focal_tversky(logits: jax.Array, mask: jax.Array) -> jax.Array:
    """(1 - Tversky index)^0.75, averaged over the foreground classes of each image.

    The index counts missed pixels 0.7 and false ones 0.3, so that small defects are not given up.
    Abraham and Khan 2019, https://arxiv.org/abs/1810.07842, equation 4 with gamma 4/3.

    Args:
        logits: [B, H, W, K] float32, class 0 the background.
        mask: [B, H, W] class ids in [0, K).

    Returns:
        [B], in [0, 1].
    """
    truth, probability = _foreground(logits, mask)
    overlap = _sums(truth * probability)
    missed, wrong = _sums(truth) - overlap, _sums(probability) - overlap
    errors = _MISSED_WEIGHT * missed + (1 - _MISSED_WEIGHT) * wrong
    # As a share of errors, which is the complement of the index, so that it is exact near 0; below
    # the smallest number that matters, the root would have no finite slope.
    share = errors / (overlap + errors + 1.0)
    return jnp.mean(jnp.maximum(share, 1e-6) ** _FOCUS, axis=-1)


def _pixel_cross_entropy(logits: jax.Array, mask: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, mask.astype(jnp.int32))


def _foreground(logits: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Truth and probability of the classes but the background, each [B, H, W, K - 1]."""
    truth = jax.nn.one_hot(mask, logits.shape[-1], dtype=logits.dtype)
    return truth[..., 1:], jax.nn.softmax(logits)[..., 1:]


def _sums(values: jax.Array) -> jax.Array:
    return jnp.sum(values, axis=(1, 2))


SEGMENTATION_LOSSES = {
    "cross_entropy": cross_entropy,
    "outline_cross_entropy": outline_cross_entropy,
    "dice": dice,
    "batch_dice": batch_dice,
    "focal_tversky": focal_tversky,
}
