"""Exported signatures, whatever goes in and out, against Keras's exports.

The truth is what `model.export` makes of the stock model whose γ and β were
overwritten: the names, the order, the dtypes and the values.
"""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_passport as kp
from support.marks import marked, needs_keras
from support.plain_models import inputs_of
from support.protected_models import lock

pytestmark = [
    pytest.mark.skipif(
        keras.backend.backend() != "tensorflow", reason="TensorFlow's own"
    ),
    pytest.mark.filterwarnings("ignore:When providing"),
]


def vector(name=None, **options):
    return keras.Input((4,), name=name, **options)


def body(x, units=6):
    return layers.BatchNormalization()(layers.Dense(units)(x))


def of_outputs(make):
    """A model of one vector whose outputs are made of a normalised one."""

    def build():
        inputs = vector("vector")
        return keras.Model(inputs, make(body(inputs)))

    return build


class Both(layers.Layer):
    def call(self, x):
        return x + 1, x * 2


class Maybe(layers.Layer):
    def call(self, x, other=None):
        return x if other is None else x + other


def heads(structure):
    features = keras.Input((6,))
    outputs = layers.Dense(2)(features), layers.Dense(3)(features)
    if structure is dict:
        outputs = {"z": outputs[0], "b": outputs[1]}
    return keras.Model(features, outputs, name="heads")


def several(x):
    """Layers with several outputs or calls, and an output given out twice."""
    head = layers.Dense(2, name="head")
    return [
        *ops.split(x, 3, axis=-1),
        x,
        *ops.top_k(x, 2),
        *Both()(x),
        *heads(list)(x),
        head(x),
        head(-x),
        x,
    ]


def lstm():
    inputs = keras.Input((5, 4), name="steps")
    lstm = layers.LSTM(3, return_state=True, return_sequences=True)
    return keras.Model(inputs, lstm(body(inputs)))


def siamese():
    inputs = [vector("left"), vector("right")]
    tower = keras.Sequential(
        [vector(), layers.Dense(6), layers.BatchNormalization()], name="tower"
    )
    return keras.Model(inputs, [tower(one) for one in inputs])


def dict_inputs():
    inputs = {"b": vector("b"), "a": vector("a")}
    return keras.Model(inputs, body(inputs["a"] + 2 * inputs["b"]))


def dict_inputs_of_other_names():
    inputs = {"k b": vector("x"), "a": vector("y")}
    return keras.Model(inputs, body(inputs["a"] + 2 * inputs["k b"]))


def nested_inputs():
    inputs = [vector("p"), (vector("q"), vector("o"))]
    return keras.Model(
        inputs, body(inputs[0] + 2 * inputs[1][0] + 3 * inputs[1][1])
    )


def sanitised_inputs():
    inputs = [vector("my-image.v1"), vector("2nd-Thing"), vector("UPPER")]
    return keras.Model(inputs, body(inputs[0] + 2 * inputs[1] + inputs[2]))


def optional_input():
    inputs = [vector("given"), vector("perhaps", optional=True)]
    return keras.Model(inputs, body(Maybe()(*inputs)))


def dtypes():
    inputs = [
        vector("floats"),
        keras.Input((1,), dtype="int32", name="ints"),
        keras.Input((1,), dtype="bool", name="flags"),
        keras.Input((1,), dtype="string", name="words"),
    ]
    x = body(sum(ops.cast(x, "float32") for x in inputs[:3]))
    words = layers.StringLookup(vocabulary=["a", "b"])(inputs[3])
    outputs = {
        "half": ops.cast(x, "float16"),
        "best": ops.argmax(x, -1),
        "flags": x > 0,
        "words": words,
    }
    return keras.Model(inputs, outputs)


def sequential():
    return keras.Sequential([vector(), layers.Dense(6), batch_norm()])


def unnamed_sequential():
    model = keras.Sequential([layers.Dense(6), batch_norm()])
    model.build((None, 4))
    return model


def batch_norm():
    return layers.BatchNormalization()


def list_of_one():
    inputs = vector()
    return keras.Model([inputs], [body(inputs)])


# Layers with state that is no weight of Keras's.


def stateful(cell):
    inputs = keras.Input(batch_shape=(2, 5, 4), name="steps")
    return keras.Model(inputs, cell(body(inputs)))


def adapted(layer, data):
    layer.adapt(data)
    return layer


def words():
    inputs = keras.Input((1,), dtype="string", name="words")
    text = layers.TextVectorization(output_sequence_length=4)
    adapted(text, ["a b c", "b d"])
    known = layers.StringLookup(vocabulary=["a", "b"], output_mode="one_hot")
    x = [
        known(inputs),
        layers.Hashing(5, output_mode="one_hot")(inputs),
        layers.Flatten()(layers.Embedding(8, 3)(text(inputs))),
    ]
    x = [ops.cast(one, "float32") for one in x]
    return keras.Model(inputs, body(layers.Concatenate()(x)))


def numbers():
    rng = np.random.default_rng(0)
    ints = keras.Input((1,), dtype="int64", name="ints")
    floats = vector("floats")
    known = adapted(layers.IntegerLookup(output_mode="one_hot"), [1, 5, 7])
    bins = adapted(
        layers.Discretization(num_bins=4), np.linspace(-2, 2, 40)[:, None]
    )
    scale = adapted(layers.Normalization(), rng.normal(3, 2, (50, 4)))
    x = [known(ints), bins(floats), scale(floats)]
    x = [ops.cast(one, "float32") for one in x]
    return keras.Model([ints, floats], body(layers.Concatenate()(x)))


STRUCTURES = {
    "one": of_outputs(lambda x: x),
    "several": of_outputs(several),
    "dict": of_outputs(lambda x: {"zz": layers.Dense(2)(x), "aa": x, "p": x}),
    "heads in a dict": of_outputs(lambda x: heads(dict)(x)),
    "tuple": of_outputs(lambda x: (x, layers.Dense(2)(x))),
    "lstm": lstm,
    "siamese": siamese,
    "dict inputs": dict_inputs,
    "dict inputs of other names": dict_inputs_of_other_names,
    "nested inputs": nested_inputs,
    "sanitised inputs": sanitised_inputs,
    "optional input": optional_input,
    "dtypes": dtypes,
    "sequential": sequential,
    "unnamed sequential": unnamed_sequential,
    "list of one": list_of_one,
    "stateful lstm": lambda: stateful(layers.LSTM(3, stateful=True)),
    "words": words,
    "numbers": numbers,
}
LATER = {"stateful lstm": needs_keras("3.14", "Keras fails to export it")}


def example(spec, rng):
    """Two examples for an input of a signature."""
    shape = tuple(n or 2 for n in spec.shape)
    dtype = spec.dtype.name
    if dtype == "string":
        return rng.choice(["a", "b d", "else"], shape).astype("O")
    if dtype == "bool":
        return rng.random(shape) > 0.5
    if dtype.startswith("int"):
        return rng.integers(0, 9, shape).astype(dtype)
    return rng.normal(size=shape).astype(dtype)


def described(specs):
    return {
        name: (tuple(spec.shape), spec.dtype.name)
        for name, spec in specs.items()
    }


def signature(folder):
    import tensorflow as tf

    loaded = tf.saved_model.load(str(folder))
    function = loaded.signatures["serving_default"]
    function.keep = loaded
    return function


def assert_equal(received, expected, tolerance=1e-4):
    assert list(received) == list(expected)
    for name, value in expected.items():
        one, other = np.asarray(received[name]), np.asarray(value)
        assert one.dtype == other.dtype, name
        if one.dtype.kind == "f":
            size = np.abs(other.astype("float64")).max()
            if one.dtype == "float16":
                tolerance = 1e-2
            np.testing.assert_allclose(one, other, tolerance, tolerance * size)
        else:
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", marked(STRUCTURES, LATER))
def test_saved_models(name, tmp_path):
    import tensorflow as tf

    model, passport, truth = lock(STRUCTURES[name]())
    truth.export(tmp_path / "truth", verbose=False)
    kp.export_saved_model(model, tmp_path / "served")
    expected = signature(tmp_path / "truth")
    received = signature(tmp_path / "served")
    inputs = expected.structured_input_signature[1]
    own = dict(received.structured_input_signature[1])
    key = passport.pack(tmp_path / "served")
    assert described({"passport": own.pop("passport")}) == {
        "passport": ((None, key.shape[1]), "float32")
    }
    assert described(own) == described(inputs)
    assert described(received.structured_outputs) == described(
        expected.structured_outputs
    )
    rng = np.random.default_rng(0)
    given = {
        name: tf.constant(example(spec, rng)) for name, spec in inputs.items()
    }
    for _ in range(2):  # The second time, states have gone on.
        assert_equal(
            dict(sorted(received(**given, passport=key).items())),
            dict(sorted(expected(**given).items())),
        )


@pytest.mark.parametrize(
    "structure, names",
    (
        (lambda x: [x, {"k": x, "j": (x, x)}], [f"output_{i}" for i in "0123"]),
        (lambda x: {"k": [x, x], "j": x}, ["j", "k_0", "k_1"]),
    ),
)
def test_nested_outputs(structure, names, tmp_path):
    """Keras refuses them."""
    model, passport, truth = lock(of_outputs(structure)())
    kp.export_saved_model(model, tmp_path / "served")
    x = np.random.default_rng(0).normal(size=(2, 4)).astype("float32")
    received = signature(tmp_path / "served")(
        vector=x, passport=passport.pack(tmp_path / "served")
    )
    assert sorted(received) == names
    for value in received.values():
        expected = keras.tree.flatten(truth(x, training=False))[0]
        np.testing.assert_allclose(value, expected, 1e-4, 1e-4)


@pytest.mark.parametrize("name", ("several", "dict", "sanitised inputs"))
def test_onnx(name, tmp_path):
    pytest.importorskip("tf2onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    model, passport, truth = lock(STRUCTURES[name]())
    truth(inputs_of(truth))  # Keras wants it.
    truth.export(tmp_path / "truth.onnx", format="onnx", verbose=False)
    kp.export_onnx(model, tmp_path / "served.onnx")
    expected, received = (
        onnxruntime.InferenceSession(str(tmp_path / f"{file}.onnx"))
        for file in ("truth", "served")
    )

    def listed(items):
        return [(item.name, item.type) for item in items]

    own = listed(received.get_inputs())
    own.remove(("passport", "tensor(float)"))
    assert own == listed(expected.get_inputs())
    names = listed(received.get_outputs())
    assert names == listed(expected.get_outputs())
    rng = np.random.default_rng(0)
    given = {
        item.name: rng.normal(size=(2, *item.shape[1:])).astype("float32")
        for item in expected.get_inputs()
    }
    key = passport.pack(kp.passport_spec(model))
    names = [name for name, _ in names]
    assert_equal(
        dict(
            zip(
                names,
                received.run(None, {**given, "passport": key}),
                strict=True,
            )
        ),
        dict(zip(names, expected.run(None, given), strict=True)),
    )


@pytest.mark.parametrize("name", ("several", "siamese"))
def test_litert(name, tmp_path):
    litert = pytest.importorskip("ai_edge_litert.interpreter")
    model, passport, truth = lock(STRUCTURES[name]())
    path = str(tmp_path / "truth.tflite")  # Text, before Keras 3.15.
    truth.export(path, format="litert", verbose=False)
    kp.export_litert(model, tmp_path / "served.tflite")
    expected, received = (
        litert.Interpreter(
            str(tmp_path / f"{file}.tflite")
        ).get_signature_runner()
        for file in ("truth", "served")
    )
    own = set(received.get_input_details()) - {"passport"}
    assert own == set(expected.get_input_details())
    rng = np.random.default_rng(0)
    given = {
        name: rng.normal(size=(1, 4)).astype("float32") for name in sorted(own)
    }
    key = passport.pack(kp.passport_spec(model))
    assert_equal(
        dict(sorted(received(**given, passport=key).items())),
        dict(sorted(expected(**given).items())),
    )


# What stands in front of a model may hold tables of its own.


def table(mutable=False):
    import tensorflow as tf

    words, values = tf.constant(["a", "b"]), tf.constant([1.0, 2.0])
    if mutable:
        made = tf.lookup.experimental.MutableHashTable(
            tf.string, tf.float32, 0.0
        )
        made.insert(words, values)
        return made
    initializer = tf.lookup.KeyValueTensorInitializer(words, values)
    return tf.lookup.StaticHashTable(initializer, 0.0)


def a_function(folder):
    import tensorflow as tf

    held = [table(), table(mutable=True)]

    def look(words):
        both = held[0].lookup(words) + held[1].lookup(words)
        return tf.ensure_shape(both, (None, 4))

    return look


def a_traced_function(folder):
    import tensorflow as tf

    return tf.function(a_function(folder))


def a_module(folder):
    import tensorflow as tf

    class Module(tf.Module):
        def __init__(self):
            super().__init__()
            self.kept = {"table": table(), "constant": tf.constant([3.0])}
            self.factor = tf.Variable(2.0)

        def __call__(self, words):
            found = self.kept["table"].lookup(words)
            return found * self.factor + self.kept["constant"]

    return Module()


def a_loaded_module(folder):
    import tensorflow as tf

    module = tf.Module()
    module.table = table()
    module.look = tf.function(
        module.table.lookup, [tf.TensorSpec((None, 4), "string")]
    )
    tf.saved_model.save(module, str(folder / "module"))
    loaded = tf.saved_model.load(str(folder / "module"))
    return lambda words: loaded.look(words)


def a_layer(folder):
    class Look(layers.Layer):
        def __init__(self):
            super().__init__()
            self.tables = [table()]

        def call(self, words):
            return self.tables[0].lookup(words)

    return Look()


def an_adapted_layer(folder):
    layer = layers.StringLookup(
        output_mode="multi_hot", max_tokens=4, pad_to_max_tokens=True
    )
    return adapted(layer, ["a", "b", "c"])


def a_model(folder):
    words = keras.Input((4,), dtype="string")
    found = an_adapted_layer(folder)(words)
    return keras.Model(words, layers.Dense(4)(ops.cast(found, "float32")))


@pytest.mark.parametrize(
    "front",
    (
        a_function,
        a_traced_function,
        a_module,
        a_loaded_module,
        a_layer,
        an_adapted_layer,
        a_model,
    ),
)
def test_tables_in_front(front, tmp_path):
    import tensorflow as tf

    model, passport, truth = lock(STRUCTURES["one"]())
    front = front(tmp_path)
    kp.export_saved_model(
        model, tmp_path / "served", preprocessing=front, input_dtype="string"
    )
    words = tf.constant([["a"] * 4, ["b", "a", "c", "d"], ["none"] * 4])
    expected = truth(tf.cast(front(words), "float32"), training=False)
    assert np.abs(expected[0] - expected[1]).max() > 1e-2
    received = signature(tmp_path / "served")(
        vector=words, passport=passport.pack(tmp_path / "served")
    )
    np.testing.assert_allclose(received["output_0"], expected, 1e-4, 1e-4)


def test_a_layer_in_front_does_not_augment(tmp_path):
    images = keras.Input((6, 6, 3), name="images")
    x = layers.BatchNormalization()(layers.Conv2D(4, 3)(images))
    model, passport, truth = lock(keras.Model(images, x))
    kp.export_saved_model(
        model,
        tmp_path / "served",
        preprocessing=keras.Sequential([layers.RandomFlip()]),
    )
    x = np.random.default_rng(0).normal(size=(8, 6, 6, 3)).astype("float32")
    received = signature(tmp_path / "served")(
        images=x, passport=passport.pack(tmp_path / "served")
    )
    expected = truth(x, training=False)
    np.testing.assert_allclose(received["output_0"], expected, 1e-3, 1e-3)
