"""The one exception for what a user can mend."""

from collections.abc import Collection
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


def lookup(table: dict[str, Any], name: str, kind: str) -> Any:
    """Returns `table[name]`.

    Raises:
        UserError: the name is not in the table; lists the names that are.
    """
    require(name, table, kind)
    return table[name]
