"""Several processes that share a run: each has devices of its own and a part of every batch.

All take the same steps; process 0 alone writes and prints.

A process that ends has the others end: with an error at their next exchange. One that goes without
closing its connections (its machine is cut off, loses power or hangs) is missed after 100 s without
a heartbeat, or the timeout of `start` if that is less. Then JAX itself ends the others, with its
own message and SIGABRT (status 134), as it leaves no way to do otherwise. Before that `watch` names
the host that is silent.
"""

import contextlib
import os
import pickle
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np
from jax._src import clusters  # nothing public tells what a cluster announces
from jax._src.distributed import global_state
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from defect_jax import devices, watch
from defect_jax.errors import UserError
from defect_jax.meeting import Group, describe, meet

T = TypeVar("T")

FLAGS = ("--coordinator_address", "--num_processes", "--process_id")
# What the environment may say in their place.
VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
# A host that was cut off sends no more heartbeats: after so long the others end too.
_HEARTBEAT_SECONDS = 100
# So long a process that ends waits for the others, which mostly end for the same reason.
_STOP_SECONDS = 5
# Words of the messages of collectives which another process has left.
_LEFT = ("Gloo", "NCCL", "Barrier timed out")


def start(
    given: tuple[str | None, int | None, int | None], timeout: int, settings: Mapping[str, Any]
) -> None:
    """Brings the processes of a run together; to be called before anything touches a device.

    Does nothing where there is one process: where neither the flags nor the environment (Cloud
    TPU, SLURM, Open MPI 4, or VARIABLES) announce several. An indexed job of Kubernetes announces
    them where the package `kubernetes` is installed and the pod may read pods, services and jobs;
    else set VARIABLES.

    Args:
        given: the values of FLAGS, all or none: the 'host:port' of process 0, the number of
            processes, and which of them this one is.
        timeout: in seconds, after which a process that does not come or answer is missing.
        settings: what must be the same in all processes.

    Raises:
        UserError: in every process, where one is missing or differs; or what is given or in the
            environment makes no sense.
    """
    group = find_group(given, timeout)
    if group is None or group.size == 1:
        return
    meet(group, timeout, {"num_processes": group.size} | dict(settings))
    jax.config.update("jax_enable_preemption_service", False)  # which would take SIGTERM
    try:
        jax.distributed.initialize(
            group.address,
            group.size,
            group.number,
            group.devices,
            cluster_detection_method="deactivate",
            initialization_timeout=timeout,
            heartbeat_timeout_seconds=min(timeout, _HEARTBEAT_SECONDS),
        )
    except RuntimeError as error:
        raise UserError(
            f"the processes cannot meet at {group.address} ({_first_line(error)}): choose another "
            "port or restart all"
        ) from error
    _check_devices()
    if not is_first():
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def find_group(given: tuple[str | None, int | None, int | None], timeout: int) -> Group | None:
    """What flags or else the environment announce; None where neither does.

    Raises:
        UserError: see `start`.
    """
    if any(value is not None for value in given):
        return _group(dict(zip(FLAGS, given, strict=True)))
    variables = {name: os.environ.get(name) for name in VARIABLES}
    if not all(variables.values()):
        # A cluster may tell what the variables leave out.
        group = _detect(timeout)
        if group is not None or not any(variables.values()):
            return group
    return _group(variables)


def is_first() -> bool:
    """Whether this is the process that writes and prints."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def gather(value: Any) -> list[Any]:
    """The values of all processes, in their order. All must call it, with anything to pickle."""
    if jax.process_count() == 1:
        return [value]
    data = np.frombuffer(pickle.dumps(value), np.uint8)
    with watch.waiting(None, watch.HOSTS):
        sizes = multihost_utils.process_allgather(np.int32(len(data)))
        room = 1 << int(sizes.max() - 1).bit_length()  # of few sizes, as each is compiled
        rows = multihost_utils.process_allgather(np.pad(data, (0, room - len(data))))
    return [pickle.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def everywhere(task: Callable[[], T]) -> list[T]:
    """Does a task in every process and gathers the results, in the order of the processes.

    Raises:
        UserError: where it is raised in one of them; in all of them, so that none waits for it.
    """
    if jax.process_count() == 1:
        return [task()]
    result: Any = None
    problem = ""
    try:
        result = task()
    except (UserError, OSError) as error:
        problem = str(error)
    outcomes = gather((result, problem))
    problems = {number: problem for number, (_, problem) in enumerate(outcomes) if problem}
    if len(problems) == len(outcomes) and len(set(problems.values())) == 1:
        raise UserError(problem)
    if problems:
        raise UserError(describe(problems))
    return [result for result, _ in outcomes]


@contextlib.contextmanager
def ending_on_error() -> Iterator[None]:
    """Ends the program where something is raised inside: in one line where a user can mend it.

    One of several processes ends at once: it would wait for the others to end, and they for its
    next step. Where it was asked to stop, or says what all mostly find wrong, it lets the others
    end with it, but not for long: JAX has one whose partner is gone abort before it can say why.
    """
    try:
        yield
    except SystemExit as stop:
        if jax.distributed.is_initialized():
            _leave(stop.code if isinstance(stop.code, int) else 1)
        raise
    except (UserError, OSError) as error:
        _end(f"error{_own_name()}: {error}", together=True)
    except Exception as error:
        if not jax.distributed.is_initialized():
            raise
        if any(word in str(error) for word in _LEFT):
            _end(f"error{_own_name()}: another process has ended ({_first_line(error)})")
        _end(f"{traceback.format_exc()}error{_own_name()}: see above")


def _group(given: dict[str, Any]) -> Group:
    """A group from its three parts, by where they come from."""
    missing = [name for name, value in given.items() if value is None]
    if missing:
        there = " and ".join(name for name in given if name not in missing)
        raise UserError(f"{there} without {' and '.join(missing)}: set all three or none")
    words = ", ".join(f"{name}={value}" for name, value in given.items())
    address, count, number = map(str, given.values())
    host, _, port = address.rpartition(":")
    if not (host and port.isdigit() and count.isdigit() and number.isdigit()):
        raise UserError(f"{words}: expected host:port, and two whole numbers")
    if int(number) >= int(count):
        raise UserError(f"{words}: processes are numbered from 0 to {int(count) - 1}")
    return Group(address, int(count), int(number))


def _detect(timeout: int) -> Group | None:
    """What the scheduler tells that started this process; None where it started no other."""
    for cluster in clusters.ClusterEnv._cluster_types:
        if cluster.opt_in_only_method or _is_alone(cluster):
            continue
        try:
            if cluster.is_env_present():
                return _group_of_cluster(cluster, timeout)
        except Exception as error:  # of any kind: some ask servers
            raise UserError(
                f"{cluster.__name__} does not tell of the other processes "
                f"({_first_line(error)}): pass {', '.join(FLAGS)}"
            ) from error
    count = os.environ.get("OMPI_COMM_WORLD_SIZE", "1")
    if count != "1":
        raise UserError(
            f"Open MPI has started {count} processes but does not say where the first one is, as "
            "from version 5 on it never does: set JAX_COORDINATOR_ADDRESS to its host:port, and in "
            "each process JAX_NUM_PROCESSES=$OMPI_COMM_WORLD_SIZE and "
            "JAX_PROCESS_ID=$OMPI_COMM_WORLD_RANK"
        )
    return None


def _is_alone(cluster: type[clusters.ClusterEnv]) -> bool:
    """Whether a scheduler's variables speak of many, but this process is none of them.

    In a shell inside an allocation of SLURM; in a pod that is not of an indexed job.
    """
    if cluster is clusters.SlurmCluster:
        return os.environ.get("SLURM_STEP_NUM_TASKS") == "1"
    return cluster is clusters.K8sCluster and "JOB_COMPLETION_INDEX" not in os.environ


def _group_of_cluster(cluster: type[clusters.ClusterEnv], timeout: int) -> Group | None:
    """What a cluster tells, with the address from the environment if that has one."""
    if cluster.get_process_count() == 1:
        return None
    address = os.environ.get(VARIABLES[0]) or None
    parts: Any = cluster.auto_detect_unset_distributed_params(
        address, None, None, None, cluster.name, timeout
    )
    group = Group(*parts)
    # By itself jax gives each process one device, even if it is alone on its host.
    on_host = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "").split("(")[0]
    if "1" in (on_host, os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE")):
        return group._replace(devices=None)
    return group


def _check_devices() -> None:
    counts = Counter(device.process_index for device in devices.find())
    if len(set(counts.values())) > 1:
        words = describe({number: f"{count} devices" for number, count in sorted(counts.items())})
        raise UserError(f"{words}: give every process as many")


def _own_name() -> str:
    # Where there are no devices, jax.process_index() would raise once more.
    number = global_state.process_id
    return f" (process {number})" if jax.distributed.is_initialized() else ""


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _leave(status: int) -> None:
    """Returns if the other processes come too; else ends this one, with the status."""
    try:
        client = multihost.get_jax_distributed_client()
        client.wait_at_barrier("defect_jax/leave", 1000 * _STOP_SECONDS)
    except BaseException:  # another signal too
        sys.stdout.flush()
        os._exit(status)


def _end(message: str, together: bool = False) -> NoReturn:
    if not jax.distributed.is_initialized():
        sys.exit(message)
    sys.stdout.flush()
    print(message, file=sys.stderr, flush=True)
    if together:
        _leave(1)
        jax.distributed.shutdown()
    os._exit(1)
