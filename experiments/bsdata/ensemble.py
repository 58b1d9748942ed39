"""Finished runs on BSData: grouped by what they were tested on, and predicting together."""

import argparse
import functools
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
import tqdm
from flax import traverse_util
from scipy import special

from defect_jax import checkpoint
from defect_jax.data import datasets, pipeline
from defect_jax.data.examples import Examples
from defect_jax.errors import UserError, naming_missing_fields
from defect_jax.evaluate import check_defect_fields, make_predict, predictions
from defect_jax.methods import SUPERVISED, make_method
from defect_jax.metrics import Example, bootstrap_weights
from defect_jax.ops.objects import remove_small
from defect_jax.train import check_finished

BOOTSTRAP_SAMPLES = 1000
# Of config.eval: whatever is likelier a pit than not.
UNCUT = {"min_log_odds": 0.0, "min_area": 1}


class Entry(NamedTuple):
    """A finished run: its folder, and its config as it is to predict."""

    folder: pathlib.Path
    config: ml_collections.ConfigDict


class Group(NamedTuple):
    """Runs that are tested on the same images.

    Attributes:
        split: their `data.split`.
        fold: their `data.fold`; 0 for the official split, which has none.
        entries: at least one.
    """

    split: str
    fold: int
    entries: tuple[Entry, ...]

    @property
    def name(self) -> str:
        """'official' or 'grouped fold 3', say."""
        return self.split if self.split == "official" else f"{self.split} fold {self.fold}"


def read_runs(
    folders: Sequence[pathlib.Path],
    root: str | None = None,
    defect_fields: Mapping[str, float] | None = None,
    flip_average: bool | None = None,
) -> list[Entry]:
    """Reads the configs of runs, and makes sure that they can be measured.

    Args:
        folders: of the runs.
        root: where BSData lies; None for where each run found it.
        defect_fields: what to set of `eval.min_log_odds` and `eval.min_area` for runs on the
            official split. They are chosen on its training frames, which other splits test on, so
            runs on these have `UNCUT`, whatever their configs say.
        flip_average: whether runs predict the mean over four flips; None for as each has it.

    Raises:
        UserError: no run there, one that is not finished, of another version or kind, a bad field,
            other images than the run was trained on, or none on the official split to set
            `defect_fields` of.
    """
    entries = []
    for folder in folders:
        config = checkpoint.read_config(folder)
        with naming_missing_fields(folder):
            _check(folder, config)
            if root is not None:
                config.data.root = root
            official = config.data.split == "official"
            config.eval.update((defect_fields or {}) if official else UNCUT)
            if flip_average is not None:
                config.eval.flip_average = flip_average
            check_defect_fields(config)
            pipeline.check(config)
        entries.append(Entry(folder, config))
    if defect_fields and all(entry.config.data.split != "official" for entry in entries):
        raise UserError(
            f"{' and '.join(defect_fields)} would change nothing: they are chosen for the official "
            "split, which none of the runs has. Of other runs, --mode=evaluate of defect_jax.main "
            "takes them as --config.eval fields"
        )
    for folder, config in entries:
        datasets.check_same_images(config, folder)
    return entries


def add_flip_average(parser: argparse.ArgumentParser) -> None:
    """Adds the flags `--flip_average` and `--no-flip_average`."""
    parser.add_argument(
        "--flip_average",
        action=argparse.BooleanOptionalAction,
        help="predict the mean over four flips, or one view, whatever the runs have",
    )


def group_runs(entries: Sequence[Entry]) -> list[Group]:
    """Groups runs by split and fold, in the order in which these first come.

    Raises:
        UserError: two runs of one group that are the same run, or of which one alone predicts the
            mean over flips.
    """
    members: dict[tuple[str, int], list[Entry]] = {}
    for entry in entries:
        data = entry.config.data
        key = (data.split, 0 if data.split == "official" else data.fold)
        members.setdefault(key, []).append(entry)
    groups = [Group(*key, tuple(group)) for key, group in members.items()]
    for group in groups:
        if len({entry.config.eval.flip_average for entry in group.entries}) > 1:
            raise UserError(
                f"the runs on {group.name} differ in eval.flip_average: pass --flip_average or "
                "--no-flip_average"
            )
        seen: dict[str, pathlib.Path] = {}
        for entry, fields in zip(group.entries, differences(group.entries), strict=True):
            fields.pop("data.fold", None)  # in which the official split has no part
            twin = seen.setdefault(repr(fields), entry.folder)
            if twin is not entry.folder:
                raise UserError(
                    f"{twin} and {entry.folder} are the same run on {group.name}: give runs that "
                    "differ in seed or method"
                )
    return groups


def differences(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """The config's fields in which runs differ, with each run's values.

    Where things lie, how often a run reports and how it is evaluated make no difference.
    """
    configs = [traverse_util.flatten_dict(one.config.to_dict(), sep=".") for one in entries]
    names = [
        name
        for name in sorted(set().union(*configs))
        if not name.startswith(checkpoint.FREE_FIELDS)
        and any(config.get(name) != configs[0].get(name) for config in configs)
    ]
    return [{name: config.get(name) for name in names} for config in configs]


def predict_together(group: Group) -> Iterator[list[Example]]:
    """Each test image with what each run of the group predicts for it, image after image.

    The examples are those of `evaluate.predictions`; `bootstrap` is the same for all runs, and
    drawn anew for each fold. Progress goes to stderr.
    """
    examples = datasets.load_split(group.entries[0].config, "test")
    streams = [_predict(entry, examples) for entry in group.entries]
    bar = tqdm.tqdm(
        zip(*streams, strict=True), desc=group.name, total=len(examples), unit=" images"
    )
    for number, together in enumerate(bar):
        weights = bootstrap_weights(group.fold, number, BOOTSTRAP_SAMPLES)
        yield [{**example, "bootstrap": weights} for example in together]
    jax.clear_caches()


def mean_log_odds(together: Sequence[Example]) -> np.ndarray:
    """The log-odds [h, w] of the mean over runs of the probability sigmoid(score_map)."""
    maps = [example["score_map"] for example in together]
    if len(maps) == 1:
        return maps[0]
    # Of float64, and of logarithms, as a probability that rounds to 1 has no log-odds.
    maps = [values.astype(np.float64) for values in maps]
    pit = functools.reduce(np.logaddexp, [special.log_expit(values) for values in maps])
    none = functools.reduce(np.logaddexp, [special.log_expit(-values) for values in maps])
    return pit - none


def average(together: Sequence[Example], min_log_odds: float, min_area: int) -> Example:
    """The prediction of an ensemble, cut as `evaluate` cuts that of a run.

    Args:
        together: one image with the predictions of several runs.
        min_log_odds: of the mean probability, above which a pixel is a pit's.
        min_area: smaller pits are left out; in pixels of the file.
    """
    log_odds = mean_log_odds(together)
    classes = remove_small((log_odds > min_log_odds).astype(np.uint8), min_area)
    return {
        **together[0],
        "score_map": log_odds.astype(np.float32),
        "class_map": classes,
        "score": float(log_odds.max()),
    }


def _check(folder: pathlib.Path, config: ml_collections.ConfigDict) -> None:
    if config.data.name != "bsdata" or config.method.name not in SUPERVISED:
        raise UserError(
            f"{folder} is a run of '{config.method.name}' on '{config.data.name}': give runs of "
            f"{' or '.join(sorted(SUPERVISED))} on bsdata"
        )
    if config.method.smoothing:
        raise UserError(
            f"{folder} smooths its score maps, which are no log-odds then: give runs with "
            "method.smoothing 0"
        )
    check_finished(config, folder)


def _predict(entry: Entry, examples: Examples) -> Iterator[Example]:
    state = checkpoint.load_run(entry.folder).state
    yield from predictions(entry.config, examples, make_predict(make_method(entry.config), state))
