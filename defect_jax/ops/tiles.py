"""Covering an image with overlapping tiles, and merging what was computed for each."""

from collections.abc import Iterable

import numpy as np

from defect_jax.errors import UserError

# Tiles begin at multiples of this, so that a network that halves an image up to five times halves
# a tile at the same pixels; a U-Net of other steps is refused (see `models`).
GRID = 32


def covered(size: tuple[int, int], tile: tuple[int, int]) -> tuple[int, int]:
    """The smallest (height, width) from `size` on that tiles on the grid cover to the end."""
    height, width = (
        side + max(0, -(-(whole - side) // GRID)) * GRID
        for whole, side in zip(size, tile, strict=True)
    )
    return height, width


def corners(size: tuple[int, int], tile: tuple[int, int], overlap: int) -> np.ndarray:
    """Where the tiles of an image begin: as few as overlap enough, evenly spread on the grid.

    Args:
        size: (height, width) of the image, as `covered` gives it.
        tile: (height, width).
        overlap: pixels that neighbours share at least.

    Returns:
        [n, 2] int, rows and columns; the first tile begins at the image's corner, the last ends at
        the opposite one.

    Raises:
        UserError: an overlap that leaves a tile no step of the grid.
    """
    if not 0 <= overlap <= min(tile) - GRID:
        raise UserError(
            f"eval.overlap is {overlap} for tiles of {tile[0]}x{tile[1]}: it must be 0 or more and "
            f"at least {GRID} less than their sides"
        )
    starts = []
    for whole, side in zip(size, tile, strict=True):
        steps = (whole - side) // GRID
        count = 1 + -(-steps // ((side - overlap) // GRID))
        starts.append(np.rint(np.linspace(0, steps, count)).astype(int) * GRID)
    return np.stack(np.meshgrid(*starts, indexing="ij"), axis=-1).reshape(-1, 2)


def cut(image: np.ndarray, starts: np.ndarray, tile: tuple[int, int]) -> np.ndarray:
    """The tiles of an image [H, W, ...] that begin at `starts` [n, 2]: [n, h, w, ...]."""
    return np.stack([image[r : r + tile[0], c : c + tile[1]] for r, c in starts])


def merge(
    tiles: Iterable[np.ndarray], starts: np.ndarray, size: tuple[int, int], overlap: int
) -> np.ndarray:
    """Merges maps of tiles, from one to the next in the middle half of where they overlap.

    A network sees less of what lies around a pixel near its tile's border, so within a quarter of
    the overlap of a border a tile counts a millionth of its neighbour. From there its weight rises
    linearly, to its full one at three quarters. Beyond the image's own border nothing is to be
    seen, so there a tile has its full weight.

    Args:
        tiles: n arrays [h, w, ...] float.
        starts: [n, 2], as `corners` gives them.
        size: (H, W) of the whole.
        overlap: as `corners` took it.

    Returns:
        [H, W, ...] float32.
    """
    total, weights = np.zeros(0), np.zeros(size)
    for (row, column), tile in zip(starts, tiles, strict=True):
        rows = _rise(row, tile.shape[0], size[0], overlap)
        weight = rows[:, None] * _rise(column, tile.shape[1], size[1], overlap)
        window = np.s_[row : row + tile.shape[0], column : column + tile.shape[1]]
        if not total.size:
            total = np.zeros((*size, *tile.shape[2:]))
        total[window] += weight.reshape(*weight.shape, *[1] * (tile.ndim - 2)) * tile
        weights[window] += weight
    return (total / weights.reshape(*size, *[1] * (total.ndim - 2))).astype(np.float32)


def _rise(start: int, length: int, whole: int, overlap: int) -> np.ndarray:
    """The weight [length] of a tile along one side of an image, `whole` pixels long."""
    if not overlap:
        return np.ones(length)
    middle = np.arange(length) + 0.5
    before = middle if start > 0 else np.inf
    after = length - middle if start + length < whole else np.inf
    distance = np.broadcast_to(np.minimum(before, after), length)
    return np.clip((distance - overlap / 4) / (overlap / 2), 1e-6, 1)
