"""What a process sets up before it computes."""

import os
import pathlib
import platform
import subprocess
import sys
import types

import pytest
from absl import logging

from defect_jax import runtime

CACHE = """
import jax
from defect_jax import runtime
runtime.cache_compiled_programs()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.jit(lambda x: x + 1)(1.0)
"""

FAULTS = """
import resource, sys
from defect_jax import runtime
if sys.argv[1] == "kept":
    runtime.keep_freed_memory()
for repeat in range(6):
    if repeat == 1:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    b"x" * (2**27 + repeat)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def run(script: str, *arguments: str, **changes: str) -> str:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "MALLOC_"))}
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(
        command, check=True, capture_output=True, text=True, env=kept | changes
    ).stdout


def test_compiled_programs_are_kept_under_the_users_cache(tmp_path):
    run(CACHE, HOME=str(tmp_path))
    assert list((tmp_path / ".cache/defect_jax/compiled").iterdir())


def test_a_cache_that_the_user_names_is_left_alone(tmp_path):
    run(CACHE, HOME=str(tmp_path), JAX_COMPILATION_CACHE_DIR=str(tmp_path / "own"))
    assert list((tmp_path / "own").iterdir()) and not (tmp_path / ".cache").exists()


def test_a_cache_that_cannot_be_written_is_told_and_done_without(tmp_path):
    (tmp_path / ".cache").write_text("a file, where a folder is wanted")
    assert "compiled programs are not kept: cannot write" in run(CACHE, HOME=str(tmp_path))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc is tuned, no other")
def test_freed_memory_is_used_again_without_page_faults():
    """128 MiB are 32,768 pages, which the kernel hands out anew by default."""
    assert int(run(FAULTS, "default", GLIBC_TUNABLES="")) > 100_000
    assert int(run(FAULTS, "kept", GLIBC_TUNABLES="")) < 10_000


def test_what_is_given_up_is_not_told_and_other_errors_are(monkeypatch):
    told, verbosity = [], logging.get_verbosity()
    monkeypatch.setattr(sys, "unraisablehook", lambda event: told.append(event.exc_value))
    runtime.quieten()
    logging.set_verbosity(verbosity)
    given_up, other = RuntimeError("Event loop is closed"), RuntimeError("no space")
    for error in (given_up, other):
        sys.unraisablehook(types.SimpleNamespace(exc_value=error))
    assert told == [other]


@pytest.mark.parametrize(
    ("platform", "reason"), [("rocket", "Unable to initialize backend"), ("cuda", "")]
)
def test_devices_that_are_not_there_are_told(platform, reason):
    if platform == "cuda" and pathlib.Path("/dev/nvidia0").exists():
        pytest.skip("there is a GPU")
    script = """
from defect_jax import devices
from defect_jax.errors import UserError
try:
    devices.find()
except UserError as error:
    print(error)
"""
    told = run(script, JAX_PLATFORMS=platform)
    assert f"JAX_PLATFORMS, which is '{platform}'" in told and told.count("\n") == 1
    assert told.startswith(f"JAX cannot use its device ({reason}")
