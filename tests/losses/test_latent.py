"""Losses on codes against closed forms, integrals and samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from defect_jax.losses.latent import (
    consistency,
    kl_divergence,
    reparameterize,
    squared_distance,
)
from defect_jax.steps import example_keys


@pytest.fixture(scope="module")
def code():
    rng = np.random.default_rng(0)
    mean, log_variance = rng.normal(size=(2, 4, 3, 2, 5)).astype(np.float32)
    return mean, log_variance


def slow_kl(mean, log_variance):
    """KL divergence of one number's distribution from N(0, 1), by numerical integration."""
    p, q = norm(mean, np.exp(log_variance / 2)), norm(0, 1)
    reach = 10 * p.std()
    return quad(lambda z: p.pdf(z) * (p.logpdf(z) - q.logpdf(z)), mean - reach, mean + reach)[0]


def test_kl_divergence_is_the_integral_summed_over_the_code(code):
    mean, log_variance = (np.float64(part[:2, :2]) for part in code)
    expected = np.vectorize(slow_kl)(mean, log_variance).sum((1, 2, 3))
    np.testing.assert_allclose(kl_divergence(mean, log_variance), expected, rtol=1e-5)


def test_kl_divergence_of_the_prior_is_zero_and_the_least():
    zero = jnp.zeros((1, 2, 2, 3))
    assert kl_divergence(zero, zero) == 0
    for gradient in jax.grad(lambda *code: kl_divergence(*code)[0], argnums=(0, 1))(zero, zero):
        np.testing.assert_array_equal(gradient, zero)
    # Near the prior KL is v^2 / 4 for each number, far below what float32 resolves next to 1.
    np.testing.assert_allclose(kl_divergence(zero, zero + 1e-3), [12 * 1e-6 / 4], rtol=1e-2)


def test_samples_have_the_mean_and_the_variance(code):
    mean, log_variance = (part[0] for part in code)
    keys = example_keys(jax.random.PRNGKey(0), jnp.arange(20000))
    shape = (len(keys), *mean.shape)
    z = np.asarray(
        reparameterize(jnp.broadcast_to(mean, shape), jnp.broadcast_to(log_variance, shape), keys)
    )
    deviation = np.exp(log_variance / 2)
    np.testing.assert_array_less(np.abs(z.mean(0) - mean), 5 * deviation / np.sqrt(len(keys)))
    np.testing.assert_allclose(z.std(0), deviation, rtol=0.03)
    noise = ((z - mean) / deviation).reshape(len(keys), -1)
    correlation = np.corrcoef(noise.T) - np.eye(noise.shape[1])
    assert np.abs(correlation).max() < 0.04  # the numbers of a code are drawn one by one


def test_a_sample_depends_on_its_own_key_alone(code):
    keys = example_keys(jax.random.PRNGKey(1), jnp.arange(4))
    whole = reparameterize(*code, keys)
    part = reparameterize(*(field[2:3] for field in code), keys[2:3])
    np.testing.assert_allclose(part, whole[2:3], rtol=1e-6)
    same = reparameterize(*(np.repeat(field[:1], 4, 0) for field in code), keys)
    assert np.abs(np.diff(same, axis=0)).max(axis=(1, 2, 3)).min() > 0.1


def test_gradients_go_through_the_sample(code):
    keys = example_keys(jax.random.PRNGKey(2), jnp.arange(4))
    mean, log_variance = code
    z = reparameterize(mean, log_variance, keys)
    to_mean, to_log_variance = jax.grad(
        lambda *code: reparameterize(*code, keys).sum(), argnums=(0, 1)
    )(mean, log_variance)
    np.testing.assert_array_equal(to_mean, np.ones_like(mean))
    np.testing.assert_allclose(to_log_variance, (z - mean) / 2, atol=1e-5)


def test_squared_distance_is_a_mean_over_each_code():
    z = np.zeros((2, 1, 2, 2), np.float32)
    w = np.array([[[[1, 2], [0, 3]]], [[[0, 0], [0, -2]]]], np.float32)
    np.testing.assert_allclose(squared_distance(z, w), [14 / 4, 1], rtol=1e-6)


def test_consistency_weighs_codes_against_pixels_as_sums_do():
    rng = np.random.default_rng(0)
    image, rebuilt = rng.uniform(size=(2, 3, 8, 8, 3)).astype(np.float32)
    code, again = rng.normal(size=(2, 3, 2, 1, 5)).astype(np.float32)
    share = 0.3
    sums = (1 - share) * ((image - rebuilt) ** 2).sum((1, 2, 3))
    sums += share * ((code - again) ** 2).sum((1, 2, 3))
    means = (1 - share) * ((image - rebuilt) ** 2).mean((1, 2, 3))
    means += share * consistency(code, again, image)
    np.testing.assert_allclose(means * 8 * 8 * 3, sums, rtol=1e-5)
