"""What is left of a score when all test images are equally bright."""

import importlib.util
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from configs import mvtec_autoencoder
from defect_jax import checkpoint
from defect_jax.data import datasets
from defect_jax.method import Method

PATH = pathlib.Path(__file__).parents[1] / "experiments/brightness.py"


@pytest.fixture(scope="module")
def brightness():
    spec = importlib.util.spec_from_file_location("brightness", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run_of(tmp_path, monkeypatch):
    """A run that scores by a function of the image, on good images that are darker than bad ones.

    Defects are a pixel that is twice as bright as its image, in all bad images but two.
    """
    rng = np.random.default_rng(0)
    level = np.concatenate([rng.uniform(60, 80, 12), rng.uniform(90, 110, 12)])
    image = np.round(level)[:, None, None, None] * np.ones((1, 8, 8, 3))
    image[14:, 3, 4] *= 2
    kinds = np.array(["good"] * 12 + ["spot"] * 12)
    mask = np.zeros((24, 8, 8), np.uint8)
    mask[12:, 3, 4] = 1
    arrays = {
        "train_image": np.full((10, 8, 8, 3), 85, np.uint8),
        "test_image": image.astype(np.uint8),
        "test_mask": mask,
        "test_defect_type": kinds,
    }
    np.savez(tmp_path / "arrays.npz", **arrays)

    def make(score):
        config = mvtec_autoencoder.get_config()
        config.data.update(name="arrays", root=str(tmp_path / "arrays.npz"), image_size=(8, 8))
        config.data.update(category="gear", validation_files=("train/000000",))
        config.data.train_digest = datasets.check_splits(config)
        config.eval.batch_size = 5
        method = Method(None, (), lambda state, batch: {"score": score(batch["image"] * 1.0)})
        loaded = checkpoint.Run(config, method, {}, None)
        monkeypatch.setattr(checkpoint, "load_run", lambda folder: loaded)
        steps = [config.train.num_steps]
        monkeypatch.setattr(checkpoint, "steps", lambda folder: steps)
        return tmp_path

    return make


def test_a_score_that_is_brightness_is_worth_nothing_when_equalised(brightness, run_of):
    folder = run_of(lambda image: jnp.round(image.mean((1, 2, 3)) / 7))
    assert brightness.measure(folder, None) == (1, 1, 0.5)


def test_a_score_that_sees_the_defect_stays(brightness, run_of):
    folder = run_of(lambda image: image.max((1, 2, 3)) / jnp.median(image, (1, 2, 3)))
    row = brightness.measure(folder, None)
    assert row.brightness == 1
    assert row.score == row.equalised == pytest.approx((10 + 2 / 2) / 12)


def test_equalised_images_have_the_mean(brightness):
    image = np.random.default_rng(0).integers(20, 120, (16, 16, 3)).astype(np.uint8)
    for mean in (40.0, 95.0):
        assert brightness.equalise(image, mean).mean() == pytest.approx(mean, abs=0.1)
    assert brightness.equalise(np.zeros((4, 4, 1), np.uint8), 50.0).max() == 0


def test_the_table_has_a_row_for_each_run(brightness, run_of, capsys):
    folder = run_of(lambda image: image.max((1, 2, 3)))
    brightness.main([str(folder), str(folder)])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert all(line.startswith(f"| {folder} | 1.000 |") for line in lines[2:])


def test_what_is_no_run_is_told(brightness, tmp_path):
    with pytest.raises(SystemExit, match=r"error: .* holds no run"):
        brightness.main([str(tmp_path)])


def test_a_run_over_all_categories_is_told(brightness, run_of):
    folder = run_of(lambda image: image.max((1, 2, 3)))
    checkpoint.load_run(folder).config.data.one_model = True
    with pytest.raises(SystemExit, match="is a run over all categories"):
        brightness.main([str(folder)])


def test_an_unfinished_run_is_told(brightness, run_of):
    folder = run_of(lambda image: image.max((1, 2, 3)))
    checkpoint.load_run(folder).config.train.num_steps += 1
    with pytest.raises(SystemExit, match="is at step 2000 of 2001: finish it first"):
        brightness.main([str(folder)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"test_defect_type": np.array(["spot"] * 24)},
            "are all good or all defective",
        ),
        ({"train_image": np.full((10, 8, 8, 3), 86, np.uint8)}, "was trained on other images"),
    ],
)
def test_images_that_say_nothing_of_the_run_are_told(brightness, run_of, tmp_path, change, message):
    folder = run_of(lambda image: image.max((1, 2, 3)))
    arrays = dict(np.load(tmp_path / "arrays.npz")) | change
    np.savez(tmp_path / "others.npz", **arrays)
    with pytest.raises(SystemExit, match=message):
        brightness.main([str(folder), f"--root={tmp_path / 'others.npz'}"])
