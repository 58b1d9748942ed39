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
    # The variances enter only as their sum, so four moments are enough.
    moments = jnp.stack([x, y, x * x + y * y, x * y])
    moments = moments.reshape(-1, *x.shape[1:])
    blurred = blur.blur(moments, sigma, window // 2).reshape(4, *x.shape)
    mean_x, mean_y, squares, product = blurred
    means = mean_x * mean_y
    mean_squares = mean_x * mean_x + mean_y * mean_y
    luminance = (2 * means + c1) / (mean_squares + c1)
    structure = (2 * (product - means) + c2) / (squares - mean_squares + c2)
    return jnp.mean(luminance * structure, axis=-1)
