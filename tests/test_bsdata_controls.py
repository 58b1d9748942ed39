import json

import numpy as np
import pytest

from defect_jax.metrics import bootstrap_weights
from experiments.bsdata import controls, ensemble, measures, protocol


def scores(cases) -> dict[str, float]:
    figures = protocol.figures(controls.measure(cases, 0))
    return {name: estimate.value for name, estimate in figures.items()}


def test_copy_takes_the_frame_nearest_in_time_of_the_same_place():
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


def test_labels_agree_once_moved_onto_each_other():
    first, moved, grown, elsewhere = np.zeros((4, 12, 20), np.uint8)
    first[2:5, 3:7] = moved[6:9, 10:14] = grown[6:9, 10:16] = elsewhere[0, 0] = 1
    masks = {
        "01_200903000000_1_2_crop_2.jpg": grown,
        "01_200901000000_1_2_crop_2.jpg": first,
        "01_200902000000_1_2_crop_2.jpg": moved,
        "01_200904000000_1_2_crop_2.jpg": np.ones((6, 10), np.uint8),  # of another size
        "01_200901230000_9_9_crop_2.jpg": elsewhere,
        "KGT1-S-060-A02_crop_0.jpg": elsewhere,
        "KGT1-S-060-A03_crop_0.jpg": first,
    }
    assert controls.label_agreement(masks) == ((12 + 12) / (12 + 18), 2)
    assert np.isnan(controls.label_agreement({})[0])


def test_scores_by_hand():
    predicted = np.array([[1, 1, 0, 0]], np.uint8)
    mask = np.array([[0, 1, 1, 0]], np.uint8)
    found = scores([controls.Case("01_x", predicted, mask), controls.Case("K", mask, mask)])
    assert found["iou"] == found["iou_<200"] == pytest.approx(3 / 5)
    assert (found["iou_type 2"], found["iou_type 1"]) == (pytest.approx(1 / 3), 1)
    assert found["iou_per_image"] == pytest.approx((1 / 3 + 1) / 2)
    assert found["iou_two_class"] == pytest.approx((3 / 5 + 3 / 5) / 2)
    assert found["object_recall"] == found["object_precision"] == found["recall_<200"] == 1


def test_a_control_has_one_operating_point():
    """Who is certain of every pit has a recall at no fewer false alarms than all of them."""
    mask, other = np.zeros((2, 5, 9), np.uint8)
    mask[1, 1], other[3, 7] = 1, 1
    right, wrong = controls.Case("01_a", mask, mask), controls.Case("01_b", other, mask)
    found = scores([right, wrong])
    assert (found["object_recall"], found["object_recall_1"]) == (0.5, 0.5)
    assert found["object_recall_01"] == 0  # half a false alarm an image
    nothing = scores(controls.background({}, {"01_a": mask}))
    assert nothing["object_recall_1"] == 0 and np.isnan(nothing["object_precision"])


def test_intervals_are_of_the_resamplings_that_networks_get():
    mask = np.eye(6, dtype=np.uint8)
    cases = [controls.Case("01_a", mask, mask), controls.Case("01_b", 0 * mask, mask)]
    samples = protocol.figures(controls.measure(cases, 3))["iou_per_image"].samples
    drawn = [bootstrap_weights(3, number, ensemble.BOOTSTRAP_SAMPLES) for number in range(2)]
    total = np.where(sum(drawn) > 0, sum(drawn), np.nan)
    np.testing.assert_allclose(samples, drawn[0] / total)


def test_znet_s_metric_by_hand():
    def mask(*columns):
        values = np.zeros((256, 512), np.uint8)
        values[7, list(columns)] = 1
        return values

    cases = [
        controls.Case("01_a", mask(0, 1), mask(1, 2, 3)),  # (1 + 1) / (2 + 3 - 1 + 1)
        controls.Case("01_b", mask(), mask(1, 2, 3)),  # (0 + 1) / (0 + 3 - 0 + 1)
    ]
    assert scores(cases)["znet"] == pytest.approx((2 / 5 + 1 / 4) / 2)


def test_tables_of_all_splits(bsdata_root, prepared, capsys):
    """Of the drawn frames, a place of which shows one mask again and again."""
    controls.main([f"--root={bsdata_root}", f"--cache_dir={prepared}"])
    official, grouped, random = capsys.readouterr().out.strip().split("\n\n**")
    assert "| foreground IoU, pooled | 0.0 [0.0, 0.0] | 100.0 [100.0, 100.0] |" in official
    assert "| recall of pits of 200-1000 px² (5) | 0.0 [0.0, 0.0] | 100.0 [" in official
    assert grouped.startswith("grouped, 5 folds") and "| 0.0 [0.0, 0.0] | 0.0 [" in grouped
    assert random.startswith("random, 5 folds") and "±" in random
    controls.main([f"--root={bsdata_root}", f"--cache_dir={prepared}", "--random=2"])
    printed = capsys.readouterr().out
    assert printed.startswith("**random, one fold**") and "±" not in printed
    assert printed.count("**") == 2
    with pytest.raises(SystemExit, match=r"error: .*nowhere"):
        controls.main([f"--root={bsdata_root / 'nowhere'}"])
    with pytest.raises(SystemExit, match=r"error: data\.fold is -1"):
        controls.main([f"--root={bsdata_root}", f"--cache_dir={prepared}", "--random=-1"])


def test_expected_figures_on_the_real_data(data_root, prepared, monkeypatch):
    root = data_root / "bsdata"
    masks = controls.load_masks(str(root), prepared)
    entries = json.loads((root / "image_data.json").read_text())["images"]
    names = ("iou", "iou_type 2", "iou_per_image", "iou_two_class", "znet", "iou_256x512")
    official = {
        name: protocol.figures(protocol.merge(totals))
        for name, totals in controls.measure_split(masks, entries, "official", [0]).items()
    }
    rounded = {
        control: [round(100 * figures[name].value, 1) for name in names]
        for control, figures in official.items()
    }
    assert rounded == {
        "background": [0, 0, 0, 49.9, 2.5, 0], "copy": [47.4, 68.5, 35.1, 73.7, 35.9, 59.2]
    }  # fmt: skip
    assert round(100 * official["copy"]["object_recall"].value, 1) == 54.5
    agreement, count = controls.label_agreement(masks)
    assert (round(100 * agreement, 1), count) == (76.9, 297)
    for fold in controls.FOLDS["grouped"]:
        sides = controls.bsdata.split_names(entries, "grouped", fold, normals=False)
        train, test = ({name: masks[name] for name in sides[side]} for side in ("train", "test"))
        assert not any(case.predicted.any() for case in controls.copy_nearest(train, test))
    monkeypatch.setattr(protocol, "METRICS", {"znet": measures.ZNet})
    random = controls.measure_split(masks, entries, "random", range(5))
    expected = {"background": (1.2, 0.2), "copy": (52.5, 2.9)}
    for name, totals in random.items():
        spread = protocol.spread([protocol.figures(one) for one in totals])["znet"]
        assert np.multiply(100, spread) == pytest.approx(expected[name], abs=0.05)
