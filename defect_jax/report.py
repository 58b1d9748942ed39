"""What a training run says: a progress line, metrics.jsonl and TensorBoard."""

import contextlib
import json
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from defect_jax.errors import UserError
from defect_jax.method import Metrics


class JsonlWriter:
    """Appends a line of JSON per step to `metrics.jsonl`.

    Lines of steps after `first_step`, which a run stopped between two checkpoints leaves behind,
    are removed first: the resumed run writes them again.
    """

    def __init__(self, path: pathlib.Path, first_step: int):
        kept = [row for row in read_metrics(path) if row["step"] <= first_step]
        partial = path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(row) + "\n" for row in kept))
        partial.replace(path)
        self._file = path.open("a")

    def write_scalars(self, step: int, scalars: dict[str, float]) -> None:
        row = {"step": step} | {name: float(value) for name, value in scalars.items()}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_metrics(path: pathlib.Path) -> list[dict[str, float]]:
    """The rows of a `metrics.jsonl`, a half-written last one left out; [] where there is none."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text().splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return rows


@contextlib.contextmanager
def tensorboard(workdir: str | pathlib.Path) -> Iterator[Any]:
    """clu's writer of TensorBoard events into `workdir`."""
    from clu import metric_writers  # prints TensorFlow's greetings if it comes before `data`

    writer = metric_writers.SummaryWriter(str(workdir))
    try:
        yield writer
    finally:
        writer.close()


class Reporter:
    """Gathers the metrics of every step and reports their means.

    Metrics stay on the device until they are reported, so that steps are dispatched ahead.
    """

    def __init__(self, writers: list[Any], batch_size: int, num_steps: int, log_every: int):
        self._writers = writers
        self._batch_size = batch_size
        self._num_steps = num_steps
        self._log_every = log_every
        self._pending: list[Metrics] = []
        self._unwritten: list[dict[str, np.ndarray]] = []
        self._time: float | None = None
        self._timed_steps = 0

    def add(self, step: int, metrics: Metrics) -> None:
        """Takes the metrics of the step that brought the state to `step`."""
        if self._pending:
            # Lets the host run one step ahead and no more: a queue of steps is a queue of states.
            jax.block_until_ready(self._pending[-1])
        self._pending.append(metrics)
        if self._time is None:
            # The first step compiles for seconds or minutes; rates are measured after it.
            jax.block_until_ready(metrics)
            self._time = time.monotonic()
        else:
            self._timed_steps += 1
        if step % self._log_every == 0 or step == self._num_steps:
            self.check(step)
            self._write(step, self._time)

    def check(self, step: int) -> None:
        """Waits for the steps so far.

        Raises:
            UserError: a metric of one of them is NaN or infinite.
        """
        rows = jax.device_get(self._pending)
        first = step - len(rows) + 1
        for number, row in enumerate(rows, first):
            bad = [name for name, value in row.items() if not np.isfinite(value)]
            if bad:
                raise UserError(
                    f"{', '.join(bad)} is not finite at step {number}: the run is stopped and its "
                    "last checkpoint kept; try a lower optimizer.learning_rate or "
                    "optimizer.clip_norm"
                )
        self._unwritten += rows
        self._pending = []

    def _write(self, step: int, since: float) -> None:
        rows, self._unwritten = self._unwritten, []
        self._time = time.monotonic()
        means = _means(rows)
        if self._timed_steps:
            means["images_per_second"] = self._timed_steps * self._batch_size / (self._time - since)
        self._timed_steps = 0
        for writer in self._writers:
            writer.write_scalars(step, means)
        words = [f"step {step}/{self._num_steps}"]
        if "loss" in means:
            words.append(f"loss {means['loss']:.4g}")
        if "images_per_second" in means:
            rate = means["images_per_second"]
            left = round((self._num_steps - step) * self._batch_size / rate)
            words.append(f"{rate:.0f} images/s  {left // 60}:{left % 60:02d} left")
        print("  ".join(words), flush=True)


def _means(rows: list[dict[str, np.ndarray]]) -> dict[str, float]:
    """The mean of each metric over the rows that have it, as phases differ in their metrics."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: float(np.mean([row[name] for row in rows if name in row])) for name in names}
