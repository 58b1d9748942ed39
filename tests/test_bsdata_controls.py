import importlib.util
import pathlib

import numpy as np
import pytest

_PATH = pathlib.Path(__file__).parents[1] / "experiments/bsdata/controls.py"


@pytest.fixture(scope="module")
def controls():
    spec = importlib.util.spec_from_file_location("controls", _PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_copy_takes_the_frame_nearest_in_time_of_the_same_place(controls):
    early, late, elsewhere = np.zeros((3, 2, 4), np.uint8)
    early[0], late[1], elsewhere[:] = 1, 1, 1
    train = {
        "01_200901000000_1_2_crop_2.jpg": early,
        "01_200903000000_1_2_crop_2.jpg": late,
        "01_200902110000_9_9_crop_2.jpg": elsewhere,
        "KGT1-S-060-A02_crop_0.jpg": elsewhere,
    }
    truth = np.ones((4, 8), np.uint8)
    test = {
        "01_200901230000_1_2_crop_2.jpg": truth[:2, :4],
        "01_200902010000_1_2_crop_2.jpg": truth,
        "01_200902110000_7_7_crop_2.jpg": truth,
        "KGT1-S-070-A02_crop_0.jpg": truth,
    }
    first, second, *rest = [case.predicted for case in controls.copy_nearest(train, test)]
    np.testing.assert_array_equal(first, early)
    np.testing.assert_array_equal(second, late.repeat(2, axis=0).repeat(2, axis=1))
    assert [(case.shape, case.max()) for case in rest] == [((4, 8), 0)] * 2


def test_scores_by_hand(controls):
    predicted = np.array([[1, 1, 0, 0]], np.uint8)
    mask = np.array([[0, 1, 1, 0]], np.uint8)
    scores = controls.score(
        [controls.Case("01_x", predicted, mask), controls.Case("K", mask, mask)]
    )
    assert scores.foreground == pytest.approx(100 * 3 / 5)
    assert scores.type_2 == pytest.approx(100 / 3)
    assert scores.per_image == pytest.approx(100 * (1 / 3 + 1) / 2)
    assert scores.two_class == pytest.approx(100 * (3 / 5 + 3 / 5) / 2)


def test_znet_s_metric_by_hand(controls):
    def mask(*columns):
        values = np.zeros((256, 512), np.uint8)
        values[7, list(columns)] = 1
        return values

    cases = [
        controls.Case("01_a", mask(0, 1), mask(1, 2, 3)),  # (1 + 1) / (2 + 3 - 1 + 1)
        controls.Case("01_b", mask(), mask(1, 2, 3)),  # (0 + 1) / (0 + 3 - 0 + 1)
    ]
    assert controls.score(cases).znet == pytest.approx(100 * (2 / 5 + 1 / 4) / 2)


def test_expected_figures_on_the_real_data(controls, data_root, prepared):
    rows = controls.table(str(data_root / "bsdata"), prepared)
    background, copy, *grouped = list(rows.values())[:7]
    assert [round(value, 1) for value in copy] == [47.4, 68.5, 35.1, 73.7, 35.9]
    assert [round(value, 1) for value in background] == [0, 0, 0, 49.9, 2.5]
    for scores in grouped:
        assert (scores.foreground, scores.per_image) == (0, 0)
    random = {name: scores.znet for name, scores in rows.items() if name.startswith("random")}
    assert {name: round(value, 1) for name, value in random.items()} == {
        "random, background: mean": 1.2,
        "random, background: deviation": 0.2,
        "random, copy: mean": 52.5,
        "random, copy: deviation": 2.9,
    }
