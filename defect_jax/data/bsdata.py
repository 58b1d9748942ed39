"""BSData: photographs of ball screws with pits, Schlagenhauf et al. 2021 (arXiv 2103.13003).

The root is a clone of https://github.com/2Obe/BSData: `data/*.jpg`, `label/*.json` (labelme
polygons) and `image_data.json` (the official split). Frames of type 2 show the same places of one
spindle again and again over weeks, and the official split has frames of one place on both sides.
Every frame of a test side is labelled, so figures that need good test images are undefined. The
defect type of a labelled frame is that of its spindle, 'type 1' or 'type 2'.
"""

import collections
import datetime
import json
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

import ml_collections
import numpy as np
from PIL import Image, ImageDraw

from defect_jax.data import builder
from defect_jax.data.examples import Examples
from defect_jax.errors import UserError, require
from defect_jax.paths import to_path

SPLITS = ("official", "grouped", "tuning", "random")
NUM_FOLDS = 5
CLASSES = {"Pitting": 1}
# Every tenth safe normal frame calibrates thresholds and is never trained on.
_VALIDATION_EVERY = 10
# Normal frames end this many frames before the first label of their place.
_MARGIN = 5
# What reading JSON of another form ends in.
_MALFORMED = (AttributeError, ValueError, LookupError, TypeError, RecursionError)


def place(filename: str) -> str:
    """What a frame shows: the position on the spindle (type 2) or the part (type 1).

    '01_200905161814_560000_000_crop_2.jpg' is at '560000_000'; 'KGT1-S-060-A02_crop_0.jpg' is of
    part 'KGT1-S'.
    """
    parts = filename.split("_")
    if parts[0] == "01":
        return "_".join(parts[2:4])
    return "-".join(parts[0].split("-")[:2])


def taken_at(filename: str) -> datetime.datetime:
    """When a frame of type 2 was taken."""
    return datetime.datetime.strptime(filename.split("_")[1], "%y%m%d%H%M%S")


def load(data: ml_collections.ConfigDict, split: str) -> Examples:
    """The examples of one side.

    Args:
        data: `config.data`; reads `root`, `split`, `fold` and `normals` (see `split_names`) and
            `cache_dir`.
        split: 'train', 'test', or 'validation': safe normal frames that are not in 'train'.

    Raises:
        UserError: files of the clone that are missing or damaged, a bad polygon, an unknown
            label, split or fold.
    """
    require(split, ("train", "validation", "test"), "split")
    root = _existing(data.root)
    entries = _entries(root)
    sides = split_names(entries, data.split, data.fold, data.normals)
    labelled = {entry["filename"] for entry in entries if entry["annotations"]}
    # Whatever the split, so that all folds read the same prepared frames.
    names = sorted(labelled.union(safe_normals(entries)))
    files = [root / "data" / name for name in names]
    labels = {name: root / "label" / _label_name(name) for name in names if name in labelled}
    types = {e["filename"]: f"type {e['type']}" for e in entries if e["annotations"]}
    _check_files(root, files, list(labels.values()))
    prepared = builder.prepare(
        {"frames": lambda: _rows(root, names, labels, types)},
        "bsdata",
        # With the types, which come from a file that is not among these.
        builder.fingerprint(root, [*files, *labels.values()], sorted(types.items())),
        data.cache_dir,
        len(names),
    )
    examples = builder.read(prepared, "frames")
    chosen = [f"data/{name}" for name in sides[split]]
    return examples.take(np.flatnonzero(np.isin(examples.filename, chosen)))


def split_names(
    entries: list[dict[str, Any]], split: str, fold: int, normals: bool
) -> dict[str, list[str]]:
    """The file names of 'train', 'validation' and 'test'.

    Args:
        entries: of `image_data.json`.
        split: 'official'; 'grouped', where no place stands on both sides; 'tuning', the same of the
            official training frames alone, to choose thresholds on; or 'random', a fifth of the
            labelled frames, as ZNet's authors split them.
        fold: which fold is the test side of 'grouped' and 'tuning'; the seed of 'random'.
        normals: whether 'train' has the safe normal frames too.

    Raises:
        UserError: an unknown split or fold.
    """
    require(split, SPLITS, "data.split")
    labelled = [entry for entry in entries if entry["annotations"]]
    safe = safe_normals(entries)
    if split == "tuning":
        labelled = [entry for entry in labelled if entry["train_test_split"] == "train"]
    names = [entry["filename"] for entry in labelled]
    if split == "official":
        test = {e["filename"] for e in labelled if e["train_test_split"] == "test"}
    elif split == "random":
        if fold < 0:
            raise UserError(f"data.fold is {fold}: the seed of a random split is at least 0")
        test = set(np.random.default_rng(fold).permutation(sorted(names))[: len(names) // 5])
    else:
        require(fold, range(NUM_FOLDS), "data.fold")
        places = grouped_folds(names)[fold]
        test = {name for name in names if place(name) in places}
        safe = [name for name in safe if place(name) not in places]
    train = [name for name in names if name not in test]
    validation = safe[::_VALIDATION_EVERY]
    if normals:
        train += sorted(set(safe) - set(validation))
    return {"train": train, "validation": validation, "test": sorted(map(str, test))}


def grouped_folds(filenames: Iterable[str]) -> list[set[str]]:
    """Divides the places of labelled frames into folds of about equally many frames.

    The place with the most frames goes first, each to the fold with the fewest so far.

    Returns:
        The places of each fold.
    """
    counts = collections.Counter(place(name) for name in filenames)
    folds: list[set[str]] = [set() for _ in range(NUM_FOLDS)]
    sizes = [0] * NUM_FOLDS
    for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        smallest = sizes.index(min(sizes))
        folds[smallest].add(name)
        sizes[smallest] += count
    return folds


def safe_normals(entries: list[dict[str, Any]]) -> list[str]:
    """The unlabelled frames that are safe to call normal, sorted.

    Not every unlabelled frame is free of pits: only `crop_2` frames count, at least five frames
    before the first labelled one of their place (all of them where a place has no label). That
    frame may lie on the test side: whose labels then say where good training frames end.
    """
    frames = collections.defaultdict(list)
    for entry in entries:
        if entry["type"] == 2:
            frames[place(entry["filename"])].append(entry)
    safe = []
    for sequence in frames.values():
        sequence.sort(key=lambda entry: taken_at(entry["filename"]))
        onset = next((n for n, entry in enumerate(sequence) if entry["annotations"]), None)
        before = sequence if onset is None else sequence[: max(0, onset - _MARGIN + 1)]
        safe += [
            entry["filename"]
            for entry in before
            if not entry["annotations"] and entry["filename"].endswith("crop_2.jpg")
        ]
    return sorted(safe)


def rasterise(label: pathlib.Path, size: tuple[int, int]) -> np.ndarray:
    """Draws a labelme file.

    Args:
        label: the JSON file.
        size: (height, width) of its image in pixels.

    Returns:
        [h, w] uint8, 1 where a pit is, by Pillow's polygon rule, outline included.

    Raises:
        UserError: no JSON, no shapes, a stated size unlike the image's, an unknown label, a
            shape that is no polygon, fewer than 3 points, a point more than a pixel outside the
            image, or a polygon without a pixel inside it.
    """
    try:
        content = json.loads(label.read_text("utf-8"))
        shapes = [
            (str(shape["label"]), shape.get("shape_type", "polygon"), shape["points"])
            for shape in content["shapes"]
        ]
        stated = (content["imageHeight"], content["imageWidth"])
    except _MALFORMED as error:
        raise UserError(f"{label} is no labelme file ({_reason(error)}): restore it") from error
    if stated != size:
        raise UserError(
            f"{label} states {stated[1]!r}x{stated[0]!r} pixels, its image has "
            f"{size[1]}x{size[0]}: they must be equal"
        )
    if not shapes:
        raise UserError(f"{label} has no shapes: remove it or label the image")
    mask = Image.new("L", size[::-1])
    for name, kind, points in shapes:
        if name not in CLASSES:
            raise UserError(f"{label} has an unknown label '{name}': known is {', '.join(CLASSES)}")
        if kind != "polygon":
            raise UserError(f"{label} has a shape of type '{kind}': draw polygons alone")
        outline = _outline(label, points, size)
        one = Image.new("L", mask.size)
        ImageDraw.Draw(one).polygon(outline, fill=255)
        if not one.getbbox():
            raise UserError(f"{label} has a polygon beside the image: correct its points")
        mask.paste(CLASSES[name], mask=one)
    return np.asarray(mask)


def _outline(label: pathlib.Path, points: Any, size: tuple[int, int]) -> list[tuple[float, ...]]:
    """Returns the checked (x, y) of a polygon."""
    try:
        corners = np.asarray(points, float).reshape(len(points), 2)
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(f"{label} has a polygon whose points are not (x, y): correct it") from error
    distinct = len(np.unique(corners, axis=0))
    if distinct < 3:
        raise UserError(f"{label} has a polygon of {distinct} points: a polygon has at least 3")
    if not ((corners >= -1) & (corners <= np.array(size[::-1]) + 1)).all():
        raise UserError(f"{label} has a polygon that leaves the image: correct its points")
    return [tuple(corner) for corner in corners.tolist()]


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _existing(root: str) -> pathlib.Path:
    if not root:
        raise UserError("data.root is not set: pass --config.data.root=<clone of BSData>")
    folder = to_path(root)
    for part in ("data", "label", "image_data.json"):
        if not (folder / part).exists():
            raise UserError(
                f"{folder} is no clone of BSData: expected data/, label/ and image_data.json, "
                f"and {part} is missing"
            )
    return folder


def _entries(root: pathlib.Path) -> list[dict[str, Any]]:
    path = root / "image_data.json"
    try:
        entries = json.loads(path.read_text("utf-8"))["images"]
        names = {entry["filename"] for entry in entries}
        if not 0 < len(names) == len(entries):
            raise ValueError(f"it has {len(entries)} images of {len(names)} names")
        for entry in entries:
            require(entry["type"], (1, 2), "type")
            if entry["annotations"]:
                require(entry["train_test_split"], ("train", "test"), "train_test_split")
            if entry["type"] == 2:
                taken_at(entry["filename"])
            _ = place(entry["filename"])
    except _MALFORMED as error:
        raise UserError(f"{path} is damaged ({_reason(error)}): restore it") from error
    return entries


def _label_name(filename: str) -> str:
    return pathlib.Path(filename).with_suffix(".json").name


def _check_files(
    root: pathlib.Path, images: list[pathlib.Path], labels: list[pathlib.Path]
) -> None:
    for path in (*images, *labels):
        if not path.is_file():
            raise UserError(f"{path} is missing, which image_data.json names: restore it")
    unknown = set((root / "label").glob("*.json")).difference(labels)
    if unknown:
        raise UserError(
            f"label {min(unknown)} belongs to no labelled image of image_data.json: remove it"
        )


def _rows(
    root: pathlib.Path,
    names: Iterable[str],
    labels: dict[str, pathlib.Path],
    types: dict[str, str],
) -> Iterator[dict]:
    for name in names:
        image, size = builder.encode_image(root / "data" / name)
        mask = rasterise(labels[name], size) if name in labels else None
        yield {
            "image": image,
            "mask": b"" if mask is None else builder.encode_png(mask),
            "label": int(mask is not None),
            "defect_type": types.get(name, "good"),
            "filename": f"data/{name}",
        }
