"""Prepares the examples of a dataset once with TensorFlow Datasets and reads them back encoded.

A dataset module lists its source, hashes that list (`fingerprint`) and hands `prepare` one
generator of examples a split. The fingerprint is part of the prepared folder's name, so a source
that changed is prepared anew. TensorFlow Datasets writes to a temporary folder and renames it at
the end, so an interrupted preparation is never taken for a finished one.
"""

import contextlib
import functools
import hashlib
import io
import pathlib
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import tqdm
from absl import logging
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from defect_jax import distributed
from defect_jax.data.examples import Examples
from defect_jax.data.tensorflow_quietly import tf, tfds
from defect_jax.errors import UserError
from defect_jax.paths import is_remote, resolve, to_writable_path

Generators = Mapping[str, Callable[[], Iterable[dict]]]

# Raise it when the same source is to be prepared differently: the fingerprint holds it.
_VERSION = "1.0.2"
_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
_LOSSY = ("JPEG", "WEBP")
_LEFT_BY_SYSTEMS = ("Thumbs.db", "ehthumbs.db", "desktop.ini", "@eaDir")
Image.MAX_IMAGE_PIXELS = None  # line cameras take large ones, and nobody is attacked by their own
_PNG_END = b"IEND\xaeB`\x82"
_UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
)


class PreparedExamples(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Writes examples (see `prepare`) in the order in which the generators give them."""

    VERSION = tfds.core.Version(_VERSION)
    # Nothing is downloaded, so no checksums lie beside the code. Looking for them would need
    # importlib_resources, which TensorFlow Datasets 4.9.10 does not declare.
    code_path = None

    def __init__(self, data_dir: str, generators: Generators):
        self._generators = generators
        super().__init__(data_dir=data_dir)

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(),
            # Not an Image, as empty bytes stand for a mask that is background everywhere.
            "mask": tfds.features.Scalar(tf.string),
            "label": tfds.features.Scalar(tf.int32),
            "defect_type": tfds.features.Text(),
            "filename": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        del dl_manager  # nothing is downloaded
        return {split: self._generate_examples(g) for split, g in self._generators.items()}

    def _generate_examples(self, generate):
        yield from enumerate(generate())


def prepare(
    generators: Generators, name: str, fingerprint: str, cache_dir: str, num_examples: int
) -> PreparedExamples:
    """Prepares a dataset unless a finished preparation of the same fingerprint is there.

    Args:
        generators: for each split a function that gives its examples, at least one, as dicts of
            `image` (bytes of an 8-bit PNG or JPEG), `mask` (bytes of a one-channel PNG of class
            ids, or empty), `label` (int), `defect_type` (str) and `filename` (str, unique).
        name: the dataset, '/' between parts; names the folder and the progress bar.
        fingerprint: what the examples depend on, see `fingerprint`.
        cache_dir: the folder of prepared datasets; '' stands for ~/.cache/defect_jax/datasets.
        num_examples: of all splits, for the progress bar.

    Returns:
        What `read` reads from.

    Raises:
        UserError: the folder cannot be written, or a generator found bad input.
    """
    folder = to_writable_path(cache_dir or "~/.cache/defect_jax/datasets")
    data_dir = str(folder / name / fingerprint)
    try:
        to_writable_path(data_dir).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_write(data_dir, error) from error
    with _quiet(), _progress(name, num_examples) as bar:
        counted = {s: functools.partial(_count, g, bar) for s, g in generators.items()}
        builder = PreparedExamples(data_dir, counted)
        try:
            builder.download_and_prepare()
        except OSError as error:
            # Another process may have finished the same preparation since this one began.
            builder = PreparedExamples(data_dir, counted)
            if not builder.info.splits:
                raise _cannot_write(data_dir, error) from error
    return builder


def read(builder: PreparedExamples, split: str) -> Examples:
    """Returns the examples of one split, sorted by file name.

    Raises:
        UserError: there is no such split.
    """
    if split not in builder.info.splits:
        known = ", ".join(sorted(builder.info.splits))
        raise UserError(f"this dataset has no split '{split}': choose one of {known}")
    dataset = builder.as_dataset(
        split=split,
        decoders={"image": tfds.decode.SkipDecoding()},
        read_config=tfds.ReadConfig(try_autocache=False),
    )
    size = builder.info.splits[split].num_examples
    rows = {k: v.numpy() for k, v in next(iter(dataset.batch(size))).items()}
    for key in ("defect_type", "filename"):
        rows[key] = np.array([value.decode() for value in rows[key]])
    examples = Examples(**rows)
    return examples.take(np.argsort(examples.filename))


def fingerprint(root: pathlib.Path, files: Iterable[pathlib.Path], *options: object) -> str:
    """Returns 16 hexadecimal digits that change when a file or an option does.

    A file counts by its path, size and times of change (of content and of metadata, so that a
    replaced file with a copied time stamp is noticed), without being read. In an object store
    there is but one time, in seconds.
    """
    digest = hashlib.sha256(repr((_VERSION, str(resolve(root)), options)).encode())
    for path in sorted(files):
        row = (path.relative_to(root).as_posix(), *_changes(path))
        digest.update(repr(row).encode())
    return digest.hexdigest()[:16]


def list_all(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns what lies right in `folder`, sorted, but for hidden files and the like.

    Nothing where there is no such folder.

    Raises:
        UserError: a name is not UTF-8.
    """
    if not folder.is_dir():
        return []
    # Of object stores, iterdir may give the folder itself.
    paths = [path for path in folder.glob("*") if not path.name.startswith(".")]
    for path in paths:
        try:
            path.name.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"{folder} has a name that is not UTF-8: {path.name!a}") from error
    return sorted(path for path in paths if path.name not in _LEFT_BY_SYSTEMS)


def list_images(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the image files right in `folder`, sorted; none where there is no such folder.

    Raises:
        UserError: something else lies there, which would go unseen; see also `list_all`.
    """
    paths = list_all(folder)
    for path in paths:
        if path.suffix.lower() not in _SUFFIXES or not path.is_file():
            kinds = ", ".join(suffix.removeprefix(".") for suffix in _SUFFIXES)
            raise UserError(
                f"{path} is no image file that can be read ({kinds}): save it as one, or move it "
                f"out of {folder}"
            )
    return paths


def encode_image(path: pathlib.Path) -> tuple[bytes, tuple[int, int]]:
    """Reads an image file as what `tf.io.decode_image` understands.

    PNG and JPEG files with 8 bits a channel, grey or RGB, are taken as they are. Anything else
    becomes an 8-bit PNG: 16-bit grey by 1/257, 16-bit colour by its high byte, alpha left out,
    the first page of several, upright where EXIF data say that the camera was turned.

    Returns:
        The encoded image, and its (height, width).

    Raises:
        UserError: the file is truncated, unreadable or of an unknown pixel format.
    """
    image, data = _open(path)
    if _is_plain(image, data):
        return data, (image.height, image.width)
    if image.mode.startswith(("I", "F")):
        pixels = np.asarray(image)
        if image.mode == "F" or pixels.min() < 0 or pixels.max() >= 2**16:
            raise UserError(
                f"{path}: pixel format '{image.mode}' has no known range: save as 8 bits"
            )
        pixels = np.rint(pixels / 257).astype(np.uint8)
    elif image.mode in ("1", "L", "LA"):
        pixels = np.asarray(image.convert("L"))
    else:
        pixels = np.asarray(image.convert("RGB"))
    return encode_png(pixels), (image.height, image.width)


def encode_mask(path: pathlib.Path, num_classes: int) -> tuple[bytes, tuple[int, int]]:
    """Reads a mask file as a PNG of class ids.

    Of two classes, background and defects, any colour but black is a defect, in a JPEG or WebP
    from 128 on. Of more, grey values or the indices of a palette are the ids.

    Returns:
        The encoded mask, and its (height, width).

    Raises:
        UserError: the file is truncated or unreadable, background everywhere, or has a defect that
            is transparent; of more than two classes, it is a JPEG or WebP or in colour, or holds a
            value that is no class.
    """
    image, _ = _open(path)
    classes = _class_ids(path, image, num_classes) if num_classes > 2 else _defective(image)
    if not classes.any():
        raise UserError(
            f"mask {path} marks no defect: paint it, or move the image to the good ones and remove "
            "the mask"
        )
    if image.has_transparency_data and not image.mode.startswith(("I", "F")):
        alpha = np.asarray(image.convert("RGBA"))[..., 3]
        if classes[alpha == 0].any():
            raise UserError(
                f"mask {path} has pixels that are both transparent and not black, which may be "
                "meant as background or as defect: save it without transparency, black where no "
                "defect is"
            )
    return encode_png(np.asarray(classes, np.uint8)), (image.height, image.width)


def encode_png(pixels: np.ndarray) -> bytes:
    """Returns [H, W] or [H, W, 3] uint8 as the bytes of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def _defective(image: Image.Image) -> np.ndarray:
    """Whether any colour is nonzero: [h, w] bool."""
    is_lossy = image.format in _LOSSY
    if not image.mode.startswith(("I", "F")):
        image = image.convert("L" if image.mode in ("1", "L", "LA") else "RGB")
    # Lossy formats leave faint ripples around the outline, which are no defect.
    values = np.atleast_3d(np.asarray(image))
    return np.any(values >= 128 if is_lossy else values != 0, axis=-1)


def _class_ids(path: pathlib.Path, image: Image.Image, num_classes: int) -> np.ndarray:
    """The values [h, w] of an image, all of them class ids."""
    is_grey = image.mode in ("1", "L", "LA", "P", "PA") or image.mode.startswith("I")
    if image.format in _LOSSY or not is_grey:
        raise UserError(
            f"mask {path} is a {image.format} of pixel format '{image.mode}': with "
            f"data.num_classes {num_classes} save class ids as grey values of a PNG, or as indices "
            "of its palette"
        )
    values = np.asarray(image)
    values = values[..., 0] if values.ndim == 3 else values  # without alpha
    unknown = values[(values < 0) | (values >= num_classes)]
    if unknown.size:
        raise UserError(
            f"mask {path} holds {unknown.min()}, expected class ids below {num_classes} "
            "(data.num_classes), 0 for the background"
        )
    return values


def _changes(path: pathlib.Path) -> tuple[int, ...]:
    stat: Any = path.stat()
    if is_remote(path):
        return stat.length, stat.mtime
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _cannot_write(data_dir: str, error: OSError) -> UserError:
    return UserError(
        f"cannot write prepared images to {data_dir} ({error.strerror}): set data.cache_dir"
    )


def _open(path: pathlib.Path) -> tuple[Image.Image, bytes]:
    """Returns the fully decoded image and the bytes of its file.

    Where EXIF data say that the camera was turned, the image is upright, as people see it who paint
    its mask, and there are no bytes.
    """
    try:
        data = path.read_bytes()
        image = Image.open(io.BytesIO(data))
        if image.format == "PNG":
            # Pillow reads a PNG with wrong checksums or without its end; TensorFlow refuses it.
            image.verify()
            if _PNG_END not in data:
                raise EOFError("its end is missing")
            image = Image.open(io.BytesIO(data))
        image.load()
        is_turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    except _UNREADABLE as error:
        # Pillow's own words end in the address of an object.
        unknown = isinstance(error, UnidentifiedImageError)
        reason = "of no known format" if unknown else " ".join(str(error).split())
        raise UserError(f"cannot read image {path} ({reason}): replace or remove it") from error
    if not is_turned:
        return image, data
    upright = ImageOps.exif_transpose(image)
    upright.format = image.format  # which a copy forgets
    return upright, b""


def _is_plain(image: Image.Image, data: bytes) -> bool:
    """Whether the file is a PNG or JPEG with 8 bits a channel, grey or RGB, without alpha."""
    if not data or image.mode not in ("L", "RGB") or image.format not in ("PNG", "JPEG"):
        return False
    # Pillow does not tell a PNG's depth: it is byte 24, in the header that comes first.
    return image.format == "JPEG" or (data[24] == 8 and "transparency" not in image.info)


def _progress(name: str, num_examples: int) -> tqdm.tqdm:
    """A bar that shows where preparing takes long; of several processes the first has one."""
    return tqdm.tqdm(
        desc=f"preparing {name}",
        total=num_examples,
        unit=" images",
        leave=False,
        delay=0.2,
        disable=not distributed.is_first(),
    )


def _count(generate: Callable[[], Iterable[dict]], bar: tqdm.tqdm) -> Iterator[dict]:
    for example in generate():
        yield example
        bar.update()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the library's own messages and bars from the terminal; warnings still show."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.WARNING)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)
