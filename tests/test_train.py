"""The loop: resuming, devices, and what stops a run."""

import contextlib
import gzip
import json
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from configs import bsdata_unet, mvtec_ganomaly, quickstart
from defect_jax import checkpoint, interruption, report, run, steps, watch
from defect_jax.data import datasets
from defect_jax.errors import UserError, naming_missing_fields
from defect_jax.method import Method, Phase, State
from defect_jax.methods import make_method
from defect_jax.train import _Call, _next_call, parallel_steps, phase_ends, shard, train


@pytest.fixture(scope="module")
def config(shrink):
    """A U-Net with BatchNorm, random views, an average of the parameters and two optimizers."""
    config = shrink(bsdata_unet.get_config())
    config.method.depth = 1
    config.optimizer.name = "muon"
    # Lines of the log and checkpoints fall on different steps.
    config.train.update(num_steps=6, checkpoint_every=2, log_every=3)
    return config


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    """A run trained without a stop: its folder and its last state."""
    workdir = tmp_path_factory.mktemp("finished")
    return workdir, train(run.open_run(config, workdir, "train"), workdir)


def assert_same_bits(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("cache", ["device", "memory", "none"])
def test_a_run_ends_in_the_same_bits_wherever_its_images_lie(config, finished, tmp_path, cache):
    config = config.copy_and_resolve_references()
    config.data.cache = cache
    assert_same_bits(train(run.open_run(config, tmp_path, "train"), tmp_path), finished[1])


def test_a_run_ends_in_the_same_bits_however_many_steps_a_call_takes(
    config, finished, tmp_path, monkeypatch
):
    monkeypatch.setattr("defect_jax.train._SECONDS_A_CALL", 1e9)
    assert_same_bits(train(run.open_run(config, tmp_path, "train"), tmp_path), finished[1])


def test_a_resumed_run_ends_in_the_same_bits(config, finished, tmp_path):
    opened = run.open_run(config, tmp_path, "train")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report.Reporter, "add", dying_after(4))
        with pytest.raises(RuntimeError, match="the machine died"):
            train(opened, tmp_path)
    assert checkpoint.steps(tmp_path)[-1] == 4
    resumed = train(run.open_run(config, tmp_path, "train"), tmp_path)
    assert_same_bits(resumed, finished[1])
    assert_same_log(tmp_path, finished[0])


def assert_same_log(a, b):
    """But for speed and memory; and TensorBoard shows what the log does, once."""
    measured = ("images_per_second", "images_per_second_per_device", "peak_memory_gib")
    logs = [report.read_metrics(folder / "metrics.jsonl") for folder in (a, b)]
    without = [[{k: v for k, v in row.items() if k not in measured} for row in log] for log in logs]
    assert without[0] == without[1]
    events = EventAccumulator(str(a)).Reload()
    for name in ("loss", "learning_rate"):
        shown = [(event.step, float(make_ndarray(event.tensor_proto))) for event in
                 events.Tensors(name)]  # fmt: skip
        assert shown == [(row["step"], np.float32(row[name])) for row in logs[0]]
    assert events.Tags()["images"] or "training" in events.Tags()["tensors"]


def dying_after(last_step: int):
    add = report.Reporter.add

    def add_or_die(self, step, metrics, count):
        if step > last_step:
            raise RuntimeError("the machine died")
        add(self, step, metrics, count)

    return add_or_die


def test_a_run_that_is_asked_to_stop_saves_and_goes_on_in_the_same_bits(
    config, finished, tmp_path, monkeypatch, capsys
):
    add, handler = report.Reporter.add, signal.getsignal(signal.SIGTERM)

    def add_and_ask(self, step, metrics, count):
        if step == 5 and resumed is None:
            signal.raise_signal(signal.SIGTERM)
        add(self, step, metrics, count)

    resumed = None
    monkeypatch.setattr(report.Reporter, "add", add_and_ask)
    monkeypatch.setattr("defect_jax.train._SECONDS_A_CALL", 0)  # a step
    with pytest.raises(SystemExit) as stopped:
        train(run.open_run(config, tmp_path, "train"), tmp_path)
    assert stopped.value.code == 75
    assert "stopped at step 5, saved" in capsys.readouterr().out
    assert checkpoint.steps(tmp_path) == [4, 5]
    assert signal.getsignal(signal.SIGTERM) == handler
    resumed = train(run.open_run(config, tmp_path, "train"), tmp_path)
    assert_same_bits(resumed, finished[1])
    assert_same_log(tmp_path, finished[0])


def test_a_run_says_that_the_disk_is_full_and_goes_on_once_it_is_not(
    config, finished, tmp_path, full_disk
):
    add, workdir = report.Reporter.add, tmp_path / "run"

    def fill_and_add(self, step, metrics, count):
        if step == 3:
            while checkpoint.steps(workdir) != [2]:
                time.sleep(0.01)
            stack.enter_context(full_disk(4096))
        add(self, step, metrics, count)

    opened = run.open_run(config, workdir, "train")
    message = r"no checkpoint can be written to .* whole are those of steps \[2\]: see to the disk"
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        patch.setattr(report.Reporter, "add", fill_and_add)
        with pytest.raises(UserError, match=message):
            train(opened, workdir)
    # Without what threads of this process still try to write.
    whole = shutil.copytree(workdir, tmp_path / "whole", ignore=shutil.ignore_patterns("*-tmp"))
    assert_same_bits(train(opened, whole), finished[1])
    assert_same_log(whole, finished[0])


def test_a_run_that_died_before_its_figure_draws_it(config, finished, tmp_path):
    workdir = shutil.copytree(finished[0], tmp_path / "run")
    (workdir / "training.png").unlink()
    assert_same_bits(train(run.open_run(config, workdir, "train"), workdir), finished[1])
    assert (workdir / "training.png").is_file()
    assert_same_log(workdir, finished[0])


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(config, finished, tmp_path):
    workdir = shutil.copytree(finished[0], tmp_path / "run")
    for path in (workdir / "checkpoints/6/state").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"checkpoints/6 cannot be restored: .*--step=4 takes"):
        train(run.open_run(config, workdir, "train"), workdir)
    resumed = train(run.open_run(config, workdir, "train"), workdir, step=4)
    assert_same_bits(resumed, finished[1])
    assert_same_log(workdir, finished[0])
    assert (workdir / "given_up/0_step_6").is_dir()


def test_a_run_goes_back_to_a_step_but_once(config, finished, tmp_path, capsys):
    """As a scheduler starts it again with the same flags, and it would never end."""
    workdir = shutil.copytree(finished[0], tmp_path / "run")
    opened = run.open_run(config, workdir, "train")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("defect_jax.train._SECONDS_A_CALL", 0)
        patch.setattr(interruption, "asked", lambda: True)
        with pytest.raises(SystemExit):
            train(opened, workdir, step=4)
    assert checkpoint.steps(workdir) == [4, 5]
    assert_same_bits(train(opened, workdir, step=4), finished[1])
    printed = capsys.readouterr().out
    assert "going on from step 4" in printed and "going on from step 5" in printed
    assert [path.name for path in (workdir / "given_up").glob("*step*")] == ["0_step_6"]


def test_a_finished_run_is_left_alone(config, finished, capsys):
    before = (finished[0] / "metrics.jsonl").read_bytes()
    state = train(run.open_run(config, finished[0], "train"), finished[0])
    assert_same_bits(state, finished[1])
    assert "already trained to step 6" in capsys.readouterr().out
    assert (finished[0] / "metrics.jsonl").read_bytes() == before


def test_a_finished_run_whose_checkpoints_are_gone_is_not_trained_over(config, finished, tmp_path):
    workdir = shutil.copytree(finished[0], tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints")
    before = (workdir / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match=r"a finished run whose checkpoints are gone: restore"):
        train(run.open_run(config, workdir, "train"), workdir)
    assert (workdir / "metrics.jsonl").read_bytes() == before


def test_a_damaged_line_of_the_log_is_named_and_half_a_last_one_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "lo')
    assert report.read_metrics(path) == [{"step": 1, "loss": 0.5}]
    for line in ("{}", "7", '{"step": "a"}', '{"step": 1e999}', "[" * 10**5, '{"step": 2, "lo'):
        path.write_text(f'{line}\n{{"step": 3}}\n')
        with pytest.raises(UserError, match=r"metrics.jsonl is damaged in line 1: restore"):
            report.read_metrics(path)


def test_a_run_folder_holds_what_others_rely_on(finished):
    workdir, _ = finished
    stored = json.loads((workdir / "config.json").read_text())
    assert stored["method"]["model"] == "unet" and stored["train"]["num_steps"] == 6
    rows = report.read_metrics(workdir / "metrics.jsonl")
    assert [row["step"] for row in rows] == [3, 6]
    assert {"loss", "learning_rate", "gradient_norm"} <= rows[0].keys()
    rates = [row["images_per_second"] for row in rows]
    assert [row["images_per_second_per_device"] * jax.device_count() for row in rows] == rates
    assert 0.01 < rows[0]["peak_memory_gib"] <= rows[1]["peak_memory_gib"]
    assert list(workdir.glob("events.out.tfevents.*"))
    assert "Conv_0/kernel" in (workdir / "parameters.txt").read_text()
    assert (workdir / "training.png").stat().st_size > 1000


def test_a_loaded_run_predicts_with_the_trained_parameters(config, finished):
    loaded = checkpoint.load_run(finished[0])
    assert_same_bits(loaded.state, finished[1])
    batch = checkpoint.example_batch(config)
    prediction = loaded.predict(batch)
    assert prediction["score_map"].shape == (1, 32, 64)
    np.testing.assert_allclose(prediction["score"], prediction["score_map"].max((1, 2)))
    earlier = checkpoint.load_run(finished[0], step=4).predict(batch)
    assert np.abs(earlier["score_map"] - prediction["score_map"]).max() > 0


def test_a_run_of_another_version_is_named(finished, tmp_path):
    config = checkpoint.read_config(finished[0])
    del config.method.losses
    checkpoint.write_config(tmp_path, config)
    with pytest.raises(UserError, match=r"another version of defect_jax.*no field 'losses'"):
        checkpoint.load_run(tmp_path)


def test_a_run_of_a_version_without_a_digest_is_named(config, finished, tmp_path):
    stored = checkpoint.read_config(finished[0])
    del stored.data.train_digest
    checkpoint.write_config(tmp_path, stored)
    with pytest.raises(UserError, match=r"another version of defect_jax.*no field 'train_digest'"):
        run.open_run(config, tmp_path, "evaluate")
    with pytest.raises(UserError, match=r"another version of defect_jax.*no field 'train_digest'"):
        datasets.check_same_images(stored, tmp_path)


def test_only_a_config_s_own_attribute_error_is_a_user_s():
    for arguments in ((), ("no attribute",), ("no", "attribute")):
        with pytest.raises(AttributeError), naming_missing_fields():
            raise AttributeError(*arguments)


def test_a_run_of_a_seed_that_no_new_one_takes_can_be_evaluated(config, finished, tmp_path):
    workdir = shutil.copytree(finished[0], tmp_path / "run")
    stored = checkpoint.read_config(workdir)
    stored.seed = 202611281830
    checkpoint.write_config(workdir, stored)
    config = config.copy_and_resolve_references()
    config.seed = stored.seed
    run.open_run(config, workdir, "evaluate")
    with pytest.raises(UserError, match=r"seed is 202611281830: it must be from 0 to 4294967295"):
        run.open_run(config, tmp_path / "new", "train")


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((1, 32, 64, 1), np.uint8),
        np.zeros((1, 32, 64, 3), np.float32),
        np.zeros((1, 64, 64, 3), np.uint8),
    ],
)
def test_a_loaded_run_names_images_that_it_was_not_made_for(finished, image):
    loaded = checkpoint.load_run(finished[0])
    with pytest.raises(UserError, match=r"takes images uint8 \[B, 32, 64, 3\], found"):
        loaded.predict({"image": image})


ONE_STEP = """
import sys
import jax, numpy as np
from defect_jax import checkpoint, run
from defect_jax.train import train
workdir, out = sys.argv[1:]
config = checkpoint.read_config(workdir)
state = train(run.open_run(config, __import__("pathlib").Path(out), "train"), out)
leaves = jax.tree.leaves((state.params, state.batch_stats, state.opt_state))
np.savez(out + "/leaves.npz", *[np.asarray(leaf) for leaf in leaves], devices=jax.device_count())
"""


def test_one_step_of_a_game_on_eight_devices_equals_one_step_on_one(
    shrink, tmp_path, quick_environment
):
    """GANomaly: two players, batch statistics in both. Of many steps see test_distributed.py."""
    config = shrink(mvtec_ganomaly.get_config())
    config.train.update(batch_size=8, num_steps=1)
    config.data.image_size = (32, 32)
    # Adam divides by the gradient's size, which blows rounding up where the gradient is zero.
    config.optimizer.update(name="sgd", schedule="constant", learning_rate=0.01, warmup_steps=0)
    results = []
    for devices in (1, 8):
        workdir = tmp_path / str(devices)
        workdir.mkdir()
        checkpoint.write_config(tmp_path / "config", config)
        command = [sys.executable, "-c", ONE_STEP, str(tmp_path / "config"), str(workdir)]
        subprocess.run(command, check=True, env=quick_environment(devices))
        results.append(np.load(workdir / "leaves.npz"))
    one, eight = results
    initial = jax.tree.leaves(initial_state(config).params)
    moved = [np.abs(one[f"arr_{n}"] - leaf).max() for n, leaf in enumerate(initial)]
    atol = 2e-4  # the smallest maps are normalised by eight numbers, which blows rounding up
    assert max(moved) > 100 * atol
    assert (one["devices"], eight["devices"]) == (1, 8)
    for name in set(one.files) - {"devices"}:
        np.testing.assert_allclose(eight[name], one[name], rtol=1e-5, atol=atol)


def initial_state(config):
    method = make_method(config)
    return jax.jit(method.init)(jax.random.PRNGKey(config.seed), checkpoint.example_batch(config))


def test_nan_stops_the_run_names_the_step_and_keeps_the_last_checkpoint(config, tmp_path):
    config = config.copy_and_resolve_references()
    opened = run.open_run(config, tmp_path, "train")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("defect_jax.train.make_method", poisoned_at(5))
        with pytest.raises(UserError, match=r"loss.* not finite at step 5.*checkpoint kept"):
            train(opened, tmp_path)
    assert checkpoint.steps(tmp_path)[-1] == 4
    assert np.isfinite(jax.tree.leaves(checkpoint.load_run(tmp_path).state.params)[0]).all()


@pytest.fixture
def skipping(config, tmp_path, monkeypatch):
    """Opens a run of a method that counts its steps, some of which have no finite loss."""

    def skipping(*bad: int):
        opened = config.copy_and_resolve_references()
        opened.train.update(on_nonfinite="skip", log_every=2, checkpoint_every=2, max_to_keep=9)
        monkeypatch.setattr("defect_jax.train.make_method", lambda config: nan_at(*bad))
        checkpoint.write_config(tmp_path, opened)
        return opened

    return skipping


def nan_at(*steps: int):
    def init(rng, batch):
        zero = jnp.zeros((), jnp.int32)
        return State(zero, rng, {"w": jnp.zeros(())}, {}, (), {})

    def train_step(state, batch):
        step = state.step + 1
        new = state.replace(step=step, params={"w": state.params["w"] + 1})
        return new, {"loss": jnp.where(jnp.isin(step, jnp.array(steps)), jnp.nan, step)}

    return Method(init, (Phase(train_step),), None)


def test_a_step_that_is_not_finite_can_be_skipped(skipping, tmp_path):
    state = train(skipping(3, 6), tmp_path)
    assert (state.step, state.params["w"]) == (6, 4)
    rows = report.read_metrics(tmp_path / "metrics.jsonl")
    assert [(row["loss"], row["skipped"]) for row in rows] == [(1.5, 0), (4, 1), (5, 1)]


def test_a_run_of_which_every_step_is_skipped_is_stopped(skipping, tmp_path):
    opened = skipping(3, 4)
    with pytest.raises(UserError, match=r"not finite at any of the 2 steps to 4: .* is stopped"):
        train(opened, tmp_path)
    assert checkpoint.steps(tmp_path) == [2]


def test_the_advice_on_a_step_that_is_not_finite_can_be_followed(config, tmp_path, monkeypatch):
    config = config.copy_and_resolve_references()
    monkeypatch.setattr("defect_jax.train.make_method", lambda config: nan_at(5))
    with pytest.raises(UserError) as stopped:
        train(run.open_run(config, tmp_path, "train"), tmp_path)
    assert "go on from there with train.on_nonfinite 'skip'" in str(stopped.value)
    assert "in a new workdir with a lower optimizer.learning_rate" in str(stopped.value)
    config.train.update(on_nonfinite="skip", accumulate=2)
    state = train(run.open_run(config, tmp_path, "train"), tmp_path)
    assert (state.step, state.params["w"]) == (6, 5)
    config.optimizer.learning_rate /= 2
    with pytest.raises(UserError, match=r"optimizer\.learning_rate .*use another workdir"):
        run.open_run(config, tmp_path, "train")


def poisoned_at(step: int):
    def poisoned_method(config):
        method = make_method(config)
        (phase,) = method.phases

        def train_step(state, batch):
            weight = jnp.where(state.step + 1 == step, jnp.nan, batch["weight"])
            return phase.train_step(state, batch | {"weight": weight})

        return method._replace(phases=(phase._replace(train_step=train_step),))

    return poisoned_method


def test_phases_end_one_after_another(config):
    phases = (Phase(None, num_steps=3), Phase(None), Phase(None, num_steps=1))
    assert phase_ends(config, Method(None, phases, None)) == [3, 9, 10]


def counting_method(config):
    """Counts examples in two phases; the first ends by adding 100, the second by adding 1000."""

    def init(rng, batch):
        zero = jnp.zeros((), jnp.int32)
        return State(zero, rng, {}, {}, (), {"count": jnp.zeros(())})

    def add(amount):
        return lambda state: state.replace(memory={"count": state.memory["count"] + amount})

    count = steps.accumulate_step(lambda memory, state, batch: {"count": batch["weight"].sum()})
    return Method(init, (Phase(count, 3, add(100)), Phase(count, 2, add(1000))), None)


@pytest.mark.parametrize("stop", [None, 2, 3, 4])
def test_each_phase_finishes_once_however_the_run_is_stopped(config, tmp_path, monkeypatch, stop):
    config = config.copy_and_resolve_references()
    config.train.checkpoint_every = 1
    monkeypatch.setattr("defect_jax.train.make_method", counting_method)
    checkpoint.write_config(tmp_path, config)
    if stop is not None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(report.Reporter, "add", dying_after(stop))
            with pytest.raises(RuntimeError, match="the machine died"):
                train(config, tmp_path)
    state = train(config, tmp_path)
    assert int(state.step) == 5
    assert state.memory["count"] == 5 * config.train.batch_size + 100 + 1000


@pytest.mark.parametrize("resident", [True, False])
def test_steps_take_the_examples_they_are_told_to(resident):
    def add(state, batch):
        state += (batch["x"] * batch["weight"]).sum()
        return state, {"total": state, "first_place": batch["index"][0]}

    take = parallel_steps(Phase(add), resident)
    devices = jax.local_device_count()
    data = {"x": np.arange(5.0)}
    if not resident:
        data = shard({"x": np.tile(np.arange(5.0), devices)})
    numbers = np.tile(np.array([[[0, 1], [2, 4], [3, 3]]], np.int32), (devices, 1, 1))
    state, metrics = take(np.float32(10), data, numbers, 7 + numbers, 2)
    assert state.shape == () and state == 10 + 1 + 6  # one copy, of the first device
    np.testing.assert_array_equal(metrics["total"], [11, 17, 0])
    np.testing.assert_array_equal(metrics["first_place"], [7, 9, 0])


def test_a_segmenter_trains_on_labelled_arrays_and_is_evaluated(config, tmp_path):
    """No training image is good, so none is held out for thresholds."""
    config = config.copy_and_resolve_references()
    images = np.random.default_rng(0).integers(0, 255, (5, 32, 64, 3)).astype(np.uint8)
    masks = (images[..., 0] > 200).astype(np.uint8)
    np.savez(
        tmp_path / "pits.npz",
        **{"train_image": images, "train_mask": masks, "test_image": images, "test_mask": masks},
    )
    config.data.update(name="arrays", root=str(tmp_path / "pits.npz"), category="all")
    results = run.run(config, tmp_path / "run", "train")
    assert 0 <= results["pits"]["iou"] <= 1 and "calibrated" not in results["pits"]


def test_rows_are_sharded_in_order():
    count = jax.local_device_count()
    rows = np.arange(2 * 3 * count).reshape(2, 3 * count)
    sharded = shard(rows, axis=1)
    assert sharded.shape == (count, 2, 3)
    np.testing.assert_array_equal(np.concatenate(list(sharded), axis=1), rows)


def test_a_profile_is_a_trace_of_training_steps(config, tmp_path):
    config = config.copy_and_resolve_references()
    config.profile = True
    config.train.log_every = config.train.checkpoint_every = 6
    train(run.open_run(config, tmp_path, "train"), tmp_path)
    (trace,) = tmp_path.glob("profile/plugins/profile/*/*.trace.json.gz")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    forward = [event for event in events if "while" in event.get("name", "")]
    assert forward and any("conv" in str(event.get("args", "")) for event in events)


def test_a_stalled_pipeline_is_told(monkeypatch, capsys):
    monkeypatch.setattr(watch, "_MOST_PATIENCE", 0.0)
    monkeypatch.setattr(watch, "_LOOK_EVERY", 0.01)
    monkeypatch.setattr(watch, "_patience", {})
    told = ""

    def calls():
        nonlocal told
        yield _Call(None, None, None, 7)
        while "step 127" not in told:
            time.sleep(0.01)
            told += capsys.readouterr().err
        yield _Call(None, None, None, 1)

    waiting = calls()
    assert _next_call(waiting, 120, None).num_steps == 7
    assert _next_call(waiting, 127, 5).num_steps == 1
    assert re.search(r"^step 127: waiting \d s for the next batch \(data pipeline\)$", told, re.M)


@pytest.mark.parametrize("batch_size", [0, 3])
def test_a_batch_that_the_devices_do_not_divide_is_an_error(config, tmp_path, batch_size):
    config = config.copy_and_resolve_references()
    config.train.batch_size = batch_size
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "device_count", lambda: 2)
        with pytest.raises(UserError, match=f"train.batch_size is {batch_size}.*multiple of 2"):
            train(config, tmp_path)


@pytest.mark.parametrize("accumulate", [0, 3])
def test_parts_that_do_not_divide_a_device_s_examples_are_an_error(config, tmp_path, accumulate):
    config = config.copy_and_resolve_references()
    config.train.accumulate = accumulate
    with pytest.raises(UserError, match=f"train.accumulate is {accumulate}, which does not divide"):
        run.run(config, tmp_path, "train")


def test_another_config_does_not_touch_a_run(config, finished):
    other = config.copy_and_resolve_references()
    other.optimizer.learning_rate = 0.5
    other.train.num_steps = 7
    with pytest.raises(UserError) as error:
        run.open_run(other, finished[0], "train")
    assert "optimizer.learning_rate (0.002 there, 0.5 now)" in str(error.value)
    assert "train.num_steps (6 there, 7 now)" in str(error.value)


def test_where_the_data_lies_is_no_difference_but_what_it_holds_is(config, finished, tmp_path):
    moved = config.copy_and_resolve_references()
    shutil.copytree(config.data.root, tmp_path / "moved")
    moved.data.root = str(tmp_path / "moved")
    moved.eval.num_shown = 5
    assert run.open_run(moved, finished[0], "train").data.root == moved.data.root
    frames = sorted((tmp_path / "moved/data").glob("*170000_*.jpg"))
    shutil.copy(frames[0], frames[1])
    shutil.copy(sorted((tmp_path / "moved/data").glob("*180000_*.jpg"))[0], frames[0])
    labelled = sorted((tmp_path / "moved/data").glob("*180000_*.jpg"))
    shutil.copy(frames[1], labelled[0])
    with pytest.raises(UserError, match=r"was trained on other images than those in .*/moved "):
        run.open_run(moved, finished[0], "train")


def test_checkpoints_without_a_config_are_not_taken_over(config, finished, tmp_path):
    shutil.copytree(finished[0] / "checkpoints", tmp_path / "checkpoints")
    with pytest.raises(UserError, match="checkpoints but no config"):
        run.open_run(config, tmp_path, "train")


def test_evaluating_an_empty_folder_says_so(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        run.open_run(quickstart.get_config(), tmp_path, "evaluate")
