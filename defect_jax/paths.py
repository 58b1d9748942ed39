"""Paths on this host's disks and in object stores, such as gs://bucket/runs/first."""

import contextlib
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import fsspec
from etils import epath
from etils.epath import backend, gpath

from defect_jax.errors import UserError, require

_WRITABLE = "gs"
_READABLE = ("s3", "az", "hf")


class _Stored(gpath.PosixGPath):  # type: ignore[misc]
    """A path that fsspec reads: epath would ask TensorFlow, to which gs:// alone is known."""

    @property
    def _backend(self) -> backend.Backend:
        return backend.fsspec_backend


def to_path(name: str | os.PathLike) -> pathlib.Path:
    """A path of pathlib; for a name that begins with gs:// or the like one of the same methods.

    A ~ in front is the user's home.

    Raises:
        UserError: no such kind of store or user is known, or the library is missing that reads it.
    """
    if not is_remote(name):
        try:
            return pathlib.Path(name).expanduser()
        except RuntimeError as error:
            raise UserError(f"{name}: {error}") from error
    kind = os.fspath(name).partition("://")[0]
    require(kind, (_WRITABLE, *_READABLE), f"store in {name}")
    path: Any = epath.Path(name) if kind == _WRITABLE else _Stored(name)
    if kind != _WRITABLE:
        try:
            fsspec.get_filesystem_class(kind)
        except ImportError as error:
            raise UserError(f"{name} needs a library of its own: {error}") from error
    return path


def to_writable_path(name: str | os.PathLike) -> pathlib.Path:
    """As `to_path`, of a folder for runs or prepared datasets.

    Raises:
        UserError: see `to_path`; or it lies where Orbax and TensorFlow cannot write.
    """
    path = to_path(name)
    if is_remote(path) and not os.fspath(path).startswith(f"{_WRITABLE}://"):
        raise UserError(
            f"{name} cannot be written: Orbax and TensorFlow write to folders and {_WRITABLE}:// "
            "alone, so use one of these; data.root may lie there"
        )
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


def check_writable(path: pathlib.Path) -> None:
    """Raises UserError where `write_atomically` could not write: for before long work.

    Makes the folders that lead to it.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder: name a file")
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        partial.touch()
        partial.unlink()


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
