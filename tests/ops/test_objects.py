import itertools

import numpy as np
import pytest
from scipy import ndimage
from skimage import measure

from defect_jax.ops.objects import find_defects, remove_small


def blobs(seed, size=(40, 50), num_classes=3):
    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(rng.normal(size=(num_classes, *size)), (0, 2, 2))
    noise[0] += 0.05
    return noise.argmax(axis=0), rng.normal(size=size).astype(np.float32)


def only(shape, pixels):
    """The one defect of class 1 at these pixels."""
    class_map = np.zeros(shape, np.int64)
    class_map[tuple(np.transpose(pixels))] = 1
    (defect,) = find_defects(class_map, np.zeros(shape))
    return defect


def all_corners(pixels):
    return np.concatenate([pixels + corner for corner in itertools.product((0, 1), repeat=2)])


@pytest.mark.parametrize("seed", range(3))
def test_regions_boxes_and_centroids_agree_with_skimage(seed):
    class_map, score_map = blobs(seed)
    expected = []
    for class_id in (1, 2):
        labels = measure.label(class_map == class_id, connectivity=2)
        for region in measure.regionprops(labels, intensity_image=score_map):
            expected.append(
                (-region.intensity_max, class_id, region.area, *region.centroid, *region.bbox)
            )
    found = [
        (-d.score, d.class_id, d.area, d.row, d.column, d.top, d.left, d.bottom, d.right)
        for d in find_defects(class_map, score_map)
    ]
    assert len(found) > 10
    np.testing.assert_allclose(found, sorted(expected))


def test_each_defect_holds_its_own_pixels():
    class_map, score_map = blobs(3)
    rebuilt = np.zeros_like(class_map)
    for defect in find_defects(class_map, score_map):
        assert (rebuilt[tuple(defect.pixels.T)] == 0).all()
        rebuilt[tuple(defect.pixels.T)] = defect.class_id
    np.testing.assert_array_equal(rebuilt, class_map)


@pytest.mark.parametrize("seed", range(3))
def test_length_and_width_agree_with_brute_force(seed):
    """All pairs of corners; all directions in steps of a tenth of a degree."""
    directions = np.deg2rad(np.arange(0, 180, 0.1))
    normals = np.stack([np.cos(directions), np.sin(directions)])
    for defect in find_defects(*blobs(seed, size=(30, 30))):
        corners = all_corners(defect.pixels)
        pairs = np.linalg.norm(corners[:, None] - corners[None], axis=-1)
        assert defect.length == pytest.approx(pairs.max())
        extents = np.ptp(corners @ normals, axis=0)
        # No direction is narrower, and the nearest one tried is turned by at most 0.05 degrees.
        assert extents.min() - defect.length * np.deg2rad(0.051) <= defect.width
        assert defect.width <= extents.min() + 1e-9


def test_length_is_about_that_of_skimage():
    """Which measures from the middles of the pixels' sides, up to half a pixel from a corner."""
    class_map, score_map = blobs(4)
    defects = {tuple(d.pixels[0]): d for d in find_defects(class_map == 1, score_map)}
    for region in measure.regionprops(measure.label(class_map == 1, connectivity=2)):
        difference = defects[tuple(region.coords[0])].length - region.feret_diameter_max
        assert -1e-9 <= difference <= 1


def test_a_single_pixel_has_a_size():
    defect = only((3, 3), [(1, 2)])
    assert (defect.area, defect.row, defect.column) == (1, 1, 2)
    assert (defect.top, defect.left, defect.bottom, defect.right) == (1, 2, 2, 3)
    assert defect.length == pytest.approx(np.sqrt(2))
    assert defect.width == pytest.approx(1)


@pytest.mark.parametrize(
    "pixels, length, width",
    [
        ([(0, c) for c in range(5)], np.hypot(1, 5), 1),
        ([(r, 2) for r in range(5)], np.hypot(1, 5), 1),
        ([(k, k) for k in range(5)], 5 * np.sqrt(2), np.sqrt(2)),
        ([(r, c) for r in range(3) for c in range(4)], 5, 3),
    ],
    ids=["row", "column", "diagonal", "rectangle"],
)
def test_sizes_by_hand(pixels, length, width):
    defect = only((5, 5), pixels)
    assert defect.length == pytest.approx(length)
    assert defect.width == pytest.approx(width)


def test_touching_classes_are_two_defects_and_corners_connect():
    class_map = np.array([[1, 2, 0, 0], [1, 2, 0, 1], [0, 0, 1, 0]])
    score_map = np.array([[1, 5, 0, 0], [2, 4, 9, 3], [0, 0, 0, 0]], np.float32)
    found = [(d.class_id, d.area, d.score) for d in find_defects(class_map, score_map)]
    assert found == [(2, 2, 5), (1, 2, 3), (1, 2, 2)]


def test_many_specks_are_measured_as_one_by_one():
    """Specks of one shape share their diameters, whatever else they differ in."""
    rng = np.random.default_rng(5)
    class_map = rng.choice(3, (60, 70), p=[0.8, 0.12, 0.08])
    score_map = rng.integers(0, 5, class_map.shape).astype(np.float32)  # most scores are equal
    expected = []
    for class_id in (1, 2):
        labels = measure.label(class_map == class_id, connectivity=2)
        for region in measure.regionprops(labels, intensity_image=score_map):
            alone = only(class_map.shape, region.coords)
            row = (class_id, region.intensity_max, region.area, alone.length, alone.width)
            expected.append((*row, *region.centroid, *region.bbox))
    expected.sort(key=lambda row: -row[1])
    found = find_defects(class_map, score_map)
    assert len(found) > 300 and len({defect.pixels.tobytes() for defect in found}) == len(found)
    np.testing.assert_allclose([defect[:-1] for defect in found], expected)


def test_small_defects_removed_are_those_of_fewer_pixels():
    class_map, score_map = blobs(6)
    defects = find_defects(class_map, score_map)
    areas = sorted({defect.area for defect in defects})
    least = areas[len(areas) // 2]
    expected = np.zeros_like(class_map)
    for defect in defects:
        if defect.area >= least:
            expected[tuple(defect.pixels.T)] = defect.class_id
    removed = remove_small(class_map, least)
    assert 0 < np.count_nonzero(removed) < np.count_nonzero(class_map)
    np.testing.assert_array_equal(removed, expected)
    assert removed.dtype == class_map.dtype
    np.testing.assert_array_equal(remove_small(class_map, 1), class_map)


def test_background_has_no_defects():
    empty = np.zeros((4, 6), np.uint8)
    assert find_defects(empty, np.ones((4, 6))) == []
    np.testing.assert_array_equal(remove_small(empty, 5), empty)


def test_maps_of_different_shape_are_refused():
    with pytest.raises(ValueError, match=r"\(4, 6\).*\(1, 6\)"):
        find_defects(np.zeros((4, 6), int), np.zeros((1, 6)))
