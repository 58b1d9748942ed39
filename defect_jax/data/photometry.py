"""Random changes of an image's values that leave its geometry alone, in JAX."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

# Full float32 also where a backend would round factors to fewer bits.
_EXACT = jax.lax.Precision.HIGHEST

# NTSC's luma, in-phase and quadrature of red, green and blue. Of a grey the latter two are 0.
_YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])

# JPEG's luma and chrominance of red, green and blue: JFIF 1.02, without the offset of 128.
_YCBCR = np.array(
    [
        [0.299, 0.587, 0.114],
        [-0.299 / 1.772, -0.587 / 1.772, 0.5],
        [0.5, -0.587 / 1.402, -0.114 / 1.402],
    ]
)

# ITU-T T.81 annex K, tables K.1 and K.2: steps of luminance and chrominance at quality 50.
_LUMINANCE = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ]
)
_CHROMINANCE = np.full((8, 8), 99)
_CHROMINANCE[:4, :4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]


def alter(config: ml_collections.ConfigDict, image: jax.Array, key: jax.Array) -> jax.Array:
    """Makes the changes whose fields are not 0, in the order of `CHANGES`; clips after each.

    Args:
        config: `config.augment`; the fields are described in `defect_jax.data.augment`.
        image: [H, W, C] float32 in [0, 1].
        key: uint32 [2]. The first numbers that can be folded into it are left to the caller, who
            may split it: the key of number n is also the n-th of a split.

    Returns:
        [H, W, C] in [0, 1].
    """
    for number, (name, change) in enumerate(CHANGES.items(), start=16):
        if config[name]:
            changed = change(config[name], image, jax.random.fold_in(key, number))
            image = jnp.clip(changed, 0.0, 1.0)
    return image


def rotate_hue(image: jax.Array, turn: jax.typing.ArrayLike) -> jax.Array:
    """Rotates the chrominance of NTSC's YIQ, so that luma and greys stay.

    Args:
        image: [H, W, 3] red, green, blue.
        turn: scalar, the share of a full turn.

    Returns:
        [H, W, 3]; saturated colours may leave [0, 1].
    """
    angle = 2 * jnp.pi * jnp.asarray(turn, image.dtype)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    rotation = jnp.stack([jnp.stack([cos, -sin]), jnp.stack([sin, cos])])
    # Out of the plane of chrominance, and the change there back to colours.
    change = jnp.einsum(
        "ij,jk,kl->il",
        np.linalg.inv(_YIQ)[:, 1:],
        rotation - np.eye(2),
        _YIQ[1:],
        precision=_EXACT,
    )
    return image + jnp.einsum("hwl,il->hwi", image, change, precision=_EXACT)


def blur(image: jax.Array, sigma: jax.typing.ArrayLike, radius: int) -> jax.Array:
    """Computes `scipy.ndimage.gaussian_filter(mode='reflect')` along height and width.

    Unlike `defect_jax.ops.blur` it takes a sigma that is known only when it runs.

    Args:
        image: [H, W, C].
        sigma: scalar, standard deviation in pixels; 0 leaves the image as it is.
        radius: the window reaches this many pixels to each side and sums to 1.

    Returns:
        [H, W, C].
    """
    # At a twentieth of a pixel the weights of neighbours are 0 in float32 already.
    offsets = np.arange(-radius, radius + 1) / jnp.maximum(sigma, 0.05)
    weights = jnp.exp(-0.5 * offsets**2)
    weights = weights / weights.sum()
    return _weigh_rows(_weigh_rows(image, weights).swapaxes(0, 1), weights).swapaxes(0, 1)


def compress(image: jax.Array, quality: jax.typing.ArrayLike) -> jax.Array:
    """What JPEG makes of an image: ITU-T T.81, at the step sizes of the IJG's library.

    Each block of 8x8 pixels is cosine-transformed and rounded to multiples of the steps; colours
    keep their full resolution (4:4:4). Sides that are no multiple of 8 continue with their last
    pixel. Pixels are rounded to 8 bits before, after and as colours again, as in a file.

    Args:
        image: [H, W, C] in [0, 1]; with 3 channels red, green and blue, else each is luminance.
        quality: int scalar in 1..100.

    Returns:
        [H, W, C], which may leave [0, 1].
    """
    height, width, channels = image.shape
    planes, tables, middle = 255 * image, _LUMINANCE[..., None], np.full(1, 128.0)
    if channels == 3:
        planes = jnp.einsum("hwl,il->hwi", planes, _YCBCR, precision=_EXACT)
        tables = np.stack([_LUMINANCE, _CHROMINANCE, _CHROMINANCE], axis=-1)
        middle = np.array([128.0, 0.0, 0.0])
    beyond = ((0, -height % 8), (0, -width % 8), (0, 0))
    planes = jnp.pad(jnp.round(planes) - middle, beyond, mode="edge")
    planes = _round_blocks(planes, _steps(tables, quality))[:height, :width]
    planes = jnp.round(planes + middle)
    if channels == 3:
        planes = jnp.einsum("hwl,il->hwi", planes, np.linalg.inv(_YCBCR), precision=_EXACT)
    return jnp.round(planes) / 255


def _weigh_rows(image: jax.Array, weights: jax.Array) -> jax.Array:
    """The mean of each row of [H, W, C] and its neighbours by weights [2 * radius + 1]."""
    radius = len(weights) // 2
    padded = jnp.pad(image, ((radius, radius), (0, 0), (0, 0)), mode="symmetric")

    def add(number: jax.Array, total: jax.Array) -> jax.Array:
        rows = jax.lax.dynamic_slice_in_dim(padded, number, len(image), axis=0)
        return total + weights[number] * rows

    # A loop, since XLA would compute a plain sum anew wherever its result is read.
    return jax.lax.fori_loop(0, len(weights), add, jnp.zeros_like(image))


def _steps(tables: np.ndarray, quality: jax.typing.ArrayLike) -> jax.Array:
    """Tables for quality 50 brought to another by `jpeg_quality_scaling` of the IJG's library."""
    quality = jnp.asarray(quality, jnp.int32)
    percent = jnp.where(quality < 50, 5000 // quality, 200 - 2 * quality)
    return jnp.clip((tables * percent + 50) // 100, 1, 255)


def _round_blocks(planes: jax.Array, steps: jax.Array) -> jax.Array:
    """Rounds the cosine transforms of blocks of 8x8 of [H, W, C] to multiples of [8, 8, C]."""
    frequency, place = np.indices((8, 8))
    cosines = 0.5 * np.cos(np.pi * frequency * (2 * place + 1) / 16)
    cosines[0] /= np.sqrt(2)
    height, width, channels = planes.shape
    blocks = planes.reshape(height // 8, 8, width // 8, 8, channels)
    waves = jnp.einsum("ui,aibjc,vj->aubvc", cosines, blocks, cosines, precision=_EXACT)
    steps = steps[:, None]
    waves = steps * jnp.round(waves / steps)
    blocks = jnp.einsum("ui,aubvc,vj->aibjc", cosines, waves, cosines, precision=_EXACT)
    return blocks.reshape(planes.shape)


def _symmetric(key: jax.Array, most: float) -> jax.Array:
    return jax.random.uniform(key, minval=-most, maxval=most)


def _draw_gamma(most: float, image: jax.Array, key: jax.Array) -> jax.Array:
    return image ** jnp.exp(_symmetric(key, most))


def _draw_contrast(most: float, image: jax.Array, key: jax.Array) -> jax.Array:
    mean = image.mean()
    return mean + jnp.exp(_symmetric(key, most)) * (image - mean)


def _draw_hue(most: float, image: jax.Array, key: jax.Array) -> jax.Array:
    return rotate_hue(image, _symmetric(key, most)) if image.shape[-1] == 3 else image


def _draw_blur(most: float, image: jax.Array, key: jax.Array) -> jax.Array:
    return blur(image, jax.random.uniform(key, maxval=most), int(4 * most + 0.5))


def _draw_noise(most: float, image: jax.Array, key: jax.Array) -> jax.Array:
    deviation_key, noise_key = jax.random.split(key)
    deviation = jax.random.uniform(deviation_key, maxval=most)
    return image + deviation * jax.random.normal(noise_key, image.shape)


def _draw_jpeg(lowest: int, image: jax.Array, key: jax.Array) -> jax.Array:
    return compress(image, jax.random.randint(key, (), lowest, 101))


# In the order in which light, lens, sensor and file make them. A draw is known by its place: new
# ones belong at the end, or old runs would not repeat.
CHANGES: dict[str, Callable] = {
    "gamma": _draw_gamma,
    "contrast": _draw_contrast,
    "hue": _draw_hue,
    "blur": _draw_blur,
    "noise": _draw_noise,
    "jpeg": _draw_jpeg,
}
