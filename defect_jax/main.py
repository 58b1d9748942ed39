"""From flags to runs: `python -m defect_jax.main --config=FILE --workdir=FOLDER`."""

import jax
from absl import app, flags
from clu import platform
from ml_collections import config_flags

from defect_jax import devices, distributed, interruption, runtime
from defect_jax.errors import UserError
from defect_jax.run import run, settings

CONFIG = config_flags.DEFINE_config_file("config", help_string="The run's config file.")
WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder; made where there is none.")
MODE = flags.DEFINE_enum(
    "mode", "train", ["train", "evaluate"], "Train and then evaluate, or only evaluate."
)
STEP = flags.DEFINE_integer(
    "step", None, "The checkpoint to go back to, once, or to evaluate; by default the last one."
)
ADDRESS = flags.DEFINE_string(
    "coordinator_address", None, "host:port of process 0, where nothing else announces several."
)
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes share the run.")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this one is, from 0.")
TIMEOUT = flags.DEFINE_integer(
    "process_timeout", 300, "Seconds after which a process that does not come is missing.", 1
)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    runtime.quieten()
    workdir = str(WORKDIR.value)
    with distributed.ending_on_error():
        if not workdir:  # as a variable that is not set leaves it
            raise UserError("--workdir is empty: name the run's folder")
        distributed.start(
            (ADDRESS.value, NUM_PROCESSES.value, PROCESS_ID.value),
            TIMEOUT.value,
            settings(CONFIG.value, workdir, MODE.value, STEP.value),
        )
        interruption.exit_on_signals()  # after jax.distributed, which has handlers of its own
        runtime.set_up()
        devices.find()  # or the run ends, with the reason
        if distributed.is_first():  # a scheduler with a page for each run shows this there
            unit = platform.work_unit()
            unit.set_task_status(f"{MODE.value}, {jax.process_count()} processes")
            unit.create_artifact(platform.ArtifactType.DIRECTORY, workdir, "workdir")
        run(CONFIG.value, workdir, MODE.value, STEP.value)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main, flags_parser=runtime.parse_flags)
