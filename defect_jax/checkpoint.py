"""A run's folder: its config, its checkpoints, and how to load them again.

A checkpoint holds two items: `state`, and a `record` of what the state must be, by which a damaged
one is known. What was saved half when a process died has another name, and counts for nothing.
"""

import concurrent.futures
import contextlib
import hashlib
import json
import pathlib
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import orbax.checkpoint as ocp

from defect_jax import distributed, watch
from defect_jax.errors import UserError, naming_missing_fields
from defect_jax.method import Batch, Method, State
from defect_jax.methods import make_method
from defect_jax.paths import is_remote, resolve, to_writable_path, write_atomically

# What a checkpoint's fingerprint leaves out: where things lie and how often a run reports. With one
# more or less, the checkpoints that are there would be taken for those of another config.
_UNSIGNED_FIELDS = (
    "profile",
    "data.root",
    "data.cache",
    "data.cache_dir",
    "train.log_every",
    "train.checkpoint_every",
    "train.max_to_keep",
    "train.keep_every",
    "eval.",
)
# What may change between two starts of one run: that, and what lets it go on where it could not,
# past a step that is not finite or in less memory. The latter is the same gradient in parts, but
# batch normalisation then has the statistics of the parts.
FREE_FIELDS = (*_UNSIGNED_FIELDS, "train.accumulate", "train.on_nonfinite")


class Run(NamedTuple):
    """A run, loaded for analysis.

    Attributes:
        config: as the run resolved it.
        method: the Method that the config builds.
        state: the restored State.
        predict: Batch -> dict of arrays, jitted, bound to the state; UserError where the images
            are not uint8 [B, H, W, C] of the size and channels that the run was trained on. Runs
            on crops take any size that their network takes, of the height `data.frame_height`
            where that is set.
    """

    config: ml_collections.ConfigDict
    method: Method
    state: State
    predict: Callable[[Batch], dict[str, jax.Array]]


def load_run(workdir: str | pathlib.Path, step: int | None = None) -> Run:
    """Loads a run from its folder, on whatever devices are there.

    Args:
        workdir: the run's folder.
        step: which checkpoint; None for the last one.

    Raises:
        UserError: no run there, one of another version, or no such checkpoint.
    """
    config = read_config(workdir)
    with naming_missing_fields(workdir):
        method = make_method(config)
        abstract = abstract_state(config, method)
    state = restore(workdir, abstract, step)
    compiled = jax.jit(lambda batch: method.predict(state, batch))

    def predict(batch: Batch) -> dict[str, jax.Array]:
        _check_images(batch["image"], (*_expected_size(config.data, batch), config.data.channels))
        return compiled(batch)

    return Run(config, method, state, predict)


def example_batch(config: ml_collections.ConfigDict) -> Batch:
    """A training batch of one example of the config's shapes and types, all zeros."""
    height, width = config.data.image_size
    batch = {
        "image": jnp.zeros((1, height, width, config.data.channels), jnp.uint8),
        "mask": jnp.zeros((1, height, width), jnp.uint8),
        "label": jnp.zeros((1,), jnp.int32),
        "index": jnp.zeros((1,), jnp.int32),
        "weight": jnp.ones((1,), jnp.float32),
    }
    if config.augment.paste_probability:
        side = config.augment.paste_size
        batch["donor_image"] = jnp.zeros((1, side, side, config.data.channels), jnp.uint8)
        batch["donor_mask"] = jnp.zeros((1, side, side), jnp.uint8)
    return batch


def abstract_state(config: ml_collections.ConfigDict, method: Method) -> State:
    """The shapes and types of the state, without computing it."""
    return jax.eval_shape(method.init, jax.random.PRNGKey(config.seed), example_batch(config))


@contextlib.contextmanager
def manager(
    workdir: str | pathlib.Path, max_to_keep: int, keep_every: int
) -> Iterator[ocp.CheckpointManager]:
    """Orbax's manager of `<workdir>/checkpoints`, for the run that saves there.

    Removes what a process that died left half saved.

    Args:
        workdir: the run's folder.
        max_to_keep: how many of the last checkpoints stay.
        keep_every: those of its multiples stay too; 0 for none.
    """
    if not distributed.is_first():
        with _reader(workdir) as checkpoints:
            yield checkpoints
        return
    folder = _folder(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoints = ocp.CheckpointManager(
        folder,
        options=ocp.CheckpointManagerOptions(
            create=False,
            max_to_keep=max_to_keep,
            keep_period=keep_every or None,
            cleanup_tmp_directories=True,
            multiprocessing_options=_alone(),
            # Else Orbax's threads wait for minutes for a folder that cannot be made.
            async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
        ),
    )
    try:
        yield checkpoints
    finally:
        with _writing(checkpoints):
            checkpoints.close()


def save(checkpoints: ocp.CheckpointManager, state: State, rows: list[dict[str, float]]) -> None:
    """Saves the state under its step; returns once it is copied, and writes it meanwhile.

    Of several processes the first saves.

    Args:
        checkpoints: of the run's folder, which has its config.
        state: of one copy to its caller.
        rows: the metrics of the steps since the last line of the log.

    Raises:
        UserError: this checkpoint cannot be begun, or the one before it could not be written.
    """
    _first_writes(int(state.step), checkpoints, lambda: _save(checkpoints, state, rows))


def wait(checkpoints: ocp.CheckpointManager, step: int) -> None:
    """Waits until the checkpoint of `step` is written.

    Raises:
        UserError: it could not be.
    """
    _first_writes(step, checkpoints, checkpoints.wait_until_finished)


def steps(workdir: str | pathlib.Path) -> list[int]:
    """The steps of a run's checkpoints, in order."""
    with _reader(workdir) as checkpoints:
        return sorted(checkpoints.all_steps())


def restore(workdir: str | pathlib.Path, abstract: State, step: int | None = None) -> State:
    """Restores a checkpoint, the last one where `step` is None, onto one device.

    Raises:
        UserError: no checkpoint, none at that step, or one that is damaged, of another shape or
            of another config than the run's.
    """
    step = _find(workdir, step)
    with _naming(workdir, step), _reader(workdir) as checkpoints:
        record = _read_record(checkpoints, step)
        _check(record["config"] == _fingerprint(read_config(workdir)), "it is of another config")
        _compare(record["leaves"], _describe(abstract), "{} is {} there and {} now")
        # On the host, whatever devices it was saved from.
        empty = jax.tree.map(
            lambda leaf: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape), abstract
        )
        args = ocp.args.Composite(state=ocp.args.StandardRestore(empty))
        state = checkpoints.restore(step, args=args).state
        _compare(record["sums"], _checksums(state), "{} was {} when it was saved and is {}")
    return jax.device_put(state, jax.local_devices()[0])


def restore_rows(workdir: str | pathlib.Path, step: int) -> list[dict[str, float]]:
    """The `rows` that were saved with the checkpoint of `step`."""
    with _naming(workdir, step), _reader(workdir) as checkpoints:
        return _read_record(checkpoints, step)["rows"]


def went_back_to(workdir: str | pathlib.Path) -> int | None:
    """The step that `go_back` went to last; None where it never did."""
    path = _given_up(workdir) / "back_to.json"
    return read_json(path, int) if path.is_file() else None


def go_back(checkpoints: ocp.CheckpointManager, step: int) -> None:
    """Moves the checkpoints after `step` to `<workdir>/given_up`, so that it is the last one."""
    distributed.everywhere(
        lambda: _give_up_after(checkpoints, step) if distributed.is_first() else None
    )
    checkpoints.reload()


def write_config(workdir: str | pathlib.Path, config: ml_collections.ConfigDict) -> None:
    """Writes `<workdir>/config.json`."""
    write_json(to_writable_path(workdir) / "config.json", config.to_dict())


def read_config(workdir: str | pathlib.Path) -> ml_collections.ConfigDict:
    """Reads `<workdir>/config.json`.

    Raises:
        UserError: there is none, or none of a run.
    """
    path = to_writable_path(workdir) / "config.json"
    if not path.is_file():
        raise UserError(f"{workdir} holds no run: no config.json there")
    config = read_json(path)
    if not isinstance(config.get("data"), dict):
        raise UserError(f"{path} is damaged (no config of a run): restore it or use a new workdir")
    return ml_collections.ConfigDict(_tuples(config))


def check_same_run(
    workdir: str | pathlib.Path,
    config: ml_collections.ConfigDict,
    stored: ml_collections.ConfigDict,
) -> None:
    """Raises UserError where two configs make different runs; says which fields differ."""
    now, before = flat(config.to_dict()), flat(stored.to_dict())
    # By these a segmenter looks for the false alarms that it learns from.
    fixed = ("eval.tile", "eval.overlap") if now.get("data.hard_share") else ()
    differing = [
        f"{key} ({before.get(key, 'absent')} there, {now.get(key, 'absent')} now)"
        for key in sorted(now.keys() | before.keys())
        if now.get(key) != before.get(key) and (key in fixed or not key.startswith(FREE_FIELDS))
    ]
    if differing:
        raise UserError(
            f"{workdir} holds a run of another config: {'; '.join(differing)}; "
            "use another workdir or the same config"
        )


def flat(tree: dict, prefix: str = "") -> dict[str, Any]:
    """The fields of a nested dict by their paths, 'data.root'; tuples become lists."""
    fields: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            fields |= flat(value, f"{prefix}{key}.")
        else:
            fields[prefix + key] = list(value) if isinstance(value, tuple) else value
    return fields


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes JSON so that a reader never sees half a file; process 0 alone does.

    Raises:
        UserError: the file cannot be written.
    """
    if distributed.is_first():
        write_atomically(path, f"{json.dumps(value, indent=2, allow_nan=False)}\n".encode())


def read_json(path: pathlib.Path, kind: type = dict) -> Any:
    """Reads what `write_json` wrote, a value of that kind.

    Raises:
        UserError: the file holds no JSON, or a value of another kind.
    """
    try:
        value = json.loads(path.read_bytes())
        if not isinstance(value, kind):
            raise ValueError(f"it holds a {type(value).__name__}")
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}): restore it") from error
    return value


def _save(checkpoints: ocp.CheckpointManager, state: State, rows: list[dict[str, float]]) -> None:
    state = jax.device_get(state)
    record = {
        "config": _fingerprint(read_config(checkpoints.directory.parent)),
        "leaves": _describe(state),
        "sums": _checksums(state),
        "rows": rows,
    }
    checkpoints.save(
        int(state.step),
        args=ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            record=ocp.args.JsonSave(record | {"digest": _digest(record)}),
        ),
    )


def _first_writes(
    step: int, checkpoints: ocp.CheckpointManager, write: Callable[[], object]
) -> None:
    """Has the first process write, while the others wait to hear whether it could."""

    def task() -> None:
        if distributed.is_first():
            with _writing(checkpoints):
                write()

    with watch.waiting(step, watch.STORAGE):
        distributed.everywhere(task)


def _give_up_after(checkpoints: ocp.CheckpointManager, step: int) -> None:
    later = sorted(other for other in checkpoints.all_steps() if other > step)
    folder = _given_up(checkpoints.directory.parent)
    folder.mkdir(exist_ok=True)
    taken = len(list(folder.glob("*_step_*")))  # the same step may be given up again
    for number, other in enumerate(later, taken):
        (checkpoints.directory / str(other)).rename(folder / f"{number}_step_{other}")
    if later:
        print(f"{folder}: the checkpoints of steps {later} lie there now", flush=True)
    write_json(folder / "back_to.json", step)  # last, as all is done then


def _given_up(workdir: str | pathlib.Path) -> pathlib.Path:
    return to_writable_path(workdir) / "given_up"


def _folder(workdir: str | pathlib.Path) -> pathlib.Path:
    path = to_writable_path(workdir)
    if is_remote(path):
        try:
            from google.cloud import storage  # noqa: F401, of which Orbax makes use
        except ImportError as error:
            raise UserError(
                f"checkpoints in {workdir} need Google's library: pip install google-cloud-storage"
            ) from error
    return resolve(path) / "checkpoints"


def _alone() -> ocp.options.MultiprocessingOptions:
    """Each process reads, and the first writes, without waiting for what others do or fail to."""
    number = jax.process_index()
    return ocp.options.MultiprocessingOptions(number, {number}, f"process_{number}")


@contextlib.contextmanager
def _reader(workdir: str | pathlib.Path) -> Iterator[ocp.CheckpointManager]:
    """A manager that changes nothing."""
    options = ocp.CheckpointManagerOptions(
        create=False, enable_async_checkpointing=False, multiprocessing_options=_alone()
    )
    with ocp.CheckpointManager(_folder(workdir), options=options) as checkpoints:
        yield checkpoints


def _find(workdir: str | pathlib.Path, step: int | None) -> int:
    found = steps(workdir)
    if not found:
        raise UserError(f"{workdir} holds no checkpoint: train first, or check the path")
    if step is not None and step not in found:
        raise UserError(f"{workdir} has no checkpoint of step {step}: there are {found}")
    return found[-1] if step is None else step


@contextlib.contextmanager
def _naming(workdir: str | pathlib.Path, step: int) -> Iterator[None]:
    """Turns whatever goes wrong inside into a UserError that names the checkpoint."""
    try:
        yield
    except Exception as error:  # Orbax and TensorStore raise bare exceptions here
        before = [other for other in steps(workdir) if other < step]
        raise UserError(
            f"checkpoint {workdir}/checkpoints/{step} cannot be restored: {_reason(error)}; "
            + (f"--step={before[-1]} takes the one before" if before else "there is none before it")
        ) from error


@contextlib.contextmanager
def _writing(checkpoints: ocp.CheckpointManager) -> Iterator[None]:
    """Turns whatever goes wrong inside into a UserError that says what there is to go on from."""
    try:
        yield
    except Exception as error:  # of any kind, from Orbax's threads
        whole = steps(checkpoints.directory.parent)
        raise UserError(
            f"no checkpoint can be written to {checkpoints.directory}: {_reason(error)}; whole are "
            f"those of steps {whole}: see to the disk and start again"
        ) from error


def _reason(error: Exception) -> str:
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return line if len(line) <= 200 else f"... {line[-200:]}"  # causes come last


def _read_record(checkpoints: ocp.CheckpointManager, step: int) -> dict[str, Any]:
    args = ocp.args.Composite(record=ocp.args.JsonRestore())
    record = dict(checkpoints.restore(step, args=args).record)
    _check(record.pop("digest", None) == _digest(record), "its record is damaged")
    return record


def _describe(state: State) -> dict[str, str]:
    """The type and shape of each leaf, by its path."""
    return {path: f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in _leaves(state)}


def _checksums(state: State) -> dict[str, str]:
    """The CRC-32 of each leaf's bytes, by its path."""

    def checksum(leaf: np.ndarray) -> str:
        return f"{zlib.crc32(np.ascontiguousarray(leaf).view(np.uint8).data):08x}"

    paths, leaves = zip(*_leaves(state), strict=True)
    with concurrent.futures.ThreadPoolExecutor() as pool:  # zlib lets other threads run
        return dict(zip(paths, pool.map(checksum, leaves), strict=True))


def _leaves(state: State) -> list[tuple[str, Any]]:
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in leaves]


def _compare(there: dict[str, str], now: dict[str, str], sentence: str) -> None:
    for path in there | now:
        old, new = there.get(path, "absent"), now.get(path, "absent")
        _check(old == new, sentence.format(path, old, new))


def _check(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)


def _fingerprint(config: ml_collections.ConfigDict) -> str:
    """A digest of what a run's parameters depend on, as the run began."""
    fields = flat(config.to_dict())
    return _digest({key: fields[key] for key in fields if not key.startswith(_UNSIGNED_FIELDS)})


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _expected_size(data: ml_collections.ConfigDict, batch: Batch) -> tuple[int, int]:
    """The height and width that images must have; of crops both or the width may be any."""
    if data.fit != "crop":
        return data.image_size[0], data.image_size[1]
    height, width = batch["image"].shape[1:3]
    return data.frame_height or height, width


def _check_images(image: jax.Array, shape: tuple[int, ...]) -> None:
    if image.dtype != jnp.uint8 or image.ndim != 4 or image.shape[1:] != shape:
        raise UserError(
            f"this run takes images uint8 [B, {', '.join(map(str, shape))}], found {image.dtype} "
            f"{list(image.shape)}: convert them"
        )


def _tuples(value: Any) -> Any:
    """JSON has no tuples; configs have no lists."""
    if isinstance(value, dict):
        return {key: _tuples(inner) for key, inner in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
