"""What is given for a packed passport, of every kind, at every entry.

A passport in another kind of float gives the model's own outputs; all that is
no passport is refused before anything runs, with what was expected.
"""

import importlib.util
import warnings

import keras
import numpy as np
import pytest

import keras_passport as kp
from keras_passport.models.binding import keyed_function
from support.plain_models import inputs_of, plain_cnn, randomize

COUNT = 4


def with_value(key, value):
    key = np.array(key)
    key[0, 3] = value
    return key


# What is the same passport, and how far outputs may be from its own.
TAKEN = {
    "float32": (lambda key: key, 1e-5),
    "float64": (lambda key: key.astype("float64"), 1e-5),
    "one per example": (lambda key: np.repeat(key, COUNT, 0), 1e-4),
}
HALVES = {
    "float16": lambda key: key.astype("float16"),
    "bfloat16": lambda key: keras.ops.cast(key, "bfloat16"),
}
REFUSED = {
    "int32": lambda key: key.astype("int32"),
    "int64": lambda key: key.astype("int64"),
    "uint8": lambda key: np.abs(key).astype("uint8"),
    "bool": lambda key: key.astype(bool),
    "complex64": lambda key: key.astype("complex64"),
    "one number": lambda key: key[0, 0],
    "one axis": lambda key: key[0],
    "three axes": lambda key: key[None],
    "too short": lambda key: key[:, 1:],
    "too long": lambda key: np.pad(key, ((0, 0), (0, 1))),
    "no rows": lambda key: key[:0],
    "no columns": lambda key: key[:, :0],
    "NaN": lambda key: with_value(key, np.nan),
    "infinity": lambda key: with_value(key, np.inf),
    "too large": lambda key: with_value(key.astype("float64"), -1e39),
}
# What has no tensor, too.
REFUSED_ARRAYS = {
    "objects": lambda key: key.astype(object),
    "strings": lambda key: key.astype(str),
    "text": lambda key: str(key),
    **REFUSED,
}


def rows(key):
    return np.repeat(key, COUNT, 0) if np.shape(key)[:1] == (1,) else key


def presented(case, key):
    with kp.presented(case.model, key):
        return case.model(case.x, training=False)


def first_layer(case, key):
    """The first layer alone, for whose outputs there is the bound one's."""
    part = key
    if getattr(key, "ndim", 0) == 2 and key.shape[1] >= case.size:
        longer = key.shape[1] - case.size
        part = key[:, : case.layer.passport_size + longer]
    elif getattr(key, "ndim", 0) == 2:
        part = key[:, : case.layer.passport_size - 1]
    return case.layer(case.x, passport=part)


ENTRIES = {
    "call": lambda case, key: case.served([case.x, key]),
    "keyword": lambda case, key: case.served(inputs=[case.x, key]),
    "predict": lambda case, key: case.served.predict(
        [case.x, rows(key)], verbose=0
    ),
    "predict_on_batch": lambda case, key: case.served.predict_on_batch(
        [case.x, rows(key)]
    ),
    "with_passport": lambda case, key: case.served.predict(
        kp.with_passport(case.x, key), verbose=0
    ),
    "presented": presented,
    "keyed_function": lambda case, key: keyed_function(case.model)(key, case.x),
    "layer": first_layer,
}
# What takes no tensors.
ARRAYS_ONLY = ("predict", "predict_on_batch", "with_passport")


class Case:
    def __init__(self, ordered):
        base = randomize(plain_cnn())
        if ordered:
            self.model, self.passport = kp.protect_trained(base)
        else:
            self.model = kp.protect(base)
            self.passport = kp.Passport.random_pattern(self.model)
        self.served = kp.require_passport(self.model)
        key = self.passport.pack(kp.passport_spec(self.model))
        self.key = np.asarray(key)
        self.size = self.key.shape[1]
        self.x = inputs_of(base, COUNT)
        kp.bind(self.model, self.passport)
        self.expected = self.model(self.x, training=False)
        self.layer = next(iter(kp.protected_layers(self.model).values()))
        self.of_layer = self.layer(self.x, training=False)
        kp.unbind(self.model)

    def assert_right(self, entry, outputs, tolerance):
        expected = self.of_layer if entry == "layer" else self.expected
        np.testing.assert_allclose(
            keras.ops.convert_to_numpy(outputs),
            keras.ops.convert_to_numpy(expected),
            atol=tolerance * float(keras.ops.max(keras.ops.abs(expected))),
        )


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "ordered"])
def case(request):
    return Case(request.param)


def as_array(key):
    return key


def as_tensor(key):
    return keras.ops.convert_to_tensor(key)


@pytest.mark.parametrize("form", [as_array, as_tensor])
@pytest.mark.parametrize("entry", ENTRIES)
def test_the_same_passport_is_taken(entry, form, case):
    if form is as_tensor and entry in ARRAYS_ONLY:
        return
    for make, tolerance in TAKEN.values():
        outputs = ENTRIES[entry](case, form(make(case.key)))
        case.assert_right(entry, outputs, tolerance)


@pytest.mark.parametrize("form", [as_array, as_tensor])
@pytest.mark.parametrize("entry", ENTRIES)
def test_what_is_no_passport_is_refused(entry, form, case):
    if form is as_tensor and entry in ARRAYS_ONLY:
        return
    for name, make in (
        REFUSED if form is as_tensor else REFUSED_ARRAYS
    ).items():
        wrong = form(make(case.key))
        with pytest.raises(kp.PassportError) as caught:
            ENTRIES[entry](case, wrong)
        text = str(caught.value)
        assert "Expected" in text and "Received: " in text, (name, text)
        assert f"{case.key[0, 0]:.4f}"[:6] not in text, name


@pytest.mark.parametrize("entry", sorted(set(ENTRIES) - {*ARRAYS_ONLY}))
def test_halves_are_taken_where_no_rows_are_counted(entry, case):
    """They round keys; an order of rows they would make another one."""
    for make in HALVES.values():
        half = make(case.key)
        with (
            warnings.catch_warnings(action="error", category=RuntimeWarning),
            pytest.raises(kp.PassportError, match="Received: "),
        ):
            ENTRIES[entry](case, make(with_value(case.key, np.nan)))
        if case.layer.ordered:
            with pytest.raises(kp.PassportError, match="Expected.*float32"):
                ENTRIES[entry](case, half)
        else:
            case.assert_right(entry, ENTRIES[entry](case, half), 5e-2)


class Foreign:
    """An array of another library's, such as HDF5's or another backend's."""

    def __init__(self, key):
        self.shape, self.dtype, self.ndim = key.shape, key.dtype, key.ndim
        self._key = key

    def __array__(self, dtype=None, copy=None):
        return self._key

    def __getitem__(self, part):
        return Foreign(self._key[part])


def test_arrays_of_other_libraries(case):
    case.assert_right("presented", presented(case, Foreign(case.key)), 1e-5)
    for entry in ("presented", "layer"):
        with pytest.raises(kp.PassportError, match="finite.*Received: NaN"):
            ENTRIES[entry](case, Foreign(with_value(case.key, np.nan)))


@pytest.mark.parametrize("entry", ["call", "presented", "layer"])
def test_variables_have_no_values_while_a_function_is_traced(entry, case):
    """They are read whenever it runs, as a plain model's inputs are."""
    if keras.backend.backend() != "tensorflow":
        pytest.skip("JAX has no variables")
    import tensorflow as tf

    key = rows(case.key)
    if entry == "layer":
        key = key[:, : case.layer.passport_size]
    for kind in (tf.Variable, keras.Variable):
        variable = kind(key)
        run = {
            "call": lambda v=variable: case.served([case.x, v]),
            "presented": lambda v=variable: presented(case, v),
            "layer": lambda v=variable: case.layer(case.x, passport=v),
        }[entry]
        traced = tf.function(run)
        case.assert_right(entry, traced(), 1e-4)
        variable.assign(-key)
        np.testing.assert_allclose(traced(), run(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("entry", ["call", "presented", "keyed_function"])
def test_rows_are_one_or_one_per_example(entry, case):
    if case.layer.ordered:
        pytest.skip("equal ones are one")
    for count in (2, COUNT + 1):
        with pytest.raises(kp.PassportError, match="one per example.*Received"):
            ENTRIES[entry](case, np.repeat(case.key, count, 0))


def test_hidden_parameters_and_unbuilt_layers(case):
    size = case.layer.passport_size
    for name, make in REFUSED_ARRAYS.items():
        wrong = make(case.key[:, :size])
        with pytest.raises(kp.PassportError, match=r"Expected.*Received: "):
            case.layer.hidden_parameters(wrong)
        if name == "too long":
            continue
        layer = kp.PassportNormalization(keras.layers.Dense(4))
        with pytest.raises(kp.PassportError, match=r"Expected.*Received: "):
            layer(np.ones((2, 3), "float32"), passport=make(np.ones((1, 6))))


EXPORTS = {
    "saved_model": (kp.export_saved_model, "served"),
    "litert": (kp.export_litert, "served.tflite"),
    "onnx": (kp.export_onnx, "served.onnx"),
}
RUNTIMES = {"litert": "ai_edge_litert", "onnx": "onnxruntime"}


def runner(kind, path):
    """Function of inputs, as those who have the file alone run it."""
    if kind == "saved_model":
        import tensorflow as tf

        module = tf.saved_model.load(path)
        signature = module.signatures["serving_default"]
        return lambda x, key: signature(
            images=tf.constant(x), passport=tf.constant(key)
        )["output_0"]
    if kind == "litert":
        from ai_edge_litert.interpreter import Interpreter

        def run(x, key):
            signature = Interpreter(path).get_signature_runner()
            return next(iter(signature(images=x, passport=key).values()))

        return run
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    return lambda x, key: session.run(None, {"images": x, "passport": key})[0]


@pytest.mark.parametrize("kind", EXPORTS)
def test_exported_signatures_take_nothing_else(kind, case, tmp_path):
    if keras.backend.backend() != "tensorflow":
        pytest.skip("exports are TensorFlow's")
    # An order of rows is more than a signature without one.
    if kind != "saved_model" and not case.layer.ordered:
        return
    module = RUNTIMES.get(kind)
    if module and importlib.util.find_spec(module) is None:
        pytest.skip(f"needs {module}")
    export, name = EXPORTS[kind]
    export(case.served, tmp_path / name)
    run = runner(kind, str(tmp_path / name))
    case.assert_right(kind, run(case.x, case.key), 1e-4)
    # Numbers that are none are a passport's like any others there.
    for name in set(REFUSED) - {"NaN", "infinity"}:
        with pytest.raises(Exception) as caught:  # noqa: PT011 each its own
            run(case.x, REFUSED[name](case.key))
        assert f"{case.key[0, 0]:.4f}"[:6] not in str(caught.value)


@pytest.mark.parametrize("activation", ["relu", "relu6"])
@pytest.mark.parametrize("way", ["predict", "saved_model"])
def test_no_number_is_made_of_several_passports(way, activation, tmp_path):
    """A rectifier that is fused with a bias makes 0 of NaN, a maximum -inf."""
    if way == "saved_model" and keras.backend.backend() != "tensorflow":
        pytest.skip("`export_saved_model` is TensorFlow's.")
    inputs = x = keras.Input((12, 12, 3), name="pictures")
    for name in ("first", "second"):
        x = keras.layers.Conv2D(8, 3, padding="same", name=name)(x)
        x = keras.layers.Activation(activation)(x)
        x = keras.layers.MaxPooling2D()(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    labels = keras.layers.Lambda(lambda x: keras.ops.argmax(x, axis=-1))
    scores = keras.layers.Dense(4, name="head")(x)
    base = keras.Model(inputs, [scores, labels(scores)])
    model, passport = kp.protect_trained(base, select=["first", "second"])
    served = kp.require_passport(kp.public(model))
    one = passport.pack(kp.passport_spec(served))
    pictures = np.random.default_rng(0).random((4, 12, 12, 3), "float32")
    if way == "predict":

        def serve(packed):
            given = kp.with_passport(pictures, packed)
            return served.predict(given, verbose=0)
    else:
        import tensorflow as tf

        kp.export_saved_model(model, tmp_path / "1")
        loaded = tf.saved_model.load(tmp_path / "1")
        signature = loaded.signatures["serving_default"]

        def serve(packed):
            outputs = signature(
                pictures=tf.constant(pictures), passport=tf.constant(packed)
            )
            return [outputs[name].numpy() for name in sorted(outputs)]

    expected = base.predict(pictures, verbose=0)
    for packed in (one, np.concatenate([one] * 4)):
        for output, right in zip(serve(packed), expected, strict=True):
            np.testing.assert_allclose(output, right, rtol=1e-4, atol=1e-5)
    mixed = np.concatenate([one, one, -one, one])
    if way == "saved_model":  # Nobody there can say so.
        assert np.all(np.isnan(serve(mixed)[0]))
    else:
        with pytest.raises(kp.PassportError, match="several passports"):
            serve(mixed)
        with (
            pytest.raises(kp.PassportError, match="several passports"),
            kp.presented(model, mixed),
        ):
            pass
