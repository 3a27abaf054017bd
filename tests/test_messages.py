"""Nothing that goes wrong prints a secret: not by message, not by locals."""

import contextlib
import json
import re
import traceback

import h5py
import keras
import numpy as np
import pytest

import keras_passport as kp
from keras_passport.passports import derivation, draws
from keras_passport.passports.geometry import Geometry, digest
from keras_passport.secrecy import hidden
from support.passport_files import header, seal
from support.plain_models import plain_cnn, randomize

# Every secret number here begins like this, however it is printed; a seed
# holds the word.
SECRET = re.compile(r"73[.]?[1-9]\d|0\.0?73[1-9]|hush|6875736[38]|1752527720")
SEED = b"hush-hush-hush-hush"


DATA = np.zeros((8, 8, 8, 3), "float32"), np.arange(8) % 4


def secret_array(*shape, dtype="float32"):
    values = np.random.default_rng(0).uniform(0.7311, 0.7319, shape)
    return values.astype(dtype)


@pytest.fixture(scope="module")
def base():
    return randomize(plain_cnn())


@pytest.fixture(scope="module")
def model(base):
    return kp.protect(base)


@pytest.fixture(scope="module")
def maps(model):
    return {
        path: tuple(secret_array(2, *layer.inputs_shape[1:]))
        for path, layer in kp.protected_layers(model).items()
    }


@pytest.fixture(scope="module")
def passport(model, maps):
    return kp.Passport.from_feature_maps(model, maps, seed=SEED)


def told(error) -> str:
    """All that error, causes and frames say, but for the test's own frame."""
    texts, pending = [], [error]
    while pending:
        error = pending.pop()
        trace = error.__traceback__
        while trace and trace.tb_frame.f_code.co_filename == __file__:
            trace = trace.tb_next
        captured = traceback.TracebackException(
            type(error), error, trace, capture_locals=True
        )
        texts.append("".join(captured.format(chain=False)))
        texts.append(f"{error} {error!r} {error.args!r}")
        context = None if error.__suppress_context__ else error.__context__
        pending += [e for e in (error.__cause__, context) if e is not None]
    return "\n".join(texts)


def check(error) -> None:
    # An object's address may have any digits.
    text = re.sub(r"0x[0-9a-f]{6,}", "0x", told(error))
    found = SECRET.search(text)
    if found:
        place = slice(max(0, found.start() - 700), found.end() + 80)
        pytest.fail(f"{found[0]!r} in ... {text[place]}")


def test_the_check_finds_what_it_looks_for():
    def fails(array):
        raise ValueError("nothing")

    for value in (secret_array(3), secret_array(3) * 100, SEED, SEED.hex()):
        text = f"{value!r} {value}"
        assert SECRET.search(text), text
    assert SECRET.search(str(int.from_bytes(b"hush")))
    assert not SECRET.search(repr(hidden([secret_array(3), SEED, 1752527720])))


@pytest.mark.parametrize(
    "value",
    (
        secret_array(3),
        secret_array(1)[0],
        SEED,
        bytearray(SEED),
        SEED.decode(),
        1752527720,
        {"a": (secret_array(2), [secret_array(1)])},
        secret_array(2, 2).tolist(),
        [0.7312, 0.7313],
        keras.ops.ones((2, 2)) * 0.73125,
    ),
)
def test_hidden_values_compute_and_show_nothing(value):
    kept = hidden(value)
    for text in (repr(kept), str(kept), f"{kept}", f"{[kept]}"):
        assert not SECRET.search(text), text
    with contextlib.suppress(TypeError):
        assert json.dumps(kept) == json.dumps(value)
    if not isinstance(value, (dict, str, int, bytes, bytearray)):
        np.testing.assert_array_equal(np.asarray(kept), np.asarray(value))
        total = np.sum(kept)
        assert not isinstance(total, np.ndarray)
    elif not isinstance(value, dict):
        assert kept == value


def names_of(maps, change):
    return {change(index, path): maps[path] for index, path in enumerate(maps)}


MAPS = {
    "other names": lambda maps: names_of(maps, lambda i, path: f"{path}_1"),
    "numbers as names": lambda maps: names_of(maps, lambda i, _: 0.73125 + i),
    "tuples as names": lambda maps: names_of(maps, lambda i, _: (0.7312, i)),
    "a list": lambda maps: list(maps.values()),
    "a list of pairs": lambda maps: list(maps.items()),
    "one array": lambda maps: next(iter(maps.values()))[0],
    "numbers": lambda maps: [0.7312, 0.7313],
    "no pairs": lambda maps: {path: pair[0] for path, pair in maps.items()},
    "three": lambda maps: {p: (*pair, pair[0]) for p, pair in maps.items()},
    "other shapes": lambda maps: {
        path: (pair[0], pair[1][:3, :2]) for path, pair in maps.items()
    },
    "texts": lambda maps: {
        path: (pair[0], pair[1].astype(str)) for path, pair in maps.items()
    },
    "a text": lambda maps: {path: ("0.7312", "hush") for path in maps},
    "NaN": lambda maps: {
        path: (pair[0], pair[1] * np.nan) for path, pair in maps.items()
    },
    "lists": lambda maps: {
        path: (pair[0][0].tolist(), [[0.7312], [0.7313, 1]])
        for path, pair in maps.items()
    },
    "tensors": lambda maps: {
        path: tuple(keras.ops.convert_to_tensor(a[:2]) for a in pair)
        for path, pair in maps.items()
    },
    "objects": lambda maps: {
        path: (pair[0], pair[0].astype(object)) for path, pair in maps.items()
    },
}


@pytest.mark.parametrize("case", MAPS)
def test_feature_maps(case, model, maps):
    with pytest.raises(kp.PassportError) as raised:
        kp.Passport.from_feature_maps(model, MAPS[case](maps), seed=SEED)
    check(raised.value)


IMAGES = {
    "shape": secret_array(3, 8, 8, 4),
    "rank": secret_array(8, 8, 3),
    "list of pictures": list(secret_array(3, 8, 8, 3)),
    "lists": secret_array(2, 4, 4, 3).tolist(),
    "texts": secret_array(3, 8, 8, 3).astype(str),
    "dict": {"other": secret_array(3, 8, 8, 3)},
    "tensor": keras.ops.convert_to_tensor(secret_array(3, 8, 8, 4)),
    "too few": secret_array(1, 8, 8, 3),
    "path": "hush/logo.png",
    "number": 0.73125,
    "object": object(),
}


@pytest.mark.parametrize("case", IMAGES)
def test_images(case, model, base):
    with pytest.raises(kp.PassportError) as raised:
        kp.Passport.random_image(model, IMAGES[case], reference=base, seed=SEED)
    check(raised.value)
    with pytest.raises((ValueError, TypeError)) as raised:
        kp.attacks.fake_passports(
            model,
            "random_image",
            2,
            (np.zeros((4, 8, 8, 3), "float32"), np.zeros(4, int)),
            images=IMAGES[case],
            reference=base,
        )


class Failing(keras.layers.Layer):
    def call(self, inputs):
        raise ValueError(f"it got {inputs}")

    def compute_output_shape(self, input_shape):
        return input_shape


def references(base):
    inputs = keras.Input((8, 8, 3))
    x = Failing()(inputs)
    for name in ("first_conv", "second_conv"):
        layer = base.get_layer(name)
        x = type(layer).from_config(layer.get_config())(x)
    other = keras.Input((4, 8, 8, 3))
    y = keras.layers.Reshape((32, 8, 3))(other)
    for name in ("first_conv", "second_conv"):
        layer = base.get_layer(name)
        y = type(layer).from_config(layer.get_config())(y)
    return {
        "failing": keras.Model(inputs, x),
        "other inputs": keras.Model(other, y),
        "an array": secret_array(3, 3),
    }


@pytest.mark.parametrize("case", ("failing", "other inputs", "an array"))
def test_references(case, model, base):
    images = secret_array(3, 8, 8, 3)
    with pytest.raises(
        kp.PassportError, match="Expected a? ?reference"
    ) as raised:
        kp.Passport.fixed_image(
            model, images[:2], reference=references(base)[case], seed=SEED
        )
    check(raised.value)


SEEDS = (b"hush", "hush-hush-hush-hush", -1752527720, 0.73125, [0.7312], True)


@pytest.mark.parametrize("seed", SEEDS)
def test_seeds(seed, model, maps, base, passport):
    images = secret_array(2, 8, 8, 3)
    for make in (
        lambda: kp.Passport.random_pattern(model, seed=seed),
        lambda: kp.Passport.from_feature_maps(model, maps, seed=seed),
        lambda: kp.Passport.fixed_image(
            model, images, reference=base, seed=seed
        ),
        lambda: kp.Passport.random_image(
            model, images, reference=base, seed=seed
        ),
        lambda: kp.Passport("feature_maps", "V3", passport.layers, seed),
    ):
        with pytest.raises(kp.PassportError, match="Expected seed") as raised:
            make()
        check(raised.value)


def test_using(model, passport, maps, base, tmp_path):
    other = kp.protect(randomize(plain_cnn()), "V1")
    spec = kp.passport_spec(model)
    entry = next(iter(passport.layers.values()))
    narrow = Geometry("convolution", 3, (9, 9), (1, 1), (1, 1))
    packed = passport.packed()
    folder = tmp_path / "folder"
    folder.mkdir()
    calls = [
        lambda: passport.pack(kp.passport_spec(other)),
        lambda: passport.pack({**spec, "size": 7}),
        lambda: passport.pack({**spec, "layers": spec["layers"][:1]}),
        lambda: passport.pack({**spec, "version": 9}),
        lambda: passport.pack(packed),
        lambda: passport.pack(tmp_path / "none.json"),
        lambda: passport.check(other),
        lambda: passport.keys(other),
        lambda: kp.bind(other, passport),
        lambda: kp.bind(model, packed),
        lambda: kp.bind(model, packed.tolist()),
        lambda: kp.bind(model, maps),
        lambda: passport.save(folder),
        lambda: kp.Passport("feature_maps", "V1", passport.layers, SEED),
        lambda: kp.Passport("x", "V3", passport.layers, SEED),
        lambda: kp.Passport("feature_maps", "V3", passport.layers, SEED, "x"),
        lambda: kp.PassportEntry(entry.geometry, entry.gamma, None, packed),
        lambda: kp.PassportEntry(
            narrow, np.asarray(entry.gamma), beta_key=secret_array(3)
        ),
        lambda: kp.PassportEntry(narrow, secret_array(3).tolist()),
        lambda: kp.PassportEntry(narrow, gamma_key=secret_array(9, 9, 3, 1)),
        lambda: kp.PassportEntry(narrow, entry.gamma, gamma_image=-1752527720),
        lambda: kp.PassportEntry(narrow, entry.gamma).key("gamma"),
        lambda: digest(np.asarray(entry.gamma), narrow),
        lambda: derivation.scale_keys(
            {"gamma": secret_array(9, dtype="float64") * 1e300}, "unit"
        ),
    ]
    for index, call in enumerate(calls):
        with pytest.raises((ValueError, OSError)) as raised:
            call()
        assert raised.value is not None, index
        check(raised.value)


@pytest.mark.parametrize(
    "call",
    [
        kp.bind,
        kp.unlock,
        kp.hide_rows,
        lambda model, none: kp.find_leaks(none, ["."], model=model),
        lambda model, none: kp.audit.accuracies(model, none, DATA),
        lambda model, none: kp.audit.accuracy_under_noise(model, none, DATA),
        lambda model, none: kp.audit.add_noise(none, 0.5),
        lambda model, none: kp.evaluation.evaluate(model, none, DATA, DATA),
        lambda model, none: kp.ownership.claim(none, owner="A", model=model),
        lambda model, none: kp.ownership.record(model, none, DATA),
        lambda model, none: kp.ownership.Evidence(None, None, none, model),
        lambda model, none: kp.licensing.Licensor(
            none, model, kp.ownership.new_secret()
        ),
    ],
)
def test_a_passports_path_is_no_passport(call, model):
    with pytest.raises(kp.PassportError, match="Passport.load.*a str"):
        call(model, "owner.h5")


@pytest.fixture(scope="module")
def opening():
    secret = b"hush" * 8
    seed = bytes(kp.ownership.passport_seed(secret)[:12]) + b"hush"
    return kp.ownership.Opening(
        secret=secret,
        owner="Ada Ltd",
        function="V3",
        kind="random_pattern",
        key_scaling="signed",
        seed=seed.hex(),
        fingerprint="0" * 64,
        kernels="0" * 64,
        layers={"conv1": 4},
    )


@pytest.mark.parametrize(
    "change",
    (
        lambda about: about.update(version=9),
        lambda about: about.update(layers={"conv1": "four"}),
        lambda about: about.update(seed="hush"),
        lambda about: about.update(secret=about["secret"] + "hush"),
        lambda about: about.update(more=1),
        lambda about: about.pop("owner"),
    ),
)
def test_openings_that_say_something_else(change, opening, tmp_path):
    path = tmp_path / "opening.json"
    about = opening._content()
    change(about)
    # By somebody who has the secret, so that the seal is right.
    kp.sealed.save(path, "opening", about, opening.secret)
    with pytest.raises(kp.PassportError) as raised:
        kp.ownership.Opening.load(path)
    check(raised.value)


def test_openings_that_can_not_be_written_or_were_changed(opening, tmp_path):
    with pytest.raises(FileNotFoundError) as raised:
        opening.save(tmp_path / "none" / "opening.json")
    check(raised.value)
    path = tmp_path / "opening.json"
    opening.save(path)
    assert kp.ownership.Opening.load(path) == opening
    text = path.read_bytes()
    for change in (("Ada", "Bob"), ("opening", "claim"), ("}", "")):
        path.write_bytes(text.replace(*map(str.encode, change)))
        with pytest.raises(kp.PassportError) as raised:
            kp.ownership.Opening.load(path)
        check(raised.value)


def test_draws_that_memory_has_no_room_for():
    # As a number, too, it begins like a secret of these tests.
    seed = hidden(bytes(12) + b"hush")
    for draw in (draws.words, draws.chances, draws.signs):
        with pytest.raises(MemoryError) as raised:
            draw(seed, 2**50)
        check(raised.value)


def test_what_objects_say(passport, model, base, opening):
    entry = next(iter(passport.layers.values()))
    image = kp.Passport.random_image(
        model, secret_array(3, 8, 8, 3), reference=base, seed=SEED
    )
    record = entry.record("gamma")
    for shown in (
        passport,
        entry,
        vars(passport),
        vars(entry),
        vars(image),
        {path: vars(entry) for path, entry in image.layers.items()},
        record,
        opening,
        vars(opening),
        opening._content(),
        kp.sealed.dumps("opening", opening._content(), opening.secret),
        passport.keys(),
        passport.rows(),
        passport.packed(),
        passport.pack(model),
        passport.feature_maps(),
        [
            layer.hidden_parameters(row)
            for layer, row in zip(
                kp.protected_layers(model).values(),
                passport.rows().values(),
                strict=True,
            )
        ],
        derivation.derive(SEED, "a"),
        derivation.secret_seed(1752527720),
        derivation.choices(SEED, "passport", "x", 5, "a", ("gamma", "beta")),
        draws.uniform(SEED, (3,)),
    ):
        assert not SECRET.search(f"{shown!r} {shown}"), type(shown)
        assert "array([" not in repr(shown), type(shown)
    assert record.sha256 not in repr(record)
    assert repr(derivation.derive(SEED, "a")) == "<secret of 32 bytes>"


def damaged(path, change):
    with h5py.File(path, "r+") as file:
        change(file)
    seal(path)


def no_finite(file):
    file["layers/0/gamma"][...] = np.nan


def no_array(file):
    del file["layers/0/beta"]


def other_seed(file):
    header(lambda about: about.update(seed="hush"))(file)


def no_seed(file):
    header(lambda about: about.pop("seed"))(file)


def broken_json(file):
    text = file["header"][()].tobytes()[:-3]
    del file["header"]
    file["header"] = np.frombuffer(text, "uint8")


@pytest.mark.parametrize(
    "change",
    (
        no_finite,
        no_array,
        other_seed,
        no_seed,
        broken_json,
        header(lambda about: about.update(kind="x")),
        header(lambda about: about.update(key_scaling=7)),
        header(lambda about: about.update(more=1)),
        header(lambda about: about["layers"][1].pop("geometry")),
        header(lambda about: about["layers"][0]["roles"].update(x={})),
        header(lambda about: about["layers"][1]["geometry"].pop("kind")),
    ),
)
def test_loading(change, passport, tmp_path, monkeypatch):
    path = tmp_path / "owner.h5"
    passport.save(path)
    damaged(path, change)
    with pytest.raises(kp.PassportError) as raised:
        kp.Passport.load(path)
    check(raised.value)
