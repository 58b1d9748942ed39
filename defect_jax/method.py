"""What a method is: a NamedTuple of pure functions over one State."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
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
    variables = model.init(jax.random.fold_in(rng, 0), image, train=False)
    params = variables["params"]
    return State(
        step=jnp.zeros((), jnp.int32),
        rng=rng,
        params=params,
        batch_stats=variables.get("batch_stats", {}),
        opt_state=tx.init(params),
        memory={},
    )
