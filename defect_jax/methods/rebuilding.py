"""What all methods that rebuild images share: pixel losses, and how residuals become scores."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections

from defect_jax.errors import UserError, lookup, require_within
from defect_jax.losses.pixel import RESIDUALS
from defect_jax.methods.scoring import score_image


class Rebuilding(NamedTuple):
    """How a method compares an image with what it rebuilt.

    Attributes:
        losses: (image, reconstruction [B, H, W, C]) -> total [B] and its parts, name -> [B].
        residual: the same two -> [B, H, W], what the score map shows.
        score: score map [B, H, W] -> `score` [B] and `score_map` [B, H, W]; see `score_image`.
    """

    losses: Callable[[jax.Array, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]
    residual: Callable[[jax.Array, jax.Array], jax.Array]
    score: Callable[[jax.Array], dict[str, jax.Array]]


def make_rebuilding(method: ml_collections.ConfigDict) -> Rebuilding:
    """Reads `losses`, `residual` (names of `RESIDUALS`), `ssim_windows`, and what scoring reads.

    Raises:
        UserError: an unknown name, no losses at all or one twice, a window that SSIM cannot take,
            or what scoring cannot.
    """
    if not method.losses:
        raise UserError("method.losses is empty: name at least one")
    if len(set(method.losses)) < len(method.losses):
        raise UserError(f"method.losses is {tuple(method.losses)}: name each once")
    require_within(method.smoothing, 0, math.inf, "method.smoothing")
    require_within(method.top_fraction, 0, 1, "method.top_fraction")
    windows = tuple(method.ssim_windows)
    if not windows or any(window < 3 or window % 2 == 0 for window in windows):
        raise UserError(f"method.ssim_windows is {windows}: name odd sizes of 3 pixels or more")
    by_name = {name: lookup(RESIDUALS, name, "method.losses") for name in method.losses}
    residual = lookup(RESIDUALS, method.residual, "method.residual")
    return Rebuilding(
        functools.partial(_losses, by_name, windows),
        functools.partial(residual, windows=windows),
        functools.partial(
            score_image, smoothing=method.smoothing, top_fraction=method.top_fraction
        ),
    )


def _losses(
    by_name: dict[str, Callable], windows: tuple[int, ...], x: jax.Array, y: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    parts = {
        name: jnp.mean(residual(x, y, windows=windows), axis=(1, 2))
        for name, residual in by_name.items()
    }
    return sum(parts.values(), jnp.zeros(())), parts
