"""Cost against work: image size, batch, number of images; draws scaling.png beside this file.

    python experiments/scaling.py

Everything is drawn at random, so it needs no data. Each point is measured in a process of its
own, which makes its peak memory its own too.
"""

import argparse
import functools
import json
import multiprocessing
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

SIZES = (128, 256, 512, 1024)
BATCHES = (1, 4, 16, 64)
COUNTS = (100, 300, 1000, 3000, 10_000)
Point = dict[str, float]


def peak_bytes() -> int:
    """The largest resident size of this process so far, without what it was started by."""
    status = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def config_for(size: int, batch: int, count: int, folder: str) -> Any:
    """A config of the convolutional autoencoder, and the arrays it trains and is tested on."""
    from configs import mvtec_autoencoder

    config = mvtec_autoencoder.get_config()
    config.data.update(name="arrays", category="drawn", image_size=(size, size), cache="device")
    config.method.update(model="ssim_net", code_dim=128)
    config.train.batch_size = batch
    config.data.root = f"{folder}/arrays.npz"
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (count, size // 8, size // 8, 3), np.uint8)
    images = images.repeat(8, axis=1).repeat(8, axis=2)
    masks = np.zeros((count, size, size), np.uint8)
    masks[::2, : size // 4, : size // 4] = 1
    np.savez(config.data.root, train_image=images, test_image=images, test_mask=masks)
    return config


def train_and_predict(size: int, batch: int, count: int) -> Point:
    """Images a second of training steps on resident data, and of prediction."""
    import jax

    from defect_jax import checkpoint, devices, train
    from defect_jax.data import datasets, pipeline
    from defect_jax.evaluate import make_predict
    from defect_jax.methods import make_method

    with tempfile.TemporaryDirectory() as folder:
        config = config_for(size, batch, count, folder)
        examples = datasets.load_split(config, "test")
    method = make_method(config)
    state = jax.jit(method.init)(jax.random.PRNGKey(0), checkpoint.example_batch(config))
    state = devices.replicate(state)
    resident = devices.replicate(pipeline.decode_all(config.data, examples))
    take_steps = train.parallel_steps(method.phases[0], resident=True)
    order = train.shard(np.arange(10 * batch, dtype=np.int32).reshape(10, batch) % count, axis=1)
    predict = make_predict(method, state)
    part = {"image": examples.image[np.arange(batch) % count]}

    def steps(number: int) -> None:
        jax.block_until_ready(take_steps(state, resident, order, order, number))

    return {
        "training": batch / seconds_of(steps),
        "prediction": batch / seconds_of(lambda number: [predict(part) for _ in range(number)]),
    }


def seconds_of(work: Callable[[int], Any]) -> float:
    """Seconds of one of the things of which `work(n)` does n, n <= 10; the best of several."""
    work(1)
    start = time.perf_counter()
    work(1)
    number = int(np.clip(1 / (time.perf_counter() - start), 1, 10))
    best = np.inf
    for _ in range(4):
        start = time.perf_counter()
        work(number)
        best = min(best, (time.perf_counter() - start) / number)
    return best


def train_one_step(count: int, folder: str) -> Point:
    """Leaves a run to be evaluated on `count` images."""
    from defect_jax import run, train

    config = config_for(64, 4, count, folder)
    config.train.num_steps = 1
    config.data.validation_fraction = 8 / count
    workdir = pathlib.Path(folder) / "run"
    train.train(run.open_run(config, workdir, "train"), workdir)
    return {}


def evaluate_run(folder: str) -> Point:
    """Seconds of an evaluation, the memory it takes, and how much of that the images are."""
    from defect_jax import checkpoint
    from defect_jax.data import datasets
    from defect_jax.evaluate import evaluate

    workdir = pathlib.Path(folder) / "run"
    config = checkpoint.read_config(workdir)
    before = peak_bytes()
    datasets.load_split(config, "test")  # evaluation loads it into the same memory
    images = peak_bytes() - before
    seconds = evaluate(config, workdir)["seconds"]
    return {"seconds": seconds, "bytes": peak_bytes() - before - images}


def alone(measure: Callable[[], Point]) -> Point:
    """Measures in a process of its own."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, measure))
    process.start()
    there.close()
    point = here.recv()
    process.join()
    return point


def _serve(connection: Any, measure: Callable[[], Point]) -> None:
    from absl import logging

    from defect_jax import runtime

    logging.set_verbosity(logging.ERROR)
    runtime.set_up()
    connection.send(measure())


def measure_all() -> dict[str, dict[int, Point]]:
    results: dict[str, dict[int, Point]] = {}

    def record(name: str, key: int, measure: Callable[[], Point]) -> None:
        point = results.setdefault(name, {})[key] = alone(measure)
        print(name, key, {k: f"{value:.4g}" for k, value in point.items()}, flush=True)

    for size in SIZES:
        record("size", size, functools.partial(train_and_predict, size, 4, 8))
    for batch in BATCHES:
        record("batch", batch, functools.partial(train_and_predict, 128, batch, 64))
    for count in COUNTS:
        record("count", count, functools.partial(train_and_predict, 64, 16, count))
    for count in COUNTS:
        with tempfile.TemporaryDirectory() as folder:
            alone(functools.partial(train_one_step, count, folder))
            record("evaluation", count, functools.partial(evaluate_run, folder))
    return results


def draw(results: dict[str, dict[int, Point]], path: pathlib.Path) -> None:
    figure, axes = plt.subplots(1, 4, figsize=(16, 3.8), layout="constrained")
    titles = {
        "size": "side of the image in pixels (batch 4)",
        "batch": "batch (128x128)",
        "count": "images in the training set (64x64, batch 16)",
    }
    for axis, (name, label) in zip(axes[:3], titles.items(), strict=True):
        keys = list(results[name])
        for kind in ("training", "prediction"):
            axis.plot(keys, [results[name][key][kind] for key in keys], "o-", label=kind)
        axis.set(xscale="log", xlabel=label, ylabel="images/s")
        axis.set_xticks(keys, [str(key) for key in keys])
        axis.minorticks_off()
    keys = list(results["size"])
    for kind in ("training", "prediction"):
        first = results["size"][keys[0]][kind]
        same = [first * (keys[0] / key) ** 2 for key in keys]
        label = "cost linear in pixels" if kind == "training" else ""
        axes[0].plot(keys, same, "k:", linewidth=1, label=label)
    axes[0].set_yscale("log")
    for axis in axes[1:3]:
        axis.set_ylim(bottom=0)
    keys = list(results["evaluation"])
    seconds = [results["evaluation"][key]["seconds"] for key in keys]
    added = [results["evaluation"][key]["bytes"] / 2**20 for key in keys]
    axes[3].plot(keys, seconds, "o-", label="seconds")
    axes[3].plot(keys, added, "s-", label="memory added, MiB")
    linear = [seconds[0] * key / keys[0] for key in keys]
    axes[3].plot(keys, linear, "k:", linewidth=1, label="time linear in images")
    axes[3].set(
        xscale="log",
        yscale="log",
        xlabel="images evaluated (64x64)",
        ylabel="beside the images themselves",
    )
    axes[3].set_xticks(keys, [str(key) for key in keys])
    axes[3].minorticks_off()
    for axis in axes:
        axis.legend()
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    here = pathlib.Path(__file__).with_suffix(".png")
    parser.add_argument("--out", type=pathlib.Path, default=here, help="the plot; .json beside it")
    options = parser.parse_args()
    results = measure_all()
    options.out.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    draw(results, options.out)


if __name__ == "__main__":
    main()
