"""Crops for training: where they lie, that they can be repeated, and donors of defects."""

import dataclasses

import ml_collections
import numpy as np
import pytest

from configs import bsdata_residual_unet
from defect_jax.data import crops, pipeline
from defect_jax.data.examples import Examples
from defect_jax.errors import UserError

SIZE = 16


def make_examples(masks: list[np.ndarray]) -> Examples:
    """Decoded examples whose every pixel tells its example, row and column."""
    mask = np.stack(masks)
    rows, columns = np.indices(mask.shape[1:])
    image = [np.stack([np.full_like(rows, n), rows, columns], -1) for n in range(len(masks))]
    label = mask.any(axis=(1, 2)).astype(np.int32)
    names = np.array([f"{n:02}.png" for n in range(len(masks))])
    kinds = np.where(label, "pit", "good")
    return Examples(np.array(image, np.uint8), mask, label, kinds, names)


def spotted(*spots: tuple[int, int]) -> np.ndarray:
    """A frame with defects of 3x3 pixels around these pixels."""
    mask = np.zeros((40, 60), np.uint8)
    for row, column in spots:
        mask[row - 1 : row + 2, column - 1 : column + 2] = 1
    return mask


@pytest.fixture
def config() -> ml_collections.ConfigDict:
    config = bsdata_residual_unet.get_config()
    config.data.update(image_size=(SIZE, SIZE), frame_height=0, defect_share=2 / 3, hard_share=0.0)
    config.data.balance_types = False
    config.train.batch_size = 8
    config.augment.paste_probability = 0.0
    return config


@pytest.fixture
def examples() -> Examples:
    masks = [spotted((20, 30)), spotted((5, 5), (30, 50)), *[spotted()] * 3, spotted((39, 59))]
    return make_examples(masks)


def places(config, steps: int, first: int = 0) -> np.ndarray:
    return pipeline.train_order(config, 6, first, first + steps)[1]


def train_crops(config, examples, places, mistakes=()):
    frames = crops.decode_all(config.data, examples)
    return crops.train_crops(config, frames, places, np.reshape(mistakes, (-1, 3)).astype(int))


def test_the_share_of_crops_around_a_defect(config, examples):
    numbers, centred = crops.order(config, 6, [np.array([0, 1, 5])], places(config, 250))
    assert abs(centred.mean() - 2 / 3) < 0.03
    assert set(numbers[centred]) == {0, 1, 5}  # in turns, so equally often
    counts = np.bincount(numbers[centred])[[0, 1, 5]]
    assert counts.max() - counts.min() <= 1
    counts = np.bincount(numbers[~centred])
    assert len(counts) == 6 and counts.max() - counts.min() <= 1


@pytest.mark.parametrize("balance", [False, True])
def test_crops_around_each_type_of_defect_are_balanced(config, balance):
    """One of five defective images is a dent: half of the crops around a defect show it, or one
    in five. Which crops these are does not depend on it, and neither do the others.
    """
    masks = [spotted((20, 30))] * 5 + [spotted()] * 3
    kinds = np.array(["pit", "pit", "dent", "pit", "pit", "good", "good", "good"])
    examples = dataclasses.replace(make_examples(masks), defect_type=kinds)
    config.data.balance_types = balance
    shown, labels = [], []
    stream = pipeline.train_order(config, len(masks), 0, 250)[1]
    for batch in train_crops(config, examples, stream):
        shown += batch["image"][:, 0, 0, 0].tolist()
        labels += batch["label"].tolist()
    _, centred = crops.order(config, len(masks), [np.arange(5)], stream)
    around = np.array(shown)[centred.ravel()]
    assert np.array(labels)[centred.ravel()].all()
    counts = np.bincount(around, minlength=5)
    assert counts[2] / len(around) == pytest.approx(0.5 if balance else 0.2, abs=0.03)
    pits = np.delete(counts, 2)
    assert len(counts) == 5 and pits.max() - pits.min() <= 1
    others = np.bincount(np.array(shown)[~centred.ravel()])
    assert len(others) == 8 and others.max() - others.min() <= 1


def test_the_random_choices_of_crops_share_no_stream(config):
    """Else, say, the defective frames would come in the order of one of the epochs."""
    config.data.defect_share = 1.0
    all_of_40 = np.arange(40)
    stream = np.arange(40)[None]
    own, _ = crops.order(config, 40, [all_of_40], stream)
    epochs = [pipeline.batch_indices(config.seed, 40, 40, n, n + 1)[0] for n in range(6)]
    assert not any((own[0] == epoch).mean() > 0.3 for epoch in epochs)
    config.data.defect_share = 0.5
    _, centred = crops.order(config, 40, [all_of_40], stream)
    _, halved = crops.order(config, 40, [all_of_40[:20], all_of_40[20:]], stream)
    np.testing.assert_array_equal(centred, halved)
    for purpose in range(6):
        coin = np.random.default_rng([config.seed, purpose]).random(40) < 0.5
        assert (coin == centred[0]).mean() < 0.8


def test_crops_are_windows_and_those_around_a_defect_have_one(config, examples):
    stream = places(config, 40)
    numbers, centred = crops.order(config, 6, [np.array([0, 1, 5])], stream)
    corners = []
    for batch, row, on in zip(train_crops(config, examples, stream), numbers, centred, strict=True):
        for image, mask, number, is_centred in zip(*batch_of(batch), row, on, strict=True):
            top, left = image[0, 0, 1], image[0, 0, 2]
            window = np.s_[top : top + SIZE, left : left + SIZE]
            np.testing.assert_array_equal(image, examples.image[number][window])
            np.testing.assert_array_equal(mask, examples.mask[number][window])
            assert mask.any() or not is_centred
            corners.append((top, left))
        np.testing.assert_array_equal(batch["label"], batch["mask"].any(axis=(1, 2)))
    assert {0, 40 - SIZE} <= {top for top, _ in corners}
    assert len(set(corners)) > 150


def test_a_share_of_the_crops_lies_around_mistakes(config, examples):
    """And the rest is what it would be without."""
    config.data.defect_share, stream = 1 / 3, places(config, 250)
    config.data.hard_share = 0.5
    plain = train_crops(config, examples, stream)
    hard = train_crops(config, examples, stream, [(2, 11, 31), (4, 0, 59)])
    _, centred = crops.order(config, 6, [np.array([0, 1, 5])], stream)
    moved = []
    for without, batch, on in zip(plain, hard, centred, strict=True):
        for before, after, around_defect in zip(without["image"], batch["image"], on, strict=True):
            if (before == after).all():
                continue
            assert not around_defect
            number, top, left = after[0, 0]
            row, column = {2: (11, 31), 4: (0, 59)}[number]
            moved.append((number, row - top, column - left))
    assert abs(len(moved) / stream.size - 0.5) < 0.03
    count = np.bincount([number for number, _, _ in moved])
    assert 0.4 < count[2] / len(moved) < 0.6
    inside = {(row, column) for number, row, column in moved if number == 2}
    middle = range(SIZE // 4, SIZE - SIZE // 4)
    assert inside == {(row, column) for row in middle for column in middle}
    assert {(row, column) for number, row, column in moved if number == 4} == {(0, SIZE - 1)}


def batch_of(batch: dict) -> tuple[np.ndarray, np.ndarray]:
    return batch["image"], batch["mask"]


def test_both_defects_of_a_frame_are_cropped(config, examples):
    config.data.defect_share = 1.0
    only = examples.take(np.array([1]))
    batches = list(train_crops(config, only, places(config, 8)))
    upper = np.concatenate([batch["image"][:, 0, 0, 1] for batch in batches]) < 12
    assert 0.3 < upper.mean() < 0.7


def test_a_place_of_the_stream_has_the_same_crop_whenever_it_comes(config, examples):
    config.augment.paste_probability = 0.5
    config.augment.paste_size = 9
    whole = list(train_crops(config, examples, places(config, 6)))
    resumed = list(train_crops(config, examples, places(config, 3, first=3)))
    right = list(train_crops(config, examples, places(config, 6)[:, 4:]))
    for late, again in zip(whole[3:], resumed, strict=True):
        for name, values in late.items():
            np.testing.assert_array_equal(values, again[name])
    for batch, half in zip(whole, right, strict=True):
        for name, values in batch.items():
            np.testing.assert_array_equal(values[4:], half[name])
    config.seed = 1
    other = next(train_crops(config, examples, places(config, 1)))
    assert (other["image"] != whole[0]["image"]).any()


def test_donors_show_a_whole_defect_in_the_middle(config, examples):
    config.augment.paste_probability = 1.0
    config.augment.paste_size = 9
    seen = set()
    for batch in train_crops(config, examples, places(config, 20)):
        assert batch["donor_image"].shape == (8, 9, 9, 3)
        for image, mask in zip(batch["donor_image"], batch["donor_mask"], strict=True):
            np.testing.assert_array_equal(mask, np.pad(np.ones((3, 3)), 3))
            seen.add((image[4, 4, 0], image[4, 4, 1], image[4, 4, 2]))
    # The defect at the frame's border fits into no patch.
    assert seen == {(0, 20, 30), (1, 5, 5), (1, 30, 50)}


def test_crops_of_frames_brought_to_a_height_are_those_of_frames_that_have_it(config, examples):
    config.data.frame_height = 40
    config.augment.update(paste_probability=0.5, paste_size=9)
    larger = dataclasses.replace(
        examples,
        image=examples.image.repeat(3, 1).repeat(3, 2),
        mask=examples.mask.repeat(3, 1).repeat(3, 2),
    )
    for small, large in zip(
        *(train_crops(config, each, places(config, 4)) for each in (examples, larger)),
        strict=True,
    ):
        for name in ("mask", "label", "donor_mask"):
            np.testing.assert_array_equal(small[name], large[name])
        error = np.abs(small["image"].astype(int) - large["image"])
        assert error.max() <= 1  # at a frame's border the filter has one neighbour less


def test_small_frames_are_continued(config):
    config.data.image_size = (48, 64)
    (batch,) = train_crops(config, make_examples([spotted((20, 30))]), places(config, 1))
    image, mask = batch["image"][0], batch["mask"][0]
    np.testing.assert_array_equal(image[:, :, 1], np.minimum(np.indices((48, 64))[0], 39))
    np.testing.assert_array_equal(image[:, :, 2], np.minimum(np.indices((48, 64))[1], 59))
    assert mask[:40, :60].sum() == 9 == mask.sum()


def test_no_defect_to_crop_is_told(config):
    with pytest.raises(UserError, match=r"data\.defect_share is 0\.66.*no training image"):
        crops.order(config, 4, [], places(config, 1))


def test_no_defect_that_fits_a_patch_is_told(config, examples):
    config.augment.paste_probability = 0.5
    config.augment.paste_size = 4
    with pytest.raises(UserError, match=r"augment\.paste_size is 4: no patch"):
        next(train_crops(config, examples, places(config, 1)))
    with pytest.raises(UserError, match=r"augment\.paste_size is 4: no patch"):
        crops.check(config, examples, 2**30)
    config.augment.paste_size = 9
    crops.check(config, examples, 2**30)


def test_what_cannot_be_cropped_is_told_before_all_is_decoded(config, examples, monkeypatch):
    crops.check(config, examples, 2**30)
    with pytest.raises(UserError, match=r"more than half of this host's"):
        crops.check(config, examples, 2**10)
    unmarked = dataclasses.replace(examples, mask=np.zeros_like(examples.mask))
    with pytest.raises(UserError, match=r"data\.defect_share is .* or raise data\.frame_height"):
        crops.check(config, unmarked, 2**30)
    config.data.defect_share = 0.0
    crops.check(config, unmarked, 2**30)


@pytest.mark.parametrize(
    "name", ["data.defect_share", "data.hard_share", "augment.paste_probability"]
)
def test_only_crops_have_shares(config, name):
    group, field = name.split(".")
    pipeline.check(config)
    config[group][field] = 1.5
    with pytest.raises(UserError, match=rf"{name} is 1\.5: it must lie between 0 and 1"):
        pipeline.check(config)
    config.data.update(defect_share=0.0, hard_share=0.0)
    config.augment.paste_probability = 0.0
    config.data.fit, config[group][field] = "resize", 0.5
    with pytest.raises(UserError, match=rf"{name} is 0\.5 with data.fit 'resize'"):
        pipeline.check(config)


def test_shares_of_more_than_all_are_told(config):
    config.data.update(defect_share=0.7, hard_share=0.4)
    with pytest.raises(UserError, match=r"defect_share is 0\.7 and data\.hard_share 0\.4"):
        pipeline.check(config)


def test_types_to_balance_without_crops_around_defects_are_told(config):
    config.data.update(balance_types=True, defect_share=0.0)
    with pytest.raises(UserError, match=r"balance_types is True, but data\.defect_share is 0"):
        pipeline.check(config)


def test_a_patch_larger_than_the_crop_is_told(config):
    config.augment.paste_probability = 0.5
    with pytest.raises(UserError, match=r"paste_size is 64: .* 16x16"):
        pipeline.check(config)
