"""Datasets that are arrays in an .npz file: no image files, no TensorFlow.

For each split, 'train' and 'test', the file holds

<split>_image        uint8 [N, H, W, C] or [N, H, W]
<split>_mask         uint8 [N, H, W], class ids; background everywhere where there is none, which
                     that of a defective image may be: a small defect may vanish in shrinking
<split>_defect_type  str [N], 'good' or the name of the defect; else 'good' where the mask is empty
<split>_filename     str [N], unique; else the number

and no more.
"""

import pathlib
import zipfile
import zlib
from collections.abc import Mapping

import ml_collections
import numpy as np

from defect_jax.data.examples import Examples
from defect_jax.errors import UserError, require
from defect_jax.paths import to_path

_SPLITS = ("train", "test")
_NAMES = ("image", "mask", "defect_type", "filename")


def categories(data: ml_collections.ConfigDict) -> list[str]:
    """One: what `data.category` says, which only names the run; for 'all', the file's name."""
    return [pathlib.Path(data.root).stem if data.category == "all" else data.category]


def load(data: ml_collections.ConfigDict, split: str) -> Examples:
    """The examples of a split, decoded.

    Args:
        data: `config.data`; `root` is the .npz file, whose images have `channels` and, unless
            `fit` is 'crop', `image_size`.
        split: 'train' or 'test'.

    Raises:
        UserError: no such file, no such split in it, arrays of other names, shapes or types, a
            class that is not below `num_classes`, or a good image whose mask says otherwise.
    """
    path = to_path(data.root)
    if not path.is_file():
        raise UserError(f"data.root {path} is no file: expected an .npz file of arrays")
    try:
        with path.open("rb") as opened, np.load(opened) as file:
            members, prefix = list(file), f"{split}_"
            found = {k.removeprefix(prefix): file[k] for k in file if k.startswith(prefix)}
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"cannot read {path} ({error}): expected an .npz file") from error
    known = [f"{split}_{name}" for split in _SPLITS for name in _NAMES]
    for member in members:  # a misspelled mask would go unseen, and its images count as good
        require(member, known, f"array in {path}")
    if "image" not in found:
        raise UserError(f"{path} has no array {split}_image: put the {split} images there")
    image = found["image"][..., None] if found["image"].ndim == 3 else found["image"]
    mask = found.get("mask", np.zeros(image.shape[:3], np.uint8))
    _check(path, split, data, image, mask)
    marked = mask.any(axis=(1, 2))
    kinds = found.get("defect_type", np.where(marked, "defect", "good"))
    names = found.get("filename", np.array([f"{split}/{n:06}" for n in range(len(image))]))
    for name, values in (("defect_type", kinds), ("filename", names)):
        if values.dtype.kind != "U" or values.ndim != 1:
            raise UserError(
                f"{path}: {split}_{name} is {values.dtype} {list(values.shape)}, expected one "
                "string for each image"
            )
    if not len(kinds) == len(names) == len(set(names.tolist())) == len(image):
        raise UserError(
            f"{path}: {len(image)} {split} images need as many {split}_defect_type and as many "
            f"different {split}_filename, found {len(kinds)} and {len(set(names.tolist()))}"
        )
    _check_kinds(path, split, kinds, names, marked)
    return Examples(image, mask, (kinds != "good").astype(np.int32), kinds, names)


def save(path: pathlib.Path, splits: Mapping[str, Examples]) -> None:
    """Writes decoded examples so that `load` reads them."""
    arrays = {}
    for split, examples in splits.items():
        for name in _NAMES:
            arrays[f"{split}_{name}"] = getattr(examples, name)
    partial = path.with_suffix(".partial.npz")
    np.savez(partial, **arrays)
    partial.replace(path)


def _check_kinds(
    path: pathlib.Path, split: str, kinds: np.ndarray, names: np.ndarray, marked: np.ndarray
) -> None:
    for kind, name, has_mask in zip(kinds.tolist(), names.tolist(), marked, strict=True):
        if kind == "good" and has_mask:
            raise UserError(
                f"{path}: {split} image '{name}' is good and has a mask that marks a defect: "
                f"correct {split}_defect_type or {split}_mask"
            )
        if kind != "good" and kind.strip().lower() in ("good", ""):
            raise UserError(
                f"{path}: {split} image '{name}' has the type '{kind}': write 'good', or the name "
                "of a defect"
            )


def _check(
    path: pathlib.Path,
    split: str,
    data: ml_collections.ConfigDict,
    image: np.ndarray,
    mask: np.ndarray,
) -> None:
    size = image.shape[1:3] if data.fit == "crop" else data.image_size
    shape = (*size, data.channels)
    if image.dtype != np.uint8 or image.shape[1:] != shape:
        raise UserError(
            f"{path}: {split}_image is {image.dtype} {list(image.shape)}, expected uint8 "
            f"[N, {', '.join(map(str, shape))}]: set data.image_size and data.channels"
        )
    if not len(image):
        raise UserError(f"{path}: {split}_image holds no images: put the {split} images there")
    if mask.dtype != np.uint8 or mask.shape != image.shape[:3]:
        raise UserError(
            f"{path}: {split}_mask is {mask.dtype} {list(mask.shape)}, expected uint8 "
            f"{list(image.shape[:3])}, one for each image"
        )
    if mask.size and mask.max() >= data.num_classes:
        raise UserError(
            f"{path}: {split}_mask holds {mask.max()}, expected class ids below "
            f"{data.num_classes} (data.num_classes), 0 for the background"
        )
