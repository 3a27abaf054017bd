"""A training's first step is traced once, and is the same training."""

import keras
import numpy as np
import pytest

import keras_passport as kp
from keras_passport.models import compiling

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="TensorFlow's tracing"
)

X = np.random.default_rng(0).normal(size=(24, 6, 6, 2)).astype("float32")
Y = np.arange(24) % 3


class Counting(keras.layers.Layer):
    """Counts how often it is traced, and how often in a step that trains."""

    called = traced = 0

    def call(self, inputs, training=False):
        self.called += 1
        self.traced += bool(training)
        return inputs


def made(run_eagerly=False):
    """A protected network with dropout, whose draws show in the losses."""
    keras.utils.set_random_seed(3)
    inputs = keras.Input((6, 6, 2))
    x = keras.layers.Conv2D(4, 3, name="conv")(inputs)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.Dropout(0.3, seed=5)(keras.layers.ReLU()(x))
    x = Counting(name="counting")(keras.layers.Flatten()(x))
    model = kp.protect(keras.Model(inputs, keras.layers.Dense(3)(x)))
    kp.bind(model, kp.Passport.random_pattern(model, seed=1))
    kp.calibrate(model, signs=lambda path, count: np.ones(count))
    model.compile(
        keras.optimizers.Adam(0.01),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        run_eagerly=run_eagerly,
    )
    return model


def by_keras(model, *args, **options):
    """As Keras alone does it: what a callback may change is not known."""
    nothing = keras.callbacks.Callback()
    return model.fit(*args, callbacks=[nothing], **options)


GIVEN = {
    "arrays": lambda fit, model: fit(model, X, Y, 8, 2, 0, shuffle=False),
    "keywords": lambda fit, model: fit(
        model, x=X, y=Y, batch_size=8, epochs=2, verbose=0, shuffle=False
    ),
}


def dataset(fit, model):
    import tensorflow as tf

    batches = tf.data.Dataset.from_tensor_slices((X, Y)).batch(8)
    return fit(model, batches, epochs=2, verbose=0)


GIVEN["dataset"] = dataset


@pytest.mark.parametrize("given", GIVEN.values(), ids=GIVEN)
def test_fit_is_that_of_keras(given):
    model, other = made(), made()
    received = given(lambda model, *a, **k: model.fit(*a, **k), model)
    expected = given(by_keras, other)
    assert received.history == expected.history
    for one, its in zip(model.weights, other.weights, strict=True):
        np.testing.assert_array_equal(one, its)
    traced = [one.get_layer("counting").traced for one in (model, other)]
    assert traced == [1, 2]


def head(inputs, outputs, compiled):
    """A function that makes a small protected network of a kind."""

    def make():
        keras.utils.set_random_seed(3)
        tensors = inputs()
        x = keras.layers.Conv2D(4, 3, name="conv")(
            keras.tree.flatten(tensors)[0]
        )
        x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
        x = keras.layers.GlobalAveragePooling2D()(Counting(name="counting")(x))
        model = kp.protect(keras.Model(tensors, outputs(x)))
        passport = kp.Passport.random_pattern(
            model, seed=1, spatial_size=(6, 6)
        )
        kp.bind(model, passport)
        model.compile("adam", **compiled)
        return model

    return make


ONE = {
    "loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    "metrics": ["accuracy"],
}


def one(x):
    return keras.layers.Dense(3)(x)


def two(x):
    return {
        "class": keras.layers.Dense(3, name="class")(x),
        "size": keras.layers.Dense(1, name="size")(x),
    }


KINDS = {
    "plain": (lambda: keras.Input((6, 6, 2)), one, ONE, X, Y),
    "any size": (lambda: keras.Input((None, None, 2)), one, ONE, X, Y),
    "fixed batch": (
        lambda: keras.Input(batch_shape=(8, 6, 6, 2)),
        *(one, ONE, X, Y),
    ),
    "dicts": (
        lambda: {"picture": keras.Input((6, 6, 2), name="picture")},
        two,
        {
            "loss": {"class": ONE["loss"], "size": "mse"},
            "metrics": {"class": ["accuracy"], "size": ["mae"]},
        },
        {"picture": X},
        {"class": Y, "size": X.sum((1, 2, 3))},
    ),
    # "accuracy" is another one where there is one output.
    "binary": (
        lambda: keras.Input((6, 6, 2)),
        lambda x: keras.layers.Dense(1, activation="sigmoid")(x),
        {"loss": "binary_crossentropy", "metrics": ["accuracy"]},
        *(X, Y % 2),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_graph_is_not_run_to_know_its_outputs(kind):
    *parts, x, y = KINDS[kind]
    make = head(*parts)
    model, other = make(), make()
    before = model.get_layer("counting").called
    compiling.build_ahead(model, x, y)
    # What is not known is computed.
    is_run = model.get_layer("counting").called > before
    assert is_run == (kind == "any size")
    assert model.optimizer.built and model._compile_metrics.built
    options = {"batch_size": 8, "epochs": 2, "verbose": 0, "shuffle": False}
    received = model.fit(x, y, **options)
    assert received.history == by_keras(other, x, y, **options).history
    assert model.get_layer("counting").traced == 1


def test_an_attackers_copy_is_not_run_either(monkeypatch):
    opened = kp.attacks.Opened(made())
    opened.compile("adam", **ONE)
    opened(X)
    monkeypatch.setattr(keras.Model, "_symbolic_build", None)
    compiling.build_ahead(opened, X, Y)
    assert opened.optimizer.built and opened._compile_metrics.built


def test_what_a_call_of_ones_own_returns_is_asked_of_it():
    class Own(keras.Model):
        def call(self, inputs, training=None):
            return super().call(inputs, training=training)[..., :1]

    plain = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model = Own(plain.inputs, plain.outputs)
    model.compile("sgd", "binary_crossentropy", metrics=["accuracy"])
    compiling.build_ahead(model, X[:, 0, 0, :1].repeat(4, -1), Y % 2)
    [accuracy] = model.metrics[1].metrics
    assert isinstance(accuracy, keras.metrics.BinaryAccuracy)


def test_steps_are_those_of_keras():
    losses = []
    for run_eagerly in (False, True):
        model = made(run_eagerly)
        losses.append([model.train_on_batch(X, Y)[0] for _ in range(3)])
    np.testing.assert_allclose(*losses, rtol=1e-4)


def test_what_nobody_knows_before_is_left_to_keras():
    """Nothing is asked for, and no variable is made, that a step may change."""

    def batches():
        for start in (0, 8, 16):
            asked.append(start)
            yield X[start : start + 8], Y[start : start + 8]

    class Own(keras.Model):
        def train_step(self, data):
            return super().train_step(data)

    model = made()
    asked = []
    compiling.build_ahead(model, batches())
    own = Own(model.inputs, model.outputs)
    own.compile("adam", "mse")
    compiling.build_ahead(own, X, Y)
    eager = made(run_eagerly=True)
    compiling.build_ahead(eager, X, Y)
    for one in (model, own, eager):
        assert not one.optimizer.built
    assert not asked


def test_callbacks_may_say_what_trains():
    model = made()
    model.layers[1].layer.trainable = False
    before = keras.ops.convert_to_numpy(model.layers[1].layer.kernel)

    class Thaw(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            self.model.layers[1].layer.trainable = True

    model.fit(X, Y, verbose=0, callbacks=[Thaw()])
    assert not np.array_equal(model.layers[1].layer.kernel, before)


def test_only_the_first_step_is_prepared(monkeypatch):
    """A loop of steps pays for none of it; one compiled anew begins again."""
    prepared = []
    monkeypatch.setattr(
        compiling, "build_ahead", lambda *args: prepared.append(args)
    )
    model = made()
    for _ in range(3):
        model.train_on_batch(X, Y)
    model.fit(X, Y, verbose=0)
    assert len(prepared) == 1
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy())
    model.train_on_batch(X, Y)
    assert len(prepared) == 2
