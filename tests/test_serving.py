"""Models that take the passport as an input, against stock nets."""

import json

import keras
import numpy as np
import pytest
from keras import layers

import keras_passport as kp
from keras_passport.passports.specs import SPEC_VERSION
from keras_passport.serving import one_row
from support.kernel_layers import FUNCTIONS, KERNELS, TAILS, stack
from support.plain_models import (
    inputs_of,
    multi_input_model,
    nested_model,
    plain_cnn,
    randomize,
    sequential_cnn,
    shared_model,
    small_resnet,
)
from support.processes import run_in_fresh_process
from support.protected_models import Block
from support.stored_secrets import keras_file, leaks_in, secrets_of
from support.truth import outputs_of, overwrite_affine, relative_difference

TOLERANCE = 1e-5


def shared_inside_model():
    """An inner model called twice, once inside another inner model."""
    size = keras.Input((6, 6, 4), name="inner")
    x = layers.Conv2D(4, 3, padding="same", name="conv")(size)
    x = layers.BatchNormalization(name="bn")(x)
    branch = keras.Model(size, layers.ReLU(name="relu")(x), name="branch")
    middle = keras.Input((6, 6, 4), name="middle")
    x = layers.Conv2D(4, 1, name="conv")(branch(middle))
    x = layers.BatchNormalization(name="bn")(x)
    outer = keras.Model(middle, x, name="outer")
    images = keras.Input((6, 6, 4), name="images")
    x = layers.Concatenate(name="both")([branch(images), outer(images)])
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(images, layers.Dense(3, name="classes")(x))


def nested_inputs_model():
    """Inputs in a dict whose keys are not their names, one in a list."""
    pair = [keras.Input((5,), name=name) for name in ("left", "right")]
    x = layers.Dense(6, name="dense")(layers.Add(name="add")(pair))
    x = layers.BatchNormalization(name="bn")(x)
    vector = keras.Input((6,), name="vector")
    outputs = layers.Multiply(name="multiply")([x, vector])
    return keras.Model({"z": pair, "a": vector}, outputs)


def split_model():
    """The user's own `ops.split`, whose name Keras made."""
    images = keras.Input((6, 6, 4), name="images")
    parts = []
    for i, part in enumerate(keras.ops.split(images, 2, axis=-1)):
        x = layers.Conv2D(4, 3, name=f"conv{i}")(part)
        parts.append(layers.BatchNormalization(name=f"bn{i}")(x))
    keras.utils.clear_session(free_memory=False)
    return keras.Model(images, layers.Add(name="sum")(parts))


MODELS = {
    model.__name__: model
    for model in (
        plain_cnn,
        small_resnet,
        sequential_cnn,
        nested_model,
        multi_input_model,
        shared_model,
        shared_inside_model,
        nested_inputs_model,
        split_model,
    )
}
MODELS["open_size"] = lambda: small_resnet(size=None)


class Case:
    """A protected model, two passports, and what each must give.

    Args:
        base: Stock model; its γ and β are overwritten.
        function: Passport function.
    """

    def __init__(self, base, function="V3"):
        randomize(base)
        self.model = kp.protect(base, function)
        self.x = inputs_of(base)
        self.passports, self.expected = [], []
        # A layer that several models share is protected once.
        paths = list(kp.protected_layers(self.model))
        for seed in (0, 1):
            maps = overwrite_affine(base, function, seed, paths=paths)
            self.passports.append(
                kp.Passport.from_feature_maps(self.model, maps)
            )
            self.expected.append(outputs_of(base, self.x))
        assert relative_difference(*self.expected) > 1e-2
        assert relative_difference(*self.expected[0][:2]) > 1e-3

    def pack(self, served):
        spec = kp.passport_spec(served)
        return [passport.pack(spec) for passport in self.passports]

    def assert_right(self, served, tolerance=TOLERANCE):
        """One row for the whole batch, and a row of its own per example."""
        keys = self.pack(served)
        for key, expected in zip(keys, self.expected, strict=True):
            received = outputs_of(served, fed(served, self.x, key))
            assert relative_difference(received, expected) < tolerance
        chosen = np.arange(len(self.expected[0])) % 2
        received = outputs_of(
            served, fed(served, self.x, np.concatenate(keys)[chosen])
        )
        expected = np.where(chosen[:, None], *self.expected[::-1])
        assert relative_difference(received, expected) < tolerance


def fed(served, x, key):
    """Inputs, made by hand, not by the package."""
    if isinstance(x, dict):
        return {**x, "passport": key}
    return [*x, key] if isinstance(x, (list, tuple)) else [x, key]


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("name", MODELS)
def test_whole_models(name, function):
    case = Case(MODELS[name](), function)
    served = kp.require_passport(case.model)
    case.assert_right(served)
    assert served.name == case.model.name
    for one, other in zip(served.weights, case.model.weights, strict=True):
        assert one.name == other.name
        np.testing.assert_array_equal(one, other)
    assert kp.passport_spec(served) == kp.passport_spec(case.model)
    for passport, key in zip(case.passports, case.pack(served), strict=True):
        np.testing.assert_array_equal(key, passport.packed())


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_kernel_layer(kernel):
    case = Case(stack(kernel))
    case.assert_right(kp.require_passport(case.model))


@pytest.mark.parametrize("tail", TAILS)
def test_every_normalization(tail):
    case = Case(stack("conv2d", TAILS[tail]()), "V3")
    case.assert_right(kp.require_passport(case.model))


def bound_and_served(base, function="V3"):
    model = kp.protect(randomize(base), function)
    passport = kp.Passport.random_pattern(model, seed=bytes(16))
    served = kp.require_passport(model)
    key = passport.pack(kp.passport_spec(model))
    return kp.bind(model, passport), served, key


def test_channels_first():
    if keras.backend.backend() == "tensorflow":
        pytest.skip("TensorFlow can't on a CPU")
    bound, served, key = bound_and_served(plain_cnn("channels_first"))
    x = inputs_of(bound)
    for rows in (key, np.repeat(key, len(x), 0)):
        received = outputs_of(served, [x, rows])
        assert relative_difference(received, outputs_of(bound, x)) < TOLERANCE


@pytest.mark.parametrize("policy", ("mixed_bfloat16", "mixed_float16"))
def test_mixed_precision(policy):
    keras.config.set_dtype_policy(policy)
    bound, served, key = bound_and_served(small_resnet())
    assert served.dtype_policy.name == policy
    assert served.inputs[-1].dtype == "float32"
    x = inputs_of(bound)
    expected = outputs_of(bound, x)
    received = outputs_of(served, [x, key])
    np.testing.assert_array_equal(received, expected)
    # With rows of their own γ and β are applied in another order.
    rows = np.repeat(key, len(x), 0)
    received = outputs_of(served, [x, rows])
    assert relative_difference(received, expected) < 2e-2


def test_an_application():
    base = keras.applications.MobileNetV2(
        weights=None, input_shape=(32, 32, 3), alpha=0.35, classes=5
    )
    bound, served, key = bound_and_served(base)
    x = inputs_of(bound)
    expected = outputs_of(bound, x)
    assert relative_difference(outputs_of(served, [x, key]), expected) < 1e-5
    rows = np.repeat(key, len(x), 0)
    assert relative_difference(outputs_of(served, [x, rows]), expected) < 1e-3
    assert key.shape[1] == kp.passport_spec(bound)["size"]


def test_the_source_is_left_as_it_is():
    bound, _, key = bound_and_served(nested_model())
    x, before = inputs_of(bound), bound.get_weights()
    expected = outputs_of(bound, x)
    # Bound, or not: the copy is the same and asks for a passport.
    while_bound = kp.require_passport(bound)
    for weight in while_bound.weights:
        weight.assign(weight * 0.0)
    for old, new in zip(before, bound.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert all(layer.is_bound for layer in kp.protected_layers(bound).values())
    served = kp.require_passport(bound)
    assert not any(
        layer.is_bound for layer in kp.protected_layers(served).values()
    )
    kp.unbind(bound)
    for same in (served, kp.require_passport(bound)):
        received = outputs_of(same, [x, key])
        assert relative_difference(received, expected) < TOLERANCE
    assert not any(
        layer.is_bound for layer in kp.protected_layers(bound).values()
    )
    with pytest.raises((TypeError, ValueError)):
        served(x)


def test_flags_and_state_carry_over():
    inputs = keras.Input((5,))
    scale = layers.Normalization(name="scale")
    scale.adapt(np.random.default_rng(0).normal(3, 2, (50, 5)))
    x = layers.Dense(6, name="dense")(scale(inputs))
    x = layers.BatchNormalization(name="bn")(x)
    x = layers.Dropout(0.5, seed=3, name="dropout")(x)
    x = layers.Dense(6, name="frozen")(x)
    x = layers.BatchNormalization(name="frozen_bn")(x)
    case = Case(keras.Model(inputs, layers.Dense(2, name="classes")(x)))
    case.model.get_layer("frozen").trainable = False
    served = kp.require_passport(case.model)
    case.assert_right(served)
    assert [w.shape for w in served.trainable_weights] == [
        w.shape for w in case.model.trainable_weights
    ]
    assert not served.get_layer("frozen").trainable


def with_rows(x, count):
    return keras.tree.map_structure(
        lambda a: np.resize(a, (count, *a.shape[1:])), x
    )


def test_trains():
    bound, served, key = bound_and_served(nested_model())
    x, y = with_rows(inputs_of(bound), 16), np.arange(16) % 4
    served.compile(
        keras.optimizers.Adam(0.01),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    kernels = [w for w in served.trainable_weights if w.name == "kernel"]
    assert len(kernels) == len(kp.protected_layers(served)) + 1
    before = [keras.ops.convert_to_numpy(weight) for weight in kernels]
    given = kp.with_passport(x, key)
    history = served.fit(given, y, epochs=8, batch_size=8, verbose=0)
    assert history.history["loss"][-1] < 0.9 * history.history["loss"][0]
    for weight, old in zip(kernels, before, strict=True):
        new = keras.ops.convert_to_numpy(weight)
        assert np.abs(new - old).max() > 1e-4
    losses = [
        served.evaluate(some, y, batch_size=8, verbose=0)
        for some in (
            given,
            kp.with_passport(x, np.repeat(key, 16, 0)),
        )
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_trains_and_predicts_with_a_dict():
    bound, served, key = bound_and_served(multi_input_model())
    x = with_rows(inputs_of(bound), 8)
    served.compile(keras.optimizers.Adam(0.01), {"score": "mse"})
    given = kp.with_passport(x, key)
    losses = served.fit(given, {"score": np.ones(8)}, epochs=5, verbose=0)
    assert losses.history["loss"][-1] < losses.history["loss"][0]
    predicted = served.predict(given, batch_size=5, verbose=0)
    flat = np.concatenate(keras.tree.flatten(predicted), axis=1)
    expected = outputs_of(served, fed(served, x, key))
    assert relative_difference(flat, expected) < TOLERANCE


def test_saves_loads_and_clones(tmp_path):
    bound, served, key = bound_and_served(nested_model())
    x = inputs_of(bound)
    expected = outputs_of(bound, x)
    served.compile(keras.optimizers.Adam(0.01), "mse")
    served.save(tmp_path / "served.keras")
    served.save_weights(tmp_path / "served.weights.h5")
    spec = json.dumps(kp.passport_spec(bound))
    np.savez(tmp_path / "case.npz", x=x, y=expected, key=key)
    loaded = keras.saving.load_model(tmp_path / "served.keras")
    assert type(loaded) is kp.PassportInputModel
    assert json.dumps(kp.passport_spec(loaded)) == spec
    clone = keras.models.clone_model(served)
    clone.load_weights(tmp_path / "served.weights.h5")
    for same in (loaded, clone):
        received = outputs_of(same, [x, key])
        assert relative_difference(received, expected) < TOLERANCE
    run_in_fresh_process(
        f"""
import keras, keras_passport, numpy as np, json
model = keras.saving.load_model({str(tmp_path / "served.keras")!r})
case = np.load({str(tmp_path / "case.npz")!r})
assert json.dumps(keras_passport.passport_spec(model)) == {spec!r}
y = model.predict(
    keras_passport.with_passport(case["x"], case["key"]), verbose=0)
assert np.abs(y - case["y"]).max() < 1e-4 * np.abs(case["y"]).max()
""",
        # Imported sooner, and it computes the same.
        backend="numpy",
    )


def test_weights_of_the_source_load(tmp_path):
    bound, _, key = bound_and_served(small_resnet())
    bound.save_weights(tmp_path / "bound.weights.h5")
    other = kp.require_passport(kp.protect(small_resnet()))
    other.load_weights(tmp_path / "bound.weights.h5")
    x = inputs_of(bound)
    received = outputs_of(other, [x, key])
    assert relative_difference(received, outputs_of(bound, x)) < TOLERANCE


def test_composes():
    bound, served, key = bound_and_served(plain_cnn())
    x = inputs_of(bound)
    images = keras.Input((8, 8, 3), name="pictures")
    passport = keras.Input((key.shape[1],), name="pass")
    outer = keras.Model(
        [images, passport], keras.ops.softmax(served([images * 1, passport]))
    )
    expected = keras.ops.softmax(bound(x))
    received = outputs_of(outer, [x, key])
    assert relative_difference(received, expected) < TOLERANCE


@pytest.mark.eager
@pytest.mark.parametrize("trained", (False, True))
def test_no_variable_and_no_file_holds_a_secret(trained, tmp_path):
    images = keras.Input((8, 8, 3))
    x = images
    for filters in (16, 20):
        x = layers.Conv2D(filters, 3, strides=2)(x)
        x = layers.BatchNormalization()(x)
    x = layers.GlobalAveragePooling2D()(x)
    bound, _, key = bound_and_served(keras.Model(images, layers.Dense(4)(x)))
    bound.compile(keras.optimizers.SGD(0.05, momentum=0.9), "mse")
    bound.predict(inputs_of(bound), verbose=0)
    served = kp.require_passport(bound)
    secrets = {**secrets_of(bound), "packed": key}
    offset = 0
    for layer in kp.passport_spec(bound)["layers"]:
        for role in layer["roles"]:
            size = layer["size"] // len(layer["roles"])
            name = f"{layer['path']}/{role}_key"
            secrets[name] = key[0, offset : offset + size]
            offset += size
    if trained:
        served.compile(keras.optimizers.SGD(0.01, momentum=0.9), "mse")
        x = inputs_of(bound)
        given = kp.with_passport(x, key)
        served.fit(given, np.zeros((len(x), 4)), epochs=3, verbose=0)
    stored = {
        weight.path: keras.ops.convert_to_numpy(weight)
        for weight in served.variables
        if "float" in weight.dtype
    }
    stored.update(keras_file(served, tmp_path))
    assert not [name for name in stored if "optimizer" in name]
    assert not leaks_in(secrets, stored, tmp_path)


# Calls by keyword, other structures and other sizes.


class Scaled(layers.Layer):
    def call(self, x, scale=1.0):
        return x * scale


def by_keyword_model():
    """Layers, and models of several inputs, called by keyword."""
    images = keras.Input((8, 8, 4), name="images")
    x = layers.Conv2D(4, 3, name="conv")(inputs=images)
    x = layers.BatchNormalization(name="bn")(inputs=x)
    x = Scaled(name="scaled")(x=x, scale=2.0)

    def inner(make, name):
        pair = make(keras.Input((6, 6, 4), name=n) for n in "pz")
        both = list(pair.values()) if isinstance(pair, dict) else pair
        y = layers.Subtract(name="minus")([both[0], both[1]])
        y = layers.Conv2D(4, 3, name="conv")(y)
        y = layers.BatchNormalization(name="bn")(y)
        return keras.Model(pair, y, name=name)

    listed = inner(list, "listed")
    named = inner(lambda two: dict(zip("pz", two, strict=True)), "named")
    last = keras.Sequential(
        [
            keras.Input((4, 4, 4)),
            layers.Conv2D(4, 3, name="conv"),
            layers.BatchNormalization(name="bn"),
        ],
        name="last",
    )
    x = layers.Add(name="sum")(
        [
            listed(inputs=[x, 2.0 * x]),
            named(inputs={"p": x, "z": 3.0 * x}),
            named([x, -1.0 * x]),
            listed({"p": x, "z": 4.0 * x}),
        ]
    )
    x = layers.GlobalAveragePooling2D(name="pool")(last(inputs=x))
    return keras.Model(images, layers.Dense(3, name="classes")(x))


@pytest.mark.filterwarnings("ignore:The structure of `inputs`")
def test_calls_by_keyword():
    base = by_keyword_model()
    case = Case(base)
    assert len(case.expected) and len(kp.protected_layers(case.model)) == 4
    served = kp.require_passport(case.model)
    case.assert_right(served)
    key = case.pack(served)[0]
    received = served(inputs=fed(served, case.x, key))
    assert relative_difference(received, case.expected[0]) < TOLERANCE
    passport = case.passports[0]
    for same in (
        kp.unlock(case.model, passport),
        kp.bind(kp.public(case.model), passport),
    ):
        received = outputs_of(same, case.x)
        assert relative_difference(received, case.expected[0]) < 1e-4


def other_size_model():
    """A Sequential that was built for 16 x 16, and sees what comes."""
    inner = keras.Sequential(
        [
            layers.Conv2D(4, 3, name="conv"),
            layers.BatchNormalization(name="bn"),
            layers.ReLU(name="relu"),
            layers.Conv2D(5, 3, name="conv2"),
            layers.BatchNormalization(name="bn2"),
        ],
        name="inner",
    )
    inner.build((None, 16, 16, 3))
    images = keras.Input((None, None, 3), name="images")
    x = layers.Conv2D(3, 1, name="first")(images)
    x = inner(layers.BatchNormalization(name="first_bn")(x))
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(images, layers.Dense(3, name="classes")(x))


def test_a_sequential_of_another_size(tmp_path):
    base = randomize(other_size_model())
    model = kp.protect(base)
    x = np.random.default_rng(0).normal(size=(3, 8, 8, 3)).astype("float32")
    base.predict(x, verbose=0)  # Keras can.
    passports = [
        kp.Passport.random_pattern(model, spatial_size=8),
        kp.Passport.random_image(model, x, reference=base),
        kp.Passport.fixed_image(model, x[:2], reference=base),
    ]
    shapes = ((8, 8, 3), (8, 8, 3), (6, 6, 4))
    maps = {
        path: tuple(np.ones((2, *shape), "float32"))
        for path, shape in zip(kp.protected_layers(model), shapes, strict=True)
    }
    passports.append(kp.Passport.from_feature_maps(model, maps))
    served = kp.require_passport(model)
    served.save(tmp_path / "served.keras")
    served.save_weights(tmp_path / "served.weights.h5")
    loaded = keras.saving.load_model(tmp_path / "served.keras")
    clone = keras.models.clone_model(served)
    clone.load_weights(tmp_path / "served.weights.h5")
    for passport in passports:
        expected = outputs_of(kp.bind(model, passport), x)
        key = passport.pack(kp.passport_spec(model))
        received = outputs_of(served, [x, key])
        assert relative_difference(received, expected) < TOLERANCE
    for same in (loaded, clone):
        received = outputs_of(same, [x, key])
        assert relative_difference(received, expected) < TOLERANCE
    for same in (kp.unlock(model), kp.bind(kp.public(model), passport)):
        assert relative_difference(outputs_of(same, x), expected) < 1e-4
    given = kp.with_passport(x, key)
    for same, fed_with in ((model, x), (served, given)):
        received = same.predict(fed_with, verbose=0)
        assert relative_difference(received, expected) < TOLERANCE
    served.compile("sgd", "mse")
    served.fit(given, np.zeros((3, 3)), verbose=0)


# What is passed for a passport must not be printed.

NUMBER = 0.12345


def wrong_passports(key):
    """What somebody may pass by mistake, each with the number inside."""
    return {
        "1-D": key[0],
        "3-D": key[None],
        "short": key[:, 1:],
        "long": np.concatenate([key, key], axis=1),
        "list": key.tolist(),
        "list of 1-D": key[0].tolist(),
        "ragged list": [key[0].tolist(), [NUMBER]],
        "tuple": tuple(key[0].tolist()),
        "text": str(key.tolist()),
        "bytes": str(key.tolist()).encode(),
        "objects": key.astype(object),
        "strings": key.astype(str),
        "number": NUMBER,
        "none": None,
    }


ROUTES = {
    "call": lambda served, x, key: served([x, key]),
    "tensors": lambda served, x, key: served(
        [keras.ops.convert_to_tensor(x), key]
    ),
    "keyword": lambda served, x, key: served(inputs=[x, key]),
    "by name": lambda served, x, key: served({"images": x, "passport": key}),
    "second": lambda served, x, key: served(x, key),
    "extra keyword": lambda served, x, key: served(x, passport=key),
    "three": lambda served, x, key: served([x, key, key]),
    "predict": lambda served, x, key: served.predict([x, key], verbose=0),
    "predict by name": lambda served, x, key: served.predict(
        {"images": x, "passport": key}, verbose=0
    ),
    "predict_on_batch": lambda served, x, key: served.predict_on_batch(
        [x, key]
    ),
    "fit": lambda served, x, key: served.fit([x, key], x, verbose=0),
    "validation": lambda served, x, key: served.fit(
        kp.with_passport(x, np.ones((1, served.inputs[-1].shape[1]))),
        np.zeros((len(x), 4)),
        validation_data=([x, key], np.zeros((len(x), 4))),
        verbose=0,
    ),
    "evaluate": lambda served, x, key: served.evaluate([x, key], x, verbose=0),
    "train_on_batch": lambda served, x, key: served.train_on_batch([x, key], x),
    "with_passport": lambda served, x, key: kp.with_passport(x, key),
}


@pytest.mark.parametrize("route", ROUTES)
def test_no_message_shows_a_passport(route):
    served = kp.require_passport(kp.protect(plain_cnn()))
    served.compile("sgd", "mse", run_eagerly=True)
    x = np.ones((2, 8, 8, 3), "float32")
    key = np.full((1, served.inputs[-1].shape[1]), NUMBER, "float32")
    for name, wrong in wrong_passports(key).items():
        allowed = route == "with_passport" and name in (
            "list",
            "long",
            "short",
        )
        if allowed:
            continue
        with pytest.raises((ValueError, TypeError)) as caught:
            ROUTES[route](served, x, wrong)
        error = caught.value
        while error is not None:
            assert str(NUMBER)[:5] not in str(error), (name, error)
            error = error.__cause__ or error.__context__
    # Right ones, tensor or array, next to either.
    for one in (x, keras.ops.convert_to_tensor(x)):
        for right in (key, keras.ops.convert_to_tensor(key)):
            assert served([one, right]).shape == (2, 4)


def test_what_pack_returns_shows_nothing():
    model = kp.protect(plain_cnn())
    passport = kp.Passport.random_pattern(model)
    packed = passport.pack(kp.passport_spec(model))
    assert isinstance(packed, np.ndarray) and packed.dtype == "float32"
    some = f"{packed[0, 0]:.4f}"[:6]
    for text in (repr(packed), str(packed), f"{packed}", repr(packed[0])):
        assert some not in text
        assert str(packed.shape[1]) in text
    plain = np.asarray(packed)
    assert type(plain) is np.ndarray
    json.loads(json.dumps(packed.tolist()))
    np.testing.assert_array_equal(
        keras.ops.convert_to_numpy(keras.ops.convert_to_tensor(packed)), plain
    )


# What is refused.


def dense_model(name="inputs", layer_name="dense"):
    inputs = keras.Input((5,), name=name)
    x = layers.Dense(6, name=layer_name)(inputs)
    return keras.Model(inputs, layers.BatchNormalization(name="bn")(x))


def nested(model):
    inputs = keras.Input((5,))
    return keras.Model(inputs, model(inputs))


def dict_model():
    inputs = {"passport": keras.Input((5,), name="a")}
    x = layers.Dense(6, name="dense")(inputs["passport"])
    return keras.Model(inputs, layers.BatchNormalization(name="bn")(x))


@pytest.mark.parametrize(
    "base",
    (
        lambda: dense_model("passport"),
        lambda: dense_model(layer_name="passport"),
        lambda: nested(dense_model("passport")),
        dict_model,
    ),
)
@pytest.mark.filterwarnings("ignore:When providing")
def test_another_thing_called_passport(base):
    with pytest.raises(kp.PassportError, match="named 'passport'"):
        kp.require_passport(kp.protect(base()))


def test_a_model_that_requires_one_already():
    served = kp.require_passport(kp.protect(dense_model()))
    with pytest.raises(kp.PassportError, match="named 'passport'"):
        kp.require_passport(served)
    with pytest.raises(kp.PassportError, match="passport as an input"):
        kp.unlock(served, kp.Passport.random_pattern(served))


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__(name="mine")
        self.passported = kp.PassportNormalization(layers.Dense(4))

    def call(self, inputs):
        return self.passported(inputs)


def test_models_out_of_reach():
    for function in (kp.require_passport, kp.passport_spec):
        with pytest.raises(kp.PassportError, match="without any passport"):
            function(dense_model())
    subclassed = Subclassed()
    subclassed.passported.build((None, 5))
    with pytest.raises(kp.PassportError, match="Functional or Sequential"):
        kp.require_passport(subclassed)
    inputs = keras.Input((5,))
    model = keras.Model(inputs, Block(name="block")(inputs))
    for out_of_reach in (model, keras.Model(inputs, model(inputs))):
        with pytest.raises(kp.PassportError, match="inside another layer"):
            kp.require_passport(out_of_reach)


def test_rows_that_do_not_fit():
    _, served, key = bound_and_served(plain_cnn())
    x = inputs_of(served)[0]
    for wrong in (key[0], key[:, :0][:0], np.repeat(key, 3, 0)):
        with pytest.raises(kp.PassportError, match=r"\(1 or 4, K\)"):
            kp.with_passport(x, wrong)
    with pytest.raises(ValueError, match="passport|shape"):
        served([x, key[:, 1:]])


# Mistakes in a spec, by what to do to it, and what the error says.
MISTAKES = {
    "function": (lambda s: s.update(function="V1"), "V1"),
    "version": (lambda s: s.update(version=SPEC_VERSION + 1), "version"),
    "no version": (lambda s: s.pop("version"), "KeyError"),
    "missing layer": (lambda s: s["layers"].pop(), "unknown"),
    "another layer": (
        lambda s: s["layers"][0].update(path="other"),
        "missing: other",
    ),
    "architecture": (
        lambda s: s["layers"][0]["geometry"].update(strides=[2, 2]),
        "geometry",
    ),
    "not a geometry": (
        lambda s: s["layers"][0]["geometry"].update(channels="3"),
        "kernel layer",
    ),
    "no geometry": (lambda s: s["layers"][0].update(geometry=7), "spec"),
    "NaN size": (lambda s: s.update(size=float("nan")), "nan"),
    "infinite size": (lambda s: s.update(size=float("inf")), "inf"),
    "huge size": (lambda s: s.update(size=10**15), "size"),
    "NaN offset": (
        lambda s: s["layers"][1].update(offset=float("nan")),
        "offsets",
    ),
    "offset": (lambda s: s["layers"][1].update(offset=3), "offsets"),
    "order": (lambda s: s["layers"].reverse(), "offsets"),
    "no layers": (lambda s: s.update(layers=None), "TypeError"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_in_a_spec(mistake, tmp_path):
    model = kp.protect(plain_cnn())
    passport = kp.Passport.random_pattern(model)
    change, expected = MISTAKES[mistake]
    spec = json.loads(json.dumps(kp.passport_spec(model)))
    np.testing.assert_array_equal(passport.pack(spec), passport.packed())
    change(spec)
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    for given in (spec, tmp_path / "spec.json", str(tmp_path / "spec.json")):
        with pytest.raises(kp.PassportError, match=expected):
            passport.pack(given)


@pytest.mark.parametrize(
    "content", ("", "{", "[]", "7", "null", '"text"', "\x00", "{}")
)
def test_what_is_no_spec(content, tmp_path):
    passport = kp.Passport.random_pattern(kp.protect(plain_cnn()))
    (tmp_path / "spec.json").write_text(content)
    with pytest.raises(kp.PassportError, match="spec"):
        passport.pack(tmp_path / "spec.json")
    for missing in (tmp_path, tmp_path / "none", "x" * 5000, "\x00"):
        with pytest.raises(kp.PassportError, match="spec"):
            passport.pack(missing)


def test_a_spec_holds_no_secret():
    bound, _, key = bound_and_served(plain_cnn())
    unbound = kp.protect(plain_cnn())
    assert kp.passport_spec(bound) == kp.passport_spec(unbound)


@pytest.mark.parametrize("make", [multi_input_model, nested_inputs_model])
@pytest.mark.parametrize("trained", [True, False])
def test_one_row_serves_all_batches(make, trained, monkeypatch):
    """It is not repeated for all examples: some would not fit into memory."""
    base = randomize(make())
    if trained:
        model, passport = kp.protect_trained(base)
    else:
        model = kp.protect(base)
        passport = kp.Passport.random_pattern(model, seed=0)
        kp.bind(model, passport)
    served = kp.require_passport(model)
    x = inputs_of(model, count=37)
    key = passport.pack(kp.passport_spec(served))
    given, rows = kp.with_passport(x, key), []
    take = one_row._Batches.__getitem__

    def taken(batches, index):
        batch = take(batches, index)
        rows.append(
            len(
                served._passport_in(
                    keras.tree.map_structure(np.asarray, batch[0])
                )
            )
        )
        return batch

    monkeypatch.setattr(one_row._Batches, "__getitem__", taken)
    expected = model.predict(x, verbose=0)
    for options in ({}, {"batch_size": 10}, {"batch_size": 100}):
        rows.clear()
        outputs = served.predict(given, verbose=0, **options)
        for one, other in zip(
            *map(keras.tree.flatten, (outputs, expected)), strict=True
        ):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
        assert set(rows) == {1}
    targets = keras.tree.map_structure(np.zeros_like, expected)
    weights = np.linspace(0.0, 1.0, 37).astype("float32")
    for one in (model, served):
        one.compile(loss="mse")
    said = [
        one.evaluate(
            *(inputs, targets),
            sample_weight=weights,
            batch_size=16,
            verbose=0,
            return_dict=True,
        )
        for one, inputs in ((model, x), (served, given))
    ]
    assert said[1] == pytest.approx(said[0], rel=1e-4)
    # A row for each example stays one.
    rows.clear()
    each = kp.with_passport(x, np.repeat(key, 37, axis=0))
    if not trained:
        again = served.predict(each, verbose=0)
        for one, other in zip(
            *map(keras.tree.flatten, (again, expected)), strict=True
        ):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    assert not rows
