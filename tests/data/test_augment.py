"""Random views: invariants of each, and independence of the batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default
from defect_jax.data.augment import augment
from defect_jax.errors import UserError
from defect_jax.steps import example_keys


@pytest.fixture
def config():
    return default.get_config().augment


@pytest.fixture(scope="module")
def batch():
    image = jax.random.uniform(jax.random.PRNGKey(0), (16, 12, 20, 3))
    mask = (image[..., 0] > 0.7).astype(jnp.uint8)
    return image, mask, example_keys(jax.random.PRNGKey(1), jnp.arange(16))


def test_off_by_default(config, batch):
    image, mask = augment(config, *batch)
    np.testing.assert_array_equal(image, batch[0])
    np.testing.assert_array_equal(mask, batch[1])


@pytest.mark.parametrize(("field", "axis"), [("flip_horizontal", 2), ("flip_vertical", 1)])
def test_flips_about_half_and_the_mask_with_its_image(config, batch, field, axis):
    config[field] = True
    image, mask = augment(config, *batch)
    flipped = [
        np.array_equal(new, np.flip(old, axis - 1))
        for new, old in zip(image, batch[0], strict=True)
    ]
    same = [np.array_equal(new, old) for new, old in zip(image, batch[0], strict=True)]
    assert all(a != b for a, b in zip(flipped, same, strict=True)) and 2 < sum(flipped) < 14
    np.testing.assert_array_equal(mask, (image[..., 0] > 0.7).astype(np.uint8))


def test_rotation_turns_image_and_mask_alike_and_stays_in_range(config):
    config.rotation = 30.0
    blob = np.zeros((4, 33, 33, 1), np.float32)
    blob[:, 6:12, 13:20] = 1
    keys = example_keys(jax.random.PRNGKey(2), jnp.arange(4))
    image, mask = augment(config, jnp.asarray(blob), jnp.asarray(blob[..., 0] > 0.5), keys)
    assert not np.array_equal(image, blob)
    assert image.min() >= 0 and image.max() <= 1
    overlap = np.logical_and(image[..., 0] > 0.5, mask).sum((1, 2))
    union = np.logical_or(image[..., 0] > 0.5, mask).sum((1, 2))
    assert (overlap / union > 0.9).all()
    # A turn about the centre keeps the blob's distance from it.
    rows, columns = np.indices((33, 33)) - 16
    for one in image[..., 0]:
        centre = np.hypot((rows * one).sum(), (columns * one).sum()) / one.sum()
        assert abs(centre - np.hypot(8.5 - 16, 16 - 16)) < 0.3


def test_crop_enlarges_a_part_of_the_image(config):
    config.min_crop = 0.5
    ramp = jnp.broadcast_to(jnp.linspace(0, 1, 40)[None, None, :, None], (8, 40, 40, 1))
    keys = example_keys(jax.random.PRNGKey(3), jnp.arange(8))
    image, _ = augment(config, ramp, jnp.zeros((8, 40, 40), jnp.uint8), keys)
    span = image[:, 20, -1, 0] - image[:, 20, 0, 0]
    assert (span > 0.45).all() and (span <= 1.001).all() and np.ptp(span) > 0.1


def test_lighting_is_a_slope_and_a_bias_within_bounds(config, batch):
    config.lighting_probability = 1.0
    config.lighting_slope, config.lighting_bias = 0.05, 0.04
    middle = 0.3 + 0.4 * batch[0]  # nothing clips
    image, _ = augment(config, middle, batch[1], batch[2])
    for new, old in zip(image, middle, strict=True):
        slope, bias = np.polyfit(np.ravel(old), np.ravel(new), 1)
        np.testing.assert_allclose(slope * old + bias, new, atol=1e-5)
        assert abs(slope - 1) <= 0.0501 and abs(bias) <= 0.0401


def test_a_crop_larger_than_the_image_holds_all_of_it_anywhere_and_reflects_it(config):
    config.min_crop = config.max_crop = 2.0
    ramp = jnp.broadcast_to(jnp.linspace(0, 1, 40)[None, None, :, None], (64, 4, 40, 1))
    keys = example_keys(jax.random.PRNGKey(3), jnp.arange(64))
    image, mask = augment(config, ramp, (ramp[..., 0] > 0.5).astype(jnp.uint8), keys)
    starts = []
    for row in np.asarray(image)[:, 0, :, 0]:
        rising = np.diff(row) > 0.04  # by 2 / 39, but less next to the border
        start = max(range(22), key=lambda place: rising[place : place + 19].sum())
        assert rising[start : start + 19].sum() >= 17
        assert row[start : start + 20].min() < 0.06 and row[start : start + 20].max() > 0.94
        assert np.diff(row).min() < -0.04  # its mirror image
        starts.append(start)
    assert min(starts) < 6 and max(starts) > 14
    clear = np.abs(image[..., 0] - 0.5) > 0.05
    np.testing.assert_array_equal(mask[clear], image[..., 0][clear] > 0.5)


def test_sides_of_crops_are_drawn_between_both_bounds(config):
    config.update(min_crop=0.7, max_crop=1.4)
    ramp = jnp.broadcast_to(jnp.linspace(0, 1, 40)[None, None, :, None], (64, 4, 40, 1))
    keys = example_keys(jax.random.PRNGKey(4), jnp.arange(64))
    image, _ = augment(config, ramp, jnp.zeros((64, 4, 40), jnp.uint8), keys)
    sides = np.median(np.diff(image[:, 0, :, 0], axis=1), axis=1) * 39
    assert sides.min() > 0.699 and sides.max() < 1.401
    np.testing.assert_allclose(
        np.quantile(sides, [0.05, 0.5, 0.95]), [0.735, 1.05, 1.365], atol=0.06
    )


def test_a_view_depends_on_its_own_key_alone(config, batch):
    config.update(flip_horizontal=True, rotation=10.0, min_crop=0.8, lighting_probability=0.5)
    whole, _ = augment(config, *batch)
    part, _ = augment(config, *(field[5:7] for field in batch))
    np.testing.assert_allclose(part, whole[5:7], atol=1e-6)


def test_draws_of_old_runs_are_drawn_again(config, batch):
    """Pixels of the first version; a change of them makes old runs impossible to repeat."""
    config.update(flip_horizontal=True, flip_vertical=True, rotation=15.0, min_crop=0.7)
    config.lighting_probability = 0.5
    image, mask = augment(config, *batch)
    pinned = [0.0605162, 0.5969091, 0.7913691, 0.4109879]
    np.testing.assert_allclose(image[:4, 5, 7, 1], pinned, atol=1e-5)
    np.testing.assert_array_equal(mask[:4].sum((1, 2)), [62, 58, 64, 65])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rotation": -5.0}, "augment.rotation is -5.0: choose a number of 0 or more"),
        (
            {"lighting_probability": 1.5},
            "augment.lighting_probability is 1.5: choose a number betw",
        ),
        ({"gamma": -0.1}, "augment.gamma is -0.1: choose a number of 0 or more"),
        ({"contrast": float("nan")}, "augment.contrast is nan"),
        ({"hue": 0.6}, "augment.hue is 0.6: choose a number between 0 and 0.5"),
        ({"blur": -1.0}, "augment.blur is -1.0"),
        ({"noise": float("inf")}, "augment.noise is inf"),
        ({"jpeg": 120}, "augment.jpeg is 120: choose a number between 0 and 100"),
        ({"jpeg": -1}, "augment.jpeg is -1"),
        (
            {"min_crop": 1.2},
            "augment.min_crop is 1.2 and augment.max_crop 1.0: choose numbers above",
        ),
        ({"min_crop": 0.0}, "augment.min_crop is 0.0"),
        ({"max_crop": float("inf")}, "augment.max_crop inf"),
    ],
)
def test_bad_fields_are_named(config, batch, fields, message):
    config.update(fields)
    with pytest.raises(UserError, match=message) as error:
        augment(config, *batch)
    assert "\n" not in str(error.value)
