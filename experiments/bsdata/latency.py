"""How long a prediction on an image of BSData takes on a CPU, and how much memory.

    python experiments/bsdata/latency.py
    python experiments/bsdata/latency.py --runs runs/official_0

Of finished runs, or without any of the fresh networks of two configs. A prediction goes from a
decoded image to the class of each of its pixels, in float32 unless the config says otherwise:

    whole   the image at its own resolution in one piece, continued to multiples of 32 pixels
    tiles   one at a time, those of the config, or of bsdata_residual_unet.py where it has none
    shrunk  to the size, or the height, at which the network was trained, and the map back

with one view of the image or the mean over four flips. Each row is measured in a process of its
own. Its peak memory is the maximum resident set of that process, nothing taken off: Python and its
libraries, compiling, parameters with their optimizer's state, as evaluation loads them, and what
malloc keeps of freed memory (see `defect_jax.runtime`).
"""

import argparse
import functools
import math
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import jax
import ml_collections
import numpy as np
from absl import logging

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from configs import bsdata_residual_unet, bsdata_znet
from defect_jax import checkpoint
from defect_jax.data import pipeline
from defect_jax.data.examples import Examples
from defect_jax.errors import UserError, require, require_size, require_within
from defect_jax.evaluate import Predict, at_native_size, make_predict, predictions
from defect_jax.method import State
from defect_jax.methods import SUPERVISED, make_method
from defect_jax.metrics import Example
from defect_jax.ops import tiles
from experiments.scaling import Point, alone, peak_bytes

FRESH: dict[str, Callable[[], ml_collections.ConfigDict]] = {
    "bsdata_residual_unet": bsdata_residual_unet.get_config,
    "bsdata_znet": bsdata_znet.get_config,
}
SIZE = (645, 1540)  # height, width of the larger frames of type 2
VIEWS = {1: False, 4: True}  # of the image -> eval.flip_average


def open_network(source: str) -> tuple[ml_collections.ConfigDict, State | None]:
    """The config of a network, and its state where it is a run's.

    Args:
        source: a key of `FRESH`, or the folder of a run.

    Raises:
        UserError: no run there, or one of no segmenter.
    """
    if source in FRESH:
        return FRESH[source](), None
    run = checkpoint.load_run(source)
    require(run.config.method.name, SUPERVISED, f"method of {source}")
    return run.config, run.state


def ways(config: ml_collections.ConfigDict) -> tuple[str, ...]:
    """How a network of this config can take an image."""
    native = config.data.fit == "crop" and not config.data.frame_height
    return ("whole", "tiles") if native else ("whole", "tiles", "shrunk")


def set_way(config: ml_collections.ConfigDict, way: str, size: tuple[int, int]) -> str:
    """Sets what the config says of tiles, so that images of this size are taken in that way.

    Returns:
        What the network takes.
    """
    if way == "shrunk" and config.data.fit == "crop":
        return f"shrunk to a height of {config.data.frame_height}"
    if way == "shrunk":
        return "shrunk to {}x{}".format(*config.data.image_size)
    config.data.update(fit="crop", frame_height=0)
    if way == "whole":
        height, width = (-(-side // tiles.GRID) * tiles.GRID for side in size)
        config.eval.update(tile=(height, width), overlap=0)
        return f"whole, {height}x{width}"
    if "tile" not in config.eval:
        other = bsdata_residual_unet.get_config().eval
        config.eval.update(tile=other.tile, overlap=other.overlap)
    tile = tuple(config.eval.tile)
    count = len(tiles.corners(tiles.covered(size, tile), tile, config.eval.overlap))
    return f"tiles of {tile[0]}x{tile[1]}, overlap {config.eval.overlap}: {count}"


def draw_image(size: tuple[int, int], channels: int) -> Examples:
    """One image of noise, decoded; what is on an image makes no difference."""
    image = np.random.default_rng(0).integers(0, 256, (1, *size, channels), np.uint8)
    mask, label = np.zeros((1, *size), np.uint8), np.zeros(1, np.int32)
    return Examples(image, mask, label, np.array(["good"]), np.array(["noise"]))


def predict_one(config: ml_collections.ConfigDict, examples: Examples, predict: Predict) -> Example:
    """The one example with its prediction, as `evaluate.predictions` yields it."""
    if config.data.fit == "crop":
        return next(predictions(config, examples, predict))
    pixels = pipeline.fitted_image(config.data, examples, 0)
    pixels = pipeline.pad_to(pixels, config.data.image_size)
    predicted = predict({"image": pixels[None], "index": np.zeros(1, np.int32)})
    return at_native_size(config, examples, 0, pixels, {n: v[0] for n, v in predicted.items()})


def measure(source: str, way: str, views: int, size: tuple[int, int], repeats: int) -> Point:
    """The median of the seconds that a prediction takes, and this process's peak of bytes.

    To be called once in a process, before it computes anything.
    """
    jax.config.update("jax_platforms", "cpu")
    # Else the peak would say whether the program was compiled or read from an earlier process.
    jax.config.update("jax_enable_compilation_cache", False)
    config, state = open_network(source)
    set_way(config, way, size)
    config.eval.update(flip_average=VIEWS[views], batch_size=1)
    method = make_method(config)
    if state is None:
        state = jax.jit(method.init)(jax.random.PRNGKey(0), checkpoint.example_batch(config))
    predict = make_predict(method, state)
    examples = draw_image(size, config.data.channels)
    seconds = []
    for _ in range(1 + repeats):
        start = time.perf_counter()
        predict_one(config, examples, predict)
        seconds.append(time.perf_counter() - start)
    return {"seconds": statistics.median(seconds[1:]), "bytes": float(peak_bytes())}


def as_markdown(sources: Sequence[str], size: tuple[int, int], repeats: int) -> str:
    """Measures every row and makes the table."""
    lines = [
        f"{size[1]}x{size[0]} pixels; median of {repeats} predictions after one to warm up",
        "",
        "| network | the image | views | seconds | peak memory, GiB |",
        "|---|---|---:|---:|---:|",
    ]
    for source in sources:
        for way in ways(open_network(source)[0]):
            text = set_way(open_network(source)[0], way, size)
            for views in VIEWS:
                point = alone(functools.partial(measure, source, way, views, size, repeats))
                figures = f"{point['seconds']:.2f} | {point['bytes'] / 2**30:.2f}"
                lines.append(f"| {source} | {text} | {views} | {figures} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", nargs="+", default=list(FRESH), metavar="FOLDER")
    parser.add_argument("--size", type=int, nargs=2, default=SIZE, metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--repeats", type=int, default=9, help="predictions in each row")
    options = parser.parse_args(arguments)
    logging.set_verbosity(logging.ERROR)  # Orbax tells its inner life at INFO
    try:
        require_size(options.size, "--size")
        require_within(options.repeats, 1, math.inf, "--repeats")
        height, width = options.size
        print(as_markdown(options.runs, (height, width), options.repeats), flush=True)
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
