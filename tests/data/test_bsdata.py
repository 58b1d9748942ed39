import collections
import io
import json
import pathlib
import re

import ml_collections
import numpy as np
import pytest
from PIL import Image

from configs import bsdata_unet
from defect_jax.data import bsdata
from defect_jax.data.tensorflow_quietly import tf
from defect_jax.errors import UserError

SQUARE = [[4, 2], [10, 2], [10, 8], [4, 8]]
PLACES = 5
HEIGHT, WIDTH = 12, 20


def frame_name(place: int, hour: int, crop: int = 2) -> str:
    return f"01_200901{hour:02}0000_{place}77500_315_crop_{crop}.jpg"


def label_path(root: pathlib.Path, name: str) -> pathlib.Path:
    return (root / "label" / name).with_suffix(".json")


def write_label(path: pathlib.Path, *polygons, name="Pitting", height=HEIGHT, width=WIDTH):
    shapes = [{"label": name, "points": points, "shape_type": "polygon"} for points in polygons]
    content = {"shapes": shapes, "imageHeight": height, "imageWidth": width}
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def root(tmp_path) -> pathlib.Path:
    """Five places with 14 frames: 12 unlabelled, then one labelled for train and one for test."""
    root = tmp_path / "clone"
    for folder in ("data", "label"):
        (root / folder).mkdir(parents=True)
    entries = []
    for place in range(PLACES):
        for hour in range(14):
            name, labelled = frame_name(place, hour), hour >= 12
            pixels = np.full((HEIGHT, WIDTH, 3), 10 * hour, np.uint8)
            Image.fromarray(pixels).save(root / "data" / name)
            if labelled:
                write_label(label_path(root, name), SQUARE)
            entries.append(
                {
                    "filename": name,
                    "type": 2,
                    "annotations": label_path(root, name).name if labelled else None,
                    "train_test_split": {12: "train", 13: "test"}.get(hour),
                }
            )
    (root / "image_data.json").write_text(json.dumps({"images": entries}))
    return root


@pytest.fixture
def data(root, tmp_path) -> ml_collections.ConfigDict:
    data = bsdata_unet.get_config().data
    data.update(root=str(root), cache_dir=str(tmp_path / "cache"))
    return data


def one_line(data: ml_collections.ConfigDict, split: str = "train") -> str:
    with pytest.raises(UserError) as caught:
        bsdata.load(data, split)
    message = str(caught.value)
    assert "\n" not in message
    return message


def decode(data: bytes) -> np.ndarray:
    return tf.io.decode_image(data).numpy()


def test_official_split_of_a_small_clone(data):
    sides = {split: bsdata.load(data, split) for split in ("train", "validation", "test")}
    assert {split: len(side) for split, side in sides.items()} == {
        "train": PLACES,
        "validation": 4,  # of 5 x 8 safe normal frames every tenth
        "test": PLACES,
    }
    assert sides["test"].filename.tolist() == [f"data/{frame_name(p, 13)}" for p in range(PLACES)]
    assert set(sides["test"].defect_type) == {"type 2"} and sides["test"].label.all()
    assert set(sides["validation"].defect_type) == {"good"}
    assert not sides["validation"].label.any() and set(sides["validation"].mask) == {b""}
    mask = decode(sides["train"].mask[0])
    assert mask.shape == (HEIGHT, WIDTH, 1)
    want = np.zeros((HEIGHT, WIDTH))
    want[2:9, 4:11] = 1  # the outline belongs to the pit
    np.testing.assert_array_equal(mask[..., 0], want)
    assert abs(int(decode(sides["train"].image[0]).mean()) - 120) <= 1


def test_normals_join_the_training_side_and_nothing_else(data):
    without, validation = bsdata.load(data, "train"), bsdata.load(data, "validation")
    data.normals = True
    train = bsdata.load(data, "train")
    added = set(train.filename) - set(without.filename)
    assert len(added) == 5 * 8 - 4 and set(without.filename) < set(train.filename)
    assert not added & set(validation.filename)
    assert bsdata.load(data, "validation").filename.tolist() == validation.filename.tolist()


def places_of(filenames) -> set[str]:
    return {bsdata.place(name.removeprefix("data/")) for name in filenames}


def test_folds_of_a_small_clone_share_one_preparation(data):
    data.split = "grouped"
    tested = []
    for data.fold in range(bsdata.NUM_FOLDS):
        test = bsdata.load(data, "test").filename.tolist()
        others = [*bsdata.load(data, "train").filename, *bsdata.load(data, "validation").filename]
        assert not places_of(test) & places_of(others)
        tested += test
    assert len(tested) == len(set(tested)) == 2 * PLACES
    assert len(list((pathlib.Path(data.cache_dir) / "bsdata").iterdir())) == 1


def test_changed_label_is_prepared_anew(data, root):
    path = label_path(root, frame_name(0, 12))
    before = decode(bsdata.load(data, "train").mask[0]).sum()
    write_label(path, SQUARE, [[14, 2], [18, 2], [18, 6]])
    assert decode(bsdata.load(data, "train").mask[0]).sum() > before


def test_changed_type_is_prepared_anew(data, root):
    assert set(bsdata.load(data, "train").defect_type) == {"type 2"}
    path = root / "image_data.json"
    content = json.loads(path.read_text())
    labelled = [entry for entry in content["images"] if entry["annotations"]]
    labelled[0]["type"] = 1
    path.write_text(json.dumps(content))
    train = bsdata.load(data, "train")
    one = train.filename == f"data/{labelled[0]['filename']}"
    assert train.defect_type[one].tolist() == ["type 1"]
    assert set(train.defect_type[~one]) == {"type 2"}


def test_folds_of_tuning_have_the_official_training_frames_alone(data):
    official = bsdata.load(data, "test").filename.tolist()
    data.update(split="tuning", normals=True)
    tested = []
    for data.fold in range(bsdata.NUM_FOLDS):
        sides = {side: bsdata.load(data, side) for side in ("train", "validation", "test")}
        names = [name for side in sides.values() for name in side.filename]
        assert len(names) == len(set(names)) and not set(names) & set(official)
        test = sides["test"].filename.tolist()
        assert not places_of(test) & places_of(set(names) - set(test))
        assert sides["test"].label.all() and not sides["validation"].label.any()
        tested += test
    assert sorted(tested) == [f"data/{frame_name(place, 12)}" for place in range(PLACES)]


def test_random_split_of_a_small_clone_is_its_seed_s(data):
    data.split = "random"
    tests = []
    for data.fold in (0, 1, 2, 7):
        train, test = bsdata.load(data, "train"), bsdata.load(data, "test")
        assert (len(train), len(test)) == (8, 2)  # a fifth of two labelled frames of each place
        assert train.label.all() and test.label.all()
        assert not set(train.filename) & set(test.filename)
        assert bsdata.load(data, "test").filename.tolist() == test.filename.tolist()
        tests.append(tuple(test.filename))
    assert len(set(tests)) > 1


def test_root_that_is_not_there_not_set_or_another(data, root, tmp_path):
    for value, expected in [
        (str(tmp_path / "nowhere"), "nowhere"),
        ("", "data.root"),
        (str(root / "data"), "image_data.json"),
    ]:
        data.root = value
        assert expected in one_line(data)


@pytest.mark.parametrize("part", ["data", "image_data.json"])
def test_part_of_the_clone_that_is_missing(data, root, part):
    (root / part).rename(root / "elsewhere")
    message = one_line(data)
    assert str(root) in message and f"{part} is missing" in message


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"images": []}',
        '{"images": [{"filename": "a.jpg"}]}',
        '{"images": [{"filename": "a.jpg", "type": "2", "annotations": ""}]}',
        '{"images": [%s, %s]}' % (2 * ('{"filename": "a.jpg", "type": 1, "annotations": ""}',)),
        '{"pictures": []}',
        "[" * 10**5,
        "\ud800",
    ],
)
def test_damaged_list_of_images(data, root, content):
    path = root / "image_data.json"
    path.write_bytes(content.encode(errors="surrogatepass"))
    assert str(path) in one_line(data)


def test_type_2_frame_without_a_time(data, root):
    path = root / "image_data.json"
    path.write_text(path.read_text().replace(frame_name(0, 0), "01_first_crop_2.jpg"))
    message = one_line(data)
    assert str(path) in message and "first" in message


def test_labelled_frame_of_no_side(data, root):
    """Else it would be trained on, as all that is not 'test'."""
    path = root / "image_data.json"
    path.write_text(path.read_text().replace('"test"', '"Test"'))
    message = one_line(data)
    assert str(path) in message and "'Test'" in message


def test_label_without_its_image(data, root):
    path = write_label(root / "label/unheard_of.json", SQUARE)
    assert str(path) in one_line(data)


def test_label_of_a_frame_that_counts_as_normal(data, root):
    path = write_label(label_path(root, frame_name(1, 0)), SQUARE)
    assert str(path) in one_line(data)


@pytest.mark.parametrize("folder", ["data", "label"])
def test_file_named_by_the_split_that_is_missing(data, root, folder):
    path = root / folder / frame_name(1, 12)
    path = path if folder == "data" else path.with_suffix(".json")
    path.unlink()
    assert str(path) in one_line(data)


def test_truncated_image(data, root):
    path = root / "data" / frame_name(1, 12)
    path.write_bytes(path.read_bytes()[:-40])
    assert str(path) in one_line(data)


@pytest.mark.parametrize(
    "content",
    [
        "no json",
        "[]",
        "{}",
        '{"shapes": [{}], "imageHeight": 12, "imageWidth": 20}',
        '{"shapes": null, "imageHeight": 12, "imageWidth": 20}',
        "\ud800",
    ],
)
def test_json_that_is_not_labelme(data, root, content):
    path = label_path(root, frame_name(1, 12))
    path.write_bytes(content.encode(errors="surrogatepass"))
    message = one_line(data)
    assert str(path) in message and "labelme" in message


@pytest.mark.parametrize(
    ("polygon", "found"),
    [
        ([], "0 points"),
        (SQUARE[:2], "2 points"),
        ([SQUARE[0], SQUARE[1], SQUARE[0]], "2 points"),
        ([[1, 2], [3], [4, 5]], "not (x, y)"),
        ([1, 2, 3], "not (x, y)"),
        (None, "not (x, y)"),
        ([[0, 0], [WIDTH + 3, 0], [0, 5]], "leaves the image"),
        ([[0, 0], [0, HEIGHT + 3], [5, 5]], "leaves the image"),
        ([[-3, 0], [5, 5], [0, 5]], "leaves the image"),
        ([[float("nan"), 0], [5, 5], [0, 5]], "leaves the image"),
        ([[-1, 0], [-1, 5], [-1, 3]], "beside the image"),
        ([[0, HEIGHT + 0.9], [5, HEIGHT + 0.9], [3, HEIGHT + 0.9]], "beside the image"),
    ],
)
def test_bad_polygon(data, root, polygon, found):
    path = write_label(label_path(root, frame_name(1, 12)), polygon)
    message = one_line(data)
    assert str(path) in message and found in message


def test_other_mistakes_in_a_label(data, root):
    path = label_path(root, frame_name(1, 12))
    write_label(path, SQUARE, name="Rust")
    assert str(path) in one_line(data) and "'Rust'" in one_line(data)
    write_label(path)
    assert str(path) in one_line(data) and "no shapes" in one_line(data)
    write_label(path, SQUARE, height=WIDTH, width=HEIGHT)
    assert str(path) in one_line(data) and "12x20 pixels" in one_line(data)
    write_label(path, SQUARE, height=str(HEIGHT))
    assert str(path) in one_line(data) and "20x'12' pixels" in one_line(data)
    write_label(path, SQUARE, name=["Pitting"])
    assert str(path) in one_line(data) and "unknown label" in one_line(data)
    content = json.loads(write_label(path, SQUARE).read_text())
    content["shapes"][0]["shape_type"] = "circle"
    path.write_text(json.dumps(content))
    assert str(path) in one_line(data) and "'circle'" in one_line(data)


def test_unknown_split_and_fold(data):
    assert "'valid'" in one_line(data, "valid")
    data.split = "by_day"
    assert "data.split" in one_line(data) and "grouped" in one_line(data)
    for data.split in ("grouped", "tuning"):
        data.fold = 5
        assert "data.fold" in one_line(data) and "'5'" in one_line(data)


def test_names_tell_place_and_time():
    assert bsdata.place("01_200905161814_560000_000_crop_2.jpg") == "560000_000"
    assert bsdata.place("KGT1-S-060-A02_crop_0.jpg") == "KGT1-S"
    assert bsdata.taken_at("01_200905161814_560000_000_crop_2.jpg").isoformat() == (
        "2020-09-05T16:18:14"
    )


def test_safe_normals_end_five_frames_before_the_first_label():
    def entry(hour, crop=2, labelled=False):
        annotations = "x.json" if labelled else None
        return {"filename": frame_name(1, hour, crop), "type": 2, "annotations": annotations}

    sequence = [entry(hour, crop=1 + (hour != 3)) for hour in range(12)]
    late = [entry(12, labelled=True), *(entry(hour) for hour in range(13, 16))]
    safe = bsdata.safe_normals([*late, *reversed(sequence)])
    assert safe == [frame_name(1, hour) for hour in (0, 1, 2, 4, 5, 6, 7)]
    assert len(bsdata.safe_normals(sequence)) == 11  # a place without any label
    assert bsdata.safe_normals([*sequence[:3], entry(3, labelled=True)]) == []


def test_folds_are_balanced_and_cover_every_place():
    names = [frame_name(place, hour) for place in range(9) for hour in range(1 + place)]
    folds = bsdata.grouped_folds(names)
    assert sorted(p for fold in folds for p in fold) == [f"{n}77500_315" for n in range(9)]
    sizes = [sum(bsdata.place(name) in fold for name in names) for fold in folds]
    assert sum(sizes) == 45 and max(sizes) - min(sizes) <= 2


def shoelace(points) -> tuple[float, float]:
    """Returns the area and the circumference of a polygon."""
    x, y = np.asarray(points, float).T
    area = abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2
    return area, np.hypot(x - np.roll(x, -1), y - np.roll(y, -1)).sum()


def check_area(points, pixels: int) -> None:
    # The outline belongs to the pit: half its width lies outside, up to sqrt(1/2) on diagonals.
    area, circumference = shoelace(points)
    assert area - 2 <= pixels <= area + 0.75 * circumference + 2


@pytest.mark.parametrize("seed", range(5))
def test_raster_agrees_with_the_area(tmp_path, seed):
    rng = np.random.default_rng(seed)
    angles = np.sort(rng.uniform(0, 2 * np.pi, 12))
    radius = rng.uniform(20, 60, 12)
    points = np.stack([100 + radius * np.cos(angles), 80 + radius * np.sin(angles)], -1).tolist()
    path = write_label(tmp_path / "a.json", points, height=160, width=200)
    mask = bsdata.rasterise(path, (160, 200))
    assert mask.shape == (160, 200) and mask.dtype == np.uint8 and set(np.unique(mask)) == {0, 1}
    check_area(points, int(mask.sum()))
    rows, columns = np.nonzero(mask)
    x, y = np.asarray(points).T
    assert abs(columns.min() - x.min()) <= 1 and abs(columns.max() - x.max()) <= 1
    assert abs(rows.min() - y.min()) <= 1 and abs(rows.max() - y.max()) <= 1


@pytest.fixture
def real(data_root, prepared) -> ml_collections.ConfigDict:
    data = bsdata_unet.get_config().data
    data.update(root=str(data_root / "bsdata"), cache_dir=prepared)
    return data


def test_real_official_split(real):
    train, test = bsdata.load(real, "train"), bsdata.load(real, "test")
    assert (len(train), len(test)) == (324, 70)
    assert train.label.all() and test.label.all()
    assert not set(train.filename) & set(test.filename)
    counts = [dict(collections.Counter(side.defect_type.tolist())) for side in (train, test)]
    assert counts == [{"type 2": 274, "type 1": 50}, {"type 2": 51, "type 1": 19}]
    for examples in (train, test):
        for image, mask in zip(examples.image[::9], examples.mask[::9], strict=True):
            size = Image.open(io.BytesIO(image)).size
            classes = decode(mask)[..., 0]
            assert classes.shape == size[::-1]
            assert classes.max() == 1 and 0 < classes.mean() < 0.05


def real_entries(data_root):
    return json.loads((data_root / "bsdata/image_data.json").read_text())["images"]


def test_real_rasters_agree_with_their_areas(data_root):
    checked = 0
    for path in sorted((data_root / "bsdata/label").glob("*.json"))[::7]:
        label = json.loads(path.read_text())
        if len(label["shapes"]) != 1:
            continue
        mask = bsdata.rasterise(path, (label["imageHeight"], label["imageWidth"]))
        check_area(label["shapes"][0]["points"], int(mask.sum()))
        checked += 1
    assert checked > 30


def test_real_folds_share_no_place(data_root):
    entries = real_entries(data_root)
    labelled = {entry["filename"] for entry in entries if entry["annotations"]}
    assert len(labelled) == 394
    tested = collections.Counter()
    for fold in range(bsdata.NUM_FOLDS):
        sides = bsdata.split_names(entries, "grouped", fold, normals=True)
        places = {side: set(map(bsdata.place, names)) for side, names in sides.items()}
        assert not places["test"] & (places["train"] | places["validation"])
        assert set(sides["train"]) & labelled == labelled - set(sides["test"])
        assert 0.1 * 394 < len(sides["test"]) < 0.35 * 394
        tested.update(sides["test"])
    assert set(tested) == labelled and set(tested.values()) == {1}


def test_real_folds_of_tuning_leave_the_official_test_frames_alone(data_root):
    entries = real_entries(data_root)
    official = bsdata.split_names(entries, "official", 0, normals=False)
    tested = collections.Counter()
    for fold in range(bsdata.NUM_FOLDS):
        sides = bsdata.split_names(entries, "tuning", fold, normals=True)
        places = {side: set(map(bsdata.place, names)) for side, names in sides.items()}
        assert not places["test"] & (places["train"] | places["validation"])
        assert not set(official["test"]) & {name for names in sides.values() for name in names}
        assert set(official["train"]) <= {*sides["train"], *sides["test"]}
        assert len(sides["test"]) > 0.1 * 324
        tested.update(sides["test"])
    assert set(tested) == set(official["train"]) and set(tested.values()) == {1}


def test_real_random_split_is_a_fifth_and_its_seed_s(data_root):
    entries = real_entries(data_root)
    sides = [bsdata.split_names(entries, "random", seed, normals=False) for seed in (7, 7, 8)]
    for one in sides:
        assert (len(set(one["train"])), len(set(one["test"]))) == (316, 78)
        assert not set(one["train"]) & set(one["test"])
    assert sides[0] == sides[1] and sides[0]["test"] != sides[2]["test"]


def test_real_normals_are_the_safe_ones(data_root):
    entries = real_entries(data_root)
    unlabelled = [entry["filename"] for entry in entries if not entry["annotations"]]
    patterns = (r"01_200916\d{6}_\w+_crop_1", r"01_\d+_477500_315_crop_1")
    suspects = {name for name in unlabelled if any(re.match(p, name) for p in patterns)}
    assert len(suspects) == 22
    safe = bsdata.safe_normals(entries)
    assert 550 <= len(safe) == len(set(safe)) <= 650
    assert set(safe) <= set(unlabelled) and not set(safe) & suspects


@pytest.mark.parametrize("split", bsdata.SPLITS)
def test_real_sides_are_disjoint(data_root, split):
    for normals in (False, True):
        sides = bsdata.split_names(real_entries(data_root), split, 2, normals)
        names = [name for side in sides.values() for name in side]
        assert len(names) == len(set(names))
        assert len(sides["validation"]) > 45
