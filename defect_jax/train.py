"""The one training loop, over the phases of any method; the only file that knows pmap."""

import functools
import itertools
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
from clu import parameter_overview

from defect_jax import checkpoint, devices, distributed, report, visualize
from defect_jax.data import crops, datasets, pipeline
from defect_jax.data.examples import Examples
from defect_jax.devices import AXIS
from defect_jax.errors import UserError
from defect_jax.method import Batch, Method, Metrics, Phase, State
from defect_jax.methods import make_method
from defect_jax.paths import to_path

# Long enough that dispatching costs nothing, short enough that a run can be stopped.
_SECONDS_A_CALL = 1.0


def train(config: ml_collections.ConfigDict, workdir: str | pathlib.Path) -> State:
    """Trains a run to its end, from its last checkpoint where there is one.

    Args:
        config: as `run.open_run` resolved it.
        workdir: the run's folder; gets `checkpoints/`, `metrics.jsonl`, TensorBoard events,
            `parameters.txt` and `training.png`.

    Raises:
        UserError: bad config or data, or a metric that is not finite.
    """
    workdir = to_path(workdir)
    check_batch_size(config)
    method = make_method(config)
    last_step = phase_ends(config, method)[-1]
    with checkpoint.manager(workdir, config.train.max_to_keep) as checkpoints:
        state = _init_or_restore(config, method, workdir, checkpoints)
        start = int(state.step)
        if start == last_step:
            print(f"{workdir}: already trained to step {start}", flush=True)
            return state
        began = time.monotonic()
        jsonl: Any = report.Silent()
        if distributed.is_first():
            jsonl = report.JsonlWriter(workdir / "metrics.jsonl", start)
        with report.tensorboard(workdir) as events:
            reporter = report.Reporter(
                [jsonl, events], config.train.batch_size, last_step, config.train.log_every
            )
            state = _run_phases(config, method, devices.replicate(state), reporter, checkpoints)
            figure = visualize.training_curves(report.read_metrics(workdir / "metrics.jsonl"))
            visualize.save(figure, workdir / "training.png")
            events.write_images(last_step, {"training": visualize.to_array(figure)[None]})
        jsonl.close()
    seconds, steps = time.monotonic() - began, last_step - start
    print(
        f"{steps} steps in {seconds:.0f} s, compilation included: "
        f"{steps * config.train.batch_size / seconds:.0f} images/s",
        flush=True,
    )
    return state


def check_batch_size(config: ml_collections.ConfigDict) -> None:
    """Raises UserError where the devices do not divide the global batch."""
    count, batch_size = jax.device_count(), config.train.batch_size
    if batch_size < 1 or batch_size % count:
        raise UserError(
            f"train.batch_size is {batch_size}, which the {count} devices do not divide: "
            f"choose a multiple of {count}"
        )


def check_steps(config: ml_collections.ConfigDict, method: Method) -> None:
    """Traces a step of each phase and a prediction, and computes nothing.

    Raises:
        UserError: what images, tiles and networks of these sizes cannot do.
    """
    state = checkpoint.abstract_state(config, method)
    count = jax.device_count()

    def shapes(*leading: int) -> Batch:
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((*leading, *leaf.shape[1:]), leaf.dtype),
            checkpoint.example_batch(config),
        )

    for phase in method.phases:
        step = jax.vmap(phase.train_step, in_axes=(None, 0), out_axes=None, axis_name=AXIS)
        jax.eval_shape(step, state, shapes(count, config.train.batch_size // count))
    batch: Any = shapes(config.eval.batch_size)
    if config.data.fit == "crop":
        image, tile = batch["image"], config.eval.tile
        shape = (image.shape[0], *tile, image.shape[-1])
        batch = {"image": jax.ShapeDtypeStruct(shape, image.dtype), "index": batch["index"]}
    jax.eval_shape(method.predict, state, batch)


def phase_ends(config: ml_collections.ConfigDict, method: Method) -> list[int]:
    """The step at which each phase ends."""
    lengths = (
        config.train.num_steps if phase.num_steps is None else phase.num_steps
        for phase in method.phases
    )
    return list(itertools.accumulate(lengths))


def parallel_steps(phase: Phase, resident: bool):
    """Steps of a phase over all devices: `take_steps` with arrays sharded as `shard` does.

    The state is one copy to its caller; pmap broadcasts it and takes the first of equal results.

    Args:
        phase: whose steps to take.
        resident: the data is whole on every device; else it is sharded too.
    """
    return jax.pmap(
        functools.partial(take_steps, phase.train_step),
        axis_name=AXIS,
        in_axes=(None, None if resident else 0, 0, 0, None),
        out_axes=None,
    )


def take_steps(
    train_step: Callable[[State, Batch], tuple[State, Metrics]],
    state: State,
    data: Batch,
    numbers: jax.Array,
    places: jax.Array,
    count: jax.Array,
) -> tuple[State, Metrics]:
    """Takes the first `count` of K steps in one program, whatever `count` is.

    Args:
        train_step: (State, Batch) -> (State, Metrics).
        state: before the first step.
        data: `image`, `mask`, `label` and what else a batch has, of N examples.
        numbers: [K, b], which of the N each step takes.
        places: [K, b], the places of those in the stream.
        count: at most K.

    Returns:
        The state after them, and each metric as [K], zero beyond `count`.
    """

    def batch(step: Any) -> Batch:
        taken = {name: values[numbers[step]] for name, values in data.items()}
        return taken | {"index": places[step], "weight": jnp.ones(places.shape[1])}

    def body(step: Any, carry: tuple[State, Metrics]) -> tuple[State, Metrics]:
        state, metrics = carry
        state, new = train_step(state, batch(step))
        return state, jax.tree.map(lambda all, one: all.at[step].set(one), metrics, new)

    shapes = jax.eval_shape(lambda state: train_step(state, batch(0))[1], state)
    metrics = jax.tree.map(lambda leaf: jnp.zeros((len(numbers), *leaf.shape), leaf.dtype), shapes)
    return jax.lax.fori_loop(0, count, body, (state, metrics))


def shard(rows: Any, axis: int = 0) -> Any:
    """Splits a host's examples over its devices: [..., b, ...] -> [devices, ..., b / devices, ...].

    Args:
        rows: a pytree of arrays.
        axis: where the examples are counted.
    """
    count = jax.local_device_count()

    def split(values: np.ndarray) -> np.ndarray:
        return np.stack(np.split(values, count, axis))

    return jax.tree.map(split, rows)


def _init_or_restore(
    config: ml_collections.ConfigDict,
    method: Method,
    workdir: pathlib.Path,
    checkpoints: ocp.CheckpointManager,
) -> State:
    step = checkpoints.latest_step()
    if step is not None:
        print(f"{workdir}: going on from step {step}", flush=True)
        return checkpoint.restore(workdir, checkpoint.abstract_state(config, method), step)
    state = jax.jit(method.init)(jax.random.PRNGKey(config.seed), checkpoint.example_batch(config))
    overview = parameter_overview.get_parameter_overview(state.params, include_stats=False)
    if distributed.is_first():
        (workdir / "parameters.txt").write_text(overview + "\n")
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    print(f"{config.method.name}: {count:,} parameters", flush=True)
    return state


def _run_phases(
    config: ml_collections.ConfigDict,
    method: Method,
    state: State,
    reporter: report.Reporter,
    checkpoints: ocp.CheckpointManager,
) -> State:
    examples = datasets.load_split(config, "train")
    arrays, resident = _cached(config, examples)
    for phase, last in zip(method.phases, phase_ends(config, method), strict=True):
        first = int(state.step)
        if first < last:
            order = pipeline.train_order(
                config,
                len(examples),
                first,
                last,
                (jax.process_index(), jax.process_count()),
            )
            if resident is not None:
                calls = _resident_calls(config, resident, order, first, reporter)
            elif config.data.fit == "crop":
                calls = _streamed_calls(crops.train_crops(config, examples, order[1]), order)
            else:
                batches = pipeline.train_batches(config.data, examples, arrays, order[0])
                calls = _streamed_calls(batches, order)
            run = parallel_steps(phase, resident is not None)
            state = _run_phase(config, phase, run, calls, state, last, reporter, checkpoints)
    return state


def _cached(
    config: ml_collections.ConfigDict, examples: Examples
) -> tuple[pipeline.HostBatch | None, Any]:
    """The decoded training images on the host and on the devices, None where they are not there."""
    if config.data.fit == "crop":  # which decodes them itself, as they are of several sizes
        crops.check_memory(config.data, examples, devices.host_bytes())
        return None, None
    cache = pipeline.choose_cache(
        config.data, len(examples), devices.memory_bytes(), devices.host_bytes()
    )
    arrays = None if cache == "none" else pipeline.decode_all(config.data, examples)
    return arrays, devices.replicate(arrays) if cache == "device" else None


class _Call(NamedTuple):
    """The arguments of `take_steps` that follow the state."""

    data: Any
    numbers: np.ndarray
    places: np.ndarray
    num_steps: int


def _streamed_calls(
    batches: Iterator[pipeline.HostBatch], order: tuple[np.ndarray, np.ndarray]
) -> Iterator[_Call]:
    """One step a call, its batch sent along."""
    numbers, places = order
    all_of_batch = shard(np.arange(numbers.shape[1], dtype=np.int32)[None], axis=1)
    all_of_batch -= all_of_batch[:, :, :1]  # each device counts its own part of the batch
    for batch, row in zip(batches, places, strict=True):
        yield _Call(shard(batch), all_of_batch, shard(row[None], axis=1), 1)


def _resident_calls(
    config: ml_collections.ConfigDict,
    resident: Any,
    order: tuple[np.ndarray, np.ndarray],
    first: int,
    reporter: report.Reporter,
) -> Iterator[_Call]:
    """Up to the next log line or checkpoint in one call, but no more than about a second of steps.

    All calls have arrays of one size, so that they are one program.
    """
    step, last = first, first + len(order[0])
    periods = (config.train.log_every, config.train.checkpoint_every)
    most = min(*periods, last - first)
    padded = [np.pad(rows, ((0, most), (0, 0))) for rows in order]
    while step < last:
        count = min(last, *(step - step % period + period for period in periods)) - step
        if jax.process_count() == 1:  # hosts must agree, and their clocks do not
            count = min(count, reporter.steps_within(_SECONDS_A_CALL))
        window = slice(step - first, step - first + most)
        numbers, places = (shard(rows[window], axis=1) for rows in padded)
        yield _Call(resident, numbers, places, count)
        step += count


def _run_phase(
    config: ml_collections.ConfigDict,
    phase: Phase,
    run: Callable[..., tuple[State, Metrics]],
    calls: Iterator[_Call],
    state: State,
    last: int,
    reporter: report.Reporter,
    checkpoints: ocp.CheckpointManager,
) -> State:
    reporter.start_phase()
    step = int(state.step)
    for number, call in enumerate(calls):
        step += call.num_steps
        # By the fourth call the steps have been timed, so it is about a second long.
        with report.trace(config.profile and number == 3, checkpoints.directory.parent) as wait:
            state, metrics = wait(run(state, *call))
        reporter.add(step, metrics, call.num_steps)
        if step == last:
            # Before the save: a checkpoint at a phase's end holds the finished phase.
            state = devices.replicate(phase.finish(state))
        if step == last or step % config.train.checkpoint_every == 0:
            reporter.check(step)
            checkpoints.save(step, args=ocp.args.StandardSave(jax.tree.map(np.asarray, state)))
    checkpoints.wait_until_finished()
    return state
