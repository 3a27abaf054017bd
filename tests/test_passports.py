"""How passports are made, kept, checked and refused."""

import hashlib
import hmac
import json
import re
import threading
from concurrent import futures

import keras
import numpy as np
import pytest
from scipy import stats

import keras_passport as kp
from keras_passport.models import features
from keras_passport.passports.derivation import FAKE, derive, scale_keys
from keras_passport.passports.draws import uniform
from keras_passport.passports.geometry import Geometry
from support.plain_models import (
    multi_input_model,
    nested_model,
    plain_cnn,
    randomize,
    sequential_cnn,
    small_resnet,
)
from support.truth import plain_response, relative_difference

FUNCTIONS = {"V1": ("gamma",), "V2": ("beta",), "V3": ("gamma", "beta")}
KINDS = ("random_pattern", "fixed_image", "random_image")
CONTENT = ("gamma", "beta", "gamma_key", "beta_key")


def images(count=4, seed=0, shape=(8, 8, 3)):
    return np.random.default_rng(seed).random((count, *shape), "float32")


@pytest.fixture(scope="module")
def bases():
    """Networks with weights as a training leaves them."""
    keras.utils.set_random_seed(2)
    made = (plain_cnn, small_resnet, sequential_cnn, nested_model)
    return {make.__name__: randomize(make()) for make in made}


@pytest.fixture(scope="module")
def model(bases):
    return kp.protect(bases["plain_cnn"])


def make(kind, model, reference=None, **options):
    if kind == "random_pattern":
        return kp.Passport.random_pattern(model, **options)
    roles = next(iter(kp.protected_layers(model).values())).function.roles
    count = len(roles) if kind == "fixed_image" else 4
    options.setdefault("images", images(count))
    return getattr(kp.Passport, kind)(model, reference=reference, **options)


def assert_same(one, other):
    for name in ("kind", "function", "seed", "key_scaling", "fingerprint"):
        assert getattr(one, name) == getattr(other, name)
    assert list(one.layers) == list(other.layers)
    for path, entry in one.layers.items():
        for name in (*CONTENT, "gamma_image", "beta_image", "geometry"):
            received = getattr(other.layers[path], name)
            np.testing.assert_array_equal(getattr(entry, name), received)
    np.testing.assert_array_equal(one.packed(), other.packed())


# Making --------------------------------------------------------------------


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_kinds_and_functions(kind, function, bases, tmp_path):
    base = bases["plain_cnn"]
    model = kp.protect(base, function)
    passport = make(kind, model, base, key_scaling="paper")
    assert (passport.kind, passport.function.name) == (kind, function)
    layers = kp.protected_layers(model)
    assert list(passport.layers) == list(layers)
    for path, entry in passport.layers.items():
        for role in ("gamma", "beta"):
            array = getattr(entry, role)
            if role not in FUNCTIONS[function]:
                assert array is None
                continue
            assert array.dtype == np.float32
            assert array.shape == base.get_layer(path).input.shape[1:]
            image = getattr(entry, f"{role}_image")
            assert (image is None) == (kind == "random_pattern")
    # The keys are those with which plain convolution agrees.
    kp.bind(model, passport)
    for path, layer in layers.items():
        hidden = dict(
            zip(("gamma", "beta"), layer.hidden_parameters(), strict=True)
        )
        for role in FUNCTIONS[function]:
            feature_map = getattr(passport.layers[path], role)
            expected = plain_response(layer.layer, feature_map)
            assert relative_difference(hidden[role], expected) < 1e-5
    passport.save(tmp_path / "owner.h5")
    assert_same(passport, kp.Passport.load(tmp_path / "owner.h5"))


def test_random_patterns_are_uniform_and_independent(bases):
    model = kp.protect(bases["small_resnet"])
    passport = kp.Passport.random_pattern(model, seed=3)
    maps = [
        getattr(entry, role)
        for entry in passport.layers.values()
        for role in ("gamma", "beta")
    ]
    drawn = np.concatenate([array.ravel() for array in maps])
    assert drawn.min() >= -1 and drawn.max() <= 1
    assert stats.kstest(drawn, stats.uniform(-1, 2).cdf).pvalue > 0.001
    for i, one in enumerate(maps):
        for other in maps[:i]:
            if one.shape == other.shape:
                correlation = np.corrcoef(one.ravel(), other.ravel())[0, 1]
                assert abs(correlation) < 5 / np.sqrt(one.size)


def test_random_patterns_follow_from_their_seed_alone(model):
    def packed(**options):
        keras.utils.set_random_seed(0)
        return kp.Passport.random_pattern(model, **options).packed()

    np.testing.assert_array_equal(packed(seed=7), packed(seed=7))
    np.testing.assert_array_equal(
        packed(seed=b"s" * 16), packed(seed=b"s" * 16)
    )
    different = [
        packed(),
        packed(),
        packed(seed=7),
        packed(seed=8),
        packed(seed=7, domain=FAKE),
        packed(seed=b"s" * 16),
        packed(seed=b"s" * 17),
    ]
    for i, one in enumerate(different):
        for other in different[:i]:
            assert abs(np.corrcoef(one[0], other[0])[0, 1]) < 0.5
    assert len(kp.Passport.random_pattern(model).seed) == 16
    for seed in (-1, b"short", "0123456789abcdef", 1.5):
        with pytest.raises(kp.PassportError, match="Expected seed") as raised:
            packed(seed=seed)
        assert str(seed) not in str(raised.value)


def seen_by(base, path, x):
    """A layer's input, by a model that ends there."""
    nested, _, name = path.rpartition("/")
    if not nested:
        inputs = base.get_layer(name).input
        return keras.Model(base.inputs, inputs)(x, training=False)
    # The nested models' first layers see what the nested models see.
    before = base.get_layer("outer_relu").output
    x = keras.Model(base.inputs, before)(x, training=False)
    if nested == "sequential":
        x = base.get_layer("functional")(x, training=False)
    return x


@pytest.mark.parametrize(
    "name", ("plain_cnn", "small_resnet", "sequential_cnn", "nested_model")
)
def test_fixed_image_is_the_map_that_each_layer_sees(name, bases):
    base = bases[name]
    two = images(2, seed=5)
    passport = kp.Passport.fixed_image(kp.protect(base), two, reference=base)
    for path, entry in passport.layers.items():
        expected = seen_by(base, path, two)
        for index, role in enumerate(("gamma", "beta")):
            assert getattr(entry, f"{role}_image") == index
            received = getattr(entry, role)
            np.testing.assert_allclose(received, expected[index], atol=1e-5)
    first = next(iter(passport.layers.values()))
    np.testing.assert_array_equal(first.gamma, two[0])
    np.testing.assert_array_equal(passport.images, two)


def derived_choice(seed, pictures, path, role, domain="passport"):
    """A T3 passport's choice, written again from its description."""
    array = np.asarray(pictures, "<f4")
    one = hashlib.sha256(
        json.dumps(array.shape).encode() + array.tobytes()
    ).hexdigest()
    every = hashlib.sha256(one.encode()).hexdigest()
    message = json.dumps([domain, every, path, role]).encode()
    drawn = int.from_bytes(hmac.new(seed, message, hashlib.sha256).digest())
    if role == "gamma":
        return drawn % len(pictures)
    # β's is one of the others, counted without γ's.
    gamma = derived_choice(seed, pictures, path, "gamma", domain)
    others = [i for i in range(len(pictures)) if i != gamma]
    return others[drawn % len(others)]


def choices(passport):
    return [
        (entry.gamma_image, entry.beta_image)
        for entry in passport.layers.values()
    ]


def test_random_image_choices_can_be_derived_again(bases):
    base = bases["small_resnet"]
    model = kp.protect(base)
    ten = images(10)
    passport = kp.Passport.random_image(model, ten, reference=base)
    for path, entry in passport.layers.items():
        for role in ("gamma", "beta"):
            index = getattr(entry, f"{role}_image")
            assert index == derived_choice(passport.seed, ten, path, role)
            fixed = kp.Passport.fixed_image(
                model, ten[[index, index]], reference=base
            )
            np.testing.assert_array_equal(
                getattr(entry, role), getattr(fixed.layers[path], role)
            )
    expected = [
        tuple(
            derived_choice(passport.seed, ten, path, role)
            for role in ("gamma", "beta")
        )
        for path in passport.layers
    ]
    assert choices(passport) == expected
    assert len(set(choices(passport))) > 1
    assert all(gamma != beta for gamma, beta in choices(passport))


def test_random_image_choices_depend_on_seed_images_and_domain(bases):
    base = bases["small_resnet"]
    model = kp.protect(base)
    six = images(6)
    changed = six.copy()
    changed[0, 0, 0, 0] += 1e-3
    variants = [
        (six, {"seed": 1}),
        (six, {"seed": 2}),
        (changed, {"seed": 1}),
        (six, {"seed": 1, "domain": FAKE}),
        (six, {}),
    ]
    made = [
        choices(kp.Passport.random_image(model, x, reference=base, **options))
        for x, options in variants
    ]
    for i, one in enumerate(made):
        assert one not in made[:i]
    again = kp.Passport.random_image(model, six, reference=base, seed=1)
    assert choices(again) == made[0]


def test_a_protected_reference_serves_once_it_is_bound(bases):
    base = bases["plain_cnn"]
    model = kp.protect(base)
    two = images(2)
    with pytest.raises(kp.PassportRequiredError):
        kp.Passport.fixed_image(model, two, reference=model)
    kp.bind(model, kp.Passport.random_pattern(model))
    passport = kp.Passport.fixed_image(model, two, reference=model)
    extract = keras.Model(model.inputs, model.get_layer("second_conv").input)
    np.testing.assert_allclose(
        passport.layers["second_conv"].beta, extract(two[1:])[0], atol=1e-5
    )


def test_making_leaves_the_reference_as_it_was(bases, monkeypatch):
    base = bases["plain_cnn"]
    model = kp.protect(base)
    expected = keras.ops.convert_to_numpy(base(images()))
    make("random_image", model, base)
    monkeypatch.setattr(
        features.ops, "convert_to_numpy", lambda x: 1 / 0, raising=True
    )
    with pytest.raises(ZeroDivisionError):
        make("random_image", model, base)
    monkeypatch.undo()
    assert not any("call" in vars(layer) for layer in base.layers)
    np.testing.assert_array_equal(base(images()), expected)


def test_another_threads_pictures_are_no_passport(bases, monkeypatch):
    """A service may answer with the reference while a passport is made."""
    base = bases["plain_cnn"]
    model, seed = kp.protect(base), bytes(range(16))
    expected = make("random_image", model, base, seed=seed)
    relu = base.get_layer("first_relu")
    call, maker = relu.call, threading.get_ident()

    def interrupted(inputs):
        if threading.get_ident() == maker:
            other = threading.Thread(target=base, args=(images(1, seed=9),))
            other.start()
            other.join()
        return call(inputs)

    # Before the second convolution sees what is to be its map.
    monkeypatch.setattr(relu, "call", interrupted)
    assert_same(make("random_image", model, base, seed=seed), expected)


def test_threads_make_passports_of_one_reference(bases):
    base = bases["plain_cnn"]
    model = kp.protect(base)

    def making(number):
        return make("random_image", model, base, seed=bytes([number] * 16))

    expected = [making(number) for number in range(4)]
    with futures.ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            made = list(pool.map(making, range(4)))
            for one, other in zip(expected, made, strict=True):
                assert_same(one, other)


def test_several_inputs(tmp_path):
    base = randomize(multi_input_model())
    model = kp.protect(base)
    four = {"images": images(), "vector": images(4, 1, (5,))}
    passport = kp.Passport.random_image(model, four, reference=base)
    entry = passport.layers["vector_dense"]
    np.testing.assert_array_equal(
        entry.gamma, four["vector"][entry.gamma_image]
    )
    passport.save(tmp_path / "owner.h5")
    loaded = kp.Passport.load(tmp_path / "owner.h5")
    assert_same(passport, loaded)
    assert set(loaded.images) == set(four)
    for name, array in four.items():
        np.testing.assert_array_equal(loaded.images[name], array)
    for wrong in (images(), {"images": images()}, list(four.values())):
        with pytest.raises(kp.PassportError, match="structure"):
            kp.Passport.random_image(model, wrong, reference=base)
    four["vector"] = four["vector"][:3]
    with pytest.raises(kp.PassportError, match=r"equally many.*\[3, 4\]"):
        kp.Passport.random_image(model, four, reference=base)


@pytest.mark.parametrize("size", (8, np.array([8, 8]), (6, 10)))
def test_models_of_open_size(size):
    base = randomize(small_resnet(size=None))
    model = kp.protect(base)
    with pytest.raises(kp.PassportError, match="spatial_size"):
        kp.Passport.random_pattern(model)
    passport = kp.Passport.random_pattern(model, spatial_size=size)
    height, width = np.broadcast_to(size, 2).tolist()
    assert passport.layers["stem_conv"].gamma.shape == (height, width, 3)
    assert passport.layers["block1_2_conv"].gamma.shape == (
        height // 2,
        width // 2,
        12,
    )
    kp.bind(model, passport)
    x = images(2, shape=(height, width, 3))
    assert model(x).shape == (2, 4)
    pictures = kp.Passport.fixed_image(model, x, reference=base)
    assert pictures.layers["stem_conv"].gamma.shape == (height, width, 3)
    for wrong in ((8,), 0, -8, 8.5, "8", (8, 0)):
        with pytest.raises(kp.PassportError, match="Expected spatial_size"):
            kp.Passport.random_pattern(model, spatial_size=wrong)


def test_layers_that_do_not_say_their_outputs_size():
    """Keras infers no size for `EinsumDense("abc,cd->abd", (None, d))`."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((5, 3))
    x = inputs
    for width in (4, 6):
        x = keras.layers.EinsumDense("abc,cd->abd", (None, width))(x)
        x = keras.layers.LayerNormalization()(x)
    base = keras.Model(inputs, x)
    model = kp.protect(base)
    passport = kp.Passport.random_pattern(model)
    x = np.ones((2, 5, 3), "float32")
    pictures = kp.Passport.fixed_image(model, x, reference=base)
    for path, entry in passport.layers.items():
        assert entry.gamma.shape == pictures.layers[path].gamma.shape
    assert kp.bind(model, passport)(x).shape == (2, 5, 6)


NORMS = {"unit": lambda size: 1.0, "fan_in": lambda size: np.sqrt(size / 2)}


@pytest.mark.parametrize("scaling", NORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_key_scaling(kind, scaling, model, bases, tmp_path):
    options = {"seed": 1, "reference": bases["plain_cnn"]}
    plain = make(kind, model, key_scaling="paper", **options)
    scaled = make(kind, model, key_scaling=scaling, **options)
    for path, some in plain.keys(model).items():
        for role, key in some.items():
            expected = key / np.linalg.norm(key) * NORMS[scaling](key.size)
            received = scaled.keys(model)[path][role]
            np.testing.assert_allclose(received, expected, rtol=1e-5)
    some = scaled.keys().values()
    rows = [key.ravel() for keys in some for key in keys.values()]
    np.testing.assert_array_equal(scaled.packed()[0], np.concatenate(rows))
    assert scaled.fingerprint != plain.fingerprint
    scaled.save(tmp_path / "owner.h5")
    assert_same(scaled, kp.Passport.load(tmp_path / "owner.h5"))
    with pytest.raises(kp.PassportError, match="paper.*unit.*'big'"):
        make(kind, model, key_scaling="big", **options)


@pytest.mark.parametrize("kind", KINDS)
def test_orthogonal_keys(kind, model, bases):
    options = {"seed": 1, "reference": bases["plain_cnn"]}
    plain = make(kind, model, key_scaling="paper", **options)
    made = make(kind, model, key_scaling="orthogonal", **options)
    for path, keys in made.keys(model).items():
        gamma, beta = keys["gamma"].ravel(), keys["beta"].ravel()
        for key in (gamma, beta):
            size = np.sqrt(key.size / 2)
            assert np.linalg.norm(key) == pytest.approx(size, rel=1e-5)
            assert abs(key.mean()) < 1e-5 * size
        assert abs(gamma @ beta) < 1e-5 * (gamma @ gamma)
        # What they are made of: the digested keys, and a constant.
        old = plain.keys(model)[path]
        parts = np.stack(
            [old["gamma"].ravel(), old["beta"].ravel(), np.ones(gamma.size)]
        )
        for key in (gamma, beta):
            weights = np.linalg.lstsq(parts.T, key, rcond=None)[0]
            np.testing.assert_allclose(weights @ parts, key, atol=2e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_signed_keys(kind, model, bases, tmp_path):
    options = {"reference": bases["plain_cnn"]}
    plain = make(kind, model, key_scaling="paper", seed=1, **options)
    made = make(kind, model, seed=1, **options)
    other = make(kind, model, seed=2, **options)
    assert made.key_scaling == "signed"
    negated = []
    for path, keys in made.keys(model).items():
        gamma, beta = keys["gamma"].ravel(), keys["beta"].ravel()
        for key in (gamma, beta):
            size = np.sqrt(key.size / 2)
            assert np.linalg.norm(key) == pytest.approx(size, rel=1e-5)
            assert abs(key.mean()) < 1e-5 * size
        assert abs(gamma @ beta) < 1e-5 * (gamma @ gamma)
        # What they are made of: digested keys with signs, and a constant.
        old, parts = plain.keys(model)[path], [np.ones(gamma.size)]
        for role in ("gamma", "beta"):
            salt = derive(derive(made.seed, "key", path), "signs", role)
            drawn = uniform(salt, old[role].shape).ravel()
            negated.append(drawn < 0)
            parts.append(np.where(drawn < 0, -1, 1) * old[role].ravel())
        for key in (gamma, beta):
            weights = np.linalg.lstsq(np.stack(parts).T, key, rcond=None)[0]
            np.testing.assert_allclose(weights @ parts, key, atol=2e-3)
        # Another seed negates others: what is known of images says little.
        theirs = other.keys(model)[path]["gamma"].ravel()
        assert abs(gamma @ theirs) < 0.5 * (gamma @ gamma)
    assert 0.3 < np.mean(np.concatenate(negated)) < 0.7
    made.save(tmp_path / "owner.h5")
    assert_same(made, kp.Passport.load(tmp_path / "owner.h5"))


def test_signs_need_a_secret():
    with pytest.raises(kp.PassportError, match="signs of keys"):
        scale_keys({"gamma": np.ones(4)}, "signed")


def test_keys_too_small_or_too_alike_for_right_angles_stay():
    keys = {"gamma": np.array([2.0, 1.0]), "beta": np.array([1.0, 3.0])}
    for role, key in scale_keys(keys, "orthogonal").items():
        expected = keys[role] / np.linalg.norm(keys[role])
        np.testing.assert_allclose(key, expected, rtol=1e-6)
    key = np.arange(9.0)
    same = scale_keys({"gamma": key, "beta": key}, "orthogonal")
    np.testing.assert_array_equal(same["gamma"], same["beta"])
    constant = scale_keys({"gamma": np.full(8, 3.0)}, "orthogonal")["gamma"]
    np.testing.assert_allclose(constant, 1 / np.sqrt(2), rtol=1e-6)
    zeros = scale_keys({"gamma": np.zeros(8), "beta": key[:8]}, "orthogonal")
    assert not np.any(zeros["gamma"])
    assert np.all(np.isfinite(zeros["beta"]))


def test_feature_maps_of_ones_own(model):
    maps = {
        "first_conv": (images(1, 1)[0], images(1, 2)[0].astype("float64")),
        "second_conv": tuple(images(2, 3, (8, 8, 8))),
    }
    passport = kp.Passport.from_feature_maps(model, maps)
    assert passport.kind == "feature_maps"
    for path, (gamma, beta) in maps.items():
        np.testing.assert_array_equal(passport.layers[path].gamma, gamma)
        np.testing.assert_allclose(passport.layers[path].beta, beta)
    good = maps["first_conv"]
    wrong = [
        (maps | {"third": good}, "3 layers.*unknown: third"),
        ({"first_conv": good}, "2 protected.*missing: second_conv"),
        (maps | {"first_conv": (good[0], None)}, "gamma and beta.*gamma"),
        (maps | {"first_conv": good[:1]}, "Expected.*first_conv"),
        (maps | {"first_conv": (good[0], good[0][..., :2])}, r"8, 8, 2"),
        (maps | {"first_conv": (good[0], good[0][:5])}, r"\(5, 8, 3\)"),
        (maps | {"first_conv": (good[0], good[0][None])}, r"1, 8, 8, 3"),
        (maps | {"first_conv": (good[0], good[0] * np.nan)}, "NaN"),
    ]
    for given, message in wrong:
        with pytest.raises(kp.PassportError, match=message):
            kp.Passport.from_feature_maps(model, given)


# What is refused -----------------------------------------------------------


@pytest.mark.parametrize(
    "pictures, message",
    [
        (images(1), "at least 2.*Received: 1"),
        (images(0), r"\(0, 8, 8, 3\)"),
        (images(4)[0], r"\(8, 8, 3\)"),
        (images(4, shape=(8, 8, 1)), r"\('n', 8, 8, 3\).*\(4, 8, 8, 1\)"),
        (images(4, shape=(9, 8, 3)), r"\('n', 8, 8, 3\).*\(4, 9, 8, 3\)"),
        (images(4) * np.nan, "NaN"),
        (images(4).astype(str), "dtype=<U"),
        (images(4).astype(object), "dtype=object"),
        (images(4).astype("complex64"), "dtype=complex64"),
        (None, "Expected images"),
        ("logo.png", "Expected images"),
    ],
)
def test_wrong_images(pictures, message, model, bases):
    with pytest.raises(kp.PassportError, match=message):
        kp.Passport.random_image(model, pictures, reference=bases["plain_cnn"])


@pytest.mark.parametrize(
    "function, count", [("V1", 2), ("V2", 2), ("V3", 1), ("V3", 3)]
)
def test_fixed_image_says_how_many_images_it_needs(function, count, bases):
    base = bases["plain_cnn"]
    needed = len(FUNCTIONS[function])
    with pytest.raises(
        kp.PassportError, match=f"Expected {needed} .*{function}.*: {count}$"
    ):
        kp.Passport.fixed_image(
            kp.protect(base, function), images(count), reference=base
        )


def other_width():
    return keras.models.clone_model(
        plain_cnn(),
        clone_function=lambda layer: type(layer).from_config(
            layer.get_config()
            | ({"filters": 5} if layer.name == "first_conv" else {})
        ),
    )


@pytest.mark.parametrize("kind", ("fixed_image", "random_image"))
@pytest.mark.parametrize(
    "reference, message",
    [
        (lambda: None, "reference"),
        (small_resnet, "small_resnet.*first_conv"),
        (other_width, r"second_conv.*\(8, 8, 8\).*\(8, 8, 5\)"),
        (lambda: "original.keras", "reference"),
    ],
)
def test_wrong_references(kind, reference, message, model):
    with pytest.raises(kp.PassportError, match=message):
        make(kind, model, reference())


@pytest.mark.parametrize("kind", KINDS)
def test_makers_take_protected_models_only(kind, bases):
    options = {"images": images(2), "reference": bases["plain_cnn"]}
    options = {} if kind == "random_pattern" else options
    with pytest.raises(kp.PassportError, match="Expected a protected model"):
        getattr(kp.Passport, kind)(bases["plain_cnn"], **options)


def strided():
    return keras.models.clone_model(
        plain_cnn(),
        clone_function=lambda layer: type(layer).from_config(
            layer.get_config()
            | ({"strides": (1, 1)} if layer.name == "second_conv" else {})
        ),
    )


@pytest.mark.parametrize(
    "base, function, message",
    [
        (plain_cnn, "V1", "V1.*V3"),
        (plain_cnn, "V2", "V2.*V3"),
        (small_resnet, "V3", "6 protected layers.*2 layers"),
        (strided, "V3", r"second_conv.*'strides': \[1, 1\].*\[2, 2\]"),
    ],
)
def test_passports_for_another_model(base, function, message, model):
    passport = kp.Passport.random_pattern(model)
    other = kp.protect(base(), function)
    for use in (passport.keys, passport.check, lambda m: kp.bind(m, passport)):
        with pytest.raises(kp.PassportError, match=message):
            use(other)


def test_representations_show_no_values(model, bases):
    for kind in KINDS:
        passport = make(kind, model, bases["plain_cnn"])
        entry = passport.layers["first_conv"]
        for text in (repr(passport), str(passport), repr(passport.layers)):
            assert not re.search(r"\d\.\d|e-\d", text)
            assert passport.seed.hex() not in text
            assert repr(passport.seed) not in text
        assert kind in repr(passport) and "2 layers" in repr(passport)
        assert "gamma" in repr(entry)


def test_keys_too_large_to_scale():
    geometry = Geometry("pointwise", channels=2)
    key = np.full(2, 3e38, "float32")
    for scaling in ("unit", "fan_in"):
        entry = kp.PassportEntry(geometry, gamma_key=key)
        passport = kp.Passport(
            "feature_maps", "V1", {"a": entry}, b"s" * 16, scaling
        )
        with pytest.raises(kp.PassportError, match="finite norm"):
            passport.keys()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"seed": b"short"}, "16 or more bytes"),
        ({"images": np.ones((1, 4))}, "one of 1 identity images"),
    ],
)
def test_what_no_passport_has(options, message):
    geometry = Geometry("pointwise", channels=2)
    entry = kp.PassportEntry(geometry, gamma_key=np.ones(2), gamma_image=1)
    options = {"seed": b"s" * 16, "images": np.ones((2, 4))} | options
    kp.Passport("fixed_image", "V1", {"a": entry}, b"s" * 16, images=None)
    with pytest.raises(kp.PassportError, match=message):
        kp.Passport("fixed_image", "V1", {"a": entry}, **options)
