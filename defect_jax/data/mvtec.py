"""Folders in the layout of MVTec AD (Bergmann et al. 2019): good parts to learn from, a test set.

<root>/<category>/train/<good or the name of a defect>/<name>.<png, jpg, bmp, tif or webp>
<root>/<category>/test/<good or the name of a defect>/<name>.<...>
<root>/<category>/ground_truth/<defect>/<name>_mask.<...>

MVTec AD itself has no defective training images, which only a segmenter learns from. What a mask
holds, `builder.encode_mask` says. Whatever else lies in these three folders is an error.
"""

import functools
import pathlib
import unicodedata
from collections.abc import Iterable, Iterator

import ml_collections

from defect_jax.data import builder
from defect_jax.data.examples import Examples
from defect_jax.errors import UserError
from defect_jax.paths import resolve, to_path

_LAYOUT = "<root>/<category>/train/good and <root>/<category>/test/<good or a defect>"


def categories(root: str) -> list[str]:
    """The categories under a root, sorted.

    Raises:
        UserError: no such folder, or none of its sub-folders is a category.
    """
    folder = _existing(root)
    found = sorted(path.parent.name for path in folder.glob("*/train") if path.is_dir())
    if found:
        return found
    if (folder / "train").is_dir():
        raise UserError(
            f"data.root {folder} is itself a category: set data.root to {resolve(folder).parent} "
            f"and data.category to {resolve(folder).name}"
        )
    inside = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
    raise UserError(f"data.root {folder} has another layout: expected {_LAYOUT}, found {inside}")


def load(data: ml_collections.ConfigDict, split: str) -> Examples:
    """The examples of a category.

    Args:
        data: `config.data`; reads `root`, `category`, `num_classes` and `cache_dir`.
        split: 'train' or 'test'.

    Raises:
        UserError: see `categories`; an unknown category; no good training images, a folder
            without images or with something else; an image that cannot be read; a mask without an
            image or with two, a defective image without its mask, or a mask of another size or one
            that `builder.encode_mask` refuses.
    """
    known = categories(data.root)
    if data.category not in known:
        raise UserError(
            f"no category '{data.category}' in {data.root}: there are {', '.join(known)}"
        )
    folder = _existing(data.root) / data.category
    if not builder.list_images(folder / "train/good"):
        raise UserError(f"no images in {folder / 'train/good'}: put good parts there")
    train, test = _images(folder / "train"), _images(folder / "test")
    if not test:
        raise UserError(f"no images in {folder / 'test'}/<good or a defect>: put test images there")
    masks = _match_masks(folder, [*train, *test])
    rows = functools.partial(_rows, folder, data.num_classes)
    prepared = builder.prepare(
        {"train": lambda: rows(train, masks), "test": lambda: rows(test, masks)},
        f"mvtec/{data.category}",
        builder.fingerprint(folder, [*train, *test, *masks.values()], data.num_classes),
        data.cache_dir,
        len(train) + len(test),
    )
    return builder.read(prepared, split)


def _existing(root: str) -> pathlib.Path:
    if not root:
        raise UserError("data.root is not set: pass --config.data.root=<folder of the images>")
    folder = to_path(root)
    if not folder.is_dir():
        raise UserError(f"data.root {folder} is no folder: expected {_LAYOUT}")
    return folder


def _folders(folder: pathlib.Path) -> list[pathlib.Path]:
    """Those of good parts and defects, in train, test or ground_truth."""
    paths = builder.list_all(folder)
    for path in paths:
        if not path.is_dir():
            raise UserError(
                f"{path} lies beside the folders of {folder}: move it into that of its kind, good "
                "or a defect, or elsewhere"
            )
    return paths


def _images(folder: pathlib.Path) -> list[pathlib.Path]:
    """Those of train or test."""
    images = []
    for kind in _folders(folder):
        found = builder.list_images(kind)
        if not found:
            raise UserError(f"no images in {kind}: put images there or remove the folder")
        images += found
    return images


def _match_masks(
    folder: pathlib.Path, images: Iterable[pathlib.Path]
) -> dict[pathlib.Path, pathlib.Path]:
    """Pairs each defective image with its mask."""
    masks: dict[tuple[str, str], pathlib.Path] = {}
    for kind in _folders(folder / "ground_truth"):
        for path in builder.list_images(kind):
            other = masks.setdefault(_key(kind.name, path.stem.removesuffix("_mask")), path)
            if other != path:
                raise UserError(f"masks {other} and {path} are of one image: remove one")
    owners: dict[pathlib.Path, pathlib.Path] = {}
    for image in images:
        defect = image.parent.name
        mask = masks.get(_key(defect, image.stem))
        if mask is not None and defect == "good":
            raise UserError(f"good image {image} has a mask {mask}: remove it or move the image")
        if mask is not None:
            other = owners.setdefault(mask, image)
            if other != image:
                raise UserError(
                    f"mask {mask} is of both {other} and {image}: give one another name and a "
                    "mask of its own"
                )
        elif defect != "good":
            expected = folder / "ground_truth" / defect / f"{image.stem}_mask.png"
            raise UserError(
                f"image {image} has no mask: expected {expected}, or move the image elsewhere"
            )
    for (defect, stem), mask in sorted(masks.items()):
        if mask not in owners:
            raise UserError(
                f"mask {mask} has no image: expected {folder / 'test' / defect / stem} and a "
                "suffix, or the same in train"
            )
    return {image: mask for mask, image in owners.items()}


def _key(defect: str, stem: str) -> tuple[str, str]:
    """The same however an accent is written: archives from a Mac write it as a letter apart."""
    return unicodedata.normalize("NFC", defect), unicodedata.normalize("NFC", stem)


def _rows(
    folder: pathlib.Path,
    num_classes: int,
    images: Iterable[pathlib.Path],
    masks: dict[pathlib.Path, pathlib.Path],
) -> Iterator[dict]:
    for path in images:
        image, size = builder.encode_image(path)
        mask = b""
        if path in masks:
            mask, mask_size = builder.encode_mask(masks[path], num_classes)
            if mask_size != size:
                raise UserError(
                    f"mask {masks[path]} is {mask_size[1]}x{mask_size[0]} pixels, its image "
                    f"{path} {size[1]}x{size[0]}: they must be equal"
                )
        yield {
            "image": image,
            "mask": mask,
            "label": int(path.parent.name != "good"),
            "defect_type": path.parent.name,
            "filename": path.relative_to(folder).as_posix(),
        }
