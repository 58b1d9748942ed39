"""Autoencoders: learn to rebuild good parts; what cannot be rebuilt is a defect.

Bergmann et al. 2019, "Improving Unsupervised Defect Segmentation by Applying Structural
Similarity to Autoencoders"; the networks are in `models/autoencoder.py`.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections

from defect_jax import optim, steps
from defect_jax.data.augment import augment
from defect_jax.devices import AXIS
from defect_jax.errors import lookup
from defect_jax.losses.pixel import RESIDUALS
from defect_jax.method import DTYPES, Batch, Method, Phase, State, init_state, to_float
from defect_jax.methods.scoring import score_image
from defect_jax.models import AUTOENCODERS


def autoencoder(config: ml_collections.ConfigDict) -> Method:
    """An autoencoder trained on good images.

    Reads from `config.method`: `model` (a name of `AUTOENCODERS`), `code_dim`, `loss` and
    `residual` (names of `RESIDUALS`: what training minimises, what the score map shows),
    `ssim_windows`, `smoothing` and `top_fraction` (see `score_image`).
    """
    method = config.method
    model = lookup(AUTOENCODERS, method.model, "method.model")(
        channels=config.data.channels,
        code_dim=method.code_dim,
        dtype=lookup(DTYPES, config.dtype, "dtype"),
        axis_name=AXIS,
    )
    windows = tuple(method.ssim_windows)
    loss = functools.partial(lookup(RESIDUALS, method.loss, "method.loss"), windows=windows)
    residual = functools.partial(
        lookup(RESIDUALS, method.residual, "method.residual"), windows=windows
    )
    score = functools.partial(
        score_image, smoothing=method.smoothing, top_fraction=method.top_fraction
    )
    tx = optim.make_optimizer(config.optimizer, config.train.num_steps)
    losses = functools.partial(_losses, model, loss, config.augment)
    return Method(
        init=functools.partial(init_state, model, tx),
        phases=(Phase(steps.gradient_step(losses, tx)),),
        predict=functools.partial(_predict, model, residual, score),
    )


def _losses(
    model: nn.Module,
    loss: Any,
    augmentation: ml_collections.ConfigDict,
    params: Any,
    state: State,
    batch: Batch,
    keys: jax.Array,
) -> tuple[jax.Array, steps.Aux]:
    image = augment(augmentation, to_float(batch["image"]), batch["mask"], keys)[0]
    reconstruction, updated = model.apply(
        {"params": params, "batch_stats": state.batch_stats},
        image,
        train=True,
        mutable=["batch_stats"],
    )
    losses = jnp.mean(loss(image, reconstruction), axis=(1, 2))
    return losses, steps.Aux(updated.get("batch_stats", {}), {})


def _predict(
    model: nn.Module, residual: Any, score: Any, state: State, batch: Batch
) -> dict[str, jax.Array]:
    image = to_float(batch["image"])
    variables = {"params": optim.averaged_params(state), "batch_stats": state.batch_stats}
    reconstruction = model.apply(variables, image, train=False)
    return score(residual(image, reconstruction)) | {"reconstruction": reconstruction}
