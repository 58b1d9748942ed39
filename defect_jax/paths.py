"""Paths on this host's disks and in object stores, such as gs://bucket/runs/first."""

import os
import pathlib
from typing import Any

from etils import epath

from defect_jax.errors import UserError


def to_path(name: str | os.PathLike) -> pathlib.Path:
    """A path of pathlib; for a name with '://' in it one of epath, which has the same methods.

    Raises:
        UserError: no such kind of store is known.
    """
    if not is_remote(name):
        return pathlib.Path(name)
    try:
        path: Any = epath.Path(name)
    except KeyError as error:
        raise UserError(f"{name} lies in a store of unknown kind: known is gs://") from error
    return path


def is_remote(path: str | os.PathLike) -> bool:
    """Whether a path leads into an object store."""
    return "://" in os.fspath(path)


def resolve(path: pathlib.Path) -> pathlib.Path:
    """The path from the root on, without symbolic links."""
    return path if is_remote(path) else path.resolve()
