import numpy as np
import pytest

from configs import bsdata_unet, mvtec_autoencoder, quickstart
from defect_jax.data import datasets, synthetic
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
