"""Losses of two players: a discriminator that tells real from fake, a generator that fools it."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax


def discriminator_loss(real: jax.Array, fake: jax.Array) -> jax.Array:
    """Cross-entropy of telling real from fake images.

    Goodfellow et al. 2014, "Generative Adversarial Nets", equation 1, negated.

    Args:
        real: [B], log-odds of being real that the discriminator gives to real images.
        fake: [B], those that it gives to fakes.

    Returns:
        [B], nats, above 0.
    """
    return jax.nn.softplus(-real) + jax.nn.softplus(fake)


def generator_loss(fake: jax.Array) -> jax.Array:
    """-log of the probability that a fake is held to be real: the non-saturating loss.

    Goodfellow et al. 2014, "Generative Adversarial Nets", section 3.

    Args:
        fake: [B], log-odds of being real that the discriminator gives to fakes.

    Returns:
        [B], nats, above 0.
    """
    return jax.nn.softplus(-fake)


def gradient_penalty(
    critic: Callable[[jax.Array], jax.Array], real: jax.Array, fake: jax.Array, keys: jax.Array
) -> jax.Array:
    """(|gradient of the critic| - 1)^2 at a random point between each image and its fake.

    Gulrajani et al. 2017, "Improved Training of Wasserstein GANs", https://arxiv.org/abs/1704.00028,
    equation 3, without its weight.

    Args:
        critic: [B, ...] -> [B]; each value depends on its own example alone, so no statistics of
            the batch inside.
        real: [B, ...].
        fake: [B, ...].
        keys: uint32 [B, 2], one for each example.

    Returns:
        [B], at least 0. Where the critic is flat its own gradient is 0, not NaN.
    """
    share = jax.vmap(jax.random.uniform)(keys).reshape(-1, *[1] * (real.ndim - 1))
    points = share * real + (1 - share) * fake
    # Examples do not mix, so the gradient of the sum holds each one's own.
    gradient = jax.grad(lambda points: jnp.sum(critic(points)))(points)
    return (optax.safe_norm(gradient.reshape(len(real), -1), 0.0, axis=1) - 1) ** 2
