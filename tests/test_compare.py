"""The picture of several runs: the same images for all, a row for each, and what cannot be."""

import importlib.util
import pathlib
import shutil

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from configs import bsdata_unet, mvtec_autoencoder
from defect_jax import checkpoint, run

PATH = pathlib.Path(__file__).parents[1] / "experiments/compare.py"


@pytest.fixture(scope="module")
def compare():
    spec = importlib.util.spec_from_file_location("compare", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def runs(shrink, tmp_path_factory):
    """Two seeds of one small autoencoder."""
    folders = {}
    for seed in (0, 1):
        config = shrink(mvtec_autoencoder.get_config())
        config.seed = seed
        config.data.image_size = (32, 32)
        config.method.update(model="ssim_net", code_dim=4)
        folders[f"seed {seed}"] = tmp_path_factory.mktemp(f"seed_{seed}")
        run.run(config, folders[f"seed {seed}"], "train")
    return folders


def arguments(runs, out, *more):
    return ["--runs", *(f"{name}={folder}" for name, folder in runs.items()), f"--out={out}", *more]


def test_rows_hold_the_same_images_good_ones_first(compare, runs):
    rows = compare.compare(runs, 3, None)
    assert [row.name for row in rows] == list(runs)
    one, other = ([example["filename"] for example in row.examples] for row in rows)
    assert one == other and len(one) == 3
    labels = [example["label"] for example in rows[0].examples]
    assert labels == sorted(labels) and 0 in labels and 1 in labels
    maps = [np.stack([example["score_map"] for example in row.examples]) for row in rows]
    assert not np.allclose(*maps)


def test_the_picture_has_a_cell_for_each_image_and_run(compare, runs):
    rows = compare.compare(runs, 3, None)
    axes = compare.draw(rows).axes
    assert len(axes) == (2 + 2) * 3
    texts = {text.get_text() for one in axes for text in one.texts}
    assert {"image", "true defect", *runs} <= texts
    assert [one.get_title() for one in axes[:3]] == ["good", "good", "spot"]
    # The truth is outlined on the defective image alone.
    assert [len(one.collections) > 0 for one in axes[3:6]] == [False, False, True]


def test_the_picture_is_written(compare, runs, tmp_path, capsys):
    compare.main(arguments(runs, tmp_path / "sheets/compare.png", "--images=2"))
    assert (tmp_path / "sheets/compare.png").stat().st_size > 10_000
    assert "compare.png" in capsys.readouterr().out


def test_a_picture_that_is_there_stays(compare, runs, tmp_path):
    path = tmp_path / "mine.png"
    path.write_text("mine")
    with pytest.raises(SystemExit, match=f"error: {path} is there already"):
        compare.main(arguments(runs, path))
    assert path.read_text() == "mine"


@pytest.mark.parametrize("count", [1, 10])
def test_the_legend_lies_inside_the_picture(compare, runs, count):
    figure = compare.draw(compare.compare(runs, count, None))
    (legend,) = [text for text in figure.texts if text.get_text().startswith("colour")]
    box = legend.get_window_extent(FigureCanvasAgg(figure).get_renderer())
    assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1
    assert box.y1 <= min(axes.get_window_extent().y0 for axes in figure.axes)


def test_what_cannot_be_compared_is_named(compare, runs, tmp_path):
    first, second = runs.values()

    def fails(folder, match):
        with pytest.raises(SystemExit, match=match):
            compare.main(arguments({"a": first, "b": folder}, tmp_path / "compare.png"))
        assert not (tmp_path / "compare.png").exists()

    fails(tmp_path / "nothing", "error: .*nothing holds no run")
    unfinished = shutil.copytree(second, tmp_path / "unfinished")
    shutil.rmtree(unfinished / "eval")
    fails(unfinished, "unfinished is not evaluated")
    without_last = shutil.copytree(second, tmp_path / "without_last")
    shutil.rmtree(without_last / "checkpoints/2")
    fails(without_last, "without_last is at step 1 of 2: finish it first")
    damaged = shutil.copytree(second, tmp_path / "damaged")
    (damaged / "eval/test/metrics.json").write_text("[1]")
    fails(damaged, "metrics.json is damaged .it holds a list.: restore it")
    others = shutil.copytree(second, tmp_path / "others")
    config = checkpoint.read_config(others)
    config.data.train_digest = "0" * 16
    checkpoint.write_config(others, config)
    fails(others, "others was trained on other images than those in")
    other = shutil.copytree(second, tmp_path / "other")
    config = checkpoint.read_config(other)
    config.data.category = "another"
    checkpoint.write_config(other, config)
    fails(other, "other is a run on mvtec 'another', .* on mvtec 'part': compare runs on the same")


def test_two_runs_of_one_name_are_not_compared(compare, runs, tmp_path, capsys):
    named = [f"one={folder}" for folder in runs.values()]
    with pytest.raises(SystemExit):
        compare.main([f"--out={tmp_path / 'compare.png'}", "--runs", *named])
    assert "has a name twice" in capsys.readouterr().err


def test_a_segmenter_is_cut_where_it_is_evaluated(compare, shrink, tmp_path):
    config = shrink(bsdata_unet.get_config())
    config.eval.min_log_odds = -0.2
    run.run(config, tmp_path, "train")
    (row,) = compare.compare({"a": tmp_path}, 2, None)
    assert row.threshold == -0.2


def test_a_picture_that_cannot_be_written_is_told_before_the_work(compare, runs, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare, "compare", lambda *_: pytest.fail("compared"))
        with pytest.raises(SystemExit, match=f"error: {tmp_path} is a folder"):
            compare.main(arguments(runs, tmp_path))
