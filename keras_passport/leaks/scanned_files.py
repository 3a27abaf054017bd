"""Which files a scan reads, and their bytes; nothing in it blocks for ever.

A folder may hold pipes, devices, links in a circle, and files of gigabytes
that are empty. Whatever is not read is named, with the reason.
"""

import errno
import mmap
import os
import pathlib
import stat
from collections.abc import Callable, Iterable

import numpy as np

from keras_passport import files

# Larger files are mapped into memory, not read: none shrinks while it is.
_MAPPED = 2**26
# Of a sparse file, that much of its data is searched.
_MOST_DATA = 2**26

# Called with a place and the reason why it was not examined.
Problem = Callable[[str, str], None]


def files_under(
    paths: Iterable[str | os.PathLike], problem: Problem
) -> list[pathlib.Path]:
    """The regular files among paths and in folders, each once, sorted.

    Links are followed, to folders too; a folder that was seen already is not
    seen again, so that links in a circle end.

    Args:
        paths: Files and folders.
        problem: Told what is left out.

    Raises:
        FileNotFoundError: If a path does not exist.
    """
    regular, seen, folders = {}, set(), []

    def visit(path):
        try:
            about = os.stat(path)
        except OSError as error:
            problem(str(path), _why(error))
            return
        # Names that are linked to each other are one file.
        identity = about.st_dev, about.st_ino
        if identity in seen:
            return
        seen.add(identity)
        if stat.S_ISDIR(about.st_mode):
            folders.append(path)
        elif stat.S_ISREG(about.st_mode):
            regular[path] = None
        else:
            problem(str(path), files.kind_of(about.st_mode))

    for path in map(pathlib.Path, paths):
        try:
            os.stat(path)
        except FileNotFoundError:
            raise FileNotFoundError(
                f"Expected an existing file or folder. Received: {path}"
            ) from None
        except OSError:  # `visit` says what is wrong.
            pass
        visit(path)
        while folders:
            folder = folders.pop()
            try:
                names = sorted(entry.name for entry in os.scandir(folder))
            except OSError as error:
                problem(str(folder), f"a folder, {_why(error)}")
                continue
            for name in names:
                visit(folder / name)
    return sorted(regular)


def _why(error: OSError) -> str:
    if error.errno == errno.ELOOP:
        return "links in a circle"
    if error.errno == errno.ENOENT:
        return "a link to nothing"
    return f"can't be read ({error.strerror or type(error).__name__})"


def contents_of(path: pathlib.Path, problem: Problem) -> np.ndarray | None:
    """A file's bytes, read or mapped, or None if it is no file to read.

    Args:
        path: A file.
        problem: Told what was not read.

    Returns:
        uint8 array, not writable; the data of a sparse file without its holes.
    """
    try:
        file = files.open_regular(path)
    except OSError as error:
        problem(str(path), _why(error))
        return None
    with file:
        about = os.fstat(file.fileno())
        size = about.st_size
        try:
            if size - 512 * about.st_blocks > _MOST_DATA:
                return _data_of_sparse(path, file, size, problem)
            if size > _MAPPED:
                mapped = np.memmap(file, "uint8", "r", shape=(size,))
                # An open file has no name there, and `origin` is asked for it.
                mapped.filename = path.resolve()
                return mapped
            data = file.read(size + 1)
        except (OSError, ValueError) as error:
            problem(str(path), f"can't be read ({type(error).__name__})")
            return None
    if len(data) > size:
        problem(str(path), "longer than its size says; it may be growing")
    return np.frombuffer(data, "uint8")


def _data_of_sparse(path, file, size, problem):
    """The parts of a file that are not holes, one after the other."""
    pieces, total, position = [], 0, 0
    while position < size and total < _MOST_DATA:
        try:
            start = os.lseek(file.fileno(), position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # No data any more.
                break
            raise
        end = os.lseek(file.fileno(), start, os.SEEK_HOLE)
        count = min(end - start, _MOST_DATA - total)
        file.seek(start)
        pieces.append(file.read(count))
        total, position = total + count, start + count
    problem(
        str(path),
        f"a sparse file of {size:,} bytes: {total:,} bytes of data were "
        "searched, without its format",
    )
    return np.frombuffer(b"".join(pieces), "uint8")


def _mapped(data):
    """The mapped file that an array is a view of, or None."""
    outermost = None
    while isinstance(data, np.memmap):
        outermost, data = data, data.base
    return outermost


def origin(data: np.ndarray) -> tuple[str | None, int]:
    """The mapped file that an array is a part of, and where in it, if any."""
    whole = _mapped(data)
    if whole is None:
        return None, 0
    return str(whole.filename), data.ctypes.data - whole.ctypes.data


def release(data: np.ndarray) -> None:
    """Gives back the memory of what was read of a mapped file."""
    whole = _mapped(data)
    if whole is not None:
        whole.base.madvise(mmap.MADV_DONTNEED)
