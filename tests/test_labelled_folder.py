"""Folders whose training images have defects of several classes, drawn here."""

import csv
import dataclasses
import io
import pathlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from configs import bsdata_residual_unet, bsdata_unet, mvtec_autoencoder
from defect_jax import run
from defect_jax.data import datasets, mvtec
from defect_jax.data.examples import Examples
from defect_jax.errors import UserError
from defect_jax.evaluate import evaluate
from defect_jax.train import train

SIDE = 32
# The class of a defect, and its brightness on parts of 120.
DEFECTS = {"spot": (1, 230), "hole": (2, 20)}


def save(path: pathlib.Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> pathlib.Path:
    """Five images of each kind to learn from and two to test on."""
    root = tmp_path_factory.mktemp("labelled")
    rng = np.random.default_rng(0)
    for split, count in (("train", 5), ("test", 2)):
        for kind in ("good", *DEFECTS):
            for number in range(count):
                name = f"{split}_{number}"
                image, mask = rng.normal(120, 8, (SIDE, SIDE)), np.zeros((SIDE, SIDE))
                if kind in DEFECTS:
                    top, left = rng.integers(0, SIDE - 10, 2)
                    mask[top : top + 10, left : left + 8], level = DEFECTS[kind]
                    image += (level - 120) * (mask > 0)
                    save(root / f"plate/ground_truth/{kind}/{name}_mask.png", mask)
                save(root / f"plate/{split}/{kind}/{name}.png", image.clip(0, 255))
    return root


@pytest.fixture
def segmenting(root, tmp_path):
    config = bsdata_unet.get_config()
    config.data.update(
        name="mvtec", root=str(root), category="plate", cache_dir=str(tmp_path / "cache"),
        image_size=(SIDE, SIDE), num_classes=3, validation_fraction=0.2,
    )  # fmt: skip
    config.method.update(width=8, depth=2)
    config.optimizer.update(learning_rate=1e-2, warmup_steps=5)
    config.train.update(batch_size=7, num_steps=60)
    config.eval.bootstrap_samples = 10
    return config


@pytest.fixture
def rebuilding(segmenting):
    config = mvtec_autoencoder.get_config()
    config.data.update(segmenting.data)
    config.method.update(model="ssim_net", code_dim=4)
    return config


def test_a_segmenter_learns_each_class(segmenting, tmp_path):
    workdir = tmp_path / "run"
    config = run.open_run(segmenting, workdir, "train")
    assert len(datasets.load_split(config, "train")) == 14  # one good part is held out
    train(config, workdir)
    results = evaluate(config, workdir)
    assert results["iou_class_1"] > 0.7 and results["iou_class_2"] > 0.7
    with (workdir / "eval/test/defects.csv").open() as file:
        rows = list(csv.DictReader(file))
    found = {(row["filename"].split("/")[1], row["class_id"]) for row in rows}
    assert {(kind, str(number)) for kind, (number, _) in DEFECTS.items()} <= found


def test_other_methods_learn_from_the_good_ones(rebuilding, tmp_path, capsys):
    config = run.open_run(rebuilding, tmp_path / "run", "train")
    assert "mvtec 'plate': 10 defective training images are left out" in capsys.readouterr().out
    examples = datasets.load_split(config, "train")
    assert set(examples.defect_type) == {"good"} and len(examples) == 4
    assert len(datasets.load_split(config, "test")) == 6


@pytest.fixture
def changed(monkeypatch):
    """Has the dataset deliver what a function makes of its examples."""

    def changed(change: Callable[[Examples], Examples]) -> None:
        dataset = datasets.Dataset(
            lambda data, split: change(mvtec.load(data, split)), lambda data: ["plate"], False
        )
        monkeypatch.setitem(datasets.DATASETS, "mvtec", dataset)

    return changed


def test_a_segmenter_without_a_mask_to_learn_from(segmenting, changed):
    changed(lambda examples: examples.take(np.flatnonzero(examples.label == 0)))
    with pytest.raises(UserError, match=r"none of the 5 training images shows .*'segmenter'"):
        datasets.check_splits(segmenting)


def test_a_mask_that_is_all_black_is_none(segmenting, changed):
    file = io.BytesIO()
    Image.new("L", (SIDE, SIDE)).save(file, "PNG")

    def blacken(examples: Examples) -> Examples:
        masks = [file.getvalue() if mask else mask for mask in examples.mask]
        return dataclasses.replace(examples, mask=np.array(masks, object))

    changed(blacken)
    with pytest.raises(UserError, match=r"none of the 15 training images shows .*'segmenter'"):
        datasets.check_splits(segmenting)


def test_a_method_without_a_good_part_to_learn_from(rebuilding, changed):
    changed(lambda examples: examples.take(np.flatnonzero(examples.label == 1)))
    with pytest.raises(UserError, match=r"all 10 training images are defective, .*'autoencoder'"):
        datasets.check_splits(rebuilding)


def test_a_segmenter_takes_one_good_part(segmenting, rebuilding, changed):
    """To validate on, where defective ones are left to learn from."""

    def first_good(examples: Examples) -> Examples:
        good = np.flatnonzero(examples.label == 0)
        return examples.take(np.setdiff1d(np.arange(len(examples)), good[1:]))

    changed(first_good)
    assert datasets.draw_validation(segmenting) == ("train/good/train_0.png",)
    with pytest.raises(UserError, match=r"has 1 good training images: .* leaves none"):
        datasets.draw_validation(rebuilding)


def test_false_alarms_are_a_segmenter_s_to_learn_from(rebuilding):
    rebuilding.data.update(fit="crop", hard_share=0.2)
    rebuilding.eval.update(tile=(64, 64), overlap=32)
    with pytest.raises(UserError, match=r"data\.hard_share is 0\.2, but method 'autoencoder'"):
        run.check(rebuilding)


@pytest.mark.parametrize(("depth", "patch_size", "side"), [(5, 2, 64), (1, 3, 192)])
def test_a_network_that_tiles_cannot_lie_right_for(depth, patch_size, side):
    config = bsdata_residual_unet.get_config()
    config.data.update(frame_height=0, image_size=(side, side), hard_share=0.0)
    config.method.update(width=4, depth=depth, patch_size=patch_size, supervised_levels=1)
    config.augment.paste_probability = 0.0
    config.eval.update(tile=(side, side), overlap=0)
    with pytest.raises(UserError, match=rf"no multiples of .* = {patch_size * 2**depth}: "):
        run.check(config)
