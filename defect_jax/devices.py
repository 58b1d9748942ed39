"""Where arrays lie on this host's devices."""

import os
import pathlib
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from defect_jax.errors import UserError

AXIS = "batch"


def find() -> list[jax.Device]:
    """All devices of all processes.

    Raises:
        UserError: JAX cannot use what it is told to.
    """
    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter where no GPU is visible
        asked = os.environ.get("JAX_PLATFORMS", "")
        advice = f"correct or unset JAX_PLATFORMS, which is '{asked}'" if asked else "free it"
        reason = (str(error) or "none is visible").splitlines()[0]
        raise UserError(f"JAX cannot use its device ({reason}): {advice}") from error


def replicate(tree: Any) -> Any:
    """Puts a whole copy of each array on every local device.

    A step of `train` returns its state like this; one that got it otherwise would be compiled
    twice.
    """
    return jax.device_put(tree, NamedSharding(_mesh(), PartitionSpec()))


def spread(tree: Any) -> Any:
    """Divides arrays [B, ...] over the local devices, whose number divides B."""
    return jax.device_put(tree, NamedSharding(_mesh(), PartitionSpec(AXIS)))


def memory_bytes() -> int:
    """The memory of each local device in bytes; of a CPU, its share of the host's."""
    statistics = jax.local_devices()[0].memory_stats() or {}  # a CPU has none
    return statistics.get("bytes_limit", host_bytes() // jax.local_device_count())


def peak_bytes() -> int:
    """The most memory in bytes that a device of this process has held; on CPUs, the process."""
    statistics = [device.memory_stats() or {} for device in jax.local_devices()]
    peak = max(one.get("peak_bytes_in_use", 0) for one in statistics)
    status = pathlib.Path("/proc/self/status")
    if not peak and status.is_file():  # of Linux alone
        peak = 1024 * int(status.read_text().split("VmHWM:")[1].split()[0])
    return peak


def host_bytes() -> int:
    """The host's memory in bytes, or what its container may use of it."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = pathlib.Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and limit.read_text().strip().isdigit():
        return min(memory, int(limit.read_text()))
    return memory


def _mesh() -> Mesh:
    return Mesh(np.array(jax.local_devices()), (AXIS,))
