"""Hard negatives: what is called defective off all defects, and when it is looked for."""

import types

import numpy as np
import pytest

from configs import bsdata_residual_unet
from defect_jax import checkpoint, mining
from defect_jax.data.examples import Examples
from defect_jax.errors import UserError
from defect_jax.methods import make_method
from defect_jax.train import phase_ends

SIZE = (64, 96)


@pytest.fixture
def config():
    config = bsdata_residual_unet.get_config()
    config.data.update(frame_height=0, image_size=(32, 32))
    config.eval.update(tile=(64, 64), overlap=16, batch_size=2)
    return config


def bright_is_defective(batch):
    score_map = batch["image"].mean(-1) - 128.0
    return {"score": score_map.max((1, 2)), "score_map": score_map}


def make_examples(images, masks):
    count = len(images)
    rgb = np.stack([np.stack(images)] * 3, -1)
    names = np.array([f"{n}.png" for n in range(count)])
    return Examples(rgb, np.stack(masks), np.ones(count, np.int32), np.full(count, "pit"), names)


def test_mistakes_are_called_defective_and_lie_off_all_defects(config):
    image, mask = np.zeros((2, *SIZE), np.uint8), np.zeros((2, *SIZE), np.uint8)
    mask[0, 20:30, 20:30] = 1
    image[0, 15:35, 15:35] = 255  # up to 5 pixels around the defect; 4 of them are its outline
    image[1, 40:43, 90] = 255
    image[1, 10, 10] = 128  # as likely as not
    image[1, 30, 30] = 129
    config.eval.min_log_odds = 5.0  # changes no training
    image[1, 0, 0] = 255  # of a frame without defects every pixel counts
    found = mining.find(config, make_examples(image, mask), bright_is_defective)
    of_first = found[found[:, 0] == 0, 1:]
    distance = np.linalg.norm(np.maximum(0, np.maximum(20 - of_first, of_first - 29)), axis=1)
    assert (distance > 4).all() and ((of_first >= 15) & (of_first < 35)).all()
    assert {(15, 15), (15, 25), (34, 34), (25, 15)} <= set(map(tuple, of_first))
    of_second = [(1, 0, 0), (1, 30, 30), (1, 40, 90), (1, 41, 90), (1, 42, 90)]
    np.testing.assert_array_equal(found[found[:, 0] == 1], of_second)


def test_mistakes_are_in_pixels_of_the_fitted_frame(config):
    config.data.frame_height = 32
    image, mask = np.zeros((1, *SIZE), np.uint8), np.zeros((1, *SIZE), np.uint8)
    image[0, 40:44, 80:84] = 255
    found = mining.find(config, make_examples(image, mask), bright_is_defective)
    assert {(0, 20, 40), (0, 21, 41)} <= set(map(tuple, found))
    assert (np.abs(found - (0, 20.5, 40.5)) <= 1.5).all()


@pytest.mark.parametrize(("field", "value"), [("tile", (64, 96)), ("overlap", 8)])
def test_a_run_goes_on_with_the_tiles_that_its_mistakes_are_looked_for_by(config, field, value):
    other = config.copy_and_resolve_references()
    other.eval[field] = value
    with pytest.raises(UserError, match=rf"eval\.{field} \("):
        checkpoint.check_same_run("runs/a", other, config)
    config.data.hard_share = other.data.hard_share = 0.0
    checkpoint.check_same_run("runs/a", other, config)


def test_no_frame_outweighs_all_others(config):
    image = np.stack([np.full(SIZE, 255, np.uint8), np.zeros(SIZE, np.uint8)])
    image[1, 3, 3] = 255
    found = mining.find(config, make_examples(image, 0 * image), bright_is_defective)
    counts = np.bincount(found[:, 0])
    assert counts[1] == 1 and 500 < counts[0] <= 1000
    assert found[found[:, 0] == 0, 1].max() > 60  # from all over it


def test_a_run_has_a_phase_for_each_look_at_its_mistakes(config):
    config.optimizer.warmup_steps = 0
    config.train.update(num_steps=25, mine_every=10)
    assert phase_ends(config, make_method(config)) == [10, 20, 25]
    config.data.hard_share = 0.0
    assert phase_ends(config, make_method(config)) == [25]
    config.data.hard_share, config.train.mine_every = 0.2, 0
    with pytest.raises(UserError, match=r"hard_share is 0\.2 and train\.mine_every 0"):
        make_method(config)


@pytest.mark.parametrize(
    "content", [b"", b"no array", b"\x93NUMPY\x01\x00v\x00{'descr': '<i4'", b"PK\x03\x04"]
)
def test_mistakes_that_are_gone_or_damaged_are_named(config, tmp_path, content):
    state = types.SimpleNamespace(step=250)
    with pytest.raises(UserError, match=r"mistakes/200.npy is missing: .* --step=200"):
        mining.mistakes_of_phase(config, state, None, tmp_path, 200)
    (tmp_path / "mistakes").mkdir()
    (tmp_path / "mistakes/200.npy").write_bytes(content)
    with pytest.raises(UserError, match=r"mistakes/200.npy is damaged .* --step=200"):
        mining.mistakes_of_phase(config, state, None, tmp_path, 200)
    kept = np.int32([[0, 1, 2], [3, 4, 5]])
    np.save(tmp_path / "mistakes/200.npy", kept)
    found = mining.mistakes_of_phase(config, state, None, tmp_path, 200)
    np.testing.assert_array_equal(found, kept)
