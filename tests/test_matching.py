"""Which layer of a passport is which of a model, where paths differ."""

import contextlib
import warnings

import keras
import numpy as np
import pytest
from keras import layers

import keras_passport as kp
from keras_passport.passports.geometry import Geometry
from keras_passport.passports.matching import match
from support.plain_models import inputs_of, plain_cnn, randomize
from support.processes import run_in_fresh_process
from support.truth import outputs_of, relative_difference


def conv(channels, size=3):
    return Geometry("convolution", channels, (size, size), (1, 1), (1, 1))


A, B, C = conv(3), conv(8), conv(8, 1)

# Name: the model's layers, the passport's, how they are matched (the order of
# the passport's paths for the model's), and whether a warning says so.
MATCHED = {
    "the same": ({"a": A, "b": B}, {"a": A, "b": B}, "ab", False),
    "another order": ({"b": B, "a": A}, {"a": A, "b": B}, "ba", False),
    "a folder more": ({"x/b": B, "x/a": B}, {"a": B, "b": B}, "ba", False),
    "a folder less": ({"a": B, "b": B}, {"x/y/a": B, "x/y/b": B}, "ab", False),
    "another folder": ({"x/b": B, "x/a": B}, {"y/a": B, "y/b": B}, "ba", True),
    "one in a folder": ({"x/a": A}, {"a": A}, "a", False),
    "other numbers": (
        {"c_7": A, "c_8": B, "c_9": B},
        {"c": A, "c_1": B, "c_2": B},
        ["c", "c_1", "c_2"],
        True,
    ),
    "numbers out of order": (
        {"c_9": B, "c_7": A, "c_8": B},
        {"c": A, "c_1": B, "c_2": B},
        ["c_2", "c", "c_1"],
        True,
    ),
    "numbers of two names, and one's own": (
        {"stem": B, "c_7": B, "d_3": B, "c_8": B},
        {"stem": B, "c": B, "d": B, "c_1": B},
        ["stem", "c", "d", "c_1"],
        True,
    ),
    "numbered folders": (
        {"m_4/c_7": A, "m_5/c_8": B},
        {"m/c": A, "m_1/c_1": B},
        ["m/c", "m_1/c_1"],
        True,
    ),
    "numbers that overlap, of other kinds": (
        {"c_1": A, "c_2": B, "c_3": C},
        {"c": A, "c_1": B, "c_2": C},
        ["c", "c_1", "c_2"],
        True,
    ),
    "other names": (
        {"x": A, "y": B, "z": C},
        {"a": A, "b": B, "c": C},
        "abc",
        1,
    ),
}


@pytest.mark.parametrize("case", MATCHED)
def test_matched(case):
    expected, received, order, warns = MATCHED[case]
    if isinstance(order, str):
        by_end = {path.rpartition("/")[2]: path for path in received}
        order = [by_end[name] for name in order]
    context = contextlib.nullcontext()
    if warns:
        context = pytest.warns(UserWarning, match=r"passport\.renamed\(")
    with warnings.catch_warnings(), context:
        if not warns:
            warnings.simplefilter("error")
        found = match(expected, received)
    assert list(found) == list(expected)
    assert list(found.values()) == order


# Name: the model's layers, the passport's, and what the error says.
REFUSED = {
    "another geometry": ({"a": A}, {"a": B}, "'channels': 3"),
    "a folder more, another geometry": ({"x/a": A}, {"a": B}, "'channels': 8"),
    "fewer layers": ({"a": A, "b": B}, {"a": A}, "missing: b"),
    "another selection": ({"a": B, "b": B}, {"a": B, "c": B}, "unknown: c"),
    "another numbered selection": (
        {"c_1": B, "c_2": B},
        {"c_1": B, "c_3": B},
        "missing: c_2",
    ),
    "numbers that overlap, of one kind": (
        {"c_1": B, "c_2": B},
        {"c": B, "c_1": B},
        "unknown: c",
    ),
    "numbers against the order": (
        {"c_8": B, "c_7": B},
        {"c": B, "c_1": B},
        "missing: c_7, c_8",
    ),
    "other names in another order": (
        {"x": A, "y": B},
        {"a": B, "b": A},
        "missing: x, y; unknown: a, b",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    expected, received, text = REFUSED[case]
    with pytest.raises(kp.PassportError) as caught:
        match(expected, received)
    message = str(caught.value)
    assert text in message
    if "missing" in text:
        assert "passport.renamed({" in message
        lines = message.splitlines()
        for path, other in zip(expected, received, strict=False):
            assert any(path in line and other in line for line in lines)


def backbone(name="backbone", **names):
    """Two convolutions of one geometry, named or not."""
    inputs = keras.Input((8, 8, 6), name="images")
    x = inputs
    for part in ("first", "second"):
        layer = layers.Conv2D(6, 3, padding="same", name=names.get(part))
        x = layers.ReLU()(layers.BatchNormalization()(layer(x)))
    return keras.Model(inputs, x, name=name)


def product(part):
    inputs = keras.Input((8, 8, 6), name="images")
    x = layers.GlobalAveragePooling2D()(part(inputs))
    outputs = layers.Dense(3, name="classes")(x)
    return kp.ProtectedModel(inputs, outputs)


@pytest.mark.parametrize("named", (True, False))
def test_a_part_of_a_product(named):
    names = {"first": "one", "second": "two"} if named else {}
    part = kp.protect(randomize(backbone(**names)))
    passport = kp.Passport.random_pattern(part)
    whole = product(part)
    kp.bind(whole.get_layer("backbone"), passport)
    x = inputs_of(whole)
    expected = outputs_of(whole, x)
    kp.unbind(whole)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        passport.check(whole)
        kp.bind(whole, passport)
        assert relative_difference(outputs_of(whole, x), expected) < 1e-5
        plain = kp.unlock(kp.unbind(whole), passport)
        assert relative_difference(outputs_of(plain, x), expected) < 1e-4
        served = kp.require_passport(whole)
        key = passport.pack(kp.passport_spec(served))
        received = outputs_of(served, [x, key])
        assert relative_difference(received, expected) < 1e-5
    assert list(passport.keys(whole)) == [
        "backbone/" + p for p in passport.layers
    ]


def test_the_same_architecture_made_anew(tmp_path):
    base = randomize(backbone())
    model = kp.protect(base)
    passport = kp.Passport.random_pattern(model)
    x = inputs_of(model)
    expected = outputs_of(kp.bind(model, passport), x)
    again = backbone()
    assert {layer.name for layer in again.layers} != {
        layer.name for layer in base.layers
    }
    again.set_weights(base.get_weights())
    other = kp.protect(again)
    with pytest.warns(UserWarning, match="other paths"):
        kp.bind(other, passport)
    assert relative_difference(outputs_of(other, x), expected) < 1e-5
    names = dict(zip(passport.layers, kp.protected_layers(other), strict=True))
    renamed = passport.renamed(names)
    renamed.save(tmp_path / "renamed.h5")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        kp.bind(other, renamed)
        assert relative_difference(outputs_of(other, x), expected) < 1e-5
        kp.bind(other, kp.Passport.load(tmp_path / "renamed.h5"))
    assert relative_difference(outputs_of(other, x), expected) < 1e-5
    assert renamed.fingerprint != passport.fingerprint
    np.testing.assert_array_equal(renamed.packed(), passport.packed())
    # The reference that images go through may be another one's too.
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 6))
    images = images.astype("float32")
    own = kp.Passport.fixed_image(model, images, reference=base, seed=1)
    with pytest.warns(UserWarning, match="reference's layers"):
        same = kp.Passport.fixed_image(model, images, reference=again, seed=1)
    np.testing.assert_allclose(same.packed(), own.packed(), 1e-4, 1e-5)


def test_mistakes_in_names():
    passport = kp.Passport.random_pattern(
        kp.protect(backbone(first="one", second="two"))
    )
    for names, text in (
        ({"three": "one"}, r"Received: unknown: three$"),
        ({"one": "two"}, "2 different paths"),
        ({"one": 3}, "Received: a new path that is no text"),
    ):
        with pytest.raises(kp.PassportError, match=text):
            passport.renamed(names)
    swapped = passport.renamed({"one": "two", "two": "one"})
    keys, others = passport.keys(), swapped.keys()
    for role in ("gamma", "beta"):
        np.testing.assert_array_equal(keys["one"][role], others["two"][role])


def test_packing_needs_no_keras(tmp_path):
    import json

    model = kp.protect(randomize(backbone()))
    passport = kp.Passport.random_pattern(model)
    passport.save(tmp_path / "owner.h5")
    spec = kp.passport_spec(product(model))
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    np.save(tmp_path / "key.npy", passport.packed())
    run_in_fresh_process(
        f"""
import pathlib, sys
import numpy as np
from keras_passport import Passport
folder = pathlib.Path({str(tmp_path)!r})
packed = Passport.load(folder / "owner.h5").pack(folder / "spec.json")
np.testing.assert_array_equal(packed, np.load(folder / "key.npy"))
assert "keras" not in sys.modules
"""
    )


def test_a_part_of_a_passport_is_for_a_model_without_the_rest(tmp_path):
    """A network that was exactly protected, under a head of another task."""
    base = plain_cnn()
    model, passport = kp.protect_trained(base)
    head = list(kp.protected_layers(model))[-1]
    outputs = keras.layers.Dense(7, name="new")(model.layers[-2].output)
    product = keras.Model(model.input, outputs)
    x = np.random.default_rng(0).random((4, 8, 8, 3), "float32")
    expected = product(x)
    product.save(tmp_path / "product.keras")
    product = keras.saving.load_model(tmp_path / "product.keras")
    with pytest.raises(kp.PassportError, match=r"passport\.part\("):
        kp.bind(product, passport)
    part = passport.part([p for p in passport.layers if p != head])
    part.save(tmp_path / "part.h5")
    kp.bind(product, kp.Passport.load(tmp_path / "part.h5"))
    np.testing.assert_allclose(product(x), expected, atol=1e-6)
    with pytest.raises(kp.PassportError, match="Received: unknown: nowhere$"):
        passport.part(["nowhere"])
    with pytest.raises(kp.PassportError, match="one at least"):
        passport.part([])
