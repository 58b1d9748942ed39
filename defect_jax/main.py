"""From flags to runs: `python -m defect_jax.main --config=FILE --workdir=FOLDER`."""

import sys

from absl import app, flags, logging
from ml_collections import config_flags

from defect_jax import interruption, runtime
from defect_jax.errors import UserError
from defect_jax.run import run

CONFIG = config_flags.DEFINE_config_file("config", help_string="The run's config file.")
WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder; made where there is none.")
MODE = flags.DEFINE_enum(
    "mode", "train", ["train", "evaluate"], "Train and then evaluate, or only evaluate."
)
STEP = flags.DEFINE_integer(
    "step", None, "The checkpoint to go on from, or to evaluate; by default the last one."
)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    # Orbax and tfds tell their inner life at INFO, and what is raised anyway at ERROR.
    logging.set_verbosity(logging.FATAL)
    runtime.set_up()
    interruption.exit_on_signals()
    try:
        run(CONFIG.value, str(WORKDIR.value), MODE.value, STEP.value)
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    app.run(main)
