"""Interrupts, whatever became of them on their way up."""

import contextlib
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def noticed() -> Iterator[None]:
    """Within, an error that an interrupt has become is an interrupt again.

    What is interrupted in the midst of tracing a function reaches the caller
    of TensorFlow as a `ValueError` about that function.

    Raises:
        KeyboardInterrupt: Also in place of an `Exception` after an interrupt.
    """
    alone = threading.current_thread() is threading.main_thread()
    if not alone or signal.getsignal(signal.SIGINT) is not (
        signal.default_int_handler
    ):
        yield
        return
    seen = []

    def handler(number, frame):
        seen.append(number)
        signal.default_int_handler(number, frame)

    signal.signal(signal.SIGINT, handler)
    try:
        yield
    except Exception as error:
        if seen:
            raise KeyboardInterrupt from error
        raise
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
