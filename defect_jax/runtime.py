"""What a process sets up before it computes."""

import ctypes
import functools
import os
import pathlib
import platform
import re
import sys
from collections.abc import Callable
from typing import Any

import jax
from absl import app, logging

# Of mallopt, in glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def parse_flags(argv: list[str]) -> list[str]:
    """As absl's own, for `app.run`; a field that the config lacks ends the program in one line."""
    try:
        return app.parse_flags_with_usage(argv)
    except (AttributeError, KeyError) as error:  # what a ConfigDict without the field raises
        # The message on a field of a number is: Attribute <class 'int'>.x
        missing = re.search(r">\.(\w+)", str(error)) or re.search(r"'(\w+)", str(error))
        given = [re.match(r"--?(config\.[^=]+)", argument) for argument in argv]
        paths = [match[1] for match in given if match]
        path = next((path for path in paths if missing and missing[1] in path.split(".")), None)
        if missing is None or path is None:  # an error of the config file itself
            raise
        likely = re.search(r'Did you mean "(\w+)"', str(error))
        advice = f"did you mean {likely[1]}?" if likely else "see the config file for its fields"
        sys.exit(f"error: --{path}: the config has no field '{missing[1]}': {advice}")


def quieten() -> None:
    """Has Orbax, TensorStore and tfds print nothing beside what they raise."""
    # They tell their inner life at INFO, and what is raised anyway at ERROR.
    logging.set_verbosity(logging.FATAL)
    sys.unraisablehook = functools.partial(_unless_given_up, sys.unraisablehook)


def _unless_given_up(hook: Callable[[Any], object], event: Any) -> None:
    # Where one array cannot be read or written, those that are under way find nobody waiting.
    if str(event.exc_value) != "Event loop is closed":
        hook(event)


def set_up() -> None:
    """Keeps compiled programs for the next process, and freed memory for the next step.

    To be called before the first computation.
    """
    cache_compiled_programs()
    keep_freed_memory()


def cache_compiled_programs() -> None:
    """Stores compiled programs under ~/.cache/defect_jax, so that a second run starts in seconds.

    Leaves alone what JAX_COMPILATION_CACHE_DIR says.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    folder = pathlib.Path("~/.cache/defect_jax/compiled").expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        print(f"compiled programs are not kept: cannot write {folder} ({error.strerror})")
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def keep_freed_memory() -> None:
    """Tells glibc's malloc to keep what is freed; elsewhere it does nothing.

    XLA's CPU backend allocates its buffers anew at every step. By default glibc takes large ones
    from the kernel, which zeroes them page by page when they are first touched: a quarter of the
    CPU time of a U-Net's step. The process holds on to the memory of its largest step. Where the
    user has set MALLOC_ARENA_MAX, malloc is left alone.
    """
    if platform.libc_ver()[0] != "glibc" or "MALLOC_ARENA_MAX" in os.environ:
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_ARENA_MAX, 1)  # other arenas take large blocks from the kernel always
    libc.mallopt(_MMAP_MAX, 0)
    libc.mallopt(_TRIM_THRESHOLD, -1)  # never give back
