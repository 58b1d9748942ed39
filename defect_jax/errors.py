"""The one exception for what a user can mend."""

import contextlib
import math
import os
from collections.abc import Collection, Iterator
from typing import Any


class UserError(ValueError):
    """Bad input: data, config or workdir.

    The message is one line that says what was found, where, and what to do. `main` prints it
    without a traceback and exits with status 1.
    """


def require(value: Any, known: Collection, kind: str) -> None:
    """Raises UserError, which lists the known values, where `value` is none of them."""
    if value not in known:
        choices = ", ".join(str(choice) for choice in sorted(known))
        raise UserError(f"unknown {kind} '{value}': choose one of {choices}")


def require_within(value: float, least: float, most: float, name: str) -> None:
    """Raises UserError where `value` is less than `least` or more than `most`, which may be inf."""
    if not least <= value <= most:
        bounds = f"at least {least}" if most == math.inf else f"from {least} to {most}"
        raise UserError(f"{name} is {value}: it must be {bounds}")


def require_size(value: Collection, name: str) -> None:
    """Raises UserError where `value` is not a height and a width in pixels."""
    if len(value) != 2 or not all(isinstance(side, int) and side > 0 for side in value):
        raise UserError(f"{name} is {tuple(value)}: it must be a height and a width, as (256, 256)")


@contextlib.contextmanager
def naming_missing_fields(workdir: str | os.PathLike | None = None) -> Iterator[None]:
    """Turns the look for a field that a ConfigDict lacks into a UserError that names it.

    Args:
        workdir: the folder of the run whose config it is; None for a config from elsewhere.
    """
    try:
        yield
    except AttributeError as error:
        reason = error.args[0] if error.args else None
        if not isinstance(reason, KeyError):  # as a ConfigDict alone has it
            raise
        name = reason.args[0].splitlines()[0]
        if workdir is not None:
            raise UserError(
                f"{workdir} is a run of another version of defect_jax: its config has no field "
                f"{name}"
            ) from error
        raise UserError(
            f"this config lacks the field {name}, which others of its fields make necessary: start "
            "from a config that has it"
        ) from error


def require_distinct(values: Collection, name: str) -> None:
    """Raises UserError where a field that lists names is empty or has one twice."""
    if not values:
        raise UserError(f"{name} is empty: name at least one")
    if len(set(values)) < len(values):
        raise UserError(f"{name} is {tuple(values)}: name each once")


def lookup(table: dict[str, Any], name: str, kind: str) -> Any:
    """Returns `table[name]`.

    Raises:
        UserError: the name is not in the table; lists the names that are.
    """
    require(name, table, kind)
    return table[name]
