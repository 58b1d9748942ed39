"""Segmentation of known defects from labelled masks.

Ronneberger et al. 2015, "U-Net"; the network is in `models/unet.py`.
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import ml_collections

from defect_jax import models, optim, steps
from defect_jax.data.augment import augment
from defect_jax.errors import lookup
from defect_jax.losses.segmentation import SEGMENTATION_LOSSES
from defect_jax.method import (
    Batch,
    Method,
    Phase,
    State,
    apply_train,
    init_state,
    to_float,
)
from defect_jax.methods.scoring import score_image


def segmenter(config: ml_collections.ConfigDict) -> Method:
    """A network that gives every pixel a class.

    Reads from `config.method`: `model` (a name of `models.SEGMENTERS`), `width`, `depth`,
    `normalization`, `losses` (names of `SEGMENTATION_LOSSES`, added up), `smoothing` and
    `top_fraction` (see `score_image`); the number of classes is `config.data.num_classes`. The
    score map is the log-odds of a pixel being no background.
    """
    method = config.method
    model = models.make_segmenter(config)
    losses = [lookup(SEGMENTATION_LOSSES, name, "method.losses") for name in method.losses]
    score = functools.partial(
        score_image, smoothing=method.smoothing, top_fraction=method.top_fraction
    )
    tx = optim.make_optimizer(config.optimizer, config.train.num_steps)
    augmentation = config.augment
    return Method(
        init=functools.partial(init_state, model, tx),
        phases=(
            Phase(steps.gradient_step(functools.partial(_losses, model, losses, augmentation), tx)),
        ),
        predict=functools.partial(_predict, model, score),
    )


def log_odds(logits: jax.Array) -> jax.Array:
    """Log-odds of any class but 0 against class 0: [B, H, W, K] -> [B, H, W]."""
    return jax.nn.logsumexp(logits[..., 1:], axis=-1) - logits[..., 0]


def _losses(
    model: nn.Module,
    losses: Sequence[Any],
    augmentation: ml_collections.ConfigDict,
    params: Any,
    state: State,
    batch: Batch,
    keys: jax.Array,
) -> tuple[jax.Array, steps.Aux]:
    image, mask = augment(augmentation, to_float(batch["image"]), batch["mask"], keys)
    logits, batch_stats = apply_train(model, params, state.batch_stats, image)
    parts = {loss.__name__: loss(logits, mask) for loss in losses}
    return sum(parts.values()), steps.Aux(batch_stats, parts)


def _predict(model: nn.Module, score: Any, state: State, batch: Batch) -> dict[str, jax.Array]:
    image = to_float(batch["image"])
    logits: Any = model.apply(optim.trained_variables(state), image, train=False)
    return score(log_odds(logits)) | {"mask_logits": logits}
