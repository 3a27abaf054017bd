"""Files of passports: whole, the owner's alone, and refused when damaged."""

import hashlib
import json
import os
import re
import stat

import h5py
import numpy as np
import pytest

import keras_passport as kp
from keras_passport import files
from keras_passport.passports import passport_file
from keras_passport.passports.geometry import Geometry
from support.passport_files import BLOCK, header, seal
from support.plain_models import plain_cnn
from support.processes import run_in_fresh_process


@pytest.fixture(scope="module")
def passport():
    model = kp.protect(plain_cnn())
    return kp.Passport.random_pattern(model, seed=11)


@pytest.fixture
def path(passport, tmp_path):
    path = tmp_path / "owner.h5"
    passport.save(path)
    return path


# Writing -------------------------------------------------------------------


def test_only_the_owner_can_read_it(passport, tmp_path):
    old = os.umask(0)
    try:
        path = tmp_path / "owner.h5"
        path.write_text("an older file")
        path.chmod(0o666)
        passport.save(path)
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["owner.h5"]


def test_the_file_is_never_readable_by_others_on_the_way(
    passport, tmp_path, monkeypatch
):
    modes = []
    opened, replaced = os.open, os.replace

    def opening(path, *args):
        handle = opened(path, *args)
        modes.append(stat.S_IMODE(os.fstat(handle).st_mode))
        return handle

    def replacing(temporary, path):
        modes.append(stat.S_IMODE(os.stat(temporary).st_mode))
        replaced(temporary, path)

    monkeypatch.setattr(files.os, "open", opening)
    monkeypatch.setattr(files.os, "replace", replacing)
    passport.save(str(tmp_path / "owner.h5"))
    assert modes == [0o600, 0o600]


@pytest.mark.parametrize("where", ("write", "replace"))
@pytest.mark.parametrize("exists", (True, False))
def test_a_failure_leaves_what_was_there(
    where, exists, passport, tmp_path, monkeypatch
):
    path = tmp_path / "owner.h5"
    if exists:
        path.write_bytes(b"old")

    def fail(*args, **kwargs):
        raise OSError("disk full")

    if where == "write":
        monkeypatch.setattr(passport_file, "_write", fail)
    else:
        monkeypatch.setattr(files.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        passport.save(path)
    assert os.listdir(tmp_path) == ["owner.h5"] * exists
    assert not exists or path.read_bytes() == b"old"


def test_a_folder_that_does_not_exist(passport, tmp_path):
    with pytest.raises(FileNotFoundError, match="existing folder"):
        passport.save(tmp_path / "none" / "owner.h5")


def test_the_fingerprint_covers_all_and_stays(passport, path, tmp_path):
    assert re.fullmatch("[0-9a-f]{64}", passport.fingerprint)
    loaded = kp.Passport.load(path)
    assert loaded.fingerprint == passport.fingerprint
    loaded.save(tmp_path / "again.h5")
    again = kp.Passport.load(str(tmp_path / "again.h5"))
    assert again.fingerprint == passport.fingerprint
    printed = run_in_fresh_process(
        "import keras_passport as kp\n"
        f"print(kp.Passport.load({str(path)!r}).fingerprint)"
    )
    assert printed.strip() == passport.fingerprint
    # Any change of content changes it.
    name = next(iter(passport.layers))
    entry = passport.layers[name]
    changed = entry.gamma.copy()
    changed[0, 0, 0] = np.nextafter(changed[0, 0, 0], np.float32(2))
    other = {
        "gamma": changed,
        "beta": entry.beta,
    }
    layers = passport.layers | {name: kp.PassportEntry(entry.geometry, **other)}
    swapped = passport.layers | {
        name: kp.PassportEntry(entry.geometry, entry.beta, entry.gamma)
    }
    scaling = "paper" if passport.key_scaling != "paper" else "unit"
    variants = [
        ("random_pattern", layers, passport.seed, passport.key_scaling),
        ("random_pattern", swapped, passport.seed, passport.key_scaling),
        ("feature_maps", passport.layers, passport.seed, passport.key_scaling),
        ("random_pattern", passport.layers, b"s" * 16, passport.key_scaling),
        ("random_pattern", passport.layers, passport.seed, scaling),
    ]
    prints = {passport.fingerprint}
    for kind, layers, seed, scaling in variants:
        made = kp.Passport(kind, "V3", layers, seed, scaling)
        assert made.fingerprint not in prints
        prints.add(made.fingerprint)


def test_solved_keys_have_no_maps(tmp_path):
    geometry = Geometry(
        "convolution", 3, (2, 2), strides=(1, 1), dilation=(1, 1)
    )
    key = np.random.default_rng(0).normal(size=(2, 2, 3)).astype("float32")
    entry = kp.PassportEntry(geometry, gamma_key=key, beta_key=key * 2)
    passport = kp.Passport(
        "feature_maps", "V3", {"a/b": entry}, b"s" * 16, "paper"
    )
    passport.save(tmp_path / "owner.h5")
    loaded = kp.Passport.load(tmp_path / "owner.h5")
    assert loaded.layers["a/b"].gamma is None
    np.testing.assert_array_equal(loaded.keys()["a/b"]["beta"], key * 2)
    assert loaded.fingerprint == passport.fingerprint


# Damage --------------------------------------------------------------------


def test_truncated_files(path):
    content = path.read_bytes()
    ends = np.linspace(0, len(content) - 1, 60, dtype=int)
    for end in {*ends.tolist(), 1, 28, 29, 92, 93, BLOCK - 1, BLOCK}:
        path.write_bytes(content[:end])
        with pytest.raises(kp.PassportError) as raised:
            kp.Passport.load(path)
        assert str(path) in str(raised.value)
    path.write_bytes(content + b"\0")
    with pytest.raises(kp.PassportError, match="changed"):
        kp.Passport.load(path)


def test_flipped_bits(path):
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    places = rng.integers(0, len(content) * 8, 200)
    for place in [*places.tolist(), *range(0, BLOCK * 8, 97)]:
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(kp.PassportError):
            kp.Passport.load(path)
    path.write_bytes(content)
    kp.Passport.load(path)


def other_hdf5(path):
    with h5py.File(path, "w") as file:
        file["data"] = np.ones(3)


def other_hdf5_with_block(path):
    start = path.read_bytes()[:BLOCK]
    with h5py.File(path, "w", userblock_size=BLOCK) as file:
        file["data"] = np.ones(3)
    path.write_bytes(start + path.read_bytes()[BLOCK:])
    seal(path)


def folder(path):
    path.unlink()
    path.mkdir()


def unreadable_content(path):
    path.write_bytes(path.read_bytes()[:BLOCK] + b"not an HDF5 file" * 99)
    seal(path)


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda path: path.unlink(), "No such file"),
        (folder, "directory"),
        (lambda path: path.write_bytes(b""), "another kind"),
        (lambda path: path.write_text("Dear owner,\n" * 99), "another kind"),
        (other_hdf5, "another kind"),
        (other_hdf5_with_block, "another type"),
        (unreadable_content, "plain HDF5"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_files_of_another_kind(damage, message, path):
    damage(path)
    with pytest.raises(kp.PassportError, match=message) as raised:
        kp.Passport.load(path)
    assert str(path) in str(raised.value)


def nan_inside(file):
    values = file["layers/0/gamma"][()]
    values[0, 0, 0] = np.nan
    file["layers/0/gamma"][...] = values


def swapped_roles(file):
    for role in ("gamma", "beta"):
        file.move(f"layers/0/{role}", f"layers/{role}")
    file.move("layers/gamma", "layers/0/beta")
    file.move("layers/beta", "layers/0/gamma")


def swapped_layers(file):
    for old, new in (("0", "x"), ("1", "0"), ("x", "1")):
        file.move(f"layers/{old}", f"layers/{new}")


def lost(file):
    del file["layers/1/beta"]


def other_dtype(file):
    values = file["layers/0/gamma"][()]
    del file["layers/0/gamma"]
    file["layers/0/gamma"] = values.astype("float64")


def huge(file):
    del file["layers/0/gamma"]
    file.create_dataset(
        "layers/0/gamma", (2**20, 2**10, 3), "<f4", chunks=(64, 64, 3)
    )


def lost_header(file):
    del file["header"]


def text_header(file):
    del file["header"]
    file["header"] = np.frombuffer(b"not json", "uint8")


def external_link(file):
    del file["layers/0/gamma"]
    file["layers/0/gamma"] = h5py.ExternalLink("/etc/passwd", "/data")


@pytest.mark.parametrize(
    "damage, message",
    [
        (nan_inside, "match its hash"),
        (swapped_roles, "match its hash"),
        (swapped_layers, "of shape|match its hash"),
        (lost, "can't be read"),
        (other_dtype, "float32"),
        (huge, "plain HDF5"),
        (lost_header, "can't be read"),
        (text_header, "can't be read"),
        (external_link, "plain HDF5"),
        (header(lambda about: about.update(version=2)), "version 1.*version 2"),
        (header(lambda about: about.update(version=3)), "version 1.*version 3"),
        (header(lambda about: about.update(version=4)), "1 to 3.*version 4"),
        (header(lambda about: about.update(kind="x")), "kind"),
        (header(lambda about: about.update(function="V4")), "V1, V2, V3|read"),
        (header(lambda about: about.update(function="V1")), "gamma"),
        (header(lambda about: about.update(key_scaling="x")), "key_scaling"),
        (header(lambda about: about.update(seed="x")), "can't be read"),
        (header(lambda about: about.pop("layers")), "can't be read"),
        (header(lambda about: about.update(layers=[])), "at least one layer"),
        (header(lambda about: about.update(layers=7)), "can't be read"),
        (header(lambda about: about.update(layers=["x"])), "can't be read"),
        (
            header(lambda about: about["layers"][0].update(geometry="x")),
            "read|geometry",
        ),
        (
            header(
                lambda about: about["layers"][0]["geometry"].update(channels=4)
            ),
            r"\(height, width, 4\)",
        ),
        (
            header(
                lambda about: about["layers"][0]["geometry"].update(
                    strides=[0, 1]
                )
            ),
            "strides",
        ),
        (
            header(
                lambda about: about["layers"][0]["roles"]["gamma"].update(
                    shape=[-1]
                )
            ),
            "of shape",
        ),
        (
            header(lambda about: about["layers"].append(about["layers"][0])),
            "read|layers",
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_wrong_content_under_a_valid_checksum(damage, message, path):
    with h5py.File(path, "r+") as file:
        damage(file)
    seal(path)
    with pytest.raises(kp.PassportError, match=message):
        kp.Passport.load(path)


def test_nan_under_valid_hashes(path):
    with h5py.File(path, "r+") as file:
        nan_inside(file)
        values = file["layers/0/gamma"][()]

        def change(about):
            about["layers"][0]["roles"]["gamma"]["sha256"] = hashlib.sha256(
                json.dumps(values.shape).encode() + values.tobytes()
            ).hexdigest()

        header(change)(file)
    seal(path)
    with pytest.raises(kp.PassportError, match="NaN"):
        kp.Passport.load(path)


def more_arrays(file):
    file["layers/0/more"] = np.ones(3, "float32")


def doubled_key(file):
    text = file["header"][()].tobytes()
    del file["header"]
    text = text.replace(b'{"', b'{"kind": "fixed_image", "', 1)
    file["header"] = np.frombuffer(text, "uint8")


def image_index(value):
    def change(about):
        about["layers"][0]["roles"]["gamma"]["image"] = value

    return header(change)


@pytest.mark.parametrize(
    "damage, message",
    [
        (more_arrays, "Received: 1 more"),
        (doubled_key, "nothing else"),
        (header(lambda about: about.update(more=1)), "nothing else"),
        (header(lambda about: about.update(version=1.0)), "nothing else"),
        (header(lambda about: about.update(seed="00" * 15)), "16 or more"),
        (image_index(-1), "index of an identity image"),
        (image_index(True), "index of an identity image"),
        (header(lambda about: about["layers"][0].update(path=7)), "path"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_only_a_hostile_writer_puts_in(damage, message, path):
    with h5py.File(path, "r+") as file:
        damage(file)
    seal(path)
    with pytest.raises(kp.PassportError, match=message):
        kp.Passport.load(path)


@pytest.mark.parametrize(
    "kernel_size, message",
    [((2**20, 2**20), "elements"), ((2**18, 1), "additions")],
)
def test_keys_out_of_proportion_to_the_file(kernel_size, message, tmp_path):
    geometry = Geometry(
        "convolution", 1, kernel_size, (1, 1), (1, 1), padding="same"
    )
    entry = kp.PassportEntry(geometry, np.ones((4000, 1, 1), "float32"))
    passport = kp.Passport("feature_maps", "V1", {"a": entry}, b"s" * 16)
    path = tmp_path / "owner.h5"
    path.write_text("an older file")
    # What `load` refuses does not take an older file's place.
    with pytest.raises(kp.PassportError, match=message):
        passport.save(path)
    assert path.read_text() == "an older file"


@pytest.mark.parametrize(
    "rows, filters, groups",
    [(2048, 2048, 256), (2048, 1009, 1009), (4608, 512, 64)],
    ids=["wide", "a prime number of filters", "a convolution's"],
)
def test_orders_of_large_kernels(rows, filters, groups, tmp_path):
    """They are many numbers, of which none is in the file."""
    geometry = Geometry(
        "pointwise",
        rows,
        key_groups=-(-filters // (3 * rows // 4)),
        ordered_rows=(rows,),
        row_groups=(groups,),
    )
    key = np.random.default_rng(0).normal(size=geometry.key_shape)
    entry = kp.PassportEntry(geometry, gamma_key=key, beta_key=key)
    layers = {f"layer {index}": entry for index in range(3)}
    passport = kp.Passport("solved", "V3", layers, b"s" * 16)
    passport.save(tmp_path / "owner.h5")
    loaded = kp.Passport.load(tmp_path / "owner.h5")
    assert loaded.fingerprint == passport.fingerprint
    assert (tmp_path / "owner.h5").stat().st_size < 2**18


def test_orders_out_of_proportion_to_the_file(tmp_path):
    geometry = Geometry(
        "pointwise", 4, ordered_rows=(2**24,), row_groups=(2**20,)
    )
    entry = kp.PassportEntry(geometry, gamma_key=np.ones(4, "float32"))
    passport = kp.Passport("feature_maps", "V1", {"a": entry}, b"s" * 16)
    with pytest.raises(kp.PassportError, match="numbers of orders"):
        passport.save(tmp_path / "owner.h5")


def test_loading_needs_numpy_alone(path):
    printed = run_in_fresh_process(
        "import sys, keras_passport as kp\n"
        f"kp.Passport.load({str(path)!r}).packed()\n"
        "print({'h5py', 'keras', 'tensorflow'} & set(sys.modules))"
    )
    assert printed.strip() == "set()"


def test_many_layers(tmp_path):
    # More than one node of a group's tree.
    geometry = Geometry("pointwise", 2)
    layers = {
        f"layer {index}": kp.PassportEntry(
            geometry, gamma_key=np.full(2, index, "float32")
        )
        for index in range(600)
    }
    passport = kp.Passport("feature_maps", "V1", layers, b"s" * 16)
    passport.save(tmp_path / "owner.h5")
    loaded = kp.Passport.load(tmp_path / "owner.h5")
    assert list(loaded.layers) == list(passport.layers)
    np.testing.assert_array_equal(loaded.packed(), passport.packed())
