"""An append-only file of all licences that were issued.

Each line is sealed with the licensor's secret and names the one before it, so
no line can be changed, left out or put elsewhere; only the newest can be cut
off whole, which is why the number of licences belongs into the books as well.
A process that is killed leaves at most a torn last line, which is no licence:
the next append takes its place.
"""

import contextlib
import hashlib
import os
import pathlib
from typing import Any

from keras_passport import files, sealed
from keras_passport.errors import PassportError
from keras_passport.ownership.claim_secret import check_secret
from keras_passport.texts import shown

_KIND = "licence"


class Ledger:
    """All licences of one network.

    Args:
        path: The file; it begins with the first licence.
        secret: The licensor's, 32 bytes.

    Raises:
        PassportError: If the secret is none, the file is no ledger of it, or
            a line of it changed.

    Example:

    >>> secret = kp.ownership.new_secret()
    >>> licensor = kp.licensing.Licensor(passport, model, secret)
    >>> ledger = kp.licensing.Ledger("ledger.jsonl", secret)
    >>> licence = licensor.issue("Bob & Co", ledger)
    >>> ledger.licensees
    ['Bob & Co']
    """

    def __init__(self, path: str | os.PathLike, secret: bytes):
        self._path = pathlib.Path(path)
        self._secret = check_secret(secret)
        self._lines: list[dict] = []
        self._read()

    @property
    def licensees(self) -> list[str]:
        """Who has a licence, in the order in which they were issued."""
        return [line["licensee"] for line in self._lines]

    @property
    def entries(self) -> tuple[dict, ...]:
        """What each line says: licensee, fingerprint, strengths."""
        return tuple(
            {name: value for name, value in line.items() if name != "previous"}
            for line in self._lines
        )

    def append(self, licensee: str, **about: Any) -> None:
        """Writes a licence down, and waits until it is on the disk.

        Args:
            licensee: Who gets it; one line each.
            **about: What else to write down, JSON values; not `previous`,
                which is the ledger's own.

        Raises:
            PassportError: If the licensee has one already, or it can't be
                written down so.
            OSError: If it can't be written.
        """
        if "previous" in about:
            raise PassportError(
                "Expected what to write down beside a licensee, without "
                "previous, which is the ledger's own. Received: previous"
            )
        with self._locked() as file:
            self._read()
            if licensee in self.licensees:
                raise PassportError(
                    "Expected a licensee without a licence, since a key is "
                    "made of the name. Received: "
                    f"'{shown(licensee)}', who has one"
                )
            content = {
                "licensee": licensee,
                "previous": self._last(),
                **about,
            }
            file.truncate(self._size)
            file.seek(self._size)
            if not self._ended:
                file.write(b"\n")
            file.write(sealed.dumps(_KIND, content, self._secret))
            file.flush()
            os.fsync(file.fileno())
            self._read()

    @contextlib.contextmanager
    def _locked(self):
        handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        with os.fdopen(handle, "r+b") as file:
            files.lock(file.fileno())
            yield file

    def _last(self) -> str:
        if not self._lines:
            return ""
        text = sealed.dumps(_KIND, self._lines[-1], self._secret)
        return hashlib.sha256(text).hexdigest()

    def _read(self):
        self._lines, self._size, self._ended = [], 0, True
        if not self._path.exists():
            return
        text = sealed.read(self._path, "ledger")
        *lines, rest = bytes(text).split(b"\n")
        # All of a line but its end is a licence; less is none.
        with contextlib.suppress(PassportError):
            self._unsealed(rest, len(lines) + 1)
            lines.append(rest)
            self._ended = False
        for number, line in enumerate(lines, 1):
            content = self._unsealed(line, number)
            if content.get("previous") != self._last():
                raise PassportError(
                    f"Expected line {number} of '{shown(self._path)}' to "
                    "follow the one before it. Received: another"
                )
            self._lines.append(content)
            self._size += len(line) + 1
        self._size -= not self._ended

    def _unsealed(self, line: bytes, number: int) -> dict:
        return sealed.loads(
            line + b"\n", _KIND, self._secret, f"{self._path}, line {number}"
        )
