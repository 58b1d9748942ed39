import numpy as np
import pytest
from scipy import ndimage

from configs import quickstart
from defect_jax.data import synthetic
from defect_jax.data.tensorflow_quietly import tf
from defect_jax.errors import UserError

SIZE = (96, 96)
PAIRS = [(surface, defect) for surface, of in synthetic.DEFECTS_OF.items() for defect in of]


def config(cache_dir, **fields):
    data = quickstart.get_config().data
    data.update(cache_dir=str(cache_dir), image_size=(24, 32))
    data.synthetic.update(num_train=3, num_test_good=2, num_test_per_defect=1)
    data.synthetic.update(fields)
    return data


def test_tables_agree():
    assert set(synthetic.DEFECTS_OF) == set(synthetic.SURFACES)
    assert {defect for of in synthetic.DEFECTS_OF.values() for defect in of} == set(
        synthetic.DEFECTS
    )


@pytest.mark.parametrize("surface", synthetic.SURFACES)
def test_drawing_is_a_function_of_its_arguments(surface):
    defect = synthetic.DEFECTS_OF[surface][0]
    image, mask = synthetic.draw(3, 5, surface, defect, (40, 48))
    again, same_mask = synthetic.draw(3, 5, surface, defect, (40, 48))
    np.testing.assert_array_equal(image, again)
    np.testing.assert_array_equal(mask, same_mask)
    for seed, index in [(4, 5), (3, 6)]:
        other, _ = synthetic.draw(seed, index, surface, defect, (40, 48))
        assert np.mean(other != image) > 0.5


@pytest.mark.parametrize("size", [(16, 16), (17, 64), (70, 33)])
@pytest.mark.parametrize("surface", synthetic.SURFACES)
def test_any_size(surface, size):
    for defect in ("good", *synthetic.DEFECTS_OF[surface]):
        image, mask = synthetic.draw(1, 0, surface, defect, size)
        assert image.shape == (*size, 3) and image.dtype == np.uint8
        assert mask.shape == size and mask.dtype == np.uint8
        assert set(np.unique(mask)) <= {0, 1}
        assert 10 < image.mean() < 245 and image.std() > 2


@pytest.mark.parametrize("surface", synthetic.SURFACES)
def test_good_image_has_an_empty_mask(surface):
    assert not synthetic.draw(0, 0, surface, "good", SIZE)[1].any()


@pytest.mark.parametrize(("surface", "defect"), PAIRS)
def test_defect_lies_in_its_mask_alone(surface, defect):
    inside = []
    for index in range(6):
        good, _ = synthetic.draw(7, index, surface, "good", SIZE)
        image, mask = synthetic.draw(7, index, surface, defect, SIZE)
        difference = np.abs(image.astype(int) - good).max(axis=-1)
        near = ndimage.binary_dilation(mask, iterations=2)
        assert 0 < mask.mean() < 0.3
        assert difference[~near].max() <= 3
        inside.append(difference[mask > 0].mean())
    assert np.mean(inside) > 15


def test_unknown_surface_and_defect(tmp_path):
    data = config(tmp_path)
    data.category = "marble"
    for call in (
        lambda: synthetic.draw(0, 0, "marble", "good", SIZE),
        lambda: synthetic.draw(0, 0, "fabric", "dent", SIZE),
        lambda: synthetic.load(data, "train"),
    ):
        with pytest.raises(UserError, match=r"marble.*gear|dent.*scratch") as caught:
            call()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "fields", [{"num_train": 0}, {"num_test_good": 0, "num_test_per_defect": 0}]
)
def test_split_that_would_be_empty(tmp_path, fields):
    with pytest.raises(UserError, match=r"data\.synthetic"):
        synthetic.load(config(tmp_path, **fields), "train")


def test_load_gives_what_is_asked_for(tmp_path):
    data = config(tmp_path)
    train, test = synthetic.load(data, "train"), synthetic.load(data, "test")
    defects = synthetic.DEFECTS_OF[data.category]
    assert len(train) == 3 and set(train.defect_type) == {"good"} and not train.label.any()
    assert sorted(test.defect_type) == sorted(["good", "good", *defects])
    assert test.label.tolist() == [int(kind != "good") for kind in test.defect_type]
    for image, mask, label in zip(test.image, test.mask, test.label, strict=True):
        assert tf.io.decode_image(image).shape == (24, 32, 3)
        assert bool(mask) == bool(label)
        if label:
            assert tf.io.decode_image(mask).numpy().max() == 1


def test_every_image_shows_another_product(tmp_path, monkeypatch):
    drawn = []

    def draw(seed, index, surface, defect, size):
        drawn.append((seed, index, surface))
        return np.zeros((*size, 3), np.uint8), np.zeros(size, np.uint8)

    monkeypatch.setattr(synthetic, "draw", draw)
    data = config(tmp_path)
    total = sum(len(synthetic.load(data, split)) for split in ("train", "test"))
    assert total == 3 + 2 + len(synthetic.DEFECTS_OF[data.category])
    assert len(drawn) == len(set(drawn)) == total


def test_other_seed_is_prepared_anew(tmp_path):
    first = synthetic.load(config(tmp_path, seed=8), "train").image
    assert synthetic.load(config(tmp_path, seed=8), "train").image.tolist() == first.tolist()
    other = synthetic.load(config(tmp_path, seed=9), "train").image
    assert not set(first) & set(other)
