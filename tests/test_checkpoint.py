"""Checkpoints and configs on disk: what is damaged is named, what is whole comes back."""

import contextlib
import hashlib
import os
import pathlib
import shutil
import tempfile

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
import pytest

from configs import quickstart
from defect_jax import checkpoint
from defect_jax.errors import UserError
from defect_jax.method import State

ROWS = [{"loss": 0.1, "gradient_norm": 1e-30}, {"skipped": 1.0}]


def make_state(step: int) -> State:
    kernel = np.float32(np.random.default_rng(step).normal(size=(64, 64)))
    rng = np.asarray(jax.random.PRNGKey(3))
    return State(np.int32(step), rng, {"kernel": kernel}, {}, (np.float32(1.5),), {})


def save(workdir: pathlib.Path, *steps: int, keep=(9, 0)) -> None:
    with checkpoint.manager(workdir, *keep) as checkpoints:
        for step in steps:
            checkpoint.save(checkpoints, make_state(step), ROWS)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    checkpoint.write_config(folder, quickstart.get_config())
    save(folder, 1, 2)
    return folder


@pytest.fixture
def workdir(saved, tmp_path):
    return pathlib.Path(shutil.copytree(saved, tmp_path / "run"))


@pytest.fixture(scope="module")
def abstract():
    return jax.eval_shape(lambda state: state, make_state(0))


def assert_holds(workdir, abstract, step):
    restored = checkpoint.restore(workdir, abstract, step)
    jax.tree.map(np.testing.assert_array_equal, restored, make_state(step))


def refusal(workdir, abstract, step=None) -> str:
    with pytest.raises(UserError) as caught:
        checkpoint.restore(workdir, abstract, step)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("step", [1, 2, None])
def test_what_was_saved_comes_back(saved, abstract, step):
    restored = checkpoint.restore(saved, abstract, step)
    jax.tree.map(np.testing.assert_array_equal, restored, make_state(step or 2))
    assert checkpoint.restore_rows(saved, step or 2) == ROWS


def test_a_missing_step_lists_those_that_are_there(saved, abstract):
    assert "no checkpoint of step 7: there are [1, 2]" in refusal(saved, abstract, 7)


def test_no_checkpoint_is_said_to_be_none_and_nothing_is_made(tmp_path, abstract):
    assert "holds no checkpoint" in refusal(tmp_path, abstract)
    assert not list(tmp_path.iterdir())


def flipped(content: bytes, at: float) -> bytes:
    place = int(at * len(content))
    return content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]


DAMAGES = {
    "cut": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "first byte": lambda content: flipped(content, 0.0),
    "in the middle": lambda content: flipped(content, 0.5),
    "near the end": lambda content: flipped(content, 0.99),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_whatever_file_is_damaged_the_state_is_right_or_the_checkpoint_named(
    workdir, abstract, damage
):
    named = set()
    for path in sorted((workdir / "checkpoints/2").rglob("*")):
        if path.is_file() and path.stat().st_size:
            whole = path.read_bytes()
            path.write_bytes(DAMAGES[damage](whole))
            try:
                assert_holds(workdir, abstract, 2)
            except UserError as error:
                assert "checkpoints/2 cannot be restored" in str(error), error
                assert str(error).endswith("--step=1 takes the one before")
                named.add(path.parent.name)
            path.write_bytes(whole)
    assert {"d", "record"} <= named  # the arrays, and what they must be
    assert_holds(workdir, abstract, 1)


def test_a_first_checkpoint_has_none_before(workdir, abstract):
    shutil.rmtree(workdir / "checkpoints/1/state")
    assert refusal(workdir, abstract, 1).endswith("there is none before it")


def test_a_changed_leaf_is_named(workdir, abstract):
    other = make_state(2).replace(params=make_state(1).params)
    with checkpoint.manager(workdir, 9, 0) as checkpoints:
        checkpoints.save(3, args=ocp.args.Composite(state=ocp.args.StandardSave(other)))
    folder = workdir / "checkpoints/3"
    shutil.copytree(workdir / "checkpoints/2/record", folder / "record")
    assert ".params['kernel'] was" in refusal(workdir, abstract, 3)


@pytest.mark.parametrize("leaf", [jnp.zeros((32, 64)), jnp.zeros((64, 64), jnp.int32)])
def test_a_checkpoint_of_another_shape_or_type_is_named(saved, abstract, leaf):
    kernel = {"kernel": jax.eval_shape(lambda: leaf)}
    message = refusal(saved, abstract.replace(params=kernel))
    assert f".params['kernel'] is float32[64, 64] there and {leaf.dtype}" in message


def test_a_checkpoint_of_another_tree_is_named(saved, abstract):
    message = refusal(saved, abstract.replace(params=abstract.params | {"bias": abstract.step}))
    assert ".params['bias'] is absent there" in message


def test_fields_that_became_free_leave_older_checkpoints_restorable():
    """The fingerprint stands in all of them, so it has to stay what it was."""
    config = ml_collections.ConfigDict(
        {"profile": True, "train": {"accumulate": 2, "log_every": 1}}
    )
    expected = hashlib.sha256(b'{"train.accumulate": 2}').hexdigest()
    assert checkpoint._fingerprint(config) == expected


def test_a_checkpoint_of_another_config_is_named(workdir, abstract):
    config = quickstart.get_config()
    config.train.log_every += 1  # on which no parameter depends
    checkpoint.write_config(workdir, config)
    assert_holds(workdir, abstract, 2)
    config.optimizer.learning_rate = 0.5
    checkpoint.write_config(workdir, config)
    assert "it is of another config" in refusal(workdir, abstract)


def test_a_checkpoint_without_a_record_is_named(workdir, abstract):
    with ocp.CheckpointManager(workdir / "checkpoints") as checkpoints:
        checkpoints.save(3, args=ocp.args.StandardSave(make_state(3)))
    assert "checkpoints/3 cannot be restored" in refusal(workdir, abstract)


@pytest.mark.parametrize(("keep", "left"), [((1, 0), [6]), ((2, 0), [5, 6]), ((1, 2), [2, 4, 6])])
def test_the_last_ones_and_every_nth_stay(tmp_path, keep, left):
    checkpoint.write_config(tmp_path, quickstart.get_config())
    save(tmp_path, *range(1, 7), keep=keep)
    assert checkpoint.steps(tmp_path) == left


def test_what_was_left_half_saved_is_removed_and_never_counted(workdir):
    half = workdir / "checkpoints/3.orbax-checkpoint-tmp"
    shutil.copytree(workdir / "checkpoints/2", half)
    assert checkpoint.steps(workdir) == [1, 2]
    save(workdir, 3)
    assert checkpoint.steps(workdir) == [1, 2, 3] and not half.exists()


def test_later_checkpoints_are_given_up_but_not_lost(workdir, abstract):
    for _ in range(2):
        with checkpoint.manager(workdir, 9, 0) as checkpoints:
            checkpoint.go_back(checkpoints, 1)
            assert checkpoints.latest_step() == 1
            checkpoint.save(checkpoints, make_state(2), [])
    given_up = sorted(path.name for path in (workdir / "given_up").iterdir())
    assert given_up == ["0_step_2", "1_step_2", "back_to.json"]
    assert checkpoint.went_back_to(workdir) == 1
    shutil.rmtree(workdir / "checkpoints/2")
    (workdir / "given_up/0_step_2").rename(workdir / "checkpoints/2")
    assert_holds(workdir, abstract, 2)


@contextlib.contextmanager
def read_only(folder: pathlib.Path):
    """Nothing can be written there, by root neither, who acts as another user meanwhile."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    if os.geteuid() == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(os.getuid())
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)


def assert_cannot_write(workdir, abstract, obstacle):
    with (
        pytest.raises(UserError, match=r"steps \[1, 2\]: see to the disk") as caught,
        obstacle,
        checkpoint.manager(workdir, 1, 0) as checkpoints,
    ):
        checkpoint.save(checkpoints, make_state(3), ROWS)
        checkpoint.wait(checkpoints, 3)
    assert "\n" not in str(caught.value) and str(workdir) in str(caught.value)
    assert checkpoint.steps(workdir) == [1, 2]
    assert_holds(workdir, abstract, 2)
    save(workdir, 3)
    assert_holds(workdir, abstract, 3)


def test_a_full_disk_is_told_and_the_last_checkpoint_is_whole(workdir, abstract, full_disk):
    assert_cannot_write(workdir, abstract, full_disk(8192))


def test_a_folder_that_cannot_be_written_is_told_and_can_be_read(saved, abstract):
    with tempfile.TemporaryDirectory() as folder:  # which another user may look into
        os.chmod(folder, 0o755)
        workdir = pathlib.Path(shutil.copytree(saved, f"{folder}/run"))
        with read_only(workdir):
            assert_holds(workdir, abstract, 2)
        assert_cannot_write(workdir, abstract, read_only(workdir))


def test_a_config_goes_through_its_file_unchanged(tmp_path):
    config = quickstart.get_config()
    config.data.validation_files = ("a.png", "b.png")
    checkpoint.write_config(tmp_path, config)
    assert checkpoint.read_config(tmp_path).to_dict() == config.to_dict()
