"""Datasets in an .npz file."""

import ml_collections
import numpy as np
import pytest

from defect_jax.data import arrays
from defect_jax.errors import UserError


@pytest.fixture
def data(tmp_path):
    return ml_collections.ConfigDict(
        {
            "root": str(tmp_path / "parts.npz"),
            "image_size": (4, 6),
            "channels": 3,
            "num_classes": 2,
            "fit": "resize",
        }
    )


IMAGES = np.random.default_rng(0).integers(0, 255, (5, 4, 6, 3)).astype(np.uint8)

MARKED = np.zeros((5, 4, 6), np.uint8)
MARKED[2, 1, 1] = 1


def test_masks_say_what_is_defective(data):
    mask = np.zeros((5, 4, 6), np.uint8)
    mask[1, 2, 3] = 1
    np.savez(data.root, train_image=IMAGES, test_image=IMAGES, test_mask=mask)
    test = arrays.load(data, "test")
    assert test.is_decoded and len(test) == 5
    np.testing.assert_array_equal(test.image, IMAGES)
    assert test.label.tolist() == [0, 1, 0, 0, 0]
    assert test.defect_type.tolist() == ["good", "defect", "good", "good", "good"]
    assert not arrays.load(data, "train").mask.any()


def test_grey_images_may_lack_their_channel(data):
    data.channels = 1
    np.savez(data.root, train_image=IMAGES[..., 0])
    np.testing.assert_array_equal(arrays.load(data, "train").image, IMAGES[..., :1])


def test_images_for_crops_may_be_of_any_size(data):
    data.update(fit="crop", image_size=(2, 2))
    np.savez(data.root, train_image=IMAGES)
    np.testing.assert_array_equal(arrays.load(data, "train").image, IMAGES)
    data.channels = 1
    with pytest.raises(UserError, match=r"expected uint8 \[N, 4, 6, 1\]"):
        arrays.load(data, "train")


def test_what_is_saved_is_loaded(data, tmp_path):
    mask = np.zeros((5, 4, 6), np.uint8)
    kinds = np.array(["good", "dent", "good", "scratch", "dent"])
    mask[kinds != "good", 0] = 1
    names = np.array([f"part {n}" for n in range(5)])
    np.savez(
        data.root, test_image=IMAGES, test_mask=mask, test_defect_type=kinds, test_filename=names
    )
    test = arrays.load(data, "test")
    data.root = str(tmp_path / "copy.npz")
    arrays.save(tmp_path / "copy.npz", {"test": test})
    again = arrays.load(data, "test")
    for field in ("image", "mask", "label", "defect_type", "filename"):
        np.testing.assert_array_equal(getattr(again, field), getattr(test, field))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"test_image": IMAGES}, "no array train_image"),
        ({"train_image": IMAGES[:, :2]}, r"expected uint8 \[N, 4, 6, 3\]"),
        ({"train_image": IMAGES / 255}, "train_image is float64"),
        ({"train_image": IMAGES, "train_mask": np.zeros((4, 4, 6), np.uint8)}, "one for each"),
        ({"train_image": IMAGES, "train_mask": np.full((5, 4, 6), 255, np.uint8)}, "holds 255"),
        ({"train_image": IMAGES, "train_defect_type": np.array([b"good"] * 5)}, "S4.*one string"),
        ({"train_image": IMAGES, "train_filename": np.array(list("aabcd"))}, "4 and 5|5 and 4"),
        ({"train_image": IMAGES, "train_filename": np.array([list("abcde")])}, "one string"),
        ({"train_image": IMAGES[:0]}, "holds no images"),
        ({"train_image": IMAGES, "train_masks": IMAGES[..., 0] % 2}, "unknown array.*train_masks"),
        (
            {"train_image": IMAGES, "train_mask": MARKED, "train_defect_type": ["good"] * 5},
            "image 'train/000002' is good and has a mask",
        ),
        ({"train_image": IMAGES, "train_defect_type": ["good"] * 4 + ["Good"]}, "type 'Good'"),
    ],
)
def test_bad_arrays_are_named(data, content, message):
    np.savez(data.root, **content)
    with pytest.raises(UserError, match=message):
        arrays.load(data, "train")


@pytest.mark.parametrize("content", [b"", b"no zip file", b"PK\x03\x04 cut short"])
def test_a_damaged_file_is_named(data, content):
    with open(data.root, "wb") as file:
        file.write(content)
    with pytest.raises(UserError, match=r"cannot read .*parts.npz"):
        arrays.load(data, "train")


def test_a_lone_array_or_a_damaged_member_is_named(data):
    with open(data.root, "wb") as file:
        np.save(file, IMAGES)
    with pytest.raises(UserError, match=r"cannot read .*parts.npz"):
        arrays.load(data, "train")
    np.savez_compressed(data.root, train_image=IMAGES)
    with open(data.root, "r+b") as file:
        file.seek(150)
        file.write(b"damage" * 10)
    with pytest.raises(UserError, match=r"cannot read .*parts.npz"):
        arrays.load(data, "train")


def test_all_categories_of_a_file_are_one(data):
    data.category = "all"
    assert arrays.categories(data) == ["parts"]
    data.category = "left side"
    assert arrays.categories(data) == ["left side"]


def test_a_missing_file_is_named(data):
    with pytest.raises(UserError, match=r"parts.npz is no file"):
        arrays.load(data, "train")
