import pathlib

import ml_collections
import numpy as np
import pytest
from PIL import Image

from configs import mvtec_autoencoder
from defect_jax.data import mvtec
from defect_jax.data.tensorflow_quietly import tf
from defect_jax.errors import UserError


def save(path: pathlib.Path, pixels: np.ndarray) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def decode(data: bytes) -> np.ndarray:
    return tf.io.decode_image(data).numpy()


def config(root, category: str, cache_dir) -> ml_collections.ConfigDict:
    data = mvtec_autoencoder.get_config().data
    data.update(root=str(root), category=category, cache_dir=str(cache_dir))
    return data


def shade(value: int, height: int = 6, width: int = 8) -> np.ndarray:
    return np.full((height, width), value, np.uint8)


@pytest.fixture
def root(tmp_path) -> pathlib.Path:
    """A category 'nut' of mixed formats and sizes, and an empty one 'bolt'."""
    root = tmp_path / "root"
    nut = root / "nut"
    save(nut / "train/good/0.png", shade(10))
    save(nut / "train/good/1.bmp", np.dstack([shade(20), shade(30), shade(40)]))
    save(nut / "train/good/2.tif", shade(50, 4, 5))
    save(nut / "test/good/0.jpg", shade(60))
    save(nut / "test/crack/0.png", shade(70))
    save(nut / "test/crack/1.PNG", shade(80, 5, 9))
    save(nut / "ground_truth/crack/0_mask.png", 255 * np.eye(6, 8, dtype=np.uint8))
    save(nut / "ground_truth/crack/1_mask.bmp", shade(0, 5, 9) + np.eye(5, 9, dtype=np.uint8))
    (root / "bolt/train/good").mkdir(parents=True)
    return root


@pytest.fixture
def data(root, tmp_path) -> ml_collections.ConfigDict:
    return config(root, "nut", tmp_path / "cache")


def one_line(data: ml_collections.ConfigDict) -> str:
    with pytest.raises(UserError) as caught:
        mvtec.load(data, "train")
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_both_splits_of_a_small_folder(data):
    train, test = mvtec.load(data, "train"), mvtec.load(data, "test")
    assert train.filename.tolist() == [f"train/good/{n}" for n in ("0.png", "1.bmp", "2.tif")]
    assert train.label.tolist() == [0, 0, 0] and set(train.mask) == {b""}
    shapes = [decode(image).shape for image in train.image]
    assert shapes == [(6, 8, 1), (6, 8, 3), (4, 5, 1)]
    assert [decode(image)[0, 0].tolist() for image in train.image] == [[10], [20, 30, 40], [50]]
    assert test.filename.tolist() == ["test/crack/0.png", "test/crack/1.PNG", "test/good/0.jpg"]
    assert test.defect_type.tolist() == ["crack", "crack", "good"]
    assert test.label.tolist() == [1, 1, 0] and test.mask[2] == b""
    np.testing.assert_array_equal(decode(test.mask[0])[..., 0], np.eye(6, 8))
    np.testing.assert_array_equal(decode(test.mask[1])[..., 0], np.eye(5, 9))


def test_replaced_file_is_prepared_anew_and_the_old_one_is_not(data, root):
    cache = pathlib.Path(data.cache_dir)
    before = mvtec.load(data, "train").image[0]
    records = {path: path.stat().st_mtime_ns for path in cache.rglob("*tfrecord*")}
    assert mvtec.load(data, "train").image[0] == before
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*tfrecord*")} == records
    save(root / "nut/train/good/0.png", shade(99))
    assert decode(mvtec.load(data, "train").image[0]).min() == 99
    assert len(set(cache.rglob("*tfrecord*"))) > len(records)


def test_changed_mask_is_prepared_anew(data, root):
    assert decode(mvtec.load(data, "test").mask[0]).sum() == 6
    save(root / "nut/ground_truth/crack/0_mask.png", shade(255))
    assert decode(mvtec.load(data, "test").mask[0]).sum() == 48


def test_masks_of_several_classes(data, root):
    data.num_classes = 4
    path = root / "nut/ground_truth/crack/0_mask.png"
    message = one_line(data)
    assert str(path) in message and "holds 255" in message and "data.num_classes" in message
    classes = np.arange(48, dtype=np.uint8).reshape(6, 8) % 4
    save(path, classes)
    np.testing.assert_array_equal(decode(mvtec.load(data, "test").mask[0])[..., 0], classes)
    data.num_classes = 2  # the same files, prepared anew
    np.testing.assert_array_equal(decode(mvtec.load(data, "test").mask[0])[..., 0], classes > 0)


def test_home_folder_as_root(data, root, monkeypatch):
    monkeypatch.setenv("HOME", str(root.parent))
    data.root = "~/root"
    assert mvtec.categories("~/root") == ["bolt", "nut"]
    assert len(mvtec.load(data, "train")) == 3


def test_root_that_is_not_there_or_not_set(data, tmp_path):
    data.root = str(tmp_path / "nowhere")
    assert "nowhere" in one_line(data)
    data.root = ""
    assert "data.root" in one_line(data)


def test_root_of_another_layout(data, tmp_path):
    (tmp_path / "other/images").mkdir(parents=True)
    data.root = str(tmp_path / "other")
    message = one_line(data)
    assert "images" in message and "train/good" in message
    data.root = str(tmp_path / "other/images")
    assert "found nothing" in one_line(data)


def test_root_that_is_a_category(data, root):
    data.root = str(root / "nut")
    message = one_line(data)
    assert f"data.root to {root} " in message and message.endswith("data.category to nut")


def test_unknown_category_lists_those_that_are_there(data):
    data.category = "cable"
    message = one_line(data)
    assert "'cable'" in message and "bolt, nut" in message


def test_category_without_good_images(data, root):
    data.category = "bolt"
    assert str(root / "bolt/train/good") in one_line(data)


def test_category_without_test_images(data, root):
    for path in (root / "nut/test").rglob("*.*"):
        path.unlink()
    assert str(root / "nut/test") in one_line(data)


@pytest.mark.parametrize(
    "name", ["train/good/0.png", "test/good/0.jpg", "ground_truth/crack/0_mask.png"]
)
def test_truncated_file_is_named(data, root, name):
    path = root / "nut" / name
    path.write_bytes(path.read_bytes()[:-20])
    assert str(path) in one_line(data)


def test_defective_image_without_its_mask(data, root):
    (root / "nut/ground_truth/crack/0_mask.png").unlink()
    message = one_line(data)
    assert str(root / "nut/test/crack/0.png") in message
    assert str(root / "nut/ground_truth/crack/0_mask.png") in message


def test_defective_training_images(data, root):
    save(root / "nut/train/crack/9.png", shade(90))
    save(root / "nut/ground_truth/crack/9_mask.png", shade(255))
    train, test = mvtec.load(data, "train"), mvtec.load(data, "test")
    assert train.filename[0] == "train/crack/9.png" and len(train) == 4
    assert train.label.tolist() == [1, 0, 0, 0] and train.defect_type[0] == "crack"
    assert (decode(train.mask[0]) == 1).all() and set(train.mask[1:]) == {b""}
    assert len(test) == 3


@pytest.mark.parametrize("name", ["train/crack/0.png", "test/crack/0.bmp"])
def test_mask_of_two_images(data, root, name):
    image = save(root / "nut" / name, shade(90))
    message = one_line(data)
    assert str(root / "nut/ground_truth/crack/0_mask.png") in message
    assert str(image) in message and str(root / "nut/test/crack/0.png") in message


def test_folder_without_training_images(data, root):
    (root / "nut/train/dent").mkdir()
    assert f"no images in {root / 'nut/train/dent'}" in one_line(data)


@pytest.mark.parametrize("name", ["crack/7_mask.png", "dent/0_mask.png"])
def test_mask_without_an_image(data, root, name):
    path = save(root / "nut/ground_truth" / name, shade(255))
    assert str(path) in one_line(data)


def test_mask_of_another_size(data, root):
    path = save(root / "nut/ground_truth/crack/0_mask.png", shade(255, 8, 6))
    message = one_line(data)
    assert str(path) in message and "6x8" in message and "8x6" in message


@pytest.mark.parametrize("name", ["train/3.png", "test/notes.txt", "ground_truth/0_mask.png"])
def test_file_beside_the_folders(data, root, name):
    path = root / "nut" / name
    path.touch()
    message = one_line(data)
    assert f"{path} lies beside the folders" in message


@pytest.mark.parametrize("name", ["train/good/3.heic", "test/crack/nested", "ground_truth/crack/x"])
def test_what_is_no_image_in_a_folder(data, root, name):
    path = root / "nut" / name
    path.mkdir()
    assert f"{path} is no image file" in one_line(data)


def test_mask_that_marks_nothing(data, root):
    path = save(root / "nut/ground_truth/crack/0_mask.png", shade(0))
    assert f"{path} marks no defect" in one_line(data)


def test_names_may_write_an_accent_in_either_way(data, root):
    nut = root / "nut"
    (nut / "test/crack").rename(nut / "test/rei\u00df\u00fcber")
    (nut / "ground_truth/crack").rename(nut / "ground_truth/rei\u00dfu\u0308ber")
    assert mvtec.load(data, "test").label.sum() == 2


def test_unknown_split(data):
    with pytest.raises(UserError, match=r"'valid'.*test, train"):
        mvtec.load(data, "valid")


def test_failed_preparation_can_be_repeated_after_the_mend(data, root):
    path = root / "nut/train/good/2.tif"
    path.write_bytes(b"")
    one_line(data)
    save(path, shade(1))
    assert len(mvtec.load(data, "train")) == 3


# name: training images, good test images, defective test images, defect types.
REAL = {"screw": (320, 41, 119, 5), "metal_plate": (54, 26, 71, 1), "hazelnut_toy": (28, 6, 17, 1)}


@pytest.mark.parametrize("category", REAL)
def test_real_categories(data_root, prepared, category):
    data = config(data_root / "mvtec", category, prepared)
    assert category in mvtec.categories(data.root)
    num_train, num_good, num_bad, num_types = REAL[category]
    train, test = mvtec.load(data, "train"), mvtec.load(data, "test")
    assert len(train) == num_train and not train.label.any()
    assert np.bincount(test.label).tolist() == [num_good, num_bad]
    assert len(set(test.defect_type) - {"good"}) == num_types
    sizes = set()
    for image, mask, label in zip(test.image, test.mask, test.label, strict=True):
        height, width = decode(image).shape[:2]
        sizes.add((height, width))
        if label:
            classes = decode(mask)
            assert classes.shape == (height, width, 1)
            assert classes.max() == 1 and 0 < classes.mean() < 0.5
        else:
            assert mask == b""
    sizes |= {decode(image).shape[:2] for image in train.image}
    assert len(sizes) == (2 if category == "hazelnut_toy" else 1)
