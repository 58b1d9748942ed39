"""Says where a run is stuck.

A thread looks on while the run waits for something. What takes long is told in one line of stderr,
and again whenever the time has doubled. The run goes on waiting.

Of several hosts, each tells the others that it lives and what it waits for, so that the line can
name the one that is to blame.
"""

import contextlib
import functools
import itertools
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
from orbax.checkpoint import multihost

# What a run may wait for.
DATA = "the next batch (data pipeline)"
COMPILER = "the first step of a phase (compiler, devices or another host)"
DEVICES = "the devices (or another host)"
HOSTS = "another host"
PREDICTION = "the next image's prediction (data pipeline, compiler or devices)"
STORAGE = "a checkpoint to be written (storage, or another host)"

# In seconds. Before a host that is lost ends the others, see `distributed.start`.
_PATIENCE = 20.0
_LOOK_EVERY = 1.0
_EXCHANGE_EVERY = 5.0
_SILENT_AFTER = 15.0
_FOLDER = "defect_jax/watch/"


class _Wait(NamedTuple):
    step: int | None
    what: str
    since: float

    def __str__(self) -> str:
        where = "" if self.step is None else f"step {self.step}: "
        return f"{where}waiting {time.monotonic() - self.since:.0f} s for {self.what}"


_waits: list[_Wait] = []
_patience: dict[str, float] = {}  # for what has been told: after how long it is told again
_heard: dict[int, tuple[str, float]] = {}  # of each host, what it last told, and when


@contextlib.contextmanager
def waiting(step: int | None, what: str) -> Iterator[None]:
    """Lets the thread look on while something is waited for.

    What is waited for inside of that is a part of it.

    Args:
        step: the last step that the run has begun; None outside of training.
        what: is waited for inside.
    """
    _start()
    wait = _Wait(step, what, time.monotonic())
    _waits.append(wait)
    try:
        yield
    finally:
        _waits.remove(wait)


@functools.cache
def _start() -> None:
    threading.Thread(target=_look_on, name="watch", daemon=True).start()
    if jax.distributed.is_initialized():
        # On a thread of its own, which hangs where process 0 does, as that has the store.
        client = multihost.get_jax_distributed_client()
        threading.Thread(target=_exchange, args=(client,), name="hosts", daemon=True).start()


def _look_on() -> None:
    while True:
        time.sleep(_LOOK_EVERY)
        for wait in _waits[:1]:
            waited = time.monotonic() - wait.since
            if waited >= _patience.get(wait.what, _PATIENCE):
                _patience[wait.what] = 2 * waited
                line = str(wait)
                if jax.process_count() > 1:
                    line = "; ".join([f"host {jax.process_index()}, {line}", *_suspects(wait.what)])
                print(line, file=sys.stderr, flush=True)


def _exchange(client: Any) -> None:
    """Tells the other hosts what this one waits for, and hears the same of them."""
    key = f"{_FOLDER}{jax.process_index()}"
    with contextlib.suppress(Exception):  # the run is over
        for number in itertools.count():  # which tells that this host lives
            words = "".join(map(str, _waits[:1]))
            client.key_value_set(key, f"{number} {words}", allow_overwrite=True)
            for path, told in client.key_value_dir_get(_FOLDER):
                host = int(path.rpartition("/")[2])
                if host not in _heard or _heard[host][0] != told:
                    _heard[host] = told, time.monotonic()
            time.sleep(_EXCHANGE_EVERY)


def _suspects(what: str) -> list[str]:
    """The hosts that tell nothing any more, else those that do not wait for the same."""
    now, own = time.monotonic(), jax.process_index()
    silent = {host: now - when for host, (_, when) in _heard.items() if now - when > _SILENT_AFTER}
    if own in silent:  # the store itself does not answer
        silent = {0: silent[own]}
    if silent:
        return [f"nothing heard of host {host} for {silent[host]:.0f} s" for host in sorted(silent)]
    words = {host: told.partition(" ")[2] for host, (told, _) in sorted(_heard.items())}
    others = {host: text for host, text in words.items() if host != own and what not in text}
    return [f"host {host}, {text or 'busy'}" for host, text in others.items()]
