"""`find_leaks` opens what files hide, and says what it could not examine."""

import base64
import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import socket
import tarfile
import time
import zipfile
import zlib
from concurrent import futures

import h5py
import keras
import numpy as np
import pytest

import keras_passport as kp
from keras_passport.leaks import (
    encodings,
    hdf5_reader,
    printed_numbers,
    scanned_files,
    unpacking,
)
from support.plain_models import wide_cnn
from support.stored_secrets import found, zipped

LAYER = "conv2d_1"


@pytest.fixture(scope="module")
def owned():
    """A protected model and its passport, and another's keys and γ, β."""
    keras.utils.set_random_seed(3)
    keras.backend.clear_session()
    model = kp.protect(wide_cnn())
    passport, other = (
        kp.Passport.random_pattern(model, seed=seed) for seed in (1, 2)
    )
    layer = kp.protected_layers(model)[LAYER]
    secrets = {}
    for one in (passport, other):
        key = np.asarray(one.keys()[LAYER]["gamma"])
        hidden = layer.hidden_parameters(one.rows()[LAYER])
        secrets[one] = key, tuple(map(np.asarray, hidden))
    return model, passport, other, secrets


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def tar(content, mode="w"):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:
        about = tarfile.TarInfo("folder/inside")
        about.size = len(content)
        archive.addfile(about, io.BytesIO(content))
    return stream.getvalue()


def escaped(content):
    """As protobuf's text form writes bytes."""
    return b"".join(
        bytes([c]) if chr(c).isalnum() else b"\\%03o" % c for c in content
    )


def lz4(content):
    return pytest.importorskip("lz4.frame").compress(content)


def joblib(array):
    stream = io.BytesIO()
    pytest.importorskip("joblib").dump({"some": array}, stream, compress=3)
    return stream.getvalue()


def hdf5(write):
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        write(file)
    return stream.getvalue()


def sizes_differ(file, values):
    data = file.create_dataset("some", (2,), h5py.vlen_dtype("f4"))
    data[0], data[1] = values, np.ones(3)


def lines(values):
    return base64.encodebytes(values.tobytes())


def quantised(values):
    return np.round(values / np.abs(values).max() * 127).astype("int8")


# How bytes are written: from those of a float32 array.
BYTES = {
    "base64": base64.b64encode,
    "base64_url": lambda raw: base64.urlsafe_b64encode(raw).rstrip(b"="),
    "base64_lines": base64.encodebytes,
    "base64_json_lines": lambda raw: json.dumps(
        {"some": base64.encodebytes(raw).decode()}
    ).encode(),
    "base64_json": lambda raw: json.dumps(
        {"instances": [{"passport": {"b64": base64.b64encode(raw).decode()}}]}
    ).encode(),
    "base64_json_escaped": lambda raw: (
        b'"' + base64.b64encode(raw).replace(b"+", b"\\u002b") + b'"'
    ),
    "base64_behind_letters": lambda raw: b"key_" + base64.b64encode(raw),
    "hex": lambda raw: raw.hex().encode(),
    "hex_capitals": lambda raw: raw.hex().upper().encode(),
    "hex_separated": lambda raw: raw.hex(":").encode(),
    "hex_c": lambda raw: b", ".join(b"0x%02x" % c for c in raw),
    "decimals": lambda raw: json.dumps(list(raw)).encode(),
    "python": lambda raw: repr(raw).encode(),
    "pbtxt": lambda raw: b'tensor_content: "' + escaped(raw) + b'"',
    "percent": lambda raw: b"a=" + b"".join(b"%%%02X" % c for c in raw),
    "utf16": lambda raw: base64.b64encode(raw).decode().encode("utf-16"),
    "zlib": zlib.compress,
    "gzip": gzip.compress,
    "gzip_of_two": lambda raw: gzip.compress(b"a") + gzip.compress(raw),
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "lzma": lambda raw: lzma.compress(raw, lzma.FORMAT_ALONE),
    "lz4": lz4,
    "tar": tar,
    "tar_gz": lambda raw: tar(raw, "w:gz"),
    "zip_behind_a_program": lambda raw: b"#!/bin/sh\nexit\n" + zipped(raw),
    "inside": lambda raw: b"head " + zlib.compress(raw) + b" tail",
    "nested": lambda raw: gzip.compress(
        bz2.compress(zipped(base64.b64encode(zlib.compress(raw))))
    ),
    "big_endian": lambda raw: b"\0" + np.frombuffer(raw, ">f4").tobytes(),
}

# How arrays are written: from a float32 array.
ARRAYS = {
    "bytes": lambda values: b"\0" + values.tobytes(),
    "bytes_float64": lambda values: b"\0" + values.astype("<f8").tobytes(),
    "bytes_float16": lambda values: b"\0" + values.astype("<f2").tobytes(),
    "bytes_bfloat16": lambda values: (
        b"\0" + (values.view("<u4") >> 16).astype("<u2").tobytes()
    ),
    "bytes_big_endian": lambda values: b"\0" + values.astype(">f4").tobytes(),
    "pickle": lambda values: pickle.dumps({"some": values}),
    "pickle_old": lambda values: pickle.dumps(values, protocol=2),
    "pickle_text": lambda values: pickle.dumps(values, protocol=0),
    "pickle_list": lambda values: pickle.dumps(values.ravel().tolist()),
    "joblib": joblib,
    "npy_structured": lambda values: npy(
        np.rec.fromarrays([np.arange(values.size), values.ravel()])
    ),
    "npy_complex": lambda values: npy(values + 1j),
    "npy_objects": lambda values: npy(np.array([values, None], object)),
    "npy_texts": lambda values: npy(np.array([str(v) for v in values.flat])),
    "npy_big_endian": lambda values: npy(values.astype(">f4")),
    "npy_int8": lambda values: npy(quantised(values)),
    "npy_uint8": lambda values: npy(
        (quantised(values).astype("int16") + 128).astype("uint8")
    ),
    "h5_compound": lambda values: hdf5(
        lambda file: file.create_dataset(
            "a", data=np.rec.fromarrays([values.ravel(), values.ravel() > 0])
        )
    ),
    "h5_vlen": lambda values: hdf5(
        lambda file: sizes_differ(file, values.ravel())
    ),
    "h5_chunks": lambda values: hdf5(
        lambda file: file.create_dataset(
            "a", data=values, chunks=True, compression="gzip", shuffle=True
        )
    ),
    "h5_attribute": lambda values: hdf5(
        lambda file: file.attrs.create("a", values.astype(">f8"))
    ),
    "h5_text": lambda values: hdf5(
        lambda file: file.create_dataset("a", data=lines(values).decode())
    ),
    "texts_utf16": lambda values: json.dumps(values.tolist()).encode(
        "utf-16-be"
    ),
    "texts_utf32": lambda values: json.dumps(values.tolist()).encode("utf-32"),
    "whole": lambda values: json.dumps(
        np.round(1000 * values.ravel()).astype(int).tolist()
    ).encode(),
}

# How γ and β are written side by side.
TABLES = {
    "csv": lambda gamma, beta: "\n".join(
        f"{i},{a:.4f},{b:.4f}"
        for i, (a, b) in enumerate(zip(gamma, beta, strict=True))
    ),
    "records": lambda gamma, beta: json.dumps(
        [
            {"name": f"x{i}", "gamma": float(a), "beta": float(b)}
            for i, (a, b) in enumerate(zip(gamma, beta, strict=True))
        ]
    ),
    "log": lambda gamma, beta: "\n".join(
        f"layer {i} gamma {a:.5f} beta {b:.5f} in main.5e812f3a.js"
        for i, (a, b) in enumerate(zip(gamma, beta, strict=True))
    ),
}


def searched(owned, path, name, contents):
    """Reports for the owner's secrets in a file, and for another's."""
    model, passport, *_ = owned
    suffix = "." + name.split("_")[0]
    for who, content in zip(("own", "other"), contents, strict=True):
        (path / who).mkdir()
        (path / who / f"file{suffix}").write_bytes(content)
        yield kp.find_leaks(passport, path / who, model=model)


@pytest.mark.parametrize("name", [*BYTES, *(f"array:{n}" for n in ARRAYS)])
def test_a_key_is_found_in(name, owned, tmp_path):
    model, passport, other, secrets = owned
    keys = [secrets[one][0].astype("<f4") for one in (passport, other)]
    name = name.removeprefix("array:")
    if name in BYTES and name != "big_endian":
        contents = [BYTES[name](key.tobytes()) for key in keys]
    elif name == "big_endian":
        contents = [BYTES[name](key.byteswap().tobytes()) for key in keys]
    else:
        contents = [ARRAYS[name](0.37 * key) for key in keys]
    own, wrong = searched(owned, tmp_path, name, contents)
    assert found(own) == {(LAYER, "gamma")}, own
    assert own.not_examined == ()
    assert wrong.clean, wrong


@pytest.mark.parametrize("name", TABLES)
def test_columns_and_records_are_read(name, owned, tmp_path):
    model, passport, other, secrets = owned
    contents = [
        TABLES[name](*secrets[one][1]).encode() for one in (passport, other)
    ]
    own, wrong = searched(owned, tmp_path, name, contents)
    assert found(own) == {(LAYER, "gamma"), (LAYER, "beta")}, own
    assert wrong.clean, wrong


# What says that it was not examined, and with which word.
HOSTILE = {
    "gzip_cut": (lambda: gzip.compress(os.urandom(999))[:500], "cut off"),
    "gzip_bomb": (lambda: gzip.compress(bytes(2**21)), "unpacks to more"),
    "zip_bomb": (lambda: zipped(bytes(2**21)), "unpacks to more"),
    "zip_of_many": (lambda: of_many(40), "more members"),
    "zip_cut": (lambda: zipped(b"some" * 99)[:-30], "not readable"),
    "tar_cut": (lambda: tar(b"some" * 999)[:2000], "cut off"),
    "nested": (lambda: wrapped(12), "in one another"),
    "7z": (lambda: b"7z\xbc\xaf\x27\x1c" + bytes(99), "7z"),
    "random": (lambda: np.random.default_rng(0).bytes(2**16), "encrypted"),
    "npy_cut": (lambda: npy(np.ones(999))[:999], "cut off"),
    "npy_head": (lambda: npy(np.ones(9))[:70], "not readable"),
    "png": (lambda: b"\x89PNG\r\n\x1a\n" + bytes(99), "picture"),
    "h5_cut": (
        lambda: hdf5(lambda f: f.create_dataset("a", data=np.ones(99)))[:1200],
        "not readable",
    ),
}


def of_many(count):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for i in range(count):
            archive.writestr(f"{i}", b"a")
    return stream.getvalue()


def wrapped(times):
    content = b"some text"
    for _ in range(times):
        content = gzip.compress(content)
    return content


@pytest.mark.parametrize("name", HOSTILE)
def test_what_was_not_examined_is_said(name, owned, tmp_path, monkeypatch):
    model, passport, *_ = owned
    monkeypatch.setattr(unpacking, "_FREE", 2**20)
    monkeypatch.setattr(unpacking, "_RATIO", 16)
    monkeypatch.setattr(unpacking, "_MOST_MEMBERS", 30)
    make, word = HOSTILE[name]
    file = tmp_path / f"file.{name.split('_')[0]}"
    file.write_bytes(make())
    report = kp.find_leaks(passport, file, model=model)
    assert not report.leaks, report
    assert not report.clean
    assert any(word in left.reason for left in report.not_examined), report
    assert {left.path for left in report.not_examined} == {str(file)}
    assert "NOT EXAMINED" in str(report)


def test_files_that_are_none_are_named(owned, tmp_path):
    model, passport, _, secrets = owned
    folder = tmp_path / "folder"
    (folder / "inside").mkdir(parents=True)
    os.mkfifo(folder / "pipe")
    for name, target in {
        "device": "/dev/zero",
        "nothing": "missing",
        "one": "other",
        "other": "one",
        "inside/up": "..",
    }.items():
        (folder / name).symlink_to(target)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "socket"))
    with open(folder / "sparse", "wb") as file:
        file.truncate(2**32)
    (folder / "line\nFORGED: 0 leaks \x1b[31m").write_bytes(b"\x1f\x8b\x08\0")
    report = kp.find_leaks(passport, folder, model=model)
    assert not report.leaks
    names = {os.path.basename(left.path) for left in report.not_examined}
    expected = {p.name for p in folder.iterdir()} - {"inside"}
    assert names == expected, report
    assert "\x1b" not in str(report) and "\nFORGED" not in str(report)
    # A link to a folder leads there, once.
    np.save(folder / "inside" / "key.npy", secrets[passport][0])
    (tmp_path / "link").symlink_to(folder / "inside")
    report = kp.find_leaks(passport, tmp_path / "link", model=model)
    assert found(report) == {(LAYER, "gamma")}
    assert report.examined["files"] == 3  # With those of the link up.


def test_threads_read_files_of_their_own():
    def reading(number):
        buffer = io.BytesIO()
        with h5py.File(buffer, "w") as file:
            for name in "abcd":
                file[name] = np.full(1000, number, "float32")
        data = np.frombuffer(buffer.getvalue(), "uint8")
        try:
            for _ in range(20):
                read = list(hdf5_reader.arrays_of(data, 2**20))
                assert [name for name, *_ in read] == [*"dcba"], read
                assert all(np.all(array == number) for _, array, _ in read)
        finally:
            hdf5_reader.stop()

    with futures.ThreadPoolExecutor(3) as pool:
        list(pool.map(reading, range(3)))


def test_a_file_on_which_the_hdf5_library_never_ends(
    owned, tmp_path, monkeypatch
):
    """Whatever it does: it is given up, and the next file is read."""
    model, passport, _, secrets = owned
    program = tmp_path / "child.py"
    program.write_text("import time; time.sleep(60)")
    for name in ("a.h5", "b.h5"):
        with h5py.File(tmp_path / name, "w") as file:
            file["some"] = 0.37 * secrets[passport][0]
    hdf5_reader.stop()
    with monkeypatch.context() as patch:
        patch.setattr(hdf5_reader, "_PROGRAM", program)
        patch.setattr(hdf5_reader, "PATIENCE", 0.3)
        report = kp.find_leaks(passport, tmp_path / "a.h5", model=model)
    (left,) = report.not_examined
    assert "did not end" in left.reason
    # Its bytes were searched all the same.
    assert found(report) == {(LAYER, "gamma")}
    report = kp.find_leaks(passport, tmp_path / "b.h5", model=model)
    assert found(report) == {(LAYER, "gamma")} and not report.not_examined


@pytest.mark.parametrize("name", ["a.h5", "link.h5", "a.zip", "a.npy", "a.npz"])
def test_formats_of_large_files_are_read_too(
    name, owned, tmp_path, monkeypatch
):
    """Those are mapped, and not read, as ResNet-50's weights are."""
    monkeypatch.setattr(scanned_files, "_MAPPED", 0)
    model, passport, _, secrets = owned
    key, path = secrets[passport][0], tmp_path / "a.h5"
    if name == "a.npy":
        (tmp_path / name).write_bytes(npy(key))
    elif name == "a.npz":
        np.savez_compressed(tmp_path / name, key=key)
    else:
        with h5py.File(path, "w") as file:
            # Not to be found but by who reads the format.
            file.create_dataset("some", data=key, compression="gzip")
    if name == "link.h5":
        (tmp_path / name).symlink_to(path)
    elif name == "a.zip":
        (tmp_path / name).write_bytes(zipped(path.read_bytes()))
    monkeypatch.chdir(tmp_path)
    report = kp.find_leaks(passport, name, model=model)
    assert found(report) == {(LAYER, "gamma")} and not report.not_examined


def test_damaged_files_never_raise(owned, tmp_path, noise):
    """Flipped bits and cut ends of every format; some are still whole."""
    model, passport, *_ = owned
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    contents = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    contents |= {"a.npy": npy(np.ones(40)), "a.zip": zipped(b"some" * 40)}
    contents |= {"a.tar": tar(b"some"), "a.gz": gzip.compress(b"some" * 40)}
    contents |= {"a.onnx": noise.bytes(200), "saved_model.pb": b"\x08\1\x12"}
    contents |= {"a.tflite": b"\x1c\0\0\0TFL3" + noise.bytes(200)}
    contents |= {"a.pkl": pickle.dumps([1.5, b"some"]), "a.index": b"some"}
    for name, content in contents.items():
        damaged = np.frombuffer(content, "uint8").copy()
        for i in range(2):
            damaged[noise.integers(damaged.size)] ^= 1 << noise.integers(8)
            cut = noise.integers(damaged.size)
            (tmp_path / f"flipped{i}{name}").write_bytes(damaged.tobytes())
            (tmp_path / f"cut{i}{name}").write_bytes(content[:cut])
    report = kp.find_leaks(passport, tmp_path, model=model)
    assert not report.leaks, report
    assert len(report.not_examined) > 10


@pytest.fixture
def noise():
    return np.random.default_rng(0)


HARD = (
    *(b"7", b".", b".1 ", b"1.", b".e", b"1e1", b"1e1e1e", b'"', b"[", b"{"),
    *(b"\0", b"\\", b"\\x41", b"\\n", b"QUJD", b"af", b"AB\n", b"\n", b"%41"),
    *(b"x\x9c", b"\x1f\x8b\x08\0", b"PK\3\4", b"BZh91AY&SY", b"a\0", b"-"),
    *(b"\xfd7zXZ\0", b"G", b"ab  ", b"1,2\n", b"5.5e812"),
)


@pytest.mark.parametrize("text", HARD, ids=repr)
def test_time_is_linear_in_the_size_of_a_text(text):
    """Four times as much takes no more than about four times as long."""

    def seconds(size):
        data = np.frombuffer(text * (size // len(text)), "uint8")
        start = time.process_time()
        for _ in printed_numbers.numbers_in(data):
            pass
        printed_numbers.listed_bytes(data)
        for _ in encodings.decoded(data):
            pass
        for _ in unpacking.streams_in(data, unpacking.Limits(data.size)):
            pass
        return time.process_time() - start

    seconds(2**12)
    small, large = seconds(2**16), seconds(2**18)
    # Quadratic would be 16 times, and of a megabyte many minutes.
    assert large < 8 * small + 0.3


@pytest.mark.parametrize("fold", (True, False))
@pytest.mark.parametrize("bound", (True, False))
def test_an_unlocked_model_is_found(fold, bound, owned, tmp_path):
    model, passport, other, _ = owned
    kp.unlock(model, passport, fold=fold).save(tmp_path / "own.keras")
    kp.unlock(model, other, fold=fold).save(tmp_path / "other.keras")
    if bound:
        kp.bind(model, other)
    report = kp.find_leaks(passport, tmp_path / "own.keras", model=model)
    kp.unbind(model)
    both = {(LAYER, "gamma"), (LAYER, "beta")}
    assert both <= found(report), report
    if fold:
        # Each in its own kernel, whatever its factor per channel.
        assert any("divided by" in leak.place for leak in report.leaks)
    assert "unlocked" in str(report)
    wrong = kp.find_leaks(passport, tmp_path / "other.keras", model=model)
    assert wrong.clean, wrong


@pytest.mark.parametrize("dtype", ("float16", "int8"))
@pytest.mark.parametrize("order", ((0, 1, 2, 3), (3, 0, 1, 2), (3, 2, 0, 1)))
def test_a_folded_kernel_is_found_however_it_is_stored(
    dtype, order, owned, tmp_path
):
    model, passport, _, secrets = owned
    layer = kp.protected_layers(model)[LAYER]
    gamma = secrets[passport][1][0]
    deviation = np.sqrt(1 + layer.normalization.epsilon)
    kernel = np.asarray(layer.layer.kernel) * gamma / deviation
    if dtype == "int8":
        kernel = kernel / np.abs(kernel).max() * 127
    np.save(tmp_path / "a.npy", kernel.transpose(order).astype(dtype))
    report = kp.find_leaks(passport, tmp_path, model=model)
    assert found(report) == {(LAYER, "gamma")}, report


def trained_under_a_passport(base):
    model = kp.protect(base)
    passport = kp.Passport.random_pattern(model, seed=3)
    return kp.hide_rows(model, passport), passport, model


def exact(base):
    return *kp.protect_trained(base, seed=3), None


@pytest.mark.parametrize("protected", (exact, trained_under_a_passport))
def test_kernels_with_their_rows_in_order_are_found(protected, tmp_path):
    """The original, an unlocked copy: whoever has them has the order."""
    keras.utils.set_random_seed(6)
    options = {"use_bias": False}
    base = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Conv2D(8, 3, **options),
            keras.layers.BatchNormalization(center=False),
            keras.layers.DepthwiseConv2D(3, **options),
            keras.layers.BatchNormalization(center=False),
            keras.layers.SeparableConv2D(12, 3, padding="same", **options),
            keras.layers.BatchNormalization(center=False),
        ]
    )
    model, passport, before = protected(base)
    model.save(tmp_path / "published.keras")
    keras.models.clone_model(base).save(tmp_path / "another.keras")
    other, _ = kp.protect_trained(base, seed=4)
    other.save(tmp_path / "other.keras")
    # Filters of one value each, as those that blur, are nobody's secret.
    np.save(tmp_path / "ones.npy", np.ones((3, 3, 3, 8), "float32"))
    report = kp.find_leaks(passport, tmp_path, model=model)
    assert report.clean, report
    secret = tmp_path / "secret"
    secret.mkdir()
    for name, leaking in {
        "unlocked": kp.unlock(model, passport),
        "thawed": kp.unlock(model, passport, fold=False),
        # What a network was trained from is in no file of the passport's.
        "before": base if before is None else before,
    }.items():
        leaking.save(secret / f"{name}.keras")
        report = kp.find_leaks(passport, secret, model=model)
        of_kernels = {
            leak.layer
            for leak in report.leaks
            if leak.what.startswith("kernel")
        }
        assert of_kernels == set(kp.protected_layers(model)), (name, report)
        assert "rows in order" in str(report) and "hide_rows" in str(report)
        (secret / f"{name}.keras").unlink()


def test_without_a_model_it_says_what_it_could_not_look_for(owned, tmp_path):
    (tmp_path / "some").write_text("text")
    report = kp.find_leaks(owned[1], tmp_path)
    assert any("folded kernels" in note for note in report.notes)


@pytest.fixture(scope="module")
def pictured():
    """A passport of identity images, and others."""
    keras.utils.set_random_seed(5)
    keras.backend.clear_session()
    inputs = keras.Input((16, 16, 3))
    x = keras.layers.Conv2D(8, 3)(inputs)
    x = keras.layers.BatchNormalization()(x)
    base = keras.Model(inputs, x)
    model = kp.protect(base)
    draw = np.random.default_rng(0)
    # Smooth, as pictures are.
    images = draw.random((4, 4, 4, 3)).repeat(4, 1).repeat(4, 2)
    images += 0.2 * draw.random(images.shape)
    images = np.round(255 * images / images.max()).astype("uint8")
    passport = kp.Passport.fixed_image(
        model, images[:2].astype("float32") / 127.5 - 1, reference=base, seed=1
    )
    return passport, images


PICTURES = {
    "png": lambda image, save: save(image, "PNG"),
    "jpeg": lambda image, save: save(image, "JPEG", quality=85),
    "bmp": lambda image, save: save(image, "BMP"),
    "larger": lambda image, save: save(image.repeat(3, 0).repeat(3, 1), "PNG"),
    "npy": lambda image, save: npy(image),
    "scaled": lambda image, save: npy(3 * image.astype("float32") + 7),
    "stack": lambda image, save: npy(np.stack([0 * image, image])),
    "first": lambda image, save: npy(np.moveaxis(image, -1, 0)),
}


@pytest.mark.parametrize("name", PICTURES)
def test_identity_pictures_are_found(name, pictured, tmp_path):
    pil = pytest.importorskip("PIL.Image")

    def save(image, kind, **options):
        stream = io.BytesIO()
        pil.fromarray(image).save(stream, kind, **options)
        return stream.getvalue()

    passport, images = pictured
    for i, own in ((1, True), (2, False)):
        file = tmp_path / f"{i}.{name}"
        file.write_bytes(PICTURES[name](images[i], save))
        report = kp.find_leaks(passport, file)
        forms = {leak.what for leak in report.leaks}
        assert ("identity image, alike" in forms) == own, report
        # The map of the first layer is the image.
        assert forms <= {"identity image, alike", "feature map, alike"}
        assert own or not forms
        assert report.not_examined == ()


@pytest.mark.parametrize("compress", (True, False))
def test_a_compilation_cache_is_opened(compress, owned, tmp_path):
    """JAX writes compiled functions, constants and all, through zlib."""
    model, passport, _, secrets = owned
    content = b"\0\0\0\7" + b"executable" + secrets[passport][0].tobytes()
    content = zlib.compress(content) if compress else content
    (tmp_path / "jit_f-1234-cache").write_bytes(content)
    report = kp.find_leaks(passport, tmp_path, model=model)
    assert found(report) == {(LAYER, "gamma")}


def test_every_leak_says_what_to_do(owned, tmp_path):
    model, passport, _, secrets = owned
    passport.save(tmp_path / "passport.h5")
    report = kp.find_leaks(passport, tmp_path, model=model)
    assert report.leaks
    assert "to do:" in str(report)
    assert all(leak["advice"] for leak in report.to_dict()["leaks"])
