"""From a score map to the score of its image."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections

from defect_jax.errors import require_within
from defect_jax.ops.blur import gaussian_blur


def make_scoring(
    method: ml_collections.ConfigDict,
) -> Callable[[jax.Array], dict[str, jax.Array]]:
    """Reads `smoothing` and `top_fraction`; returns `score_image` with these.

    Raises:
        UserError: a smoothing below 0 or not finite, or no fraction.
    """
    require_within(method.smoothing, 0, math.inf, "method.smoothing")
    require_within(method.top_fraction, 0, 1, "method.top_fraction")
    return functools.partial(
        score_image, smoothing=method.smoothing, top_fraction=method.top_fraction
    )


def score_image(
    score_map: jax.Array, smoothing: float, top_fraction: float
) -> dict[str, jax.Array]:
    """Smooths a score map and takes the image's score from its highest values.

    Args:
        score_map: [B, H, W] float32.
        smoothing: sigma of the Gaussian, in pixels of the map; 0 for none.
        top_fraction: the score is the mean of this share of the pixels, the highest ones; 0 takes
            the one highest.

    Returns:
        `score` [B] and `score_map` [B, H, W].
    """
    if smoothing:
        score_map = gaussian_blur(score_map, smoothing)
    pixels = score_map.reshape(score_map.shape[0], -1)
    k = max(1, round(top_fraction * pixels.shape[1]))
    highest = jnp.max(pixels, axis=1) if k == 1 else jnp.mean(jax.lax.top_k(pixels, k)[0], axis=1)
    return {"score": highest, "score_map": score_map}
