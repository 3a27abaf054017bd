"""The standard streams of a command, whatever it was started with."""

import io
import os
import sys


def prepare() -> None:
    """Lets the streams take whatever a command prints; called once, first.

    A stream of another encoding than UTF-8 (a pipe on Windows, an old locale)
    shows what it can't encode as an escape: names and γ are no reason to fail,
    least of all after a file was written. A stream that was closed takes all
    and shows nothing: the next file to be opened would get its number, and
    what TensorFlow tells from C++ would be written into that.
    """
    for handle in (0, 1, 2):
        try:
            os.fstat(handle)
        except OSError:
            # The lowest free number is this one.
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
            setattr(sys, name, stream)
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
