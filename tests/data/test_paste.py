"""Pasting of defects onto good crops."""

import jax
import ml_collections
import numpy as np
import pytest

from defect_jax.data.paste import paste

SIDE = 24


def make_batch(count: int) -> dict[str, np.ndarray]:
    """Grey crops, every other one with a defect, and donors with a dark L on a bright ground."""
    rng = np.random.default_rng(0)
    mask = np.zeros((count, 64, 48), np.uint8)
    mask[::2, 10:14, 10:14] = 2
    donor_mask = np.zeros((count, SIDE, SIDE), np.uint8)
    donor_mask[:, 9:15, 9:11] = donor_mask[:, 13:15, 9:15] = 1
    donor = np.where(donor_mask[..., None] > 0, 60, 200) + rng.integers(0, 9, (count, 1, 1, 3))
    return {
        "image": rng.uniform(0.3, 0.4, (count, 64, 48, 3)).astype(np.float32),
        "mask": mask,
        "donor_image": donor.astype(np.uint8),
        "donor_mask": donor_mask,
        "keys": jax.random.split(jax.random.PRNGKey(0), count),
    }


@pytest.fixture(scope="module")
def run():
    @jax.jit
    def pasted(batch):
        config = ml_collections.ConfigDict({"paste_probability": 1.0})
        return paste(config, batch["image"], batch["mask"], batch, batch["keys"])

    return pasted


@pytest.fixture(scope="module")
def batch():
    return make_batch(32)


@pytest.fixture(scope="module")
def result(run, batch):
    image, mask = run(batch)
    return np.asarray(image), np.asarray(mask)


def test_crops_with_a_defect_stay(result, batch):
    np.testing.assert_array_equal(result[0][::2], batch["image"][::2])
    np.testing.assert_array_equal(result[1][::2], batch["mask"][::2])


def test_the_mask_shows_the_donors_defect_somewhere_and_turned(result, batch):
    shapes, corners = set(), set()
    for mask in result[1][1::2]:
        rows, columns = np.nonzero(mask)
        box = mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert box.sum() == batch["donor_mask"][0].sum() and box.max() == 1
        shapes.add(box.tobytes())
        corners.add((rows.min(), columns.min()))
    assert len(shapes) == 4  # as it is, and flipped along one side, the other and both
    assert len(corners) > 10


def test_the_defect_is_dark_on_the_crops_own_ground(result, batch):
    for image, mask, before in zip(
        result[0][1::2], result[1][1::2], batch["image"][1::2], strict=True
    ):
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


def test_off_is_the_identity(batch):
    config = ml_collections.ConfigDict({"paste_probability": 0.0})
    image, mask = paste(config, batch["image"], batch["mask"], {}, batch["keys"])
    assert image is batch["image"] and mask is batch["mask"]
