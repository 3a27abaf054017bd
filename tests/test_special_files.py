"""What is no file: nothing of it is replaced, and no reader waits for it."""

import contextlib
import errno
import json
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
import threading

import numpy as np
import pytest

import keras_passport as kp
from keras_passport import files
from keras_passport.cli import given
from keras_passport.passports.geometry import Geometry
from keras_passport.texts import shown


@pytest.fixture(scope="module")
def passport():
    geometry = Geometry("pointwise", 40)
    rng = np.random.default_rng(0)
    layers = {
        f"dense{index}": kp.PassportEntry(
            geometry, *rng.random((2, 5, 40), "float32")
        )
        for index in range(3)
    }
    return kp.Passport("feature_maps", "V3", layers, b"s" * 16)


@pytest.fixture(autouse=True)
def in_time():
    """Nothing here may take long, and nothing may wait."""

    def late(*args):
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def make_fifo(path):
    os.mkfifo(path)


def make_socket(path):
    # A socket's name may have 107 bytes.
    here = os.getcwd()
    os.chdir(path.parent)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)
    os.chdir(here)


def make_folder(path):
    path.mkdir()


def link_to(target):
    def make(path):
        path.symlink_to(target)

    make.__name__ = f"link to {target}"
    return make


def link_to_fifo(path):
    make_fifo(path.with_name("fifo"))
    path.symlink_to("fifo")


SPECIAL = {
    "fifo": make_fifo,
    "socket": make_socket,
    "folder": make_folder,
    "null": link_to("/dev/null"),
    "zero": link_to("/dev/zero"),
    "link to a fifo": link_to_fifo,
    "link to a folder": link_to("."),
    "link to itself": link_to("owner.h5"),
    "link to no folder": link_to("nowhere/owner.h5"),
}


def listing(folder):
    return {
        path.name: (stat.S_IFMT(path.lstat().st_mode), path.lstat().st_ino)
        for path in folder.iterdir()
    }


def write_with_replacing(passport, path):
    with files.replacing(path) as temporary:
        temporary.write_bytes(b"new")


def write_folder(passport, path):
    with files.replacing_folder(path, True, saved_model=True) as folder:
        (folder / "saved_model.pb").write_bytes(b"new")


WRITERS = {
    "save": lambda passport, path: passport.save(path),
    "replacing": write_with_replacing,
    "folder": write_folder,
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("kind", SPECIAL)
def test_no_writer_replaces_it(kind, writer, passport, tmp_path):
    path = tmp_path / "owner.h5"
    SPECIAL[kind](path)
    if writer == "folder" and "folder" in kind:
        (tmp_path / "passport.h5").write_bytes(b"somebody's")
        if kind == "folder":
            (path / "passport.h5").write_bytes(b"somebody's")
    before = listing(tmp_path)
    with pytest.raises(OSError) as raised:
        WRITERS[writer](passport, path)
    assert "Expected" in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1
    assert listing(tmp_path) == before


def test_standard_output_is_no_file(passport):
    with pytest.raises(OSError, match="Expected"):
        # A pipe, or a file without a name, while pytest captures.
        read, write = os.pipe()
        try:
            passport.save(f"/dev/fd/{write}")
        finally:
            os.close(read)
            os.close(write)


@pytest.mark.parametrize("dangling", (False, True))
@pytest.mark.parametrize("far", (False, True))
def test_a_secret_goes_where_a_link_leads(far, dangling, passport, tmp_path):
    there = tmp_path / "there"
    there.mkdir()
    target = there / "real.h5"
    if not dangling:
        target.write_bytes(b"old")
        target.chmod(0o644)
    path = tmp_path / "owner.h5"
    if far:
        (tmp_path / "middle").symlink_to("there")
        path.symlink_to("middle/real.h5")
    else:
        path.symlink_to(target)
    passport.save(path)
    assert path.is_symlink() and not target.is_symlink()
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert [one.name for one in there.iterdir()] == ["real.h5"]
    assert kp.Passport.load(path).fingerprint == passport.fingerprint


def test_names_of_any_length_and_letters(passport, tmp_path):
    for name in ("o" * 252 + ".h5", "é" * 127, "a\nb\x1b[31m.h5", ".h5", "-"):
        path = tmp_path / name
        passport.save(str(path))
        assert kp.Passport.load(path).fingerprint == passport.fingerprint
    passport.save(os.fsencode(tmp_path / "bytes.h5"))
    for name in ("", ".", "..", "/", tmp_path / ".." / ".."):
        with pytest.raises(OSError):
            passport.save(name)


FULL = """
import resource, signal
import numpy as np
import keras_passport as kp
from keras_passport.passports.geometry import Geometry
entry = kp.PassportEntry(
    Geometry("pointwise", 4000), gamma_key=np.ones(4000, "float32"))
passport = kp.Passport("feature_maps", "V1", {"a": entry}, b"s" * 16)
passport.save("owner.h5")  # HDF5 is loaded, as it would be
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    passport.save("owner.h5")
except OSError as error:
    print(type(error).__name__, error.errno)
"""


@pytest.mark.parametrize("links", (True, False))
def test_of_several_writers_of_a_new_file_one_alone_does(
    links, tmp_path, monkeypatch
):
    """Also where the file system has no hard links."""

    def refuse(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    place = tmp_path / "secret"
    wrote = []

    def write(content):
        with contextlib.suppress(FileExistsError):
            files.write_new(place, content, 0o600)
            wrote.append(content)

    contents = [bytes([number]) * 4096 for number in range(8)]
    threads = [threading.Thread(target=write, args=(c,)) for c in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wrote) == 1 and place.read_bytes() == wrote[0]
    assert stat.S_IMODE(place.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["secret"]


def test_a_disk_that_is_full(tmp_path):
    """A limit on a file's size fails writes as a full disk does."""
    result = subprocess.run(
        [sys.executable, "-c", FULL],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("OSError")
    assert os.listdir(tmp_path) == ["owner.h5"]
    kp.Passport.load(tmp_path / "owner.h5")


# Readers --------------------------------------------------------------------


def huge(path):
    with open(path, "wb") as file:
        file.truncate(2**40)


def huge_with_magic(path):
    with open(path, "wb") as file:
        file.write(b"keras_passport passport file\n" + b"0" * 64)
        file.truncate(2**40)


def empty(path):
    path.write_bytes(b"")


def deep_json(path):
    path.write_text("[" * 200_000)


def deep_object(path):
    path.write_text('{"a":' * 100_000)


READABLE = SPECIAL | {
    "huge": huge,
    "huge with magic": huge_with_magic,
    "empty": empty,
    "deep JSON": deep_json,
    "deep object": deep_object,
    "nothing": lambda path: None,
}
READERS = {
    "load": lambda passport, path: kp.Passport.load(path),
    "pack": lambda passport, path: passport.pack(path),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", READABLE)
def test_no_reader_waits_for_it(kind, reader, passport, tmp_path):
    path = tmp_path / "owner.h5"
    READABLE[kind](path)
    limits = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(kp.PassportError) as raised:
        READERS[reader](passport, path)
    assert len(str(raised.value).splitlines()) == 1
    assert raised.value.__cause__ is None
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - limits
    assert grown < 200_000  # kB


@pytest.mark.parametrize("suffix", (".keras", ".h5"))
@pytest.mark.parametrize("kind", SPECIAL)
def test_no_model_is_waited_for(kind, suffix, tmp_path):
    path = tmp_path / f"model{suffix}"
    SPECIAL[kind](path)
    with pytest.raises(ValueError, match="that Keras saved|model") as raised:
        given.load_model(path)
    assert str(path) in str(raised.value)


def test_a_damaged_file_at_any_place(passport, tmp_path):
    path = tmp_path / "owner.h5"
    passport.save(path)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    damaged = [whole[: len(whole) * part // 20] for part in range(20)]
    for place in rng.integers(0, len(whole), 200):
        copy = bytearray(whole)
        copy[place] ^= int(rng.integers(1, 256))
        damaged.append(bytes(copy))
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(kp.PassportError) as raised:
            kp.Passport.load(path)
        assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize(
    "change",
    (
        lambda spec: spec.update(layers=[{"path": ["x"]}]),
        lambda spec: spec.update(layers="x"),
        lambda spec: spec.update(size="7"),
        lambda spec: spec.update(function=["V3"]),
        lambda spec: spec.update(version={"a\x1b": 1}),
        lambda spec: spec["layers"][0].update(path=7),
        lambda spec: spec["layers"][0].update(path="a\nfingerprint  00"),
        lambda spec: spec["layers"][0].update(geometry={"kind": "\x1b[31m"}),
        lambda spec: spec["layers"][0].update(geometry=[]),
        lambda spec: spec["layers"][0].update(offset=float("nan")),
    ),
)
def test_specs_that_are_none(change, passport, tmp_path):
    spec = {
        "version": 1,
        "function": "V3",
        "size": 80 * len(passport.layers),
        "layers": [
            {
                "path": path,
                "offset": 80 * index,
                "geometry": entry.geometry.to_dict(),
            }
            for index, (path, entry) in enumerate(passport.layers.items())
        ],
    }
    assert passport.pack(spec).shape == (1, 240)
    change(spec)
    path = tmp_path / "spec.json"
    path.write_text(json.dumps(spec))
    for one in (spec, path):
        with pytest.raises(kp.PassportError) as raised:
            passport.pack(one)
        for line in str(raised.value).split("\n"):
            assert line.isprintable()


@pytest.mark.parametrize(
    "text, expected",
    (
        ("plain é 漢字", "plain é 漢字"),
        ("a\nfingerprint  00", "a\\nfingerprint  00"),
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("\udc80\x9b\u2028", "\\udc80\\x9b\\u2028"),
        (b"a\xff\n", "a\\udcff\\n"),
        ("x" * 999, "x" * 147 + " ... " + "x" * 147),
    ),
)
def test_text_from_outside(text, expected):
    assert shown(text) == expected
