"""A run's directory: what is public, what is its owner's alone."""

import contextlib
import errno
import json
import os
import pathlib
import socket
from collections.abc import Iterator
from typing import Any

import keras

import keras_passport as kp
from common.errors import UserError, users_mistakes
from keras_passport import files
from keras_passport.cli import given
from keras_passport.files import read_json
from keras_passport.texts import shown

try:
    import fcntl
except ImportError:  # Windows has none.
    fcntl = None

PRIVATE = 0o600
# Where files lie until they are whole. The name is nobody else's, so what a
# killed run left in there can be removed.
UNFINISHED = ".keras_passport-unfinished"
# What file systems answer that can't lock, some of those over a network.
_CANT_LOCK = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
# Settings that runs of older versions do not name.
_LATER = {"hide_rows"}


class RunDirectory:
    """The files of one run.

    ```
    public/protected.keras     what may be published
    owner/original.keras       0700: the unprotected network,
    owner/passport.h5          the secret passport,
    owner/first_weights        what the original's first weights follow from,
    owner/claim.secret         with --owner: what γ's signs follow from,
    owner/opening.json         what opens public/claim.json, and the record
    owner/record.json          of the network at its release,
    owner/history.json         the course of both trainings,
    owner/checkpoints/         what an interrupted run goes on from
    config.json result.json    what was asked for, what came out
    fakes.png training.png
    .lock                      held by the program that writes here
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
        self.first_weights = self.owner / "first_weights"
        self.claim = self.public / "claim.json"
        self.secret = self.owner / "claim.secret"
        self.opening = self.owner / "opening.json"
        self.record = self.owner / "record.json"
        self.fakes = self.checkpoints / "fakes.json"
        self.protected = self.public / "protected.keras"
        # Of `attack.py` and `evaluate_protection.py`.
        self.attacks = self.path / "attacks"
        self.protection = self.path / "protection.json"
        self.report = self.path / "report.html"
        self.lock = self.path / ".lock"

    def checkpoint(self, stage: str) -> pathlib.Path:
        """What an interrupted training of a stage goes on from."""
        return self.checkpoints / f"{stage}.h5"

    def load_protected(self) -> keras.Model:
        """The protected network, bound to its passport."""
        passport = kp.Passport.load(self.passport)
        return kp.bind(load_model(self.protected), passport)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other programs from writing here meanwhile.

        Two trainers would each overwrite the other's passport and networks.
        The lock is the operating system's: it ends with the process, however
        that ends. Over NFS it holds between machines where the server and
        both machines lock (NFS 4 does).

        Raises:
            UserError: If another program writes here, or if the directory
                can't be written to.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.lock, os.O_RDWR | os.O_CREAT, PRIVATE)
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            self._lock(handle)
            os.ftruncate(handle, 0)
            os.write(handle, f"{os.getpid()} {socket.gethostname()}\n".encode())
            yield
        finally:
            # The file stays: who waits to open it must lock the same one.
            os.close(handle)

    def _lock(self, handle: int) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            process, _, machine = (
                os.pread(handle, 300, 0).decode(errors="replace").partition(" ")
            )
            by = f"process {process} on {machine}" if machine else "another"
            raise UserError(
                f"{self.path} is being written to by {shown(by.strip())}. "
                "Wait for it, or give another directory."
            ) from error
        except OSError as error:
            if error.errno not in _CANT_LOCK:
                raise self._unwritable(error) from error
            print(
                f"{self.path} can't be locked here ({error.strerror}): see to "
                "it that no other program writes there."
            )

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(f"{self.path} cannot be written to: {error.strerror}.")

    def open(self, config: dict[str, Any]) -> None:
        """Creates the directory, or checks that it holds this very run.

        To be called while it is `locked`.

        Args:
            config: the settings, as JSON knows them.
        """
        try:
            self.public.mkdir(parents=True, exist_ok=True)
            for private in (self.owner, self.checkpoints):
                private.mkdir(mode=0o700, exist_ok=True)
                private.chmod(0o700)
        except OSError as error:
            raise self._unwritable(error) from error
        if not self.config.exists():
            write_json(self.config, config)
            return
        self.check(config)
        # What a killed run was about to write.
        for folder in (self.path, self.public, self.owner, self.checkpoints):
            remove_unfinished(folder)

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
            # A run may go on on other devices, and with a newer version.
            if name != "strategy"
            and (name in found or name not in _LATER)
            and found.get(name) != config.get(name)
        ]
        if different:
            raise UserError(
                f"{self.path} holds another run ({'; '.join(different)}). "
                "Give the same flags to go on with it, or another --run_dir."
            )


@contextlib.contextmanager
def replacing(
    path: pathlib.Path, mode: int | None = None
) -> Iterator[pathlib.Path]:
    """Yields a path for what takes the place of `path` once it is whole.

    It lies in a folder of its own beside it, `UNFINISHED`.

    Args:
        path: the file to write.
        mode: its permission bits, from the first byte on.
    """
    folder = path.parent / UNFINISHED
    folder.mkdir(mode=0o700, exist_ok=True)
    try:
        # Keras and matplotlib go by the suffix.
        whole = folder / path.name
        with files.replacing(whole, mode) as temporary:
            yield temporary
        os.replace(whole, path)
    finally:
        remove_unfinished(path.parent)


def remove_unfinished(folder: pathlib.Path) -> None:
    """Removes what `replacing` left in a folder, and nothing else.

    Args:
        folder: where nobody writes; it is `RunDirectory.locked`.
    """
    leftovers = folder / UNFINISHED
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for leftover in leftovers.iterdir():
            leftover.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        leftovers.rmdir()


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
    with users_mistakes():
        return given.load_model(path)
