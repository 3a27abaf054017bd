"""What the user can put right, told in one line."""

import contextlib
import errno
import pathlib
import sys
import traceback
from collections.abc import Callable, Iterator

from absl import app, flags, logging

from keras_passport.cli import interrupts, streams
from keras_passport.texts import shown

# The exit status of what the user can put right, as `keras-passport` has it.
MISTAKE = 2
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class UserError(Exception):
    """Something the user can put right; shown as one line, no traceback."""


def run_program(main: Callable) -> None:
    """`absl.app.run`, but that a wrong flag is told in one line, too."""
    streams.prepare()
    app.run(main, flags_parser=parsed)


def parsed(arguments: list[str]) -> list[str]:
    """What is left of a program's arguments; it ends if one is wrong.

    Args:
        arguments: Its name, and what it was given.
    """
    try:
        return flags.FLAGS(arguments)
    except flags.Error as error:
        said = " ".join(str(error).split())
        name = pathlib.Path(arguments[0]).name
        print(f"{name}: {said} (--help tells of all flags)", file=sys.stderr)
        sys.exit(MISTAKE)


@contextlib.contextmanager
def users_mistakes() -> Iterator[None]:
    """Within, a `ValueError` is the user's to put right."""
    try:
        yield
    except ValueError as error:
        raise UserError(str(error)) from error


@contextlib.contextmanager
def in_one_line() -> Iterator[None]:
    """Ends the program with one line where the user can put it right.

    With `--verbosity=1` the traceback comes before it.
    """
    from keras_passport.errors import PassportError

    if not flags.FLAGS["verbosity"].present:
        # tensorflow-datasets and JAX tell much at the default one.
        logging.set_verbosity(logging.WARNING)
    try:
        with interrupts.noticed():
            yield
    except (UserError, PassportError, OSError) as error:
        if logging.get_verbosity() >= logging.DEBUG:
            traceback.print_exc()
        name = pathlib.Path(sys.argv[0]).name
        print(f"{name}: {_told(error)}", file=sys.stderr)
        sys.exit(MISTAKE)
    except KeyboardInterrupt:
        sys.exit("\nInterrupted; the same command goes on from here.")


def _told(error: Exception) -> str:
    if not isinstance(error, OSError) or error.errno is None:
        # What these messages quote is on one line already.
        return str(error)
    text = error.strerror or type(error).__name__
    if error.filename is not None:
        text = f"{shown(error.filename)}: {text}"
    if error.errno in _FULL:
        text += (
            ". What was written before is as it was: make room, and the same "
            "command goes on"
        )
    return f"{text}."
