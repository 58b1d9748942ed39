"""The stream of batches: decoding, order, resuming, sharding, padding."""

import io

import numpy as np
import pytest
from PIL import Image

from configs import default
from defect_jax.data import pipeline
from defect_jax.data.examples import Examples
from defect_jax.errors import UserError


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def make_examples(images: list[np.ndarray], masks: list[np.ndarray | None]) -> Examples:
    encoded = np.empty((2, len(images)), object)
    encoded[0] = [png(image) for image in images]
    encoded[1] = [b"" if mask is None else png(mask) for mask in masks]
    label = np.array([mask is not None for mask in masks], np.int32)
    names = np.array([f"{number:03}.png" for number in range(len(images))])
    return Examples(encoded[0], encoded[1], label, np.where(label, "bad", "good"), names)


@pytest.fixture(scope="module")
def config():
    config = default.get_config()
    config.data.image_size = (8, 8)
    config.train.batch_size = 4
    return config


@pytest.fixture(scope="module")
def constant_images():
    """Ten images, each of one grey value, which tells which example a batch holds."""
    return make_examples([np.full((8, 8, 3), 10 * n, np.uint8) for n in range(10)], [None] * 10)


def values(batches) -> np.ndarray:
    return np.array([batch["image"][:, 0, 0, 0] for batch in batches])


def test_every_epoch_holds_every_example_once():
    order = pipeline.batch_indices(seed=3, num_examples=10, batch_size=4, first_step=0, last_step=5)
    epochs = order.ravel().reshape(2, 10)
    np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(10), (2, 1)))
    assert (epochs[0] != epochs[1]).any()


@pytest.mark.parametrize("first", [0, 1, 2, 3, 7])
def test_resuming_at_a_step_gives_the_batches_of_the_whole_run(first):
    whole = pipeline.batch_indices(5, 10, 4, 0, 9)
    np.testing.assert_array_equal(pipeline.batch_indices(5, 10, 4, first, 9), whole[first:])


def test_order_depends_on_the_seed():
    orders = [pipeline.batch_indices(seed, 50, 10, 0, 5) for seed in (0, 1)]
    assert (orders[0] != orders[1]).any()


@pytest.mark.parametrize("cache", ["memory", "none"])
def test_batches_hold_the_examples_of_the_order(config, constant_images, cache):
    numbers, places = pipeline.train_order(config, 10, 2, 6)
    np.testing.assert_array_equal(numbers, pipeline.batch_indices(config.seed, 10, 4, 2, 6))
    np.testing.assert_array_equal(places.ravel(), np.arange(8, 24))
    arrays = None
    if cache == "memory":
        arrays = pipeline.decode_all(config.data, constant_images)
    batches = pipeline.train_batches(config.data, constant_images, arrays, numbers)
    np.testing.assert_array_equal(values(batches), 10 * numbers)


def test_hosts_share_a_batch_without_overlap(config):
    whole = pipeline.train_order(config, 10, 0, 3)
    halves = [pipeline.train_order(config, 10, 0, 3, (host, 2)) for host in (0, 1)]
    for rows, left, right in zip(whole, *halves, strict=True):
        np.testing.assert_array_equal(rows, np.concatenate([left, right], axis=1))


def test_all_examples_decode_to_what_their_batches_hold(config, constant_images):
    everything = pipeline.decode_all(config.data, constant_images)
    np.testing.assert_array_equal(everything["image"][:, 0, 0, 0], np.arange(0, 100, 10))
    assert everything["mask"].shape == (10, 8, 8) and everything["label"].dtype == np.int32


def test_the_cache_is_chosen_by_size(config):
    one = 8 * 8 * 4  # bytes of an image and its mask

    def choose(number, data=config.data):
        return pipeline.choose_cache(data, number, 40 * one, 80 * one)

    chosen = [choose(number) for number in (10, 11, 40, 41)]
    assert chosen == ["device", "memory", "memory", "none"]
    data = config.copy_and_resolve_references().data
    data.cache = "memory"
    assert choose(1, data) == "memory"
    data.cache = "device"
    assert choose(40, data) == "device"
    with pytest.raises(UserError, match=r"data.cache is 'device', but 41 images of 8x8 take"):
        choose(41, data)


def test_evaluation_drops_no_image_and_weighs_padding_zero(config, constant_images):
    batches = list(pipeline.eval_batches(config, constant_images, 4))
    weight = np.concatenate([batch["weight"] for batch in batches])
    np.testing.assert_array_equal(weight, [1] * 10 + [0] * 2)
    np.testing.assert_array_equal(values(batches).ravel()[:10], np.arange(0, 100, 10))
    np.testing.assert_array_equal(np.concatenate([b["index"] for b in batches])[:10], np.arange(10))


def test_grey_images_become_colour_and_colour_grey(config):
    grey = np.full((8, 8), 77, np.uint8)
    colour = np.stack([np.full((8, 8), value, np.uint8) for value in (10, 200, 90)], axis=-1)
    config = config.copy_and_resolve_references()
    config.train.batch_size = 2
    for channels in (1, 3):
        config.data.channels = channels
        batch = next(pipeline.eval_batches(config, make_examples([grey, colour], [None, None]), 2))
        assert batch["image"].shape == (2, 8, 8, channels)
        assert (batch["image"][0] == 77).all()
    luma = 0.299 * 10 + 0.587 * 200 + 0.114 * 90
    config.data.channels = 1
    batch = next(pipeline.eval_batches(config, make_examples([colour], [None]), 1))
    assert abs(int(batch["image"][0, 0, 0, 0]) - luma) <= 1


def test_padding_keeps_the_aspect_and_the_mask_in_place(config):
    config = config.copy_and_resolve_references()
    config.data.fit = "pad"
    image = np.full((16, 32, 3), 200, np.uint8)
    mask = np.zeros((16, 32), np.uint8)
    mask[8:, 16:] = 1
    batch = next(pipeline.eval_batches(config, make_examples([image], [mask]), 1))
    assert pipeline.fitted_size(config.data, (16, 32)) == (4, 8)
    assert (batch["image"] == 200).all()  # no edge where the image ends
    expected = np.zeros((8, 8), np.uint8)
    expected[2:4, 4:] = 1
    np.testing.assert_array_equal(batch["mask"][0], expected)


def test_a_shrunk_mask_takes_the_class_that_covers_most(config):
    mask = np.zeros((16, 16), np.uint8)
    mask[:2, :2] = 1  # a whole cell of the shrunk mask
    mask[4, 4] = 1  # a quarter of one
    batch = next(
        pipeline.eval_batches(config, make_examples([np.zeros((16, 16, 3), np.uint8)], [mask]), 1)
    )
    assert batch["mask"][0, 0, 0] == 1 and batch["mask"].sum() == 1


def test_native_masks_keep_the_size_of_their_files():
    image = np.zeros((5, 9, 3), np.uint8)
    mask = np.arange(45, dtype=np.uint8).reshape(5, 9) % 2
    examples = make_examples([image, image], [mask, None])
    np.testing.assert_array_equal(pipeline.native_mask(examples, 0), mask)
    np.testing.assert_array_equal(pipeline.native_mask(examples, 1), np.zeros((5, 9)))


@pytest.mark.parametrize(
    ("native", "height", "size"),
    [((46, 113), 0, (46, 113)), ((46, 113), 92, (92, 226)), ((645, 1540), 384, (384, 917))],
)
def test_frames_are_brought_to_a_height_and_keep_their_aspect(config, native, height, size):
    config = config.copy_and_resolve_references()
    config.data.update(fit="crop", frame_height=height)
    assert pipeline.fitted_size(config.data, native) == size


@pytest.mark.parametrize("channels", [1, 3])
def test_a_frame_brought_to_a_height_is_the_mean_of_what_its_pixels_cover(config, channels):
    config = config.copy_and_resolve_references()
    config.data.update(fit="crop", frame_height=30, channels=channels)
    rows, columns = np.indices((30, 40))
    small = np.stack([2 * rows + columns] * 3, -1).astype(np.uint8)  # a slope, and a grey one
    large = small.repeat(3, 0).repeat(3, 1)
    examples = make_examples([large, small], [None, None])
    shrunk, kept = (pipeline.fitted_image(config.data, examples, n) for n in range(2))
    np.testing.assert_array_equal(kept, small[..., :channels])
    assert shrunk.shape == kept.shape
    inside = np.s_[1:-1, 1:-1]  # at the border the filter has one neighbour less
    np.testing.assert_array_equal(shrunk[inside], kept[inside])


def test_a_mask_brought_to_a_height_takes_the_class_that_covers_most(config):
    config = config.copy_and_resolve_references()
    config.data.update(fit="crop", frame_height=4, num_classes=3)
    mask = np.zeros((8, 16), np.uint8)
    mask[:2, :2] = [[1, 2], [2, 2]]
    mask[2, 2] = 1
    mask[6:, 14:] = 1
    examples = make_examples([np.zeros((8, 16, 3), np.uint8)] * 2, [mask, None])
    expected = np.zeros((4, 8), np.uint8)
    expected[0, 0], expected[3, 7] = 2, 1
    np.testing.assert_array_equal(pipeline.fitted_mask(config.data, examples, 0), expected)
    np.testing.assert_array_equal(pipeline.fitted_mask(config.data, examples, 1), 0 * expected)


@pytest.mark.parametrize(
    ("fit", "height", "advice"),
    [
        ("crop", -1, ": choose 0, or at least the height of a crop, .* = 8"),
        ("crop", 7, ": choose 0, or at least"),
        ("resize", 40, " with data.fit 'resize', .* set it to 0"),
    ],
)
def test_a_height_that_no_frame_is_brought_to_is_told(config, fit, height, advice):
    config = config.copy_and_resolve_references()
    config.data.update(fit=fit, frame_height=height)
    with pytest.raises(UserError, match=rf"data\.frame_height is {height}{advice}"):
        pipeline.check(config)


def test_no_training_images_is_an_error(config):
    with pytest.raises(UserError, match="no training images"):
        pipeline.train_order(config, 0, 0, 1)


@pytest.mark.parametrize(
    ("field", "value", "known"),
    [
        ("fit", "stretch", "crop, pad, resize"),
        ("cache", "tape", "auto, device, memory, none"),
        ("channels", 2, "1, 3"),
    ],
)
def test_unknown_choices_list_the_known(config, field, value, known):
    config = config.copy_and_resolve_references()
    config.data[field] = value
    with pytest.raises(UserError, match=f"unknown data.{field} '{value}': choose one of {known}"):
        pipeline.check(config)
