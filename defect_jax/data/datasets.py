"""The table of datasets, and their splits."""

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import ml_collections
import numpy as np

from defect_jax import distributed
from defect_jax.data import arrays, pipeline
from defect_jax.data.examples import Examples, concatenate
from defect_jax.errors import UserError, lookup, naming_missing_fields, require
from defect_jax.methods import SUPERVISED

# Of so many masks in files it is looked at how much they mark.
_MOST_MASKS = 20


class Dataset(NamedTuple):
    """Where a dataset's examples come from.

    Attributes:
        load: (config.data, split) -> Examples; splits 'train', 'test' and, where
            `has_validation`, 'validation'.
        categories: config.data -> the names that `config.data.category` may take.
        has_validation: whether the dataset comes with validation images of its own; else they
            are drawn from the training images.
    """

    load: Callable[[ml_collections.ConfigDict, str], Examples]
    categories: Callable[[ml_collections.ConfigDict], list[str]]
    has_validation: bool


# The imports lie in functions since these modules import TensorFlow, which takes seconds and which
# training from arrays does without.


def _load_mvtec(data: ml_collections.ConfigDict, split: str) -> Examples:
    from defect_jax.data import mvtec

    return mvtec.load(data, split)


def _mvtec_categories(data: ml_collections.ConfigDict) -> list[str]:
    from defect_jax.data import mvtec

    return mvtec.categories(data.root)


def _load_bsdata(data: ml_collections.ConfigDict, split: str) -> Examples:
    from defect_jax.data import bsdata

    return bsdata.load(data, split)


def _load_synthetic(data: ml_collections.ConfigDict, split: str) -> Examples:
    from defect_jax.data import synthetic

    return synthetic.load(data, split)


def _synthetic_categories(data: ml_collections.ConfigDict) -> list[str]:
    from defect_jax.data import synthetic

    return sorted(synthetic.SURFACES)


DATASETS = {
    "mvtec": Dataset(_load_mvtec, _mvtec_categories, False),
    "bsdata": Dataset(_load_bsdata, lambda data: ["pitting"], True),
    "synthetic": Dataset(_load_synthetic, _synthetic_categories, False),
    "arrays": Dataset(arrays.load, arrays.categories, False),
}


def categories(config: ml_collections.ConfigDict) -> list[str]:
    """The categories that a run over `config.data.category` consists of ('all' for every one)."""
    known = lookup(DATASETS, config.data.name, "data.name").categories(config.data)
    if config.data.category == "all":
        return known
    require(config.data.category, known, "data.category")
    return [config.data.category]


def of_category(config: ml_collections.ConfigDict, category: str) -> ml_collections.ConfigDict:
    """The part of a run over all categories that concerns one of them.

    Returns:
        `config` for that category alone, its file names without the '<category>/' in front.
    """
    one = config.copy_and_resolve_references()
    prefix = f"{category}/"
    names = [name for name in config.data.validation_files if name.startswith(prefix)]
    one.data.update(category=category, one_model=False)
    one.data.validation_files = tuple(name.removeprefix(prefix) for name in names)
    return one


def draw_validation(config: ml_collections.ConfigDict) -> tuple[str, ...]:
    """The file names of the training images to hold out for validation.

    `config.data.validation_fraction` of the good ones, at least one, drawn from `config.seed`.
    Empty where none is good, or the dataset has validation images of its own. With
    `config.data.one_model` so many of each category, the same as for that category alone.

    Raises:
        UserError: a fraction outside (0, 1), or too few images to hold one out.
    """
    if config.data.one_model:
        return tuple(
            f"{category}/{name}"
            for category in categories(config)
            for name in draw_validation(of_category(config, category))
        )
    dataset = lookup(DATASETS, config.data.name, "data.name")
    if dataset.has_validation:
        return ()
    fraction = config.data.validation_fraction
    if not 0 < fraction < 1:
        raise UserError(f"data.validation_fraction is {fraction}: it must lie between 0 and 1")
    train = dataset.load(config.data, "train")
    names = np.sort(train.filename[train.label == 0])
    if not len(names):
        return ()
    count = max(1, round(fraction * len(names)))
    if count >= len(_to_learn_from(config, train)):
        raise UserError(
            f"{config.data.name} '{config.data.category}' has {len(names)} good training images: "
            f"holding out {count} for validation leaves none"
        )
    return tuple(sorted(np.random.default_rng(config.seed).permutation(names)[:count].tolist()))


def load_split(config: ml_collections.ConfigDict, split: str) -> Examples:
    """The examples of 'train', 'validation' or 'test'.

    With `config.data.one_model` those of all categories, one category after another, and
    '<category>/' in front of their file names. Defective training images are left out but for a
    method that is `SUPERVISED`.

    Raises:
        UserError: an unknown dataset or category, bad files (see the dataset's module), or
            validation files that are no longer there.
    """
    require(split, ("train", "validation", "test"), "split")
    examples = _load_side(config, split)
    return _to_learn_from(config, examples) if split == "train" else examples


def _to_learn_from(config: ml_collections.ConfigDict, train: Examples) -> Examples:
    if config.method.name in SUPERVISED:
        return train
    return train.take(np.flatnonzero(train.label == 0))


def _load_side(config: ml_collections.ConfigDict, split: str) -> Examples:
    """Those of a split, where the validation images were drawn from the training images or not."""
    dataset = lookup(DATASETS, config.data.name, "data.name")
    if dataset.has_validation or split == "test":
        return _load(config, split)
    train = _load(config, "train")
    missing = set(config.data.validation_files) - set(train.filename)
    if missing:
        raise UserError(
            f"validation image {min(missing)} of this run's config is not among the training "
            f"images of '{config.data.category}': restore it or start a new run"
        )
    held_out = np.isin(train.filename, config.data.validation_files)
    return train.take(np.flatnonzero(held_out if split == "validation" else ~held_out))


def check_splits(config: ml_collections.ConfigDict) -> str:
    """Makes sure, before any training, that a run has images to learn from and to be tested on.

    Prints a note where test images are training images too, or masks mark nothing or most of an
    image.

    Returns:
        A digest of the training images and masks, wherever they lie: 16 hexadecimal digits.

    Raises:
        UserError: no training or no test images, no masks for a method that learns from them, or
            bad files.
    """
    everything, test = _load_side(config, "train"), load_split(config, "test")
    train, method = _to_learn_from(config, everything), config.method.name
    named = f"{config.data.name} '{config.data.category}'"
    for split, examples in (("train", everything), ("test", test)):
        if not len(examples):
            raise UserError(f"{named}: no {split} images")
    if not len(train):
        raise UserError(
            f"{named}: all {len(everything)} training images are defective, and method '{method}' "
            "learns from good ones: add some or take a segmenter"
        )
    masks = (
        pipeline.fitted_mask(config.data, train, n) for n in np.flatnonzero(train.label).tolist()
    )
    if method in SUPERVISED and not any(mask.any() for mask in masks):
        raise UserError(
            f"{named}: none of the {len(train)} training images shows a defect in a mask at the "
            f"size of training, which method '{method}' learns from: add some (in folders to "
            "train/<defect>, their masks to ground_truth/<defect>), or train on larger images"
        )
    if distributed.is_first():
        if len(train) < len(everything):
            count = len(everything) - len(train)
            print(f"{named}: {count} defective training images are left out", flush=True)
        for note in (*_twins(everything, test), *_odd_masks(test)):
            print(f"note: {note}", flush=True)
    return _digest(train)


def check_same_images(
    config: ml_collections.ConfigDict, workdir: str | pathlib.Path, digest: str | None = None
) -> None:
    """Raises UserError where `data.root` has other training images than a run was trained on.

    Args:
        config: of the run, with the `data.root` of now.
        workdir: the run's folder, for the message.
        digest: what `check_splits` returned; None to look at the images now.
    """
    with naming_missing_fields(workdir):
        before = config.data.train_digest
    now = digest or _digest(load_split(config, "train"))
    if now != before:
        raise UserError(
            f"{workdir} was trained on other images than those in "
            f"{config.data.root or config.data.name} (digest {before} there, {now} here): name the "
            "folder of the right ones, or use a new workdir"
        )


def _twins(train: Examples, test: Examples) -> Iterator[str]:
    """What there is to tell of images that are trained on and tested on."""
    known = {_hash(image) for image in train.image}
    twins = [
        name for name, image in zip(test.filename, test.image, strict=True) if _hash(image) in known
    ]
    if twins:
        yield (
            f"{len(twins)} test images are training images too ({twins[0]} is the first): figures "
            "on them show what was learned by heart"
        )


def _odd_masks(test: Examples) -> Iterator[str]:
    """What there is to tell of test masks that mark nothing, or most of their image."""
    defective = np.flatnonzero(test.label)
    if not len(defective):
        return
    # Those of arrays cost nothing, and they alone may mark nothing.
    every = 1 if test.is_decoded else -(-len(defective) // _MOST_MASKS)
    some = defective[::every].tolist()
    shares = [float(np.mean(pipeline.native_mask(test, n) != 0)) for n in some]
    if not min(shares):
        yield (
            f"the mask of {test.filename[some[int(np.argmin(shares))]]}, a defective test image, "
            "marks nothing: in pixel figures its defect counts as good"
        )
    if np.median(shares) > 0.5:
        yield (
            f"the median test mask marks {np.median(shares):.0%} of its image as defective: are "
            "the masks inverted?"
        )


def _hash(image: Any) -> bytes:
    return hashlib.blake2b(bytes(image)).digest()


def _digest(examples: Examples) -> str:
    digest = hashlib.sha256()
    for name, image, mask in zip(examples.filename, examples.image, examples.mask, strict=True):
        digest.update(repr((str(name), bytes(image), bytes(mask))).encode())
    return digest.hexdigest()[:16]


def _load(config: ml_collections.ConfigDict, split: str) -> Examples:
    """What the dataset has of a split, nothing held out."""
    load = DATASETS[config.data.name].load
    if not config.data.one_model:
        return load(config.data, split)
    parts = []
    for category in categories(config):
        part = load(of_category(config, category).data, split)
        names = np.char.add(f"{category}/", part.filename)
        parts.append(dataclasses.replace(part, filename=names))
    return concatenate(parts)
