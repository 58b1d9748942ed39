"""One model over all categories, and the runs of another kind that its folder does not take."""

import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from configs import mvtec_autoencoder
from defect_jax import checkpoint, report, run
from defect_jax.data import datasets, synthetic
from defect_jax.errors import UserError
from defect_jax.evaluate import make_predict, predictions, read_images
from defect_jax.train import train

FILES = ["calibration.json", "eval/test/metrics.json", "eval/test/overlays/sheet.png"]


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def config(shrink, mvtec_root, tmp_path_factory):
    """Category 'left' in colour, 'right' in grey and of another size."""
    root = tmp_path_factory.mktemp("images")
    shutil.copytree(mvtec_root / "part", root / "left")
    for number in range(10):
        side, kind = ("train", "good") if number < 6 else ("test", ("good", "scratch")[number % 2])
        image, mask = synthetic.draw(0, number, "wood", kind, (40, 56))
        save(root / f"right/{side}/{kind}/{number}.png", image[..., 0])
        if kind == "scratch":
            save(root / f"right/ground_truth/scratch/{number}_mask.png", 255 * mask)
    config = shrink(mvtec_autoencoder.get_config())
    config.data.update(root=str(root), category="all", one_model=True)
    config.data.update(image_size=(32, 32), validation_fraction=0.25)
    config.method.update(model="ssim_net", code_dim=4)
    return config


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("one_model")
    return workdir, run.run(config, workdir, "train")


def without_seconds(results):
    return {
        category: {key: value for key, value in figures.items() if key != "seconds"}
        for category, figures in json.loads(json.dumps(results)).items()
    }


def test_there_is_one_checkpoint_and_a_folder_of_results_for_each_category(finished):
    workdir, results = finished
    assert list(results) == ["left", "right"]
    assert checkpoint.load_run(workdir).state.step == 2
    assert [row["step"] for row in report.read_metrics(workdir / "metrics.jsonl")] == [1, 2]
    assert checkpoint.read_config(workdir).data.category == "all"
    assert not (workdir / "eval").exists() and not (workdir / "calibration.json").exists()
    for category, defect in (("left", "spot"), ("right", "scratch")):
        assert not {"config.json", "checkpoints"} & {p.name for p in (workdir / category).iterdir()}
        assert all((workdir / category / name).is_file() for name in FILES)
        rows = read_images(workdir / category)
        assert {row["filename"].split("/")[1] for row in rows} == {"good", defect}
        assert results[category]["num_images"] == len(rows) == 4
        assert results[category]["by_defect"].keys() == {defect}
    assert json.loads((workdir / "results.json").read_text()) == json.loads(json.dumps(results))


def test_each_category_is_calibrated_on_its_own_validation_images(finished):
    workdir, _ = finished
    loaded = checkpoint.load_run(workdir)
    predict = make_predict(loaded.method, loaded.state)
    highest = {}
    for category, count in (("left", 3), ("right", 2)):
        one = datasets.of_category(loaded.config, category)
        validation = datasets.load_split(one, "validation")
        assert len(validation) == len(one.data.validation_files) == count
        scores = [example["score"] for example in predictions(one, validation, predict)]
        highest[category] = max(scores)
        stored = json.loads((workdir / category / "calibration.json").read_text())
        assert stored["quantile"]["image"] == pytest.approx(highest[category], rel=1e-6)
    assert highest["left"] != pytest.approx(highest["right"], rel=1e-3)


def test_the_training_images_are_those_of_both_categories_but_the_held_out(finished):
    stored = checkpoint.read_config(finished[0])
    names = set(datasets.load_split(stored, "train").filename)
    held_out = set(stored.data.validation_files)
    assert not held_out & names
    everything = [f"left/train/good/{n:03}.png" for n in range(12)]
    everything += [f"right/train/good/{n}.png" for n in range(6)]
    assert sorted(names | held_out) == everything


def test_evaluating_again_gives_the_same_and_a_table_with_the_mean(
    config, finished, tmp_path, capsys
):
    workdir, results = tmp_path / "run", finished[1]
    shutil.copytree(finished[0], workdir)
    shutil.rmtree(workdir / "right")
    (workdir / "results.json").unlink()
    again = run.run(config, workdir, "evaluate")
    assert without_seconds(again) == without_seconds(results)
    assert (workdir / "right/calibration.json").is_file() and (workdir / "results.json").is_file()
    printed = capsys.readouterr().out
    assert "note: these are figures" not in printed
    table = printed.strip().splitlines()[-3:]
    assert [line.split()[0] for line in table] == ["left", "right", "mean"]
    mean = np.mean([again[category]["pixel_auroc"] for category in again])
    assert f"{mean:.3f}" in table[-1]
    run.run(config, workdir, "evaluate", step=1)
    assert "note: these are figures of step 1 of 2" in capsys.readouterr().out


def test_a_stopped_run_goes_on(config, finished, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished[0], workdir)
    shutil.rmtree(workdir / "checkpoints/2")
    train(run.open_run(config, workdir, "train"), workdir)
    states = (checkpoint.load_run(folder).state for folder in (workdir, finished[0]))
    jax.tree.map(np.testing.assert_array_equal, *states)


def changed(config, **fields):
    config = config.copy_and_resolve_references()
    config.data.update(fields)
    return config


def test_a_run_of_each_category_is_opened_as_before(config, tmp_path):
    names = {}
    for category in ("left", "right"):
        one = changed(config, category=category, one_model=False)
        opened = run.open_run(one, tmp_path / category, "train")
        names[category] = opened.data.validation_files
        assert run.open_run(one, tmp_path / category, "train").to_dict() == opened.to_dict()
    assert all(name.startswith("train/good/") for name in (*names["left"], *names["right"]))
    drawn = run.open_run(config, tmp_path / "both", "train").data.validation_files
    assert drawn == tuple(f"{c}/{name}" for c in ("left", "right") for name in names[c])


def fails(config, workdir, *words, mode="train"):
    before = sorted(workdir.rglob("*"))
    with pytest.raises(UserError) as caught:
        run.run(config, workdir, mode)
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message
    assert sorted(workdir.rglob("*")) == before


def test_one_model_of_one_category_is_an_error(config, tmp_path):
    fails(changed(config, category="left"), tmp_path, "'left'", "data.category to all")


@pytest.mark.parametrize("mode", ["train", "evaluate"])
def test_the_folder_of_one_model_takes_no_other_runs(config, finished, mode):
    each = changed(config, one_model=False)
    fails(each, finished[0], "one run over all categories", "data.one_model to True", mode=mode)
    one = changed(each, category="left")
    fails(one, finished[0], "data.category (all there, left now)", "another workdir", mode=mode)


@pytest.mark.parametrize("mode", ["train", "evaluate"])
def test_one_model_does_not_go_into_the_folder_of_other_runs(config, tmp_path, mode):
    one = changed(config, category="right", one_model=False)
    run.open_run(one, tmp_path / "one", "train")
    words = "data.category (right there, all now)", "data.one_model (False there, True now)"
    fails(config, tmp_path / "one", *words, mode=mode)
    run.open_run(one, tmp_path / "each/right", "train")
    words = "holds a run for each category", "data.one_model to False"
    fails(config, tmp_path / "each", *words, mode=mode)
