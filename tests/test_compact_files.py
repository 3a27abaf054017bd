"""Files of passports of large maps: keys, and what makes the maps anew."""

import json

import h5py
import keras
import numpy as np
import pytest

import keras_passport as kp
from keras_passport.passports import palettes
from support.passport_files import header, seal
from support.plain_models import randomize

SIZE = 96


@pytest.fixture(scope="module")
def base():
    inputs = keras.Input((SIZE, SIZE, 3))
    x = inputs
    for index in range(2):
        x = keras.layers.Conv2D(8, 3, padding="same", name=f"conv{index}")(x)
        x = keras.layers.BatchNormalization()(x)
        x = keras.layers.ReLU()(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return randomize(keras.Model(inputs, keras.layers.Dense(3)(x)))


@pytest.fixture(scope="module")
def pictures():
    levels = np.random.default_rng(0).integers(0, 256, (4, SIZE, SIZE, 3))
    mean = np.array([123.675, 116.28, 103.53], "float32")
    return (levels.astype("float32") - mean) / np.float32(58.4)


@pytest.fixture(scope="module")
def passports(base, pictures):
    model = kp.protect(base)
    return model, {
        "random_pattern": kp.Passport.random_pattern(model, seed=3),
        "random_image": kp.Passport.random_image(
            model, pictures, reference=base, seed=3
        ),
        "fixed_image": kp.Passport.fixed_image(
            model, pictures[:2], reference=base, seed=3
        ),
    }


KINDS = ("random_pattern", "random_image", "fixed_image")


@pytest.mark.parametrize("kind", KINDS)
def test_keys_stay_and_maps_are_made_anew(kind, passports, base, tmp_path):
    model, made = passports
    passport = made[kind]
    passport.save(tmp_path / "owner.h5")
    maps = sum(
        array.nbytes
        for entry in passport.layers.values()
        for array in (entry.gamma, entry.beta)
    )
    images = 0 if passport.images is None else passport.images.nbytes
    size = (tmp_path / "owner.h5").stat().st_size
    # A quarter of what images take, and next to nothing of maps.
    assert size < images / 4 + maps / 20
    loaded = kp.Passport.load(tmp_path / "owner.h5")
    np.testing.assert_array_equal(loaded.packed(), passport.packed())
    assert loaded.fingerprint == passport.fingerprint
    assert all(entry.gamma is None for entry in loaded.layers.values())
    if images:
        np.testing.assert_array_equal(loaded.images, passport.images)
    loaded.save(tmp_path / "again.h5")
    again = kp.Passport.load(tmp_path / "again.h5")
    assert again.fingerprint == passport.fingerprint
    anew = again.feature_maps(model, base)
    exact = kind == "random_pattern"
    for path, entry in passport.layers.items():
        for role, value in zip(("gamma", "beta"), anew[path], strict=True):
            np.testing.assert_allclose(
                value, getattr(entry, role), atol=0 if exact else 1e-4
            )
    assert set(passport.feature_maps()) == set(anew)
    if exact:
        remade = again.feature_maps()
        np.testing.assert_array_equal(remade["conv1"][1], anew["conv1"][1])
        return
    with pytest.raises(kp.PassportError, match="reference"):
        again.feature_maps()
    other = randomize(keras.models.clone_model(base), seed=5)
    for layer in other.layers:
        if "conv" in layer.name:
            layer.kernel.assign(-layer.kernel)
    with pytest.raises(kp.PassportError, match="another one"):
        again.feature_maps(model, other)


def test_maps_that_nobody_can_make_are_kept(passports, base, tmp_path):
    model, made = passports
    maps = made["random_pattern"].feature_maps()
    passport = kp.Passport.from_feature_maps(model, maps, seed=b"s" * 16)
    passport.save(tmp_path / "owner.h5")
    loaded = kp.Passport.load(tmp_path / "owner.h5")
    assert loaded.fingerprint == passport.fingerprint
    for path, pair in loaded.feature_maps().items():
        np.testing.assert_array_equal(pair[0], maps[path][0])


def test_the_fingerprint_covers_keys(passports, tmp_path):
    """Nobody gives a published commitment another key."""
    path = tmp_path / "owner.h5"
    passport = passports[1]["random_image"]
    passport.save(path)

    def other_key(about=None):
        with h5py.File(path, "r+") as file:
            key = file["layers/0/gamma"][()]
            key[0, 0, 0] += 1
            file["layers/0/gamma"][...] = key
            if about is not None:
                about(key, file)
        seal(path)

    other_key()
    with pytest.raises(kp.PassportError, match="match its hash"):
        kp.Passport.load(path)
    passport.save(path)

    def hashed(key, file):
        def change(about):
            from keras_passport.passports.derivation import array_hash

            role = about["layers"][0]["roles"]["gamma"]
            role["key"] = array_hash(key)

        text = json.loads(file["header"][()].tobytes())
        change(text)
        del file["header"]
        file["header"] = np.frombuffer(
            json.dumps(text, sort_keys=True).encode(), "uint8"
        )

    other_key(hashed)
    assert kp.Passport.load(path).fingerprint != passport.fingerprint


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda role: role.update(shape=[SIZE, SIZE, 4]), "height, width"),
        (lambda role: role.update(shape=[2**20, 2**20, 3]), "of shape"),
        (lambda role: role.update(shape=[0, 1, 3]), "of shape"),
        (lambda role: role.update(sha256=7), "record"),
        (lambda role: role.pop("key"), "version 1"),
        (lambda role: role.update(holds="key"), "of shape"),
    ],
)
def test_records_that_describe_nothing(change, message, passports, tmp_path):
    path = tmp_path / "owner.h5"
    passports[1]["random_pattern"].save(path)
    with h5py.File(path, "r+") as file:
        header(lambda about: change(about["layers"][0]["roles"]["gamma"]))(file)
    seal(path)
    with pytest.raises(kp.PassportError, match=message):
        kp.Passport.load(path)


def image_tables():
    rng = np.random.default_rng(0)
    levels = rng.integers(0, 256, (3, 20, 20, 3)).astype("float32")
    mixed = levels * np.float32([1, 0.1, 3]) - np.float32([0, 5, 7])
    return {
        "one row": (levels / 255, (1, 1, 1, 1)),
        "last axis": (mixed, (1, 1, 1, 3)),
        "first axis": (np.moveaxis(mixed, -1, 1), (1, 3, 1, 1)),
        "signed zeros": (np.where(levels > 99, 0.0, -0.0), (1, 1, 1, 1)),
        "reals": (rng.normal(size=(3, 20, 20, 3)), None),
        "few": (np.ones((1, 2)), (1, 1)),
    }


@pytest.mark.parametrize("name", image_tables())
def test_palettes_are_exact(name):
    array, shape = image_tables()[name]
    array = array.astype("float32")
    packed = palettes.pack(array)
    if shape is None:
        assert packed is None
        return
    assert packed[1].shape[:-1] == shape
    back = palettes.unpack(*packed)
    assert back.dtype == np.float32
    assert back.tobytes() == array.tobytes()


@pytest.mark.parametrize("shape", ((1, 1, 3), (1, 1, 2, 4), (0,), (20, 1, 5)))
def test_palettes_that_fit_no_image(shape):
    numbers = np.zeros((3, 20, 2), "uint8")
    with pytest.raises((kp.PassportError, IndexError)):
        palettes.unpack(numbers + 9, np.zeros(shape, "float32"))
