"""How the processes of a run find each other, and find out that they were started alike.

Over sockets of their own, before jax.distributed comes in: where a process is missing that aborts
with a stack trace, and does not say which one.
"""

import contextlib
import json
import socket
import time
from collections.abc import Mapping
from typing import Any, NamedTuple, TextIO

from defect_jax.errors import UserError

# A process that is there speaks at once; what says nothing for so long is another program.
_STRANGER_SECONDS = 5.0


class Group(NamedTuple):
    """The processes of a run.

    Attributes:
        address: 'host:port' of process 0, where the others find it.
        size: how many there are.
        number: which of them this one is.
        devices: the numbers of the host's devices that are this process's; None for all.
    """

    address: str
    size: int
    number: int
    devices: list[int] | None = None


def meet(group: Group, timeout: int, settings: Mapping[str, Any]) -> None:
    """Waits until all processes are there, and compares their settings.

    Args:
        group: the processes.
        timeout: in seconds, from when this one calls.
        settings: name -> value, anything that goes into JSON.

    Raises:
        UserError: in all processes that are there: some are missing, or have other settings.
    """
    through_json = json.loads(json.dumps(settings))  # as those of the others
    problem = (_receive if group.number == 0 else _call)(group, timeout, through_json)
    if problem:
        raise UserError(problem)


def describe(words: Mapping[int, str]) -> str:
    """What processes have to say, by number, as 'process 1: a; processes 2, 3: b'."""
    numbers: dict[str, list[int]] = {}
    for number, text in words.items():
        numbers.setdefault(text, []).append(number)
    return "; ".join(f"{_processes(those)}: {text}" for text, those in numbers.items())


def _receive(group: Group, timeout: int, settings: dict[str, Any]) -> str:
    """What process 0 does: waits for the others, and tells them what is wrong, if anything."""
    deadline = time.monotonic() + timeout
    found, lines = {0: settings}, []
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(_listen(_split(group.address)[1]))
        while len(found) < group.size and (left := deadline - time.monotonic()) > 0:
            server.settimeout(left)
            with contextlib.suppress(OSError, ValueError):  # too late, or a stranger
                connection = stack.enter_context(server.accept()[0])
                connection.settimeout(_STRANGER_SECONDS)
                line = stack.enter_context(connection.makefile("rw"))
                number, theirs = json.loads(line.readline())
                found[number] = theirs
                lines.append(line)
        problem = _missing(group, timeout, found) or _differing(found)
        for line in lines:
            _answer(line, problem)
    return problem


def _answer(line: TextIO, problem: str) -> None:
    with contextlib.suppress(OSError):
        print(json.dumps(problem), file=line, flush=True)
        line.readline()  # until the other side hangs up, which leaves the port free at once


def _call(group: Group, timeout: int, settings: dict[str, Any]) -> str:
    """What the other processes do: tell process 0 their settings, and wait for its answer."""
    # Process 0 is to be the first to give up, as it knows who is missing.
    deadline = time.monotonic() + timeout + _STRANGER_SECONDS
    while (left := deadline - time.monotonic()) > 0:
        with (
            contextlib.suppress(OSError, ValueError),  # not there yet, or another program
            socket.create_connection(_split(group.address), left) as connection,
            connection.makefile("rw") as line,
        ):
            print(json.dumps([group.number, settings]), file=line, flush=True)
            return json.loads(line.readline())
        time.sleep(0.2)
    return (
        f"process 0 of {group.size} did not answer at {group.address} within {timeout} s: start "
        "all processes, and make sure that they reach that address"
    )


def _missing(group: Group, timeout: int, found: Mapping[int, Any]) -> str:
    missing = sorted(set(range(group.size)) - set(found))
    if not missing:
        return ""
    return (
        f"{_processes(missing)} of {group.size} did not come to {group.address} within "
        f"{timeout} s: start all processes, and make sure that they reach that address"
    )


def _differing(found: dict[int, dict[str, Any]]) -> str:
    words = {}
    for number, settings in sorted(found.items()):
        fields = [
            f"{name} is {settings.get(name, 'absent')}, not {found[0].get(name, 'absent')}"
            for name in sorted(settings.keys() | found[0].keys())
            if settings.get(name) != found[0].get(name)
        ]
        if fields:
            words[number] = ", ".join(fields)
    return f"{describe(words)}, as in process 0: start all alike" if words else ""


def _listen(port: int) -> socket.socket:
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        return socket.create_server(("", port), family=family, dualstack_ipv6=both)
    except OSError as error:
        raise UserError(
            f"process 0 cannot listen on port {port} ({error.strerror}): choose another"
        ) from error


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _processes(numbers: list[int]) -> str:
    return f"process{'es' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"
