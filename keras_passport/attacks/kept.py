"""Folders in which long attacks keep what is done."""

import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from keras_passport import files


class Kept:
    """What an attack has done so far, in a folder of its own.

    Args:
        folder: The folder, made if need be; None keeps nothing.
        settings: What the attack is of, in plain values. A folder of other
            settings is refused.

    Raises:
        ValueError: If the folder is another attack's.
    """

    def __init__(self, folder: str | os.PathLike | None, settings: dict):
        self._folder = None if folder is None else pathlib.Path(folder)
        if self._folder is None:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / "settings.json"
        text = json.dumps(settings, indent=2)
        if not path.exists():
            _write(path, text)
        elif path.read_text() != text:
            raise ValueError(
                "Expected the directory of this attack, or a new one. "
                f"Received: directory={str(folder)!r} of an attack with other "
                "settings, model or data"
            )

    def reach(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make` returns, in plain values; read, if it was here before."""
        if self._folder is None:
            return make()
        path = self._folder / f"{name}.json"
        if not path.exists():
            _write(path, json.dumps(make()))
        # What was read of a file and what was just made are the same.
        return json.loads(path.read_text())


def fingerprint(arrays: Iterable[np.ndarray]) -> str:
    """Hexadecimal digest of arrays' elements, for an attack's settings."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _write(path, text):
    with files.replacing(path) as temporary:
        temporary.write_text(text)
