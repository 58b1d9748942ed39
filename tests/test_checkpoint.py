"""Checkpoints and configs on disk: what is damaged is named, what is whole comes back."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from configs import quickstart
from defect_jax import checkpoint
from defect_jax.errors import UserError
from defect_jax.method import State


def make_state(step: int) -> State:
    kernel = np.float32(np.random.default_rng(step).normal(size=(64, 64)))
    rng = np.asarray(jax.random.PRNGKey(3))
    return State(np.int32(step), rng, {"kernel": kernel}, {}, (np.float32(1.5),), {})


@pytest.fixture
def workdir(tmp_path):
    with checkpoint.manager(tmp_path) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, args=ocp.args.StandardSave(make_state(step)))
    return tmp_path


@pytest.fixture(scope="module")
def abstract():
    return jax.eval_shape(lambda state: state, make_state(0))


@pytest.mark.parametrize("step", [1, 2, None])
def test_what_was_saved_comes_back(workdir, abstract, step):
    restored = checkpoint.restore(workdir, abstract, step)
    jax.tree.map(np.testing.assert_array_equal, restored, make_state(step or 2))


def test_a_missing_step_lists_those_that_are_there(workdir, abstract):
    with pytest.raises(UserError, match=r"no checkpoint of step 7: there are \[1, 2\]"):
        checkpoint.restore(workdir, abstract, 7)


def test_no_checkpoint_is_said_to_be_none(tmp_path, abstract):
    with pytest.raises(UserError, match="holds no checkpoint"):
        checkpoint.restore(tmp_path, abstract)


@pytest.mark.parametrize("damage", ["cut", "lose"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_whole(workdir, abstract, damage):
    folder = workdir / "checkpoints/2"
    if damage == "lose":
        shutil.rmtree(folder / "default")
    else:
        largest = max(folder.rglob("*"), key=lambda path: path.is_file() and path.stat().st_size)
        largest.write_bytes(largest.read_bytes()[:100])
    with pytest.raises(UserError, match=r"checkpoints/2 cannot be restored: .*the one before") as e:
        checkpoint.restore(workdir, abstract)
    assert "\n" not in str(e.value)
    jax.tree.map(
        np.testing.assert_array_equal, checkpoint.restore(workdir, abstract, 1), make_state(1)
    )


def test_a_checkpoint_of_another_shape_is_named(workdir, abstract):
    kernel = {"kernel": jax.ShapeDtypeStruct((32, 64), jnp.float32)}
    with pytest.raises(UserError, match="cannot be restored"):
        checkpoint.restore(workdir, abstract.replace(params=kernel))


def test_a_config_goes_through_its_file_unchanged(tmp_path):
    config = quickstart.get_config()
    config.data.validation_files = ("a.png", "b.png")
    checkpoint.write_config(tmp_path, config)
    assert checkpoint.read_config(tmp_path).to_dict() == config.to_dict()
