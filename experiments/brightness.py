"""Image AUROC of runs, as it is and with every test image brought to one brightness.

    python experiments/brightness.py runs/sweep/mvtec_vae/screw/0 runs/screw

Where good and defective test images were taken in different light, mean brightness alone separates
them (`brightness_auroc` of a run's `metrics.json`), and a score that follows it is worth nothing
on the next camera. Here each test image is multiplied so that its mean is that of the training
images, which takes that help away, and the AUROC of the run's scores is taken again.
"""

import argparse
import functools
import pathlib
import sys
from typing import NamedTuple

import numpy as np
from absl import logging

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from defect_jax import checkpoint, runtime
from defect_jax.data import datasets, pipeline
from defect_jax.errors import UserError
from defect_jax.evaluate import eval_batch_size, make_predict
from defect_jax.metrics import BrightnessRanking, ImageRanking
from defect_jax.train import check_finished


class Row(NamedTuple):
    """AUROC on the test images: of brightness alone, of a run's score, and of that equalised."""

    brightness: float
    score: float
    equalised: float


def equalise(image: np.ndarray, mean: float) -> np.ndarray:
    """Multiplies an image, uint8 [H, W, C], so that its mean becomes `mean`; clips at 255."""
    factor = mean / max(float(image.mean()), 1.0)
    return np.clip(np.rint(image * factor), 0, 255).astype(np.uint8)


def measure(folder: pathlib.Path, root: str | None) -> Row:
    """What a run's scores are worth with and without the help of brightness.

    Args:
        folder: of a finished run over one category.
        root: where its dataset lies; None for where the run found it.

    Raises:
        UserError: no such run or images, one that is not finished, a run over all categories, or
            test images that are all good or all defective.
    """
    run = checkpoint.load_run(folder)
    config = run.config
    if config.data.one_model:
        raise UserError(f"{folder} is a run over all categories: give runs of one category")
    if config.data.fit == "crop":
        raise UserError(f"{folder} is a run on crops: give runs on whole images")
    check_finished(config, folder)
    if root is not None:
        config.data.root = root
    datasets.check_same_images(config, folder)
    examples = datasets.load_split(config, "test")
    if len(set(examples.label.tolist())) < 2:
        raise UserError(f"{folder}: its test images are all good or all defective, so none ranks")
    predict = make_predict(run.method, run.state)
    train = pipeline.decode_all(config.data, datasets.load_split(config, "train"))
    mean = float(train["image"].mean())
    states: list[tuple[BrightnessRanking, ImageRanking, ImageRanking]] = []
    for batch in pipeline.eval_batches(config, examples, eval_batch_size(config)):
        plain = predict(batch)["score"]
        image = np.stack([equalise(image, mean) for image in batch["image"]])
        equalised = predict(batch | {"image": image})["score"]
        for place in np.flatnonzero(batch["weight"]):
            one = {"label": int(batch["label"][place]), "bootstrap": np.zeros(0)}
            states.append(
                (
                    BrightnessRanking.from_example(one | {"image": batch["image"][place]}),
                    ImageRanking.from_example(one | {"score": float(plain[place])}),
                    ImageRanking.from_example(one | {"score": float(equalised[place])}),
                )
            )
    brightness, *scores = (
        functools.reduce(lambda a, b: a.merge(b), column) for column in zip(*states, strict=True)
    )
    return Row(
        brightness.compute()["brightness_auroc"].value,
        *(ranking.compute()["image_auroc"].value for ranking in scores),
    )


def main(arguments: list[str] | None = None) -> None:
    """Measures the runs that the flags name, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=pathlib.Path, nargs="+", help="folders of finished runs")
    parser.add_argument("--root", help="where the images lie now, if no longer where they were")
    options = parser.parse_args(arguments)
    logging.set_verbosity(logging.ERROR)  # Orbax and tfds tell their inner life at INFO
    runtime.set_up()
    print("| run | brightness alone | image AUROC | image AUROC, equalised |")
    print("|---|---:|---:|---:|")
    try:
        for folder in options.runs:
            row = measure(folder, options.root)
            print(f"| {folder} | " + " | ".join(f"{value:.3f}" for value in row) + " |", flush=True)
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
