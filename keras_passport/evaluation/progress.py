"""`Progress`: how far an attack came, and what it may build upon."""

import pathlib
import shutil
from collections.abc import Callable

from keras_passport.attacks import AttackResult
from keras_passport.files import read_json, write_json


class Progress:
    """How far one attack came, and what it may build upon.

    Args:
        path: A file or a folder, for what an attack that takes long keeps
            until it is done: `keep` writes the one, an attack that goes on by
            itself makes the other.
        found: Function of another attack's name and a budget that returns its
            result, and the γ and β by path that it found.
        shown: Whether to show bars.
    """

    def __init__(
        self, path: pathlib.Path, found: Callable, shown: bool = False
    ):
        self.path = path
        self.found = found
        self.shown = shown

    def kept(self) -> AttackResult | None:
        """What a series had reached when it was interrupted, if it was."""
        fields = read_json(self.path)
        return None if fields is None else AttackResult.from_dict(fields)

    def keep(self, result: AttackResult) -> None:
        """Writes what a series has reached."""
        write_json(self.path, result.to_dict())

    def forget(self) -> None:
        """Removes what was kept: the attack is done."""
        if self.path.is_dir():
            shutil.rmtree(self.path)
        else:
            self.path.unlink(missing_ok=True)
