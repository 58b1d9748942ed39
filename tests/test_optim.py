"""Schedules and the optimizer chain."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import default
from defect_jax import optim
from defect_jax.errors import UserError


@pytest.fixture
def config():
    return default.get_config().optimizer


def rates(config, num_steps):
    schedule = optim.make_schedule(config, num_steps)
    return np.array([schedule(step) for step in range(num_steps)])


def test_constant_after_a_linear_warmup(config):
    config.update(schedule="constant", learning_rate=0.4, warmup_steps=4)
    np.testing.assert_allclose(rates(config, 8), [0, 0.1, 0.2, 0.3, 0.4, 0.4, 0.4, 0.4], rtol=1e-6)


def test_step_decays_at_fractions_of_what_follows_the_warmup(config):
    config.update(schedule="step", learning_rate=1.0, warmup_steps=2)
    config.milestones, config.decay_factor = (0.5, 0.75), 0.1
    np.testing.assert_allclose(
        rates(config, 10), [0, 0.5, 1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01], rtol=1e-5
    )


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("milestones", (0.5, 1.5), r"milestones is \(0.5, 1.5\): name fractions"),
        ("milestones", (0.8, 0.5), r"milestones is \(0.8, 0.5\): .* in rising order"),
        ("milestones", ("half",), r"milestones is \('half',\)"),
        ("decay_factor", -1.0, "decay_factor is -1.0: it must be from 0 to 1"),
    ],
)
def test_steps_that_cannot_be_are_told(config, field, value, message):
    config.update(schedule="cosine", warmup_steps=0)
    config[field] = value
    rates(config, 10)  # which has no use for it
    config.schedule = "step"
    with pytest.raises(UserError, match=f"optimizer.{message}"):
        rates(config, 10)


def test_cosine_falls_to_zero(config):
    config.update(schedule="cosine", learning_rate=2.0, warmup_steps=0)
    expected = 1 + np.cos(np.pi * np.arange(10) / 10)
    np.testing.assert_allclose(rates(config, 10), expected, rtol=1e-5)


def test_clipping_bounds_the_step(config):
    config.update(name="sgd", schedule="constant", learning_rate=1.0, clip_norm=0.5, b1=0.0)
    tx = optim.make_optimizer(config, 10)
    params = {"w": jnp.ones((2, 2))}
    updates, _ = tx.update({"w": jnp.full((2, 2), 100.0)}, tx.init(params), params)
    np.testing.assert_allclose(optax.tree.norm(updates), 0.5, rtol=1e-5)


def test_weight_decay_is_decoupled_and_spares_vectors(config):
    config.update(schedule="constant", learning_rate=0.1, weight_decay=0.5)
    tx = optim.make_optimizer(config, 10)
    params = {"kernel": jnp.full((2, 2), 4.0), "bias": jnp.full((2,), 4.0)}
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -0.1 * 0.5 * 4.0)
    np.testing.assert_allclose(updates["bias"], 0.0)


def test_muon_steps_are_near_orthogonal_for_kernels_and_nadams_for_vectors(config):
    rng = np.random.default_rng(0)
    sizes = {"kernel": (3, 3, 4, 8), "wide": (5, 20), "bias": (8,)}
    gradients = [{name: rng.normal(size=size) for name, size in sizes.items()} for _ in range(3)]
    config.update(name="muon", schedule="constant", learning_rate=0.1)
    muon, nadam = optim.make_optimizer(config, 3), optax.nadam(0.1)
    params = {name: jnp.zeros(size) for name, size in sizes.items()}
    muon_state, nadam_state = muon.init(params), nadam.init(params)
    for gradient in gradients:
        step, muon_state = muon.update(gradient, muon_state, params)
        expected, nadam_state = nadam.update(gradient, nadam_state, params)
    np.testing.assert_allclose(step["bias"], expected["bias"], rtol=1e-5)
    for name, (rows, columns) in {"kernel": (36, 8), "wide": (5, 20)}.items():
        matrix = np.asarray(step[name]).reshape(rows, columns)
        # Of an orthogonal matrix with a root mean square of 0.2 all singular values are this.
        ideal = 0.1 * 0.2 * np.sqrt(max(rows, columns))
        values = np.linalg.svd(matrix, compute_uv=False) / ideal
        assert values.min() > 0.5
        assert values.max() < 1.3
        momentum = sum(0.95**-n * gradient[name] for n, gradient in enumerate(gradients))
        assert (matrix * momentum.reshape(rows, columns)).sum() < 0  # downhill


def test_reported_rate_is_the_rate_of_the_update(config):
    config.update(name="sgd", schedule="cosine", learning_rate=1.0, b1=0.0)
    tx = optim.make_optimizer(config, 4)
    params = {"w": jnp.zeros((1, 1))}
    opt_state = tx.init(params)
    for expected in rates(config, 4):
        updates, opt_state = tx.update({"w": jnp.ones((1, 1))}, opt_state, params)
        np.testing.assert_allclose(optim.learning_rate(opt_state), expected, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(updates["w"], -expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("name", "adamax", "unknown optimizer.name 'adamax': choose one of adam, muon, sgd"),
        ("schedule", "linear", "unknown optimizer.schedule 'linear': choose one of constant"),
        ("warmup_steps", 11, "optimizer.warmup_steps is 11"),
        ("learning_rate", -1.0, "optimizer.learning_rate is -1.0: it must be at least 0"),
        ("b1", 1.5, "optimizer.b1 is 1.5: it must be from 0 to 1"),
    ],
)
def test_bad_fields_are_named(config, field, value, message):
    config[field] = value
    with pytest.raises(UserError, match=message):
        optim.make_optimizer(config, 10)
