"""Where a command may write, which it says before it does any work."""

import os
import pathlib

from keras_passport.passports import passport_file
from keras_passport.texts import shown


def check_apart(*paths) -> None:
    """Raises `ValueError` if one file was given twice, `None` aside."""
    seen = set()
    for path in paths:
        if path is None:
            continue
        place = os.path.realpath(path)
        if place in seen:
            raise ValueError(
                "Expected files of their own to write to. "
                f"Received: '{shown(path)}' twice"
            )
        seen.add(place)


def new_file(
    path, overwrite, suffix, *sources, makes_passport=False
) -> pathlib.Path:
    """The path, if a file may be written there; said before long work.

    Args:
        path: A user's.
        overwrite: Whether a file that is there may be replaced.
        suffix: That the name must have; `None` for any.
        *sources: Files that are read; `None` for those not given.
        makes_passport: Whether it is to be a passport, which alone may take
            the place of one.

    Raises:
        ValueError: If none may be.
    """
    path = _new_path(path, overwrite)
    if suffix and path.suffix != suffix:
        raise ValueError(
            f"Expected a name that ends in {suffix} to write to. "
            f"Received: '{shown(path)}'"
        )
    if path.is_dir() or any(
        path.exists() and os.path.exists(source) and path.samefile(source)
        for source in sources
        if source
    ):
        raise ValueError(
            "Expected to write to a file of its own. Received: "
            f"'{shown(path)}', a "
            f"{'folder' if path.is_dir() else 'file to read from'}"
        )
    if not makes_passport and passport_file.is_passport(path):
        # It can't be made again.
        raise ValueError(
            "Expected --overwrite of anything but a passport. Received: "
            f"'{shown(path)}', which is one: move it, or remove it yourself"
        )
    return path


def _new_path(path, overwrite) -> pathlib.Path:
    # "./-" is a name, and the same path.
    if os.fspath(path) == "-":
        raise ValueError(
            "Expected the name of a file to write, since this command has none "
            "for standard output. Received: '-' (one of that name is './-')"
        )
    path = pathlib.Path(path)
    if not path.parent.is_dir():
        raise ValueError(
            f"Expected an existing folder to write '{shown(path.name)}' to. "
            f"Received: '{shown(path.parent)}'"
        )
    if path.exists() and not overwrite:
        raise ValueError(
            "Expected a new name to write to, or --overwrite. "
            f"Received: '{shown(path)}', which exists"
        )
    return path
