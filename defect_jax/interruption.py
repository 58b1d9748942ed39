"""A scheduler's SIGTERM, or Ctrl-C: the run stops so that the same command can go on with it."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import NoReturn

STATUS = os.EX_TEMPFAIL  # 75, "try again later": what a scheduler starts the run again for

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_asked: list[str] = []  # the names of the signals that were postponed


def exit_on_signals() -> None:
    """From now on the signals end the process with STATUS."""
    for number in _SIGNALS:
        signal.signal(number, lambda number, _: stop(f"by {signal.Signals(number).name}"))


def stop(how: str) -> NoReturn:
    """Ends the process with STATUS, unless someone catches SystemExit."""
    print(f"stopped {how}: start again with the same flags to go on", flush=True)
    sys.exit(STATUS)


@contextlib.contextmanager
def postponed() -> Iterator[None]:
    """Inside, a signal does no more than make `asked` true; what it asks is done at the end.

    A second Ctrl-C acts at once. A second SIGTERM does not, as some schedulers send several.
    """
    if threading.current_thread() is not threading.main_thread():  # which alone hears signals
        yield
        return

    def remember(number: int, _: object) -> None:
        _asked.append(signal.Signals(number).name)
        signal.signal(signal.SIGINT, before[signal.SIGINT])

    _asked.clear()
    # A handler that was not installed from Python, as one of JAX's, is not known here.
    before = {number: signal.signal(number, remember) or signal.SIG_DFL for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if _asked:
        stop(f"by {_asked[0]}")


def asked() -> bool:
    """Whether a signal has come since `postponed` began."""
    return bool(_asked)
