"""Writing so that a reader finds the old file or the new one, whole."""

import contextlib
import ctypes
import os
import pathlib
import secrets
import shutil
from collections.abc import Iterator


@contextlib.contextmanager
def replacing(
    path: str | os.PathLike, mode: int | None = None
) -> Iterator[pathlib.Path]:
    """Yields a temporary path that takes the place of `path` at the end.

    A process that is killed leaves a file of a hidden name beside it. Nobody
    can tell it from one that another process is writing, so it stays.

    Args:
        path: File to write. Its folder must exist.
        mode: Permission bits from the first byte on, such as `0o600`.
            Defaults to the process's own.

    Raises:
        FileNotFoundError: If the folder does not exist.
    """
    path, temporary = _places(path)
    try:
        if mode is not None:
            os.close(
                os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode)
            )
            temporary.chmod(mode)
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(
    path: str | os.PathLike, overwrite: bool = False
) -> Iterator[pathlib.Path]:
    """Yields a temporary folder that takes the place of `path` at the end.

    Args:
        path: Folder to write. Its parent must exist.
        overwrite: Whether to replace what is at `path`.

    Raises:
        FileExistsError: If there is something at `path` already.
        FileNotFoundError: If the parent does not exist.
    """
    path, temporary = _places(path)
    if path.exists() and not overwrite:
        raise exists_already(path)
    temporary.mkdir()
    try:
        yield temporary
        for written in temporary.rglob("*"):
            if written.is_file():
                with open(written, "rb") as file:
                    os.fsync(file.fileno())
        try:
            os.rename(temporary, path)
        except OSError:
            # There is something already; after this it has the other's name.
            _exchange(temporary, path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def exists_already(path: pathlib.Path) -> FileExistsError:
    """The error of an export that would overwrite something."""
    return FileExistsError(
        f"Expected a new name to write to, or overwrite=True. Received: "
        f"'{path}', which exists"
    )


def _places(path) -> tuple[pathlib.Path, pathlib.Path]:
    """A path, and a temporary name beside it."""
    path = pathlib.Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"Expected an existing folder to write '{path.name}' to. "
            f"Received: {path.parent}"
        )
    # The suffixes stay at the end: Keras and matplotlib go by them.
    stem, dot, suffixes = path.name.partition(".")
    return path, path.with_name(
        f".{stem}-{secrets.token_hex(4)}{dot}{suffixes}"
    )


_HERE = -100  # AT_FDCWD: paths are relative to the working folder.
_SWAP = 2  # RENAME_EXCHANGE


def _exchange(one: pathlib.Path, other: pathlib.Path) -> None:
    """Gives two files or folders each other's name, on Linux in one step."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
        names = (os.fsencode(one), os.fsencode(other))
        if rename(_HERE, names[0], _HERE, names[1], _SWAP) == 0:
            return
    except (AttributeError, OSError):
        pass
    # Elsewhere, for a moment, neither is there; the old one is kept till then.
    aside = other.with_name(f"{one.name}-old")
    os.rename(other, aside)
    os.rename(one, other)
    os.rename(aside, one)
