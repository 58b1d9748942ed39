"""What a training run says: a progress line, metrics.jsonl and TensorBoard."""

import contextlib
import json
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from defect_jax import devices, distributed, watch
from defect_jax.errors import UserError
from defect_jax.method import Metrics
from defect_jax.paths import is_remote, naming, to_writable_path, write_atomically

# Both are fields that a run cannot change once it has begun.
_BEGIN_ANEW = (
    "begin again in a new workdir with a lower optimizer.learning_rate or with optimizer.clip_norm"
)


class JsonlWriter:
    """Appends a line of JSON per step to `metrics.jsonl`.

    Lines of steps after `first_step`, which a run stopped between two checkpoints leaves behind,
    are removed first: the resumed run writes them again. Of several processes the first alone
    writes.

    Attributes:
        kept: the rows that were there and stay.
    """

    def __init__(self, path: pathlib.Path, first_step: int):
        self.kept = [row for row in read_metrics(path) if row["step"] <= first_step]
        self._path = path
        self._lines = [json.dumps(row) + "\n" for row in self.kept]
        if distributed.is_first():
            write_atomically(path, "".join(self._lines).encode())

    def write_scalars(self, step: int, scalars: dict[str, float]) -> None:
        if not distributed.is_first():
            return
        row = {"step": step} | {name: float(value) for name, value in scalars.items()}
        self._lines.append(json.dumps(row) + "\n")
        with naming(self._path):
            if is_remote(self._path):  # object stores cannot append
                self._path.write_text("".join(self._lines))
            else:
                with self._path.open("a") as file:
                    file.write(self._lines[-1])


def read_metrics(path: pathlib.Path) -> list[dict[str, float]]:
    """The rows of a `metrics.jsonl`, a half-written last one left out; [] where there is none.

    Raises:
        UserError: another line is damaged.
    """
    if not path.is_file():
        return []
    rows: list[dict[str, float]] = []
    lines = path.read_bytes().splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            rows.append(row | {"step": int(row["step"])})
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            if number < len(lines):
                raise UserError(
                    f"{path} is damaged in line {number}: restore the line or remove it"
                ) from error
    return rows


class _Events:
    """clu's writer, each row on the disk before the step's checkpoint is."""

    def __init__(self, writer: Any, workdir: Any):
        self._writer, self._workdir = writer, workdir

    def write_scalars(self, step: int, scalars: dict[str, float]) -> None:
        with naming(f"TensorBoard's file in {self._workdir}"):
            self._writer.write_scalars(step, scalars)
            self._writer.flush()

    def write_images(self, step: int, images: dict[str, np.ndarray]) -> None:
        with naming(f"TensorBoard's file in {self._workdir}"):
            self._writer.write_images(step, images)
            self._writer.flush()


class _NoEvents:
    def write_scalars(self, step: int, scalars: dict[str, float]) -> None:
        pass

    def write_images(self, step: int, images: dict[str, np.ndarray]) -> None:
        pass


@contextlib.contextmanager
def tensorboard(
    workdir: str | pathlib.Path, kept: list[dict[str, float]] | None = None
) -> Iterator[Any]:
    """clu's writer of TensorBoard events into `workdir`.

    A silent one without TensorBoard, and in all processes but the first.

    Args:
        workdir: the run's folder.
        kept: rows of `metrics.jsonl` to begin anew with: events that are there are removed, as
            they may go further than the run's checkpoint. None to leave them and add to them.
    """
    if not distributed.is_first():
        yield _NoEvents()
        return
    try:
        # First, since clu imports TensorFlow too, with all that it prints.
        from defect_jax.data import tensorflow_quietly  # noqa: F401, I001
        from clu import metric_writers
    except ImportError as error:
        print(f"no TensorBoard events: {error}", flush=True)
        yield _NoEvents()
        return
    if kept is not None:
        for path in to_writable_path(workdir).glob("events.out.tfevents.*"):
            path.unlink()
    with naming(f"TensorBoard's file in {workdir}"):
        writer = metric_writers.SummaryWriter(str(workdir))
    events = _Events(writer, workdir)
    for row in kept or []:
        events.write_scalars(int(row["step"]), {k: v for k, v in row.items() if k != "step"})
    try:
        yield events
    finally:
        with contextlib.suppress(Exception):  # what could not be written has been told
            writer.close()


@contextlib.contextmanager
def trace(wanted: bool, workdir: pathlib.Path) -> Iterator[Callable[[Any], Any]]:
    """Writes a trace of what is computed inside to `<workdir>/profile`, where it is wanted.

    Yields:
        a function that gives back its argument, where a trace is wanted once it is computed.
    """
    if not wanted:
        yield lambda results: results
        return
    with jax.profiler.trace(str(workdir / "profile")):
        yield jax.block_until_ready
    print(f"trace: {workdir / 'profile'}, for TensorBoard's profile plugin or Perfetto", flush=True)


class Reporter:
    """Gathers the metrics of every step and reports their means.

    Metrics stay on the device until they are reported, so that steps are dispatched ahead. They and
    `images_per_second` are of all processes; `peak_memory_gib` is of the one that writes.

    Attributes:
        rows: the metrics of the steps since the last line of the log, as far as `check` has seen
            them. A step that was skipped has `skipped` and nothing else.
    """

    def __init__(
        self,
        writers: list[Any],
        batch_size: int,
        num_steps: int,
        log_every: int,
        rows: list[dict[str, float]],
    ):
        self.rows = rows
        self._seconds_per_step: float | None = None  # of the steps last waited for
        self._writers = writers
        self._batch_size = batch_size
        self._num_steps = num_steps
        self._log_every = log_every
        self._pending: list[tuple[Metrics, int]] = []
        self._step = 0  # the last one that was dispatched
        self._running = 0  # steps that were dispatched and not waited for
        self._finished = 0.0  # when those were done; 0 before the first steps of a phase
        self._since = 0.0
        self._timed_steps = 0

    def start_phase(self) -> None:
        """Forgets how long steps take, as those that follow are others."""
        self._seconds_per_step, self._finished, self._timed_steps = None, 0.0, 0

    def steps_within(self, seconds: float) -> int:
        """How many steps take so long, by the last ones; 1 while that is unknown."""
        if not self._seconds_per_step:
            return 1
        return max(1, int(seconds / self._seconds_per_step))

    def add(self, step: int, metrics: Metrics, count: int) -> None:
        """Takes the metrics [K] of the `count` steps that brought the state to `step`."""
        # Lets the host run one call ahead and no more: a queue of calls is a queue of states.
        self._wait()
        self._pending.append((metrics, count))
        self._step, self._running = step, count
        if not self._finished:
            # A phase's first step compiles for seconds or minutes; rates are measured after it.
            with watch.waiting(step, watch.DEVICES):
                jax.block_until_ready(metrics)
            self._running, self._finished = 0, time.monotonic()
            self._since = self._finished
        else:
            self._timed_steps += count
        if step % self._log_every == 0 or step == self._num_steps:
            self.check(step)
            self._write(step)

    def _wait(self) -> None:
        if self._running:
            with watch.waiting(self._step, watch.DEVICES):
                jax.block_until_ready(self._pending[-1])
            before, self._finished = self._finished, time.monotonic()
            self._seconds_per_step = (self._finished - before) / self._running
            self._running = 0

    def check(self, step: int) -> None:
        """Waits for the steps so far.

        Raises:
            UserError: a metric of one of them is NaN or infinite, and the step was not skipped.
        """
        self._wait()
        rows = [
            {name: float(values[number]) for name, values in metrics.items()}
            for metrics, count in jax.device_get(self._pending)
            for number in range(count)
        ]
        first = step - len(rows) + 1
        rows = [{"skipped": 1.0} if row.get("skipped") else row for row in rows]
        for number, row in enumerate(rows, first):
            bad = [name for name, value in row.items() if not np.isfinite(value)]
            if bad:
                raise UserError(
                    f"{', '.join(bad)} is not finite at step {number}: the run is stopped and its "
                    "last checkpoint kept; go on from there with train.on_nonfinite 'skip', or "
                    + _BEGIN_ANEW
                )
        self.rows += rows
        self._pending = []

    def _write(self, step: int) -> None:
        rows, self.rows = self.rows, []
        means = _means(rows)
        if means.get("skipped") == len(rows):
            raise UserError(
                f"loss or gradient was not finite at any of the {len(rows)} steps to {step}: the "
                f"run is stopped and its last checkpoint kept; {_BEGIN_ANEW}"
            )
        now, since, self._since = time.monotonic(), self._since, time.monotonic()
        if self._timed_steps:
            rate = self._timed_steps * self._batch_size / (now - since)
            means["images_per_second"] = rate
            means["images_per_second_per_device"] = rate / jax.device_count()
        self._timed_steps = 0
        means["peak_memory_gib"] = devices.peak_bytes() / 2**30
        for writer in self._writers:
            writer.write_scalars(step, means)
        self._print(step, means)

    def _print(self, step: int, means: dict[str, float]) -> None:
        words = [f"step {step}/{self._num_steps}"]
        if "loss" in means:
            words.append(f"loss {means['loss']:.4g}")
        if means.get("skipped"):
            words.append(f"{means['skipped']:.0f} skipped")
        if "images_per_second" in means:
            rate = means["images_per_second"]
            left = round((self._num_steps - step) * self._batch_size / rate)
            words.append(f"{rate:.0f} images/s  {left // 60}:{left % 60:02d} left")
        print("  ".join(words), flush=True)


def _means(rows: list[dict[str, float]]) -> dict[str, float]:
    """The mean of each metric over the rows that have it, as phases differ in their metrics.

    Of `skipped` it is the sum.
    """
    names = dict.fromkeys(name for row in rows for name in row)
    means = {name: float(np.mean([row[name] for row in rows if name in row])) for name in names}
    if "skipped" in means:
        means["skipped"] = sum(row.get("skipped", 0.0) for row in rows)
    return means
