"""Autoencoders: learn to rebuild good parts; what cannot be rebuilt is a defect.

Plain (Bergmann et al. 2019, "Improving Unsupervised Defect Segmentation by Applying Structural
Similarity to Autoencoders"), or rebuilding from corrupted views: denoising, deblurring, inpainting
(see `data/corrupt.py`). The networks are in `models/`.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections

from defect_jax import models, optim, steps
from defect_jax.data.augment import augment
from defect_jax.data.corrupt import Corruption, Views, make_corruption
from defect_jax.errors import UserError, require
from defect_jax.losses import latent
from defect_jax.method import Batch, Method, Phase, State, apply_train, init_state, to_float
from defect_jax.methods.rebuilding import Rebuilding, make_rebuilding


def autoencoder(config: ml_collections.ConfigDict) -> Method:
    """A network that rebuilds good images, from themselves or from corrupted views of them.

    Reads from `config.method`: `model` (a name of `models.CODERS` or `models.RESTORERS`, with the
    fields that its entry there reads), `losses`, `residual` and `ssim_windows` (see
    `make_rebuilding`), `corruption` (see `make_corruption`), `smoothing` and `top_fraction` (see
    `score_image`), and `consistency` in [0, 1], for models with a code: the loss is
    (1 - consistency) times the pixel losses plus consistency times `losses.latent.consistency` of
    the codes of image and reconstruction, the "constrained" autoencoder.
    """
    method = config.method
    check_consistency(method)
    model = models.make_autoencoder(config)
    rebuilding = make_rebuilding(method)
    corruption = make_corruption(config)
    tx = optim.make_optimizer(config.optimizer, config.train.num_steps)
    losses = functools.partial(
        _losses, model, rebuilding, corruption, method.consistency, config.augment
    )
    return Method(
        init=functools.partial(init_state, model, tx),
        phases=(Phase(steps.gradient_step(losses, tx, config.train.accumulate)),),
        predict=functools.partial(_predict, model, rebuilding, corruption),
    )


def check_consistency(method: ml_collections.ConfigDict) -> None:
    """Raises UserError where `consistency` is no share, or the network has no code."""
    if not 0 <= method.consistency <= 1:
        raise UserError(f"method.consistency is {method.consistency}: it must lie in [0, 1]")
    if method.consistency:
        require(method.model, models.CODERS, "method.model with a code")


def _losses(
    model: nn.Module,
    rebuilding: Rebuilding,
    corruption: Corruption,
    consistency: float,
    augmentation: ml_collections.ConfigDict,
    params: Any,
    state: State,
    batch: Batch,
    keys: jax.Array,
) -> tuple[jax.Array, steps.Aux]:
    augment_keys, corrupt_keys = steps.split_keys(keys, 2)
    image = augment(augmentation, to_float(batch["image"]), batch["mask"], augment_keys)[0]
    apply = functools.partial(apply_train, model, params, state.batch_stats)
    views = corruption.train(image, corrupt_keys)
    copies, batch_stats = apply(_stacked(views.image))
    rebuilt = _joined(copies, views)
    losses, parts = rebuilding.losses(image, rebuilt)
    if consistency:
        code, again = (apply(x, method="encode")[0] for x in (image, rebuilt))
        parts["consistency"] = latent.consistency(code, again, image)
        losses = (1 - consistency) * losses + consistency * parts["consistency"]
    return losses, steps.Aux(batch_stats, parts)


def _predict(
    model: nn.Module, rebuilding: Rebuilding, corruption: Corruption, state: State, batch: Batch
) -> dict[str, jax.Array]:
    image = to_float(batch["image"])
    variables = optim.trained_variables(state)
    attempts = [
        _joined(model.apply(variables, _stacked(views.image), train=False), views)
        for views in corruption.test(image)
    ]
    residuals = [rebuilding.residual(image, rebuilt) for rebuilt in attempts]
    score_map = jnp.mean(jnp.stack(residuals), axis=0)
    reconstruction = jnp.mean(jnp.stack(attempts), axis=0)
    return rebuilding.score(score_map) | {"reconstruction": reconstruction}


def _stacked(views: jax.Array) -> jax.Array:
    """[V, B, H, W, C] -> [V * B, H, W, C]."""
    return views.reshape(-1, *views.shape[2:])


def _joined(copies: Any, views: Views) -> jax.Array:
    """What was rebuilt from each view, [V * B, H, W, C], put together to [B, H, W, C]."""
    return jnp.sum(views.share * copies.reshape(views.image.shape), axis=0)
