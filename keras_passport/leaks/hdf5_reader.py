"""The arrays of an HDF5 file, read by a process that can be ended.

The HDF5 library runs for ever on some damaged files, and crashes on others:
neither may happen to who searches them.
"""

import atexit
import contextlib
import io
import json
import os
import pathlib
import select
import subprocess
import sys
import threading
from collections.abc import Iterator

import numpy as np

from keras_passport.leaks import scanned_files

# Seconds without an answer after which a file is given up.
PATIENCE = 30.0
_PROGRAM = pathlib.Path(__file__).with_name("hdf5_child.py")
# A process for each thread: what one asks, no other one may be answered.
_own = threading.local()


def arrays_of(
    data: np.ndarray, limit: int
) -> Iterator[tuple[str, np.ndarray, str]]:
    """Yields name and array, or name, None and why there is none.

    Args:
        data: The file's bytes, a uint8 array.
        limit: How many bytes its arrays may have.
    """
    child = _started()
    done = False
    try:
        for about in _ask(child, data, limit):
            if "end" in about:
                done = True
                return
            yield about["name"], about.get("array"), about.get("problem", "")
    except (OSError, ValueError, EOFError, TimeoutError) as error:
        why = str(error) if isinstance(error, TimeoutError) else "crashed"
        yield "", None, f"the HDF5 library {why} on it"
    finally:
        # Whoever stops listening leaves answers behind.
        if not done:
            stop()


def _started():
    """This thread's process, which serves one file after another."""
    child = getattr(_own, "child", None)
    if child is not None and child.poll() is not None:
        stop()
        child = None
    if child is None:
        child = _own.child = subprocess.Popen(
            [sys.executable, "-P", str(_PROGRAM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
    return child


@atexit.register
def stop() -> None:
    """Ends this thread's process, if there is one.

    Those of other threads end once nobody holds their pipes.
    """
    child = getattr(_own, "child", None)
    if child is not None:
        child.kill()
        for pipe in (child.stdin, child.stdout):
            with contextlib.suppress(OSError):
                pipe.close()
        child.wait()
        _own.child = None


def _ask(child, data, limit):
    path, offset = scanned_files.origin(data)
    request = {"path": path, "offset": offset}
    request |= {"size": data.size, "limit": limit}
    child.stdin.write(json.dumps(request).encode() + b"\n")
    for start in range(0, 0 if path else data.size, 2**20):
        child.stdin.write(data[start : start + 2**20].tobytes())
    child.stdin.flush()
    answers = _Answers(child.stdout.fileno())
    while True:
        about = json.loads(answers.line())
        if "size" in about:
            array = np.load(io.BytesIO(answers.bytes(about["size"])))
            about["array"] = array
        yield about
        if "end" in about:
            return


class _Answers:
    """Reads from a pipe, but waits no longer than `PATIENCE`."""

    def __init__(self, descriptor):
        self._descriptor, self._rest = descriptor, bytearray()

    def _more(self):
        if not select.select([self._descriptor], [], [], PATIENCE)[0]:
            raise TimeoutError(f"did not end within {PATIENCE:g} s")
        data = os.read(self._descriptor, 2**20)
        if not data:
            raise EOFError
        self._rest += data

    def line(self):
        while (at := self._rest.find(b"\n")) < 0:
            self._more()
        return self._taken(at + 1)

    def bytes(self, size):
        while len(self._rest) < size:
            self._more()
        return self._taken(size)

    def _taken(self, size):
        data = bytes(self._rest[:size])
        # Which moves no byte of what is left.
        del self._rest[:size]
        return data
