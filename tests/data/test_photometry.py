"""Changes of values against libraries and by hand, and what they must leave alone."""

import functools
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from PIL import Image

from configs import default
from defect_jax.data import photometry
from defect_jax.data.augment import augment
from defect_jax.steps import example_keys

GEOMETRY = {"flip_horizontal": True, "rotation": 20.0, "min_crop": 0.7, "max_crop": 1.4}
FIELDS = {"gamma": 0.5, "contrast": 0.4, "hue": 0.2, "blur": 1.5, "noise": 0.1, "jpeg": 30}


compress = jax.jit(photometry.compress)


@functools.cache
def view(**fields):
    """Compiled augmentation by the defaults but for these fields."""
    config = default.get_config().augment
    config.update(fields)
    return jax.jit(functools.partial(augment, config))


@pytest.fixture(scope="module")
def batch():
    """Smooth images with noise, of no whole number of blocks, within 8 bits."""
    rng = np.random.default_rng(0)
    coarse = rng.uniform(0.2, 0.8, (16, 4, 5, 3))
    image = scipy.ndimage.zoom(coarse, (1, 5, 6, 1), order=3, mode="nearest")
    image = (image + rng.normal(0, 0.03, image.shape)).clip(0, 1)
    image = jnp.float32(np.round(image * 255) / 255)
    mask = (image[..., 0] > 0.5).astype(jnp.uint8)
    return image, mask, example_keys(jax.random.PRNGKey(2), jnp.arange(16))


def test_every_change_is_tested():
    assert FIELDS.keys() == photometry.CHANGES.keys()


@pytest.mark.parametrize("name", FIELDS)
def test_images_change_each_in_its_own_way_and_masks_do_not(batch, name):
    change = view(**{name: FIELDS[name]})
    image, mask = change(*batch)
    assert image.shape == batch[0].shape and image.dtype == np.float32
    assert image.min() >= 0 and image.max() <= 1
    assert (np.abs(image - batch[0]).max((1, 2, 3)) > 1e-3).sum() >= 10
    np.testing.assert_array_equal(mask, batch[1])
    same = jnp.broadcast_to(batch[0][:1], batch[0].shape)
    image, _ = change(same, *batch[1:])
    assert len(np.unique(np.round(image, 5), axis=0)) >= 10


def test_geometry_is_drawn_as_without_changes(batch):
    _, plain = view(**GEOMETRY)(*batch)
    _, changed = view(**GEOMETRY, **FIELDS)(*batch)
    np.testing.assert_array_equal(plain, changed)


def test_everything_together_depends_on_the_own_key_alone(batch):
    """An example keeps its result in another place, among others."""
    image, mask = view(**GEOMETRY, **FIELDS)(*batch)
    order = np.array([3, 8, 12, 4, 3, 1, 0, 15, 7, 7, 10, 6, 14, 2, 5, 11])
    others, other_mask = view(**GEOMETRY, **FIELDS)(*(field[order] for field in batch))
    np.testing.assert_array_equal(other_mask, mask[order])
    # Rounding may bring a coefficient of JPEG to another step, and so one block of the image.
    assert np.mean(np.abs(others - image[order]) > 1e-5) < 0.1


@pytest.mark.parametrize("field", ["flip_horizontal", "flip_vertical"])
def test_changes_are_drawn_apart_from_geometry(field):
    """The sign of gamma's exponent is no function of a flip's coin."""
    corner = jnp.full((64, 4, 4, 1), 0.5).at[:, 0, 0].set(0.0)
    keys = example_keys(jax.random.PRNGKey(5), jnp.arange(64))
    image, _ = view(gamma=0.5, **{field: True})(corner, jnp.zeros((64, 4, 4), jnp.uint8), keys)
    stayed, brighter = image[:, 0, 0, 0] == 0, image[:, 2, 2, 0] > 0.5
    assert np.bincount(2 * stayed + brighter, minlength=4).min() >= 6


def test_gamma_is_a_power_within_bounds(batch):
    change = view(gamma=0.5)
    image = 0.1 + 0.8 * batch[0]
    exponents = np.log(change(image, *batch[1:])[0]) / np.log(image)
    np.testing.assert_allclose(exponents, exponents[:, :1, :1, :1] * np.ones_like(image), rtol=1e-4)
    drawn = np.log(exponents[:, 0, 0, 0])
    assert np.abs(drawn).max() <= 0.5001 and drawn.min() < -0.2 and drawn.max() > 0.2


def test_contrast_scales_around_the_mean_within_bounds(batch):
    change = view(contrast=0.4)
    image = 0.3 + 0.4 * batch[0]  # nothing clips
    drawn = []
    for new, old in zip(change(image, *batch[1:])[0], image, strict=True):
        factor = new.std() / old.std()
        np.testing.assert_allclose(new, old.mean() + factor * (old - old.mean()), atol=1e-5)
        drawn.append(np.log(factor))
    assert np.abs(drawn).max() <= 0.4001 and min(drawn) < -0.2 and max(drawn) > 0.2


def test_hue_turns_chrominance_and_keeps_luma(batch):
    image = batch[0][0]
    luma = image @ np.float32([0.299, 0.587, 0.114])
    third = photometry.rotate_hue(image, 1 / 3)
    np.testing.assert_allclose(third @ np.float32([0.299, 0.587, 0.114]), luma, atol=1e-6)
    assert np.abs(third - image).max() > 0.1
    np.testing.assert_allclose(photometry.rotate_hue(image, 1.0), image, atol=2e-6)
    twice = photometry.rotate_hue(photometry.rotate_hue(third, 1 / 3), 1 / 3)
    np.testing.assert_allclose(twice, image, atol=2e-6)
    # Half a turn takes every colour to its complement of the same luma.
    half = photometry.rotate_hue(image, 0.5)
    np.testing.assert_allclose(half, 2 * luma[..., None] - image, atol=2e-6)


def test_hue_leaves_greys_and_grey_images(batch):
    change = view(hue=0.5)
    grey = batch[0][..., :1]
    np.testing.assert_array_equal(change(grey, *batch[1:])[0], grey)
    colours = jnp.repeat(grey, 3, axis=-1)
    np.testing.assert_allclose(change(colours, *batch[1:])[0], colours, atol=1e-6)


@pytest.mark.parametrize(("sigma", "radius"), [(1.3, 6), (0.4, 6), (3.0, 24)])
def test_blur_equals_scipy(batch, sigma, radius):
    """The widest window is wider than the image, so the reflection repeats."""
    image = np.asarray(batch[0][0])
    expected = scipy.ndimage.gaussian_filter(
        np.float64(image), sigma, mode="reflect", radius=radius, axes=(0, 1)
    )
    np.testing.assert_allclose(photometry.blur(image, sigma, radius), expected, atol=1e-6)


def test_blur_of_nothing_is_the_image(batch):
    np.testing.assert_array_equal(photometry.blur(batch[0][0], 0.0, 3), batch[0][0])


def test_blur_is_drawn_up_to_the_largest():
    """A point's spread: the variance of rows weighted by the image."""
    change = view(blur=2.0)
    point = jnp.zeros((64, 25, 25, 1)).at[:, 12, 12].set(1.0)
    keys = example_keys(jax.random.PRNGKey(6), jnp.arange(64))
    image, _ = change(point, jnp.zeros((64, 25, 25), jnp.uint8), keys)
    np.testing.assert_allclose(image.sum((1, 2, 3)), 1.0, rtol=1e-5)
    variance = image[..., 0].sum(2) @ ((np.arange(25) - 12.0) ** 2)
    assert variance.max() < 4.0 and variance.max() > 3.0 and variance.min() < 0.1


def test_noise_is_normal_with_a_deviation_up_to_the_largest():
    change = view(noise=0.1)
    keys = example_keys(jax.random.PRNGKey(7), jnp.arange(64))
    grey = jnp.full((64, 24, 24, 3), 0.5)
    noise = np.asarray(change(grey, jnp.zeros((64, 24, 24), jnp.uint8), keys)[0]) - 0.5
    deviations = noise.std((1, 2, 3))
    assert deviations.max() < 0.105 and deviations.max() > 0.09 and deviations.min() < 0.01
    np.testing.assert_allclose(np.mean(deviations), 0.05, atol=0.012)
    scaled = noise / deviations[:, None, None, None]
    quantiles = np.quantile(scaled, [0.023, 0.159, 0.5, 0.841, 0.977])
    np.testing.assert_allclose(quantiles, [-2, -1, 0, 1, 2], atol=0.03)
    assert abs(np.corrcoef(scaled[..., 0].ravel(), scaled[..., 1].ravel())[0, 1]) < 0.02


def saved_as_jpeg(image, quality):
    """Pillow's decoding of its own file, in [0, 1]."""
    pixels = np.round(np.asarray(image) * 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze()).save(file, "jpeg", quality=quality, subsampling=0)
    return np.asarray(Image.open(file)).reshape(pixels.shape) / 255


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("quality", [1, 10, 49, 50, 75, 95, 100])
def test_jpeg_equals_pillows(batch, quality, channels):
    """But for single coefficients about half a step, which its integer arithmetic rounds apart."""
    images = np.asarray(batch[0][:8, ..., :channels])
    ours = np.clip([compress(image, quality) for image in images], 0, 1)
    expected = np.stack([saved_as_jpeg(image, quality) for image in images])
    error = np.abs(ours - expected).mean()
    assert error < 1.2 / 255
    if quality < 95:  # small beside what the file changes
        assert error < 0.1 * np.abs(expected - images).mean()


def test_jpeg_draws_qualities_down_to_the_lowest(batch):
    """The error of a single image grows as quality falls, so it tells the quality's bounds."""
    keys = example_keys(jax.random.PRNGKey(8), jnp.arange(64))
    image = jnp.broadcast_to(batch[0][:1], (64, *batch[0].shape[1:]))
    change = view(jpeg=10)
    changed, _ = change(image, jnp.zeros(image.shape[:3], jnp.uint8), keys)
    errors = np.abs(changed - image).mean((1, 2, 3))
    lowest, low, high = (
        np.abs(np.clip(compress(image[0], quality), 0, 1) - image[0]).mean()
        for quality in (10, 20, 95)
    )
    assert errors.max() <= lowest * 1.05 and errors.max() > low and errors.min() < high


def test_highest_quality_alone_is_drawn_where_it_is_the_lowest(batch):
    change = view(jpeg=100)
    changed, _ = change(*batch)
    for new, old in zip(changed, batch[0], strict=True):
        np.testing.assert_allclose(new, compress(old, 100).clip(0, 1), atol=1e-5)
