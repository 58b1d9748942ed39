"""Says where a run is stuck.

A thread looks on while the run waits for something. What takes long is told in one line of stderr,
and again whenever the time has doubled. The run goes on waiting.

Of several hosts, each tells the others that it lives and what it waits for, so that the line can
name the one that is to blame.
"""

import atexit
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

# In seconds. Both before a host that is lost ends the others, see `distributed`.
_PATIENCE = 20.0
_MOST_PATIENCE = 60.0  # of one process, or where waits of the same kind have been as long before
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
_patience: dict[str, float] = {}  # with what has been waited for long already
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
        client, over = multihost.get_jax_distributed_client(), threading.Event()
        hosts = threading.Thread(target=_exchange, args=(client, over), name="hosts", daemon=True)
        hosts.start()
        # In reverse: a call to the store must not come back to an interpreter that is gone.
        atexit.register(hosts.join, _LOOK_EVERY)
        atexit.register(over.set)


def _look_on() -> None:
    told, again = None, 0.0
    while True:
        time.sleep(_LOOK_EVERY)
        for wait in _waits[:1]:
            waited = time.monotonic() - wait.since
            usual = _PATIENCE if jax.distributed.is_initialized() else _MOST_PATIENCE
            if waited >= (again if wait is told else _patience.get(wait.what, usual)):
                told, again = wait, 2 * waited
                _patience[wait.what] = min(again, _MOST_PATIENCE)
                print(_line(wait), file=sys.stderr, flush=True)


def _line(wait: _Wait) -> str:
    if jax.process_count() == 1:
        return str(wait)
    return "; ".join([f"host {jax.process_index()}, {wait}", *_suspects(wait.what)])


def _exchange(client: Any, over: threading.Event) -> None:
    """Tells the other hosts what this one waits for, and hears the same of them."""
    key = f"{_FOLDER}{jax.process_index()}"
    with contextlib.suppress(Exception):  # the store is gone, and so will be this process
        for number in itertools.count():  # which tells that this host lives
            words = "".join(map(str, _waits[:1]))
            client.key_value_set(key, f"{number} {words}", allow_overwrite=True)
            for path, told in client.key_value_dir_get(_FOLDER):
                host = int(path.rpartition("/")[2])
                if host not in _heard or _heard[host][0] != told:
                    _heard[host] = told, time.monotonic()
            if over.wait(_EXCHANGE_EVERY):
                return


def _suspects(what: str) -> list[str]:
    """The hosts that tell nothing any more, else those that do not wait for the same."""
    now, own, heard = time.monotonic(), jax.process_index(), dict(_heard)
    silent = {host: now - when for host, (_, when) in heard.items() if now - when > _SILENT_AFTER}
    if own in silent:  # the store itself does not answer
        silent = {0: silent[own]}
    if silent:
        return [f"nothing heard of host {host} for {silent[host]:.0f} s" for host in sorted(silent)]
    words = {host: told.partition(" ")[2] for host, (told, _) in sorted(heard.items())}
    others = {host: text for host, text in words.items() if host != own and what not in text}
    return [f"host {host}, {text or 'busy'}" for host, text in others.items()]
