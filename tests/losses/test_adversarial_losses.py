"""Losses of two players against closed forms and cases worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from defect_jax.losses.adversarial import (
    discriminator_loss,
    generator_loss,
    gradient_penalty,
)
from defect_jax.losses.latent import squared_distance
from defect_jax.steps import example_keys


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    real, fake = rng.uniform(size=(2, 5, 4, 3, 2)).astype(np.float32)
    return real, fake, example_keys(jax.random.PRNGKey(0), jnp.arange(5))


def test_losses_are_cross_entropies_of_the_probability():
    real, fake = np.array([2.0, -1.0, 0.0]), np.array([-3.0, 0.5, 0.0])
    p, q = 1 / (1 + np.exp(-real)), 1 / (1 + np.exp(-fake))
    np.testing.assert_allclose(
        discriminator_loss(real, fake), -np.log(p) - np.log(1 - q), rtol=1e-5
    )
    np.testing.assert_allclose(generator_loss(fake), -np.log(q), rtol=1e-5)


def test_sure_discriminators_stay_finite_and_the_generator_still_learns():
    sure = jnp.array([-1e4, -50.0])
    np.testing.assert_allclose(generator_loss(sure), -sure, rtol=1e-6)
    np.testing.assert_allclose(jax.grad(lambda f: generator_loss(f).sum())(sure), -1, rtol=1e-6)
    np.testing.assert_allclose(discriminator_loss(sure, -sure), -2 * sure, rtol=1e-6)
    np.testing.assert_allclose(discriminator_loss(-sure, sure), 0, atol=1e-6)


def test_squared_distance_of_features_is_a_mean_over_each_example():
    real = np.zeros((2, 2, 1, 2), np.float32)
    fake = np.array([[[[1, 2]], [[0, 3]]], [[[0, 0]], [[0, -2]]]], np.float32)
    np.testing.assert_allclose(squared_distance(real, fake), [14 / 4, 1], rtol=1e-6)


@pytest.mark.parametrize("length", [0.0, 0.4, 1.0, 7.0])
def test_gradient_penalty_of_a_linear_critic(images, length):
    w = np.random.default_rng(1).normal(size=images[0].shape[1:])
    w = jnp.float32(length * w / np.linalg.norm(w))
    penalty = gradient_penalty(lambda x: jnp.sum(w * x, axis=(1, 2, 3)), *images)
    np.testing.assert_allclose(penalty, np.full(5, (length - 1) ** 2), atol=1e-5)


def test_gradient_penalty_is_taken_anywhere_between_image_and_fake():
    real, fake = np.full((2000, 2, 2, 1), 5, np.float32), np.full((2000, 2, 2, 1), 3, np.float32)
    keys = example_keys(jax.random.PRNGKey(2), jnp.arange(2000))
    penalty = gradient_penalty(lambda x: jnp.sum(x**2, axis=(1, 2, 3)), real, fake, keys)
    # The gradient of |x|^2 is 2 x, of length 4 v where all four pixels are v: its length tells
    # where the point lies, were each pixel mixed on its own it would keep near the middle.
    share = ((np.sqrt(penalty) + 1) / 4 - 3) / 2
    assert share.min() >= -1e-5 and share.max() <= 1 + 1e-5
    quantiles = np.quantile(share, [0.1, 0.25, 0.5, 0.75, 0.9])
    np.testing.assert_allclose(quantiles, [0.1, 0.25, 0.5, 0.75, 0.9], atol=0.04)


def test_gradient_penalty_depends_on_the_example_alone(images):
    def critic(x):
        return jnp.sum(jnp.sin(5 * x), axis=(1, 2, 3))

    whole = gradient_penalty(critic, *images)
    part = gradient_penalty(critic, *(field[3:4] for field in images))
    np.testing.assert_allclose(part, whole[3:4], rtol=1e-5)
    assert np.ptp(whole) > 0.01


def test_gradient_penalty_trains_a_critic_towards_slope_one(images):
    def mean_penalty(w):
        return gradient_penalty(lambda x: jnp.sum(w * x, axis=(1, 2, 3)), *images).mean()

    w = jnp.full(images[0].shape[1:], 0.5)
    length = jnp.linalg.norm(w)
    np.testing.assert_allclose(jax.grad(mean_penalty)(w), 2 * (length - 1) * w / length, rtol=1e-5)
    np.testing.assert_array_equal(jax.grad(mean_penalty)(jnp.zeros_like(w)), 0)
