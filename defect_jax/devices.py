"""Where arrays lie on this host's devices."""

import os
import pathlib
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "batch"


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
