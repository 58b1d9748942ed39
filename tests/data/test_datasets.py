import dataclasses

import numpy as np
import pytest

from configs import bsdata_unet, mvtec_autoencoder, quickstart
from defect_jax.data import builder, datasets, pipeline, synthetic
from defect_jax.data.examples import Examples, concatenate
from defect_jax.errors import UserError


@pytest.fixture
def config(prepared):
    config = quickstart.get_config()
    config.seed = 0
    config.data.update(cache_dir=prepared, image_size=(16, 16), validation_fraction=0.25)
    config.data.synthetic.update(num_train=40, num_test_good=1, num_test_per_defect=1)
    return config


def one_line(call, *args) -> str:
    with pytest.raises(UserError) as caught:
        call(*args)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_draw_is_a_fraction_of_the_training_images(config):
    drawn = datasets.draw_validation(config)
    train = datasets.load_split(config, "train")
    assert len(drawn) == len(set(drawn)) == 10
    assert set(drawn) < set(train.filename) and len(train) == 40


def test_draw_depends_on_the_seed_alone(config):
    drawn = datasets.draw_validation(config)
    assert datasets.draw_validation(config) == drawn
    config.seed = 1
    other = datasets.draw_validation(config)
    assert len(other) == 10 and other != drawn


def test_draw_holds_out_at_least_one(config):
    config.data.validation_fraction = 0.001
    assert len(datasets.draw_validation(config)) == 1


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5, 3.0])
def test_fraction_outside_its_range(config, fraction):
    config.data.validation_fraction = fraction
    message = one_line(datasets.draw_validation, config)
    assert "validation_fraction" in message and str(fraction) in message


def test_too_few_images_to_hold_one_out(config):
    config.data.synthetic.num_train = 1
    assert "1 good training images" in one_line(datasets.draw_validation, config)


def test_train_and_validation_are_disjoint_and_complete(config):
    everything = datasets.load_split(config, "train")
    config.data.validation_files = datasets.draw_validation(config)
    train, validation = (datasets.load_split(config, side) for side in ("train", "validation"))
    assert tuple(validation.filename) == config.data.validation_files
    assert not set(train.filename) & set(validation.filename)
    images = dict(zip(everything.filename, everything.image, strict=True))
    for side in (train, validation):
        assert [images.pop(name) for name in side.filename] == side.image.tolist()
    assert not images


def test_test_side_ignores_the_validation_files(config):
    before = datasets.load_split(config, "test").filename
    config.data.validation_files = datasets.draw_validation(config)
    np.testing.assert_array_equal(datasets.load_split(config, "test").filename, before)
    assert len(before) == 1 + len(synthetic.DEFECTS_OF[config.data.category])


def test_validation_file_that_is_no_longer_there(config):
    config.data.validation_files = ("train/good/gone.png",)
    assert "train/good/gone.png" in one_line(datasets.load_split, config, "train")


def test_dataset_with_validation_images_of_its_own(bsdata_root, prepared):
    config = bsdata_unet.get_config()
    config.data.update(root=str(bsdata_root), cache_dir=prepared)
    assert datasets.draw_validation(config) == ()
    sides = [set(datasets.load_split(config, s).filename) for s in ("train", "validation", "test")]
    assert all(sides) and not sides[0] & sides[1] and not (sides[0] | sides[1]) & sides[2]


def test_categories_of_each_dataset(mvtec_root, config):
    assert datasets.categories(config) == ["gear"]
    config.data.category = "all"
    assert datasets.categories(config) == sorted(synthetic.SURFACES)
    mvtec = mvtec_autoencoder.get_config()
    mvtec.data.update(root=str(mvtec_root), category="all")
    assert datasets.categories(mvtec) == ["part"]
    bsdata = bsdata_unet.get_config()
    bsdata.data.category = "all"
    assert datasets.categories(bsdata) == ["pitting"]


def test_unknown_dataset(config):
    config.data.name = "imagenet"
    for call in (datasets.categories, datasets.draw_validation):
        assert "'imagenet'" in one_line(call, config)
    message = one_line(datasets.load_split, config, "train")
    assert all(name in message for name in datasets.DATASETS)


@pytest.fixture
def two(config, monkeypatch):
    """One run over 12 training images of wood and 40 of gear."""

    def load(data, split):
        examples = synthetic.load(data, split)
        few = data.category == "wood" and split == "train"
        return examples.take(np.arange(12 if few else len(examples)))

    dataset = datasets.Dataset(load, lambda data: ["gear", "wood"], False)
    monkeypatch.setitem(datasets.DATASETS, "synthetic", dataset)
    config.data.update(category="all", one_model=True)
    return config


def test_one_model_holds_out_of_each_category_what_a_run_of_its_own_would(two):
    drawn = datasets.draw_validation(two)
    for category, count in (("gear", 10), ("wood", 3)):
        alone = two.copy_and_resolve_references()
        alone.data.update(category=category, one_model=False)
        expected = datasets.draw_validation(alone)
        assert len(expected) == count
        two.data.validation_files = drawn
        assert datasets.of_category(two, category).data.validation_files == expected
    assert len(drawn) == 13
    two.data.update(validation_fraction=0.001, validation_files=())
    assert [name.split("/")[0] for name in datasets.draw_validation(two)] == ["gear", "wood"]


def test_one_model_joins_each_split_of_the_categories(two):
    two.data.validation_files = datasets.draw_validation(two)
    for split in ("train", "validation", "test"):
        names, images, kinds = [], [], []
        for category in ("gear", "wood"):
            part = datasets.load_split(datasets.of_category(two, category), split)
            names += [f"{category}/{name}" for name in part.filename]
            images += part.image.tolist()
            kinds += part.defect_type.tolist()
        joined = datasets.load_split(two, split)
        assert joined.filename.tolist() == names and len(set(names)) == len(names)
        assert joined.image.tolist() == images and joined.defect_type.tolist() == kinds


def test_one_model_counts_the_images_of_every_category(two):
    digest = datasets.check_splits(two)
    assert datasets.check_splits(two) == digest
    two.data.synthetic.num_train = 41  # one more of gear
    assert datasets.check_splits(two) != digest


def test_one_model_names_a_validation_image_whose_category_is_gone(two):
    two.data.validation_files = ("nut/train/good/000.png",)
    assert "nut/train/good/000.png" in one_line(datasets.load_split, two, "train")


def test_one_model_over_the_only_category(bsdata_root, prepared, tmp_path):
    bsdata = bsdata_unet.get_config()
    bsdata.data.update(root=str(bsdata_root), cache_dir=prepared, category="all")
    np.savez(tmp_path / "cups.npz", train_image=np.arange(192, dtype=np.uint8).reshape(4, 4, 4, 3))
    cups = mvtec_autoencoder.get_config()
    cups.data.update(name="arrays", root=str(tmp_path / "cups.npz"), category="all")
    cups.data.image_size = (4, 4)
    for config, category in ((bsdata, "pitting"), (cups, "cups")):
        alone = datasets.load_split(config, "train")
        config.data.one_model = True
        one = datasets.load_split(config, "train")
        assert one.is_decoded == alone.is_decoded
        assert one.image.tolist() == alone.image.tolist()
        assert one.filename.tolist() == [f"{category}/{name}" for name in alone.filename]


def test_files_of_any_size_and_depth_are_joined_and_decoded(config):
    def examples(*shapes):
        rng = np.random.default_rng(0)
        files = [
            builder.encode_png(rng.integers(0, 255, shape).astype(np.uint8)) for shape in shapes
        ]
        count = len(files)
        return Examples(
            np.array(files, object),
            np.array(
                [builder.encode_png(np.ones(shape[:2], np.uint8)) for shape in shapes], object
            ),
            np.ones(count, np.int32),
            np.full(count, "spot"),
            np.array([f"{shapes}{number}" for number in range(count)]),
        )

    parts = [examples((9, 20), (30, 30)), examples((7, 8, 3))]
    config.data.fit = "pad"
    joined = pipeline.decode_all(config.data, concatenate(parts))
    alone = [pipeline.decode_all(config.data, part) for part in parts]
    assert joined["image"].shape == (3, 16, 16, 3)
    for key, values in joined.items():
        np.testing.assert_array_equal(values, np.concatenate([one[key] for one in alone]))
    assert joined["mask"].sum(axis=(1, 2)).tolist() == [7 * 16, 16 * 16, 14 * 16]


def test_what_cannot_be_joined_is_named(config):
    files = datasets.load_split(config, "test")
    arrays = dataclasses.replace(files, image=np.zeros((len(files), 4, 6, 3), np.uint8))
    larger = dataclasses.replace(files, image=np.zeros((len(files), 8, 6, 3), np.uint8))
    assert "of files and [4, 6, 3]" in one_line(concatenate, [files, arrays])
    assert "[4, 6, 3] and [8, 6, 3]" in one_line(concatenate, [arrays, larger])


IMAGES = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 1), np.uint8)


@pytest.fixture
def notes(tmp_path, capsys):
    """What is noted of arrays, of which these differ from six good and six defective images."""

    def notes(**arrays: np.ndarray) -> str:
        config = mvtec_autoencoder.get_config()
        config.data.update(name="arrays", root=str(tmp_path / "a.npz"), category="part")
        config.data.update(image_size=(8, 8), channels=1)
        mask = np.zeros((6, 8, 8), np.uint8)
        mask[:, 2:5, 2:4] = 1
        given = {"train_image": IMAGES[:6], "test_image": IMAGES[6:], "test_mask": mask} | arrays
        np.savez(tmp_path / "a.npz", **given)
        datasets.check_splits(config)
        return capsys.readouterr().out

    return notes


def test_nothing_is_noted_of_images_and_masks_as_they_should_be(notes):
    assert notes() == ""


def test_images_on_both_sides_are_noted(notes):
    told = notes(test_image=IMAGES[3:9])
    assert told.startswith("note: 3 test images are training images too (test/000000 is the first)")


def test_masks_that_mark_nothing_or_nearly_all_are_noted(notes):
    mask = np.zeros((6, 8, 8), np.uint8)
    mask[1:, 2:5, 2:4] = 1
    kinds = np.array(["pit"] * 6)
    told = notes(test_mask=mask, test_defect_type=kinds)
    assert told.startswith("note: the mask of test/000000, a defective test image, marks nothing")
    told = notes(test_mask=1 - mask)
    assert told.startswith("note: the median test mask marks 91% of its image")


def test_masks_that_vanish_at_the_size_of_training_teach_nothing(mvtec_root, prepared):
    config = bsdata_unet.get_config()
    config.data.update(name="mvtec", root=str(mvtec_root), category="part", cache_dir=prepared)
    examples = datasets.load_split(config, "test")
    config.data.image_size = (2, 2)
    count = int(examples.label.sum())
    assert count and not any(
        pipeline.fitted_mask(config.data, examples, n).any() for n in range(len(examples))
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "_load_side", lambda config, split: examples)
        message = one_line(datasets.check_splits, config)
    assert "at the size of training" in message and "larger images" in message
