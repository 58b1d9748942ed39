"""A grid of configs x categories x seeds, run cell by cell, and a table of what came out.

    python experiments/sweep.py --configs=mvtec_autoencoder,bsdata_unet --categories=all \
        --seeds=0,1,2 --out=runs/sweep --set data.root=/path/to/images --set train.num_steps=1000

A cell is one run, in `<out>/<config>/<category>/<seed>`. A sweep that was stopped goes on where it
was: finished cells are skipped, begun ones resume. A cell that fails leaves an `error.txt` in its
folder, the others go on, and the exit status is 1. Several sweeps may work on one folder at the
same time, each leaving alone what another is at; also on several hosts, where they share a file
system that shares its locks (see experiments/pods/README.md). On SIGTERM the exit status is 75,
"try again". `<out>/cells.csv` has a row for each finished cell there, `<out>/table.md` the mean and
the sample standard deviation over seeds.

`--jobs=N` runs cells in N processes, which share the devices and their memory. Where the sweep is
killed, they still finish the cells they are at.
"""

import argparse
import contextlib
import csv
import difflib
import fcntl
import itertools
import multiprocessing
import os
import pathlib
import platform
import re
import runpy
import statistics
import sys
import time
import traceback
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

import jax
import ml_collections
from absl import flags, logging
from ml_collections import config_flags

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from defect_jax import checkpoint, interruption, report, runtime
from defect_jax.data import datasets
from defect_jax.errors import UserError
from defect_jax.methods import make_method
from defect_jax.run import run
from defect_jax.train import phase_ends

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
# The figures of a cell that vary from seed to seed: name -> heading and format in the table.
FIGURES = {
    "image_auroc": ("image AUROC", ".3f"),
    "image_ap": ("image AP", ".3f"),
    "pixel_auroc": ("pixel AUROC", ".3f"),
    "pixel_ap": ("pixel AP", ".3f"),
    "aupro_30": ("AUPRO 0.3", ".3f"),
    "aupro_05": ("AUPRO 0.05", ".3f"),
    "images_per_second": ("images/s", ".0f"),
}
COLUMNS = ["config", "category", "seed", "step", "parameters", *FIGURES]
_OWN_FIELDS = {"seed": "--seeds", "data.category": "--categories"}
Row = dict[str, Any]


class Cell(NamedTuple):
    """One run of the grid: what its lines begin with, its folders and its config."""

    title: str
    workdir: pathlib.Path
    lock: pathlib.Path
    config: ml_collections.ConfigDict


class Outcome(NamedTuple):
    """What became of a cell: 'done', 'skipped', 'left' or 'failed', its line's text, seconds."""

    cell: Cell
    status: str
    text: str
    seconds: float


# ---------------------------------------------------------------------------------- the grid


def load_config(name: str) -> ml_collections.ConfigDict:
    """The config of a file, or of a name in configs/.

    Raises:
        UserError: no such file, or one that makes no config.
    """
    path = pathlib.Path(name) if name.endswith(".py") else CONFIGS / f"{name}.py"
    if not path.is_file():
        known = sorted(path.stem for path in CONFIGS.glob("*.py"))
        near = difflib.get_close_matches(name, known) or known
        raise UserError(f"no config {path}: did you mean {', '.join(near)}?")
    get_config = runpy.run_path(str(path)).get("get_config")
    if get_config is None:
        raise UserError(f"{path} is no config: it has no get_config")
    return get_config()


def override(config: ml_collections.ConfigDict, assignment: str, name: str) -> None:
    """Sets a field by 'field=value', parsed as the command line of `defect_jax.main` does.

    Raises:
        UserError: an unknown field, a value of another type, or a field that is the grid's own.
    """
    field, equals, _ = assignment.partition("=")
    if not equals:
        raise UserError(f"--set {assignment}: write --set field=value")
    if field in _OWN_FIELDS:
        raise UserError(f"--set {assignment}: give {_OWN_FIELDS[field]} instead")
    known = dict(_fields(config))
    if field not in known:
        near = difflib.get_close_matches(field, known, 5, 0.5) or known
        raise UserError(f"--set {assignment}: {name} has no such field; near: {', '.join(near)}")
    values = flags.FlagValues()
    arguments = ["sweep", f"--set.{assignment}"]
    config_flags.DEFINE_config_dict("set", config, flag_values=values, sys_argv=arguments)
    try:
        values(arguments)
    except flags.Error as error:
        kind = type(known[field]).__name__
        raise UserError(
            f"--set {assignment}: not of type {kind}, as {name} has {field}={known[field]!r}"
        ) from error


def _fields(config: ml_collections.ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, ml_collections.ConfigDict):
            yield from _fields(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def make_cells(
    configs: list[str],
    categories: list[str],
    seeds: list[int],
    overrides: list[str],
    out: pathlib.Path,
) -> list[Cell]:
    """The cells of the grid; every row of the table has its first seed before any has a second.

    Raises:
        UserError: see `load_config` and `override`; two configs of one name; one model over all
            categories; or, for all categories, no images.
    """
    loaded: dict[str, ml_collections.ConfigDict] = {}
    for name in configs:
        stem = pathlib.Path(name).stem
        if stem in loaded:
            raise UserError(f"--configs has two of the name '{stem}': rename one of the files")
        loaded[stem] = load_config(name)
        for assignment in overrides:
            override(loaded[stem], assignment, stem)
    for category in categories:
        if pathlib.PurePath(category).name != category:
            raise UserError(f"--categories has '{category}': give names, as folders have them")
    grid = []
    for seed, (name, config) in itertools.product(seeds, loaded.items()):
        if config.data.one_model:
            raise UserError(
                f"{name} has data.one_model=True, and a cell is a run of one category: run it with "
                "python -m defect_jax.main"
            )
        config.data.category = "all"
        for category in datasets.categories(config) if "all" in categories else categories:
            one = config.copy_and_resolve_references()
            one.seed, one.data.category = seed, category
            grid.append((name, one))
    return [
        _cell(f"[{number}/{len(grid)}]", name, config, out)
        for number, (name, config) in enumerate(grid, 1)
    ]


def _cell(number: str, name: str, config: ml_collections.ConfigDict, out: pathlib.Path) -> Cell:
    category, seed = config.data.category, config.seed
    place = pathlib.Path(name, category, str(seed))
    title = f"{number} {name} {category} seed {seed}"
    return Cell(title, out / place, out / ".locks" / place, config)


# ---------------------------------------------------------------------------------- a cell


@contextlib.contextmanager
def locked(path: pathlib.Path) -> Iterator[str]:
    """Holds a lock that dies with this process, or with its host; yields '' or else who has it.

    What the file says is for people alone: it stays when its writer dies, and the lock does not.

    Raises:
        UserError: the file system has no locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            holder = ""
            file.truncate(0)
            print(_this_process(), file=file, flush=True)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
        except OSError as error:
            raise UserError(
                f"{path} cannot be locked ({error.strerror}): mount its file system with locks, or "
                "choose another --out"
            ) from error
        yield holder


def _this_process() -> str:
    """A name that no other process has, on any host."""
    return f"process {os.getpid()} on {platform.node()}"


def run_cell(cell: Cell) -> Outcome:
    """Runs a cell, or goes on with it, unless it is finished or another process is at it."""
    start = time.monotonic()
    with locked(cell.lock) as holder:
        if holder:
            return Outcome(cell, "left", f"left to {holder}, which is at it", 0.0)
        try:
            check_configs(cell)
            if is_finished(cell.workdir, cell.config):
                status = "skipped"
            else:
                status = "done"
                print(f"{cell.title}: starts", flush=True)
                run(cell.config, cell.workdir, "train")
            text = _figures_text(read_cell(cell.workdir))
        except Exception as error:
            reason = str(error) if isinstance(error, UserError) else _first_line(error)
            return failed(cell, reason, traceback.format_exc(), time.monotonic() - start)
        (cell.workdir / "error.txt").unlink(missing_ok=True)
    text = f"skipped, finished before: {text}" if status == "skipped" else text
    return Outcome(cell, status, text, time.monotonic() - start)


def failed(cell: Cell, reason: str, details: str, seconds: float) -> Outcome:
    """The outcome of a cell that failed, which it writes to its folder."""
    cell.workdir.mkdir(parents=True, exist_ok=True)
    (cell.workdir / "error.txt").write_text(f"{reason}\n\n{details}")
    return Outcome(cell, "failed", f"failed: {reason}", seconds)


def check_configs(cell: Cell) -> None:
    """Raises UserError where the folders of this cell or its other seeds are of another config.

    A mean over runs of several configs would be one of none.
    """
    for path in sorted(cell.workdir.parent.glob("*/config.json")):
        stored = checkpoint.read_config(path.parent)
        config = cell.config.copy_and_resolve_references()
        if path.parent != cell.workdir:
            config.seed = stored.seed
        config.data.validation_files = stored.data.validation_files
        config.data.train_digest = stored.data.train_digest
        checkpoint.check_same_run(path.parent, config, stored)


def is_finished(workdir: pathlib.Path, config: ml_collections.ConfigDict) -> bool:
    """Whether a run's last step has been evaluated."""
    path = workdir / "eval/test/metrics.json"
    if not path.is_file():
        return False
    return checkpoint.read_json(path).get("step") == phase_ends(config, make_method(config))[-1]


def read_cell(workdir: pathlib.Path) -> Row:
    """The row of a finished cell in cells.csv; None for what the run leaves undefined."""
    measured = checkpoint.read_json(workdir / "eval/test/metrics.json")
    rates = [
        row["images_per_second"]
        for row in report.read_metrics(workdir / "metrics.jsonl")
        if "images_per_second" in row
    ]
    total = re.search(r"^Total: ([\d,]+)", (workdir / "parameters.txt").read_text(), re.MULTILINE)
    config, category, seed = workdir.parts[-3:]
    row = {name: measured.get(name) for name in FIGURES} | {
        "config": config,
        "category": category,
        "seed": int(seed),
        "step": measured["step"],
        "parameters": int(total[1].replace(",", "")) if total else None,
        "images_per_second": statistics.median(rates) if rates else None,
    }
    return {name: row[name] for name in COLUMNS}


def _figures_text(row: Row) -> str:
    shown = {"image AUROC": "image_auroc", "pixel AUROC": "pixel_auroc", "AUPRO": "aupro_30"}
    return "  ".join(f"{heading} {_mean([row[key]], '.2f')}" for heading, key in shown.items())


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]


# ---------------------------------------------------------------------------------- processes


def in_this_process(cells: list[Cell]) -> Iterator[Outcome]:
    for cell in cells:
        yield run_cell(cell)
        jax.clear_caches()  # compiled programs of one cell are of no use to the next


def in_workers(cells: list[Cell], jobs: int) -> Iterator[Outcome]:
    """Outcomes as they come; a process that dies fails its cell and is replaced."""
    waiting = cells[::-1]
    busy: dict[Connection, Cell] = {}

    def hand_out(worker: Connection) -> None:
        if waiting:
            busy[worker] = waiting.pop()
            worker.send(busy[worker])
        else:
            worker.close()

    for _ in range(min(jobs, len(cells))):
        hand_out(_start_worker())
    while busy:
        for worker in wait(list(busy)):
            assert isinstance(worker, Connection)
            cell = busy.pop(worker)
            try:
                outcome = worker.recv()
            except (EOFError, OSError):
                worker.close()
                reason = "the process that ran it died, perhaps for want of memory"
                outcome = failed(cell, reason, "", 0.0)
                worker = _start_worker()
            hand_out(worker)
            yield outcome


def _start_worker() -> Connection:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    context.Process(target=_serve, args=(there,)).start()
    there.close()
    return here


def _serve(connection: Connection) -> None:
    """Runs the cells that come, until none can."""
    set_up()
    with contextlib.suppress(EOFError, OSError):
        while True:
            connection.send(run_cell(connection.recv()))
            jax.clear_caches()


def share_devices(jobs: int) -> None:
    """Leaves the devices to worker processes, and of a GPU's memory an equal part to each."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", f"{0.9 / jobs:.3f}")
    jax.config.update("jax_platforms", "cpu")


def set_up() -> None:
    # Orbax and tfds tell their inner life at INFO, and what is raised anyway at ERROR.
    logging.set_verbosity(logging.FATAL)
    runtime.set_up()
    interruption.exit_on_signals()


# ---------------------------------------------------------------------------------- results


def read_cells(out: pathlib.Path) -> tuple[list[Row], list[str]]:
    """The rows of all finished cells under a folder, and what is wrong with others."""
    rows, problems = [], []
    for path in out.glob("*/*/*/eval/test/metrics.json"):
        workdir = path.parents[2]
        try:
            if is_finished(workdir, checkpoint.read_config(workdir)):
                rows.append(read_cell(workdir))
        except Exception as error:  # of one folder, which may be anything
            problems.append(f"{workdir} is not in the table: {_first_line(error)}")
    rows.sort(key=lambda row: (row["config"], row["category"], row["seed"]))
    return rows, problems


def make_table(rows: list[Row]) -> str:
    """A Markdown table of mean ± sample standard deviation over the seeds."""
    headings = [heading for heading, _ in FIGURES.values()]
    lines = [["config", "category", "seeds", "steps", "parameters", *headings]]
    lines += [["---", "---", *["---:"] * (len(lines[0]) - 2)]]
    for key, group in itertools.groupby(rows, lambda row: (row["config"], row["category"])):
        seeds = list(group)
        values = [_mean([seeds[0][name]], ",.0f") for name in ("step", "parameters")]
        for name, (_, form) in FIGURES.items():
            values.append(_mean([row[name] for row in seeds], form))
        lines.append([*key, str(len(seeds)), *values])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _mean(values: list[float | None], form: str) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "–"  # noqa: RUF001
    text = f"{statistics.fmean(known):{form}}"
    if len(known) > 1:
        text += f" ± {statistics.stdev(known):{form}}"
    return text if len(known) == len(values) else f"{text} ({len(known)} of {len(values)})"


def write_results(out: pathlib.Path) -> tuple[str, list[str]]:
    """Writes cells.csv and table.md; returns the table and what is wrong with other folders."""
    rows, problems = read_cells(out)
    table = make_table(rows)
    partial = out / f".partial.{_this_process()}"  # another sweep may be writing too
    with partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    partial.replace(out / "cells.csv")
    partial.write_text(table)
    partial.replace(out / "table.md")
    return table, problems


def sweep(cells: list[Cell], out: pathlib.Path, jobs: int) -> list[Outcome]:
    """Runs the cells, tells of each and writes the results after each."""
    out.mkdir(parents=True, exist_ok=True)
    outcomes: list[Outcome] = []
    for outcome in in_workers(cells, jobs) if jobs > 1 else in_this_process(cells):
        outcomes.append(outcome)
        line = f"{outcome.cell.title}: {outcome.text}"
        if outcome.status == "done":
            line += f"  {duration(outcome.seconds)}"
            write_results(out)
        ended = {outcome.cell.title for outcome in outcomes}
        rest = [cell for cell in cells if cell.title not in ended]
        print(line + time_left(outcomes, rest, jobs), flush=True)
    return outcomes


def time_left(outcomes: list[Outcome], rest: list[Cell], jobs: int) -> str:
    """An estimate by the mean of the cells done, those of the same config where there are any."""
    done = [outcome for outcome in outcomes if outcome.status == "done"]
    rest = [cell for cell in rest if not (cell.workdir / "eval/test/metrics.json").exists()]
    if not done or not rest:
        return ""
    seconds = 0.0
    for cell in rest:
        alike = [one for one in done if one.cell.workdir.parts[-3] == cell.workdir.parts[-3]]
        seconds += statistics.fmean(one.seconds for one in alike or done)
    return f"  (about {duration(seconds / min(jobs, len(rest)))} left)"


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def summary(outcomes: list[Outcome]) -> str:
    """How many cells ended how, and which failed or were left."""
    statuses = [outcome.status for outcome in outcomes]
    counts = [f"{statuses.count(status)} {status}" for status in dict.fromkeys(statuses)]
    lines = [f"{len(outcomes)} cells: {', '.join(counts)}"]
    for outcome in outcomes:
        if outcome.status in ("failed", "left"):
            lines.append(f"{outcome.cell.title}: {outcome.text}")
    return "\n".join(lines)


def _names(text: str) -> list[str]:
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise argparse.ArgumentTypeError("names nothing")
    return names


def _numbers(text: str) -> list[int]:
    return [int(name) for name in _names(text)]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--configs", type=_names, required=True, help="names in configs/, or files")
    parser.add_argument("--categories", type=_names, required=True, help="'all' for every one")
    parser.add_argument("--seeds", type=_numbers, default=[0], help="numbers, 0 by default")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="the folder of the runs")
    help_of_set = "a field of every config; may be given several times"
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help=help_of_set
    )
    parser.add_argument("--jobs", type=int, default=1, help="how many processes")
    options = parser.parse_args(arguments)
    if options.jobs < 1:
        parser.error("--jobs must be at least 1")
    set_up()
    if options.jobs > 1:
        share_devices(options.jobs)
    try:
        cells = make_cells(
            options.configs, options.categories, options.seeds, options.set, options.out
        )
        outcomes = sweep(cells, options.out, options.jobs)
        table, problems = write_results(options.out)
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")
    print("\n".join(["", table, *problems, summary(outcomes)]), flush=True)
    return int(any(outcome.status == "failed" for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
