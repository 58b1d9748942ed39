"""Losses on codes, the maps [B, h, w, D] between encoder and decoder, and on other features."""

import jax
import jax.numpy as jnp


def reparameterize(mean: jax.Array, log_variance: jax.Array, keys: jax.Array) -> jax.Array:
    """Draws codes from N(mean, exp(log_variance)), differentiable in both.

    Kingma & Welling 2014, "Auto-Encoding Variational Bayes", section 2.4.

    Args:
        mean: [B, h, w, D].
        log_variance: [B, h, w, D], natural logarithm.
        keys: uint32 [B, 2], one for each example.

    Returns:
        [B, h, w, D].
    """
    noise = jax.vmap(lambda key: jax.random.normal(key, mean.shape[1:], mean.dtype))(keys)
    return mean + jnp.exp(0.5 * log_variance) * noise


def kl_divergence(mean: jax.Array, log_variance: jax.Array) -> jax.Array:
    """KL divergence of N(mean, exp(log_variance)) from N(0, I).

    Kingma & Welling 2014, "Auto-Encoding Variational Bayes", appendix B.

    Args:
        mean: [B, h, w, D].
        log_variance: [B, h, w, D], natural logarithm.

    Returns:
        [B], nats, at least 0, summed over all dimensions of a code.
    """
    # expm1 keeps the digits that exp(v) - 1 - v loses near v = 0.
    terms = mean**2 + jnp.expm1(log_variance) - log_variance
    return 0.5 * jnp.sum(terms, axis=range(1, mean.ndim))


def squared_distance(z: jax.Array, w: jax.Array) -> jax.Array:
    """(z - w)^2, averaged over all numbers of a code, or of a discriminator's features.

    The latter is feature matching (Salimans et al. 2016, "Improved Techniques for Training GANs",
    section 3.1), between each image and its own fake rather than between means over a batch.

    Args:
        z: [B, ...].
        w: [B, ...].

    Returns:
        [B], at least 0.
    """
    return jnp.mean((z - w) ** 2, axis=range(1, z.ndim))


def consistency(code: jax.Array, again: jax.Array, image: jax.Array) -> jax.Array:
    """Squared distance of two codes, summed, for each value of the image.

    It weighs against the mean squared error of the pixels as the sum of the one weighs against the
    sum of the other, as in https://github.com/VectorInstitute/Computer_Vision_Project
    (image/Defect Detection/ConstrainedAEs); a mean over so few numbers would drown the pixels.

    Args:
        code: [B, h, w, D], of an image.
        again: [B, h, w, D], of its reconstruction.
        image: [B, H, W, C], whose size alone matters.

    Returns:
        [B], at least 0.
    """
    return squared_distance(code, again) * (code[0].size / image[0].size)
