"""The protocol of BSData: its figures by hand, ensembles, groups of runs, and what is written."""

import json
import pathlib
import shutil
from typing import Any

import numpy as np
import pytest
from scipy import special

from configs import bsdata_unet
from defect_jax import checkpoint, run
from defect_jax.errors import UserError
from defect_jax.evaluate import evaluate
from defect_jax.train import train
from experiments.bsdata import ensemble, measures, protocol

SIZE = (40, 60)
NO_BOOTSTRAP = np.zeros(0)


def box(top: int, left: int, height: int, width: int, size=SIZE) -> np.ndarray:
    mask = np.zeros(size, np.uint8)
    mask[top : top + height, left : left + width] = 1
    return mask


def example(probability: np.ndarray, mask: np.ndarray, kind="type 2", name="a") -> dict[str, Any]:
    log_odds = special.logit(np.asarray(probability, np.float32))
    return {
        "filename": name,
        "defect_type": kind,
        "label": 1,
        "image": np.zeros((*mask.shape, 3), np.uint8),
        "mask": mask,
        "score": float(log_odds.max()),
        "score_map": log_odds,
        "class_map": (log_odds > 0).astype(np.int64),
        "bootstrap": NO_BOOTSTRAP,
    }


def entry(folder="run", seed=0, split="official", fold=0, **method) -> ensemble.Entry:
    config = bsdata_unet.get_config()
    config.seed = seed
    config.data.update(split=split, fold=fold)
    config.method.update(method)
    return ensemble.Entry(pathlib.Path(folder), config)


@pytest.fixture
def predicted(monkeypatch):
    """Sets what each run predicts: folder's name -> its examples."""

    def predicted(predictions: dict[str, list[dict[str, Any]]]) -> None:
        def predict(entry, examples):
            assert len(examples) == len(predictions[entry.folder.name])
            yield from predictions[entry.folder.name]

        count = len(next(iter(predictions.values())))
        monkeypatch.setattr(ensemble, "_predict", predict)
        monkeypatch.setattr(ensemble.datasets, "load_split", lambda config, split: range(count))

    return predicted


# ------------------------------------------------------------------------------------ measures


def znet(probability, mask) -> float:
    return measures.ZNet.from_example(example(probability, mask)).compute()["znet"].value


def test_znet_s_metric_at_its_own_size():
    mask = box(7, 1, 1, 3, measures.ZNET_SIZE)
    assert znet(0.9 * box(7, 0, 1, 2, measures.ZNET_SIZE), mask) == pytest.approx(2 / 5)
    assert znet(0.9 * mask, mask) == 1
    assert znet(0.5 * mask, mask) == 1  # cut at 0.5, which is in
    assert znet(0.49 * mask, mask) == pytest.approx(1 / 4)
    assert znet(0 * mask, mask) == pytest.approx(1 / 4)  # pays an empty prediction


def test_znet_s_metric_shrinks_bilinearly_before_it_cuts():
    double = (512, 1024)
    four, two, one = (box(100, 200, side, side, double) for side in (4, 2, 1))
    # Each axis weighs its pixels 1/8, 3/8, 3/8, 1/8: 2x2 pixels give 9/16, one pixel 9/64.
    assert znet(two, four) == pytest.approx(2 / 5)
    assert znet(0.8 * two, four) == pytest.approx(1 / 5)
    assert znet(one, four) == pytest.approx(1 / 5)


def test_at_znet_s_size_there_is_the_mean_over_images_and_the_pooled_iou():
    small, large = (box(7, 1, 1, width, measures.ZNET_SIZE) for width in (3, 9))
    first = measures.ZNet.from_example(example(0 * small, small))
    figures = first.merge(measures.ZNet.from_example(example(large, large))).compute()
    assert figures["znet"].value == pytest.approx((1 / 4 + 1) / 2)
    assert figures["iou_256x512"].value == pytest.approx(9 / 12)


def test_mean_of_both_classes():
    examples = [
        example(box(0, 0, 10, 4), box(0, 2, 10, 4)),
        example(box(0, 0, 1, 1), box(0, 0, 1, 1)),
    ]
    first, second = (measures.TwoClass.from_example(one) for one in examples)
    background = 2 * 2400 - 61
    want = (21 / 61 + background / (background + 40)) / 2
    assert first.merge(second).compute()["iou_two_class"].value == pytest.approx(want)


def test_recall_of_pits_by_their_area():
    size = (200, 300)
    small, least, large = (
        box(0, 0, 1, 199, size), box(10, 0, 10, 20, size), box(50, 0, 100, 100, size)
    )  # fmt: skip
    found = box(10, 0, 10, 20, size) | box(180, 200, 10, 10, size)
    first = measures.PitRecall.from_example(example(found, small | least | large))
    second = measures.PitRecall.from_example(example(0 * small, least))
    both = first.merge(second)
    assert both.counts() == {"<200": 1, "200-1000": 2, "1000-5000": 0, ">5000": 1}
    values = {name: estimate.value for name, estimate in both.compute().items()}
    assert values == {"recall_<200": 0, "recall_200-1000": 0.5, "recall_>5000": 0}


def pixels(values: np.ndarray) -> set[tuple[int, int]]:
    return {(r, c) for r, row in enumerate(values) for c, value in enumerate(row) if value}


def slow_figures(examples: list[dict[str, Any]]) -> dict[str, float]:
    """Pooled IoU and Dice and the means of the images' own, pixel by pixel."""
    pairs = [(pixels(one["class_map"]), pixels(one["mask"])) for one in examples]
    both = sum(len(found & true) for found, true in pairs)
    return {
        "iou": both / sum(len(found | true) for found, true in pairs),
        "dice": 2 * both / sum(len(found) + len(true) for found, true in pairs),
        "iou_per_image": float(np.mean([len(f & t) / len(f | t) for f, t in pairs])),
        "dice_per_image": float(np.mean([2 * len(f & t) / (len(f) + len(t)) for f, t in pairs])),
    }


def test_figures_by_the_area_of_an_image_s_pits():
    """A bin's figures are those of its images alone, in each resampling of them too."""
    rng = np.random.default_rng(0)
    areas = {"<200": (1, 120, 199), "200-1000": (200, 700, 999), "1000-5000": (1000, 1500)}
    binned = {}
    for name, sizes in areas.items():
        binned[name] = []
        for area in sizes:
            mask, found = np.zeros((2, 2400), np.uint8)
            mask[rng.permutation(2400)[:area]] = 1
            found[rng.permutation(2400)[: area + 30]] = 1
            one = example(found.reshape(SIZE), mask.reshape(SIZE))
            binned[name].append({**one, "bootstrap": rng.integers(1, 4, 3)})
    totals: protocol.Totals = {}
    for one in (one for examples in binned.values() for one in examples):
        protocol.add(totals, one)
    figures = protocol.figures(totals)
    for name, examples in binned.items():
        for resampling in range(-1, 3):
            drawn = [
                one for one in examples
                for _ in range(1 if resampling < 0 else one["bootstrap"][resampling])
            ]  # fmt: skip
            for figure, expected in slow_figures(drawn).items():
                value, samples = figures[f"{figure}_{name}"]
                found = value if resampling < 0 else samples[resampling]
                assert found == pytest.approx(expected)
    assert all(np.isnan(figures[f"{figure}_>5000"].value) for figure in protocol.BY_PITS)
    assert protocol.image_counts(totals) == {"<200": 3, "200-1000": 3, "1000-5000": 2, ">5000": 0}
    parts = [totals[name].overlap.sums for name in areas]
    np.testing.assert_allclose(sum(parts), totals["segmentation"].overlap.sums)


# ------------------------------------------------------------------------------------ ensembles


def test_ensemble_averages_probabilities():
    mask = box(0, 0, 1, 1)
    together = [example(np.full(SIZE, p), mask) for p in (0.9, 0.2, 0.25)]
    np.testing.assert_allclose(special.expit(ensemble.mean_log_odds(together)), 0.45, rtol=1e-6)
    assert ensemble.mean_log_odds(together[:1]) is together[0]["score_map"]
    for one, value in zip(together, (1000, -1000, 500), strict=True):
        one["score_map"] = np.full(SIZE, value, np.float32)
    # Two of three are certain: 2/3, though 1 - p is beyond what floats hold.
    np.testing.assert_allclose(ensemble.mean_log_odds(together), np.log(2), rtol=1e-6)
    np.testing.assert_allclose(ensemble.mean_log_odds([together[0], together[2]]), 500, rtol=0.01)


def test_ensemble_is_cut_at_the_log_odds_and_the_area():
    mask = box(0, 0, 5, 5)
    one = np.maximum(0.9 * box(0, 0, 5, 5), 0.9 * box(20, 20, 2, 2)) + 0.01
    other = np.maximum(0.5 * box(0, 0, 5, 5), 0.5 * box(20, 20, 2, 2)) + 0.01  # 0.71 with the first
    together = [example(one, mask), example(other, mask)]
    cuts = {(0.0, 1): 29, (0.0, 5): 25, (0.8, 5): 25, (1.0, 1): 0}
    for cut, pixels in cuts.items():
        assert np.count_nonzero(ensemble.average(together, *cut)["class_map"]) == pixels
    assert ensemble.average(together, 0.0, 1)["score"] == pytest.approx(special.logit(0.71))


# ------------------------------------------------------------------------------------ measuring


def test_figures_of_two_runs_that_disagree(predicted):
    pit, other = box(0, 0, 10, 10), box(20, 20, 20, 20)
    left, right = box(0, 0, 10, 5), box(0, 5, 10, 5)
    predicted(
        {
            # The first sees the left half and is surer of it than the second that it is none.
            "one": [example(0.9 * left, pit), example(0.1 * other, other, "type 1", "b")],
            "two": [example(0.3 * left + 0.6 * right, pit), example(0.8 * other, other, "type 1")],
        }
    )
    group = ensemble.Group("official", 0, (entry("one"), entry("two", seed=1)))
    measured = protocol.measure(group)
    first, second = (protocol.figures(totals) for totals in measured.runs)
    assert first["iou"].value == pytest.approx(50 / 500)
    assert first["dice"].value == pytest.approx(2 * 50 / (50 + 500))
    assert first["iou_per_image"].value == pytest.approx((0.5 + 0) / 2)
    assert (first["iou_type 2"].value, first["iou_type 1"].value) == (0.5, 0)
    assert second["iou"].value == pytest.approx(450 / 500)
    assert (second["iou_type 2"].value, second["iou_type 1"].value) == (0.5, 1)
    assert first["object_recall"].value == 0.5 and second["object_recall"].value == 1
    assert first["recall_<200"].value == 1 and first["recall_200-1000"].value == 0
    assert np.isnan(first["recall_>5000"].value)
    # Left 0.6, right 0.3; of the other pit 0.45.
    final = protocol.figures(measured.final)
    assert final["iou"].value == pytest.approx(50 / 500) and final["iou_type 2"].value == 0.5
    assert protocol.spread([first, second])["iou"] == pytest.approx((0.5, 0.8 / np.sqrt(2)))
    assert len(final["iou"].samples) == ensemble.BOOTSTRAP_SAMPLES
    low, high = second["iou"].interval()
    assert low == pytest.approx(0.5) and high == 1  # of only one image of the two


def test_alone_a_run_is_no_ensemble(predicted):
    mask = box(0, 0, 10, 10)
    predicted({"one": [example(mask, mask)]})
    measured = protocol.measure(ensemble.Group("official", 0, (entry("one"),)))
    assert protocol.figures(measured.final)["iou"].value == 1
    assert measured.num_images == 1 and len(measured.shown) == 1
    written = protocol.as_json([measured])["groups"][0]
    assert "ensemble" not in written and "over_runs" not in written
    assert written["num_pits"]["<200"] == written["num_images_by_pits"]["<200"] == 1


def test_runs_with_other_cuts_are_no_ensemble():
    one, other = entry("one"), entry("two", seed=1)
    other.config.eval.min_area = 50
    with pytest.raises(UserError, match="--min_area"):
        protocol.measure(ensemble.Group("official", 0, (one, other)))


def test_images_with_the_highest_and_the_lowest_iou_are_kept():
    mask = box(0, 0, 1, 50)
    ranked: list = []
    for width in np.random.default_rng(0).permutation(np.arange(1, 31)):
        predicted = example(box(0, 0, 1, width), mask, name=str(width))
        ranked = protocol.rank(ranked, predicted)
    names = [int(one["filename"]) for _, one in ranked]
    assert names == [*range(30, 20, -1), *range(10, 0, -1)]


def folds(split: str) -> list[protocol.Measured]:
    """Two folds: IoU 10/20 and 40/40."""
    measured = []
    for fold, (width, true) in enumerate(((10, 20), (40, 40))):
        totals: protocol.Totals = {}
        protocol.add(totals, example(box(0, 0, 1, width), box(0, 0, 1, true)))
        group = ensemble.Group(split, fold, (entry(split=split, fold=fold),))
        measured.append(protocol.Measured(group, 1, [totals], totals, []))
    return measured


def test_folds_are_pooled_but_random_ones_averaged():
    official = [folds("official")[0]]
    over = protocol.over_folds([*official, *folds("grouped"), *folds("random")])
    assert over.keys() == {"grouped", "random"}
    assert over["grouped"]["iou"].value == pytest.approx(50 / 60)
    assert over["random"]["iou"] == pytest.approx((0.75, 0.5 / np.sqrt(2)))
    tables = protocol.as_markdown(folds("grouped"))
    assert "| foreground IoU, pooled | 83.3 |" in tables and "grouped fold 1" in tables
    assert "| recall of pits of <200 px² (2) | 100.0 |" in tables
    assert "| IoU, mean of images with <200 px² of pits (2) | 75.0 |" in tables
    assert "| 75.0 ± 35.4 |" in protocol.as_markdown(folds("random"))


# --------------------------------------------------------------------------------------- groups


def test_groups_are_runs_of_one_split_and_fold():
    entries = [
        entry("a", split="grouped", fold=1),
        entry("b"),
        entry("c", seed=1, split="grouped", fold=1),
        entry("d", fold=2, seed=1),  # the official split has no folds
        entry("e", split="grouped", fold=2),
    ]
    groups = ensemble.group_runs(entries)
    assert [(group.name, [one.folder.name for one in group.entries]) for group in groups] == [
        ("grouped fold 1", ["a", "c"]), ("official", ["b", "d"]), ("grouped fold 2", ["e"])
    ]  # fmt: skip


def test_what_runs_differ_in_is_said():
    runs = (entry("a"), entry("b", seed=3, width=32))
    runs[1].config.data.root, runs[1].config.eval.batch_size = "/elsewhere", 1
    assert ensemble.differences(runs) == [
        {"method.width": 16, "seed": 0}, {"method.width": 32, "seed": 3}
    ]  # fmt: skip
    assert protocol.labels(ensemble.Group("official", 0, runs)) == [
        "method.width=16, seed=0", "method.width=32, seed=3"
    ]  # fmt: skip
    with pytest.raises(UserError, match="first and copy are the same run on official"):
        ensemble.group_runs([entry("first"), entry("other", seed=1), entry("copy", fold=3)])


def test_runs_of_several_methods_are_told():
    same = [entry("a"), entry("b", seed=1), entry("c", split="grouped", fold=2)]
    protocol.check_one_method(same)
    with pytest.raises(UserError, match=r"the runs differ in method\.width"):
        protocol.check_one_method([*same, entry("d", width=32)])


def test_runs_of_which_one_averages_flips_are_told():
    runs = [entry("a"), entry("b", seed=1)]
    runs[1].config.eval.flip_average = True
    with pytest.raises(UserError, match=r"official differ in eval\.flip_average"):
        ensemble.group_runs(runs)


def test_a_cut_is_of_the_official_split_alone(monkeypatch):
    """It was chosen on frames that the other splits test on, so that of a config is none either."""
    configs = {one.folder: one.config for one in (entry("a"), entry("b", split="random"))}
    configs[pathlib.Path("b")].eval.update(min_log_odds=1.25, min_area=7)
    monkeypatch.setattr(ensemble.checkpoint, "read_config", lambda folder: configs[folder])
    monkeypatch.setattr(ensemble, "_check", lambda folder, config: None)
    monkeypatch.setattr(ensemble.datasets, "check_same_images", lambda config, folder: None)
    cut = {"min_log_odds": 1.5, "min_area": 20}
    official, random = (one.config.eval for one in ensemble.read_runs(list(configs), None, cut))
    assert (official.min_log_odds, official.min_area) == (1.5, 20)
    assert (random.min_log_odds, random.min_area) == (0, 1)
    with pytest.raises(UserError, match=r"min_log_odds and min_area would change nothing"):
        ensemble.read_runs(list(configs)[1:], None, cut)


# ----------------------------------------------------------------------------------- end to end


@pytest.fixture(scope="module")
def runs(shrink, tmp_path_factory) -> list[pathlib.Path]:
    """Two seeds of one small segmenter."""
    folders = []
    for seed in (0, 1):
        config = shrink(bsdata_unet.get_config())
        config.seed = seed
        folders.append(tmp_path_factory.mktemp(f"seed_{seed}"))
        train(run.open_run(config, folders[-1], "train"), folders[-1])
    return folders


def test_figures_are_those_of_evaluate_and_all_is_written(runs, tmp_path, shrink, capsys):
    flags = ["--min_log_odds=-0.1", "--min_area=3", "--flip_average"]
    protocol.main(["--runs", *map(str, runs), f"--out={tmp_path}", *flags])
    printed = capsys.readouterr().out
    assert "| % | seed=0 | seed=1 | mean ± std | ensemble |" in printed
    for name in ("best.png", "worst.png"):
        assert (tmp_path / name).stat().st_size > 10_000
    [group] = json.loads((tmp_path / "protocol.json").read_text())["groups"]
    assert (group["split"], group["num_images"], group["min_area"]) == ("official", 5, 3)
    assert [one["differs_in"] for one in group["runs"]] == [{"seed": 0}, {"seed": 1}]
    assert group["ensemble"]["iou"]["ci"] and group["ensemble"]["iou_type 1"]["value"] is None
    config = shrink(bsdata_unet.get_config())
    config.eval.update(min_log_odds=-0.1, min_area=3, flip_average=True)
    expected = evaluate(config, runs[0], results_folder=tmp_path)
    assert expected["iou"] > 0
    for name in ("iou", "dice", "iou_per_image", "object_recall", "object_f1"):
        assert group["runs"][0]["figures"][name]["value"] == pytest.approx(100 * expected[name])
    assert expected["by_defect"]["type 2"]["iou"] == expected["iou"]


def test_results_that_are_there_stay(runs, tmp_path):
    path = tmp_path / "protocol.json"
    path.write_text("mine")
    with pytest.raises(SystemExit, match=f"error: {path} is there already"):
        protocol.main(["--runs", str(runs[0]), f"--out={tmp_path}"])
    assert [one.read_text() for one in tmp_path.iterdir()] == ["mine"]


def test_a_folder_that_cannot_be_made_is_told_before_anything_is_measured(
    runs, tmp_path, monkeypatch
):
    (tmp_path / "file").touch()
    monkeypatch.setattr(protocol, "measure", lambda group: pytest.fail("measured"))
    with pytest.raises(SystemExit, match=r"error: .*file/protocol.json cannot be written"):
        protocol.main(["--runs", str(runs[0]), f"--out={tmp_path / 'file'}"])


def test_runs_that_cannot_be_measured_are_named(runs, tmp_path):
    def fails(folder, match, *more):
        out = tmp_path / "results"
        with pytest.raises(SystemExit, match=match):
            protocol.main(["--runs", str(runs[0]), str(folder), f"--out={out}", *more])
        assert not out.exists()

    fails(tmp_path / "nothing", "error: .*nothing holds no run")
    fails(runs[1], "min_log_odds is nan", "--min_log_odds=nan")
    fails(runs[1], "error: .*elsewhere", f"--root={tmp_path / 'elsewhere'}")
    root = checkpoint.read_config(runs[1]).data.root
    others = shutil.copytree(root, tmp_path / "others")
    for label in (others / "label").glob("*.json"):
        content = json.loads(label.read_text())
        content["shapes"][0]["points"][0][0] += 2
        label.write_text(json.dumps(content))
    fails(runs[1], "seed_0.* was trained on other images", f"--root={others}")
    unfinished = shutil.copytree(runs[1], tmp_path / "unfinished")
    shutil.rmtree(unfinished / "checkpoints/2")
    fails(unfinished, "at step 1 of 2")
    for field, value in {"name": "autoencoder", "smoothing": 1.0}.items():
        other = shutil.copytree(runs[1], tmp_path / field)
        config = json.loads((other / "config.json").read_text())
        config["method"][field] = value
        (other / "config.json").write_text(json.dumps(config))
        fails(
            other,
            "give runs of adversarial_segmenter or segmenter" if field == "name" else "smoothing",
        )
