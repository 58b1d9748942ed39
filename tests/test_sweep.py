"""The sweep: what it runs, what it leaves alone, and that its table is right."""

import contextlib
import csv
import errno
import importlib.util
import io
import json
import os
import pathlib
import platform
import shutil
import signal
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest

from configs import mvtec_autoencoder
from defect_jax import checkpoint
from defect_jax.methods import make_method

# A network that is compiled in a second.
SMALL = """
from configs import bsdata_unet

def get_config():
    config = bsdata_unet.get_config()
    config.data.name = "mvtec"
    config.method.update(width=4, depth=1, losses=("cross_entropy",))
    config.optimizer.warmup_steps = 0
    config.train.update(batch_size=4, num_steps=2, log_every=1)
    config.eval.update(batch_size=4, bootstrap_samples=2, num_shown=1, max_flagged_pixels=20)
    return config
"""
SCRIPT = pathlib.Path(__file__).parents[1] / "experiments/sweep.py"


@pytest.fixture(scope="module")
def module():
    spec = importlib.util.spec_from_file_location("sweep", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["sweep"] = module
    spec.loader.exec_module(module)
    module.prepare = module.set_up
    module.set_up = lambda: None  # it changes how this process allocates
    return module


@pytest.fixture(scope="module")
def arguments(mvtec_root, prepared, tmp_path_factory):
    """The command line of a small sweep into a folder, over images of which one has a mask."""
    folder = tmp_path_factory.mktemp("configs")
    path, root = folder / "small.py", folder / "root"
    path.write_text(SMALL)
    shutil.copytree(mvtec_root, root)
    (root / "part/train/spot").mkdir()
    for source, copy in (
        ("test/spot/000.png", "train/spot/100.png"),
        ("ground_truth/spot/000_mask.png", "ground_truth/spot/100_mask.png"),
    ):
        shutil.copy(root / "part" / source, root / "part" / copy)

    def arguments(out, *more, categories="part", seeds="0,1"):
        return [
            *(f"--configs={path}", f"--categories={categories}", f"--seeds={seeds}"),
            *(f"--out={out}", f"--set=data.root={root}", f"--set=data.cache_dir={prepared}"),
            *("--set", "data.image_size=32,64", *more),
        ]

    return arguments


def start(module, arguments):
    """The exit status and what was printed."""
    with contextlib.redirect_stdout(io.StringIO()) as output:
        status = module.main(arguments)
    return status, output.getvalue()


@pytest.fixture(scope="module")
def swept(module, arguments, tmp_path_factory):
    """A sweep of a category that is there and one that is not: its folder, status and output."""
    out = tmp_path_factory.mktemp("sweep")
    return out, *start(module, arguments(out, categories="absent,part"))


def workdir(out, seed, category="part"):
    return out / "small" / category / str(seed)


def rows_of(out):
    with (out / "cells.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_cell_is_a_run_and_a_row(swept):
    out, _, output = swept
    rows = rows_of(out)
    assert [(row["config"], row["category"], row["seed"]) for row in rows] == [
        ("small", "part", "0"),
        ("small", "part", "1"),
    ]
    for seed, row in enumerate(rows):
        config = checkpoint.read_config(workdir(out, seed))
        assert (config.seed, config.train.num_steps, config.data.image_size) == (seed, 2, (32, 64))
        measured = json.loads((workdir(out, seed) / "eval/test/metrics.json").read_text())
        assert float(row["pixel_auroc"]) == measured["pixel_auroc"] and row["step"] == "2"
        assert float(row["images_per_second"]) > 0
        state = checkpoint.abstract_state(config, make_method(config))
        assert int(row["parameters"]) == sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert rows[0]["pixel_auroc"] != rows[1]["pixel_auroc"]
    assert "[2/4] small part seed 0: starts" in output
    assert "[4/4] small part seed 1: image AUROC" in output
    assert (out / "table.md").read_text() in output


def test_a_cell_that_fails_is_reported_and_the_others_go_on(swept):
    out, status, output = swept
    assert status == 1
    reason = "unknown data.category 'absent': choose one of part"
    assert output.count(f"[1/4] small absent seed 0: failed: {reason}") == 2
    assert "4 cells: 2 failed, 2 done" in output
    written = (workdir(out, 0, "absent") / "error.txt").read_text()
    assert written.startswith(reason) and "Traceback" in written
    assert not (workdir(out, 0) / "error.txt").exists()


def written_times(out):
    return {path: path.stat().st_mtime_ns for path in workdir(out, 0).parent.rglob("*")}


def test_a_second_start_trains_nothing(module, arguments, swept, monkeypatch):
    monkeypatch.setattr(module, "run", None)  # calling it would fail the cell
    before = written_times(swept[0])
    status, output = start(module, arguments(swept[0]))
    assert status == 0 and output.count("skipped, finished before: image AUROC") == 2
    assert any("checkpoints" in path.parts for path in before)
    assert written_times(swept[0]) == before


def test_another_config_never_overwrites_and_never_joins(module, arguments, swept):
    """Neither the finished seeds nor a new one beside them; the old command mends it."""
    before = written_times(swept[0])
    status, output = start(module, arguments(swept[0], "--set=train.num_steps=3", seeds="0,2"))
    assert status == 1
    assert output.count("failed: ") == 4 and "train.num_steps (2 there, 3 now)" in output
    errors = [workdir(swept[0], seed) / "error.txt" for seed in (0, 2)]
    assert all("train.num_steps" in error.read_text() for error in errors)
    after = written_times(swept[0])
    assert {path: after[path] for path in before if path.is_file()} == {
        path: time for path, time in before.items() if path.is_file()
    }
    assert start(module, arguments(swept[0], seeds="0"))[0] == 0
    assert not errors[0].exists()


def test_a_cell_whose_evaluation_is_missing_is_not_finished(module, swept, tmp_path):
    config = checkpoint.read_config(workdir(swept[0], 0))
    assert module.is_finished(workdir(swept[0], 0), config)
    config.train.num_steps = 3
    assert not module.is_finished(workdir(swept[0], 0), config)
    assert not module.is_finished(tmp_path, config)


def test_a_locked_cell_is_left_alone(module, arguments, tmp_path):
    (tmp_path / ".locks/small/part").mkdir(parents=True)
    with module.locked(tmp_path / ".locks/small/part/0") as holder:
        assert not holder
        status, output = start(module, arguments(tmp_path, seeds="0"))
    assert status == 0 and "1 cells: 1 left" in output
    assert f"left to process {os.getpid()} on {platform.node()}, which is at it" in output
    assert not workdir(tmp_path, 0).exists()


def test_a_lock_dies_with_its_process_whatever_its_file_says(module, tmp_path):
    """The number of a process means nothing on another host, so it decides nothing."""
    path = tmp_path / "lock"
    hold = (
        "import fcntl, sys, time; file = open(sys.argv[1], 'w'); fcntl.flock(file, fcntl.LOCK_EX);"
        f"print('process {os.getpid()} on elsewhere', file=file, flush=True);"
        "print('held', flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", hold, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        with module.locked(path) as holder:
            assert holder == f"process {os.getpid()} on elsewhere"
        process.kill()
    assert "elsewhere" in path.read_text()
    with module.locked(path) as holder:
        assert not holder and "elsewhere" not in path.read_text()


def test_a_file_system_without_locks_is_one_line(module, arguments, tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(module.fcntl, "flock", flock)
    with pytest.raises(SystemExit, match=r"error: .*/part/0 cannot be locked .*another --out"):
        module.main(arguments(tmp_path, seeds="0"))


def test_sigterm_asks_for_another_start(module, monkeypatch):
    monkeypatch.setattr(module.runtime, "set_up", lambda: None)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        module.prepare()
        with pytest.raises(SystemExit) as stopped:
            signal.raise_signal(signal.SIGTERM)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert stopped.value.code == 75


def test_processes_give_what_one_process_gives(arguments, swept, tmp_path):
    more = arguments(tmp_path, "--jobs=2", categories="absent,part", seeds="0")
    command = [sys.executable, str(SCRIPT), *more]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "1 failed" in done.stdout and "1 done" in done.stdout
    (ours,) = rows_of(tmp_path)
    theirs, _ = rows_of(swept[0])
    timed = {"images_per_second": None}
    assert ours | timed == theirs | timed and float(theirs["pixel_auroc"]) > 0


def test_a_process_that_dies_fails_its_cell_alone(module, monkeypatch, tmp_path):
    """Workers are threads here: the first dies of its cell, the others serve."""
    serve, targets = module._serve, []

    def die(connection):
        connection.recv()
        connection.close()

    def start_worker():
        here, there = module.multiprocessing.Pipe()
        targets.append(die if not targets else serve)
        threading.Thread(target=targets[-1], args=(there,)).start()
        return here

    monkeypatch.setattr(module, "_start_worker", start_worker)
    config = mvtec_autoencoder.get_config()
    cells = [
        module.Cell(str(n), tmp_path / str(n), tmp_path / ".locks" / str(n), config)
        for n in range(4)
    ]
    monkeypatch.setattr(
        module, "run_cell", lambda cell: module.Outcome(cell, "done", cell.title, 1.0)
    )
    outcomes = {outcome.cell.title: outcome for outcome in module.in_workers(cells, 2)}
    assert {title: outcome.status for title, outcome in outcomes.items()} == {
        "0": "failed", "1": "done", "2": "done", "3": "done",
    }  # fmt: skip
    assert "died" in (tmp_path / "0/error.txt").read_text()
    assert len(targets) == 3


def hand_written(out, category, seed, **figures):
    folder = workdir(out, seed, category)
    config = mvtec_autoencoder.get_config()
    config.seed, config.data.category = seed, category
    checkpoint.write_config(folder, config)
    measured = {"step": config.train.num_steps} | figures
    checkpoint.write_json(folder / "eval/test/metrics.json", measured)
    (folder / "parameters.txt").write_text("Total: 1,234 -- 4,936 bytes\n")
    rates = [f'{{"step": {n}, "images_per_second": {rate}}}' for n, rate in enumerate([9, 70, 80])]
    (folder / "metrics.jsonl").write_text('{"step": 9}\n' + "\n".join(rates) + "\n")


def test_the_table_is_mean_and_sample_deviation(module, tmp_path):
    image, pixel = np.random.default_rng(0).random((2, 3))
    for seed in range(3):
        hand_written(tmp_path, "screw", seed, image_auroc=image[seed], pixel_auroc=pixel[seed])
    hand_written(tmp_path, "cable", 7, image_auroc=None, pixel_auroc=0.25)
    hand_written(tmp_path, "cable", 8, step=5, image_auroc=0.5)  # not its last step
    (workdir(tmp_path, 9) / "eval/test").mkdir(parents=True)
    (workdir(tmp_path, 9) / "eval/test/metrics.json").write_text("{}")  # no run at all
    table, problems = module.write_results(tmp_path)
    heading, _, cable, screw = [
        [word.strip() for word in line.strip("| ").split("|")] for line in table.splitlines()
    ]
    cable, screw = (dict(zip(heading, line, strict=True)) for line in (cable, screw))
    for name, values in (("image AUROC", image), ("pixel AUROC", pixel)):
        assert screw[name] == f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"
    assert (screw["seeds"], screw["steps"], screw["parameters"]) == ("3", "2,000", "1,234")
    assert screw["images/s"] == "70 ± 0" and screw["AUPRO 0.3"] == "–"  # noqa: RUF001
    assert (cable["seeds"], cable["image AUROC"], cable["pixel AUROC"]) == ("1", "–", "0.250")  # noqa: RUF001
    assert [row["seed"] for row in rows_of(tmp_path)] == ["7", "0", "1", "2"]
    assert len(problems) == 1 and "part/9" in problems[0] and "no config.json" in problems[0]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--set", "train.num_stps=3"], r"train\.num_stps=3: .*near: train\.num_steps"),
        (["--set", "train.num_steps=many"], r"train\.num_steps=many: not of type int"),
        (["--set", "train.num_steps"], "write --set field=value"),
        (["--set", "train=3"], "no such field"),
        (["--set", "seed=3"], "give --seeds instead"),
        (["--set", "data.category=part"], "give --categories instead"),
        (["--configs=mvtec_autoencodr"], "no config .*did you mean mvtec_autoencoder"),
        (["--configs=quickstart,configs/quickstart.py"], "two of the name 'quickstart'"),
        (["--categories=../other"], "has '../other': give names"),
        (["--categories=all", "--set", "data.root=/nowhere"], "/nowhere"),
    ],
)  # fmt: skip
def test_a_bad_command_line_is_one_line(module, arguments, tmp_path, monkeypatch, more, message):
    monkeypatch.chdir(SCRIPT.parents[1])
    with pytest.raises(SystemExit, match=f"error: .*{message}") as error:
        module.main(arguments(tmp_path / "out", *more))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_all_categories_are_those_of_the_dataset(module, tmp_path):
    cells = module.make_cells(["quickstart"], ["all"], [3, 4], ["method.smoothing=1"], tmp_path)
    places = [cell.workdir.relative_to(tmp_path).as_posix() for cell in cells]
    assert "quickstart/gear/3" in places and len(places) == len(set(places)) >= 4
    half = len(places) // 2
    assert [place[:-1] + "4" for place in places[:half]] == places[half:]
    assert all(type(cell.config.method.smoothing) is float for cell in cells)


def test_the_time_left_is_that_of_like_cells(module, tmp_path):
    def cell(config, seed):
        return module.Cell("", tmp_path / config / "part" / str(seed), tmp_path, None)

    done = [
        module.Outcome(cell("slow", 0), "done", "", 4000.0),
        module.Outcome(cell("fast", 0), "done", "", 90.0),
        module.Outcome(cell("fast", 1), "skipped", "", 0.1),
    ]
    rest = [cell("slow", 1), cell("fast", 2)]
    assert module.time_left(done, rest, 1) == "  (about 1 h 8 min left)"
    assert module.time_left(done, rest[1:], 4) == "  (about 1 min 30 s left)"
    assert module.time_left(done[2:], rest, 1) == module.time_left(done, [], 1) == ""
