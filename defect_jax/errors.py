"""The one exception for what a user can mend."""


class UserError(ValueError):
    """Bad input: data, config or workdir.

    The message is one line that says what was found, where, and what to do. `main` prints it
    without a traceback and exits with status 1.
    """


def lookup(table: dict, name: str, kind: str):
    """Returns `table[name]`.

    Raises:
        UserError: the name is not in the table; lists the names that are.
    """
    if name not in table:
        raise UserError(f"unknown {kind} '{name}': choose one of {', '.join(sorted(table))}")
    return table[name]
