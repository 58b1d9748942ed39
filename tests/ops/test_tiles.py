"""Tiles cover an image and are merged back without a trace."""

import numpy as np
import pytest

from defect_jax.errors import UserError
from defect_jax.ops import tiles


@pytest.mark.parametrize(
    ("size", "tile", "overlap", "count"),
    [
        ((64, 64), (64, 64), 32, 1),
        ((64, 65), (64, 64), 32, 2),
        ((200, 300), (64, 96), 20, 6 * 5),
        ((645, 1540), (656, 816), 64, 1 * 2),
        ((1016, 2928), (656, 816), 64, 2 * 4),
    ],
)
def test_tiles_cover_everything_and_overlap_enough(size, tile, overlap, count):
    whole = tiles.covered(size, tile)
    assert all(0 <= b - a < max(32, c) for a, b, c in zip(size, whole, tile, strict=True))
    starts = tiles.corners(whole, tile, overlap)
    assert len(starts) == count
    assert not (starts % 32).any()
    covered = np.zeros(whole, int)
    for row, column in starts:
        assert row + tile[0] <= whole[0] and column + tile[1] <= whole[1]
        covered[row : row + tile[0], column : column + tile[1]] += 1
    assert covered.min() == 1
    for axis in (0, 1):
        steps = np.diff(np.unique(starts[:, axis]))
        assert (tile[axis] - steps >= overlap).all()


def test_merging_cut_tiles_gives_the_image_back():
    image = np.random.default_rng(0).normal(size=(112, 144, 2)).astype(np.float32)
    starts = tiles.corners((112, 144), (48, 48), 5)
    assert len(starts) == 3 * 4
    merged = tiles.merge(tiles.cut(image, starts, (48, 48)), starts, (112, 144), 5)
    np.testing.assert_allclose(merged, image, atol=1e-6)
    assert merged.dtype == np.float32


def test_one_tile_turns_into_the_next_where_they_overlap():
    """Two tiles, of zeros and ones, that share columns 32 to 48."""
    starts = tiles.corners((48, 80), (48, 48), 16)
    merged = tiles.merge([np.zeros((48, 48)), np.ones((48, 48))], starts, (48, 80), 16)
    assert (np.diff(merged, axis=1) >= 0).all()
    assert merged[:, :36].max() < 1e-5 and merged[:, 44:].min() > 1 - 1e-5
    np.testing.assert_allclose(merged[:, 39] + merged[:, 40], 1, atol=1e-6)
    np.testing.assert_allclose(merged[:, 37], (1.5 / 8) / (1.5 / 8 + 6.5 / 8), atol=1e-5)


def test_without_overlap_tiles_stand_side_by_side():
    starts = tiles.corners((32, 64), (32, 32), 0)
    merged = tiles.merge([np.full((32, 32), 3.0), np.full((32, 32), 5.0)], starts, (32, 64), 0)
    np.testing.assert_array_equal(merged, np.repeat([[3, 5]] * 32, 32, axis=1))


@pytest.mark.parametrize("overlap", [-1, 33])
def test_a_wrong_overlap_is_told(overlap):
    with pytest.raises(UserError, match=rf"eval\.overlap is {overlap} for tiles of 64x90"):
        tiles.corners((128, 128), (64, 90), overlap)
