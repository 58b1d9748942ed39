"""Tiles cover an image and are merged back without a trace."""

import numpy as np
import pytest

from defect_jax.errors import UserError
from defect_jax.ops import tiles


@pytest.mark.parametrize(
    ("size", "tile", "overlap", "count"),
    [
        ((8, 8), (8, 8), 4, 1),
        ((8, 9), (8, 8), 4, 2),
        ((20, 30), (8, 10), 2, 3 * 4),
        ((645, 1540), (656 - 16, 816), 64, 2 * 2),
    ],
)
def test_tiles_cover_everything_and_overlap_enough(size, tile, overlap, count):
    starts = tiles.corners(size, tile, overlap)
    assert len(starts) == count
    covered = np.zeros(size, int)
    for row, column in starts:
        assert row + tile[0] <= size[0] and column + tile[1] <= size[1]
        covered[row : row + tile[0], column : column + tile[1]] += 1
    assert covered.min() == 1
    for axis in (0, 1):
        steps = np.diff(np.unique(starts[:, axis]))
        assert (tile[axis] - steps >= overlap).all()


def test_merging_cut_tiles_gives_the_image_back():
    image = np.random.default_rng(0).normal(size=(37, 53, 2)).astype(np.float32)
    starts = tiles.corners((37, 53), (16, 20), 5)
    merged = tiles.merge(tiles.cut(image, starts, (16, 20)), starts, (37, 53), 5)
    np.testing.assert_allclose(merged, image, atol=1e-6)
    assert merged.dtype == np.float32


def test_one_tile_turns_into_the_next_where_they_overlap():
    """Two tiles, of zeros and ones, that share columns 16 to 32."""
    starts = tiles.corners((20, 48), (20, 32), 16)
    merged = tiles.merge([np.zeros((20, 32)), np.ones((20, 32))], starts, (20, 48), 16)
    assert (np.diff(merged, axis=1) >= 0).all()
    assert merged[:, :20].max() < 1e-5 and merged[:, 28:].min() > 1 - 1e-5
    np.testing.assert_allclose(merged[:, 23] + merged[:, 24], 1, atol=1e-6)
    np.testing.assert_allclose(merged[:, 21], (1.5 / 8) / (1.5 / 8 + 6.5 / 8), atol=1e-5)


def test_without_overlap_tiles_stand_side_by_side():
    starts = tiles.corners((4, 8), (4, 4), 0)
    merged = tiles.merge([np.full((4, 4), 3.0), np.full((4, 4), 5.0)], starts, (4, 8), 0)
    np.testing.assert_array_equal(merged, np.repeat([[3, 5]] * 4, 4, axis=1))


@pytest.mark.parametrize("overlap", [-1, 8])
def test_a_wrong_overlap_is_told(overlap):
    with pytest.raises(UserError, match=rf"eval\.overlap is {overlap} for tiles of 8x10"):
        tiles.corners((20, 20), (8, 10), overlap)
