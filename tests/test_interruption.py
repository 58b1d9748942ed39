"""A run that is asked to stop ends with the status that has it started again, and goes on."""

import pathlib
import re
import signal
import subprocess
import sys

import numpy as np
import pytest

from configs import mvtec_autoencoder
from defect_jax import checkpoint, interruption

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture
def handlers():
    """Begins with Python's own handlers, and leaves those of this process as they were."""
    before = {number: signal.getsignal(number) for number in interruption._SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it is ignored
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_outside_of_training_a_signal_ends_the_process(handlers, capsys):
    interruption.exit_on_signals()
    for number in (signal.SIGTERM, signal.SIGINT):
        with pytest.raises(SystemExit) as stopped:
            signal.raise_signal(number)
        assert stopped.value.code == 75
        assert f"stopped by {number.name}: start again" in capsys.readouterr().out


def test_a_postponed_signal_acts_at_the_end(handlers):
    with pytest.raises(SystemExit) as stopped, interruption.postponed():
        assert not interruption.asked()
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert interruption.asked()
    assert stopped.value.code == 75
    with interruption.postponed():
        assert not interruption.asked()


def test_a_second_control_c_acts_at_once(handlers):
    with pytest.raises(KeyboardInterrupt), interruption.postponed():
        signal.raise_signal(signal.SIGINT)
        assert interruption.asked()
        signal.raise_signal(signal.SIGINT)
        raise AssertionError


@pytest.fixture
def config(shrink, tmp_path):
    config = shrink(mvtec_autoencoder.get_config())
    images = np.random.default_rng(0).integers(0, 255, (8, 32, 32, 3)).astype(np.uint8)
    mask = np.zeros((8, 32, 32), np.uint8)
    mask[:4, 8:16, 8:16] = 1
    np.savez(tmp_path / "parts.npz", train_image=images, test_image=images, test_mask=mask)
    config.data.update(
        name="arrays", category="parts", root=str(tmp_path / "parts.npz"), image_size=(32, 32)
    )
    config.method.update(model="ssim_net", code_dim=8, losses=("l2",), residual="l2")
    config.train.update(num_steps=40, log_every=4, checkpoint_every=10_000)
    return config


MAIN = """
import sys
for name in ("tensorflow", "tensorflow_datasets", "tensorboard"):
    sys.modules[name] = None  # whose import takes seconds
from absl import flags
from defect_jax import checkpoint, main
main.CONFIG = type("", (), {"value": checkpoint.read_config(sys.argv.pop(1))})
flags.FLAGS(sys.argv)
main.main(sys.argv[:1])
"""


def test_sigterm_saves_and_exits_with_75(config, tmp_path, quick_environment):
    """That the run goes on from there in the same bits: see test_train.py."""
    checkpoint.write_config(tmp_path / "config", config)
    workdir = tmp_path / "run"
    command = [sys.executable, "-c", MAIN, str(tmp_path / "config"), f"--workdir={workdir}"]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=quick_environment(1),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        while "step 4/" not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        printed, errors = process.communicate()
    assert process.returncode == 75, errors
    assert "Traceback" not in errors
    (step,) = re.findall(r"^stopped at step (\d+), saved: start again", printed, re.M)
    assert checkpoint.steps(workdir) == [int(step)] and 4 <= int(step) < 40
