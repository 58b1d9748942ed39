"""Paths on this host's disks and in Google's object store, such as gs://bucket/runs/first."""

import contextlib
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from etils import epath

from defect_jax.errors import UserError

_STORE = "gs://"


def to_path(name: str | os.PathLike) -> pathlib.Path:
    """A path of pathlib; for a name that begins with gs:// one of epath, with the same methods.

    Raises:
        UserError: it lies in another store, as s3://, az://, hf:// and file:// do.
    """
    if not is_remote(name):
        return pathlib.Path(name)
    if not os.fspath(name).startswith(_STORE):
        raise UserError(
            f"{name} lies in a store of unknown kind: use a folder of this machine, or {_STORE}"
        )
    path: Any = epath.Path(name)
    return path


def is_remote(path: str | os.PathLike) -> bool:
    """Whether a path leads into an object store."""
    return "://" in os.fspath(path)


def resolve(path: pathlib.Path) -> pathlib.Path:
    """The path from the root on, without symbolic links."""
    return path if is_remote(path) else path.resolve()


def write_atomically(path: pathlib.Path, content: bytes) -> None:
    """Writes a file that takes its name when it is complete, so that no reader sees half of it.

    Makes the folders that lead to it.

    Raises:
        UserError: it cannot be written; then what had the name before is as it was.
    """
    partial = path.with_name(f".{path.name}.partial")
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_bytes(content)
            partial.replace(path)
        except BaseException:
            with contextlib.suppress(Exception):  # the one before says what there is to mend
                partial.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def naming(path: Any) -> Iterator[None]:
    """Turns whatever goes wrong in writing into a UserError that names the file or folder."""
    try:
        yield
    except Exception as error:  # TensorFlow, which writes to stores, has a kind of its own
        reason = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
        raise UserError(
            f"{path} cannot be written: {reason.splitlines()[0]}: see to the disk and start again"
        ) from error
