"""Several processes that share a run: the results of one, and an end where one is missing."""

import concurrent.futures
import csv
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time
from typing import NamedTuple

import jax
import numpy as np
import pytest
from jax._src.clusters import cloud_tpu_cluster, cluster

from defect_jax import checkpoint, distributed, report
from defect_jax.errors import UserError
from defect_jax.meeting import Group, meet

ROOT = pathlib.Path(__file__).parents[1]
NUM_STEPS, LOG_EVERY = 100, 5

# As `python -m defect_jax.main`, without the seconds that importing TensorFlow takes.
MAIN = """
import os, runpy, signal, sys
for name in ("tensorflow", "tensorflow_datasets", "tensorboard"):
    sys.modules[name] = None
{fault}
runpy.run_module("defect_jax.main", run_name="__main__")
"""

# What happens to a process by itself, at a moment that is known.
PATIENT = """
from defect_jax import train
train._SECONDS_A_CALL = 1e9
"""
ANNOUNCING = """
from clu import platform
class Unit(platform.LocalWorkUnit):
    def set_task_status(self, message):
        print("status:", message, file=sys.stderr)
    def create_artifact(self, kind, artifact, description):
        print("artifact:", kind, artifact, description, file=sys.stderr)
platform._work_unit = Unit()
"""
IN_TRAINING = """
from defect_jax import report, train
train._SECONDS_A_CALL = 0  # a step
add = report.Reporter.add
def add_and_die(self, step, *rest):
    if step == {step}:
        signal.raise_signal(signal.{signal})
    add(self, step, *rest)
report.Reporter.add = add_and_die
"""
# Adam divides each gradient by its own size: where that is no more than rounding, a step of full
# length goes where rounding says, and after 100 of them scores differ by a thousandth. SGD takes
# such gradients for as small as they are.
CONFIG = f"""
from configs import bsdata_unet

def get_config():
    config = bsdata_unet.get_config()
    config.method.update(width=4, depth=1, losses=("cross_entropy",))
    config.augment.lighting_probability = 0.0
    config.optimizer.update(name="sgd", learning_rate=0.3, warmup_steps=1, ema_decay=0.0)
    config.data.update(name="arrays", category="parts", image_size=(16, 32))
    config.train.update(batch_size=8, num_steps={NUM_STEPS}, checkpoint_every=25)
    config.train.log_every = {LOG_EVERY}
    config.eval.update(batch_size=3, bootstrap_samples=20, num_shown=3, max_flagged_pixels=20)
    return config
"""
CROPS = CONFIG.replace(
    "    return config",
    """
    config.data.update(fit="crop", image_size=(16, 16), defect_share=0.5, hard_share=0.5)
    config.train.update(num_steps=50, mine_every=20)
    config.optimizer.learning_rate = 1.0
    config.eval.update(tile=(64, 64), overlap=16)
    return config""",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    """Holds configs and their images: 13 to train on, some good, and 7 to test."""
    folder = tmp_path_factory.mktemp("distributed")
    (folder / "config.py").write_text(CONFIG)
    (folder / "crops.py").write_text(CROPS)
    images = np.random.default_rng(0).integers(60, 255, (20, 16, 32, 3)).astype(np.uint8)
    masks = np.zeros((20, 16, 32), np.uint8)
    masks[::2, 4:9, 10:20] = 1
    images[masks > 0] //= 3
    images[:, 11:14, 26:29] //= 3  # looks like a defect and is none
    arrays = {"train_image": images[:13], "train_mask": masks[:13]}
    arrays |= {"test_image": images[13:], "test_mask": masks[13:]}
    np.savez(folder / "parts.npz", **arrays)
    return folder


@pytest.fixture(scope="module")
def start(folder, quick_environment):
    """Starts a process of a run."""

    def start(
        run: str, devices: int = 1, *flags: str, fault: str = "", config="config", **variables: str
    ):
        command = [sys.executable, "-c", MAIN.format(fault=fault)]
        command += [f"--config={folder / config}.py", f"--workdir={folder / run}"]
        command += [f"--config.data.root={folder}/parts.npz", *flags]
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env=quick_environment(devices) | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def start_pair(start, run: str, first: str = "", second: str = "", config: str = "config"):
    port = free_port()
    return [
        start(run, 1, *flags_of(port, number), fault=fault, config=config)
        for number, fault in enumerate((first, second))
    ]


def flags_of(port: int, number: int) -> list[str]:
    address = f"--coordinator_address=127.0.0.1:{port}"
    return [address, "--num_processes=2", f"--process_id={number}"]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


class Ended(NamedTuple):
    status: int
    out: str
    err: str


def end(processes: list[subprocess.Popen]) -> list[Ended]:
    """How they end, which all do by themselves."""
    try:
        prints = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [Ended(one.returncode, *two) for one, two in zip(processes, prints, strict=True)]


def finish(processes: list[subprocess.Popen]) -> list[str]:
    """What they print, once they have ended well."""
    ended = end(processes)
    assert [one.status for one in ended] == [0] * len(ended), ended
    return [one.out for one in ended]


@pytest.fixture(scope="module")
def alone(folder, start) -> dict[int, pathlib.Path]:
    """Runs of one process: number of devices -> folder."""
    prints = finish([start(f"devices_{count}", count) for count in (1, 2, 8)])
    assert all("no TensorBoard events" in one for one in prints)
    return {count: folder / f"devices_{count}" for count in (1, 2, 8)}


@pytest.fixture(scope="module")
def pair(folder, start) -> dict:
    """A run of two processes of which one is asked to stop, then one is killed, then none.

    The last ones have two devices each, and hear of each other from the environment.
    """
    workdir = folder / "pair"
    asked = IN_TRAINING.format(step=31, signal="SIGTERM")
    ended = {"asked": end(start_pair(start, "pair", PATIENT + ANNOUNCING, asked + ANNOUNCING))}
    saved = checkpoint.steps(workdir)
    killed = IN_TRAINING.format(step=60, signal="SIGKILL")
    ended["killed"] = end(start_pair(start, "pair", PATIENT, killed))
    variables = {
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}",
        "JAX_NUM_PROCESSES": "2",
    }
    by_variables = [start("pair", 2, **variables, JAX_PROCESS_ID=str(one)) for one in range(2)]
    return {"workdir": workdir, "saved": saved, "prints": finish(by_variables)} | ended


def losses(workdir: pathlib.Path, num_steps: int = NUM_STEPS) -> list[float]:
    rows = report.read_metrics(workdir / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(LOG_EVERY, num_steps + 1, LOG_EVERY))
    return [row["loss"] for row in rows]


def metrics(workdir: pathlib.Path) -> dict:
    results = json.loads((workdir / "eval/test/metrics.json").read_text())
    return {key: value for key, value in checkpoint.flat(results).items() if key != "seconds"}


def assert_same_results(one: pathlib.Path, other: pathlib.Path) -> None:
    np.testing.assert_allclose(losses(one), losses(other), rtol=1e-4)
    assert metrics(one).keys() == metrics(other).keys()
    for key, value in metrics(one).items():
        if value is None:
            assert metrics(other)[key] is None
        else:
            np.testing.assert_allclose(metrics(other)[key], value, 1e-4, 1e-6, err_msg=key)


@pytest.mark.parametrize("count", [1, 8])
def test_the_number_of_devices_does_not_change_a_run(alone, count):
    assert_same_results(alone[2], alone[count])


def test_training_from_arrays_needs_no_tensorflow(alone):
    """Which MAIN keeps from being imported."""
    assert (alone[1] / "eval/test/overlays/sheet.png").is_file()


def test_two_processes_give_the_results_of_one(alone, pair):
    assert_same_results(alone[2], pair["workdir"])
    for name in ("images.csv", "defects.csv"):
        tables = [
            list(csv.DictReader((workdir / "eval/test" / name).open()))
            for workdir in (alone[2], pair["workdir"])
        ]
        names = [[row["filename"] for row in table] for table in tables]
        assert names[0] == names[1] and names[0] == sorted(names[0])


def test_two_processes_learn_from_the_mistakes_that_one_finds(folder, start):
    """Half of the crops lie around one of them, from the twentieth step on."""
    one = start("crops", 2, config="crops")
    finish([one, *start_pair(start, "crops_pair", config="crops")])
    alone, pair = folder / "crops", folder / "crops_pair"
    for step in (20, 40):
        mistakes = [np.load(run / "mistakes" / f"{step}.npy") for run in (alone, pair)]
        np.testing.assert_array_equal(*mistakes)
        assert len(set(mistakes[0][:, 0] % 2)) == 2  # each process finds some
    np.testing.assert_allclose(losses(alone, 50), losses(pair, 50), rtol=1e-4)


def test_two_processes_write_the_files_of_one(alone, pair):
    def files(workdir):
        return {str(path.relative_to(workdir)) for path in workdir.glob("*")} | {
            str(path.relative_to(workdir)) for path in workdir.glob("eval/**/*")
        }

    assert files(pair["workdir"]) == files(alone[2])


def test_one_process_loads_what_two_have_saved(alone, pair):
    for one, two in zip(
        jax.tree.leaves(checkpoint.load_run(alone[2]).state),
        jax.tree.leaves(checkpoint.load_run(pair["workdir"]).state),
        strict=True,
    ):
        np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-5)


def test_the_first_process_alone_prints(pair):
    assert "going on from step 50" in pair["prints"][0] and "dice" in pair["prints"][0]
    assert pair["prints"][1] == ""


def test_one_process_that_is_asked_to_stop_stops_both_within_two_steps(pair):
    """The other one would have taken all steps to the next line of the log in one call."""
    assert [one.status for one in pair["asked"]] == [75, 75]
    assert "stopped at step 32, saved: start again" in pair["asked"][0].out
    assert pair["saved"] == [25, 32]
    assert "going on from step 32" in pair["killed"][0].out


def test_the_first_process_alone_tells_the_platform(pair):
    first, second = (one.err for one in pair["asked"])
    artifact = f"artifact: ArtifactType.DIRECTORY {pair['workdir']} workdir"
    assert first.splitlines() == ["status: train, 2 processes", artifact] and second == ""


def test_a_process_whose_partner_is_killed_ends_with_an_error(pair):
    first, second = pair["killed"]
    assert second.status == -signal.SIGKILL and first.status not in (0, 75)
    assert "process 0" in first.err and "another process has ended" in first.err


START = """
import signal, sys
from defect_jax import distributed, interruption, watch
with distributed.ending_on_error():
    distributed.start((sys.argv[1], 2, int(sys.argv[2])), 60, {})
    interruption.exit_on_signals()
    distributed._STOP_SECONDS = 3
    watch._PATIENCE = watch._MOST_PATIENCE = watch._EXCHANGE_EVERY = watch._LOOK_EVERY = 0.2
    distributed.gather(None)
    # As in evaluation, of which every process does a part before they gather them.
    distributed.everywhere(lambda: distributed.is_first() and signal.raise_signal(signal.SIGTERM))
"""


@pytest.fixture(scope="module")
def start_only(quick_environment):
    """How two processes end that do no more than START, of so many devices each."""

    def start_only(*devices: int, **variables: str) -> list[Ended]:
        address = f"127.0.0.1:{free_port()}"
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", START, address, str(number)],
                cwd=ROOT,
                env=quick_environment(count) | variables,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for number, count in enumerate(devices)
        ]
        return end(processes)

    return start_only


def test_processes_with_different_numbers_of_devices_are_named(start_only):
    for number, one in enumerate(start_only(1, 2)):
        assert one.status == 1, one.err
        assert one.err.splitlines()[-1] == (
            f"error (process {number}): process 0: 1 devices; process 1: 2 devices: give every "
            "process as many"
        )


def test_processes_without_devices_are_told(start_only):
    for number, one in enumerate(start_only(1, 1, JAX_PLATFORMS="rocket")):
        assert one.status == 1, one.err
        expected = f"error (process {number}): JAX cannot use its device (Unable to initialize"
        assert one.err.splitlines()[-1].startswith(expected)


@pytest.fixture(scope="module")
def asked_outside_of_training(start_only):
    return start_only(1, 1)


def test_a_process_that_is_asked_to_stop_outside_of_training_ends(asked_outside_of_training):
    """And the other one, which waits for its part, does not wait for ever."""
    first, second = asked_outside_of_training
    assert first.status == 75 and "stopped by SIGTERM: start again" in first.out
    assert second.status == 1 and "process 1): another process has ended" in second.err


def test_a_process_that_waits_says_for_which(asked_outside_of_training):
    """Even one that is not the first, whose standard output goes nowhere."""
    told = asked_outside_of_training[1].err
    assert re.search(r"^host 1, waiting \d+ s for another host; host 0, busy$", told, re.M), told


def test_a_process_that_does_not_come_is_named(folder, start):
    flags = [*flags_of(free_port(), 0), "--process_timeout=2"]
    process = start("missing", 1, *flags)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1 and out == ""
    (line,) = err.strip().splitlines()
    assert line.startswith("error: process 1 of 2 did not come to 127.0.0.1:")
    assert not (folder / "missing").exists()


def meetings(settings: list[dict], size: int, timeout: int) -> list[str]:
    """What the first processes of a group hear when they meet."""
    address = f"127.0.0.1:{free_port()}"

    def hear(number: int) -> str:
        try:
            meet(Group(address, size, number), timeout, settings[number])
        except UserError as error:
            return str(error)
        return ""

    with concurrent.futures.ThreadPoolExecutor() as pool:
        return list(pool.map(hear, range(len(settings))))


def test_processes_that_are_alike_go_on():
    assert meetings([{"seed": 0, "size": (1, 2)}] * 3, 3, 30) == [""] * 3


def test_all_processes_hear_which_of_them_differ_and_how():
    settings = [{"seed": 0}, {"seed": 1, "extra": True}, {"seed": 0}, {"seed": 1, "extra": True}]
    (heard,) = set(meetings(settings, 4, 30))
    assert heard.startswith("processes 1, 3: extra is True, not absent, seed is 1, not 0")


def test_all_processes_that_are_there_hear_which_are_missing():
    (heard,) = set(meetings([{}, {}], 4, 1))
    assert "processes 2, 3 of 4 did not come" in heard


def test_a_missing_first_process_is_named():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("defect_jax.meeting._STRANGER_SECONDS", 0.0)
        with pytest.raises(UserError, match="process 0 of 2 did not answer at 127"):
            meet(Group(f"127.0.0.1:{free_port()}", 2, 1), 1, {})


def test_strangers_at_the_door_are_sent_away():
    address = f"127.0.0.1:{free_port()}"
    with concurrent.futures.ThreadPoolExecutor() as pool:
        meeting = pool.submit(meet, Group(address, 2, 0), 30, {})
        for words in (b"GET / HTTP/1.1\r\n\r\n", b""):
            knock(address, words)
        meet(Group(address, 2, 1), 30, {})
        meeting.result()


def knock(address: str, words: bytes) -> None:
    host, port = address.split(":")
    for _ in range(100):
        try:
            with socket.create_connection((host, int(port))) as connection:
                connection.sendall(words)
                return
        except ConnectionRefusedError:
            time.sleep(0.05)


SLURM = {
    "SLURM_JOB_ID": "4100",
    "SLURM_STEP_NODELIST": "node[07-08]",
    "SLURM_NTASKS": "2",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}
OPEN_MPI = {
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
OPEN_MPI_5 = {name: OPEN_MPI[name] for name in OPEN_MPI if "MCA" not in name}
TPU_ON_KUBERNETES = {"TPU_WORKER_HOSTNAMES": "127.0.0.1,127.0.0.2", "TPU_WORKER_ID": "1"}
VARIABLES = {
    "JAX_COORDINATOR_ADDRESS": "first:1234",
    "JAX_NUM_PROCESSES": "3",
    "JAX_PROCESS_ID": "2",
}


@pytest.mark.parametrize(
    ("environment", "group"),
    [
        ({}, None),
        (VARIABLES, Group("first:1234", 3, 2)),
        (SLURM | {"SLURM_STEP_TASKS_PER_NODE": "2"}, Group("node07:61444", 2, 1, [0])),
        (SLURM | {"SLURM_STEP_TASKS_PER_NODE": "1(x2)"}, Group("node07:61444", 2, 1)),
        (SLURM | {"JAX_COORDINATOR_ADDRESS": "a:1"}, Group("a:1", 2, 1, [0])),
        (SLURM | {"SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, None),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "1"}, None),  # a shell in an allocation of two
        ({key: SLURM[key] for key in SLURM if "STEP" not in key}, None),  # a batch script
        (OPEN_MPI, Group("10.96.0.1:62624", 4, 3, [1])),
        (OPEN_MPI | {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"}, None),
        (OPEN_MPI_5 | VARIABLES, Group("first:1234", 3, 2)),
        (OPEN_MPI_5 | {"OMPI_COMM_WORLD_SIZE": "1"}, None),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, None),
    ],
)
def test_the_environment_announces_several_processes_or_none(only_these, environment, group):
    only_these(environment)
    assert distributed.find_group((None, None, None), 5) == group


@pytest.fixture
def only_these(monkeypatch):
    """Makes these variables the only ones that speak of several processes."""

    def only_these(environment: dict[str, str]) -> None:
        kinds = ("SLURM", "OMPI", "JAX_COORD", "JAX_NUM", "JAX_PROC", "KUBER", "TPU", "MEGASCALE")
        for name in list(os.environ):
            if name.startswith(kinds):
                monkeypatch.delenv(name)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)

    return only_these


def test_open_mpi_that_does_not_say_where_the_first_process_is_asks_for_it(only_these):
    only_these(OPEN_MPI_5)
    with pytest.raises(UserError, match=r"started 4 processes.* set JAX_COORDINATOR_ADDRESS .*"):
        distributed.find_group((None, None, None), 5)


@pytest.mark.parametrize(
    ("environment", "endpoints", "group"),
    [
        # As Cloud TPU writes them, by its older and its newer custom.
        ({}, "a:0:127.0.0.1,b:1:127.0.0.2,c:2:127.0.0.3", Group("127.0.0.1:8482", 3, 2)),
        ({}, "127.0.0.1,127.0.0.2,127.0.0.3", Group("127.0.0.1:8482", 3, 2)),
        ({}, "127.0.0.1", None),  # a slice of one host
        ({"JAX_COORDINATOR_ADDRESS": "a:1"}, "h0,h1,h2", Group("a:1", 3, 2)),
        (TPU_ON_KUBERNETES, None, Group("127.0.0.1:8482", 2, 1)),
        # A shell in an allocation of SLURM, which speaks of others that are not of this run.
        (SLURM | {"SLURM_STEP_NUM_TASKS": "1"} | TPU_ON_KUBERNETES, None,
         Group("127.0.0.1:8482", 2, 1)),
    ],
)  # fmt: skip
def test_cloud_tpu_announces_the_hosts_of_a_slice(
    only_these, monkeypatch, environment, endpoints, group
):
    def get_metadata(key: str) -> tuple[str, int]:
        known = {"agent-worker-number": "2", "worker-network-endpoints": endpoints, "tpu-env": ""}
        return known[key], 200 if endpoints else 404

    only_these(environment)
    monkeypatch.setattr(cluster, "running_in_cloud_tpu_vm", True)
    monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
    monkeypatch.setattr(cloud_tpu_cluster, "get_metadata", get_metadata)
    assert distributed.find_group((None, None, None), 5) == group


def test_a_cluster_that_does_not_answer_is_named(only_these, monkeypatch):
    def get_metadata(key: str) -> tuple[str, int]:
        raise ConnectionError("no route to metadata.google.internal")

    only_these({})
    monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
    monkeypatch.setattr(cloud_tpu_cluster, "get_metadata", get_metadata)
    with pytest.raises(UserError, match=r"GceTpuCluster does not tell .*no route.*pass --coord"):
        distributed.find_group((None, None, None), 5)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("a:1", None, None), "--coordinator_address without --num_processes and --process_id"),
        ((None, 2, 0), "--num_processes and --process_id without --coordinator_address"),
        (("a", 2, 0), "expected host:port"),
        (("a:1", 2, 2), "numbered from 0 to 1"),
        (("a:1", 2, -1), "two whole numbers"),
    ],
)
def test_flags_that_make_no_sense_are_named(given, words):
    with pytest.raises(UserError, match=words):
        distributed.find_group(given, 5)


def test_one_process_gathers_from_itself_and_meets_nobody():
    distributed.start(("nowhere:1", 1, 0), 5, {})
    assert distributed.is_first() and not jax.distributed.is_initialized()
    assert distributed.everywhere(lambda: 3) == distributed.gather(3) == [3]
