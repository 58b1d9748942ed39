"""A segmenter trained against a discriminator of masks.

Luc et al. 2016, "Semantic Segmentation using Adversarial Networks",
https://arxiv.org/abs/1611.08408, section 3.
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import optax

from defect_jax import models, optim, steps
from defect_jax.errors import UserError
from defect_jax.losses.adversarial import discriminator_loss, generator_loss
from defect_jax.method import Batch, Method, State, apply_train, init_players
from defect_jax.methods.segmenter import (
    PixelLosses,
    full_size,
    phases,
    pixel_losses,
    predictor,
    views,
)


def adversarial_segmenter(config: ml_collections.ConfigDict) -> Method:
    """A segmenter whose masks a discriminator is to take for drawn ones.

    The discriminator sees an image and beside it, as K more channels, either its mask as 0 and 1
    or the probabilities that the segmenter gives. This is the plainest of the paper's inputs; its
    others hide that only drawn masks have probabilities of exactly 0 and 1.

    Reads from `config.method` what `segmenter` does, `discriminator` (a name of
    `models.DISCRIMINATORS`, of the same `width` as the segmenter) and `adversarial_weight`, by
    which the loss of not being taken for a drawn mask is added to the segmenter's. With 0 the
    segmenter learns as `segmenter` does, and the discriminator watches.

    Raises:
        UserError: a weight below 0 or not finite.
    """
    weight = config.method.adversarial_weight
    if not 0 <= weight < math.inf:
        raise UserError(f"method.adversarial_weight is {weight}: it must be finite and at least 0")
    players = {
        "generator": models.make_segmenter(config),
        # Statistics of a batch of drawn masks alone, or of predicted ones, would take away just
        # what they have in common.
        "discriminator": models.make_discriminator(config, "group"),
    }
    tx = optim.make_optimizer(config.optimizer, config.train.num_steps)
    txs = dict.fromkeys(players, tx)
    losses = functools.partial(
        _losses, players, pixel_losses(config.method), weight, config.augment
    )
    return Method(
        init=functools.partial(_init, players, txs, config.data.num_classes),
        phases=phases(config, steps.adversarial_step(losses, txs, config.train.accumulate)),
        predict=predictor(config, players["generator"], "generator"),
    )


def _init(
    players: dict[str, nn.Module],
    txs: dict[str, optax.GradientTransformation],
    num_classes: int,
    rng: jax.Array,
    batch: Batch,
) -> State:
    image = jnp.zeros_like(batch["image"][:1], jnp.float32)
    mask = jnp.zeros((*image.shape[:-1], num_classes))
    inputs = {"generator": image, "discriminator": _beside(image, mask)}
    return init_players(players, txs, inputs, rng)


def _losses(
    players: dict[str, nn.Module],
    losses: PixelLosses,
    weight: float,
    augmentation: ml_collections.ConfigDict,
    params: Any,
    state: State,
    batch: Batch,
    keys: jax.Array,
) -> tuple[dict[str, jax.Array], steps.Aux]:
    image, mask = views(augmentation, batch, keys)
    stats = dict(state.batch_stats)
    logits, stats["generator"] = apply_train(
        players["generator"], params["generator"], stats["generator"], image
    )
    predicted = jax.nn.softmax(full_size(logits))
    drawn = jax.nn.one_hot(mask, predicted.shape[-1])
    judge = functools.partial(apply_train, players["discriminator"], params["discriminator"])
    (real, _), stats["discriminator"] = judge(stats["discriminator"], _beside(image, drawn))
    (fake, _), stats["discriminator"] = judge(stats["discriminator"], _beside(image, predicted))
    parts = losses(logits, mask)
    generator = sum(parts.values(), jnp.zeros(()))
    parts["adversarial"] = generator_loss(fake)
    if weight:  # a weight of 0 would cost as much as any other
        generator += weight * parts["adversarial"]
    return {
        "generator": generator,
        "discriminator": discriminator_loss(real, fake),
    }, steps.Aux(stats, parts)


def _beside(image: jax.Array, mask: jax.Array) -> jax.Array:
    """An image [B, H, W, C] and its classes [B, H, W, K] as a discriminator sees them."""
    return jnp.concatenate([image, mask], axis=-1)
