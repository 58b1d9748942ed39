"""How fast defect_jax is, beside PyTorch: the same networks, batches, losses and precision.

    pip install -e '.[bench]'
    python experiments/benchmark.py --out=benchmark.json

Each contender lives in a process of its own; they take turns, and what is reported is the median
over the rounds and its ratio. On a CPU all compute in float32; on a GPU in bfloat16, and PyTorch
also with `torch.compile`. `--memory` says how the processes allocate on a CPU: 'shipped' as each
does for its users, 'huge_pages' both with glibc's tunable for them, 'kept' PyTorch too keeping
freed memory as `defect_jax.runtime` makes our processes do.
"""

import argparse
import contextlib
import functools
import json
import multiprocessing
import os
import pathlib
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

# Settings of the two networks: image size, batch, examples of the training set, steps a turn (on a
# CPU; on a GPU _GPU_FACTOR times as many).
MODELS = {
    "autoencoder": {"size": 128, "batch": 16, "examples": 256, "steps": 16},
    "unet": {"size": 256, "batch": 4, "examples": 32, "steps": 4},
}
_GPU_FACTOR = 32
MEMORY = ("shipped", "huge_pages", "kept")
# What is measured: name -> (unit, whether a lower figure is better).
ROWS = {
    "train step": ("ms", True),
    "training loop": ("images/s", False),
    "prediction, batch 1": ("ms", True),
    "prediction, batch 16": ("images/s", False),
    "peak memory": ("GiB", True),
}
Measures = Mapping[str, Callable[[], float]]


def steps_a_turn(model: str, gpu: bool) -> int:
    return MODELS[model]["steps"] * (_GPU_FACTOR if gpu else 1)


def draw_examples(model: str) -> tuple[np.ndarray, np.ndarray]:
    """Smooth random images uint8 [N, S, S, 3] and masks uint8 [N, S, S]."""
    rng = np.random.default_rng(0)
    size, count = MODELS[model]["size"], MODELS[model]["examples"]
    coarse = rng.integers(0, 255, (count, size // 8, size // 8, 3), np.uint8)
    image = coarse.repeat(8, axis=1).repeat(8, axis=2)
    return image, (image[..., 0] > 200).astype(np.uint8)


def peak_gib() -> float:
    """The largest resident size of this process so far, without what it was started by."""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 2**20


def repeat(count: int, work: Callable[[], Any]) -> float:
    """Seconds that one of `count` calls takes."""
    start = time.perf_counter()
    for _ in range(count):
        work()
    return (time.perf_counter() - start) / count


# ------------------------------------------------------------------------------- defect_jax


def our_config(model: str, precision: str) -> Any:
    from configs import bsdata_unet, mvtec_autoencoder

    settings = MODELS[model]
    if model == "autoencoder":
        config = mvtec_autoencoder.get_config()
    else:
        config = bsdata_unet.get_config()
        config.method.update(width=32, losses=("cross_entropy",))
        config.optimizer.update(warmup_steps=0, ema_decay=0.0, name="adam", weight_decay=0.0)
    config.dtype = precision
    config.data.update(name="arrays", category=model, cache="device")
    config.data.image_size = (settings["size"], settings["size"])
    config.train.batch_size = settings["batch"]
    return config


class Ours:
    """defect_jax on one network."""

    def __init__(self, model: str, precision: str):
        import jax

        from defect_jax import checkpoint, devices, train
        from defect_jax.evaluate import make_predict
        from defect_jax.methods import make_method

        self.config = our_config(model, precision)
        self.num_steps = steps_a_turn(model, jax.default_backend() == "gpu")
        self.image, self.mask = draw_examples(model)
        method = make_method(self.config)
        state = jax.jit(method.init)(jax.random.PRNGKey(0), checkpoint.example_batch(self.config))
        self.state = devices.replicate(state)
        label = np.zeros(len(self.image), np.int32)
        self.resident = devices.replicate({"image": self.image, "mask": self.mask, "label": label})
        self.take_steps = train.parallel_steps(method.phases[0], resident=True)
        shape = (self.num_steps, MODELS[model]["batch"])
        numbers = np.random.default_rng(0).integers(0, len(self.image), shape, np.int32)
        self.order = train.shard(numbers, axis=1)
        self.predict = make_predict(method, self.state)

    def step(self) -> float:
        import jax

        start = time.perf_counter()
        arguments = (self.state, self.resident, self.order, self.order, self.num_steps)
        jax.block_until_ready(self.take_steps(*arguments))
        return 1e3 * (time.perf_counter() - start) / self.num_steps

    def loop(self) -> float:
        """The rate of the program itself, by its own log, from the second line on."""
        from defect_jax import run, train
        from defect_jax.report import read_metrics

        config = self.config
        config.train.update(num_steps=3 * self.num_steps, log_every=self.num_steps)
        with tempfile.TemporaryDirectory() as folder:
            config.data.root = f"{folder}/arrays.npz"
            np.savez(
                config.data.root,
                train_image=self.image,
                train_mask=self.mask,
                test_image=self.image[:1],
            )
            workdir = pathlib.Path(folder) / "run"
            opened = run.open_run(config, workdir, "train")
            train.train(opened, workdir)
            rates = [row["images_per_second"] for row in read_metrics(workdir / "metrics.jsonl")]
        return statistics.harmonic_mean(rates[1:])

    def latency(self, batch: int) -> float:
        part = {"image": self.image[:batch]}
        self.predict(part)
        return repeat(self.num_steps, lambda: self.predict(part))


def ours(model: str, precision: str) -> Measures:
    contender = Ours(model, precision)
    return measures_of(contender, device_or_host_gib)


def measures_of(contender: Any, peak: Callable[[], float]) -> Measures:
    """What each row of the table asks of a contender."""
    return {
        "train step": contender.step,
        "training loop": contender.loop,
        "prediction, batch 1": lambda: 1e3 * contender.latency(1),
        "prediction, batch 16": lambda: 16 / contender.latency(16),
        "peak memory": peak,
    }


def device_or_host_gib() -> float:
    import jax

    statistics_of_device = jax.local_devices()[0].memory_stats() or {}
    peak = statistics_of_device.get("peak_bytes_in_use")
    return peak_gib() if peak is None else peak / 2**30


def our_flops(model: str, precision: str) -> float:
    """Floating-point operations of one training step, by XLA's count of the compiled program."""
    import jax

    from defect_jax import checkpoint
    from defect_jax.devices import AXIS
    from defect_jax.methods import make_method

    config = our_config(model, precision)
    method = make_method(config)
    state = jax.eval_shape(method.init, jax.random.PRNGKey(0), checkpoint.example_batch(config))
    batch = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            (1, config.train.batch_size, *leaf.shape[1:]), leaf.dtype
        ),
        checkpoint.example_batch(config),
    )
    step = jax.pmap(
        method.phases[0].train_step,
        axis_name=AXIS,
        in_axes=(None, 0),
        out_axes=None,
        devices=jax.local_devices()[:1],
    )
    return step.lower(state, batch).compile().cost_analysis()["flops"]


def matrix_rate(precision: str) -> float:
    """Floating-point operations a second of a product of two large matrices."""
    import jax
    import jax.numpy as jnp

    size = 4096 if jax.default_backend() == "cpu" else 16384
    a = jnp.ones((size, size), precision)
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(a, a))
    times = [repeat(1, lambda: jax.block_until_ready(product(a, a))) for _ in range(5)]
    return 2 * size**3 / min(times)


# ---------------------------------------------------------------------------------- PyTorch


def torch_networks() -> dict[str, Callable[[], Any]]:
    """`BergmannNet` and `UNet(width=32)` of defect_jax, written for PyTorch."""
    import torch
    from torch import nn

    class Block(nn.Sequential):
        def __init__(self, inputs: int, outputs: int):
            layers: list[nn.Module] = []
            for channels in (inputs, outputs):
                layers += [
                    nn.Conv2d(channels, outputs, 3, padding=1, bias=False),
                    nn.BatchNorm2d(outputs),
                    nn.ReLU(inplace=True),
                ]
            super().__init__(*layers)

    class UNet(nn.Module):
        def __init__(self, width: int = 32, depth: int = 4):
            super().__init__()
            sizes = [width * 2**level for level in range(depth + 1)]
            self.down = nn.ModuleList(map(Block, [3, *sizes[:-1]], sizes))
            self.up = nn.ModuleList(nn.ConvTranspose2d(2 * size, size, 2, 2) for size in sizes[:-1])
            self.merge = nn.ModuleList(Block(2 * size, size) for size in sizes[:-1])
            self.last = nn.Conv2d(width, 2, 1)

        def forward(self, x):
            skips = []
            for block in self.down[:-1]:
                skips.append(block(x))
                x = nn.functional.max_pool2d(skips[-1], 2)
            x = self.down[-1](x)
            for skip, up, merge in zip(
                skips[::-1], reversed(self.up), reversed(self.merge), strict=True
            ):
                x = merge(torch.cat([skip, up(x)], 1))
            return self.last(x)

    def bergmann() -> nn.Module:
        from defect_jax.models.autoencoder import _BERGMANN

        layers: list[nn.Module] = []
        channels = 3
        for features, size, stride in _BERGMANN:
            layers += [nn.Conv2d(channels, features, size, stride, 1), nn.LeakyReLU(0.2, True)]
            channels = features
        layers += [nn.Conv2d(channels, 100, 8), nn.LeakyReLU(0.2, True)]
        layers += [nn.ConvTranspose2d(100, channels, 8), nn.LeakyReLU(0.2, True)]
        targets = [features for features, _, _ in _BERGMANN[:-1]]
        for features, (_, size, stride) in zip(targets[::-1], _BERGMANN[:0:-1], strict=True):
            layers += [nn.ConvTranspose2d(channels, features, size, stride, 1)]
            layers += [nn.LeakyReLU(0.2, True)]
            channels = features
        return nn.Sequential(*layers, nn.ConvTranspose2d(channels, 3, 4, 2, 1), nn.Sigmoid())

    return {"autoencoder": bergmann, "unet": UNet}


def torch_ssim(x: Any, y: Any) -> Any:
    """The map of 1 - SSIM, [B, H, W], as `losses.pixel.ssim_residual` computes it."""
    import torch
    from torch.nn import functional

    taps = torch.exp(-0.5 * (torch.arange(-5, 6, device=x.device) / 1.5) ** 2)
    taps = (taps / taps.sum()).to(x.dtype)
    moments = torch.cat([x, y, x * x, y * y, x * y], 1)
    channels = moments.shape[1]
    moments = functional.pad(moments, (5, 5, 5, 5), mode="reflect")
    for shape in ((1, 1, 11, 1), (1, 1, 1, 11)):
        kernel = taps.view(shape).expand(channels, *shape[1:])
        moments = functional.conv2d(moments, kernel, groups=channels)
    mean_x, mean_y, xx, yy, xy = moments.chunk(5, 1)
    luminance = (2 * mean_x * mean_y + 1e-4) / (mean_x**2 + mean_y**2 + 1e-4)
    variances, covariance = xx + yy - mean_x**2 - mean_y**2, xy - mean_x * mean_y
    return 1 - (luminance * (2 * covariance + 9e-4) / (variances + 9e-4)).mean(1)


class TorchExamples:
    """A dataset for PyTorch's DataLoader, with the flips and the lighting of our configs."""

    def __init__(self, model: str):
        self.image, self.mask = draw_examples(model)
        self.flips = model == "unet"
        self.slope, self.bias = (0.2, 0.1) if self.flips else (0.05, 10 / 255)

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, number: int) -> tuple[Any, Any]:
        import torch

        x = torch.from_numpy(self.image[number]).permute(2, 0, 1).float() / 255
        y = torch.from_numpy(self.mask[number])
        for axis in (1, 2) if self.flips else ():
            if torch.rand(()) < 0.5:
                x, y = x.flip(axis), y.flip(axis - 1)
        if torch.rand(()) < 0.5:
            k, b = torch.rand(2) * 2 - 1
            x = ((1 + self.slope * k) * x + self.bias * b).clamp(0, 1)
        return x, y.long()


def torch_loader(model: str) -> Any:
    """Batches without end, shuffled."""
    import torch
    from torch.utils import data

    examples: Any = TorchExamples(model)  # has what DataLoader asks for
    loader: Any = data.DataLoader(
        examples,
        MODELS[model]["batch"],
        shuffle=True,
        drop_last=True,
        num_workers=min(8, os.cpu_count() or 1),
        multiprocessing_context="spawn",  # a fork of a process with threads may hang
        persistent_workers=True,
        pin_memory=torch.cuda.is_available(),
    )
    while True:
        yield from loader


class PyTorch:
    """PyTorch on one network."""

    def __init__(self, model: str, channels_last: bool, compiled: bool):
        import torch

        self.model, self.batch_size = model, MODELS[model]["batch"]
        self.gpu = torch.cuda.is_available()
        self.num_steps = steps_a_turn(model, self.gpu)
        self.device = torch.device("cuda" if self.gpu else "cpu")
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        torch.backends.cudnn.benchmark = True
        self.network = torch_networks()[model]().to(self.device, memory_format=self.layout)
        self.optimizer = torch.optim.Adam(self.network.parameters(), 1e-3)
        self.compiled = torch.compile(self.network) if compiled else self.network
        self.image, mask = draw_examples(model)
        first = slice(self.batch_size)
        self.batch = (
            self.to_network(self.image[first]),
            torch.from_numpy(mask[first]).long().to(self.device),
        )
        self.batches = torch_loader(model)

    def to_network(self, images: np.ndarray) -> Any:
        import torch

        x = torch.from_numpy(images).to(self.device).permute(0, 3, 1, 2).float() / 255
        return x.contiguous(memory_format=self.layout)

    def forward(self, x: Any) -> Any:
        import torch

        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.gpu):
            output = self.compiled(x)
        return output.float()

    def train(self, x: Any, y: Any) -> None:
        from torch.nn import functional

        self.optimizer.zero_grad(set_to_none=True)
        output = self.forward(x)
        if self.model == "autoencoder":
            loss = torch_ssim(x, output).mean()
        else:
            loss = functional.cross_entropy(output, y)
        loss.backward()
        self.optimizer.step()

    def seconds(self, count: int, take: Callable[[], tuple[Any, Any]]) -> float:
        """Seconds that `count` steps take, on the batches that `take` gives."""
        import torch

        def finish() -> float:
            if self.gpu:
                torch.cuda.synchronize()
            return time.perf_counter()

        self.network.train()
        self.train(*take())
        start = finish()
        for _ in range(count):
            self.train(*take())
        return finish() - start

    def step(self) -> float:
        return 1e3 * self.seconds(self.num_steps, lambda: self.batch) / self.num_steps

    def loop(self) -> float:
        def take() -> tuple[Any, Any]:
            images, masks = next(self.batches)
            images = images.to(self.device, non_blocking=True, memory_format=self.layout)
            return images, masks.to(self.device, non_blocking=True)

        count = 2 * self.num_steps
        return count * self.batch_size / self.seconds(count, take)

    def predict(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        import torch

        with torch.inference_mode():
            x = self.to_network(images)
            output = self.forward(x)
            if self.model == "autoencoder":
                score_map = torch_ssim(x, output)
            else:
                score_map = output[:, 1] - output[:, 0]
            return score_map.amax((1, 2)).cpu().numpy(), score_map.cpu().numpy()

    def latency(self, batch: int) -> float:
        self.network.eval()
        self.predict(self.image[:batch])
        return repeat(self.num_steps, lambda: self.predict(self.image[:batch]))


def pytorch(model: str, channels_last: bool, compiled: bool) -> Measures:
    import torch

    contender = PyTorch(model, channels_last, compiled)
    if contender.gpu:
        return measures_of(contender, lambda: torch.cuda.max_memory_allocated() / 2**30)
    return measures_of(contender, peak_gib)


# ------------------------------------------------------------------------------- evaluation


def draw_maps(count: int, size: int) -> Any:
    """Score maps float32 [size, size] with their masks, one after another; every other is good."""
    from scipy import ndimage

    rng = np.random.default_rng(0)
    for number in range(count):
        mask = np.zeros((size, size), np.uint8)
        if number % 2:
            for row, column in rng.integers(0, size - 100, (3, 2)):
                mask[row : row + rng.integers(20, 100), column : column + rng.integers(20, 100)] = 1
        noise = ndimage.zoom(rng.normal(size=(size // 16, size // 16)), 16, order=1)
        fine = rng.normal(0, 0.1, (size, size))
        yield (noise + fine + mask * rng.uniform(0.5, 2.5)).astype(np.float32), mask


def our_evaluation(count: int, size: int = 1024) -> dict[str, float]:
    """Pixel AUROC, AP and AUPRO by `metrics`, each with its bootstrapped interval."""
    from defect_jax.metrics import PixelRanking, bootstrap_weights

    total, seconds = None, 0.0
    for number, (score_map, mask) in enumerate(draw_maps(count, size)):
        start = time.perf_counter()
        weights = bootstrap_weights(0, number, 200)
        example = {"score_map": score_map, "mask": mask, "bootstrap": weights}
        one = PixelRanking.from_example(example)
        total = one if total is None else total.merge(one)
        seconds += time.perf_counter() - start
    assert total is not None
    start = time.perf_counter()
    results = {name: estimate.value for name, estimate in total.compute().items()}
    seconds += time.perf_counter() - start
    return results | {"seconds": seconds, "peak memory": peak_gib()}


def reference_evaluation(count: int, size: int = 1024) -> dict[str, float]:
    """scikit-learn's AUROC and AP, and AUPRO as MVTec's evaluation does it: every pixel sorted."""
    from scipy import ndimage
    from sklearn import metrics

    maps, masks = zip(*draw_maps(count, size), strict=True)
    scores, labels = np.stack(maps), np.stack(masks)
    start = time.perf_counter()
    results = {
        "pixel_auroc": metrics.roc_auc_score(labels.ravel(), scores.ravel()),
        "pixel_ap": metrics.average_precision_score(labels.ravel(), scores.ravel()),
    }
    # Each pixel adds its share to the false-positive rate or to its region's overlap.
    false_positives = (labels == 0).astype(np.float64).ravel()
    false_positives /= false_positives.sum()
    overlaps = np.zeros(labels.shape)
    regions = 0
    for number, mask in enumerate(labels):
        components, found = ndimage.label(mask, np.ones((3, 3)))
        regions += found
        for region in range(1, found + 1):
            overlaps[number][components == region] = 1 / np.sum(components == region)
    order = np.argsort(scores.ravel())[::-1]
    rate = np.cumsum(false_positives[order])
    overlap = np.cumsum(overlaps.ravel()[order]) / regions
    for name, limit in (("aupro_30", 0.30), ("aupro_05", 0.05)):
        inside = rate <= limit
        x = np.append(rate[inside], limit)
        y = np.append(overlap[inside], np.interp(limit, rate, overlap))
        results[name] = np.trapezoid(y, x) / limit
    return results | {"seconds": time.perf_counter() - start, "peak memory": peak_gib()}


# ---------------------------------------------------------------------------------- running


def serve(connection: Any, make: Callable[[], Any], memory: str, is_ours: bool) -> None:
    """A contender's process: builds it, and measures what it is asked for."""
    from defect_jax import runtime

    if is_ours:
        runtime.cache_compiled_programs()
    if is_ours or memory == "kept":
        runtime.keep_freed_memory()
    silence()
    measures = make()
    with contextlib.suppress(EOFError):  # when the other end is closed
        while True:
            connection.send(measures[connection.recv()]())


def silence() -> None:
    """What a training run prints is not of interest here."""
    from absl import logging

    logging.set_verbosity(logging.ERROR)
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def start(make: Callable[[], Any], memory: str, is_ours: bool) -> Any:
    """Starts a contender's process and returns the connection to it."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    if memory == "huge_pages":
        os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
    # Several processes share a GPU; by default JAX takes three quarters of its memory.
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    context.Process(target=serve, args=(there, make, memory, is_ours)).start()
    os.environ.pop("GLIBC_TUNABLES", None)
    there.close()
    return here


def ask(connection: Any, row: str) -> float:
    connection.send(row)
    return connection.recv()


def contenders(model: str, gpu: bool) -> dict[str, tuple[Callable[[], Measures], bool]]:
    """Name -> (how to build it, whether it is ours)."""
    precision = "bfloat16" if gpu else "float32"
    found: dict[str, tuple[Callable[[], Measures], bool]] = {
        "defect_jax": (functools.partial(ours, model, precision), True),
        "PyTorch": (functools.partial(pytorch, model, False, False), False),
        "PyTorch channels_last": (functools.partial(pytorch, model, True, False), False),
    }
    if gpu:
        compiled = functools.partial(pytorch, model, True, True)
        found["PyTorch channels_last compiled"] = (compiled, False)
    return found


def compare(model: str, gpu: bool, memory: str, rounds: int, rows: list[str]) -> dict[str, Any]:
    """Row -> contender -> what it measured in each round; the contenders take turns."""
    connections = {
        name: start(make, memory, is_ours)
        for name, (make, is_ours) in contenders(model, gpu).items()
    }
    measured: dict[str, dict[str, list[float]]] = {row: {} for row in rows}
    try:
        for row in rows:
            for number in range(rounds + 1):
                for name, connection in connections.items():
                    value = ask(connection, row)
                    if number:  # the first turn compiles and warms up
                        measured[row].setdefault(name, []).append(value)
            print_row(model, row, measured[row])
    finally:
        for connection in connections.values():
            connection.close()
    return measured


def print_row(model: str, row: str, measured: dict[str, list[float]]) -> None:
    unit, lower_is_better = ROWS[row]
    medians = {name: statistics.median(values) for name, values in measured.items()}
    words = [f"{model:12}{row:22}{unit:9}"]
    for name, value in medians.items():
        ratio = value / medians["defect_jax"]
        ratio = ratio if lower_is_better else 1 / ratio
        cell = f"{value:.4g}" if name == "defect_jax" else f"{value:.4g} (x{ratio:.2f})"
        words.append(f"{cell:>{max(16, len(name))}}")
    print("  ".join(words), flush=True)


def counted(gpu: bool) -> Measures:
    """FLOPs of a step of each network, and the rate of matrix products."""
    precision = "bfloat16" if gpu else "float32"
    measures: dict[str, Callable[[], float]] = {
        model: functools.partial(our_flops, model, precision) for model in MODELS
    }
    return measures | {"matrix rate": functools.partial(matrix_rate, precision)}


def evaluations() -> Any:
    return {
        "ours, 100 maps": functools.partial(our_evaluation, 100),
        "ours, 50 maps": functools.partial(our_evaluation, 50),
        "reference, 100 maps": functools.partial(reference_evaluation, 100),
    }


def compare_with_matrix_rate(model: str, gpu: bool, milliseconds: float) -> dict[str, float]:
    """The share of the rate of matrix products that a training step reaches."""
    counter = start(functools.partial(counted, gpu), "shipped", True)
    rate, flops = ask(counter, "matrix rate"), ask(counter, model)
    counter.close()
    reached = flops / (milliseconds / 1e3)
    print(
        f"{model:12}{flops / 1e9:.1f} GFLOP a step, {reached / 1e9:.0f} GFLOP/s: "
        f"{reached / rate:.0%} of the {rate / 1e9:.0f} of matrix products",
        flush=True,
    )
    return {"flops": flops, "matrix rate": rate}


def compare_evaluation() -> dict[str, dict[str, float]]:
    results = {}
    for name in evaluations():
        # A process each, as the largest size of one never shrinks.
        connection = start(evaluations, "shipped", True)
        connection.send(name)
        results[name] = connection.recv()
        connection.close()
        words = (f"{key} {value:.6g}" for key, value in results[name].items())
        print(f"evaluation, {name}: {', '.join(words)}", flush=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, help="where to write all that was measured")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", choices=MEMORY, default="shipped")
    parser.add_argument("--models", nargs="*", choices=list(MODELS), default=list(MODELS))
    known = [*ROWS, "evaluation"]
    parser.add_argument("--rows", nargs="*", choices=known, default=known)
    options = parser.parse_args()
    import torch

    gpu = torch.cuda.is_available()
    machine = torch.cuda.get_device_name() if gpu else f"{os.cpu_count()} CPU cores"
    print(f"{machine}, {platform.platform()}, torch {torch.__version__}, memory {options.memory}")
    print("x is how many times better defect_jax is")
    names = (f"{name:>{max(16, len(name))}}" for name in contenders("unet", gpu))
    print("  ".join([f"{'':43}", *names]), flush=True)
    results: dict[str, Any] = {"machine": machine, "memory": options.memory}
    rows = [row for row in options.rows if row in ROWS]
    for model in options.models if rows else ():
        results[model] = compare(model, gpu, options.memory, options.rounds, rows)
        if "train step" in rows:
            milliseconds = statistics.median(results[model]["train step"]["defect_jax"])
            results[model] |= compare_with_matrix_rate(model, gpu, milliseconds)
    if "evaluation" in options.rows:
        results["evaluation"] = compare_evaluation()
    if options.out:
        options.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
