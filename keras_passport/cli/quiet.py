"""TensorFlow imported without its greeting."""

import contextlib
import os
import sys
from collections.abc import Iterator

from absl import logging


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Drops what goes to stderr while TensorFlow may be imported.

    It greets from C++, whatever TF_CPP_MIN_LOG_LEVEL says, and is imported
    by Keras on every backend. Errors are raised, so none is lost. Where
    TensorFlow is imported already, or somebody debugs, nothing is dropped.
    """
    if "tensorflow" in sys.modules or logging.get_verbosity() >= logging.DEBUG:
        yield
        return
    sys.stderr.flush()
    stderr = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(stderr, 2)
        os.close(stderr)
