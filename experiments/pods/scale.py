"""What limits throughput as hosts grow: prints the tables of README.md beside this file.

    python experiments/pods/scale.py

A calculation from the published figures of machines and from the real training steps, which are
traced and neither compiled nor run; so it takes a quarter of a minute anywhere.
"""

import pathlib
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.extend
import ml_collections

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from configs import bsdata_unet, mvtec_autoencoder
from defect_jax import checkpoint
from defect_jax.devices import AXIS
from defect_jax.methods import make_method

EFFICIENCY = 0.8  # the share of its time that a device is to compute
# An assumption, no measurement: of the peak, what convolutions of these widths reach.
PEAK_SHARE = 0.35
# TensorFlow decodes 689 images of ImageNet a second on a core of a Xeon Platinum 8581C, says
# https://github.com/ternaus/imread_benchmark; their mean size is about 469x387 pixels.
DECODED_PIXELS = 689 * 469 * 387  # a second and core
_EXAMPLES = 4  # of the traced batch


class Link(NamedTuple):
    """A ring of devices or hosts.

    Attributes:
        size: how many there are.
        bandwidth: of each, in bytes a second, one way.
        hop: seconds that a message takes to the next, however small.
    """

    size: int
    bandwidth: float
    hop: float


class Machine(NamedTuple):
    """A number of devices, by published figures.

    Attributes:
        name: for the tables.
        links: from the innermost ring out; the product of their sizes is the number of devices.
        peak: bfloat16 operations a second of a device, without sparsity.
        devices_per_host: of a host.
        cores: of a host's processors.
        host_link: bytes a second from a host to each of its devices.
    """

    name: str
    links: tuple[Link, ...]
    peak: float
    devices_per_host: int
    cores: int
    host_link: float


class Work(NamedTuple):
    """A training step, counted.

    Attributes:
        name: for the tables.
        parameters: of the network.
        flops: of an image, forward, backward and update.
        reduced_bytes: of all arrays of a step that are summed over the devices.
        rounds: all-reduces that wait for each other; those of one round go as one message.
        image_bytes: an image and its mask as they go to the device.
        file_pixels: of an image as it lies on disk.
        file_bytes: of the same.
    """

    name: str
    parameters: int
    flops: float
    reduced_bytes: int
    rounds: int
    image_bytes: int
    file_pixels: int
    file_bytes: int


# Of the TPU: peak and hosts from https://cloud.google.com/tpu/docs/v5e (a host of 8 chips has 224
# virtual, so 112 physical cores); the links, which make rings where an axis has 16 chips, the hop
# and PCIe from https://jax-ml.github.io/scaling-book/tpus and /sharding. A ring goes both ways
# round, at 5e10 each.
def _v5e(rows: int, columns: int) -> Machine:
    links = tuple(Link(size, 1e11 if size == 16 else 5e10, 1e-6) for size in (rows, columns))
    return Machine(f"v5e-{rows * columns}", links, 197e12, 8, 112, 1.5e10)


# Of the GPU: 1979e12 with sparsity, so half of it, and 900 GB/s of NVLink both ways, so half one
# way, from https://www.nvidia.com/en-us/data-center/h200/; of a host of 8: 8 ports of InfiniBand at
# 400 Gbit/s, 2 processors of 56 cores and PCIe 5.0 x16, from
# https://docs.nvidia.com/dgx/dgxh100-user-guide. Each GPU has a port of its own and sends an eighth
# of the host's sum through it. The hops are NCCL's (hwLat in src/graph/tuning.cc of
# https://github.com/NVIDIA/nccl, for rings with LL128).
def _h200(nodes: int) -> Machine:
    links = (Link(8, 450e9, 1.9e-6), Link(nodes, 50e9, 4e-6))
    return Machine(f"{8 * nodes} x H200", links, 989e12, 8, 112, 6.4e10)


LARGEST = (_v5e(16, 16), _h200(8))
MACHINES = (_v5e(4, 4), _v5e(8, 8), LARGEST[0], _h200(1), _h200(4), LARGEST[1])
# What the launchers start as they are: the U-Net, on so many devices with such a global batch.
LAUNCHED = {
    "tpu.sh": (LARGEST[0], 1024),
    "slurm.sbatch": (_h200(2), 512),
    "kubernetes.yaml": (_h200(2), 512),
}


def unet_config() -> ml_collections.ConfigDict:
    """Of width 32 on 512x512 pixels, eight times the work of what the config has."""
    config = bsdata_unet.get_config()
    config.data.image_size = (512, 512)
    config.method.width = 32
    return config


def works() -> tuple[Work, Work]:
    """The U-Net and the autoencoder, which is as its config has it.

    Their images: the 1104 ball screws of BSData are JPEGs of mostly 1130x460 pixels and 70 kB in
    the mean; the 480 screws of MVTec AD are PNGs of 1024x1024 pixels in an archive of 195 MB.
    """
    autoencoder = mvtec_autoencoder.get_config()
    return (
        count("U-Net of width 32, 512x512", unet_config(), 1130 * 460, 70_000),
        count("autoencoder, 128x128", autoencoder, 1024 * 1024, 195_000_000 // 480),
    )


# ---------------------------------------------------------------------------------- the step


def count(name: str, config: ml_collections.ConfigDict, file_pixels: int, file_bytes: int) -> Work:
    """Traces the step of a config's first phase in bfloat16 and counts what it does."""
    config.dtype = "bfloat16"
    method = make_method(config)
    step = method.phases[0].train_step
    state = checkpoint.abstract_state(config, method)
    batch: Any = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((1, _EXAMPLES, *leaf.shape[1:]), leaf.dtype),
        checkpoint.example_batch(config),
    )
    mapped: dict[str, Any] = {"axis_name": AXIS, "in_axes": (None, 0), "out_axes": None}
    analysis: Any = jax.jit(jax.vmap(step, **mapped)).lower(state, batch).cost_analysis()
    reduced_bytes, rounds = all_reduces(jax.make_jaxpr(jax.pmap(step, **mapped))(state, batch))
    image = checkpoint.example_batch(config)
    return Work(
        name,
        sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        analysis["flops"] / _EXAMPLES,
        reduced_bytes,
        rounds,
        image["image"].nbytes + image["mask"].nbytes,
        file_pixels,
        file_bytes,
    )


def all_reduces(program: Any) -> tuple[int, int]:
    """The bytes that a traced program sums over devices, and in how many rounds.

    A round is what needs no other round's result, which the compiler can send as one message.
    """
    reduced_bytes, rounds = _follow(program.jaxpr, [0] * len(program.jaxpr.invars))
    return reduced_bytes, max(rounds)


def _follow(jaxpr: Any, rounds: Sequence[int]) -> tuple[int, list[int]]:
    """The bytes summed, and the rounds behind each result, from the rounds behind each input."""
    behind = dict(zip(jaxpr.invars, rounds, strict=True))

    def of(variables: Sequence[Any]) -> list[int]:
        literal = jax.extend.core.Literal
        return [0 if isinstance(one, literal) else behind.get(one, 0) for one in variables]

    total = 0
    for equation in jaxpr.eqns:
        inputs = of(equation.invars)
        inner = [getattr(value, "jaxpr", value) for value in equation.params.values()]
        inner = [value for value in inner if hasattr(value, "eqns")]
        if len(inner) == 1 and len(inner[0].invars) == len(inputs):
            more, outputs = _follow(inner[0], inputs)
        else:
            reduces = equation.primitive.name.startswith("psum")
            more = sum(one.aval.size * one.aval.dtype.itemsize for one in equation.invars)
            more = more if reduces else 0
            outputs = [max(inputs, default=0) + reduces] * len(equation.outvars)
        total += more
        behind.update(zip(equation.outvars, outputs, strict=True))
    return total, of(jaxpr.outvars)


# ---------------------------------------------------------------------------------- the machine


def ring_seconds(num_bytes: float, size: int, bandwidth: float) -> float:
    """Seconds in which each of `size` devices in a ring gets the sum of all their arrays.

    Each sends an n-th of the array n - 1 times to be summed and n - 1 times to be spread (Patarasuk
    and Yuan 2009, https://doi.org/10.1016/j.jpdc.2008.09.002).

    Args:
        num_bytes: of the array.
        size: n.
        bandwidth: of a device, in bytes a second.
    """
    return 2 * (size - 1) / size * num_bytes / bandwidth


def all_reduce_seconds(machine: Machine, num_bytes: float, rounds: int) -> float:
    """Seconds of a step's all-reduces, ring within ring.

    An outer ring sums what an inner one has divided among its devices. An upper bound where
    messages are small: trees reach all devices in fewer hops.
    """
    seconds = 0.0
    for size, bandwidth, hop in machine.links:
        seconds += ring_seconds(num_bytes, size, bandwidth) + rounds * 2 * (size - 1) * hop
        num_bytes /= size
    return seconds


def num_devices(machine: Machine) -> int:
    count = 1
    for link in machine.links:
        count *= link.size
    return count


def compute_seconds(machine: Machine, work: Work) -> float:
    """Seconds that a device takes for an image."""
    return work.flops / (machine.peak * PEAK_SHARE)


def efficiency(machine: Machine, work: Work, images: float) -> float:
    """The share of its time that a device computes, with so many images of a batch.

    Nothing is taken to overlap, so computing for c seconds and summing for r is c / (c + r).
    """
    computing = images * compute_seconds(machine, work)
    return computing / (computing + all_reduce_seconds(machine, work.reduced_bytes, work.rounds))


def smallest_batch(machine: Machine, work: Work) -> int:
    """Images a device from which on its `efficiency` is at least `EFFICIENCY`."""
    waiting = all_reduce_seconds(machine, work.reduced_bytes, work.rounds)
    needed = waiting * EFFICIENCY / (1 - EFFICIENCY)
    return max(1, -int(-needed // compute_seconds(machine, work)))


# ---------------------------------------------------------------------------------- the tables


def report(counted: Sequence[Work]) -> str:
    """The tables as Markdown; the first of the works is what the launchers start."""
    steps = [
        [
            work.name,
            f"{work.parameters:,}",
            _short(work.flops / 1e9),
            _short(work.reduced_bytes / 1e6),
            str(work.rounds),
        ]
        for work in counted
    ]
    pairs = [(machine, work) for work in counted for machine in MACHINES]
    largest = [pair for pair in pairs if pair[0] in LARGEST]
    return "\n".join(
        [
            _table("step | parameters | GFLOP an image | MB summed | rounds", steps),
            _table(
                f"step | devices | all-reduce, ms | images a device for {100 * EFFICIENCY:.0f} % "
                "| global batch | step, ms | images/s",
                [_network_row(*pair) for pair in pairs],
            ),
            _table(
                "launcher | devices | global batch | images a device | efficiency",
                [_launch_row(name, *LAUNCHED[name], counted[0]) for name in LAUNCHED],
            ),
            _table(
                "step | devices | hosts | images/s of a host | decoded at most | files, GB/s "
                "| GB/s to a device | possible",
                [_input_row(*pair) for pair in largest],
            ),
        ]
    )


def _network_row(machine: Machine, work: Work) -> list[str]:
    waiting = all_reduce_seconds(machine, work.reduced_bytes, work.rounds)
    batch = smallest_batch(machine, work)
    seconds = batch * compute_seconds(machine, work) + waiting
    images = batch * num_devices(machine)
    figures = _short(1e3 * waiting), f"{batch:,}", f"{images:,}", _short(1e3 * seconds)
    return [work.name, machine.name, *figures, _short(images / seconds)]


def _launch_row(name: str, machine: Machine, batch_size: int, work: Work) -> list[str]:
    images = batch_size / num_devices(machine)
    share = f"{100 * efficiency(machine, work, images):.0f} %"
    return [f"`{name}`", machine.name, f"{batch_size:,}", _short(images), share]


def _input_row(machine: Machine, work: Work) -> list[str]:
    """At the rate at which the devices compute and never wait; files are those of all hosts."""
    rate = 1 / compute_seconds(machine, work)  # of a device
    return [
        work.name,
        machine.name,
        str(num_devices(machine) // machine.devices_per_host),
        _short(rate * machine.devices_per_host),
        _short(machine.cores * DECODED_PIXELS / work.file_pixels),
        _short(rate * num_devices(machine) * work.file_bytes / 1e9),
        _short(rate * work.image_bytes / 1e9),
        _short(machine.host_link / 1e9),
    ]


def _short(value: float) -> str:
    """Two significant digits, which is what assumptions are worth."""
    return f"{float(f'{value:.2g}'):,.10g}"


def _table(heading: str, rows: list[list[str]]) -> str:
    rule = " | ".join(["---", *["---:"] * heading.count("|")])
    lines = [heading, rule, *map(" | ".join, rows)]
    return "\n".join(f"| {line} |" for line in lines) + "\n"


if __name__ == "__main__":
    print(report(works()))
