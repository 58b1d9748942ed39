"""Latency: what is timed is a prediction, in each of the ways; and a row in its own process."""

import functools
import io

import jax
import numpy as np
import pytest
from PIL import Image

from configs import bsdata_residual_unet, bsdata_unet, mvtec_autoencoder
from defect_jax import checkpoint
from defect_jax.data.examples import Examples
from defect_jax.evaluate import eval_batch_size, predictions
from defect_jax.methods import make_method
from experiments import scaling
from experiments.bsdata import latency

SIZE = (90, 150)


def predict(batch):
    """A method whose map is the image's first channel."""
    score_map = batch["image"][..., 0].astype(np.float32) - 128
    logits = np.stack([0 * score_map, score_map], axis=-1)
    return {"score": score_map.max((1, 2)), "score_map": score_map, "mask_logits": logits}


@pytest.mark.parametrize(
    ("way", "taken", "piece", "count"),
    [
        ("whole", "whole, 96x160", (96, 160), 1),
        ("tiles", "tiles of 64x96, overlap 16: 4", (64, 96), 4),
    ],
)
def test_in_pieces_the_map_is_that_of_the_image(way, taken, piece, count):
    config = bsdata_residual_unet.get_config()
    # The map has whole numbers, so what merging rounds cannot move a pixel across the threshold.
    config.eval.update(tile=(64, 96), overlap=16, batch_size=1, min_log_odds=1.25)
    examples = latency.draw_image(SIZE, 3)
    assert latency.set_way(config, way, SIZE) == taken
    seen = []

    def recorded(batch):
        seen.append(batch["image"].shape)
        return predict(batch)

    found = latency.predict_one(config, examples, recorded)
    first = examples.image[0, ..., 0]
    np.testing.assert_allclose(found["score_map"], first - 128.0, atol=1e-4)
    np.testing.assert_array_equal(found["class_map"], first - 128.0 > 1.25)
    batch_size = eval_batch_size(config)  # the number of devices
    assert seen == [(batch_size, *piece, 3)] * -(-count // batch_size)


@pytest.mark.parametrize("fit", ["resize", "pad", "crop"])
def test_shrunk_the_map_is_that_of_evaluation(fit):
    """Up to how Pillow and TensorFlow shrink an image."""
    config = bsdata_unet.get_config()
    config.data.update(fit=fit, image_size=(64, 64))
    if fit == "crop":
        config.data.frame_height = 64
        config.eval.update(tile=(64, 64), overlap=16)
    examples = latency.draw_image(SIZE, 3)
    coarse = Image.fromarray(examples.image[0, :9, :15])
    examples.image[0] = np.asarray(coarse.resize(SIZE[::-1], Image.Resampling.BICUBIC))
    file = io.BytesIO()
    Image.fromarray(examples.image[0]).save(file, "png")
    encoded = np.empty(1, object)
    encoded[0] = file.getvalue()
    empty = np.array([b""], object)
    same = examples.label, examples.defect_type, examples.filename
    to = "a height of 64" if fit == "crop" else "64x64"
    assert latency.set_way(config, "shrunk", SIZE) == f"shrunk to {to}"
    found = latency.predict_one(config, examples, predict)
    (expected,) = predictions(config, Examples(encoded, empty, *same), predict)
    assert found["score_map"].shape == SIZE
    assert found["image"].shape == expected["image"].shape
    np.testing.assert_allclose(found["score_map"], expected["score_map"], atol=3)
    assert np.mean(found["class_map"] == expected["class_map"]) > 0.98


def test_each_network_is_taken_in_all_its_ways(monkeypatch, capsys):
    """A line for each of them."""
    called = []

    def alone(work):
        called.append(work)
        return {"seconds": 1.5, "bytes": 2.0**30 * len(called)}

    monkeypatch.setattr(latency, "alone", alone)
    latency.main(["--repeats=3"])
    title, _, _, _, *lines = capsys.readouterr().out.strip().split("\n")
    assert title.startswith("1540x645 pixels; median of 3 ")
    assert len(lines) == 6 + 6
    assert lines[0] == "| bsdata_residual_unet | whole, 672x1568 | 1 | 1.50 | 1.00 |"
    assert "| bsdata_residual_unet | tiles of 256x640, overlap 64: 12 | 4 | 1.50 | 4.00 |" in lines
    assert "| bsdata_residual_unet | shrunk to a height of 256 | 1 | 1.50 | 5.00 |" in lines
    assert "| bsdata_znet | shrunk to 256x512 | 4 | 1.50 | 12.00 |" in lines
    assert called[11].args == ("bsdata_znet", "shrunk", 4, (645, 1540), 3)


@pytest.fixture
def save_run(shrink, tmp_path):
    """Makes a run whose parameters are zeros: to draw some would be compiled for long."""

    def save_run(config):
        config = shrink(config)
        shapes = checkpoint.abstract_state(config, make_method(config))
        state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
        checkpoint.write_config(tmp_path, config)
        with checkpoint.manager(tmp_path, 1, 0) as checkpoints:
            checkpoint.save(checkpoints, state, [])
        return str(tmp_path)

    return save_run


def test_a_run_is_measured_in_a_process_of_its_own(save_run):
    folder = save_run(bsdata_unet.get_config())
    point = scaling.alone(functools.partial(latency.measure, folder, "tiles", 4, (40, 60), 1))
    assert point["seconds"] > 0 and point["bytes"] > 100 * 2**20  # more than Python and JAX


def test_what_is_no_segmenter_is_told(save_run, tmp_path):
    with pytest.raises(SystemExit, match=r"error: .*nothing holds no run"):
        latency.main(["--runs", str(tmp_path / "nothing")])
    folder = save_run(mvtec_autoencoder.get_config())
    with pytest.raises(SystemExit, match=r"error: unknown method of .* 'autoencoder'"):
        latency.main(["--runs", folder])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--size", "0", "640"], r"--size is \(0, 640\): it must be a height and a width"),
        (["--repeats=0"], "--repeats is 0: it must be at least 1"),
    ],
)
def test_sizes_and_repeats_that_cannot_be_are_told(flags, message):
    with pytest.raises(SystemExit, match=f"error: {message}"):
        latency.main(flags)
