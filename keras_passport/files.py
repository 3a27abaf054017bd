"""Reading and writing files, wherever a name leads.

What is written is the old file or the new one, whole, for whoever reads it.
What is read, or written to, is a regular file: a device or a FIFO would hang,
or be replaced.
"""

import contextlib
import ctypes
import errno
import json
import os
import pathlib
import secrets
import shutil
import stat
import threading
from collections.abc import Iterator
from typing import Any, BinaryIO

from keras_passport.errors import PassportError
from keras_passport.texts import shown

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

# What makes a folder a SavedModel, and what else one holds.
_SAVED_MODEL = "saved_model.pb"
_OF_SAVED_MODELS = frozenset(
    {
        _SAVED_MODEL,
        "fingerprint.pb",
        "keras_metadata.pb",
        "variables",
        "assets",
        "assets.extra",
        "debug",
    }
)
# Of a name; what file systems allow.
_LONGEST_NAME = 255
# What file systems without hard links say: FAT, some network shares.
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
_DONT_WAIT = getattr(os, "O_NONBLOCK", 0)
# Windows locks parts of a file: this byte stands for all of it.
_FAR = 2**31 - 2
_KINDS = {
    stat.S_IFDIR: "a folder (directory)",
    stat.S_IFIFO: "a FIFO (pipe)",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_regular(path: str | os.PathLike) -> BinaryIO:
    """Opens a regular file for reading, and nothing else; it never waits.

    Args:
        path: The file, or a link to it.

    Raises:
        OSError: If there is none, or it can't be read.
        IsADirectoryError: If it is a folder.
        IsSpecialFileError: If it is a device, a FIFO or a socket.
    """
    _check_regular(path, os.stat(path).st_mode, "to read")
    # It may have become something else meanwhile, which must not block.
    handle = os.open(path, os.O_RDONLY | _DONT_WAIT)
    try:
        _check_regular(path, os.fstat(handle).st_mode, "to read")
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def lock(handle: int) -> None:
    """Waits for a file until no other process has it; closing it frees it.

    Args:
        handle: Of the file, open to be written to.

    Raises:
        OSError: If the file system has no locks.
    """
    if fcntl is not None:
        fcntl.flock(handle, fcntl.LOCK_EX)
        return
    import msvcrt

    # Who has a byte there keeps others from reading it: one that is no line's.
    os.lseek(handle, _FAR, os.SEEK_SET)
    while True:
        try:
            msvcrt.locking(handle, msvcrt.LK_LOCK, 1)
        except OSError as error:
            # After ten seconds; others may yet be busy.
            if error.errno not in (errno.EDEADLK, errno.EACCES):
                raise
        else:
            break
    os.lseek(handle, 0, os.SEEK_SET)


def write_new(path: str | os.PathLike, content, mode: int) -> None:
    """Writes a file of these bytes; of several writers one alone does.

    Args:
        path: File to write, which is not there yet.
        content: Bytes, or a buffer of them.
        mode: Permission bits.

    Raises:
        FileExistsError: If there is something already.
        OSError: If the disk is full, or as `replacing` does.
    """
    place, temporary = _places(path)
    try:
        _create(temporary, mode)
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, place)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            # Who makes the name is the one that writes.
            _create(place, mode)
            os.replace(temporary, place)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(
    path: str | os.PathLike, content, mode: int | None = None
) -> None:
    """Writes a file of these bytes, or leaves what was there.

    Args:
        path: File to write; see `replacing`.
        content: Bytes, or a buffer of them.
        mode: Permission bits; see `replacing`.

    Raises:
        OSError: If the disk is full, or as `replacing` does.

    Example:

    >>> from keras_passport import files
    >>> buffer = io.BytesIO()
    >>> np.save(buffer, passport.packed())
    >>> files.write_bytes("packed.npy", buffer.getvalue(), mode=0o600)
    """
    with (
        replacing(path, mode) as temporary,
        open(temporary, "wb") as file,
    ):
        file.write(content)


def read_json(path: str | os.PathLike) -> Any:
    """What a JSON file holds, or `None` where there is no such file.

    Args:
        path: The file.

    Raises:
        PassportError: If it is damaged.
        OSError: If it is no file, or can't be read.
    """
    try:
        with open_regular(path) as file:
            return json.loads(file.read())
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise PassportError(
            f"Expected a JSON file. Received: '{shown(path)}', which is not "
            f"one: {shown(error)}"
        ) from error


def write_json(
    path: str | os.PathLike, content: Any, mode: int | None = None
) -> None:
    """Writes plain values as JSON; see `replacing`.

    Args:
        path: File to write.
        content: Dicts, lists, strings and numbers.
        mode: Permission bits.
    """
    write_bytes(path, (json.dumps(content, indent=2) + "\n").encode(), mode)


@contextlib.contextmanager
def replacing(
    path: str | os.PathLike, mode: int | None = None
) -> Iterator[pathlib.Path]:
    """Yields a temporary path that takes the place of `path` at the end.

    Where `path` is a link, that is the place to which it leads. A process
    that is killed leaves a file of a hidden name beside it. Nobody can tell
    it from one that another process is writing, so it stays.

    Args:
        path: File to write. Its folder must exist.
        mode: Permission bits from the first byte on, such as `0o600`.
            Defaults to the process's own.

    Raises:
        FileNotFoundError: If the folder does not exist.
        IsADirectoryError: If there is a folder of this name.
        IsSpecialFileError: If there is a device, a FIFO or a socket.
        OSError: If it can't be written, as on a disk that is full.
    """
    place, temporary = _places(path)
    _check_target(path)
    try:
        if mode is not None:
            _create(temporary, mode)
        yield temporary
        if mode is not None:
            # A writer may have put another file in its place.
            temporary.chmod(mode)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, place)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(
    path: str | os.PathLike,
    overwrite: bool = False,
    saved_model: bool = False,
) -> Iterator[pathlib.Path]:
    """Yields a temporary folder that takes the place of `path` at the end.

    Args:
        path: Folder to write, or a link to it. Its parent must exist.
        overwrite: Whether to replace what is at `path`.
        saved_model: Whether only a SavedModel may be replaced; see
            `check_saved_model`.

    Raises:
        FileExistsError: If there is something at `path` already, and it may
            not be replaced.
        FileNotFoundError: If the parent does not exist.
    """
    place, temporary = _places(path)
    _check_folder(path, place, overwrite, saved_model)
    temporary.mkdir()
    try:
        yield temporary
        for written in temporary.rglob("*"):
            if written.is_file():
                with open(written, "rb") as file:
                    os.fsync(file.fileno())
        # Writing took its time: what came there meanwhile is not ours.
        _check_folder(path, place, overwrite, saved_model)
        try:
            os.rename(temporary, place)
        except OSError:
            # There is something already; after this it has the other's name.
            _exchange(temporary, place)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def exists_already(path, how: str = "overwrite=True") -> FileExistsError:
    """The error of an export that would overwrite something.

    Args:
        path: What is there.
        how: What lets it.
    """
    return FileExistsError(
        f"Expected a new name to write to, or {how}. Received: "
        f"'{shown(path)}', which exists"
    )


def check_saved_model(
    path: str | os.PathLike, overwrite: bool, how: str = "overwrite=True"
) -> None:
    """Raises `OSError` unless a SavedModel may be written, before long work.

    What is replaced is gone. So nothing is but a SavedModel, with nothing
    beside what one holds, such as somebody's passport, or an empty folder;
    and that only if it is asked for.

    Args:
        path: Folder to write, or a link to it. Its parent must exist.
        overwrite: Whether a SavedModel that is there may be replaced.
        how: What asks for that, for the message.

    Raises:
        FileExistsError: If there is something that may not be replaced.
        FileNotFoundError: If the parent does not exist.
    """
    place, _ = _places(path)
    _check_folder(path, place, overwrite, True, how)


def check_target(path: str | os.PathLike) -> None:
    """Raises what `replacing` would, before long work.

    Args:
        path: File to write.
    """
    _places(path)
    _check_target(path)


class IsSpecialFileError(OSError):
    """A device, FIFO or socket where a file is expected."""


def kind_of(mode: int) -> str:
    """What is at a place, by its mode, if it is no regular file.

    Args:
        mode: `st_mode`, as `os.stat` gives it.
    """
    return _KINDS.get(stat.S_IFMT(mode), "something else")


def _check_regular(path, mode, what) -> None:
    if stat.S_ISREG(mode):
        return
    kind = kind_of(mode)
    raised = IsADirectoryError if stat.S_ISDIR(mode) else IsSpecialFileError
    error = raised(f"Expected a file {what}. Received: '{shown(path)}', {kind}")
    error.strerror = f"{kind}, no file"
    raise error


def _check_target(path) -> None:
    # Of the path as given: `/dev/stdout` leads to what has no name.
    with contextlib.suppress(FileNotFoundError):
        _check_regular(path, os.stat(path).st_mode, "to write")


def _check_folder(
    path, place, overwrite, saved_model, how="overwrite=True"
) -> None:
    if not os.path.lexists(place):
        return
    # Of what can't be replaced, nobody is told how it could.
    reason = _not_replaced(place) if saved_model else None
    if reason:
        raise FileExistsError(
            f"Expected a SavedModel to overwrite. Received: '{shown(path)}', "
            f"{reason}: it stays. Write elsewhere, or move it"
        )
    if not overwrite:
        raise exists_already(path, how)
    if not place.is_dir():
        _check_regular(path, os.stat(place).st_mode, "or folder to write")


def _not_replaced(place) -> str | None:
    """Why a SavedModel may not take a place, or `None`."""
    if not place.is_dir():
        return "which is no folder"
    held = set(os.listdir(place))
    if held and _SAVED_MODEL not in held:
        return "which is none"
    others = held - _OF_SAVED_MODELS
    return f"which holds '{shown(min(others))}' too" if others else None


def _create(temporary, mode) -> None:
    try:
        handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode)
    except PermissionError as error:
        raise PermissionError(
            "Expected a folder that this process may write to. "
            f"Received: '{shown(temporary.parent)}'"
        ) from error
    os.close(handle)
    temporary.chmod(mode)


def _places(path) -> tuple[pathlib.Path, pathlib.Path]:
    """Where a path leads, and a temporary name beside that."""
    path = pathlib.Path(os.fsdecode(path))
    if not path.name or path.name == "..":
        raise FileNotFoundError(
            f"Expected the name of a file to write. Received: '{shown(path)}'"
        )
    place = pathlib.Path(os.path.realpath(path))
    if place.is_symlink():
        raise FileNotFoundError(
            "Expected a name that leads somewhere. Received: "
            f"'{shown(path)}', a link in a circle"
        )
    if not place.parent.is_dir():
        raise FileNotFoundError(
            f"Expected an existing folder to write '{shown(place.name)}' to. "
            f"Received: '{shown(place.parent)}'"
        )
    # The suffixes stay at the end: Keras and matplotlib go by them.
    stem, dot, suffixes = place.name.partition(".")
    end = f"-{secrets.token_hex(4)}{dot}{suffixes}"
    while len(os.fsencode(f".{stem}{end}")) > _LONGEST_NAME and stem:
        stem = stem[:-1]
    return place, place.with_name(f".{stem}{end}")


_HERE = -100  # AT_FDCWD: paths are relative to the working folder.
_SWAP = 2  # RENAME_EXCHANGE


def _exchange(one: pathlib.Path, other: pathlib.Path) -> None:
    """Gives two files or folders each other's name, on Linux in one step."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
        names = (os.fsencode(one), os.fsencode(other))
        if rename(_HERE, names[0], _HERE, names[1], _SWAP) == 0:
            return
    except (AttributeError, OSError, TypeError):
        pass
    # Elsewhere, for a moment, neither is there; the old one is kept till then.
    aside = other.with_name(f"{one.name}-old")
    os.rename(other, aside)
    try:
        os.rename(one, other)
    except OSError:
        os.rename(aside, other)
        raise
    os.rename(aside, one)


_PRIVATE = threading.Lock()
_umask = {"inside": 0, "outside": 0}


@contextlib.contextmanager
def owner_only() -> Iterator[None]:
    """Makes what is written inside the block readable by its owner only.

    From the first byte on, by whatever library and thread of this process:
    files get mode 0600, folders 0700. A process has one such setting, so files
    that other threads make meanwhile get these modes as well.
    """
    with _PRIVATE:
        if not _umask["inside"]:
            _umask["outside"] = os.umask(0o077)
        _umask["inside"] += 1
    try:
        yield
    finally:
        with _PRIVATE:
            _umask["inside"] -= 1
            if not _umask["inside"]:
                os.umask(_umask["outside"])


def is_owner_only() -> bool:
    """Whether some block of `owner_only` is open."""
    return _umask["inside"] > 0


def make_private(path: str | os.PathLike) -> None:
    """Takes others' permissions from a file, if there is such a file."""
    path = pathlib.Path(os.fsdecode(path))
    if path.is_file():
        path.chmod(0o600)
