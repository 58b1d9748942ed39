"""Kills a run again and again; it must end in the bits of a run that nobody killed.

    python experiments/soak.py --out=/tmp/soak

An autoencoder is trained on drawn surfaces by `python -m defect_jax.main`, which a SIGKILL ends at
random moments, checkpoints half written included, and which is started again with the same flags
each time. Writes soak.json to the folder: what became of each start, and how the result compares.
Allow a quarter of an hour for its 20 kills on two cores; most of it goes into starting.

With --processes=2 the run has two processes on this machine. One of them is killed; the other must
end with an error by itself, and both are started again. Where one is killed before the two have
met, the other waits for a minute.
"""

import argparse
import json
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from typing import Any

import jax
import numpy as np

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from defect_jax import checkpoint, report  # noqa: E402

SETTINGS = (
    "data.category=gear",
    "data.image_size=(64, 64)",
    "data.synthetic.num_train=40",
    "data.synthetic.num_test_good=2",
    "data.synthetic.num_test_per_defect=1",
    "method.model=ssim_net",
    "method.code_dim=16",
    "train.batch_size=8",
    "train.log_every=7",
    "train.checkpoint_every=5",  # so often that many are killed half written
    "eval.bootstrap_samples=1",
)
MEASURED = ("images_per_second", "images_per_second_per_device", "peak_memory_gib")


def start(options: argparse.Namespace, workdir: pathlib.Path) -> list[subprocess.Popen]:
    """Starts the processes of a run, each with a log of its own beside its folder."""
    command = [sys.executable, "-m", "defect_jax.main", f"--workdir={workdir}"]
    command += ["--config=configs/quickstart.py", f"--config.train.num_steps={options.num_steps}"]
    command += [f"--config.{setting}" for setting in SETTINGS]
    if options.processes > 1:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        command += [f"--coordinator_address=localhost:{port}"]
        command += [f"--num_processes={options.processes}", "--process_timeout=60"]
    processes = []
    for number in range(options.processes):
        own = [f"--process_id={number}"] if options.processes > 1 else []
        with workdir.with_suffix(f".{number}.log").open("a") as log:
            processes.append(
                subprocess.Popen([*command, *own], cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
            )
    return processes


def finish(processes: list[subprocess.Popen], timeout: float) -> list[int | None]:
    """The exit status of each process, None of those that are killed as they outlive the time."""
    ends = time.monotonic() + timeout
    codes: list[int | None] = []
    for process in processes:
        try:
            codes.append(process.wait(max(0.1, ends - time.monotonic())))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            codes.append(None)
    return codes


def soak(options: argparse.Namespace, workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Starts a run as often as it takes, and kills it at moments that the seed draws."""
    rng = random.Random(options.seed)
    starts: list[dict[str, Any]] = []
    while True:
        processes = start(options, workdir)
        began = time.monotonic()
        row: dict[str, Any] = {"start": len(starts), "from_step": last_step(workdir)}
        starts.append(row)
        if len(starts) > options.kills:
            row["codes"] = finish(processes, options.timeout)
            return starts
        # One in four dies while it starts; the others when they have come on a little.
        if rng.random() < 0.75:
            wait_for_progress(processes, workdir, row["from_step"], options.timeout)
        time.sleep(rng.uniform(0.0, options.seconds))
        victim = rng.randrange(len(processes))
        if processes[victim].poll() is not None:
            raise SystemExit(f"the run ended before kill {len(starts)}: give more --num_steps")
        processes[victim].send_signal(signal.SIGKILL)
        processes[victim].wait()
        killed = time.monotonic()
        row |= {"killed_after": killed - began, "victim": victim, "half_written": half(workdir)}
        row["codes"] = finish(processes, options.timeout)
        row["others_ended_after"] = time.monotonic() - killed
        row["to_step"] = last_step(workdir)
        print_row(row)


def wait_for_progress(
    processes: list[subprocess.Popen], workdir: pathlib.Path, step: int, timeout: float
) -> None:
    """Until a checkpoint after `step` is written, or the run has ended."""
    ends = time.monotonic() + timeout
    while last_step(workdir) <= step and time.monotonic() < ends:
        if any(process.poll() is not None for process in processes):
            return
        time.sleep(0.02)


def last_step(workdir: pathlib.Path) -> int:
    names = [path.name for path in workdir.glob("checkpoints/*")]
    return max((int(name) for name in names if name.isdigit()), default=0)


def half(workdir: pathlib.Path) -> bool:
    """Whether a checkpoint is half written."""
    return any(not path.name.isdigit() for path in workdir.glob("checkpoints/*"))


def print_row(row: dict[str, Any]) -> None:
    print(
        f"{row['start']:3}  {row['from_step']:6} -> {row['to_step']:6}  "
        f"{row['killed_after']:6.1f} s  process {row['victim']}  "
        f"{'half a checkpoint' if row['half_written'] else '':18}  codes {row['codes']}",
        flush=True,
    )


def compare(killed: pathlib.Path, whole: pathlib.Path) -> dict[str, Any]:
    """Whether two runs ended alike."""
    states = [checkpoint.load_run(folder).state for folder in (killed, whole)]
    leaves = [jax.tree.leaves(state) for state in states]
    same = [np.array_equal(a, b) for a, b in zip(*leaves, strict=True)]
    logs = [
        [
            {name: value for name, value in row.items() if name not in MEASURED}
            for row in report.read_metrics(folder / "metrics.jsonl")
        ]
        for folder in (killed, whole)
    ]
    return {
        "last_step": int(states[0].step),
        "leaves": len(same),
        "same_leaves": sum(same),
        "lines": len(logs[1]),
        "same_log": logs[0] == logs[1],
        "half_written_left": half(killed),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--num_steps", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=3.0, help="a kill comes within so many")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--timeout", type=float, default=600.0, help="for what must end by itself")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    killed, whole = options.out / "killed", options.out / "whole"
    for folder in (killed, whole):
        shutil.rmtree(folder, ignore_errors=True)
        for log in options.out.glob(f"{folder.name}.*.log"):
            log.unlink()
    codes = finish(start(options, whole), options.timeout)
    if any(codes):
        raise SystemExit(f"the run that is left alone failed: see {whole}.0.log")
    starts = soak(options, killed)
    results = {"cores": os.cpu_count(), "starts": starts} | compare(killed, whole)
    checkpoint.write_json(options.out / "soak.json", results)
    print(json.dumps({name: value for name, value in results.items() if name != "starts"}))
    if results["same_leaves"] < results["leaves"] or not results["same_log"]:
        raise SystemExit("the runs did not end alike")


if __name__ == "__main__":
    main()
