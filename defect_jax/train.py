"""The one training loop, over the phases of any method; the only file that knows pmap."""

import itertools
import pathlib
from collections.abc import Iterator

import jax
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
from clu import parameter_overview

from defect_jax import checkpoint, devices, report, visualize
from defect_jax.data import datasets, pipeline
from defect_jax.devices import AXIS
from defect_jax.errors import UserError
from defect_jax.method import Method, Phase, State
from defect_jax.methods import make_method


def train(config: ml_collections.ConfigDict, workdir: str | pathlib.Path) -> State:
    """Trains a run to its end, from its last checkpoint where there is one.

    Args:
        config: as `run.open_run` resolved it.
        workdir: the run's folder; gets `checkpoints/`, `metrics.jsonl`, TensorBoard events,
            `parameters.txt` and `training.png`.

    Raises:
        UserError: bad config or data, or a metric that is not finite.
    """
    workdir = pathlib.Path(workdir)
    check_batch_size(config)
    method = make_method(config)
    last_step = phase_ends(config, method)[-1]
    with checkpoint.manager(workdir, config.train.max_to_keep) as checkpoints:
        state = _init_or_restore(config, method, workdir, checkpoints)
        start = int(state.step)
        if start == last_step:
            print(f"{workdir}: already trained to step {start}", flush=True)
            return state
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
    return state


def check_batch_size(config: ml_collections.ConfigDict) -> None:
    """Raises UserError where the devices do not divide the global batch."""
    count, batch_size = jax.device_count(), config.train.batch_size
    if batch_size < 1 or batch_size % count:
        raise UserError(
            f"train.batch_size is {batch_size}, which the {count} devices do not divide: "
            f"choose a multiple of {count}"
        )


def phase_ends(config: ml_collections.ConfigDict, method: Method) -> list[int]:
    """The step at which each phase ends."""
    lengths = (
        config.train.num_steps if phase.num_steps is None else phase.num_steps
        for phase in method.phases
    )
    return list(itertools.accumulate(lengths))


def parallel_step(phase: Phase):
    """The phase's step over all devices: (State, Batch [devices, b, ...]) -> (State, Metrics).

    The state is one copy to its caller; pmap broadcasts it and takes the first of equal results.
    """
    return jax.pmap(phase.train_step, axis_name=AXIS, in_axes=(None, 0), out_axes=None)


def shard(batch: pipeline.HostBatch) -> pipeline.HostBatch:
    """Splits a host's batch over its devices: [b, ...] -> [devices, b / devices, ...]."""
    count = jax.local_device_count()
    return {
        name: values.reshape(count, len(values) // count, *values.shape[1:])
        for name, values in batch.items()
    }


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
    hosts = (jax.process_index(), jax.process_count())
    for phase, last in zip(method.phases, phase_ends(config, method), strict=True):
        first = int(state.step)
        if first < last:
            batches = pipeline.train_batches(config, examples, first, last, hosts)
            state = _run_phase(config, phase, state, last, batches, reporter, checkpoints)
    return state


def _run_phase(
    config: ml_collections.ConfigDict,
    phase: Phase,
    state: State,
    last: int,
    batches: Iterator[pipeline.HostBatch],
    reporter: report.Reporter,
    checkpoints: ocp.CheckpointManager,
) -> State:
    train_step = parallel_step(phase)
    for step, batch in enumerate(batches, int(state.step) + 1):
        state, metrics = train_step(state, shard(batch))
        reporter.add(step, metrics)
        if step == last:
            # Before the save: a checkpoint at a phase's end holds the finished phase.
            state = devices.replicate(phase.finish(state))
        if step == last or step % config.train.checkpoint_every == 0:
            reporter.check(step)
            checkpoints.save(step, args=ocp.args.StandardSave(jax.tree.map(np.asarray, state)))
    checkpoints.wait_until_finished()
    return state
