"""Says where a run is stuck.

A thread looks on while the run waits for something. What takes long is told in one line, and again
whenever the time has doubled. The run goes on waiting.
"""

import contextlib
import dataclasses
import functools
import threading
import time
from collections.abc import Iterator

import jax

# What a run may wait for.
DATA = "the next batch (data pipeline)"
COMPILER = "the first step of a phase (compiler, devices or another host)"
DEVICES = "the devices (or another host)"
STORAGE = "a checkpoint to be written (storage, or another host)"

_PATIENCE = 60.0  # seconds
_LOOK_EVERY = 1.0


@dataclasses.dataclass(eq=False)
class _Wait:
    step: int
    what: str
    since: float
    told_after: float  # seconds


_waits: set[_Wait] = set()


@contextlib.contextmanager
def waiting(step: int, what: str) -> Iterator[None]:
    """Lets the thread look on while something is waited for.

    Args:
        step: the last step that the run has begun.
        what: is waited for inside.
    """
    _start()
    wait = _Wait(step, what, time.monotonic(), _PATIENCE)
    _waits.add(wait)
    try:
        yield
    finally:
        _waits.remove(wait)


@functools.cache
def _start() -> None:
    threading.Thread(target=_look_on, name="watch", daemon=True).start()


def _look_on() -> None:
    while True:
        time.sleep(_LOOK_EVERY)
        for wait in list(_waits):
            waited = time.monotonic() - wait.since
            if waited >= wait.told_after:
                wait.told_after = 2 * waited
                host = f"host {jax.process_index()}, " if jax.process_count() > 1 else ""
                line = f"{host}step {wait.step}: waiting {waited:.0f} s for {wait.what}"
                print(line, flush=True)
