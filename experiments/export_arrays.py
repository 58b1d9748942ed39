"""Writes a dataset as arrays, decoded and at a config's size, for machines without TensorFlow.

    python experiments/export_arrays.py --config=configs/mvtec_autoencoder.py \
        --config.data.root=/path/to/mvtec --out=screw.npz

Train on them with `--config.data.name=arrays --config.data.root=screw.npz`. Masks are shrunk with
their images, so figures are those of the smaller masks.
"""

import dataclasses
import pathlib
import sys

import ml_collections
from absl import app, flags, logging
from ml_collections import config_flags

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from defect_jax import runtime
from defect_jax.data import arrays, datasets, pipeline
from defect_jax.errors import UserError, lookup, naming_missing_fields
from defect_jax.paths import check_writable

CONFIG = config_flags.DEFINE_config_file("config", help_string="The run's config file.")
OUT = flags.DEFINE_string("out", None, "The .npz file to write.")


@naming_missing_fields()
def export(config: ml_collections.ConfigDict, path: pathlib.Path) -> dict[str, int]:
    """Writes the training and the test split; returns how many images each has.

    Raises:
        UserError: the file is there already or cannot be written, images are padded, or the data
            is bad.
    """
    pipeline.check(config)
    if config.data.fit != "resize":
        raise UserError("arrays do not tell padding from image: set data.fit to resize")
    if path.exists():
        raise UserError(f"{path} is there already: remove it or choose another name")
    check_writable(path)
    load = lookup(datasets.DATASETS, config.data.name, "data.name").load
    splits = {}
    for split in ("train", "test"):
        examples = load(config.data, split)
        decoded = pipeline.decode_all(config.data, examples)
        splits[split] = dataclasses.replace(examples, image=decoded["image"], mask=decoded["mask"])
    arrays.save(path, splits)
    return {split: len(examples) for split, examples in splits.items()}


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    logging.set_verbosity(logging.ERROR)
    try:
        counts = export(CONFIG.value, pathlib.Path(str(OUT.value)))
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"{OUT.value}: {counts['train']} training and {counts['test']} test images")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "out"])
    app.run(main, flags_parser=runtime.parse_flags)
