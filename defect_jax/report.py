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
        path.write_text("".join(json.dumps(row) + "\n" for row in kept))
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
    """clu's writer of TensorBoard events into `workdir`; None where TensorFlow is not installed."""
    try:
        from clu import metric_writers  # imports TensorFlow, which training does not need
    except ModuleNotFoundError as error:
        print(f"no TensorBoard events: {error.name} is not installed", flush=True)
        yield None
        return
    writer = metric_writers.SummaryWriter(str(workdir))
    yield writer
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
        self._time = time.monotonic()
        self._compiled = False

    def add(self, step: int, metrics: Metrics) -> None:
        """Takes the metrics of the step that brought the state to `step`."""
        if self._pending:
            # Lets the host run one step ahead and no more: a queue of steps is a queue of states.
            jax.block_until_ready(self._pending[-1])
        self._pending.append(metrics)
        if not self._compiled:
            # The first step compiles for seconds or minutes; rates are measured after it.
            jax.block_until_ready(metrics)
            self._compiled, self._time = True, time.monotonic()
        elif step % self._log_every == 0 or step == self._num_steps:
            self.check(step)
            self._write(step)

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

    def _write(self, step: int) -> None:
        rows, self._unwritten = self._unwritten, []
        now = time.monotonic()
        steps_per_second = len(rows) / max(now - self._time, 1e-9)
        self._time = now
        means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
        means["images_per_second"] = steps_per_second * self._batch_size
        for writer in self._writers:
            writer.write_scalars(step, means)
        left = round((self._num_steps - step) / steps_per_second)
        loss = f"  loss {means['loss']:.4g}" if "loss" in means else ""
        print(
            f"step {step}/{self._num_steps}{loss}  {means['images_per_second']:.0f} images/s  "
            f"{left // 60}:{left % 60:02d} left",
            flush=True,
        )
