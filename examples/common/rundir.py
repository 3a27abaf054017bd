"""A run's directory: what is public, what is its owner's alone."""

import json
import os
import pathlib
from typing import Any

import keras

import keras_passport as kp
from common.errors import UserError
from keras_passport.files import replacing

PRIVATE = 0o600


class RunDirectory:
    """The files of one run.

    ```
    public/protected.keras     what may be published
    owner/original.keras       0700: the unprotected network,
    owner/passport.h5          the secret passport,
    owner/history.json         the course of both trainings,
    owner/checkpoints/         what an interrupted run goes on from
    config.json result.json    what was asked for, what came out
    fakes.png training.png
    ```

    Checkpoints are secrets as much as the passport is: an optimizer's
    momentum points along the keys.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = pathlib.Path(path)
        self.public = self.path / "public"
        self.owner = self.path / "owner"
        self.checkpoints = self.owner / "checkpoints"
        self.config = self.path / "config.json"
        self.result = self.path / "result.json"
        self.fakes_figure = self.path / "fakes.png"
        self.training_figure = self.path / "training.png"
        self.history = self.owner / "history.json"
        self.original = self.owner / "original.keras"
        self.passport = self.owner / "passport.h5"
        self.fakes = self.checkpoints / "fakes.json"
        self.protected = self.public / "protected.keras"
        # Of `attack.py` and `evaluate_protection.py`.
        self.attacks = self.path / "attacks"
        self.protection = self.path / "protection.json"
        self.report = self.path / "report.html"
        self.noise = self.owner / "noise.json"
        self.changes = self.owner / "changes.json"
        self.hits = self.owner / "hits.json"

    def checkpoint(self, stage: str) -> pathlib.Path:
        """What an interrupted training of a stage goes on from."""
        return self.checkpoints / f"{stage}.h5"

    def load_protected(self) -> keras.Model:
        """The protected network, bound to its passport."""
        passport = kp.Passport.load(self.passport)
        return kp.bind(load_model(self.protected), passport)

    def open(self, config: dict[str, Any]) -> None:
        """Creates the directory, or checks that it holds this very run.

        Args:
            config: the settings, as JSON knows them.
        """
        try:
            self.public.mkdir(parents=True, exist_ok=True)
            for private in (self.owner, self.checkpoints):
                private.mkdir(mode=0o700, exist_ok=True)
                private.chmod(0o700)
        except OSError as error:
            raise UserError(
                f"--run_dir={self.path} cannot be written to: {error.strerror}"
            ) from error
        if not self.config.exists():
            write_json(self.config, config)
            return
        self.check(config)
        # What a killed run was about to write.
        for folder in (self.public, self.owner, self.checkpoints):
            for leftover in folder.glob(".*-????????.*"):
                leftover.unlink()

    def check(self, config: dict[str, Any]) -> None:
        """Checks that the directory holds this very run.

        Args:
            config: as for `open`.
        """
        found = read_json(self.config)
        if found is None:
            raise UserError(
                f"--run_dir={self.path} holds no run. It must be a directory "
                "that all workers see."
            )
        different = [
            f"--{name}={found.get(name)} there, {config.get(name)} now"
            for name in sorted(found.keys() | config.keys())
            # A run may go on on other devices.
            if name != "strategy" and found.get(name) != config.get(name)
        ]
        if different:
            raise UserError(
                f"{self.path} holds another run ({'; '.join(different)}). "
                "Give the same flags to go on with it, or another --run_dir."
            )


def read_json(path: pathlib.Path) -> Any:
    """The content of a JSON file, or None where there is no such file."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{path} is not a JSON file: {error}") from error


def write_json(
    path: pathlib.Path, content: Any, mode: int | None = None
) -> None:
    """Writes a JSON file in one step, with these permission bits."""
    with replacing(path, mode) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


def save_model(
    model: keras.Model, path: pathlib.Path, mode: int | None = None
) -> None:
    """Writes a `.keras` file without optimizer state, in one step."""
    with replacing(path, mode) as temporary:
        model.save(temporary, include_optimizer=False)


def load_model(path: str | os.PathLike) -> keras.Model:
    """Reads a `.keras` file."""
    try:
        return keras.models.load_model(path, compile=False)
    # A file that is not what it should be fails in zipfile, h5py, json or
    # Keras, each in its own way.
    except Exception as error:
        raise UserError(
            f"{path} is not a model that Keras can load: {error}"
        ) from error
