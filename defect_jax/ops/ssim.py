"""Structural similarity of two images, pixel by pixel."""

import jax
import jax.numpy as jnp

from defect_jax.ops import blur


def ssim(
    x: jax.Array,
    y: jax.Array,
    window: int = 11,
    sigma: float = 1.5,
    c1: float = 0.01**2,
    c2: float = 0.03**2,
) -> jax.Array:
    """Returns the map of structural similarity (SSIM).

    Wang et al. 2004, "Image quality assessment: from error visibility to structural similarity",
    IEEE Trans. Image Processing 13(4), equation 13, with a Gaussian window. Images continue beyond
    the border as their mirror image, as in `skimage.metrics.structural_similarity` with
    `gaussian_weights=True, use_sample_covariance=False, data_range=1`, which the whole map equals.

    Args:
        x: [B, H, W, C] float32 in [0, 1].
        y: like `x`.
        window: width of the window in pixels, odd.
        sigma: standard deviation of the window in pixels.
        c1: keeps the ratio of means finite.
        c2: keeps the ratio of variances finite.

    Returns:
        [B, H, W] in [-1, 1], the mean over channels; 1 where windows are identical.
    """
    x, y = (jnp.moveaxis(image, -1, 1) for image in (x, y))  # [B, C, H, W], as `blur` takes it
    # A shift leaves variances alone, and about the mean their squares lose least to rounding.
    shift_x, shift_y = (jnp.mean(image, axis=(2, 3), keepdims=True) for image in (x, y))
    u, v = x - shift_x, y - shift_y
    # The variances enter only as their sum, so four moments are enough.
    mean_u, mean_v, squares, product = (
        blur.blur(moment, sigma, window // 2) for moment in (u, v, u * u + v * v, u * v)
    )
    variances = squares - mean_u * mean_u - mean_v * mean_v
    covariance = product - mean_u * mean_v
    mean_x, mean_y = mean_u + shift_x, mean_v + shift_y
    luminance = (2 * mean_x * mean_y + c1) / (mean_x * mean_x + mean_y * mean_y + c1)
    structure = (2 * covariance + c2) / (variances + c2)
    return jnp.mean(luminance * structure, axis=1)
