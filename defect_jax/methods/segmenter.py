"""Segmentation of known defects from labelled masks.

Ronneberger et al. 2015, "U-Net"; the network is in `models/unet.py`.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections

from defect_jax import models, optim, steps
from defect_jax.data.augment import augment
from defect_jax.data.paste import paste
from defect_jax.errors import UserError, lookup, require_distinct
from defect_jax.losses.segmentation import SEGMENTATION_LOSSES
from defect_jax.method import (
    Batch,
    Method,
    Metrics,
    Phase,
    State,
    apply_train,
    init_state,
    to_float,
)
from defect_jax.methods.scoring import make_scoring

# [B, H, W, K], or a tuple of them, each of half the size of the one before.
Logits = jax.Array | tuple[jax.Array, ...]
TrainStep = Callable[[State, Batch], tuple[State, Metrics]]
PixelLosses = Callable[[Logits, jax.Array], dict[str, jax.Array]]


def segmenter(config: ml_collections.ConfigDict) -> Method:
    """A network that gives every pixel a class.

    Reads from `config.method`: `model` (a name of `models.SEGMENTERS`) and its fields, `losses`
    (names of `SEGMENTATION_LOSSES`, added up; see `pixel_losses`), `smoothing` and
    `top_fraction` (see `score_image`); the number of classes is `config.data.num_classes`. Where
    `config.eval.flip_average` is set it predicts the mean over four flips of the image. The score
    map is the log-odds of a pixel being no background.
    """
    model = models.make_segmenter(config)
    tx = optim.make_optimizer(config.optimizer, config.train.num_steps)
    loss_fn = functools.partial(_losses, model, pixel_losses(config.method), config.augment)
    return Method(
        init=functools.partial(init_state, model, tx),
        phases=phases(config, steps.gradient_step(loss_fn, tx, config.train.accumulate)),
        predict=predictor(config, model),
    )


def phases(config: ml_collections.ConfigDict, train_step: TrainStep) -> tuple[Phase, ...]:
    """One phase, or where `data.hard_share` is set one for each `train.mine_every` steps.

    At the start of each but the first, the false alarms on the training images are looked for.

    Raises:
        UserError: a hard share without a number of steps.
    """
    total, every = config.train.num_steps, config.train.mine_every
    if not config.data.hard_share:
        return (Phase(train_step),)
    if every < 1:
        raise UserError(
            f"data.hard_share is {config.data.hard_share} and train.mine_every {every}: say after "
            "how many steps false alarms are looked for"
        )
    return tuple(Phase(train_step, min(every, total - start)) for start in range(0, total, every))


def pixel_losses(method: ml_collections.ConfigDict) -> PixelLosses:
    """The losses that `method.losses` names, of (logits, mask [B, H, W]): name -> [B].

    Where the logits are a tuple, each level of half the size of the one before, a loss is the mean
    over the levels by weights that halve from level to level.

    Raises:
        UserError: an unknown name, no losses at all, or one twice.
    """
    require_distinct(method.losses, "method.losses")
    by_name = {name: lookup(SEGMENTATION_LOSSES, name, "method.losses") for name in method.losses}
    return functools.partial(_pixel_losses, by_name)


def views(
    augmentation: ml_collections.ConfigDict, batch: Batch, keys: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """A batch with its pasted defects and augmented: images [B, H, W, C], masks [B, H, W]."""
    paste_keys, augment_keys = steps.split_keys(keys, 2)
    image, mask = paste(augmentation, to_float(batch["image"]), batch["mask"], batch, paste_keys)
    return augment(augmentation, image, mask, augment_keys)


def predictor(
    config: ml_collections.ConfigDict, model: nn.Module, player: str | None = None
) -> Callable[[State, Batch], dict[str, jax.Array]]:
    """The `predict` of a method whose segmenter is `model`, of the parameters of `player`.

    Reads `eval.flip_average`, `method.smoothing` and `method.top_fraction`. Beside score and score
    map it gives `mask_logits` [B, H, W, K].
    """
    score = make_scoring(config.method)
    return functools.partial(_predict, model, score, config.eval.flip_average, player)


def full_size(logits: Logits) -> jax.Array:
    """Of logits of one or several levels, those of the image's size: [B, H, W, K]."""
    return logits[0] if isinstance(logits, tuple) else logits


def log_odds(logits: jax.Array) -> jax.Array:
    """Log-odds of any class but 0 against class 0: [B, H, W, K] -> [B, H, W]."""
    return jax.nn.logsumexp(logits[..., 1:], axis=-1) - logits[..., 0]


def _losses(
    model: nn.Module,
    losses: PixelLosses,
    augmentation: ml_collections.ConfigDict,
    params: Any,
    state: State,
    batch: Batch,
    keys: jax.Array,
) -> tuple[jax.Array, steps.Aux]:
    image, mask = views(augmentation, batch, keys)
    logits, batch_stats = apply_train(model, params, state.batch_stats, image)
    parts = losses(logits, mask)
    return sum(parts.values(), jnp.zeros(())), steps.Aux(batch_stats, parts)


def _pixel_losses(
    by_name: dict[str, Callable[[jax.Array, jax.Array], jax.Array]],
    logits: Logits,
    mask: jax.Array,
) -> dict[str, jax.Array]:
    levels = logits if isinstance(logits, tuple) else (logits,)
    weights = [2.0**-level for level in range(len(levels))]
    return {
        name: sum(
            (
                weight / sum(weights) * loss(level, _shrink(mask, 2**number))
                for number, (weight, level) in enumerate(zip(weights, levels, strict=True))
            ),
            jnp.zeros(()),
        )
        for name, loss in by_name.items()
    }


def _shrink(mask: jax.Array, factor: int) -> jax.Array:
    """The class in the middle of each square of `factor` pixels a side: [B, H, W] -> smaller."""
    return mask[:, factor // 2 :: factor, factor // 2 :: factor]


def _predict(
    model: nn.Module,
    score: Any,
    flip_average: bool,
    player: str | None,
    state: State,
    batch: Batch,
) -> dict[str, jax.Array]:
    variables = optim.trained_variables(state, player)

    def label(image: jax.Array) -> jax.Array:
        logits: Any = model.apply(variables, image, train=False)
        return full_size(logits)

    image = to_float(batch["image"])
    if flip_average:
        turns = ((), (1,), (2,), (1, 2))
        votes = [jax.nn.softmax(jnp.flip(label(jnp.flip(image, turn)), turn)) for turn in turns]
        logits = jnp.log(jnp.maximum(sum(votes) / len(votes), jnp.finfo(jnp.float32).tiny))
    else:
        logits = label(image)
    return score(log_odds(logits)) | {"mask_logits": logits}
