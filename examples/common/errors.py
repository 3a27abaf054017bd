"""What the user can put right, told in one line."""

import contextlib
import pathlib
import sys
from collections.abc import Iterator

from absl import flags, logging


class UserError(Exception):
    """Something the user can put right; shown as one line, no traceback."""


@contextlib.contextmanager
def in_one_line() -> Iterator[None]:
    """Ends the program with one line where the user can put it right."""
    from keras_passport.errors import PassportError

    if not flags.FLAGS["verbosity"].present:
        # tensorflow-datasets and JAX tell much at the default one.
        logging.set_verbosity(logging.WARNING)
    try:
        yield
    except (UserError, PassportError) as error:
        sys.exit(f"{pathlib.Path(sys.argv[0]).name}: {error}")
    except KeyboardInterrupt:
        sys.exit("\nInterrupted; the same command goes on from here.")
