"""The three builders of training steps.

A step runs under a mapped axis named 'batch' (see `train`). Losses come per example; here, and
nowhere else, they are weighted, masked and averaged, so that the number of devices changes nothing.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from defect_jax import optim
from defect_jax.devices import AXIS
from defect_jax.method import Batch, Metrics, State


class Aux(NamedTuple):
    """What a loss function gives beside its losses.

    Attributes:
        batch_stats: the updated running statistics, the same on every device.
        metrics: name -> [B], averaged like the loss and logged.
    """

    batch_stats: Any
    metrics: dict[str, jax.Array]


# (params, State, Batch, keys uint32 [B, 2]) -> (losses [B], Aux)
LossFn = Callable[[Any, State, Batch, jax.Array], tuple[jax.Array, Aux]]
# the same with a dict of losses by player, and params a dict by player
LossesFn = Callable[[Any, State, Batch, jax.Array], tuple[dict[str, jax.Array], Aux]]


def example_keys(rng: jax.Array, index: jax.Array) -> jax.Array:
    """One key for each example from its place in the stream: index [B] -> uint32 [B, 2]."""
    return jax.vmap(functools.partial(jax.random.fold_in, rng))(index)


def split_keys(keys: jax.Array, num: int) -> jax.Array:
    """Splits the key of each example: uint32 [B, 2] -> [num, B, 2]."""
    return jnp.moveaxis(jax.vmap(lambda key: jax.random.split(key, num))(keys), 1, 0)


def weighted_mean(values: jax.Array, weight: jax.Array) -> jax.Array:
    """This device's share of the mean of values [B] over the global batch, by weight [B].

    The shares of all devices add up to the mean, so gradients of shares add up to its gradient.
    """
    return jnp.sum(values * weight) / jax.lax.psum(jnp.sum(weight), AXIS)


def gradient_step(loss_fn: LossFn, tx: optax.GradientTransformation):
    """A step down the gradient of one loss."""
    return functools.partial(_gradient_step, loss_fn, tx)


def adversarial_step(losses_fn: LossesFn, txs: dict[str, optax.GradientTransformation]):
    """A step of several players, each down its own loss, out of one forward pass.

    `params` and `opt_state` are dicts by player. The players that `txs` names move; others, whose
    turn is another phase, stay. The metric `loss` is the loss of the first of `txs`.
    """
    return functools.partial(_adversarial_step, losses_fn, txs)


def accumulate_step(update_fn: Callable[[Any, State, Batch], Any]):
    """A step that gathers statistics and moves no parameter.

    `update_fn(memory, state, batch)` returns this device's summand of what to add to `memory`.
    """
    return functools.partial(_accumulate_step, update_fn)


def _gradient_step(
    loss_fn: LossFn, tx: optax.GradientTransformation, state: State, batch: Batch
) -> tuple[State, Metrics]:
    keys = example_keys(state.rng, batch["index"])

    def share(params):
        losses, aux = loss_fn(params, state, batch, keys)
        return weighted_mean(losses, batch["weight"]), aux

    (loss, aux), gradient = jax.value_and_grad(share, has_aux=True)(state.params)
    loss, gradient, metrics = jax.lax.psum(
        (loss, gradient, _shares(aux.metrics, batch["weight"])), AXIS
    )
    updates, opt_state = tx.update(gradient, state.opt_state, state.params)
    metrics |= {
        "loss": loss,
        "gradient_norm": optax.tree.norm(gradient),
        "learning_rate": optim.learning_rate(opt_state),
    }
    state = state.replace(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        batch_stats=aux.batch_stats,
        opt_state=opt_state,
    )
    return state, metrics


def _adversarial_step(
    losses_fn: LossesFn,
    txs: dict[str, optax.GradientTransformation],
    state: State,
    batch: Batch,
) -> tuple[State, Metrics]:
    keys = example_keys(state.rng, batch["index"])

    def shares(params):
        losses, aux = losses_fn(params, state, batch, keys)
        return {name: weighted_mean(losses[name], batch["weight"]) for name in txs}, aux

    losses, pullback, aux = jax.vjp(shares, state.params, has_aux=True)
    params, opt_state = dict(state.params), dict(state.opt_state)
    metrics = _shares(aux.metrics, batch["weight"])
    metrics = jax.lax.psum(metrics | {f"{name}_loss": losses[name] for name in txs}, AXIS)
    for name, tx in txs.items():
        # A one-hot cotangent picks one player's loss; the other players' parameters get a
        # gradient too, which is dropped.
        one_hot = {other: jnp.float32(other == name) for other in txs}
        gradient = jax.lax.psum(pullback(one_hot)[0][name], AXIS)
        updates, opt_state[name] = tx.update(gradient, state.opt_state[name], state.params[name])
        params[name] = optax.apply_updates(state.params[name], updates)
        metrics[f"{name}_gradient_norm"] = optax.tree.norm(gradient)
        metrics[f"{name}_learning_rate"] = optim.learning_rate(opt_state[name])
    metrics["loss"] = metrics[f"{next(iter(txs))}_loss"]
    state = state.replace(
        step=state.step + 1, params=params, batch_stats=aux.batch_stats, opt_state=opt_state
    )
    return state, metrics


def _accumulate_step(
    update_fn: Callable[[Any, State, Batch], Any], state: State, batch: Batch
) -> tuple[State, Metrics]:
    update = jax.lax.psum(update_fn(state.memory, state, batch), AXIS)
    memory = jax.tree.map(jnp.add, state.memory, update)
    examples = jax.lax.psum(jnp.sum(batch["weight"]), AXIS)
    return state.replace(step=state.step + 1, memory=memory), {"examples": examples}


def _shares(metrics: dict[str, jax.Array], weight: jax.Array) -> dict[str, jax.Array]:
    return {name: weighted_mean(values, weight) for name, values in metrics.items()}
