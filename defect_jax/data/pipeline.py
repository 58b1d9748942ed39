"""From encoded examples to batches, through tf.data.

What the model sees at step n is a function of (seed, n) alone: `batch_indices` says which example
stands at each place of the stream, so that resuming at a step needs no iterator state.
"""

import io
from collections.abc import Iterator

import ml_collections
import numpy as np
from PIL import Image

from defect_jax.data.examples import Examples
from defect_jax.data.tensorflow_quietly import tf
from defect_jax.errors import UserError, require

HostBatch = dict[str, np.ndarray]

FITS = ("pad", "resize")
CACHES = ("memory", "none")
CHANNELS = (1, 3)


def check(data: ml_collections.ConfigDict) -> None:
    """Raises UserError for a field of `config.data` that the pipeline does not know."""
    require(data.fit, FITS, "data.fit")
    require(data.cache, CACHES, "data.cache")
    require(data.channels, CHANNELS, "data.channels")


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


def train_batches(
    config: ml_collections.ConfigDict,
    examples: Examples,
    first_step: int,
    last_step: int,
    shard: tuple[int, int] = (0, 1),
) -> Iterator[HostBatch]:
    """The batches of steps [first_step, last_step).

    Args:
        config: reads `seed`, `train.batch_size` (global) and `data.*`.
        examples: N of them.
        first_step: where to begin; resuming gives the batches that the whole run would have had.
        last_step: where to end.
        shard: (this host's number, number of hosts); a host gets its columns of each batch.

    Yields:
        `image` uint8 [b, H, W, C], `mask` uint8 [b, H, W], `label` int32 [b], `index` int32 [b]
        (the example's place in the stream) and `weight` float32 [b], for this host's
        b = batch_size / hosts examples.

    Raises:
        UserError: no examples.
    """
    if not len(examples):
        raise UserError(f"{config.data.name} '{config.data.category}': no training images")
    batch_size, (host, hosts) = config.train.batch_size, shard
    order = batch_indices(config.seed, len(examples), batch_size, first_step, last_step)
    places = np.arange(first_step * batch_size, last_step * batch_size).reshape(order.shape)
    columns = slice(host * batch_size // hosts, (host + 1) * batch_size // hosts)
    fetch = _fetcher(config.data, examples)
    dataset = tf.data.Dataset.from_tensor_slices((order[:, columns], places[:, columns]))
    dataset = dataset.map(
        lambda numbers, index: (
            fetch(numbers)
            | {"index": tf.cast(index, tf.int32), "weight": tf.ones_like(index, tf.float32)}
        ),
        num_parallel_calls=tf.data.AUTOTUNE,
    )
    return dataset.prefetch(tf.data.AUTOTUNE).as_numpy_iterator()


def eval_batches(
    config: ml_collections.ConfigDict, examples: Examples, batch_size: int
) -> Iterator[HostBatch]:
    """Every example once, in order; the last batch is filled up with examples of weight 0.

    Yields:
        what `train_batches` yields; `index` is the example's number.
    """
    padded = -(-len(examples) // batch_size) * batch_size
    places = np.arange(padded).reshape(-1, batch_size)
    fetch = _fetcher(config.data, examples, decode_now=False)
    dataset = tf.data.Dataset.from_tensor_slices(places).map(
        lambda index: (
            fetch(tf.minimum(index, len(examples) - 1))
            | {
                "index": tf.cast(index, tf.int32),
                "weight": tf.cast(index < len(examples), tf.float32),
            }
        ),
        num_parallel_calls=tf.data.AUTOTUNE,
    )
    return dataset.prefetch(tf.data.AUTOTUNE).as_numpy_iterator()


def fitted_size(native: tuple[int, int], image_size: tuple[int, int], fit: str) -> tuple[int, int]:
    """The part (h, w) of the model's image, from its top left, that an image fills.

    `fit` is 'resize' (all of it, whatever the aspect) or 'pad' (keeps the aspect; its last row
    or column is repeated over the rest).
    """
    if fit == "resize":
        return image_size[0], image_size[1]
    scale = min(image_size[0] / native[0], image_size[1] / native[1])
    height, width = (
        max(1, min(limit, round(side * scale)))
        for side, limit in zip(native, image_size, strict=True)
    )
    return height, width


def native_size(examples: Examples, number: int) -> tuple[int, int]:
    """The height and width in pixels of an example's file."""
    with Image.open(io.BytesIO(examples.image[number])) as image:
        return image.height, image.width


def native_mask(examples: Examples, number: int) -> np.ndarray:
    """An example's mask at its file's own resolution: uint8 [h, w], class ids."""
    if not examples.mask[number]:
        return np.zeros(native_size(examples, number), np.uint8)
    with Image.open(io.BytesIO(examples.mask[number])) as mask:
        return np.asarray(mask)


def _fetcher(data: ml_collections.ConfigDict, examples: Examples, decode_now: bool | None = None):
    """A function from example numbers [b] to their decoded fields, each [b, ...]."""
    sizes = [
        fitted_size(native_size(examples, number), data.image_size, data.fit)
        for number in range(len(examples))
    ]
    encoded = (
        tf.constant(examples.image.tolist()),
        tf.constant(examples.mask.tolist()),
        tf.constant(sizes, tf.int32),
    )
    labels = tf.constant(examples.label, tf.int32)
    frame, channels, classes = tuple(data.image_size), data.channels, data.num_classes
    spec = (tf.uint8, tf.uint8)

    def decode(fields):
        image, mask, size = fields
        return _decode_image(image, size, frame, channels), _decode_mask(mask, size, frame, classes)

    if decode_now is None:
        decode_now = data.cache == "memory"
    if decode_now:
        dataset = tf.data.Dataset.from_tensor_slices(encoded).map(
            lambda *fields: decode(fields), num_parallel_calls=tf.data.AUTOTUNE
        )
        images = np.empty((len(examples), *frame, channels), np.uint8)
        masks = np.empty((len(examples), *frame), np.uint8)
        for number, (image, mask) in enumerate(dataset.as_numpy_iterator()):
            images[number], masks[number] = image, mask
        images, masks = tf.constant(images), tf.constant(masks)

    def fetch(numbers):
        if decode_now:
            image, mask = tf.gather(images, numbers), tf.gather(masks, numbers)
        else:
            rows = tuple(tf.gather(field, numbers) for field in encoded)
            image, mask = tf.map_fn(decode, rows, fn_output_signature=spec)
        return {"image": image, "mask": mask, "label": tf.gather(labels, numbers)}

    return fetch


def _decode_image(encoded, size, frame: tuple[int, int], channels: int):
    image = tf.io.decode_image(encoded, channels=channels, expand_animations=False)
    image.set_shape((None, None, channels))
    image = tf.image.resize(image, size, antialias=True)
    # The last row and column are repeated into the padding: an edge there would look defective.
    for axis in (0, 1):
        image = tf.gather(image, tf.minimum(tf.range(frame[axis]), size[axis] - 1), axis=axis)
    return tf.cast(tf.round(tf.clip_by_value(image, 0, 255)), tf.uint8)


def _decode_mask(encoded, size, frame: tuple[int, int], classes: int):
    """Each pixel takes the class that covers most of it."""

    def shrink():
        mask = tf.io.decode_png(encoded, channels=1)[..., 0]
        coverage = tf.image.resize(tf.one_hot(mask, classes), size, method="area")
        mask = tf.argmax(coverage, axis=-1, output_type=tf.int32)
        return tf.image.pad_to_bounding_box(mask[..., None], 0, 0, *frame)[..., 0]

    empty = tf.strings.length(encoded) == 0
    mask = tf.cond(empty, lambda: tf.zeros(frame, tf.int32), shrink)
    return tf.cast(tf.ensure_shape(mask, frame), tf.uint8)
