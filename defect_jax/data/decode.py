"""Decoding and shrinking of encoded examples, by tf.data."""

from collections.abc import Iterator

import ml_collections
import numpy as np

from defect_jax.data.examples import Examples
from defect_jax.data.tensorflow_quietly import tf


def batches(
    data: ml_collections.ConfigDict,
    examples: Examples,
    sizes: np.ndarray,
    numbers: np.ndarray,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Decodes examples batch by batch, ahead of who takes them and on all cores.

    Args:
        data: `config.data`; reads `image_size`, `channels` and `num_classes`.
        examples: N encoded ones.
        sizes: [N, 2], the height and width that each fills from its top left.
        numbers: [steps, b], which examples make each batch.

    Yields:
        images [b, H, W, C] and masks [b, H, W], uint8.
    """
    frame, channels, classes = tuple(data.image_size), data.channels, data.num_classes
    encoded = (
        tf.constant(examples.image.tolist()),
        tf.constant(examples.mask.tolist()),
        tf.constant(sizes, tf.int32),
    )

    def decode(fields):
        image, mask, size = fields
        return _decode_image(image, size, frame, channels), _decode_mask(mask, size, frame, classes)

    def fetch(batch):
        rows = tuple(tf.gather(field, batch) for field in encoded)
        return tf.map_fn(decode, rows, fn_output_signature=(tf.uint8, tf.uint8))

    dataset = tf.data.Dataset.from_tensor_slices(numbers)
    dataset = dataset.map(fetch, num_parallel_calls=tf.data.AUTOTUNE)
    return iter(dataset.prefetch(tf.data.AUTOTUNE).as_numpy_iterator())


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
