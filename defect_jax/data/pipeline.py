"""From examples to batches.

What the model sees at step n is a function of (seed, n) alone: `batch_indices` says which example
stands at each place of the stream, so that resuming at a step needs no iterator state. Where the
decoded examples lie meanwhile, `config.data.cache` says: on the device, in the host's memory, or
nowhere, in which case tf.data decodes them again for each batch. The stream is the same.

TensorFlow is imported when there is something to decode, and not before.
"""

import io
from collections.abc import Iterator
from typing import Any

import ml_collections
import numpy as np
from PIL import Image

from defect_jax.data.examples import Examples
from defect_jax.errors import UserError, require, require_size, require_within
from defect_jax.ops import tiles

HostBatch = dict[str, np.ndarray]

FITS = ("pad", "resize", "crop")
CACHES = ("auto", "device", "memory", "none")
CHANNELS = (1, 3)


def check(config: ml_collections.ConfigDict) -> None:
    """Raises UserError for a field of `config.data` that the pipeline does not know.

    Or one that only crops have, where the images are no crops.
    """
    data, augmentation = config.data, config.augment
    require(data.fit, FITS, "data.fit")
    require(data.cache, CACHES, "data.cache")
    require(data.channels, CHANNELS, "data.channels")
    require_size(data.image_size, "data.image_size")
    require_within(data.num_classes, 2, 256, "data.num_classes")
    if data.frame_height and data.fit != "crop":
        raise UserError(
            f"data.frame_height is {data.frame_height} with data.fit '{data.fit}', and brings the "
            "frames of 'crop' alone to a height: set it to 0"
        )
    if data.frame_height and data.frame_height < data.image_size[0]:
        raise UserError(
            f"data.frame_height is {data.frame_height}: choose 0, or at least the height of a "
            f"crop, data.image_size[0] = {data.image_size[0]}"
        )
    _check_shares(data, augmentation)
    if data.fit == "crop":
        require(data.cache, ("auto", "memory"), "data.cache for data.fit 'crop'")
        tile, overlap = config.eval.tile, config.eval.overlap
        require_size(tile, "eval.tile")
        tiles.corners((tile[0], tile[1]), (tile[0], tile[1]), overlap)  # which tells what is wrong
    if not augmentation.paste_probability:
        return
    size = augmentation.paste_size
    if not 3 <= size <= min(data.image_size):
        raise UserError(
            f"augment.paste_size is {size}: it must lie between 3 and the sides "
            f"of data.image_size, {data.image_size[0]}x{data.image_size[1]}"
        )


def _check_shares(data: ml_collections.ConfigDict, augmentation: ml_collections.ConfigDict) -> None:
    """Of the crops that lie around something, or get something pasted."""
    cropped = {
        "data.defect_share": data.defect_share,
        "data.hard_share": data.hard_share,
        "augment.paste_probability": augmentation.paste_probability,
    }
    for name, share in cropped.items():
        if not 0 <= share <= 1:
            raise UserError(f"{name} is {share}: it must lie between 0 and 1")
        if share and data.fit != "crop":
            raise UserError(f"{name} is {share} with data.fit '{data.fit}': it needs 'crop'")
    if data.balance_types and not data.defect_share:
        raise UserError(
            "data.balance_types is True, but data.defect_share is 0, so no crops lie around a "
            "defect: set data.balance_types to False"
        )
    if data.defect_share + data.hard_share > 1:
        raise UserError(
            f"data.defect_share is {data.defect_share} and data.hard_share {data.hard_share}: "
            "together they must be at most 1"
        )


def batch_indices(
    seed: int, num_examples: int, batch_size: int, first_step: int, last_step: int
) -> np.ndarray:
    """Which example stands where in the stream.

    The stream is one permutation of the examples after another, each drawn from (seed, epoch);
    step n takes places n * batch_size and on.

    Returns:
        [last_step - first_step, batch_size] int64, numbers of examples.
    """
    first, last = first_step * batch_size, last_step * batch_size
    epochs = range(first // num_examples, -(-last // num_examples))
    order = [np.random.default_rng([seed, epoch]).permutation(num_examples) for epoch in epochs]
    stream = np.concatenate([np.empty(0, np.int64), *order])
    start = first - epochs.start * num_examples
    return stream[start : start + last - first].reshape(-1, batch_size)


def train_order(
    config: ml_collections.ConfigDict,
    num_examples: int,
    first_step: int,
    last_step: int,
    shard: tuple[int, int] = (0, 1),
) -> tuple[np.ndarray, np.ndarray]:
    """Which examples, at which places of the stream, steps [first_step, last_step) take.

    Args:
        config: reads `seed` and `train.batch_size` (global).
        num_examples: of the training split.
        first_step: where to begin; resuming gives the batches that the whole run would have had.
        last_step: where to end.
        shard: (this host's number, number of hosts); a host gets its columns of each batch.

    Returns:
        Numbers of examples and places in the stream, each [last_step - first_step, b] int32, for
        this host's b = batch_size / hosts examples.

    Raises:
        UserError: no examples.
    """
    if not num_examples:
        raise UserError(f"{config.data.name} '{config.data.category}': no training images")
    batch_size, (host, hosts) = config.train.batch_size, shard
    order = batch_indices(config.seed, num_examples, batch_size, first_step, last_step)
    places = np.arange(first_step * batch_size, last_step * batch_size).reshape(order.shape)
    columns = slice(host * batch_size // hosts, (host + 1) * batch_size // hosts)
    return order[:, columns].astype(np.int32), places[:, columns].astype(np.int32)


def train_batches(
    data: ml_collections.ConfigDict,
    examples: Examples,
    arrays: HostBatch | None,
    numbers: np.ndarray,
) -> Iterator[HostBatch]:
    """The examples of each batch.

    Args:
        data: `config.data`.
        examples: N of them.
        arrays: what `decode_all` makes of them; None to decode each batch as it is taken.
        numbers: [steps, b], as `train_order` gives them.

    Yields:
        `image` uint8 [b, H, W, C], `mask` uint8 [b, H, W] and `label` int32 [b].
    """
    if arrays is not None:
        for batch in numbers:
            yield {name: values[batch] for name, values in arrays.items()}
        return
    for (image, mask), batch in zip(_decode(data, examples, numbers), numbers, strict=True):
        yield {"image": image, "mask": mask, "label": examples.label[batch].astype(np.int32)}


def decode_all(data: ml_collections.ConfigDict, examples: Examples) -> HostBatch:
    """All examples as one batch: `image` [N, H, W, C], `mask` [N, H, W] and `label` [N]."""
    label = examples.label.astype(np.int32)
    if examples.is_decoded:
        return {"image": examples.image, "mask": examples.mask, "label": label}
    image = np.empty((len(examples), *data.image_size, data.channels), np.uint8)
    mask = np.empty((len(examples), *data.image_size), np.uint8)
    decoded = _decode(data, examples, np.arange(len(examples))[:, None])
    for number, (one_image, one_mask) in enumerate(decoded):
        image[number], mask[number] = one_image[0], one_mask[0]
    return {"image": image, "mask": mask, "label": label}


def choose_cache(
    data: ml_collections.ConfigDict, num_examples: int, device_bytes: int, host_bytes: int
) -> str:
    """What `data.cache` 'auto' means for a split; any other value as it is.

    Args:
        data: reads `cache`, `image_size` and `channels`.
        num_examples: of the split.
        device_bytes: memory of each device.
        host_bytes: memory of the host, where all images are decoded before they go to a device.

    Returns:
        'none' where the decoded split fills more than half of the host, else 'device' where it
        fills at most a quarter of the device, else 'memory'.

    Raises:
        UserError: 'device' was asked for, and the split is larger than the device.
    """
    height, width = data.image_size
    needed = num_examples * height * width * (data.channels + 1)
    if data.cache == "device" and needed > device_bytes:
        raise UserError(
            f"data.cache is 'device', but {num_examples} images of {height}x{width} take "
            f"{needed / 2**30:.1f} GiB and the device has {device_bytes / 2**30:.1f}: "
            "set it to auto"
        )
    if data.cache != "auto":
        return data.cache
    if needed > host_bytes / 2:
        return "none"
    return "device" if needed <= device_bytes / 4 else "memory"


def eval_batches(
    config: ml_collections.ConfigDict,
    examples: Examples,
    batch_size: int,
    shard: tuple[int, int] = (0, 1),
) -> Iterator[HostBatch]:
    """Every example once, in order; the last batch is filled up with examples of weight 0.

    Args:
        config: reads `data`.
        examples: of a split.
        batch_size: of this host.
        shard: (this host's number, number of hosts); a host gets every so many-th example.

    Yields:
        what `train_batches` yields, `index` int32 [b] (the example's number) and `weight`
        float32 [b].
    """
    count, (host, hosts) = len(examples), shard
    steps = -(-len(range(host, count, hosts)) // batch_size)
    places = host + hosts * np.arange(steps * batch_size).reshape(-1, batch_size)
    numbers = np.minimum(places, count - 1)
    for (image, mask), place, batch in zip(
        _decode(config.data, examples, numbers), places, numbers, strict=True
    ):
        yield {
            "image": image,
            "mask": mask,
            "label": examples.label[batch].astype(np.int32),
            "index": place.astype(np.int32),
            "weight": (place < count).astype(np.float32),
        }


def fitted_size(data: ml_collections.ConfigDict, native: tuple[int, int]) -> tuple[int, int]:
    """The size (h, w) at which the model sees an image of this native size, padding apart.

    Args:
        data: reads `fit`: 'resize' (to `image_size`, whatever the aspect), 'pad' (into it, from the
            top left, keeping the aspect; the last row or column is repeated over the rest) or
            'crop' (to a height of `frame_height`, keeping the aspect; where that is 0, as it is).
        native: (h, w) of the file.
    """
    size = data.image_size
    if data.fit == "resize":
        return size[0], size[1]
    if data.fit == "crop":
        height = data.frame_height or native[0]
        return height, max(1, round(native[1] * height / native[0]))
    scale = min(size[0] / native[0], size[1] / native[1])
    height, width = (
        max(1, min(limit, round(side * scale))) for side, limit in zip(native, size, strict=True)
    )
    return height, width


def native_size(examples: Examples, number: int) -> tuple[int, int]:
    """The height and width in pixels of an example's file, or of its array."""
    if examples.is_decoded:
        height, width = examples.image.shape[1:3]
        return height, width
    with Image.open(io.BytesIO(examples.image[number])) as image:
        return image.height, image.width


def native_image(examples: Examples, number: int, channels: int) -> np.ndarray:
    """An example's image at its file's own resolution: uint8 [h, w, channels]."""
    if examples.is_decoded:
        return examples.image[number]
    with Image.open(io.BytesIO(examples.image[number])) as image:
        pixels = np.asarray(image.convert("RGB" if channels == 3 else "L"))
    return pixels.reshape(*pixels.shape[:2], channels)


def native_mask(examples: Examples, number: int) -> np.ndarray:
    """An example's mask at its file's own resolution: uint8 [h, w], class ids."""
    if examples.is_decoded:
        return examples.mask[number]
    if not examples.mask[number]:
        return np.zeros(native_size(examples, number), np.uint8)
    with Image.open(io.BytesIO(examples.mask[number])) as mask:
        return np.asarray(mask)


def fitted_image(data: ml_collections.ConfigDict, examples: Examples, number: int) -> np.ndarray:
    """An example's image at its `fitted_size`: uint8 [h, w, data.channels]."""
    image = native_image(examples, number, data.channels)
    return _shrink(image, fitted_size(data, image.shape[:2]), Image.Resampling.BILINEAR)


def fitted_mask(data: ml_collections.ConfigDict, examples: Examples, number: int) -> np.ndarray:
    """An example's mask at its `fitted_size`: uint8 [h, w], the class that covers most of each."""
    mask = native_mask(examples, number)
    size = fitted_size(data, mask.shape)
    if size == mask.shape:
        return mask
    covered = [
        _shrink(np.uint8(255) * (mask == one), size, Image.Resampling.BOX)
        for one in range(data.num_classes)
    ]
    return np.argmax(covered, axis=0).astype(np.uint8)


def _shrink(values: np.ndarray, size: tuple[int, int], filtering: Image.Resampling) -> np.ndarray:
    """uint8 [h, w] or [h, w, C] at another size; smaller, a pixel weighs all that it covers."""
    if size == values.shape[:2]:
        return values
    channels = values.reshape(*values.shape[:2], -1)
    shrunk = [
        np.asarray(Image.fromarray(channel).resize(size[::-1], filtering))
        for channel in np.moveaxis(channels, -1, 0)
    ]
    return np.stack(shrunk, axis=-1).reshape(*size, *values.shape[2:])


def pad_to(values: np.ndarray, size: tuple[int, int], mode: Any = "edge") -> np.ndarray:
    """[h, w, ...] continued below and to the right to at least this size, as `np.pad` does."""
    missing = [max(0, wanted - have) for wanted, have in zip(size, values.shape, strict=False)]
    widths = [(0, more) for more in missing] + [(0, 0)] * (values.ndim - 2)
    return np.pad(values, widths, mode=mode) if any(missing) else values


def _decode(
    data: ml_collections.ConfigDict, examples: Examples, numbers: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    if examples.is_decoded:
        return ((examples.image[batch], examples.mask[batch]) for batch in numbers)
    from defect_jax.data import decode  # takes seconds, for TensorFlow; arrays do without

    sizes = np.array(
        [fitted_size(data, native_size(examples, number)) for number in range(len(examples))]
    )
    return decode.batches(data, examples, sizes, numbers)
