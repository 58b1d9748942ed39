"""Autoencoders and restorers trained against a discriminator.

One loss with five weights makes the known variants: an autoencoder with an adversarial loss and
feature matching, GANomaly (Akcay et al. 2018, https://arxiv.org/abs/1805.06725) with a second
encoder and a score in its code, and restoration from a down-sampled image after SRGAN (Ledig et
al. 2017, https://arxiv.org/abs/1609.04802).
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import optax

from defect_jax import models, optim, steps
from defect_jax.data.augment import augment
from defect_jax.errors import UserError, require
from defect_jax.losses.adversarial import discriminator_loss, generator_loss
from defect_jax.losses.latent import squared_distance
from defect_jax.losses.pixel import total_variation
from defect_jax.method import Batch, Method, Phase, State, apply_train, init_players, to_float
from defect_jax.methods.rebuilding import Rebuilding, make_rebuilding
from defect_jax.models.autoencoder import ReEncoding
from defect_jax.models.vgg import load_vgg16, vgg16_features

Weights = dict[str, float]
SCORES = ("residual", "latent")


def adversarial_autoencoder(config: ml_collections.ConfigDict) -> Method:
    """A network that rebuilds good images so that a discriminator takes them for real.

    Reads from `config.method`: `model` (as `autoencoder` does) and `width`, `discriminator` (a
    name of `models.DISCRIMINATORS`), `losses`, `residual`, `ssim_windows`, `smoothing`,
    `top_fraction`, and the weights of the generator's losses: `reconstruction_weight` (of the
    pixel losses), `adversarial_weight`, `feature_weight` (squared distance of the discriminator's
    last features, or of VGG-16's where `backbone_weights` is an .npz file of them; see
    `models/vgg.py`), `latent_weight` (squared distance of the codes of image and reconstruction,
    the latter by a second encoder; for models with a code) and `total_variation_weight`. `score`
    is 'residual', or 'latent' for the distance of the codes as the image's score.
    """
    method = config.method
    weights = {
        "reconstruction": method.reconstruction_weight,
        "adversarial": method.adversarial_weight,
        "feature": method.feature_weight,
        "latent": method.latent_weight,
        "total_variation": method.total_variation_weight,
    }
    if not all(weight >= 0 for weight in weights.values()) or not any(weights.values()):
        raise UserError(f"weights of the losses {weights}: all must be 0 or more, and one above 0")
    require(method.score, SCORES, "method.score")
    if method.score == "latent" and not weights["latent"]:
        raise UserError("method.score is 'latent': it needs a method.latent_weight above 0")
    if weights["latent"]:
        coder = models.make_coder(config)
        generator: nn.Module = ReEncoding(coder, coder.encoder.clone())
    else:
        generator = models.make_autoencoder(config)
    players = {
        "generator": generator,
        "discriminator": models.make_discriminator(config, "batch"),
    }
    tx = optim.make_optimizer(config.optimizer, config.train.num_steps)
    txs = dict.fromkeys(players, tx)
    rebuilding = make_rebuilding(method)
    losses = functools.partial(
        _losses, players, rebuilding, weights, method.backbone_weights, config.augment
    )
    return Method(
        init=functools.partial(_init, players, txs),
        phases=(Phase(steps.adversarial_step(losses, txs, config.train.accumulate)),),
        predict=functools.partial(_predict, generator, rebuilding, method.score),
    )


def _init(
    players: dict[str, nn.Module],
    txs: dict[str, optax.GradientTransformation],
    rng: jax.Array,
    batch: Batch,
) -> State:
    image = jnp.zeros_like(batch["image"][:1], jnp.float32)
    return init_players(players, txs, dict.fromkeys(players, image), rng)


def _losses(
    players: dict[str, nn.Module],
    rebuilding: Rebuilding,
    weights: Weights,
    backbone_weights: str,
    augmentation: ml_collections.ConfigDict,
    params: Any,
    state: State,
    batch: Batch,
    keys: jax.Array,
) -> tuple[dict[str, jax.Array], steps.Aux]:
    image = augment(augmentation, to_float(batch["image"]), batch["mask"], keys)[0]
    stats = dict(state.batch_stats)
    rebuilt, stats["generator"] = apply_train(
        players["generator"], params["generator"], stats["generator"], image
    )
    codes: Any = None
    if weights["latent"]:
        rebuilt, *codes = rebuilt
    judge = functools.partial(apply_train, players["discriminator"], params["discriminator"])
    (real, real_features), stats["discriminator"] = judge(stats["discriminator"], image)
    (fake, fake_features), stats["discriminator"] = judge(stats["discriminator"], rebuilt)
    if backbone_weights:
        backbone = functools.partial(vgg16_features, load_vgg16(backbone_weights))
        real_features, fake_features = backbone(image), backbone(rebuilt)
    parts = {
        "reconstruction": rebuilding.losses(image, rebuilt)[0],
        "adversarial": generator_loss(fake),
        "feature": squared_distance(real_features, fake_features),
        "total_variation": total_variation(rebuilt),
    }
    if codes:
        parts["latent"] = squared_distance(*codes)
    # A loss of weight 0 is logged but not followed, which would cost as much as following it.
    followed = (weights[name] * part for name, part in parts.items() if weights[name])
    generator = sum(followed, jnp.zeros(()))
    losses = {"generator": generator, "discriminator": discriminator_loss(real, fake)}
    return losses, steps.Aux(stats, parts)


def _predict(
    generator: nn.Module, rebuilding: Rebuilding, score: str, state: State, batch: Batch
) -> dict[str, jax.Array]:
    image = to_float(batch["image"])
    rebuilt: Any = generator.apply(optim.trained_variables(state, "generator"), image, train=False)
    codes: Any = None
    if isinstance(generator, ReEncoding):
        rebuilt, *codes = rebuilt
    prediction = rebuilding.score(rebuilding.residual(image, rebuilt))
    if score == "latent":
        prediction["score"] = squared_distance(*codes)
    return prediction | {"reconstruction": rebuilt}
