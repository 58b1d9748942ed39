"""Connected defects of a class map: what each is, where it lies, and how large it is."""

from typing import NamedTuple

import numpy as np
from scipy import ndimage, spatial

_NEIGHBOURS = np.ones((3, 3))  # 8-connected


class Defect(NamedTuple):
    """A connected region of one class.

    Lengths are in pixels, a pixel being a square of side 1. The centroid counts from the centre of
    the top left pixel, as array indices do.

    Attributes:
        class_id: its class, not 0.
        score: the highest of its pixels.
        area: number of pixels.
        length: the largest distance between two corners of its pixels, the maximum Feret diameter.
        width: the smallest distance between two parallel lines that hold it between them, the
            minimum Feret diameter.
        row, column: its centroid.
        top, left, bottom, right: its box, half-open.
        pixels: [area, 2] int64, rows and columns of its pixels, in reading order.
    """

    class_id: int
    score: float
    area: int
    length: float
    width: float
    row: float
    column: float
    top: int
    left: int
    bottom: int
    right: int
    pixels: np.ndarray


def find_defects(class_map: np.ndarray, score_map: np.ndarray) -> list[Defect]:
    """Finds the 8-connected regions of each class; where two classes touch there are two defects.

    Args:
        class_map: [h, w] int, 0 is background.
        score_map: [h, w] float, without NaN.

    Returns:
        The defects, highest score first; equal scores by class, then in reading order.

    Raises:
        ValueError: the maps differ in shape.
    """
    if np.shape(class_map) != np.shape(score_map):
        raise ValueError(
            f"class map {np.shape(class_map)} and score map {np.shape(score_map)} must agree"
        )
    class_map, score_map = np.asarray(class_map, np.int64), np.asarray(score_map)
    labels, count = _label_classes(class_map)
    if not count:
        return []
    # All pixels, region by region; the stable sort leaves those of each in reading order.
    pixels = np.argwhere(labels)[np.argsort(labels[labels > 0], kind="stable")]
    areas = np.bincount(labels.ravel())[1:]
    starts = np.cumsum(areas) - areas
    lowest = np.minimum.reduceat(pixels, starts)
    diameters = _all_diameters(np.split(pixels - np.repeat(lowest, areas, axis=0), starts[1:]))
    columns = (
        class_map[tuple(pixels[starts].T)],
        np.maximum.reduceat(score_map[tuple(pixels.T)], starts),
        areas,
        *np.transpose(diameters),
        *(np.add.reduceat(pixels, starts) / areas[:, None]).T,
        *lowest.T,
        *(np.maximum.reduceat(pixels, starts) + 1).T,
    )
    rows = zip(*(c.tolist() for c in columns), np.split(pixels, starts[1:]), strict=True)
    return sorted(map(Defect._make, rows), key=lambda defect: -defect.score)


def remove_small(class_map: np.ndarray, min_area: int) -> np.ndarray:
    """Returns the class map with the regions of fewer than `min_area` pixels set to background.

    Regions are 8-connected and of one class, as in `find_defects`: a small region goes even where
    it touches another class.

    Args:
        class_map: [h, w] int, 0 is background.
        min_area: in pixels; 0 and 1 remove nothing.
    """
    class_map = np.asarray(class_map)
    if min_area <= 1:
        return class_map
    labels, _ = _label_classes(class_map)
    return class_map * (np.bincount(labels.ravel())[labels] >= min_area)


def label_regions(foreground: np.ndarray) -> tuple[np.ndarray, int]:
    """Numbers the 8-connected regions of a mask.

    Args:
        foreground: [h, w], nonzero inside.

    Returns:
        [h, w] int, 0 outside and 1, 2, ... in the regions, in reading order; their number.
    """
    return ndimage.label(np.asarray(foreground) != 0, _NEIGHBOURS)


def _label_classes(class_map: np.ndarray) -> tuple[np.ndarray, int]:
    """Like `label_regions`, class by class."""
    labels, count = np.zeros(class_map.shape, np.int64), 0
    for class_id in np.unique(class_map[class_map != 0]):
        own, number = label_regions(class_map == class_id)
        labels[own > 0] = own[own > 0] + count
        count += number
    return labels, count


def _all_diameters(shapes: list[np.ndarray]) -> list[tuple[float, float]]:
    """`_feret_diameters` of each; those of one shape are computed once, as specks look alike."""
    known: dict[bytes, tuple[float, float]] = {}
    keys = [shape.tobytes() for shape in shapes]
    for key, shape in zip(keys, shapes, strict=True):
        if key not in known:
            known[key] = _feret_diameters(shape)
    return [known[key] for key in keys]


def _feret_diameters(pixels: np.ndarray) -> tuple[float, float]:
    """The largest and the smallest extent of pixels [n, 2] in reading order.

    The largest joins two vertices of the convex hull; the smallest lies across one of its edges
    (rotating calipers: Toussaint, Solving geometric problems with the rotating calipers, 1983).
    """
    corners = _outer_corners(pixels)
    hull = corners[spatial.ConvexHull(corners).vertices]
    edges = np.roll(hull, -1, axis=0) - hull
    offsets = hull[None] - hull[:, None]
    across = edges[:, None, 0] * offsets[..., 1] - edges[:, None, 1] * offsets[..., 0]
    heights = np.abs(across).max(axis=1) / np.hypot(*edges.T)
    return float(np.hypot(*offsets.T).max()), float(heights.min())


def _outer_corners(pixels: np.ndarray) -> np.ndarray:
    """The corners [m, 2] of each row's first and last pixel, which have the hull of them all.

    Corners, not centres: those of a single pixel, or of pixels in a line, span an area too.
    """
    first = np.flatnonzero(np.diff(pixels[:, 0], prepend=-1))
    last = np.append(first[1:], len(pixels)) - 1
    above = np.concatenate([pixels[first], pixels[last] + np.array([0, 1])])
    return np.concatenate([above, above + np.array([1, 0])]).astype(np.float64)
