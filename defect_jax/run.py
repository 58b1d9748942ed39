"""One run, over one category or all, or one for each category."""

import math
import pathlib
from typing import Any

import ml_collections

from defect_jax import __version__, checkpoint, devices, distributed, meeting, visualize
from defect_jax.data import crops, datasets, pipeline
from defect_jax.errors import UserError, naming_missing_fields, require, require_within
from defect_jax.evaluate import check_defect_fields, evaluate
from defect_jax.methods import SUPERVISED, make_method
from defect_jax.metrics import RULES
from defect_jax.paths import to_writable_path
from defect_jax.train import check_batch_size, check_length, check_steps, phase_ends, train

COUNTS = (
    "train.num_steps",
    "train.log_every",
    "train.checkpoint_every",
    "train.max_to_keep",
    "eval.batch_size",
    "eval.num_shown",
    "eval.max_flagged_pixels",
)
ON_NONFINITE = ("stop", "skip")
MOST_SEED = 2**32 - 1  # JAX's keys take a seed's last 32 bits, so others would be no other seeds
MOST_SAMPLES = 100_000  # each figure of each image has as many
SHARES = ("image_quantile", "pixel_quantile", "unflagged_share")
TABLE_KEYS = ["image_auroc", "image_ap", "pixel_auroc", "pixel_ap", "aupro_30", "iou", "dice"]


def run(
    config: ml_collections.ConfigDict,
    workdir: str | pathlib.Path,
    mode: str,
    step: int | None = None,
) -> dict[str, dict]:
    """Trains (in mode 'train') and evaluates, and prints a table.

    With `config.data.category` 'all' there is one run for each category, in a sub-folder of its
    name, or with `config.data.one_model` one run over all, whose results for each category lie in
    such a sub-folder; the table ends with their mean. Where `step` is not None, a run goes on from
    the checkpoint of that step, or in mode 'evaluate' that one is evaluated, rather than the last.

    Returns:
        category -> what `evaluate` returns.

    Raises:
        UserError: see `open_run`, `train` and `evaluate`; or the folder holds runs of another kind.
    """
    workdir = to_writable_path(workdir)
    categories = datasets.categories(config)
    if config.data.one_model:
        results = _run_one_model(config, workdir, mode, categories, step)
    else:
        results = _run_each(config, workdir, mode, categories, step)
    last = phase_ends(config, make_method(config))[-1]
    if any(result["step"] != last for result in results.values()):
        at = " and ".join(str(one) for one in sorted({one["step"] for one in results.values()}))
        print(f"\nnote: these are figures of step {at} of {last}", flush=True)
    keys = [key for key in TABLE_KEYS if any(key in result for result in results.values())]
    print("\n" + visualize.results_table(results, keys), flush=True)
    if config.data.category == "all":
        checkpoint.write_json(workdir / "results.json", results)
    return results


def settings(
    config: ml_collections.ConfigDict, workdir: str | pathlib.Path, mode: str, step: int | None
) -> dict[str, Any]:
    """What must be the same in all processes of a run: all but where each finds its images."""
    fields = checkpoint.flat(config.copy_and_resolve_references().to_dict())
    del fields["data.root"], fields["data.cache_dir"]
    command = {"--workdir": str(workdir), "--mode": mode, "--step": step}
    return {"defect_jax's version": __version__} | command | fields


def open_run(
    config: ml_collections.ConfigDict, workdir: pathlib.Path, mode: str
) -> ml_collections.ConfigDict:
    """Resolves the config of a run and sees to its folder.

    A new run draws its validation images and writes `config.json`, with a digest of the training
    images; a run that is there must have the same config and the same training images.

    Raises:
        UserError: the folder holds a run of another config, or, in mode 'evaluate', none; or the
            config or the data is bad, in which case nothing is written; or processes have other
            images, or do not share the folder.
    """
    config = config.copy_and_resolve_references()
    # Process 0 alone looks, since it is the one that writes.
    (stored, *_) = distributed.everywhere(
        lambda: _read_stored(workdir, mode) if distributed.is_first() else None
    )
    digests = distributed.everywhere(lambda: _resolve(config, workdir, stored))
    if len(set(digests)) > 1:
        found = meeting.describe(dict(enumerate(digests)))
        raise UserError(f"training images differ, by their digest ({found}): give all the same")
    if stored is None:
        distributed.everywhere(lambda: checkpoint.write_config(workdir, config))
    distributed.everywhere(lambda: _check_shared(workdir))
    return config


def _read_stored(workdir: pathlib.Path, mode: str) -> ml_collections.ConfigDict | None:
    """The config of the run that is there; None where a new one may begin."""
    if mode == "evaluate" or (workdir / "config.json").exists():
        return checkpoint.read_config(workdir)
    if (workdir / "checkpoints").exists():
        raise UserError(f"{workdir} holds checkpoints but no config.json: use another workdir")
    return None


def _check_shared(workdir: pathlib.Path) -> None:
    if not (workdir / "config.json").is_file():
        raise UserError(f"{workdir} lacks the config.json that process 0 has there: share a folder")


@naming_missing_fields()
def _resolve(
    config: ml_collections.ConfigDict,
    workdir: pathlib.Path,
    stored: ml_collections.ConfigDict | None,
) -> str:
    """Fills in what depends on the images; returns the digest of those to train on."""
    _check_finite(config)
    # A finished run of a larger one can be evaluated still.
    require_within(config.seed, 0, MOST_SEED if stored is None else math.inf, "seed")
    check(config)
    if stored is not None:
        with naming_missing_fields(workdir):
            config.data.validation_files = stored.data.validation_files
            config.data.train_digest = stored.data.train_digest
        # First of all, since another category's images would be missed among this one's.
        checkpoint.check_same_run(workdir, config, stored)
    elif not config.data.validation_files:
        config.data.validation_files = datasets.draw_validation(config)
    digest = datasets.check_splits(config)
    if stored is not None:
        datasets.check_same_images(config, workdir, digest)
    config.data.train_digest = digest
    if stored is None and config.data.fit == "crop":
        crops.check(config, datasets.load_split(config, "train"), devices.host_bytes())
    return digest


def _check_finite(config: ml_collections.ConfigDict) -> None:
    for field, value in checkpoint.flat(config.to_dict()).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{field} is {value}: it must be a finite number")


def check(config: ml_collections.ConfigDict) -> None:
    """Raises UserError where the config cannot be trained or evaluated, before anything is done."""
    if config.data.one_model and config.data.category != "all":
        raise UserError(
            f"data.one_model is True with data.category '{config.data.category}': set "
            "data.category to all, or data.one_model to False"
        )
    check_batch_size(config)
    require(config.train.on_nonfinite, ON_NONFINITE, "train.on_nonfinite")
    pipeline.check(config)
    if config.data.hard_share and config.method.name not in SUPERVISED:
        raise UserError(
            f"data.hard_share is {config.data.hard_share}, but method '{config.method.name}' does "
            "not learn from false alarms: set 0 or take a segmenter"
        )
    check_defect_fields(config)
    require(config.eval.threshold_rule, RULES, "eval.threshold_rule")
    for field in COUNTS:
        group, name = field.split(".")
        require_within(getattr(config[group], name), 1, math.inf, field)
    require_within(config.eval.bootstrap_samples, 1, MOST_SAMPLES, "eval.bootstrap_samples")
    period, kept = config.train.checkpoint_every, config.train.keep_every
    if kept < 0 or kept % period:
        raise UserError(
            f"train.keep_every is {kept}: it must be 0 or a multiple of train.checkpoint_every, "
            f"{period}"
        )
    for field in SHARES:
        share = getattr(config.eval, field)
        if not 0 < share <= 1:
            raise UserError(f"eval.{field} is {share}: it must lie in (0, 1]")
    method = make_method(config)
    check_length(config, method)
    check_steps(config, method)


def _run_each(
    config: ml_collections.ConfigDict,
    workdir: pathlib.Path,
    mode: str,
    categories: list[str],
    step: int | None,
) -> dict[str, dict]:
    if config.data.category == "all" and (workdir / "config.json").exists():
        if checkpoint.read_config(workdir).data.category == "all":
            raise UserError(
                f"{workdir} holds one run over all categories: set data.one_model to True or use "
                "another workdir"
            )
        raise UserError(f"{workdir} holds a run of one category: use another workdir for all")
    results = {}
    for category in categories:
        one = config.copy_and_resolve_references()
        one.data.category = category
        folder = workdir / category if config.data.category == "all" else workdir
        one = open_run(one, folder, mode)
        if mode == "train":
            train(one, folder, step)
        results[category] = evaluate(one, folder, step=step if mode == "evaluate" else None)
    return results


def _run_one_model(
    config: ml_collections.ConfigDict,
    workdir: pathlib.Path,
    mode: str,
    categories: list[str],
    step: int | None,
) -> dict[str, dict]:
    if any((workdir / category / "config.json").exists() for category in categories):
        raise UserError(
            f"{workdir} holds a run for each category: set data.one_model to False or use another "
            "workdir"
        )
    config = open_run(config, workdir, mode)
    if mode == "train":
        train(config, workdir, step)
    return {
        category: evaluate(
            datasets.of_category(config, category),
            workdir,
            results_folder=workdir / category,
            step=step if mode == "evaluate" else None,
        )
        for category in categories
    }
