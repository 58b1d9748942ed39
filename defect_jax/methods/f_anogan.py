"""f-AnoGAN: a generator of good images, then an encoder that finds an image's code at once.

Schlegl et al. 2019, "f-AnoGAN: Fast unsupervised anomaly detection with generative adversarial
networks", Medical Image Analysis 54. The generator learns against a Wasserstein critic with
gradient penalty (Gulrajani et al. 2017, https://arxiv.org/abs/1704.00028); the encoder's training
is the paper's izi_f.
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
from defect_jax.data.augment import augment
from defect_jax.errors import require, require_within
from defect_jax.losses.adversarial import gradient_penalty
from defect_jax.losses.latent import squared_distance
from defect_jax.method import Batch, Method, Phase, State, apply_train, init_players, to_float
from defect_jax.methods.rebuilding import Rebuilding, make_rebuilding

Players = dict[str, nn.Module]


def f_anogan(config: ml_collections.ConfigDict) -> Method:
    """A Wasserstein GAN with gradient penalty, then an encoder into its codes.

    Reads from `config.method`: `model` ('dcgan' or 'bergmann', whose codes are vectors: its decoder
    is the generator, its encoder the encoder), `code_dim`, `width`, `discriminator` (a name of
    `models.DISCRIMINATORS`), `discriminator_learning_rate` (in place of several of its steps for
    one of the generator: the two-time-scale rule of Heusel et al. 2017,
    https://arxiv.org/abs/1706.08500), `penalty_weight`, `encoder_steps` (the length of the second
    phase; the first takes `config.train.num_steps`), `feature_weight` (the paper's kappa), and
    what `make_rebuilding` reads.

    The image's score is the paper's, mean squared residual plus feature_weight times the distance
    of the critic's features, whatever `top_fraction` says; the score map is the residual.
    """
    method = config.method
    _check(method)
    coder = models.make_coder(config)
    players = {
        "generator": coder.decoder,
        # Normalising over the batch would tie the examples of a penalty per example together.
        "discriminator": models.make_discriminator(config, "group"),
        "encoder": coder.encoder,
    }
    txs = _make_txs(config)
    rebuilding = make_rebuilding(method)
    gan_losses = functools.partial(
        _gan_losses, players, method.code_dim, method.penalty_weight, config.augment
    )
    encoder_losses = functools.partial(
        _encoder_losses, players, rebuilding, method.feature_weight, config.augment
    )
    gan_txs = {name: txs[name] for name in ("generator", "discriminator")}
    return Method(
        init=functools.partial(_init, players, txs, method.code_dim),
        phases=(
            Phase(steps.adversarial_step(gan_losses, gan_txs, config.train.accumulate)),
            Phase(
                steps.adversarial_step(
                    encoder_losses, {"encoder": txs["encoder"]}, config.train.accumulate
                ),
                method.encoder_steps,
            ),
        ),
        predict=functools.partial(_predict, players, rebuilding, method.feature_weight),
    )


def _check(method: ml_collections.ConfigDict) -> None:
    require(method.model, ("dcgan", "bergmann"), "method.model with a vector for a code")
    for name, value, least in (
        ("encoder_steps", method.encoder_steps, 1),
        ("penalty_weight", method.penalty_weight, 0),
        ("feature_weight", method.feature_weight, 0),
        ("discriminator_learning_rate", method.discriminator_learning_rate, 0),
    ):
        require_within(value, least, math.inf, f"method.{name}")


def _make_txs(config: ml_collections.ConfigDict) -> dict[str, optax.GradientTransformation]:
    critic = config.optimizer.copy_and_resolve_references()
    critic.learning_rate = config.method.discriminator_learning_rate
    num_steps = config.train.num_steps
    return {
        "generator": optim.make_optimizer(config.optimizer, num_steps),
        "discriminator": optim.make_optimizer(critic, num_steps),
        "encoder": optim.make_optimizer(config.optimizer, config.method.encoder_steps),
    }


def _init(
    players: Players,
    txs: dict[str, optax.GradientTransformation],
    code_dim: int,
    rng: jax.Array,
    batch: Batch,
) -> State:
    image = jnp.zeros_like(batch["image"][:1], jnp.float32)
    code = jnp.zeros((1, 1, 1, code_dim))
    inputs = {"generator": code, "discriminator": image, "encoder": image}
    return init_players(players, txs, inputs, rng)


def _gan_losses(
    players: Players,
    code_dim: int,
    penalty_weight: float,
    augmentation: ml_collections.ConfigDict,
    params: Any,
    state: State,
    batch: Batch,
    keys: jax.Array,
) -> tuple[dict[str, jax.Array], steps.Aux]:
    augment_keys, code_keys, penalty_keys = steps.split_keys(keys, 3)
    image = augment(augmentation, to_float(batch["image"]), batch["mask"], augment_keys)[0]
    code = jax.vmap(lambda key: jax.random.normal(key, (1, 1, code_dim)))(code_keys)
    stats = dict(state.batch_stats)
    drawn, stats["generator"] = apply_train(
        players["generator"], params["generator"], stats["generator"], code
    )

    def critic(x: jax.Array) -> jax.Array:
        variables = {"params": params["discriminator"]}
        return players["discriminator"].apply(variables, x, train=True)[0]

    real, fake = critic(image), critic(drawn)
    penalty = gradient_penalty(critic, image, jax.lax.stop_gradient(drawn), penalty_keys)
    losses = {"generator": -fake, "discriminator": fake - real + penalty_weight * penalty}
    return losses, steps.Aux(stats, {"wasserstein": real - fake, "penalty": penalty})


def _encoder_losses(
    players: Players,
    rebuilding: Rebuilding,
    feature_weight: float,
    augmentation: ml_collections.ConfigDict,
    params: Any,
    state: State,
    batch: Batch,
    keys: jax.Array,
) -> tuple[dict[str, jax.Array], steps.Aux]:
    image = augment(augmentation, to_float(batch["image"]), batch["mask"], keys)[0]
    stats = dict(state.batch_stats)
    code, stats["encoder"] = apply_train(
        players["encoder"], params["encoder"], stats["encoder"], image
    )
    # The others stay as they are, so what the encoder learns to invert is what will predict.
    generator, critic = (
        optim.trained_variables(state, name) for name in ("generator", "discriminator")
    )
    rebuilt: Any = players["generator"].apply(generator, code, train=False)
    features = functools.partial(_features, players, critic)
    parts = {
        "reconstruction": rebuilding.losses(image, rebuilt)[0],
        "feature": squared_distance(features(image), features(rebuilt)),
    }
    losses = parts["reconstruction"] + feature_weight * parts["feature"]
    return {"encoder": losses}, steps.Aux(stats, parts)


def _predict(
    players: Players,
    rebuilding: Rebuilding,
    feature_weight: float,
    state: State,
    batch: Batch,
) -> dict[str, jax.Array]:
    image = to_float(batch["image"])
    encoder, generator, critic = (
        optim.trained_variables(state, name) for name in ("encoder", "generator", "discriminator")
    )
    code = players["encoder"].apply(encoder, image, train=False)
    rebuilt: Any = players["generator"].apply(generator, code, train=False)
    prediction = rebuilding.score(rebuilding.residual(image, rebuilt))
    features = functools.partial(_features, players, critic)
    squares = jnp.mean((image - rebuilt) ** 2, axis=(1, 2, 3))
    distance = squared_distance(features(image), features(rebuilt))
    prediction["score"] = squares + feature_weight * distance
    return prediction | {"reconstruction": rebuilt}


def _features(players: Players, variables: Any, image: jax.Array) -> jax.Array:
    judged: Any = players["discriminator"].apply(variables, image, train=False)
    return judged[1]
