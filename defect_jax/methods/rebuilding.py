"""What all methods that rebuild images share: pixel losses, and how residuals become scores."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections

from defect_jax.errors import UserError, lookup, require_distinct
from defect_jax.losses.pixel import RESIDUALS
from defect_jax.methods.scoring import make_scoring


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
    require_distinct(method.losses, "method.losses")
    windows = tuple(method.ssim_windows)
    odd = [isinstance(window, int) and window >= 3 and window % 2 == 1 for window in windows]
    if not windows or not all(odd):
        raise UserError(f"method.ssim_windows is {windows}: name odd sizes of 3 pixels or more")
    by_name = {name: lookup(RESIDUALS, name, "method.losses") for name in method.losses}
    residual = lookup(RESIDUALS, method.residual, "method.residual")
    return Rebuilding(
        functools.partial(_losses, by_name, windows),
        functools.partial(residual, windows=windows),
        make_scoring(method),
    )


def _losses(
    by_name: dict[str, Callable], windows: tuple[int, ...], x: jax.Array, y: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    parts = {
        name: jnp.mean(residual(x, y, windows=windows), axis=(1, 2))
        for name, residual in by_name.items()
    }
    return sum(parts.values(), jnp.zeros(())), parts
