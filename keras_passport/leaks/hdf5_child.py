"""Reads an HDF5 file for another process, which can end this one.

A program of its own: the HDF5 library never ends on some damaged files, and
crashes on others. It imports h5py and NumPy alone, takes one request after
another from its input, and answers with arrays on its output. A request is a
line of JSON, `{"path": ..., "offset": ..., "size": ..., "limit": ...}`, and
the file's bytes if `path` is null; an answer a line of JSON for each array,
`{"name": ..., "size": ...}`, and its bytes as a `.npy` file; or
`{"problem": ..., "name": ...}`; at the end `{"end": true}`.
"""

import io
import json
import os
import select
import sys

import h5py
import numpy as np

# Bytes of an array that are sent at a time, and of memory altogether.
_PIECE, _MEMORY = 2**27, 2**32
# It ends after so many seconds without a request.
_IDLE = 120
_MOST_OBJECTS = 100_000


class _Part(io.RawIOBase):
    """A part of a file, as a file."""

    def __init__(self, path, offset, size):
        self._file = open(path, "rb")  # noqa: SIM115
        self._first, self._size, self._at = offset, size, 0

    def readable(self):
        return True

    def seekable(self):
        return True

    def seek(self, offset, whence=io.SEEK_SET):
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at}
        self._at = base.get(whence, self._size) + offset
        return self._at

    def tell(self):
        return self._at

    def readinto(self, buffer):
        self._file.seek(self._first + self._at)
        count = max(0, min(len(buffer), self._size - self._at))
        data = self._file.read(count)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


class _Answer:
    """Sends what is found, within a limit."""

    def __init__(self, output, limit):
        self._output, self._left, self._objects = output, limit, 0

    def say(self, **about):
        self._output.write(json.dumps(about).encode() + b"\n")
        self._output.flush()

    def problem(self, name, why):
        self.say(problem=why, name=name)

    def count(self):
        self._objects += 1
        if self._objects > _MOST_OBJECTS:
            raise ValueError(f"more than {_MOST_OBJECTS:,} objects")

    def take(self, size):
        """Whether so many bytes may still be read."""
        self._left -= size
        return self._left >= 0

    def send(self, name, array):
        if array.dtype.names:
            for field in array.dtype.names:
                self.send(f"{name}.{field}", array[field])
            return
        if array.dtype.subdtype or array.dtype.hasobject:
            array = _flat(array)
        if array.dtype.kind not in "biufcSUV" or array.size == 0:
            return
        stream = io.BytesIO()
        np.save(stream, np.ascontiguousarray(array), allow_pickle=False)
        self.say(name=name, size=stream.tell())
        self._output.write(stream.getvalue())
        self._output.flush()


def _flat(array):
    """Elements of different sizes, one after the other; texts as bytes."""
    parts = [_element(element) for element in array.ravel()]
    kinds = {part.dtype.kind for part in parts}
    if kinds <= set("biuf"):
        return np.concatenate([part.ravel() for part in parts] or [[]])
    return np.frombuffer(b"\n".join(part.tobytes() for part in parts), "uint8")


def _element(element):
    if isinstance(element, str):
        element = element.encode()
    if isinstance(element, bytes):
        return np.frombuffer(element, "uint8").view("V1")
    if isinstance(element, np.ndarray) and element.dtype.hasobject:
        return _flat(element)
    if isinstance(element, (np.ndarray, np.generic)):
        return np.atleast_1d(element)
    return np.zeros(0)  # A reference to something else in the file.


def _read(source, answer):
    with h5py.File(source, "r") as file:
        _group(file, "", answer, set())


def _group(group, name, answer, seen):
    """Reads a group; in the end of it, no deeper than Python goes."""
    waiting = [(name, group)]
    while waiting:
        name, item = waiting.pop()
        answer.count()
        about = h5py.h5o.get_info(item.id)
        if about.addr in seen:
            continue
        seen.add(about.addr)
        try:
            for key, value in item.attrs.items():
                answer.send(f"{name}@{key}", np.asarray(value))
        except Exception as error:
            answer.problem(f"{name}@", type(error).__name__)
        if isinstance(item, h5py.Dataset):
            _dataset(item, name, answer)
        elif isinstance(item, h5py.Group):
            for key in item:
                answer.count()
                inside = f"{name}/{key}".lstrip("/")
                try:
                    link = item.get(key, getlink=True)
                    if isinstance(link, h5py.ExternalLink):
                        answer.problem(inside, "a link to another file")
                    elif isinstance(link, h5py.HardLink):
                        waiting.append((inside, item[key]))
                except Exception as error:
                    answer.problem(inside, type(error).__name__)


def _dataset(data, name, answer):
    try:
        if data.shape is None:  # An empty one.
            return
        if data.external or data.is_virtual:
            answer.problem(name, "data of another file")
            return
        size = data.size * max(1, data.dtype.itemsize)
        if not answer.take(size):
            answer.problem(name, f"claims {size:,} bytes")
            return
        if not data.shape or size <= _PIECE:
            answer.send(name, np.asarray(data[()]))
            return
        # A large one comes in parts.
        rows = max(1, _PIECE * data.shape[0] // size)
        for first in range(0, data.shape[0], rows):
            some = np.asarray(data[first : first + rows])
            part = "" if rows >= data.shape[0] else f"[{first}:{first + rows}]"
            answer.send(f"{name}{part}", some)
    except Exception as error:
        answer.problem(name, f"damaged ({type(error).__name__})")


def main():
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    except (ImportError, ValueError, OSError):
        pass
    requests, output = sys.stdin.buffer, sys.stdout.buffer
    # What a library prints is no answer.
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    while select.select([requests], [], [], _IDLE)[0]:
        line = requests.readline()
        if not line:
            return
        about = json.loads(line)
        source = None
        if about["path"] is None:
            source = io.BytesIO(requests.read(about["size"]))
        answer = _Answer(output, about["limit"])
        try:
            if source is None:
                part = _Part(about["path"], about["offset"], about["size"])
                source = io.BufferedReader(part)
            _read(source, answer)
        except Exception as error:
            answer.problem("", f"not readable ({type(error).__name__})")
        answer.say(end=True)


if __name__ == "__main__":
    main()
