"""What is found where no label is, for eyes to judge."""

import types

import numpy as np
import pytest
from matplotlib.colors import to_rgba

from configs import bsdata_residual_unet
from defect_jax import checkpoint, visualize
from defect_jax.data import datasets
from defect_jax.data.examples import Examples
from experiments.bsdata import audit, ensemble

SIZE = (400, 700)


def found_at(*boxes):
    values = np.zeros(SIZE, np.uint8)
    for top, left, bottom, right in boxes:
        values[top:bottom, left:right] = 1
    return values


@pytest.fixture
def example():
    """One pit drawn too wide, one found alone, and one of a single pixel in the corner."""
    found = found_at((100, 100, 120, 120), (200, 500, 210, 530), (399, 699, 400, 700))
    return {
        "number": 0,
        "filename": "data/a.jpg",
        "defect_type": "type 1",
        "class_map": found,
        "score_map": found.astype(np.float32),
        "mask": found_at((110, 110, 120, 120), (300, 300, 340, 340)),
    }


@pytest.fixture
def image():
    rows, columns = np.indices(SIZE)
    return np.stack([rows % 256, columns % 256, 0 * rows], -1).astype(np.uint8)


def test_a_false_alarm_shares_no_pixel_with_a_label(example, image):
    wide, dot = audit.false_alarms(example, image)
    assert (wide.defect.area, dot.defect.area) == (300, 1)
    assert wide.image.shape == (audit.SIDE, audit.SIDE, 3)
    assert wide.found.sum() == 300 and not wide.labelled.any()
    np.testing.assert_array_equal(wide.image[0, 0], image[204 - 140, 514 - 140])
    assert dot.image.shape == (141, 141, 3) and dot.found[-1, -1]  # cut off by the frame's border


def test_a_picture_shows_labels_nearby(example, image):
    example["mask"][205:215, 560:570] = 1
    wide, _ = audit.false_alarms(example, image)
    assert wide.labelled.sum() == 100


@pytest.fixture
def patched(monkeypatch, example, image):
    """A run of two frames that looks at them in this way."""
    other = {"filename": "data/b.jpg", "number": 1, "defect_type": "type 2"}
    frames = [example, example | other]
    frames[1]["class_map"] = found_at((10, 10, 40, 40), (120, 119, 121, 120))
    frames[1]["score_map"] = frames[1]["class_map"].astype(np.float32)
    count = len(frames)
    examples = Examples(
        np.stack([image] * count),
        np.zeros((count, *SIZE), np.uint8),
        np.zeros(count, np.int32),
        np.full(count, "type 1"),
        np.array([frame["filename"] for frame in frames]),
    )
    entry = ensemble.Entry("runs/one", bsdata_residual_unet.get_config())
    monkeypatch.setattr(ensemble, "read_runs", lambda *_: [entry])
    monkeypatch.setattr(checkpoint, "load_run", lambda _: types.SimpleNamespace(state={}))
    splits = {"train": examples, "test": examples.take(np.arange(0))}
    monkeypatch.setattr(datasets, "load_split", lambda _, split: splits[split])
    monkeypatch.setattr(audit, "predictions", lambda *_: iter(frames))
    return frames


def test_the_largest_come_first_with_their_share_of_all_false_pixels(
    patched, tmp_path, capsys, monkeypatch
):
    sheets = []
    monkeypatch.setattr(visualize, "save", lambda figure, path: sheets.append((figure, path)))
    audit.main(["--run", str(tmp_path), "--most=3"])
    lines = capsys.readouterr().out.strip().split("\n")
    # 100 of 100 + 601 + 1600 pixels, and none of 901 + 1700.
    assert lines.pop(0) == "IoU, pooled, in percent: all frames 2.0, type 1 4.3, type 2 0.0"
    # Of the pit that is drawn too wide 300 false pixels touch the label.
    assert lines[0] == "1502 false pixels, 80.0 % of them in 4 false alarms off all labels"
    assert lines[3] == "| 1 | data/b.jpg | type 2 | 24 | 24 | 900 | 59.9 |"
    assert lines[4] == "| 2 | data/a.jpg | type 1 | 204 | 514 | 300 | 79.9 |"
    assert [line[:4] for line in lines[3:-1]] == ["| 1 ", "| 2 ", "| 3 "]
    ((figure, path),) = sheets
    assert path == tmp_path / "eval" / "audit_train.png"
    shown = [axes for axes in figure.axes if axes.images]
    assert shown[0].get_title().split("\n") == ["1: b", "900 px²"]
    assert len(shown) == 3
    colours = [[one.get_edgecolor()[0] for one in axes.collections] for axes in shown]
    of_label, of_alarm = (to_rgba(colour) for colour in (visualize.TRUTH, visualize.FOUND))
    # Near the first alarm lies a labelled pit.
    assert all(tuple(drawn[-1]) == of_alarm for drawn in colours)
    assert [len(drawn) for drawn in colours] == [2, 1, 1]
    assert tuple(colours[0][0]) == of_label


def test_a_run_without_false_alarms_says_so(patched, tmp_path, capsys):
    for frame in patched:
        frame["class_map"] = np.zeros(SIZE, np.uint8)
    audit.main(["--run", str(tmp_path)])
    assert "has no false alarm" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--most=0", "error: --most is 0: show at least one"),
        ("--min_log_odds=nan", "error: eval.min_log_odds is nan: it must be finite"),
        ("--split=test", "has no test images in .*: pass --root"),
    ],
)
def test_what_cannot_be_shown_is_told(patched, tmp_path, flag, message):
    with pytest.raises(SystemExit, match=message):
        audit.main(["--run", str(tmp_path), flag])
