"""What a method is: a NamedTuple of pure functions over one State."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]

# What `config.dtype` may say: the type of the computation.
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


class State(flax.struct.PyTreeNode):
    """All that training changes: one pytree whose structure never changes during a run.

    Attributes:
        step: int32 scalar, the number of training steps taken, over all phases.
        rng: uint32 [2], the run's base key. It never changes: every random choice folds the
            example's place in the stream into it, so the choice depends on nothing else.
        params: the trainable variables.
        batch_stats: running statistics of normalisation layers, {} where there are none.
        opt_state: the optimizer's state, EMA of the parameters included.
        memory: what a method learns without gradients (a coreset, a precision matrix), or {}.
    """

    step: jax.Array
    rng: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    memory: Any


def identity(state: State) -> State:
    """The `finish` of a phase that has nothing to finish."""
    return state


class Phase(NamedTuple):
    """A stretch of training with one step function.

    Attributes:
        train_step: (State, Batch) -> (State, Metrics), pure; runs under an axis named 'batch'.
        num_steps: its length, None for `config.train.num_steps`.
        finish: State -> State, called once when the phase ends.
    """

    train_step: Callable[[State, Batch], tuple[State, Metrics]]
    num_steps: int | None = None
    finish: Callable[[State], State] = identity


class Method(NamedTuple):
    """A way to find defects.

    Attributes:
        init: (rng uint32 [2], Batch) -> State; the batch gives shapes, its values are not used.
        phases: what training runs, in order.
        predict: (State, Batch) -> dict with `score` [B] and `score_map` [B, H, W], a higher value
            always more defective, and where the method has them `reconstruction` [B, H, W, C] in
            [0, 1] and `mask_logits` [B, H, W, K].
    """

    init: Callable[[jax.Array, Batch], State]
    phases: tuple[Phase, ...]
    predict: Callable[[State, Batch], dict[str, jax.Array]]


def to_float(image: jax.Array) -> jax.Array:
    """uint8 in [0, 255] to float32 in [0, 1]."""
    return image.astype(jnp.float32) / 255.0


def init_state(
    model: nn.Module, tx: optax.GradientTransformation, rng: jax.Array, batch: Batch
) -> State:
    """The initial state of a method with one model and one optimizer."""
    image = jnp.zeros_like(batch["image"][:1], jnp.float32)
    params, batch_stats = _init_model(model, jax.random.fold_in(rng, 0), image)
    return _first_state(rng, params, batch_stats, tx.init(params))


def init_players(
    players: dict[str, nn.Module],
    txs: dict[str, optax.GradientTransformation],
    inputs: dict[str, jax.Array],
    rng: jax.Array,
) -> State:
    """The initial state of a method with several models, each with an optimizer of its own.

    Args:
        players: name -> model, called with its entry of `inputs` and `train`.
        txs: name -> optimizer, with the same names.
        inputs: name -> an input of the model's shape; its values are not used.
        rng: uint32 [2].

    Returns:
        A State whose params, batch_stats and opt_state are dicts with those names.
    """
    params, batch_stats = {}, {}
    for number, (name, model) in enumerate(players.items()):
        key = jax.random.fold_in(rng, number)
        params[name], batch_stats[name] = _init_model(model, key, inputs[name])
    return _first_state(
        rng, params, batch_stats, {name: tx.init(params[name]) for name, tx in txs.items()}
    )


def apply_train(
    model: nn.Module, params: Any, batch_stats: Any, *inputs: jax.Array, method: str | None = None
) -> tuple[Any, Any]:
    """Calls a model as in training.

    Args:
        model: what to call.
        params: its parameters.
        batch_stats: its running statistics, {} where it has none.
        *inputs: its arguments before `train`.
        method: the name of the module's method, None for the module itself.

    Returns:
        The result and the updated running statistics.
    """
    out, updated = model.apply(
        {"params": params, "batch_stats": batch_stats},
        *inputs,
        train=True,
        mutable=["batch_stats"],
        method=method,
    )
    return out, updated.get("batch_stats", {})


def _init_model(model: nn.Module, key: jax.Array, x: jax.Array) -> tuple[Any, Any]:
    variables = model.init(key, x, train=False)
    return _draw_kernels(key, variables["params"]), variables.get("batch_stats", {})


def _draw_kernels(key: jax.Array, params: Any) -> Any:
    """Draws all kernels from one stream of numbers, from the distribution that their layers have.

    That is LeCun's: normal, cut at two standard deviations, with variance 1 / fan-in. The layers'
    own draws are then dead code: as many small random generators as a network has layers take XLA
    half a minute to compile.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    sizes = [leaf.size if path[-1].key == "kernel" else 0 for path, leaf in leaves]
    ends = np.cumsum(sizes)
    # The cut makes the variance smaller, by the square of this constant.
    draws = jax.random.truncated_normal(key, -2.0, 2.0, (int(ends[-1]),)) / 0.87962566103423978
    redrawn = [
        draws[end - size : end].reshape(leaf.shape) * math.prod(leaf.shape[:-1]) ** -0.5
        if size
        else leaf
        for (_, leaf), size, end in zip(leaves, sizes, ends, strict=True)
    ]
    return jax.tree.unflatten(structure, redrawn)


def _first_state(rng: jax.Array, params: Any, batch_stats: Any, opt_state: Any) -> State:
    return State(
        step=jnp.zeros((), jnp.int32),
        rng=rng,
        params=params,
        batch_stats=batch_stats,
        opt_state=opt_state,
        memory={},
    )
