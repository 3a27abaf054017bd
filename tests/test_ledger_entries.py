"""Lines of ledgers that `Licensor.issue` would not write today; who waits."""

import errno
import importlib.util
import os
import sys
import threading
import time
import types

import pytest

import keras_passport as kp
from keras_passport import files, licensing
from support.plain_models import randomize, wide_cnn

SECRET = bytes(range(32))
NAMES = ["Bob", "Eve"]
ABSENT = "absent"


@pytest.fixture(scope="module")
def licensor():
    model = kp.protect(randomize(wide_cnn()))
    passport = kp.Passport.random_pattern(model)
    return licensing.Licensor(passport, model, SECRET)


def ledger_of(path, licensor, **about):
    """A ledger as it was written by hand, without what is `ABSENT`."""
    ledger = licensing.Ledger(path / "ledger", SECRET)
    for name in NAMES:
        word = about.get("word")
        line = {"fingerprint": issued(licensor, name, word).fingerprint}
        line |= {"range_strength": 0.01, "null_strength": 0.5, **about}
        line = {key: value for key, value in line.items() if value != ABSENT}
        ledger.append(name, **line)
    return licensing.Ledger(path / "ledger", SECRET)


def issued(licensor, name, word):
    return licensor.issue(name, word=word if type(word) is int else 0)


@pytest.mark.parametrize(
    "about",
    [
        {},
        {"word": 0},
        {"word": 3},
        {"range_strength": ABSENT, "null_strength": ABSENT},
        {"word": 1, "note": "what a later version may write"},
    ],
    ids=str,
)
def test_older_and_newer_lines_are_read_alike(about, licensor, tmp_path):
    """By all that read ledgers: whose it is, and what was issued."""
    ledger = ledger_of(tmp_path, licensor, **about)
    for name in NAMES:
        licence = issued(licensor, name, about.get("word"))
        again = licensor.again(name, ledger)
        assert again.fingerprint == licence.fingerprint
        assert again.licensee == name
        assert licensor.trace(licence, ledger).verdict == name
    with pytest.raises(kp.PassportError, match="Received: 'Bob', who has one"):
        licensor.issue("Bob", ledger)


@pytest.mark.parametrize("word", [-1, 1.5, "1", True, None, [1]], ids=str)
def test_what_is_no_word_names_nobody(word, licensor, tmp_path):
    ledger = licensing.Ledger(tmp_path / "ledger", SECRET)
    licence = licensor.issue("Bob")
    ledger.append("Bob", fingerprint=licence.fingerprint, word=word)
    for read in (
        lambda: licensor.again("Bob", ledger),
        lambda: licensor.trace(licence, ledger),
    ):
        with pytest.raises(kp.PassportError, match=r"word of 0.*Received"):
            read()


@pytest.mark.parametrize(
    ("about", "match"),
    [
        ({"fingerprint": ABSENT}, "fingerprint"),
        ({"fingerprint": None}, "Received: others"),
        ({"fingerprint": "another"}, "Received: others"),
    ],
    ids=str,
)
def test_what_was_not_issued_is_not_made_again(
    about, match, licensor, tmp_path
):
    ledger = ledger_of(tmp_path, licensor, **about)
    with pytest.raises(kp.PassportError, match=match):
        licensor.again("Bob", ledger)
    # A name is enough to trace.
    assert licensor.trace(licensor.issue("Bob"), ledger).verdict == "Bob"


def test_two_write_at_once_where_windows_locks(tmp_path, monkeypatch):
    """Its locks are of bytes, and give up after a while."""
    fcntl = pytest.importorskip("fcntl")
    refused = []

    def locking(handle, mode, count):
        assert os.lseek(handle, 0, os.SEEK_CUR) > 10**9 and count == 1
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            refused.append(handle)
            raise OSError(errno.EDEADLK, "Resource deadlock avoided") from error

    monkeypatch.setitem(sys.modules, "fcntl", None)
    windows = types.SimpleNamespace(locking=locking, LK_LOCK=1)
    monkeypatch.setitem(sys.modules, "msvcrt", windows)
    spec = importlib.util.spec_from_file_location("files_there", files.__file__)
    there = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(there)
    assert there.fcntl is None
    monkeypatch.setattr(files, "fcntl", None)

    ledger = licensing.Ledger(tmp_path / "ledger", SECRET)
    with ledger._locked():
        writer = threading.Thread(
            target=licensing.Ledger(tmp_path / "ledger", SECRET).append,
            args=("Eve",),
        )
        writer.start()
        while not refused:
            time.sleep(0.01)
        assert not licensing.Ledger(tmp_path / "ledger", SECRET).licensees
    writer.join()
    ledger.append("Bob")
    assert licensing.Ledger(tmp_path / "ledger", SECRET).licensees == [
        "Eve",
        "Bob",
    ]
