"""The three step builders on problems that can be solved by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from defect_jax import optim, steps
from defect_jax.method import State


def run_step(step, state, batch):
    """One step on one device."""
    batch = {name: jnp.asarray(values)[None] for name, values in batch.items()}
    mapped = jax.pmap(
        step, "batch", in_axes=(None, 0), out_axes=None, devices=jax.local_devices()[:1]
    )
    return mapped(state, batch)


def make_state(params, opt_state=(), memory=()):
    zero = jnp.zeros((), jnp.int32)
    return State(zero, jax.random.PRNGKey(0), params, {}, opt_state, memory)


def make_batch(x, y, weight):
    index = np.arange(len(x), dtype=np.int32)
    return {"x": np.float32(x), "y": np.float32(y), "weight": np.float32(weight), "index": index}


@functools.cache
def sgd():
    return optax.inject_hyperparams(optax.sgd)(learning_rate=0.1)


def regression_loss(params, state, batch, keys):
    error = params["w"] * batch["x"] - batch["y"]
    return error**2, steps.Aux({}, {"absolute": jnp.abs(error)})


def test_gradient_step_descends_the_weighted_mean():
    params = {"w": jnp.float32(2.0)}
    state = make_state(params, sgd().init(params))
    batch = make_batch([1, 2, 3, 100], [1, 1, 1, 100], [1, 1, 1, 0])
    state, metrics = run_step(steps.gradient_step(regression_loss, sgd(), 1), state, batch)
    errors = 2.0 * np.array([1, 2, 3]) - 1
    gradient = np.mean(2 * errors * np.array([1, 2, 3]))
    np.testing.assert_allclose(metrics["loss"], np.mean(errors**2), rtol=1e-6)
    np.testing.assert_allclose(metrics["absolute"], np.mean(errors), rtol=1e-6)
    np.testing.assert_allclose(metrics["gradient_norm"], gradient, rtol=1e-6)
    np.testing.assert_allclose(state.params["w"], 2 - 0.1 * gradient, rtol=1e-6)
    np.testing.assert_allclose(metrics["learning_rate"], 0.1)
    assert state.step == 1


def run_steps(step, state, batches):
    for batch in batches:
        state, metrics = run_step(step, state, batch)
    return state, metrics


BATCHES = [
    make_batch([1, 2, 3, 100, 5, 6], [1, 1, 1, 100, 2, 7], weight)
    for weight in (
        [1, 1, 1, 0, 1, 1],
        [1, 1, 1, 1, 0, 0],
    )  # whose last part of three weighs nothing
]


@pytest.mark.parametrize("parts", [2, 3, 6])
def test_a_step_in_parts_is_that_of_the_whole_batch(parts):
    params = {"w": jnp.float32(0.1)}
    tx = optax.inject_hyperparams(optax.sgd)(learning_rate=1e-4)
    state = make_state(params, tx.init(params))
    whole = run_steps(steps.gradient_step(regression_loss, tx, 1), state, BATCHES)
    split = run_steps(steps.gradient_step(regression_loss, tx, parts), state, BATCHES)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), split, whole)
    assert abs(whole[0].params["w"] - 0.1) > 0.01


def counting_loss(params, state, batch, keys):
    """Batch statistics that tell the order of what they saw."""
    seen = 10 * state.batch_stats["seen"] + batch["x"][0]
    return params["w"] * batch["x"], steps.Aux({"seen": seen}, {})


def test_batch_statistics_go_through_the_parts_one_after_another():
    params = {"w": jnp.float32(1)}
    state = make_state(params, sgd().init(params)).replace(batch_stats={"seen": jnp.float32(0)})
    batch = make_batch([1, 9, 2, 9, 3, 9], [0] * 6, [1] * 6)
    state, _ = run_step(steps.gradient_step(counting_loss, sgd(), 3), state, batch)
    assert state.batch_stats["seen"] == 123


def test_one_part_needs_no_loop():
    params = {"w": jnp.float32(1)}
    state = make_state(params, sgd().init(params))
    for parts, loops in ((1, False), (2, True)):
        step = steps.gradient_step(regression_loss, sgd(), parts)
        traced = jax.make_jaxpr(step, axis_env=[("batch", 1)])(state, BATCHES[0])
        assert ("scan" in str(traced)) == loops


def game_losses(params, state, batch, keys):
    """The generator wants g d small, the discriminator wants it large: a bilinear game."""
    product = params["generator"]["g"] * params["discriminator"]["d"] * batch["x"]
    return {"generator": product, "discriminator": -product}, steps.Aux({}, {})


def test_adversarial_step_moves_each_player_down_its_own_loss():
    params = {"generator": {"g": jnp.float32(3.0)}, "discriminator": {"d": jnp.float32(5.0)}}
    txs = {name: sgd() for name in params}
    state = make_state(params, {name: sgd().init(params[name]) for name in params})
    batch = make_batch([1, 3, 9], [0, 0, 0], [1, 1, 0])  # the mean of x is 2
    state, metrics = run_step(steps.adversarial_step(game_losses, txs, 1), state, batch)
    np.testing.assert_allclose(state.params["generator"]["g"], 3 - 0.1 * 2 * 5, rtol=1e-6)
    np.testing.assert_allclose(state.params["discriminator"]["d"], 5 + 0.1 * 2 * 3, rtol=1e-6)
    np.testing.assert_allclose(metrics["generator_loss"], 30, rtol=1e-6)
    np.testing.assert_allclose(metrics["discriminator_loss"], -30, rtol=1e-6)


@pytest.mark.parametrize("parts", [2, 3])
def test_an_adversarial_step_in_parts_is_that_of_the_whole_batch(parts):
    params = {"generator": {"g": jnp.float32(3.0)}, "discriminator": {"d": jnp.float32(5.0)}}
    tx = optax.inject_hyperparams(optax.sgd)(learning_rate=1e-3)
    txs = {name: tx for name in params}
    state = make_state(params, {name: tx.init(params[name]) for name in params})
    whole = run_steps(steps.adversarial_step(game_losses, txs, 1), state, BATCHES)
    split = run_steps(steps.adversarial_step(game_losses, txs, parts), state, BATCHES)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), split, whole)


def test_accumulate_step_adds_up_over_batches_and_leaves_parameters():
    def update(memory, state, batch):
        return {"sum": jnp.sum(batch["weight"] * batch["x"]), "count": jnp.sum(batch["weight"])}

    state = make_state({"w": jnp.float32(1)}, memory={"sum": jnp.zeros(()), "count": jnp.zeros(())})
    step = steps.accumulate_step(update)
    state, _ = run_step(step, state, make_batch([1, 2, 3], [0] * 3, [1, 1, 1]))
    state, metrics = run_step(step, state, make_batch([4, 50, 60], [0] * 3, [1, 0, 0]))
    assert (state.memory["sum"], state.memory["count"]) == (10, 4)
    assert (state.params["w"], state.step, metrics["examples"]) == (1, 2, 1)


def test_keys_follow_the_place_in_the_stream_and_nothing_else():
    rng = jax.random.PRNGKey(7)
    whole = steps.example_keys(rng, jnp.arange(8))
    np.testing.assert_array_equal(steps.example_keys(rng, jnp.arange(4, 8)), whole[4:])
    assert len(np.unique(whole, axis=0)) == 8


@pytest.mark.parametrize("decay", [0.5, 0.9])
def test_average_follows_the_parameters_from_a_copy(decay):
    tx = optax.chain(optax.sgd(1.0), optim.average_params(decay))
    params = {"w": jnp.float32(1.0)}
    opt_state = tx.init(params)
    expected = 1.0
    for count in range(5):
        updates, opt_state = tx.update({"w": jnp.float32(-1.0)}, opt_state, params)
        params = optax.apply_updates(params, updates)
        now = min(decay, (1 + count) / (10 + count))
        expected = now * expected + (1 - now) * float(params["w"])
    average = optim.trained_variables(make_state(params, opt_state))["params"]["w"]
    np.testing.assert_allclose(average, expected, rtol=1e-6)
    assert average < params["w"]
