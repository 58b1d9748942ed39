"""Variational autoencoders: rebuild good parts from a distribution over codes.

Kingma and Welling 2014, "Auto-Encoding Variational Bayes"; the networks are those of the
autoencoders, with a mean and a log-variance for a code.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax

from defect_jax import models, optim, steps
from defect_jax.data.augment import augment
from defect_jax.errors import lookup, require_within
from defect_jax.losses import latent
from defect_jax.method import Batch, Method, Phase, State, apply_train, init_state, to_float
from defect_jax.methods.autoencoder import check_consistency
from defect_jax.methods.rebuilding import Rebuilding, make_rebuilding
from defect_jax.models.autoencoder import Autoencoder


def vae(config: ml_collections.ConfigDict) -> Method:
    """A variational autoencoder trained on good images.

    Reads from `config.method`: `model` (a name of `models.CODERS`), `code_dim`, `losses`,
    `residual`, `ssim_windows`, `smoothing` and `top_fraction` (as `autoencoder` does);
    `kl_weight`, what a nat of a code's divergence costs beside the pixel losses, which are means
    over pixels, reached linearly over `kl_warmup_steps`; `consistency` in [0, 1], which weighs the
    pixel losses against `losses.latent.consistency` of the drawn code and the mean code of what it
    gives; `score`, 'mean', 'samples' or 'gradient', and `num_samples`, how many codes 'samples'
    draws.

    With the loss 'l2', a kl_weight of 2 sigma^2 / (H W C) makes the loss the negative ELBO (but
    for scale and constants) of pixels with Gaussian noise of variance sigma^2.
    """
    method = config.method
    check_consistency(method)
    for name, least in (("kl_weight", 0), ("kl_warmup_steps", 0), ("num_samples", 1)):
        require_within(getattr(method, name), least, math.inf, f"method.{name}")
    model = models.make_coder(config, variational=True)
    rebuilding = make_rebuilding(method)
    kl_weight = optax.linear_schedule(0.0, method.kl_weight, method.kl_warmup_steps)
    if not method.kl_warmup_steps:
        kl_weight = optax.constant_schedule(method.kl_weight)
    scores = {
        "mean": functools.partial(_score_mean, model, rebuilding),
        "samples": functools.partial(_score_samples, model, rebuilding, method.num_samples),
        "gradient": functools.partial(_score_gradient, model, rebuilding, method.kl_weight),
    }
    score_map = lookup(scores, method.score, "method.score")
    tx = optim.make_optimizer(config.optimizer, config.train.num_steps)
    losses = functools.partial(
        _losses, model, rebuilding, kl_weight, method.consistency, config.augment
    )
    return Method(
        init=functools.partial(init_state, model, tx),
        phases=(Phase(steps.gradient_step(losses, tx, config.train.accumulate)),),
        predict=functools.partial(_predict, model, rebuilding, score_map),
    )


def _losses(
    model: Autoencoder,
    rebuilding: Rebuilding,
    kl_weight: optax.Schedule,
    consistency: float,
    augmentation: ml_collections.ConfigDict,
    params: Any,
    state: State,
    batch: Batch,
    keys: jax.Array,
) -> tuple[jax.Array, steps.Aux]:
    augment_keys, code_keys = steps.split_keys(keys, 2)
    image = augment(augmentation, to_float(batch["image"]), batch["mask"], augment_keys)[0]
    moments, batch_stats = apply_train(model, params, state.batch_stats, image, method="encode")
    mean, log_variance = jnp.split(moments, 2, axis=-1)
    code = latent.reparameterize(mean, log_variance, code_keys)
    rebuilt, batch_stats = apply_train(model, params, batch_stats, code, method="decode")
    losses, parts = rebuilding.losses(image, rebuilt)
    losses = (1 - consistency) * losses
    parts["kl"] = latent.kl_divergence(mean, log_variance)
    losses += kl_weight(state.step) * parts["kl"]
    if consistency:
        again, _ = apply_train(model, params, state.batch_stats, rebuilt, method="encode")
        parts["consistency"] = latent.consistency(code, jnp.split(again, 2, axis=-1)[0], image)
        losses += consistency * parts["consistency"]
    return losses, steps.Aux(batch_stats, parts)


def _predict(
    model: Autoencoder, rebuilding: Rebuilding, score_map: Any, state: State, batch: Batch
) -> dict[str, jax.Array]:
    image = to_float(batch["image"])
    variables = optim.trained_variables(state)
    mean, _ = _encode(model, variables, image)
    return rebuilding.score(score_map(variables, image)) | {
        "reconstruction": _decode(model, variables, mean)
    }


def _encode(model: Autoencoder, variables: Any, image: jax.Array) -> tuple[jax.Array, jax.Array]:
    moments: Any = model.apply(variables, image, train=False, method="encode")
    mean, log_variance = jnp.split(moments, 2, axis=-1)
    return mean, log_variance


def _decode(model: Autoencoder, variables: Any, code: jax.Array) -> Any:
    return model.apply(variables, code, train=False, method="decode")


def _score_mean(
    model: Autoencoder, rebuilding: Rebuilding, variables: Any, image: jax.Array
) -> jax.Array:
    """The residual of what the mean code gives."""
    mean, _ = _encode(model, variables, image)
    return rebuilding.residual(image, _decode(model, variables, mean))


def _score_samples(
    model: Autoencoder,
    rebuilding: Rebuilding,
    num_samples: int,
    variables: Any,
    image: jax.Array,
) -> jax.Array:
    """The residual, averaged over codes drawn from the posterior.

    The draws are the same for every image and every call, so a score depends on its image alone.
    """
    mean, log_variance = _encode(model, variables, image)
    noise = jax.random.normal(jax.random.PRNGKey(0), (num_samples, *mean.shape[1:]))

    def residual(draw: jax.Array) -> jax.Array:
        code = mean + jnp.exp(0.5 * log_variance) * draw
        return rebuilding.residual(image, _decode(model, variables, code))

    return jnp.mean(jax.lax.map(residual, noise), axis=0)


def _score_gradient(
    model: Autoencoder,
    rebuilding: Rebuilding,
    kl_weight: float,
    variables: Any,
    image: jax.Array,
) -> jax.Array:
    """How fast the negative ELBO changes with each pixel, at the mean code.

    Zimmerer et al. 2018, "Context-encoding Variational Autoencoder for Unsupervised Anomaly
    Detection", https://arxiv.org/abs/1812.05941, section 2.2. Times the number of pixels, since
    the losses are means over them.
    """

    def negative_elbo(image: jax.Array) -> jax.Array:
        mean, log_variance = _encode(model, variables, image)
        losses, _ = rebuilding.losses(image, _decode(model, variables, mean))
        return jnp.sum(losses + kl_weight * latent.kl_divergence(mean, log_variance))

    pixels = image.shape[1] * image.shape[2]
    return pixels * jnp.mean(jnp.abs(jax.grad(negative_elbo)(image)), axis=-1)
