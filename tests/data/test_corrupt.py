"""Corruptions: what each does to a pixel, and independence of the batch."""

import functools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from defect_jax.data.corrupt import CORRUPTIONS, Corruption, make_corruption
from defect_jax.errors import UserError
from defect_jax.steps import example_keys

FIELDS = {
    "none": {},
    "white_noise": {"strength": 0.1},
    "salt_pepper": {"strength": 0.3},
    "coarse_noise": {"strength": 0.2},
    "blur": {"strength": 1.5},
    "masks": {"cell_sizes": (2, 7), "num_parts": 3},
}


@functools.cache
def corruption(name, **fields):
    """The corruption of this name, from a config that holds the fields it needs and no other."""
    fields = {"name": name} | FIELDS.get(name, {}) | fields
    made = make_corruption(ml_collections.ConfigDict({"method": {"corruption": fields}}))
    return Corruption(jax.jit(made.train), jax.jit(made.test))


def grey(count, height=16, width=16, channels=2):
    """Images of one grey and a key for each."""
    keys = example_keys(jax.random.PRNGKey(3), jnp.arange(count))
    return jnp.full((count, height, width, channels), 0.5), keys


@pytest.fixture(scope="module")
def batch():
    image = jax.random.uniform(jax.random.PRNGKey(0), (8, 20, 26, 3), minval=0.01)
    return image, example_keys(jax.random.PRNGKey(1), jnp.arange(8))


def test_every_corruption_is_tested():
    assert FIELDS.keys() == CORRUPTIONS.keys()


@pytest.mark.parametrize("name", FIELDS)
def test_every_pixel_is_rebuilt_from_one_view(batch, name):
    made = corruption(name)
    image, _ = batch
    for views in (made.train(*batch), *made.test(image)):
        assert views.image.shape[1:] == image.shape and views.image.dtype == image.dtype
        assert views.share.shape == (*views.image.shape[:-1], 1)
        assert set(np.unique(views.share)) <= {0, 1}
        np.testing.assert_array_equal(views.share.sum(0), 1)
        assert views.image.min() >= 0 and views.image.max() <= 1


@pytest.mark.parametrize("name", FIELDS)
def test_a_view_depends_on_its_own_image_and_key_alone(batch, name):
    made = corruption(name)
    whole = made.train(*batch)
    part = made.train(*(field[5:7] for field in batch))
    for one, other in zip(part, whole, strict=True):
        np.testing.assert_allclose(one, other[:, 5:7], atol=1e-6)
    whole = made.test(batch[0])
    part = made.test(batch[0][5:7])
    assert len(whole) == len(part)
    for one, other in zip(jax.tree.leaves(part), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(one, other[:, 5:7], atol=1e-6)


@pytest.mark.parametrize("name", ["white_noise", "salt_pepper", "coarse_noise", "masks"])
def test_another_key_corrupts_otherwise(batch, name):
    image = jnp.repeat(batch[0][:1], 8, axis=0)
    views = corruption(name).train(image, batch[1])
    for i, j in zip(*np.triu_indices(8, 1), strict=True):
        assert np.abs(views.image[:, i] - views.image[:, j]).max() > 0.1


@pytest.mark.parametrize("name", ["none", "white_noise", "salt_pepper", "coarse_noise"])
def test_noise_is_not_there_at_test_time(batch, name):
    (views,) = corruption(name).test(batch[0])
    np.testing.assert_array_equal(views.image, batch[0][None])


def test_none_leaves_images_alone(batch):
    np.testing.assert_array_equal(corruption("none").train(*batch).image, batch[0][None])


def test_white_noise_is_normal_and_independent():
    noise = np.asarray(corruption("white_noise", strength=0.05).train(*grey(100)).image[0]) - 0.5
    assert abs(noise.mean()) < 5 * 0.05 / np.sqrt(noise.size)
    quantiles = np.quantile(noise, [0.023, 0.159, 0.5, 0.841, 0.977])
    np.testing.assert_allclose(quantiles, 0.05 * np.array([-2, -1, 0, 1, 2]), atol=0.003)
    neighbours = [
        (noise[:, 1:], noise[:, :-1]),
        (noise[:, :, 1:], noise[:, :, :-1]),
        (noise[..., 0], noise[..., 1]),
    ]
    for one, other in neighbours:
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.03


def test_salt_and_pepper_fall_on_whole_pixels_half_each():
    image, keys = grey(100)
    noisy = np.asarray(corruption("salt_pepper", strength=0.3).train(image, keys).image[0])
    assert set(np.unique(noisy)) == {0, 0.5, 1}
    np.testing.assert_array_equal(noisy[..., 0], noisy[..., 1])
    for value, share in ((0, 0.15), (0.5, 0.7), (1, 0.15)):
        assert abs((noisy == value).mean() - share) < 0.01


def test_salt_and_pepper_may_take_no_pixel_or_every_one():
    noisy = np.asarray(corruption("salt_pepper", strength=0.0).train(*grey(10)).image[0])
    np.testing.assert_array_equal(noisy, 0.5)
    noisy = np.asarray(corruption("salt_pepper", strength=1.0).train(*grey(10)).image[0])
    assert set(np.unique(noisy)) == {0, 1} and abs(noisy.mean() - 0.5) < 0.05


def interpolation(size):
    """The matrix [size, 16] that enlarges a line of 16 cells to so many pixels."""
    place = (np.arange(size) + 0.5) * 16 / size - 0.5
    return np.stack([np.interp(place, np.arange(16), cell) for cell in np.eye(16)], axis=1)


def unroll(noise, matrix):
    """Rolls noise [size, ...] back to where `matrix` explains it: its cells, and the shift."""
    unexplained = np.eye(len(matrix)) - matrix @ np.linalg.pinv(matrix)
    errors = [
        np.abs(np.tensordot(unexplained, np.roll(noise, -shift, 0), 1)).max()
        for shift in range(len(noise))
    ]
    shift = int(np.argmin(errors))
    assert errors[shift] < 1e-6
    return np.tensordot(np.linalg.pinv(matrix), np.roll(noise, -shift, 0), 1), shift


def test_coarse_noise_is_a_rolled_and_enlarged_grid():
    image, keys = grey(24, 48, 80)
    noisy = np.asarray(corruption("coarse_noise", strength=0.05).train(image, keys).image[0])
    grids, row_shifts, column_shifts = [], set(), set()
    for noise in np.float64(noisy) - 0.5:
        rows, row_shift = unroll(noise, interpolation(48))
        grid, column_shift = unroll(rows.swapaxes(0, 1), interpolation(80))
        grids.append(grid)
        row_shifts.add(row_shift)
        column_shifts.add(column_shift)
    grids = np.stack(grids)
    assert grids.shape == (24, 16, 16, 2)
    assert abs(grids.mean()) < 5 * 0.05 / np.sqrt(grids.size)
    np.testing.assert_allclose(grids.std(), 0.05, rtol=0.03)
    assert abs(np.corrcoef(grids[..., 0].ravel(), grids[..., 1].ravel())[0, 1]) < 0.05
    assert len(row_shifts) > 12 and len(column_shifts) > 12
    assert max(row_shifts) > 36 and max(column_shifts) > 60


def test_blur_is_the_same_gaussian_in_training_and_at_test_time(batch):
    made = corruption("blur", strength=1.5)
    expected = gaussian_filter(np.float64(batch[0]), (0, 1.5, 1.5, 0), mode="reflect", truncate=4)
    (tested,) = made.test(batch[0])
    for views in (made.train(*batch), tested):
        np.testing.assert_allclose(views.image, expected[None], atol=1e-5)


def cells_of(parts, size):
    """The part of each cell of this size, or None where some cell lies in several parts."""
    cells = parts[::size, ::size]
    enlarged = cells.repeat(size, 0).repeat(size, 1)[: parts.shape[0], : parts.shape[1]]
    return cells if np.array_equal(enlarged, parts) else None


@pytest.mark.parametrize(("size", "num_parts"), [(4, 3), (1, 5)])
def test_cells_are_dealt_into_equal_parts(batch, size, num_parts):
    made = corruption("masks", cell_sizes=(size,), num_parts=num_parts)
    (tested,) = made.test(batch[0])
    for views in (made.train(*batch), tested):
        assert len(views.image) == num_parts
        for parts in np.asarray(views.share[..., 0].argmax(0)):
            cells = cells_of(parts, size)
            assert cells is not None
            counts = np.bincount(cells.ravel(), minlength=num_parts)
            assert len(counts) == num_parts and np.ptp(counts) <= 1
            ordered = np.arange(cells.size) % num_parts
            assert not np.array_equal(cells.ravel(), ordered)


def test_a_view_is_black_where_it_is_to_be_rebuilt_and_whole_elsewhere(batch):
    made = corruption("masks")
    for views in (made.train(*batch), *made.test(batch[0])):
        hidden = np.broadcast_to(views.share == 1, views.image.shape)
        assert hidden.any() and (np.asarray(views.image)[hidden] == 0).all()
        shown = np.broadcast_to(batch[0], hidden.shape)[~hidden]
        np.testing.assert_array_equal(np.asarray(views.image)[~hidden], shown)


def test_no_view_shows_the_pixels_that_are_rebuilt_from_it(batch):
    made, (image, keys) = corruption("masks"), batch
    views = made.train(image, keys)
    for view, share in zip(views.image, views.share, strict=True):
        changed = made.train(jnp.where(share == 1, 1 - image, image), keys)
        index = next(i for i in range(3) if np.array_equal(changed.share[i], share))
        np.testing.assert_array_equal(changed.image[index], view)


def test_cell_sizes_are_drawn_evenly_for_each_example():
    sizes = (2, 4, 8)
    views = corruption("masks", cell_sizes=sizes, num_parts=2).train(*grey(300, 32, 32, 1))
    drawn = [
        max(size for size in sizes if cells_of(parts, size) is not None)
        for parts in np.asarray(views.share[..., 0].argmax(0))
    ]
    counts = [drawn.count(size) for size in sizes]
    assert min(counts) > 70 and max(counts) < 130


def test_masks_test_with_each_cell_size_and_the_same_cells_for_every_image(batch):
    attempts = corruption("masks").test(batch[0])
    assert len(attempts) == 2
    for views, size in zip(attempts, (2, 7), strict=True):
        parts = np.asarray(views.share[..., 0].argmax(0))
        assert (parts == parts[:1]).all()
        assert cells_of(parts[0], size) is not None


@pytest.mark.parametrize(
    ("name", "fields", "field"),
    [
        ("white_noise", {"strength": -0.1}, "strength is -0.1"),
        ("coarse_noise", {"strength": float("nan")}, "strength is nan"),
        ("white_noise", {"strength": float("inf")}, "strength is inf: choose a number of 0 or"),
        ("salt_pepper", {"strength": 1.2}, "strength is 1.2: choose a number between 0 and 1"),
        ("blur", {"strength": -1.0}, "strength is -1.0"),
        ("blur", {"strength": 0.0}, "strength is 0.0"),
        ("masks", {"num_parts": 1}, "num_parts is 1"),
        ("masks", {"cell_sizes": (4, 0)}, "cell_sizes is .4, 0."),
        ("masks", {"cell_sizes": ()}, "cell_sizes is ..:"),
        ("smoke", {}, "name 'smoke': choose one of blur, coarse_noise, masks"),
    ],
)
def test_bad_fields_are_named(name, fields, field):
    with pytest.raises(UserError, match=f"method.corruption.{field}") as error:
        corruption(name, **fields)
    assert "\n" not in str(error.value)


def test_images_of_fewer_cells_than_parts_are_refused(batch):
    made = corruption("masks", cell_sizes=(2, 16), num_parts=5)
    for call in (lambda: made.train(*batch), lambda: made.test(batch[0])):
        with pytest.raises(UserError, match=r"cell_sizes has 16, .* 20x26 in 4 cells .* 5"):
            call()
