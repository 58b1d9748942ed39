"""The one training loop, over the phases of any method; the only file that knows pmap."""

import functools
import itertools
import pathlib
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
from clu import parameter_overview

from defect_jax import (
    checkpoint,
    devices,
    distributed,
    interruption,
    mining,
    report,
    visualize,
    watch,
)
from defect_jax.data import crops, datasets, pipeline
from defect_jax.data.examples import Examples
from defect_jax.devices import AXIS
from defect_jax.errors import UserError
from defect_jax.method import Batch, Method, Metrics, Phase, State
from defect_jax.methods import make_method
from defect_jax.paths import to_writable_path, write_atomically

# Long enough that dispatching costs nothing, short enough that a run can be stopped.
_SECONDS_A_CALL = 1.0


def train(
    config: ml_collections.ConfigDict, workdir: str | pathlib.Path, step: int | None = None
) -> State:
    """Trains a run to its end, from its last checkpoint where there is one.

    On SIGTERM or Ctrl-C it saves and ends the process (see `interruption`).

    Args:
        config: as `run.open_run` resolved it.
        workdir: the run's folder; gets `checkpoints/`, `metrics.jsonl`, TensorBoard events,
            `parameters.txt` and `training.png`.
        step: from which checkpoint to go on rather than the last; later ones are moved to
            `given_up/`. Once: a run that was stopped goes on from its last one, with the same step.

    Raises:
        UserError: bad config or data, a checkpoint that cannot be read or written, or a metric
            that is not finite.
    """
    workdir = to_writable_path(workdir)
    check_batch_size(config)
    method = make_method(config)
    last_step = phase_ends(config, method)[-1]
    keep = (config.train.max_to_keep, config.train.keep_every)
    with checkpoint.manager(workdir, *keep) as checkpoints:
        state, rows = _init_or_restore(config, method, workdir, checkpoints, step)
        start = int(state.step)
        if start == last_step and (workdir / "training.png").exists():
            print(f"{workdir}: already trained to step {start}", flush=True)
            return state
        began = time.monotonic()
        jsonl = report.JsonlWriter(workdir / "metrics.jsonl", start)
        with report.tensorboard(workdir, jsonl.kept) as events:
            reporter = report.Reporter(
                [jsonl, events], config.train.batch_size, last_step, config.train.log_every, rows
            )
            if start < last_step:
                with interruption.postponed():
                    state = devices.replicate(state)
                    state = _run_phases(config, method, state, reporter, checkpoints)
            if distributed.is_first():
                _draw_curves(workdir, events, last_step)
    _tell_speed(last_step - start, time.monotonic() - began, config.train.batch_size)
    return state


def _tell_speed(steps: int, seconds: float, batch_size: int) -> None:
    print(
        f"{steps} steps in {seconds:.0f} s, compilation included: "
        f"{steps * batch_size / seconds:.0f} images/s",
        flush=True,
    )


def check_batch_size(config: ml_collections.ConfigDict) -> None:
    """Raises UserError where the devices do not divide the global batch, or its parts theirs."""
    count, batch_size = jax.device_count(), config.train.batch_size
    if batch_size < 1 or batch_size % count:
        raise UserError(
            f"train.batch_size is {batch_size}, which the {count} devices do not divide: "
            f"choose a multiple of {count}"
        )
    share, parts = batch_size // count, config.train.accumulate
    if parts < 1 or share % parts:
        raise UserError(
            f"train.accumulate is {parts}, which does not divide the {share} examples that each "
            f"of {count} devices takes of train.batch_size {batch_size}: choose a divisor"
        )


def check_length(config: ml_collections.ConfigDict, method: Method) -> None:
    """Raises UserError where a run takes more examples than int32 can count."""
    steps, batch_size = phase_ends(config, method)[-1], config.train.batch_size
    if steps * batch_size >= 2**31:
        raise UserError(
            f"{steps} steps with train.batch_size {batch_size} take {steps * batch_size:.1e} "
            f"examples, and a run counts up to {2**31 - 1:.1e}: lower train.num_steps"
        )


def check_steps(config: ml_collections.ConfigDict, method: Method) -> None:
    """Traces each kind of step and a prediction, and computes nothing.

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

    # Of phases that differ in their length alone, one.
    for train_step in dict.fromkeys(phase.train_step for phase in method.phases):
        step = jax.vmap(train_step, in_axes=(None, 0), out_axes=None, axis_name=AXIS)
        jax.eval_shape(step, state, shapes(count, config.train.batch_size // count))
    batch: Any = shapes(config.eval.batch_size)
    if config.data.fit == "crop":
        image, tile = batch["image"], config.eval.tile
        shape = (image.shape[0], *tile, image.shape[-1])
        batch = {"image": jax.ShapeDtypeStruct(shape, image.dtype), "index": batch["index"]}
    jax.eval_shape(method.predict, state, batch)


def check_finished(config: ml_collections.ConfigDict, workdir: str | pathlib.Path) -> None:
    """Raises UserError where the last checkpoint of a run is not that of its last step."""
    last = phase_ends(config, make_method(config))[-1]
    step = max(checkpoint.steps(workdir), default=0)
    if step != last:
        raise UserError(f"{workdir} is at step {step} of {last}: finish it first")


def phase_ends(config: ml_collections.ConfigDict, method: Method) -> list[int]:
    """The step at which each phase ends."""
    lengths = (
        config.train.num_steps if phase.num_steps is None else phase.num_steps
        for phase in method.phases
    )
    return list(itertools.accumulate(lengths))


def parallel_steps(phase: Phase, resident: bool, skip: bool = False):
    """Steps of a phase over all devices: `take_steps` with arrays sharded as `shard` does.

    The state is one copy to its caller; pmap broadcasts it and takes the first of equal results.

    Args:
        phase: whose steps to take.
        resident: the data is whole on every device; else it is sharded too.
        skip: leave out steps whose loss or gradient is not finite.
    """
    return jax.pmap(
        functools.partial(take_steps, phase.train_step, skip),
        axis_name=AXIS,
        in_axes=(None, None if resident else 0, 0, 0, None),
        out_axes=None,
    )


def take_steps(
    train_step: Callable[[State, Batch], tuple[State, Metrics]],
    skip: bool,
    state: State,
    data: Batch,
    numbers: jax.Array,
    places: jax.Array,
    count: jax.Array,
) -> tuple[State, Metrics]:
    """Takes the first `count` of K steps in one program, whatever `count` is.

    Args:
        train_step: (State, Batch) -> (State, Metrics).
        skip: a step of which a metric is not finite counts, and changes nothing else; the metric
            `skipped` is 1 for such a step and 0 for others.
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

    if skip:
        train_step = functools.partial(_step_or_skip, train_step)
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


def _step_or_skip(
    train_step: Callable[[State, Batch], tuple[State, Metrics]], state: State, batch: Batch
) -> tuple[State, Metrics]:
    # Every metric is a sum over all devices, so that they agree.
    new, metrics = train_step(state, batch)
    finite = jnp.all(jnp.stack([jnp.isfinite(value) for value in metrics.values()]))
    kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, state)
    return kept.replace(step=new.step), metrics | {"skipped": 1.0 - finite}


def _draw_curves(workdir: pathlib.Path, events: Any, step: int) -> None:
    figure = visualize.training_curves(report.read_metrics(workdir / "metrics.jsonl"))
    events.write_images(step, {"training": visualize.to_array(figure)[None]})
    visualize.save(figure, workdir / "training.png")  # last, as it says that training is done


def _init_or_restore(
    config: ml_collections.ConfigDict,
    method: Method,
    workdir: pathlib.Path,
    checkpoints: ocp.CheckpointManager,
    step: int | None,
) -> tuple[State, list[dict[str, float]]]:
    """The state, and the metrics of the steps since the last line of the log."""
    start, back = _start(workdir, checkpoints, step)
    if start is not None:
        state = checkpoint.restore(workdir, checkpoint.abstract_state(config, method), start)
        if back:
            checkpoint.go_back(checkpoints, start)
        print(f"{workdir}: going on from step {start}", flush=True)
        return state, checkpoint.restore_rows(workdir, start)
    state = jax.jit(method.init)(jax.random.PRNGKey(config.seed), checkpoint.example_batch(config))
    overview = parameter_overview.get_parameter_overview(state.params, include_stats=False)
    if distributed.is_first():
        write_atomically(workdir / "parameters.txt", f"{overview}\n".encode())
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    print(f"{config.method.name}: {count:,} parameters", flush=True)
    return state, []


def _start(
    workdir: pathlib.Path, checkpoints: ocp.CheckpointManager, step: int | None
) -> tuple[int | None, bool]:
    """The checkpoint to go on from, None where there is none, and whether it is gone back to."""
    # As the first process sees it, before it changes anything.
    ((last, before, finished), *_) = distributed.everywhere(
        lambda: (
            checkpoints.latest_step(),
            checkpoint.went_back_to(workdir),
            (workdir / "training.png").exists(),
        )
    )
    if finished and last is None:
        raise UserError(
            f"{workdir} holds a finished run whose checkpoints are gone: restore {workdir}/"
            "checkpoints, or use another workdir to train anew"
        )
    if step is None:
        return last, False
    if step != before:
        return step, True
    print(
        f"{workdir}: has gone back to step {step} before and does not again; to have it do so, "
        "remove given_up/back_to.json",
        flush=True,
    )
    return last, False


def _run_phases(
    config: ml_collections.ConfigDict,
    method: Method,
    state: State,
    reporter: report.Reporter,
    checkpoints: ocp.CheckpointManager,
) -> State:
    examples = datasets.load_split(config, "train")
    host, resident = _cached(config, examples)
    skip = config.train.on_nonfinite == "skip"
    run: Any = None
    ends = phase_ends(config, method)
    for number, (phase, begin, last) in enumerate(
        zip(method.phases, [0, *ends], ends, strict=False)
    ):
        if int(state.step) >= last:
            continue
        if run is None or phase.train_step is not method.phases[number - 1].train_step:
            run = parallel_steps(phase, resident is not None, skip)
        calls = _calls_of_phase(
            config, state, examples, host, resident, (begin, last), checkpoints.directory.parent
        )
        state = _run_phase(config, phase, run, calls, state, last, reporter, checkpoints)
    return state


def _calls_of_phase(
    config: ml_collections.ConfigDict,
    state: State,
    examples: Examples,
    host: Any,
    resident: Any,
    within: tuple[int, int],
    workdir: pathlib.Path,
) -> "_Calls":
    """The calls from the state's step to the end of its phase, which lies `within` these steps."""
    first = int(state.step)
    order = pipeline.train_order(
        config, len(examples), first, within[1], (jax.process_index(), jax.process_count())
    )
    if resident is not None:
        return _resident_calls(config, resident, order, first)
    if config.data.fit == "crop":
        mistakes = mining.mistakes_of_phase(config, state, examples, workdir, within[0])
        return _streamed_calls(crops.train_crops(config, host, order[1], mistakes), order)
    batches = pipeline.train_batches(config.data, examples, host, order[0])
    return _streamed_calls(batches, order)


def _cached(
    config: ml_collections.ConfigDict, examples: Examples
) -> tuple[pipeline.HostBatch | list[crops.Frame] | None, Any]:
    """The decoded training images on the host and on the devices, None where they are not there."""
    if config.data.fit == "crop":
        crops.check_memory(config.data, examples, devices.host_bytes())
        return crops.decode_all(config.data, examples), None
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


# Yields calls, and is sent how many steps the next one may take; the first takes one.
_Calls = Generator[_Call, int | None, None]


def _streamed_calls(
    batches: Iterator[pipeline.HostBatch], order: tuple[np.ndarray, np.ndarray]
) -> _Calls:
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
) -> _Calls:
    """Up to the next log line or checkpoint in one call, but no more steps than it may take.

    All calls have arrays of one size, so that they are one program.
    """
    step, last, within = first, first + len(order[0]), 1
    periods = (config.train.log_every, config.train.checkpoint_every)
    most = min(*periods, last - first)
    padded = [np.pad(rows, ((0, most), (0, 0))) for rows in order]
    while step < last:
        ends = (step - step % period + period for period in periods)
        count = min(last, step + within, *ends) - step
        window = slice(step - first, step - first + most)
        numbers, places = (shard(rows[window], axis=1) for rows in padded)
        within = (yield _Call(resident, numbers, places, count)) or 1
        step += count


def _run_phase(
    config: ml_collections.ConfigDict,
    phase: Phase,
    run: Callable[..., tuple[State, Metrics]],
    calls: _Calls,
    state: State,
    last: int,
    reporter: report.Reporter,
    checkpoints: ocp.CheckpointManager,
) -> State:
    reporter.start_phase()
    step, within, paces = int(state.step), None, _paces(reporter, config.train.log_every)
    for number in itertools.count():
        call = _next_call(calls, step, within)
        # By the fourth call the steps have been timed, so it is about a second long.
        with (
            report.trace(config.profile and number == 3, checkpoints.directory.parent) as wait,
            watch.waiting(step, watch.DEVICES if number else watch.COMPILER),
        ):
            state, metrics = wait(run(state, *call))
        step += call.num_steps
        reporter.add(step, metrics, call.num_steps)
        if step == last:
            # Before the save: a checkpoint at a phase's end holds the finished phase.
            state = devices.replicate(phase.finish(state))
        with watch.waiting(step, watch.DEVICES):
            within = next(paces)
        if not within or step == last or step % config.train.checkpoint_every == 0:
            reporter.check(step)
            checkpoint.save(checkpoints, state, reporter.rows)
        if not within:
            checkpoint.wait(checkpoints, step)
            interruption.stop(f"at step {step}, saved")
        if step == last:
            break
    calls.close()  # and with it the data pipeline, before the next phase begins its own
    checkpoint.wait(checkpoints, step)
    return state


def _next_call(calls: _Calls, step: int, within: int | None) -> _Call:
    """The call that follows `step`, of at most `within` steps; says so where it is long in coming.

    `within` is None for the first one.
    """
    with watch.waiting(step, watch.DATA):
        return calls.send(within)


def _paces(reporter: report.Reporter, most: int) -> Iterator[int]:
    """After each call, how many steps the next one takes, the same on all hosts.

    The fewest that any host would take: about a second of them by its clock and at most `most`, or
    0 where it was asked to stop. Of several hosts it is what they said before the call: each waits
    for the others' answer only when that has come along with the steps.
    """

    def own() -> int:
        if interruption.asked():
            return 0
        return min(reporter.steps_within(_SECONDS_A_CALL), most)

    if jax.process_count() == 1:
        while True:
            yield own()
    fewest = jax.pmap(lambda steps: jax.lax.pmin(steps, AXIS), AXIS, out_axes=None)
    before: Any = 1
    while True:
        now = fewest(np.full(jax.local_device_count(), own()))
        yield int(before)
        before = now
