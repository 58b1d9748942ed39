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


def find_defects(class_map: np.ndarray, score_map: np.ndarray, min_area: int = 1) -> list[Defect]:
    """Finds the 8-connected regions of each class; where two classes touch there are two defects.

    Args:
        class_map: [h, w] int, 0 is background.
        score_map: [h, w] float, without NaN.
        min_area: regions of fewer pixels are left out of the list. The class map keeps them:
            `remove_small` takes the same ones out of that.

    Returns:
        The defects, highest score first; equal scores by class, then in reading order.

    Raises:
        ValueError: the maps differ in shape.
    """
    if np.shape(class_map) != np.shape(score_map):
        raise ValueError(
            f"class map {np.shape(class_map)} and score map {np.shape(score_map)} must agree"
        )
    class_map, score_map = np.asarray(class_map), np.asarray(score_map)
    labels, count = _label_classes(class_map)
    inside = np.argwhere(labels)
    numbers = labels[labels > 0]
    # A stable sort leaves each region's pixels in reading order.
    order = np.argsort(numbers, kind="stable")
    ends = np.cumsum(np.bincount(numbers, minlength=count + 1)[1:])
    regions = np.split(inside[order], ends[:-1]) if count else []
    defects = [
        _measure(pixels, class_map, score_map) for pixels in regions if min_area <= len(pixels)
    ]
    return sorted(defects, key=lambda defect: -defect.score)


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


def _measure(pixels: np.ndarray, class_map: np.ndarray, score_map: np.ndarray) -> Defect:
    length, width = _feret_diameters(pixels)
    (top, left), (bottom, right) = pixels.min(axis=0), pixels.max(axis=0) + 1
    row, column = pixels.mean(axis=0)
    return Defect(
        class_id=int(class_map[tuple(pixels[0])]),
        score=float(score_map[tuple(pixels.T)].max()),
        area=len(pixels),
        length=length,
        width=width,
        row=float(row),
        column=float(column),
        top=int(top),
        left=int(left),
        bottom=int(bottom),
        right=int(right),
        pixels=pixels,
    )


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
