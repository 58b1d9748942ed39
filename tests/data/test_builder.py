import io
import os
import pathlib

import numpy as np
import pytest
from PIL import ExifTags, Image

from defect_jax.data import builder
from defect_jax.data.tensorflow_quietly import tf
from defect_jax.errors import UserError

COLOUR = np.random.default_rng(0).integers(0, 256, (9, 14, 3), np.uint8)
GREY = COLOUR[..., 0]


def decode(data: bytes) -> np.ndarray:
    return tf.io.decode_image(data).numpy()


def save(
    path: pathlib.Path, pixels: np.ndarray, mode: str | None = None, **options
) -> pathlib.Path:
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def one_line(call, *args) -> str:
    with pytest.raises(UserError) as caught:
        call(*args)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "TIFF"])
@pytest.mark.parametrize("pixels", [COLOUR, GREY[..., None]], ids=["colour", "grey"])
def test_lossless_files_keep_their_values(tmp_path, suffix, pixels):
    data, size = builder.encode_image(save(tmp_path / f"a.{suffix}", pixels.squeeze()))
    np.testing.assert_array_equal(decode(data), pixels)
    assert size == (9, 14)


@pytest.mark.parametrize("pixels", [COLOUR, GREY], ids=["colour", "grey"])
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_plain_files_are_taken_as_they_are(tmp_path, suffix, pixels):
    path = save(tmp_path / f"a.{suffix}", pixels)
    assert builder.encode_image(path)[0] == path.read_bytes()


def test_jpeg_decodes_to_about_its_pixels(tmp_path):
    smooth = np.linspace(0, 255, 64 * 48 * 3).reshape(48, 64, 3).astype(np.uint8)
    for name, pixels in [("grey", smooth[..., :1]), ("colour", smooth)]:
        path = save(tmp_path / f"{name}.jpeg", pixels.squeeze(), quality=95)
        decoded = decode(builder.encode_image(path)[0])
        assert decoded.shape == pixels.shape
        assert np.abs(decoded.astype(int) - pixels).max() < 12


def test_cmyk_jpeg_becomes_rgb(tmp_path):
    path = tmp_path / "a.jpg"
    Image.new("CMYK", (5, 4), (0, 255, 255, 0)).save(path, quality=95)
    decoded = decode(builder.encode_image(path)[0])
    assert decoded.shape == (4, 5, 3)
    assert decoded[..., 0].min() > 200 and decoded[..., 1:].max() < 60


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_grey_is_scaled_to_eight(tmp_path, suffix):
    wide = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    data, _ = builder.encode_image(save(tmp_path / f"a.{suffix}", wide))
    np.testing.assert_array_equal(decode(data)[..., 0], np.arange(256).reshape(16, 16))


def test_sixteen_bit_colour_keeps_its_high_byte(tmp_path):
    wide = (COLOUR.astype(np.uint16) << 8) + 200
    path = tmp_path / "a.png"
    path.write_bytes(tf.io.encode_png(wide).numpy())
    np.testing.assert_array_equal(decode(builder.encode_image(path)[0]), COLOUR)


def test_palettes_alpha_and_bilevel_files(tmp_path):
    palette = save(tmp_path / "palette.png", COLOUR // 128 * 255, "P", bits=8)
    want = np.asarray(Image.open(palette).convert("RGB"))
    np.testing.assert_array_equal(decode(builder.encode_image(palette)[0]), want)
    rgba = np.dstack([COLOUR, 255 - GREY])
    alpha = save(tmp_path / "alpha.png", rgba)
    np.testing.assert_array_equal(decode(builder.encode_image(alpha)[0]), COLOUR)
    grey_alpha = save(tmp_path / "grey_alpha.png", GREY, "LA")
    np.testing.assert_array_equal(decode(builder.encode_image(grey_alpha)[0])[..., 0], GREY)
    bilevel = save(tmp_path / "bilevel.png", GREY > 99)
    np.testing.assert_array_equal(
        decode(builder.encode_image(bilevel)[0])[..., 0], 255 * (GREY > 99)
    )


def test_image_of_unknown_range_is_refused(tmp_path):
    path = save(tmp_path / "float.tif", GREY.astype(np.float32))
    assert str(path) in one_line(builder.encode_image, path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif"])
@pytest.mark.parametrize("kept", [0.0, 0.02, 0.5, 0.97])
def test_truncated_file_is_named(tmp_path, suffix, kept):
    path = save(tmp_path / f"cut.{suffix}", np.tile(COLOUR, (9, 9, 1)))
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    assert str(path) in one_line(builder.encode_image, path)
    assert str(path) in one_line(builder.encode_mask, path, 2)


@pytest.mark.parametrize("missing", [1, 4, 12, 16])
def test_png_without_its_end_is_refused(tmp_path, missing):
    # Pillow alone reads such a file, TensorFlow does not.
    path = save(tmp_path / "cut.png", COLOUR)
    path.write_bytes(path.read_bytes()[:-missing])
    assert str(path) in one_line(builder.encode_image, path)


def test_png_with_a_wrong_checksum_is_refused(tmp_path):
    path = save(tmp_path / "flipped.png", COLOUR)
    data = bytearray(path.read_bytes())
    data[data.index(b"IEND") - 5] ^= 1  # the last byte of the checksum of the pixels
    path.write_bytes(data)
    with pytest.raises(tf.errors.InvalidArgumentError):
        decode(bytes(data))
    assert str(path) in one_line(builder.encode_image, path)


def test_missing_and_foreign_files_are_named(tmp_path):
    text = tmp_path / "text.png"
    text.write_text("no image")
    for path, reason in ((text, "of no known format"), (tmp_path / "absent.png", "No such file")):
        message = one_line(builder.encode_image, path)
        assert str(path) in message and reason in message


@pytest.mark.parametrize("value", [1, 7, 255])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "I;16"])
def test_mask_is_one_where_any_colour_is(tmp_path, mode, value):
    classes = GREY > 127
    pixels = np.uint8(value * classes)
    pixels = {
        "L": pixels,
        "I;16": pixels.astype(np.uint16),
        "RGB": np.dstack([0 * pixels, 0 * pixels, pixels]),
        "RGBA": np.dstack([0 * pixels, pixels, 0 * pixels, 0 * pixels + 255]),
        "LA": pixels,
    }[mode]
    path = save(tmp_path / "mask.png", pixels, "LA" if mode == "LA" else None)
    data, size = builder.encode_mask(path, 2)
    np.testing.assert_array_equal(decode(data), classes[..., None])
    assert size == classes.shape


def test_mask_of_floats_is_one_where_it_is_not_black(tmp_path):
    pixels = np.array([[0, 0.3], [0.7, 1]], np.float32)
    data, _ = builder.encode_mask(save(tmp_path / "mask.tif", pixels), 2)
    np.testing.assert_array_equal(decode(data)[..., 0], [[0, 1], [1, 1]])


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_mask_of_a_lossy_format_keeps_its_outline(tmp_path, suffix):
    classes = np.zeros((40, 40), bool)
    classes[10:27, 13:30] = True
    path = save(tmp_path / f"mask.{suffix}", np.uint8(255 * classes), quality=75)
    assert len(np.unique(Image.open(path))) > 2  # ripples
    data, _ = builder.encode_mask(path, 2)
    np.testing.assert_array_equal(decode(data)[..., 0], classes)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "I;16"])
def test_masks_of_several_classes_hold_their_ids(tmp_path, mode):
    classes = GREY % 4
    pixels = classes.astype(np.uint16) if mode == "I;16" else classes
    image = Image.fromarray(pixels)
    if mode == "P":
        image.putpalette([200, 0, 0, 0, 0, 0, 0, 90, 0, 7, 7, 7])  # no colour tells its index
    (image.convert("LA") if mode == "LA" else image).save(tmp_path / "mask.png")
    data, size = builder.encode_mask(tmp_path / "mask.png", 4)
    np.testing.assert_array_equal(decode(data), classes[..., None])
    assert size == classes.shape


def test_what_is_no_class_of_several_is_named(tmp_path):
    between = save(tmp_path / "between.png", np.uint8([[0, 3, 128], [4, 1, 255]]))
    message = one_line(builder.encode_mask, between, 4)
    assert str(between) in message and "holds 4, expected class ids below 4" in message
    assert decode(builder.encode_mask(between, 2)[0])[..., 0].tolist() == [[0, 1, 1], [1, 1, 1]]
    for path in (save(tmp_path / "colour.png", COLOUR % 3), save(tmp_path / "grey.jpg", GREY % 3)):
        message = one_line(builder.encode_mask, path, 3)
        assert str(path) in message and "palette" in message


@pytest.mark.parametrize("value", [1, 128, 255])
def test_transparent_pixels_of_a_mask_are_black_or_refused(tmp_path, value):
    alpha = np.where(GREY > 127, 255, 0).astype(np.uint8)
    black = np.dstack([alpha, alpha, alpha, alpha])
    data, _ = builder.encode_mask(save(tmp_path / "black.png", black), 2)
    np.testing.assert_array_equal(decode(data)[..., 0], GREY > 127)
    painted = np.dstack([np.full_like(black[..., :3], value), alpha])
    for mode in ("RGBA", "LA"):
        path = save(tmp_path / f"{mode}.png", painted, mode)
        message = one_line(builder.encode_mask, path, 2)
        assert str(path) in message and "without transparency" in message
    message = one_line(builder.encode_mask, tmp_path / "LA.png", 256)
    assert "without transparency" in message


@pytest.mark.parametrize(("suffix", "num_classes"), [("png", 2), ("png", 3), ("jpg", 2)])
def test_mask_without_a_defect_is_refused(tmp_path, suffix, num_classes):
    path = save(tmp_path / f"mask.{suffix}", 0 * GREY)
    message = one_line(builder.encode_mask, path, num_classes)
    assert str(path) in message and "marks no defect" in message


def test_list_images_takes_images_and_passes_over_hidden_files(tmp_path):
    for name in ("b.PNG", "a.jpg", "c.tiff", "d.webp", ".DS_Store", "Thumbs.db"):
        (tmp_path / name).touch()
    (tmp_path / ".ipynb_checkpoints").mkdir()
    found = [path.name for path in builder.list_images(tmp_path)]
    assert found == ["a.jpg", "b.PNG", "c.tiff", "d.webp"]
    assert builder.list_images(tmp_path / "absent") == []


def test_names_that_are_not_utf_8_are_told(tmp_path):
    pathlib.Path(os.fsdecode(os.fsencode(tmp_path) + b"/a\xff.png")).touch()
    message = one_line(builder.list_images, tmp_path)
    assert message.isprintable() and str(tmp_path) in message


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("notes.txt", pathlib.Path.touch),
        ("a.gif", pathlib.Path.touch),
        ("nested", pathlib.Path.mkdir),
        ("folder.png", pathlib.Path.mkdir),
        ("broken.png", lambda path: path.symlink_to("absent.png")),
    ],
)
def test_list_images_names_what_it_cannot_take(tmp_path, name, make):
    (tmp_path / "a.jpg").touch()
    path = tmp_path / name
    make(path)
    assert f"{path} is no image file" in one_line(builder.list_images, tmp_path)


@pytest.mark.parametrize("orientation", [3, 6])
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_turned_image_is_upright_as_its_mask_is(tmp_path, orientation, suffix):
    pixels = np.zeros((40, 60), np.uint8)
    pixels[5:15, 10:40] = 255
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path = save(tmp_path / f"a.{suffix}", pixels, exif=exif)
    upright = np.rot90(pixels, {3: 2, 6: -1}[orientation])
    data, size = builder.encode_image(path)
    np.testing.assert_allclose(decode(data)[..., 0], upright, atol=60)
    assert size == upright.shape and Image.open(io.BytesIO(data)).getexif() == {}
    data, size = builder.encode_mask(path, 2)
    np.testing.assert_array_equal(decode(data)[..., 0], upright > 0)
    assert size == upright.shape


def test_webp_keeps_its_pixels(tmp_path):
    Image.fromarray(COLOUR).save(tmp_path / "a.webp", lossless=True)
    data, size = builder.encode_image(tmp_path / "a.webp")
    np.testing.assert_array_equal(decode(data), COLOUR)
    assert size == COLOUR.shape[:2]


def test_fingerprint_follows_files_and_options(tmp_path):
    first, second = (save(tmp_path / name, GREY) for name in ("a.png", "b.png"))
    before = builder.fingerprint(tmp_path, [first, second], 1)
    assert before == builder.fingerprint(tmp_path, [second, first], 1)
    assert before != builder.fingerprint(tmp_path, [first, second], 2)
    assert before != builder.fingerprint(tmp_path, [first], 1)
    save(second, GREY[:5])
    assert before != builder.fingerprint(tmp_path, [first, second], 1)


def test_fingerprint_notices_a_replacement_of_equal_size_and_time(tmp_path):
    path = save(tmp_path / "a.bmp", GREY)
    stat, before = path.stat(), builder.fingerprint(tmp_path, [path])
    save(tmp_path / "new.bmp", 255 - GREY).replace(path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    assert before != builder.fingerprint(tmp_path, [path])


def rows(names: str, shade: int = 0, **fields):
    for name in names:
        pixels = np.full((3, 4 + ord(name) % 3), shade, np.uint8)
        row = {"image": builder.encode_png(pixels), "mask": b"", "label": 0}
        yield row | {"defect_type": "good", "filename": name} | fields


def test_prepared_examples_come_back_sorted(tmp_path):
    mask = builder.encode_png(np.eye(3, dtype=np.uint8))
    generators = {
        "train": lambda: rows("cab"),
        "test": lambda: rows("d", mask=mask, label=1, defect_type="crack"),
    }
    prepared = builder.prepare(generators, "some/name", "0123", str(tmp_path), 4)
    train, test = builder.read(prepared, "train"), builder.read(prepared, "test")
    assert train.filename.tolist() == ["a", "b", "c"] and len(train) == 3
    assert [decode(image).shape for image in train.image] == [(3, 5, 1), (3, 6, 1), (3, 4, 1)]
    assert train.mask.tolist() == [b""] * 3 and test.mask.tolist() == [mask]
    assert test.label.dtype == np.int32 and test.label.tolist() == [1]
    assert test.defect_type.tolist() == ["crack"]
    assert "train" in one_line(builder.read, prepared, "validation")


def test_finished_preparation_is_not_repeated_but_another_source_is(tmp_path):
    def prepare(fingerprint, shade):
        generators = {"train": lambda: rows("a", shade)}
        return builder.prepare(generators, "name", fingerprint, str(tmp_path), 1)

    shades = [
        decode(builder.read(prepare(*case), "train").image[0]).max()
        for case in [("0", 10), ("0", 20), ("1", 30)]
    ]
    assert shades == [10, 10, 30]


@pytest.mark.parametrize("error", [UserError("bad file"), KeyboardInterrupt()])
def test_interrupted_preparation_is_not_taken_for_finished(tmp_path, error):
    def interrupted():
        yield from rows("ab")
        raise error

    def prepare(generate):
        return builder.prepare({"train": generate}, "name", "0", str(tmp_path), 3)

    with pytest.raises(type(error)):
        prepare(interrupted)
    assert builder.read(prepare(lambda: rows("abc")), "train").filename.tolist() == list("abc")


def test_two_preparations_at_once_both_end_well(tmp_path):
    def prepare(generate):
        return builder.prepare({"train": generate}, "name", "0", str(tmp_path), 2)

    def slow():
        yield from rows("a")
        prepare(lambda: rows("ab"))  # another one overtakes
        yield from rows("b")

    assert builder.read(prepare(slow), "train").filename.tolist() == ["a", "b"]


def test_cache_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    message = one_line(
        builder.prepare, {"train": lambda: rows("a")}, "name", "0", str(tmp_path / "file"), 1
    )
    assert "data.cache_dir" in message and str(tmp_path / "file") in message


def test_encode_png_round_trip():
    for pixels in (GREY, COLOUR):
        back = np.asarray(Image.open(io.BytesIO(builder.encode_png(pixels))))
        np.testing.assert_array_equal(back, pixels)
