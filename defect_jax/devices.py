"""Where arrays lie on this host's devices."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from defect_jax.data.pipeline import host_bytes

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
    device = jax.local_devices()[0]
    statistics = device.memory_stats() if device.platform != "cpu" else None
    if statistics is not None and "bytes_limit" in statistics:
        return statistics["bytes_limit"]
    return host_bytes() // jax.local_device_count()


def _mesh() -> Mesh:
    return Mesh(np.array(jax.local_devices()), (AXIS,))
