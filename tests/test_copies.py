"""What a copy keeps of a user's program: state, compilation, own classes.

Plain Keras is the truth: the original itself, or its clone.
"""

import pickle

import keras
import numpy as np
import pytest
from absl import logging
from keras import layers, ops

import keras_passport as kp
from keras_passport.models import unlocking
from support.marks import marked, needs_keras
from support.protected_models import ones
from support.truth import largest_difference

pytestmark = pytest.mark.eager


def trunk(images):
    x = layers.Conv2D(4, 3, name="conv")(images)
    x = layers.ReLU()(layers.BatchNormalization(name="bn")(x))
    return layers.GlobalAveragePooling2D()(x)


def assuming(model):
    def call(inputs):
        with kp.assumed(model, ones(model)):
            return model(inputs)

    return call


def copies(base):
    """The copies of a model that each verb makes, as functions of inputs."""
    model = kp.protect(base)
    served = kp.require_passport(model)
    packed = np.zeros((1, kp.passport_spec(served)["size"]), "float32")

    def serve(inputs):
        inputs = keras.tree.flatten(inputs)
        return assuming(served)([*inputs, ops.convert_to_tensor(packed)])

    return {
        "protect": assuming(model),
        "public": assuming(kp.public(model)),
        "unlock": unlocking.with_parameters(model, ones(model), fold=False),
        "require_passport": serve,
    }


def images(count=4):
    rng = np.random.default_rng(3)
    return ops.convert_to_tensor(rng.random((count, 8, 8, 3), "float32"))


# State that is no variable ----------------------------------------------------


class Table(layers.Layer):
    """State of its own kind, as an asset."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.table = np.zeros((1,), "float32")

    def call(self, inputs):
        return inputs * ops.convert_to_tensor(self.table)

    def save_assets(self, folder):
        np.savetxt(f"{folder}/table.txt", self.table)

    def load_assets(self, folder):
        self.table = np.loadtxt(f"{folder}/table.txt", "float32", ndmin=1)


class Stored(layers.Layer):
    """State of its own kind, beside the weights."""

    factor = np.float32(0)

    def call(self, inputs):
        return inputs * self.factor

    def save_own_variables(self, store):
        store["factor"] = np.array(self.factor)

    def load_own_variables(self, store):
        self.factor = np.float32(store["factor"])


def adapted(layer, data):
    layer.adapt(data)
    return layer


def taught(layer, name, value):
    setattr(layer, name, value)
    return layer


SIDES = {
    "strings": lambda: adapted(
        layers.StringLookup(output_mode="one_hot"), ["a", "b", "c"]
    ),
    "integers": lambda: adapted(
        layers.IntegerLookup(output_mode="multi_hot"), [[3], [5]]
    ),
    "tf_idf": lambda: adapted(
        layers.StringLookup(output_mode="tf_idf"), ["a", "b", "b"]
    ),
    "text": lambda: adapted(
        layers.TextVectorization(output_sequence_length=3), ["a b", "b c"]
    ),
    "bins": lambda: adapted(
        layers.Discretization(num_bins=3, output_mode="one_hot"),
        np.linspace(0, 1, 20)[:, None],
    ),
    "standardised": lambda: adapted(
        layers.Normalization(), np.linspace(0, 1, 20)[:, None]
    ),
    "asset": lambda: taught(Table(), "table", np.array([3.0], "float32")),
    "stored": lambda: taught(Stored(), "factor", np.float32(3)),
}
DATA = {
    "strings": ("string", [["a"], ["b"], ["unknown"], ["c"]]),
    "integers": ("int64", [[3], [5], [7], [3]]),
    "tf_idf": ("string", [["a"], ["b"], ["unknown"], ["c"]]),
    "text": ("string", [["a"], ["b c"], ["unknown"], ["c"]]),
}
NUMBERS = ("float32", [[0.1], [0.4], [0.6], [0.9]])
LATER = {"tf_idf": needs_keras("3.14", "Keras does not read its own files")}


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="strings as inputs are TensorFlow's",
)
@pytest.mark.parametrize("side", marked(SIDES, LATER))
def test_what_a_layer_learnt(side):
    dtype, data = DATA.get(side, NUMBERS)
    first = keras.Input((8, 8, 3), name="images")
    second = keras.Input((1,), dtype=dtype, name="side")
    # Tables of a nested model are found too.
    nested = keras.Model(second, SIDES[side]()(second), name="nested")
    outputs = [trunk(first), nested(second)]
    base = keras.Model([first, second], outputs)
    inputs = [images(), ops.convert_to_tensor(data, dtype)]
    expected = base(inputs)
    for verb, copy in copies(base).items():
        assert largest_difference(copy(inputs), expected) < 1e-5, verb
    kp.reinitialize(base)  # Weights alone.
    assert largest_difference(base(inputs)[1], expected[1]) == 0


@pytest.mark.parametrize(
    "make",
    (
        lambda: layers.LSTM(3, stateful=True),
        lambda: layers.Bidirectional(layers.GRU(2, stateful=True)),
        lambda: layers.RNN(
            [layers.LSTMCell(2), layers.GRUCell(2)], stateful=True
        ),
    ),
    ids=("lstm", "bidirectional", "stacked"),
)
def test_states_of_a_stateful_rnn(make):
    first = keras.Input((8, 8, 3), batch_size=4, name="images")
    second = keras.Input((5, 2), batch_size=4, name="side")
    base = keras.Model([first, second], [trunk(first), make()(second)])
    rng = np.random.default_rng(0)
    sequence = ops.convert_to_tensor(rng.random((4, 5, 2), "float32"))
    base([images(), sequence])
    made = copies(base)
    expected = base([images(), sequence])
    for verb, copy in made.items():
        received = copy([images(), sequence])
        assert largest_difference(received, expected) < 1e-5, verb


# Compilation ------------------------------------------------------------------


def own_loss(target, output):
    return ops.mean(ops.square(target - output), -1)


class OwnLoss(keras.losses.Loss):
    def call(self, target, output):
        return own_loss(target, output)


class OwnMetric(keras.metrics.Mean):
    def update_state(self, target, output, sample_weight=None):
        return super().update_state(output)


class NoConfig(keras.metrics.Mean):
    def __init__(self, scale):
        super().__init__(name="no_config")

    def update_state(self, target, output, sample_weight=None):
        return super().update_state(output)


class OwnOptimizer(keras.optimizers.SGD):
    def __init__(self, learning_rate=0.1, extra=1, **kwargs):
        super().__init__(learning_rate, **kwargs)
        self.extra = extra

    def get_config(self):
        return {**super().get_config(), "extra": self.extra}


class NoConfigOptimizer(keras.optimizers.SGD):
    def __init__(self, extra):
        super().__init__(0.1)


class OwnSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """Without `get_config`."""

    def __call__(self, step):
        return 0.1 / (1.0 + ops.cast(step, "float32"))


def two_heads():
    inputs = keras.Input((8, 8, 3))
    x = trunk(inputs)
    outputs = [layers.Dense(2, name="a")(x), layers.Dense(2, name="b")(x)]
    return keras.Model(inputs, outputs)


COMPILATIONS = {
    "function": lambda: {"loss": own_loss, "metrics": [own_loss, "mae"]},
    "lambda": lambda: {"loss": lambda y, p: own_loss(y, p)},
    "objects": lambda: {
        "loss": [OwnLoss(), "mse"],
        "metrics": [
            [keras.metrics.MeanMetricWrapper(lambda y, p: own_loss(y, p))],
            [keras.metrics.AUC(), OwnMetric(name="own")],
        ],
    },
    "dict": lambda: {
        "loss": {"a": own_loss, "b": "mse"},
        "loss_weights": {"a": 1.0, "b": 0.5},
        "metrics": {"a": ["mae", OwnMetric()], "b": OwnMetric()},
    },
    "weighted": lambda: {"loss": "mse", "weighted_metrics": [OwnMetric(), []]},
    "optimizer": lambda: {
        "loss": "mse",
        "optimizer": OwnOptimizer(0.2, 4, momentum=0.5),
    },
    "schedule": lambda: {
        "loss": "mse",
        "optimizer": keras.optimizers.Adam(OwnSchedule(), clipnorm=1.0),
    },
    "scaled": lambda: {
        "loss": "mse",
        "optimizer": keras.optimizers.LossScaleOptimizer(
            OwnOptimizer(OwnSchedule()), initial_scale=4.0
        ),
    },
    "settings": lambda: {
        "loss": "mse",
        "run_eagerly": False,
        "steps_per_execution": 2,
    },
    "no optimizer": lambda: {"loss": "mse", "optimizer": None},
}


@pytest.mark.parametrize("kind", COMPILATIONS)
def test_compilation_is_reused(kind):
    base = two_heads()
    options = {"optimizer": "sgd", "run_eagerly": True}
    base.compile(**{**options, **COMPILATIONS[kind]()})
    model = kp.protect(base)
    assert model.compiled
    assert keras.tree.flatten(model.loss) == keras.tree.flatten(base.loss)
    assert model.run_eagerly == base.run_eagerly
    assert model.jit_compile == base.jit_compile
    assert model.steps_per_execution == base.steps_per_execution
    if base.optimizer is None:
        assert model.optimizer is None
        return
    assert type(model.optimizer) is type(base.optimizer)
    assert model.optimizer is not base.optimizer and model.optimizer.built
    inner = [
        getattr(each.optimizer, "inner_optimizer", each.optimizer)
        for each in (base, model)
    ]
    assert type(inner[0]) is type(inner[1]) and inner[0] is not inner[1]
    assert vars(inner[0]).get("extra") == vars(inner[1]).get("extra")
    assert inner[0].clipnorm == inner[1].clipnorm
    assert float(inner[0].learning_rate) == float(inner[1].learning_rate)
    kp.bind(model, kp.Passport.random_pattern(model))
    targets = [np.zeros((4, 2), "float32")] * 2
    logs = [
        each.fit(images(), targets, batch_size=2, verbose=0).history
        for each in (base, model)
    ]
    assert sorted(logs[0]) == sorted(logs[1])


def test_auto_scale_loss_is_reused():
    try:
        keras.config.set_dtype_policy("mixed_float16")
        base = two_heads()
    finally:
        keras.config.set_dtype_policy("float32")
    for scale in (True, False):
        base.compile("sgd", "mse", auto_scale_loss=scale)
        model = kp.protect(base)
        assert type(model.optimizer) is type(base.optimizer)


@pytest.mark.parametrize(
    "options, lost",
    (
        ({"loss": "mse", "metrics": [NoConfig(2.0), "mae"]}, "'no_config'"),
        ({"loss": "mse", "optimizer": NoConfigOptimizer(2)}, "not compiled"),
    ),
    ids=("metric", "optimizer"),
)
def test_what_cannot_be_made_anew_is_left_out(options, lost, monkeypatch):
    said = []
    monkeypatch.setattr(
        logging, "warning", lambda text, *args: said.append(text % args)
    )
    base = two_heads()
    base.compile(**{"optimizer": "sgd", **options})
    model = kp.protect(base)
    assert len(said) == 1 and lost in said[0] and "\n" not in said[0]
    assert model.compiled == ("metrics" in options)


# Classes of one's own ---------------------------------------------------------


@keras.saving.register_keras_serializable("test_copies")
class Centred(keras.Model):
    """A functional model with its own call and training step."""

    steps = 0
    centre = 0.5

    def call(self, inputs, training=None, mask=None):
        inputs = (inputs - self.centre) / 0.25
        return super().call(inputs, training=training, mask=mask)

    def train_step(self, *data):
        type(self).steps += 1
        return super().train_step(*data)

    def compute_loss(self, *args, **kwargs):
        return 2.0 * super().compute_loss(*args, **kwargs)


@keras.saving.register_keras_serializable("test_copies")
class Headed(keras.Model):
    """With a layer, a weight and an argument outside the graph."""

    def __init__(self, *args, power=1.0, **kwargs):
        super().__init__(*args, **kwargs)
        self.power = power
        self.head = layers.Dense(3)
        self.factor = self.add_weight(shape=(), name="factor")

    def call(self, inputs, training=None, mask=None):
        x = super().call(inputs * self.power, training=training, mask=mask)
        return self.head(x) * self.factor

    def get_config(self):
        return {**super().get_config(), "power": self.power}


class Fixed(keras.Model):
    """Its constructor takes no inputs and outputs; nothing else is its own."""

    def __init__(self, units=4):
        inputs = keras.Input((8, 8, 3))
        super().__init__(inputs, trunk(inputs))
        self.units = units

    def get_config(self):
        return {"units": self.units}

    def describe(self):
        return "a model"


class FixedStep(Fixed):
    def train_step(self, *data):
        return super().train_step(*data)


class Chain(keras.Sequential):
    pass


class DoubledChain(keras.Sequential):
    def call(self, inputs, training=None, mask=None):
        return super().call(2.0 * inputs, training=training, mask=mask)


def chain(kind):
    return kind(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(4, 3, name="conv"),
            layers.BatchNormalization(name="bn"),
        ]
    )


def of_graph(kind, **options):
    inputs = keras.Input((8, 8, 3))
    return kind(inputs, trunk(inputs), name="own", **options)


def headed():
    model = of_graph(Headed, power=2.0)
    model(images())  # Its head is built with the first call.
    model.factor.assign(0.3)
    return model


def moved():
    model = of_graph(Centred)
    model.centre = 0.2  # Later than the constructor.
    return model


KEPT = {
    "centred": (lambda: of_graph(Centred), Centred),
    "moved": (moved, Centred),
    "headed": (headed, Headed),
    "fixed": (Fixed, None),
    "chain": (lambda: chain(Chain), None),
}
REFUSED = {
    "fixed_step": (FixedStep, "train_step"),
    "chain_call": (lambda: chain(DoubledChain), "call"),
}


def nested_in(model):
    inputs = keras.Input((8, 8, 3))
    return keras.Model(inputs, model(inputs), name="outer")


# What the others hold besides their graphs, Keras's own pickles lose.
@pytest.mark.parametrize("name", ["centred", "fixed", "chain"])
def test_own_class_is_pickled(name):
    make, kind = KEPT[name]
    model = kp.protect(make())
    copy = pickle.loads(pickle.dumps(model))
    assert kind is None or isinstance(copy, kind)
    assert isinstance(copy, kp.ProtectedModel)
    assert not any(
        layer.is_bound for layer in kp.protected_layers(copy).values()
    )
    outputs = [assuming(one)(images()) for one in (model, copy)]
    assert largest_difference(*outputs) < 1e-6


@pytest.mark.parametrize("nested", (False, True), ids=("outermost", "nested"))
@pytest.mark.parametrize("name", KEPT)
def test_own_class_is_kept(name, nested, tmp_path):
    make, kind = KEPT[name]
    base = nested_in(make()) if nested else make()
    model = kp.protect(base)
    assert isinstance(model, kp.ProtectedModel)
    expected = base(images())
    public = kp.public(model)
    plain = unlocking.with_parameters(model, ones(model), fold=True)
    for copy in (model, public, plain):
        own = copy.layers[-1] if nested else copy
        assert kind is None or isinstance(own, kind)
        call = copy if copy is plain else assuming(copy)
        assert largest_difference(call(images()), expected) < 1e-5
    assert not isinstance(plain, kp.ProtectedModel)
    if kind is not None:
        with pytest.raises(kp.PassportError, match="own call"):
            kp.require_passport(model)
    else:
        kp.require_passport(model)
    kp.reinitialize(model)
    # What Keras's files don't hold, or fail to load, is no business of ours.
    if name not in ("moved", "headed"):
        public.save(tmp_path / "model.keras")
        loaded = keras.saving.load_model(tmp_path / "model.keras")
        assert isinstance(loaded, type(public))
        difference = largest_difference(assuming(loaded)(images()), expected)
        assert difference < 1e-5


@pytest.mark.parametrize("nested", (False, True), ids=("outermost", "nested"))
@pytest.mark.parametrize("name", REFUSED)
def test_own_class_is_refused(name, nested):
    make, method = REFUSED[name]
    base = nested_in(make()) if nested else make()
    for verb in (kp.protect, kp.inspect):
        with pytest.raises(kp.PassportError, match=f"own {method}.*graph"):
            verb(base)
    # As it says.
    part = base.layers[-1] if nested else base
    kp.protect(keras.Model(part.inputs, part.outputs))


def test_own_class_trains_as_it_did():
    base = of_graph(Centred)
    base.compile("sgd", "mse", run_eagerly=True)
    model = kp.protect(base)
    kp.bind(model, kp.Passport.random_pattern(model))
    targets = np.zeros((4, 4), "float32")
    predicted = ops.convert_to_numpy(model(images(), training=True))
    before = Centred.steps
    history = model.fit(images(), targets, batch_size=4, verbose=0).history
    assert Centred.steps == before + 1
    assert history["loss"][0] == pytest.approx(
        2 * np.mean(predicted**2), rel=1e-4
    )
    # What protects a model is there as well.
    with pytest.raises(kp.PassportError, match="export"):
        model.export("nowhere")
    with pytest.raises(kp.PassportRequiredError):
        kp.unbind(model).predict(images(), verbose=0)


def test_own_class_is_told_of_its_own_attributes_alone(caplog):
    model, _ = kp.protect_trained(of_graph(Centred))
    kp.public(kp.calibrate(model))
    kp.unlock(model)
    assert "without its attributes" not in caplog.text


def test_own_class_that_nobody_registered(tmp_path):
    class Unregistered(Centred):
        pass

    model = kp.protect(of_graph(Unregistered))
    model.save(tmp_path / "model.keras")
    with pytest.raises(TypeError, match="register_keras_serializable"):
        keras.saving.load_model(tmp_path / "model.keras")
    objects = {"Unregistered": Unregistered}
    loaded = keras.saving.load_model(tmp_path / "model.keras", objects)
    assert isinstance(loaded, Unregistered)
    assert isinstance(loaded, kp.ProtectedModel)


# Flags and dtypes -------------------------------------------------------------


def test_flags_of_a_layer_in_two_models():
    """A model's flag sets those of what it holds, which may say otherwise."""
    shared = layers.Dense(4, name="shared")
    parts = []
    for name in ("first", "second"):
        inputs = keras.Input((4,))
        outputs = shared(layers.Dense(4, name="alone")(inputs))
        parts.append(keras.Model(inputs, outputs, name=name))
    inputs = keras.Input((8, 8, 3))
    features = trunk(inputs)
    base = keras.Model(inputs, layers.Add()([part(features) for part in parts]))
    parts[1].trainable = False
    shared.trainable = True
    model = kp.protect(base)
    for copy in (base, model, kp.public(model), kp.require_passport(model)):
        flags = {
            f"{part}/{name}": copy.get_layer(part).get_layer(name).trainable
            for part in ("first", "second")
            for name in ("alone", "shared")
        }
        assert flags == {
            "first/alone": True,
            "first/shared": True,
            "second/alone": False,
            "second/shared": True,
        }


def test_single_frozen_variables():
    base = nested_in(of_graph(keras.Model))
    own = base.layers[-1]
    own.get_layer("conv").bias.trainable = False
    own.get_layer("bn").beta.trainable = False
    hidden = {"gamma"}  # V1 hides it; β stays a weight, frozen.
    model = kp.protect(base, "V1")
    plain = unlocking.with_parameters(
        model, {"own/conv": (np.ones(4), None)}, fold=False
    )
    expected = [v.name for v in base.trainable_variables]
    assert [v.name for v in plain.trainable_variables] == expected
    for copy in (model, kp.public(model), kp.require_passport(model)):
        names = [v.name for v in copy.trainable_variables]
        assert names == [name for name in expected if name not in hidden]


@pytest.mark.parametrize("policy", ("float32", "mixed_bfloat16", "map"))
@pytest.mark.parametrize("fold", (False, True))
def test_another_global_policy(policy, fold):
    """Whatever the policy is when a model is copied, it keeps its own."""
    dtype = policy
    if policy == "map":
        dtype = keras.dtype_policies.DTypePolicyMap("float32")
        dtype["conv"] = keras.DTypePolicy("mixed_bfloat16")
    inputs = keras.Input((8, 8, 3), dtype="float32")
    x = layers.Conv2D(4, 3, name="conv", dtype=dtype)(inputs)
    x = layers.BatchNormalization(name="bn", dtype=dtype)(x)
    own = "float32" if policy == "map" else policy
    x = layers.Activation("tanh", dtype=own)(x)
    base = keras.Model(inputs, x)
    base.dtype_policy = own
    expected = base(images())
    try:
        keras.config.set_dtype_policy("mixed_float16")
        model = kp.protect(base)
        plain = unlocking.with_parameters(model, ones(model), fold)
        public, served = kp.public(model), kp.require_passport(model)
        received = [assuming(model)(images()), assuming(public)(images())]
        received.append(plain(images()))
    finally:
        keras.config.set_dtype_policy("float32")
    for outputs in received:
        assert outputs.dtype == expected.dtype
        assert largest_difference(outputs, expected) < 2e-2
    for copy in (model, plain, public, served):
        assert copy.dtype_policy.name == base.dtype_policy.name
