"""Random crops of whole frames, for training where `config.data.fit` is 'crop'.

Frames keep their own resolution or are brought to one height first, `config.data.frame_height`.

A share of the crops lies around a defect, since most of a frame has nothing to teach, and one
around what was taken for a defect and is none (see `mining`); the rest lies anywhere in any frame.
Which crop stands at a place of the stream is a function of (seed, place) and of what was taken for
a defect alone. Decoded frames stay in the host's memory.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import ml_collections
import numpy as np
import tqdm

from defect_jax import distributed
from defect_jax.data import pipeline
from defect_jax.data.examples import Examples
from defect_jax.errors import UserError
from defect_jax.ops.objects import label_regions

# What random numbers are drawn for.
_CENTRED, _DEFECTIVE, _WINDOW, _DONOR, _MISTAKE, _TYPE = range(6)


class Frame(NamedTuple):
    """A decoded example: image uint8 [h, w, C], mask uint8 [h, w], defects' pixels, each [n, 2].

    And its defect type, as `Examples` has it.
    """

    image: np.ndarray
    mask: np.ndarray
    defects: list[np.ndarray]
    defect_type: str


def order(
    config: ml_collections.ConfigDict,
    num_examples: int,
    groups: Sequence[np.ndarray],
    places: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Which example is cropped at each place of the stream, and whether around a defect.

    Args:
        config: reads `seed` and `data.defect_share`, the share of crops around a defect.
        num_examples: how many there are.
        groups: numbers of the defective ones, in groups that are drawn from equally often.
        places: [steps, b], as `pipeline.train_order` gives them.

    Returns:
        Numbers of examples int32, and booleans, both like `places`. Crops around a defect go
        through each group in an order of its own, one permutation after another; the others
        through all examples.

    Raises:
        UserError: crops around defects are asked for, and no example has any.
    """
    share = config.data.defect_share
    if share and not groups:
        raise _no_defect(config)
    count = int(places.max()) + 1
    centred = _generator(config, _CENTRED).random(count) < share
    seeds = _generator(config, _DEFECTIVE).integers(2**32, size=len(groups))
    drawn = _generator(config, _TYPE).integers(max(1, len(groups)), size=count)
    streams = [(~centred, np.arange(num_examples), config.seed)]
    for number, (group, seed) in enumerate(zip(groups, seeds, strict=True)):
        streams.append((centred & (drawn == number), group, int(seed)))
    numbers = np.empty(count, np.int32)
    for chosen, group, seed in streams:
        length = int(np.count_nonzero(chosen))
        if length:  # without crops around defects there may be no defect to go round
            numbers[chosen] = group[pipeline.batch_indices(seed, len(group), 1, 0, length)[:, 0]]
    return numbers[places], centred[places]


def decode_all(data: ml_collections.ConfigDict, examples: Examples) -> list[Frame]:
    """All examples at their `pipeline.fitted_size`.

    Those smaller than `data.image_size`, a crop, are continued by their last row and column.
    """
    numbers = tqdm.tqdm(
        range(len(examples)),
        "decoding",
        leave=False,
        delay=0.5,
        disable=not distributed.is_first(),
    )
    return [_decode(data, examples, number) for number in numbers]


def train_crops(
    config: ml_collections.ConfigDict,
    frames: list[Frame],
    places: np.ndarray,
    mistakes: np.ndarray,
) -> Iterator[pipeline.HostBatch]:
    """The crops of each batch.

    Args:
        config: reads `seed`, `data.image_size` (of a crop), `data.channels`,
            `data.frame_height`, `data.defect_share`, `data.balance_types` (whether the crops around
            a defect show each `defect_type` equally often), `augment.paste_probability` and
            `augment.paste_size`.
        frames: of all examples.
        places: [steps, b] of the stream.
        mistakes: [n, 3] int, numbers of examples, rows and columns in their fitted images, around
            which `data.hard_share` of the crops lie; where there are none, these lie anywhere.

    Yields:
        `image` uint8 [b, H, W, C], `mask` uint8 [b, H, W], `label` int32 [b] (of the crop), and,
        where crops get pasted defects, `donor_image` uint8 [b, p, p, C] and `donor_mask` uint8
        [b, p, p]: a patch with a whole defect in its middle and none on its border.

    Raises:
        UserError: see `order`; or no defect fits into a patch.
    """
    groups = _groups(frames, config.data.balance_types)
    numbers, centred = order(config, len(frames), groups, places)
    donors = list(_donors(frames, config.augment)) if config.augment.paste_probability else []
    hard = _is_hard(config, places) & bool(len(mistakes))
    for row, *choices in zip(places, numbers, centred, hard, strict=True):
        crops = [
            _hard_crop(config, frames, mistakes, place)
            if is_hard
            else _crop(config, frames[number], place, on)
            for place, number, on, is_hard in zip(row, *choices, strict=True)
        ]
        image, mask = (np.stack(parts) for parts in zip(*crops, strict=True))
        batch = {"image": image, "mask": mask, "label": np.asarray(mask.any(axis=(1, 2)), np.int32)}
        if donors:
            patches = [_donor(config, frames, donors, place) for place in row]
            donor_image, donor_mask = (np.stack(parts) for parts in zip(*patches, strict=True))
            batch |= {"donor_image": donor_image, "donor_mask": donor_mask}
        yield batch


def check(config: ml_collections.ConfigDict, examples: Examples, host_bytes: int) -> None:
    """Makes sure, before any training, that there are crops as the config wants them.

    Raises:
        UserError: see `check_memory`; or there is no defect to crop, or none to paste.
    """
    check_memory(config.data, examples, host_bytes)
    labelled = np.flatnonzero(examples.label).tolist()
    frames = (_decode(config.data, examples, number) for number in labelled)
    if config.augment.paste_probability:
        next(_donors(frames, config.augment))
    elif config.data.defect_share and not any(frame.defects for frame in frames):
        raise _no_defect(config)


def check_memory(data: ml_collections.ConfigDict, examples: Examples, host_bytes: int) -> None:
    """Raises UserError where the decoded frames fill more than half of the host's memory."""
    fitted = [
        pipeline.fitted_size(data, pipeline.native_size(examples, number))
        for number in range(len(examples))
    ]
    sizes = np.maximum(fitted, data.image_size)
    needed = int(sizes.prod(axis=1).sum()) * (data.channels + 1)
    if needed > host_bytes / 2:
        raise UserError(
            f"data.fit is 'crop': the {len(examples)} decoded training images take "
            f"{needed / 2**30:.1f} GiB, more than half of this host's {host_bytes / 2**30:.1f}: "
            "take fewer or smaller images, or a larger host"
        )


def _generator(config: ml_collections.ConfigDict, *purpose: int) -> np.random.Generator:
    """A stream of its own for each purpose: the key is apart from all seeds without one."""
    return np.random.default_rng(np.random.SeedSequence(config.seed, spawn_key=purpose))


def _decode(data: ml_collections.ConfigDict, examples: Examples, number: int) -> Frame:
    size = (data.image_size[0], data.image_size[1])
    mask = pipeline.fitted_mask(data, examples, number)
    components, count = label_regions(mask)
    defects = [np.argwhere(components == one) for one in range(1, count + 1)]
    image = pipeline.fitted_image(data, examples, number)
    padded = pipeline.pad_to(image, size), pipeline.pad_to(mask, size, "constant")
    return Frame(*padded, defects, str(examples.defect_type[number]))


def _groups(frames: list[Frame], by_type: bool) -> list[np.ndarray]:
    """The numbers of the frames with a defect, all together or those of each type."""
    numbers = np.array([n for n, frame in enumerate(frames) if frame.defects], int)
    if not by_type:
        return [numbers] if len(numbers) else []
    types = np.array([frames[n].defect_type for n in numbers])
    return [numbers[types == name] for name in np.unique(types)]


def _crop(
    config: ml_collections.ConfigDict, frame: Frame, place: int, centred: bool
) -> tuple[np.ndarray, np.ndarray]:
    """A window anywhere, or one around a random pixel of a random defect."""
    size = np.array(config.data.image_size)
    rng = _generator(config, _WINDOW, place)
    corner = rng.integers(0, np.array(frame.mask.shape) - size + 1)
    if centred:
        defect = frame.defects[rng.integers(len(frame.defects))]
        return _around(frame, defect[rng.integers(len(defect))], size, rng)
    return _window(frame, corner, size)


def _hard_crop(
    config: ml_collections.ConfigDict, frames: list[Frame], mistakes: np.ndarray, place: int
) -> tuple[np.ndarray, np.ndarray]:
    """A window around a random one of the mistakes."""
    rng = _generator(config, _MISTAKE, place)
    number, *pixel = mistakes[rng.integers(len(mistakes))]
    return _around(frames[number], np.array(pixel), np.array(config.data.image_size), rng)


def _is_hard(config: ml_collections.ConfigDict, places: np.ndarray) -> np.ndarray:
    """Which of the crops that lie around no defect lie around a mistake: [steps, b] bool."""
    drawn = _generator(config, _CENTRED).random(int(places.max()) + 1)[places]
    return (drawn >= config.data.defect_share) & (
        drawn < config.data.defect_share + config.data.hard_share
    )


def _around(
    frame: Frame, pixel: np.ndarray, size: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A window whose middle half holds a pixel, but for what a frame's border takes away."""
    corner = pixel - rng.integers(size // 4, size - size // 4)
    return _window(frame, np.clip(corner, 0, np.array(frame.mask.shape) - size), size)


def _window(frame: Frame, corner: np.ndarray, size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    top, left = corner
    bottom, right = corner + size
    return frame.image[top:bottom, left:right], frame.mask[top:bottom, left:right]


def _no_defect(config: ml_collections.ConfigDict) -> UserError:
    return UserError(
        f"data.defect_share is {config.data.defect_share}, but no training image has a defect that "
        "is left in the frame that crops are cut from: set 0, or raise data.frame_height"
    )


def _donors(
    frames: Iterable[Frame], augmentation: ml_collections.ConfigDict
) -> Iterator[tuple[int, np.ndarray]]:
    """The frames' numbers and the corners of all patches with a defect in the middle."""
    side, found = augmentation.paste_size, False
    for number, frame in enumerate(frames):
        for defect in frame.defects:
            corner = (defect.min(axis=0) + defect.max(axis=0) + 1 - side) // 2
            _, mask = _window(frame, np.maximum(corner, 0), np.array([side, side]))
            inside = (corner >= 0).all() and mask.shape == (side, side)
            if inside and not (mask[[0, -1]].any() or mask[:, [0, -1]].any()):
                found = True
                yield number, corner
    if not found:
        raise UserError(
            f"augment.paste_size is {side}: no patch of that many pixels around a defect of the "
            "training images lies inside the image and has no defect on its border: choose "
            "another size, or set augment.paste_probability to 0"
        )


def _donor(
    config: ml_collections.ConfigDict,
    frames: list[Frame],
    donors: list[tuple[int, np.ndarray]],
    place: int,
) -> tuple[np.ndarray, np.ndarray]:
    rng = _generator(config, _DONOR, place)
    number, corner = donors[rng.integers(len(donors))]
    return _window(frames[number], corner, np.full(2, config.augment.paste_size))
