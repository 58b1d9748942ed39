"""Pasting of defects onto crops."""

import jax
import numpy as np
import pytest

from defect_jax.data.paste import paste

SIDE = 24
COUNT = 48
# Whose patches meet no defect; in turns with one elsewhere and without any.
FREE = [number for number in range(COUNT - 1) if number % 3]


def make_batch(count: int) -> dict[str, np.ndarray]:
    """Grey crops, and donors with a dark L on a bright ground.

    Of every three crops the first has a defect where the patch comes to lie, the second one beside
    it; the third has none. The last donor has no defect.
    """
    rng = np.random.default_rng(0)
    mask = np.zeros((count, 64, 48), np.uint8)
    corner = rng.integers(0, (64 - SIDE + 1, 44 - SIDE + 1), (count, 2))
    for number, (top, left) in enumerate(corner[::3]):
        mask[3 * number, top + SIDE - 1, left + SIDE - 1] = 2
    mask[1::3, 10:14, 44:48] = 2
    donor_mask = np.zeros((count, SIDE, SIDE), np.uint8)
    donor_mask[:, 9:15, 9:11] = donor_mask[:, 13:15, 9:15] = 1
    donor_mask[-1] = 0
    donor = np.where(donor_mask[..., None] > 0, 60, 200) + rng.integers(0, 9, (count, 1, 1, 3))
    return {
        "image": rng.uniform(0.3, 0.4, (count, 64, 48, 3)).astype(np.float32),
        "mask": mask,
        "donor_image": donor.astype(np.uint8),
        "donor_mask": donor_mask,
        "donor_corner": corner.astype(np.int32),
        "keys": jax.random.split(jax.random.PRNGKey(0), count),
    }


@pytest.fixture(scope="module")
def run():
    return jax.jit(lambda batch: paste(batch["image"], batch["mask"], batch, batch["keys"]))


@pytest.fixture(scope="module")
def batch():
    return make_batch(COUNT)


@pytest.fixture(scope="module")
def result(run, batch):
    image, mask = run(batch)
    return np.asarray(image), np.asarray(mask)


def test_nothing_is_pasted_over_a_defect(result, batch):
    np.testing.assert_array_equal(result[0][::3], batch["image"][::3])
    np.testing.assert_array_equal(result[1][::3], batch["mask"][::3])


def test_a_patch_without_a_defect_changes_nothing(result, batch):
    np.testing.assert_allclose(result[0][-1], batch["image"][-1], atol=1e-6)
    np.testing.assert_array_equal(result[1][-1], batch["mask"][-1])


def test_the_mask_shows_the_donors_defect_at_its_corner_and_turned(result, batch):
    shapes = set()
    for number in FREE:
        top, left = batch["donor_corner"][number]
        mask = result[1][number]
        patch = mask[top : top + SIDE, left : left + SIDE]
        shapes.add(patch.tobytes())
        assert patch.sum() == batch["donor_mask"][0].sum() and patch.max() == 1
        np.testing.assert_array_equal(np.where(mask == 1, 0, mask), batch["mask"][number])
    donor = batch["donor_mask"][0]
    turned = [donor, donor[::-1], donor[:, ::-1], donor[::-1, ::-1]]
    assert shapes == {one.tobytes() for one in turned}


def test_the_defect_is_dark_on_the_crops_own_ground(result, batch):
    for number in FREE[1::2]:  # those without a defect of their own
        image, mask, before = result[0][number], result[1][number], batch["image"][number]
        # The donor's surround is at 200/255: only the difference to it comes along.
        assert image[mask > 0].mean() < 0.05 + before.mean() - (200 - 60) / 255 / 2
        rows, columns = np.nonzero(mask)
        far = np.ones(mask.shape, bool)
        far[max(rows.min() - 16, 0) : rows.max() + 17, max(columns.min() - 16, 0) :][
            :, : columns.max() - max(columns.min() - 16, 0) + 17
        ] = False
        np.testing.assert_array_equal(image[far], before[far])
        assert far.any() and image.min() >= 0 and image.max() <= 1


def test_an_example_does_not_depend_on_its_batch(run, result, batch):
    alone = {name: values[5:6] for name, values in batch.items()}
    image, mask = run(alone)
    np.testing.assert_allclose(image[0], result[0][5], atol=1e-6)
    np.testing.assert_array_equal(mask[0], result[1][5])


def test_a_batch_without_donors_stays(batch):
    image, mask = paste(batch["image"], batch["mask"], {}, batch["keys"])
    assert image is batch["image"] and mask is batch["mask"]
