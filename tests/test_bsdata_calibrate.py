"""The choice of threshold and minimum area: counts, a planted optimum, and whose runs it takes."""

import pathlib

import numpy as np
import pytest
from scipy import ndimage

from configs import bsdata_unet
from defect_jax import checkpoint, run
from defect_jax.data import datasets
from defect_jax.errors import UserError
from defect_jax.ops.objects import remove_small
from defect_jax.train import train
from experiments.bsdata import calibrate, ensemble


def place(log_odds: float, area: int) -> tuple[int, int]:
    row = int(np.searchsorted(calibrate.LOG_ODDS, log_odds))
    assert calibrate.LOG_ODDS[row] == log_odds
    return row, calibrate.MIN_AREAS.index(area)


@pytest.mark.parametrize("seed", range(3))
def test_counts_are_those_of_the_cut_class_map(seed):
    rng = np.random.default_rng(seed)
    log_odds = 9 * ndimage.gaussian_filter(rng.normal(size=(60, 80)), 2).astype(np.float32) - 0.5
    mask = ndimage.gaussian_filter(rng.normal(size=(60, 80)), 3) > 0.1
    counts = calibrate.count(log_odds, mask)
    assert len(np.unique(counts[..., 0])) > 50  # the grid is not all alike
    for row, threshold in enumerate(calibrate.LOG_ODDS):
        for column, area in enumerate(calibrate.MIN_AREAS):
            kept = remove_small((log_odds > threshold).astype(np.uint8), area) != 0
            want = np.count_nonzero(kept), np.count_nonzero(kept & mask)
            assert tuple(counts[row, column]) == want


def test_nothing_above_any_threshold_counts_as_nothing():
    assert not calibrate.count(np.full((4, 5), -4.0), np.ones((4, 5), bool)).any()


def planted() -> list[dict]:
    """A pit of 100 px at log-odds 2, its faint rim at 1, a false speck of 49 px at 3."""
    log_odds = np.full((40, 60), -9.0, np.float32)
    log_odds[4:16, 4:16] = 1
    log_odds[5:15, 5:15] = 2
    log_odds[30:37, 40:47] = 3
    mask = np.zeros((40, 60), np.uint8)
    mask[5:15, 5:15] = 1
    return [{"score_map": log_odds, "mask": mask}]


def test_planted_optimum_is_found(monkeypatch):
    # The second fold has another such pit, without the speck.
    clean = [{**planted()[0], "score_map": planted()[0]["score_map"].copy()}]
    clean[0]["score_map"][30:] = -9
    predicted = {0: [planted()], 1: [clean]}
    monkeypatch.setattr(ensemble, "predict_together", lambda group: iter(predicted[group.fold]))
    groups = [ensemble.Group("tuning", fold, ()) for fold in (0, 1)]
    iou = calibrate.score_grid(groups)
    assert iou[place(0, 0)] == pytest.approx(100 * 200 / (2 * 144 + 49))
    assert iou[place(0, 50)] == pytest.approx(100 * 200 / (2 * 144))
    assert iou[place(1, 0)] == pytest.approx(100 * 200 / (200 + 49))
    assert iou[place(1, 50)] == 100
    assert iou[place(2, 0)] == 0
    assert iou[place(1, 200)] == 0
    assert calibrate.best_pairs(iou)[0] == place(1, 50)  # of 1 to 1.75 and 50 to 100 the mildest
    report = calibrate.report(iou)
    assert "--config.eval.min_log_odds=1 --config.eval.min_area=50" in report
    assert "--min_log_odds=1 --min_area=50" in report
    assert "8 of 198 pairs; at its area log-odds from 1 to 1.75" in report
    assert "areas from 50 to 100" in report and "minimum area: 59.35" in report
    assert "border" not in report


def test_optimum_on_the_border_is_said():
    iou = np.zeros((len(calibrate.LOG_ODDS), len(calibrate.MIN_AREAS)))
    iou[place(-4, 10)] = 50
    assert "border" in calibrate.report(iou)
    iou[place(-4, 10)], iou[place(-3.75, 10)] = 0, 50
    assert "border" not in calibrate.report(iou)


def test_runs_of_one_fold_are_averaged(monkeypatch):
    together = [planted()[0], planted()[0]]
    together[1] = {**together[1], "score_map": -together[1]["score_map"]}  # all at 0.5 then
    monkeypatch.setattr(ensemble, "predict_together", lambda group: iter([together]))
    iou = calibrate.score_grid([ensemble.Group("tuning", 0, ())])
    assert iou[place(-0.25, 0)] == pytest.approx(100 * 100 / 2400)
    assert iou[place(0.25, 0)] == 0


def entry(folder: str, fold: int, seed: int = 0, split: str = "tuning") -> ensemble.Entry:
    config = bsdata_unet.get_config()
    config.seed = seed
    config.data.update(split=split, fold=fold)
    return ensemble.Entry(pathlib.Path(folder), config)


def test_missing_folds_and_what_runs_differ_in_are_said():
    entries = [entry("a", 0), entry("b", 3), entry("c", 3, seed=1)]
    told = calibrate.describe(ensemble.group_runs(entries))
    assert "1 of 0, 2 of 3" in told and "Missing folds: 1, 2, 4" in told
    assert "differ" not in told
    entries[0].config.method.width = 32
    assert "differ in method.width" in calibrate.describe(ensemble.group_runs(entries))
    every = [entry(str(fold), fold) for fold in range(5)]
    assert "Missing folds: none" in calibrate.describe(ensemble.group_runs(every))


def test_runs_of_another_split_are_refused(monkeypatch):
    monkeypatch.setattr(
        ensemble,
        "read_runs",
        lambda folders, root, flip_average: [entry("a", 0), entry("b", 0, 0, "grouped")],
    )
    with pytest.raises(UserError, match=r"b is a run of data.split 'grouped'"):
        calibrate.open_tuning([], None)


def test_a_trained_run_is_calibrated(shrink, tmp_path, capsys):
    config = shrink(bsdata_unet.get_config())
    config.data.update(split="tuning", fold=2)
    config = run.open_run(config, tmp_path, "train")
    train(config, tmp_path)
    capsys.readouterr()
    calibrate.main(["--runs", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "Missing folds: 0, 1, 3, 4" in printed and "--config.eval.min_log_odds=" in printed
    config.data.split = "official"
    config.data.train_digest = datasets.check_splits(config)
    checkpoint.write_config(tmp_path, config)
    with pytest.raises(SystemExit, match=r"error: .* 'official'"):
        calibrate.main(["--runs", str(tmp_path)])
