"""The three builders of training steps.

A step runs under a mapped axis named 'batch' (see `train`). Losses come per example; here, and
nowhere else, they are weighted, masked and averaged, so that the number of devices changes nothing.

Where memory is short, a step takes each device's examples in `accumulate` parts, one after another,
and moves the parameters once, by the gradient of the whole batch. Batch statistics are those of the
parts, which the running ones go through in turn. A loss that is one number for a whole batch
(`losses.segmentation.batch_dice`) is one number for each part then.
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


def gradient_step(loss_fn: LossFn, tx: optax.GradientTransformation, accumulate: int):
    """A step down the gradient of one loss, each device's examples in `accumulate` equal parts."""
    return functools.partial(_gradient_step, loss_fn, tx, accumulate)


def adversarial_step(
    losses_fn: LossesFn, txs: dict[str, optax.GradientTransformation], accumulate: int
):
    """A step of several players, each down its own loss, out of one forward pass.

    `params` and `opt_state` are dicts by player. The players that `txs` names move; others, whose
    turn is another phase, stay. The metric `loss` is the loss of the first of `txs`. Each device
    takes its examples in `accumulate` equal parts.
    """
    return functools.partial(_adversarial_step, losses_fn, txs, accumulate)


def accumulate_step(update_fn: Callable[[Any, State, Batch], Any]):
    """A step that gathers statistics and moves no parameter.

    `update_fn(memory, state, batch)` returns this device's summand of what to add to `memory`.
    """
    return functools.partial(_accumulate_step, update_fn)


def _gradient_step(
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    accumulate: int,
    state: State,
    batch: Batch,
) -> tuple[State, Metrics]:
    total = jax.lax.psum(jnp.sum(batch["weight"]), AXIS)

    def summands(state: State, part: Batch):
        keys = example_keys(state.rng, part["index"])

        def share(params):
            losses, aux = loss_fn(params, state, part, keys)
            return _share(losses, part["weight"], total), aux

        (loss, aux), gradient = jax.value_and_grad(share, has_aux=True)(state.params)
        metrics = _shares(aux.metrics, part["weight"], total)
        return (loss, gradient, metrics), aux.batch_stats

    sums, batch_stats = _add_up(summands, accumulate, state, batch)
    loss, gradient, metrics = jax.lax.psum(sums, AXIS)
    updates, opt_state = tx.update(gradient, state.opt_state, state.params)
    metrics |= {
        "loss": loss,
        "gradient_norm": optax.tree.norm(gradient),
        "learning_rate": optim.learning_rate(opt_state),
    }
    state = state.replace(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        batch_stats=batch_stats,
        opt_state=opt_state,
    )
    return state, metrics


def _adversarial_step(
    losses_fn: LossesFn,
    txs: dict[str, optax.GradientTransformation],
    accumulate: int,
    state: State,
    batch: Batch,
) -> tuple[State, Metrics]:
    total = jax.lax.psum(jnp.sum(batch["weight"]), AXIS)

    def summands(state: State, part: Batch):
        keys = example_keys(state.rng, part["index"])

        def shares(params):
            losses, aux = losses_fn(params, state, part, keys)
            return {name: _share(losses[name], part["weight"], total) for name in txs}, aux

        losses, pullback, aux = jax.vjp(shares, state.params, has_aux=True)
        metrics = _shares(aux.metrics, part["weight"], total)
        metrics |= {f"{name}_loss": losses[name] for name in txs}
        # A one-hot cotangent picks one player's loss; the other players' parameters get a
        # gradient too, which is dropped.
        gradients = {
            name: pullback({other: jnp.float32(other == name) for other in txs})[0][name]
            for name in txs
        }
        return (metrics, gradients), aux.batch_stats

    sums, batch_stats = _add_up(summands, accumulate, state, batch)
    metrics, gradients = jax.lax.psum(sums, AXIS)
    params, opt_state = dict(state.params), dict(state.opt_state)
    for name, tx in txs.items():
        updates, opt_state[name] = tx.update(
            gradients[name], state.opt_state[name], state.params[name]
        )
        params[name] = optax.apply_updates(state.params[name], updates)
        metrics[f"{name}_gradient_norm"] = optax.tree.norm(gradients[name])
        metrics[f"{name}_learning_rate"] = optim.learning_rate(opt_state[name])
    metrics["loss"] = metrics[f"{next(iter(txs))}_loss"]
    state = state.replace(
        step=state.step + 1, params=params, batch_stats=batch_stats, opt_state=opt_state
    )
    return state, metrics


def _accumulate_step(
    update_fn: Callable[[Any, State, Batch], Any], state: State, batch: Batch
) -> tuple[State, Metrics]:
    update = jax.lax.psum(update_fn(state.memory, state, batch), AXIS)
    memory = jax.tree.map(jnp.add, state.memory, update)
    examples = jax.lax.psum(jnp.sum(batch["weight"]), AXIS)
    return state.replace(step=state.step + 1, memory=memory), {"examples": examples}


def _add_up(
    summands: Callable[[State, Batch], tuple[Any, Any]], accumulate: int, state: State, batch: Batch
) -> tuple[Any, Any]:
    """Calls (State, part) -> (summands, batch_stats) on each part of this device's examples.

    Returns:
        The sums, and the batch statistics after the last part.
    """
    if accumulate == 1:
        return summands(state, batch)

    def body(carry: tuple[Any, Any], part: Batch):
        sums, batch_stats = carry
        new, batch_stats = summands(state.replace(batch_stats=batch_stats), part)
        return (jax.tree.map(jnp.add, sums, new), batch_stats), None

    parts = jax.tree.map(lambda leaf: leaf.reshape(accumulate, -1, *leaf.shape[1:]), batch)
    shapes, _ = jax.eval_shape(summands, state, jax.tree.map(lambda leaf: leaf[0], parts))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return jax.lax.scan(body, (zeros, state.batch_stats), parts)[0]


def _share(values: jax.Array, weight: jax.Array, total: jax.Array) -> jax.Array:
    """What values [B] add to their mean over the global batch, whose weights add up to `total`.

    The shares of all parts and devices add up to the mean, so gradients of shares add up to its
    gradient.
    """
    return jnp.sum(values * weight) / total


def _shares(metrics: dict[str, jax.Array], weight: jax.Array, total: jax.Array) -> Metrics:
    return {name: _share(values, weight, total) for name, values in metrics.items()}
