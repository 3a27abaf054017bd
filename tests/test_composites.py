"""Composite layers, which hold kernels and normalisations, opened or not."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_passport as kp
from keras_passport.models import unlocking
from support.graphs import random_inputs
from support.protected_models import ones
from support.truth import largest_difference


class Parts(layers.Layer):
    """What the composites below hold; none is registered for saving."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.conv = layers.Conv2D(4, 3, padding="same", name="conv")
        self.bn = layers.BatchNormalization(name="bn")

    def build(self, shape):
        self.conv.build(shape)
        self.bn.build(self.conv.compute_output_shape(shape))

    def run(self, inputs, **options):
        return self.bn(self.conv(inputs), **options)


class Plain(Parts):
    def call(self, inputs):
        return ops.relu(self.run(inputs)) + inputs


class Dropped(Parts):
    """Its sublayers are told `training`; its `Add` is made with each call."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.drop = layers.Dropout(0.5, seed=3)

    def call(self, inputs, training=None):
        x = self.drop(self.run(inputs, training=training), training=training)
        return layers.Add()([x, inputs])


class Remembering(Parts):
    def call(self, inputs):
        self.seen = self.conv(inputs)
        return self.bn(self.seen)


class Chained(layers.Layer):
    """Holds a Sequential that it builds for another size than it runs."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.chain = keras.Sequential(
            [
                layers.Conv2D(4, 1, name="conv"),
                layers.BatchNormalization(name="bn"),
            ],
            name="chain",
        )

    def build(self, shape):
        self.chain.build((None, 10, 10, shape[-1]))

    def call(self, inputs):
        return self.chain(inputs)


class Outer(layers.Layer):
    """A composite of composites, which its configuration says nothing of."""

    def __init__(self, first, **kwargs):
        super().__init__(**kwargs)
        self.first = first
        self.second = Dropped(name="second")
        self.same = layers.Identity(dtype=keras.DTypePolicy("float32"))

    def call(self, inputs, training=None):
        x = self.first(self.same(inputs))
        return self.second(x, training=training)


class TwoInputs(Parts):
    def call(self, inputs, skip=None):
        return {"sum": self.run(inputs) + skip, "skip": skip}


class OwnWeight(Parts):
    def build(self, shape):
        super().build(shape)
        self.factor = self.add_weight(shape=(), name="factor")

    def call(self, inputs):
        return self.run(inputs) * self.factor


class Branching(Parts):
    def call(self, inputs, training=None):
        return self.run(inputs) if training else self.conv(inputs)


class FixedTraining(Parts):
    def call(self, inputs):
        return self.run(inputs, training=False)


class Constant(Parts):
    def call(self, inputs):
        return self.run(inputs) + keras.random.normal((4,), seed=1)


class Idle(Parts):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.idle = layers.Dense(3)

    def build(self, shape):
        super().build(shape)
        self.idle.build(shape)

    def call(self, inputs):
        return self.run(inputs)


class Arrays(Parts):
    def call(self, inputs):
        x = self.run(inputs)
        return x if isinstance(x, keras.KerasTensor) else 2.0 * x


class NoGraph(Parts):
    def call(self, inputs):
        x = self.run(inputs)
        if isinstance(x, keras.KerasTensor):
            raise TypeError("an operation of another library")
        return x


class Masking(Parts):
    def call(self, inputs):
        return self.run(inputs)

    def compute_mask(self, inputs, previous_mask):
        return None


OPENED = {
    "plain": (Plain, ["x/conv"]),
    "dropped": (Dropped, ["x/conv"]),
    "remembering": (Remembering, ["x/conv"]),
    "chained": (Chained, ["x/chain/conv"]),
    "outer": (
        lambda name: Outer(Plain(name="first"), name=name),
        ["x/first/conv", "x/second/conv"],
    ),
    "partly": (
        lambda name: Outer(OwnWeight(name="first"), name=name),
        ["x/second/conv"],
    ),
}
CLOSED = {
    "own weight": (OwnWeight, "weights of its own ('factor')"),
    "branching": (Branching, "something else in training"),
    "fixed": (FixedTraining, "a `training` of its own"),
    "constant": (Constant, "tensors that its code makes"),
    "idle": (Idle, "weights that its call does not use"),
    "arrays": (Arrays, "something else than its graph"),
    "no graph": (NoGraph, "no graph of Keras layers"),
    "masking": (Masking, "handles masks"),
    "keras": (
        lambda name: layers.TimeDistributed(layers.Dense(4), name=name),
        "runs it in its own way",
    ),
}


def model_with(layer, **options):
    inputs = keras.Input((8, 8, 4), name="images")
    x = layer(inputs, **options)
    x = x if keras.tree.is_nested(x) else layers.Activation("relu")(x)
    model = keras.Model(inputs, x, name="made")
    rng = np.random.default_rng(1)
    for variable in model.weights:
        if variable.path.endswith(("kernel", "moving_mean")):
            variable.assign(rng.normal(size=variable.shape))
    return model


@pytest.mark.parametrize("name", OPENED)
def test_a_graph_is_opened(name, tmp_path):
    make, paths = OPENED[name]
    layer = make(name="x")
    base = model_with(layer)
    layer.trainable = name != "plain"
    attributes = {
        id(part): dict(vars(part)) for part in layer._flatten_layers()
    }
    report = kp.inspect(base)
    assert report.protected == paths
    model = kp.protect(base)
    assert model.report == report
    assert list(kp.protected_layers(model)) == paths
    # The source is left as it was.
    for part in layer._flatten_layers():
        assert vars(part).keys() == attributes[id(part)].keys()
        assert not part._inbound_nodes or part is layer or name == "chained"
    inputs = random_inputs(base)
    expected = base(inputs)
    with kp.assumed(model, ones(model)):
        assert largest_difference(model(inputs), expected) < 1e-5
    trainable = len(base.trainable_weights) - 2 * len(paths)
    assert len(model.trainable_weights) == max(trainable, 0)
    plain = unlocking.with_parameters(model, ones(model), fold=False)
    assert largest_difference(plain(inputs), expected) < 1e-5
    assert len(plain.weights) == len(base.weights)
    if name == "partly":
        return
    # None of the composites' classes is needed to load it.
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    with kp.assumed(loaded, ones(loaded)):
        assert largest_difference(loaded(inputs), expected) < 1e-5


def test_an_opened_layer_trains_as_it_did():
    base = model_with(Dropped(name="x"))
    model = kp.protect(base)
    inputs = random_inputs(base)
    expected = base(inputs, training=True)
    with kp.assumed(model, ones(model)):
        received = model(inputs, training=True)
    assert largest_difference(received, expected) < 1e-5
    for old, new in zip(
        base.get_layer("x").bn.non_trainable_weights,
        kp.protected_layers(model)["x/conv"].normalization.weights,
        strict=True,
    ):
        np.testing.assert_allclose(old, new, rtol=1e-5, atol=1e-6)


def test_several_inputs_and_outputs():
    inputs = keras.Input((8, 8, 4), name="images")
    skip = layers.ReLU()(inputs)
    base = keras.Model(inputs, TwoInputs(name="x")(inputs, skip=skip))
    model = kp.protect(base)
    assert model.report.protected == ["x/conv"]
    values = random_inputs(base)
    with kp.assumed(model, ones(model)):
        received = model(values)
    expected = base(values)
    assert received.keys() == expected.keys()
    assert largest_difference(received, expected) < 1e-5


@pytest.mark.parametrize("name", CLOSED)
def test_the_reason_why_not(name):
    make, reason = CLOSED[name]
    base = model_with(make(name="x"))
    rows = kp.inspect(base).rows
    assert not any(row.protected for row in rows)
    assert "is inside layer 'x' (" in rows[0].reason
    assert reason in rows[0].reason


def test_without_a_site_a_composite_stays_what_it_is():
    base = model_with(Plain(name="x"))
    inputs = keras.Input((8, 8, 4))
    x = layers.Conv2D(4, 3, name="conv")(base.get_layer("x")(inputs))
    base = keras.Model(inputs, layers.BatchNormalization()(x))
    model = kp.protect(base, select="conv")
    assert type(model.get_layer("x")) is Plain


def test_mixed_precision():
    try:
        keras.config.set_dtype_policy("mixed_float16")
        base = model_with(Plain(name="x"))
    finally:
        keras.config.set_dtype_policy("float32")
    model = kp.protect(base)
    assert model.report.protected == ["x/conv"]
    inputs = random_inputs(base)
    with kp.assumed(model, ones(model)):
        received = model(inputs)
    assert received.dtype == base(inputs).dtype
    assert largest_difference(received, base(inputs)) < 2e-2


def test_everything_goes_on_with_an_opened_layer():
    """Feature maps through a reference, calibration, binding, training."""
    base = model_with(Outer(Plain(name="first"), name="x"))
    model = kp.protect(base)
    images = random_inputs(base, 6)
    passport = kp.Passport.random_image(model, images, reference=base)
    tuned = kp.calibrate(kp.bind(model, passport), like=base)
    kp.hide_statistics(tuned, [images])
    tuned.compile("sgd", "mse", run_eagerly=True)
    tuned.fit(images, np.zeros((6, 8, 8, 4)), verbose=0)
    plain = kp.unlock(tuned)
    assert largest_difference(plain(images), tuned(images)) < 1e-4
