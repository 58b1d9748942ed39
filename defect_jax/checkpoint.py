"""A run's folder: its config, its checkpoints, and how to load them again."""

import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import orbax.checkpoint as ocp

from defect_jax import distributed
from defect_jax.errors import UserError
from defect_jax.method import Batch, Method, State
from defect_jax.methods import make_method
from defect_jax.paths import resolve, to_path

# What may change between two starts of one run: where things lie and how often it reports, but
# nothing that the parameters depend on.
FREE_FIELDS = (
    "profile",
    "data.root",
    "data.cache",
    "data.cache_dir",
    "train.log_every",
    "train.checkpoint_every",
    "train.max_to_keep",
    "eval.",
)


class Run(NamedTuple):
    """A run, loaded for analysis.

    Attributes:
        config: as the run resolved it.
        method: the Method that the config builds.
        state: the restored State.
        predict: Batch -> dict of arrays, jitted, bound to the state; UserError where the images
            are not uint8 [B, H, W, C] of the size and channels that the run was trained on. Runs
            on crops take any size that their network takes.
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
    try:
        method = make_method(config)
        abstract = abstract_state(config, method)
    except AttributeError as error:  # what a ConfigDict without the field raises
        raise UserError(
            f"{workdir} is a run of another version of defect_jax: its config has no field {error}"
        ) from error
    state = restore(workdir, abstract, step)
    compiled = jax.jit(lambda batch: method.predict(state, batch))

    def predict(batch: Batch) -> dict[str, jax.Array]:
        size = batch["image"].shape[1:3] if config.data.fit == "crop" else config.data.image_size
        _check_images(batch["image"], (*size, config.data.channels))
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


def manager(workdir: str | pathlib.Path, max_to_keep: int | None = None) -> ocp.CheckpointManager:
    """Orbax's manager of `<workdir>/checkpoints`."""
    return ocp.CheckpointManager(
        resolve(to_path(workdir)) / "checkpoints",
        options=ocp.CheckpointManagerOptions(max_to_keep=max_to_keep),
    )


def restore(workdir: str | pathlib.Path, abstract: State, step: int | None = None) -> State:
    """Restores a checkpoint, the last one where `step` is None.

    Raises:
        UserError: no checkpoint, none at that step, or one of another shape.
    """
    with manager(workdir) as checkpoints:
        steps = sorted(checkpoints.all_steps())
        if not steps:
            raise UserError(f"{workdir} holds no checkpoint: train first, or check the path")
        if step is not None and step not in steps:
            raise UserError(f"{workdir} has no checkpoint of step {step}: there are {steps}")
        step = steps[-1] if step is None else step
        device = jax.local_devices()[0]
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=jax.sharding.SingleDeviceSharding(device)
            ),
            abstract,
        )
        try:
            return checkpoints.restore(step, args=ocp.args.StandardRestore(abstract))
        except Exception as error:  # Orbax and TensorStore raise bare exceptions here
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            raise UserError(
                f"checkpoint {workdir}/checkpoints/{step} cannot be restored: {reason}; "
                "remove that folder to go on from the one before"
            ) from error


def write_config(workdir: str | pathlib.Path, config: ml_collections.ConfigDict) -> None:
    """Writes `<workdir>/config.json`."""
    write_json(to_path(workdir) / "config.json", config.to_dict())


def read_config(workdir: str | pathlib.Path) -> ml_collections.ConfigDict:
    """Reads `<workdir>/config.json`.

    Raises:
        UserError: there is none, or it is no JSON.
    """
    path = to_path(workdir) / "config.json"
    if not path.is_file():
        raise UserError(f"{workdir} holds no run: no config.json there")
    try:
        return ml_collections.ConfigDict(_tuples(json.loads(path.read_text())))
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is damaged ({error}): restore it or use a new workdir") from error


def check_same_run(
    workdir: str | pathlib.Path,
    config: ml_collections.ConfigDict,
    stored: ml_collections.ConfigDict,
) -> None:
    """Raises UserError where two configs make different runs; says which fields differ."""
    now, before = flat(config.to_dict()), flat(stored.to_dict())
    differing = [
        f"{key} ({before.get(key, 'absent')} there, {now.get(key, 'absent')} now)"
        for key in sorted(now.keys() | before.keys())
        if now.get(key) != before.get(key) and not key.startswith(FREE_FIELDS)
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
    """Writes JSON so that a reader never sees half a file; process 0 alone does."""
    if not distributed.is_first():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")
    partial.replace(path)


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
