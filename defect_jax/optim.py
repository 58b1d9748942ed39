"""Schedules, optimizers, and the average of the parameters."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax
import optax.contrib

from defect_jax.errors import UserError, lookup, require_within
from defect_jax.method import State


def _constant(learning_rate: float, **_) -> optax.Schedule:
    return optax.constant_schedule(learning_rate)


def _step(
    learning_rate: float, steps: int, milestones: Sequence[float], decay_factor: float
) -> optax.Schedule:
    require_within(decay_factor, 0, 1, "optimizer.decay_factor")
    fractions = all(isinstance(one, float) and 0 < one < 1 for one in milestones)
    if not fractions or list(milestones) != sorted(set(milestones)):
        raise UserError(
            f"optimizer.milestones is {tuple(milestones)}: name fractions of the run between 0 and "
            "1, in rising order"
        )
    boundaries = {int(fraction * steps): decay_factor for fraction in milestones}
    return optax.piecewise_constant_schedule(learning_rate, boundaries)


def _cosine(learning_rate: float, steps: int, **_) -> optax.Schedule:
    return optax.cosine_decay_schedule(learning_rate, max(steps, 1))


SCHEDULES = {"constant": _constant, "step": _step, "cosine": _cosine}


def _muon(b1: float, b2: float) -> optax.GradientTransformation:
    # The learning rate of -1 leaves the sign to `make_optimizer`, as `optax.scale_by_adam` does.
    return optax.contrib.muon(
        -1.0,
        adam_b1=b1,
        adam_b2=b2,
        consistent_rms=0.2,
        muon_weight_dimension_numbers=_as_matrices,
    )


OPTIMIZERS = {
    "adam": lambda b1, b2: optax.scale_by_adam(b1=b1, b2=b2),
    "muon": _muon,
    "sgd": lambda b1, b2: optax.trace(decay=b1),
}
# Of what may be no less than 0.
_MOST = {
    "learning_rate": math.inf,
    "clip_norm": math.inf,
    "weight_decay": math.inf,
    "b1": 1,
    "b2": 1,
    "ema_decay": 1,
}


class AverageState(NamedTuple):
    """The number of updates, and the moving average of the parameters, a tree like theirs."""

    updates: jax.Array
    average: Any


def make_schedule(config: ml_collections.ConfigDict, num_steps: int) -> optax.Schedule:
    """The learning rate as a function of the step.

    A linear warm-up over `config.warmup_steps`, then `config.schedule` over the steps that are
    left: 'constant', 'step' (times `decay_factor` at each of `milestones`, fractions of them) or
    'cosine' (to zero).

    Raises:
        UserError: unknown schedule, milestones that are no rising fractions, or a warm-up longer
            than the run.
    """
    schedule_fn = lookup(SCHEDULES, config.schedule, "optimizer.schedule")
    if not 0 <= config.warmup_steps <= num_steps:
        raise UserError(
            f"optimizer.warmup_steps is {config.warmup_steps}: it must lie between 0 and the "
            f"{num_steps} steps of the run"
        )
    schedule = schedule_fn(
        config.learning_rate,
        steps=num_steps - config.warmup_steps,
        milestones=config.milestones,
        decay_factor=config.decay_factor,
    )
    warmup = optax.linear_schedule(0.0, config.learning_rate, config.warmup_steps)
    return optax.join_schedules([warmup, schedule], [config.warmup_steps])


def make_optimizer(
    config: ml_collections.ConfigDict, num_steps: int
) -> optax.GradientTransformation:
    """Clipping, the named optimizer, decoupled weight decay, schedule and parameter average.

    Args:
        config: `config.optimizer`. `name` is 'adam' (Kingma & Ba 2015), 'sgd' with momentum `b1`,
            or 'muon' (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon): the momentum
            of each kernel, as a matrix of inputs by outputs, is brought near to an orthogonal one,
            of root mean square 0.2 as steps of Adam have it (Liu et al. 2025,
            https://arxiv.org/abs/2502.16982, section 2.2), and vectors take Adam's steps with
            Nesterov's momentum. `clip_norm` 0 is off; `weight_decay` is decoupled (Loshchilov &
            Hutter 2019, so 'adam' with a weight decay is AdamW) and leaves vectors (biases, scales)
            alone; `ema_decay` 0 is off.
        num_steps: the length of the run.

    Raises:
        UserError: an unknown name, a warm-up that is too long, or a number out of its range.
    """
    for name, most in _MOST.items():
        require_within(getattr(config, name), 0, most, f"optimizer.{name}")
    for name in ("b1", "b2"):
        if getattr(config, name) == 1:  # a mean that never takes anything in
            raise UserError(f"optimizer.{name} is 1: it must be below")
    scale_by = lookup(OPTIMIZERS, config.name, "optimizer.name")
    schedule = make_schedule(config, num_steps)
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity(),
        scale_by(config.b1, config.b2),
        optax.add_decayed_weights(config.weight_decay, mask=_matrices)
        if config.weight_decay
        else optax.identity(),
        optax.inject_hyperparams(optax.scale_by_learning_rate)(learning_rate=schedule),
        average_params(config.ema_decay) if config.ema_decay else optax.identity(),
    )


def average_params(decay: float) -> optax.GradientTransformation:
    """Keeps an exponential moving average of the parameters; changes no update.

    The average starts as a copy of the initial parameters and early steps use the smaller decay
    (1 + n) / (10 + n), so that the random start is soon forgotten.
    """

    def init(params):
        return AverageState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.copy, params))

    def update(updates, state, params):
        now = jnp.minimum(decay, (1 + state.updates) / (10 + state.updates))
        params = optax.apply_updates(params, updates)
        average = jax.tree.map(lambda a, p: now * a + (1 - now) * p, state.average, params)
        return updates, AverageState(state.updates + 1, average)

    return optax.GradientTransformation(init, update)


def learning_rate(opt_state: Any) -> jax.Array:
    """The learning rate of the last update, float32 scalar."""
    return optax.tree_utils.tree_get(opt_state, "hyperparams")["learning_rate"]


def trained_variables(state: State, player: str | None = None) -> dict[str, Any]:
    """The variables to predict with: the parameters' moving average where there is one.

    Args:
        state: of a method.
        player: whose, where the method has several models.
    """
    params, batch_stats, opt_state = state.params, state.batch_stats, state.opt_state
    if player is not None:
        params, batch_stats, opt_state = params[player], batch_stats[player], opt_state[player]
    average = optax.tree_utils.tree_get(opt_state, "average")
    return {"params": params if average is None else average, "batch_stats": batch_stats}


def _matrices(params: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def _as_matrices(params: Any) -> Any:
    """Of each kernel which axes are its inputs' and which its outputs', None of a vector."""

    def axes(leaf):
        *inputs, output = range(leaf.ndim)
        return optax.contrib.MuonDimensionNumbers(tuple(inputs), output) if inputs else None

    return jax.tree.map(axes, params)
