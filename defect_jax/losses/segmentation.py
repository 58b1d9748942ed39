"""Losses between class logits and a mask of class ids."""

import jax
import jax.numpy as jnp
import optax


def cross_entropy(logits: jax.Array, mask: jax.Array) -> jax.Array:
    """Cross-entropy, averaged over the pixels of each image.

    Args:
        logits: [B, H, W, K] float32.
        mask: [B, H, W] class ids in [0, K).

    Returns:
        [B], nats a pixel.
    """
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, mask.astype(jnp.int32))
    return jnp.mean(losses, axis=(1, 2))


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
    truth = jax.nn.one_hot(mask, logits.shape[-1], dtype=logits.dtype)[..., 1:]
    probability = jax.nn.softmax(logits)[..., 1:]
    overlap = jnp.sum(truth * probability, axis=(1, 2))
    total = jnp.sum(truth + probability, axis=(1, 2))
    return jnp.mean(1.0 - (2.0 * overlap + 1.0) / (total + 1.0), axis=-1)


SEGMENTATION_LOSSES = {"cross_entropy": cross_entropy, "dice": dice}
