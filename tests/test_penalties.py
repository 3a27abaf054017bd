"""`model.losses` of protected models, beside those of the plain model.

One penalty a model, so that it is known whose a loss is. What layers give out
is the same in all copies, and so are penalties on it; those on kernels are
the same where kernels are, and those on γ and β where these are variables.
"""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_passport as kp
from support.graphs import assert_near
from support.plain_models import inputs_of, randomize
from support.protected_models import lock

pytestmark = pytest.mark.eager

L2 = keras.regularizers.L2(0.03)
L1 = keras.regularizers.L1(0.05)


@keras.saving.register_keras_serializable(package="test_penalties")
class Penalty(layers.Layer):
    """A layer of the user's own, which adds a loss."""

    def call(self, inputs):
        self.add_loss(0.1 * ops.mean(ops.square(inputs)))
        return inputs


def network(conv=None, norm=None, dense=None, own=False, normalization=None):
    """One layer with a normalisation, one without, by what they are given."""
    normalization = normalization or layers.BatchNormalization
    images = keras.Input((6, 6, 3), name="images")
    conv = {"use_bias": False, **(conv or {})}
    x = layers.Conv2D(8, 3, name="conv", **conv)(images)
    x = normalization(name="norm", **(norm or {}))(x)
    x = layers.ReLU(name="relu")(x)
    x = Penalty(name="penalty")(x) if own else x
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    outputs = layers.Dense(4, "tanh", name="dense", **(dense or {}))(x)
    return keras.Model(images, outputs)


# By what the penalty is on.
OUTPUTS = {
    "add_loss": {"own": True},
    "activity of a kernel": {"conv": {"activity_regularizer": L2}},
    "activity of a biased kernel": {
        "conv": {"activity_regularizer": L1, "use_bias": True}
    },
    "activity of a normalisation": {"norm": {"activity_regularizer": L2}},
    "activity of a layer normalisation": {
        "norm": {"activity_regularizer": L2},
        "normalization": layers.LayerNormalization,
    },
    "activity without a normalisation": {"dense": {"activity_regularizer": L2}},
}
KERNELS = {
    "kernel, L2": {"conv": {"kernel_regularizer": L2}},
    "kernel, L1": {"conv": {"kernel_regularizer": L1}},
    "kernel without a normalisation": {"dense": {"kernel_regularizer": L2}},
}
HIDDEN = {
    "gamma": {"norm": {"gamma_regularizer": L2}},
    "beta": {"norm": {"beta_regularizer": L1}},
}


def losses_of(model, inputs):
    model(inputs, training=False)
    return [float(loss) for loss in model.losses]


def penalty_of(outputs):
    """Keras's own, which is divided by the examples since 3.14."""
    plain = layers.Activation("linear", activity_regularizer=L2)
    plain(outputs)
    return [float(loss) for loss in plain.losses]


def loaded(model, tmp_path):
    model.save(tmp_path / "model.keras")
    return keras.saving.load_model(tmp_path / "model.keras")


def cloned(model):
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    return clone


def copies(model, passport, x, tmp_path):
    """Every copy of a protected model that is one itself, with its inputs."""
    served = kp.require_passport(model)
    given = [x, passport.pack(kp.passport_spec(served))]
    found = {
        "itself": (model, x),
        "public": (kp.public(model), x),
        "cloned": (cloned(model), x),
        "loaded": (loaded(model, tmp_path), x),
        "served": (served, given),
        "served, loaded": (loaded(served, tmp_path), given),
    }
    for name in ("public", "cloned", "loaded"):
        kp.bind(found[name][0], passport)
    return found


def unlocked(model, passport, x, tmp_path):
    found = {
        f"unlocked, fold={fold}": (kp.unlock(model, passport, fold=fold), x)
        for fold in (True, False)
    }
    for name, (plain, _) in list(found.items()):
        found[f"{name}, loaded"] = (loaded(plain, tmp_path), x)
    return found


def assert_alike(found, expected):
    for name, (model, inputs) in found.items():
        received = losses_of(model, inputs)
        assert len(received) == len(expected), (name, received)
        np.testing.assert_allclose(
            received, expected, rtol=1e-4, atol=1e-6, err_msg=name
        )


@pytest.mark.parametrize(
    ("name", "function"),
    [
        *((name, "V3") for name in OUTPUTS),
        ("activity of a normalisation", "V1"),
        ("activity of a normalisation", "V2"),
    ],
)
def test_penalties_on_outputs(name, function, tmp_path):
    model, passport, base = lock(network(**OUTPUTS[name]), function)
    x = inputs_of(base)
    expected = losses_of(base, x)
    assert len(expected) == 1 and expected[0] > 1e-3
    # Not with batches of its own: of those, too.
    found = copies(model, passport, x, tmp_path)
    assert_alike(found, expected)
    assert_alike(unlocked(model, passport, x, tmp_path), expected)


@pytest.mark.parametrize(
    "name",
    [
        "activity of a biased kernel",
        "activity of a normalisation",
        "activity without a normalisation",
        "kernel, L1",
        "kernel without a normalisation",
    ],
)
def test_of_a_trained_model(name, tmp_path):
    """Kernels are published in another size, and come back from `unlock`."""
    base = randomize(network(**{**OUTPUTS, **KERNELS}[name]))
    x = inputs_of(base)
    expected = losses_of(base, x)
    model, passport = kp.protect_trained(base)
    plain = unlocked(model, passport, x, tmp_path)
    if name in KERNELS:
        of_published = losses_of(model, x)
        layer = model.get_layer("conv" if "without" not in name else "dense")
        penalty = L1 if name.endswith("L1") else L2
        np.testing.assert_allclose(
            of_published, [float(penalty(layer.layer.kernel))], rtol=1e-5
        )
        assert_alike(copies(model, passport, x, tmp_path), of_published)
        plain = {k: v for k, v in plain.items() if "False" in k}
    else:
        assert_alike(copies(model, passport, x, tmp_path), expected)
    assert_alike(plain, expected)


@pytest.mark.parametrize(
    "name", ["kernel, L2", "kernel without a normalisation"]
)
def test_penalties_on_kernels(name, tmp_path):
    model, passport, base = lock(network(**KERNELS[name]))
    x = inputs_of(base)
    expected = losses_of(base, x)
    assert_alike(copies(model, passport, x, tmp_path), expected)
    plain = unlocked(model, passport, x, tmp_path)
    assert_alike({k: v for k, v in plain.items() if "False" in k}, expected)


@pytest.mark.parametrize(
    ("name", "function"),
    [("gamma", "V2"), ("gamma", "V3"), ("beta", "V1"), ("beta", "V3")],
)
def test_penalties_on_gamma_and_beta(name, function, tmp_path):
    """Where they are variables; `unlock` makes variables of them again."""
    model, passport, base = lock(network(**HIDDEN[name]), function)
    x = inputs_of(base)
    expected = losses_of(base, x)
    is_variable = function == {"gamma": "V2", "beta": "V1"}[name]
    found = copies(model, passport, x, tmp_path)
    assert_alike(found, expected if is_variable else [])
    plain = unlocked(model, passport, x, tmp_path)
    assert_alike({k: v for k, v in plain.items() if "False" in k}, expected)


@pytest.mark.parametrize(
    "name",
    ["activity of a biased kernel", "activity of a normalisation"],
)
def test_training_sees_them_once(name):
    """Loss and all in a step, as the plain model has it."""
    model, _, base = lock(network(**OUTPUTS[name]))
    x, y = inputs_of(base), np.zeros((4, 4))
    found = []
    for one in (base, model):
        one.compile(keras.optimizers.SGD(0.0), "mse")
        found.append([one.evaluate(x, y, verbose=0), one.train_on_batch(x, y)])
    np.testing.assert_allclose(*found, rtol=1e-4)


def test_an_inserted_normalisation_stands_before_the_activation():
    base = network(dense={"activity_regularizer": L2})
    model = kp.protect(base, insert=True)
    kp.bind(model, kp.Passport.random_pattern(model))
    x = inputs_of(base)
    outputs = model(x, training=False)
    np.testing.assert_allclose(
        losses_of(model, x), penalty_of(outputs), rtol=1e-4
    )


def test_a_layer_of_its_own_has_it_too():
    """And its config has it once, as `from_config` takes it."""
    normal = layers.BatchNormalization(activity_regularizer=L2)
    layer = kp.PassportNormalization(layers.Dense(3), normal)
    again = kp.PassportNormalization.from_config(layer.get_config())
    x = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")
    for one in (layer, again):
        keys = np.random.default_rng(1).normal(size=(1, 8)).astype("float32")
        outputs = one(x, passport=keys)
        np.testing.assert_allclose(
            [float(loss) for loss in one.losses],
            penalty_of(outputs),
            rtol=1e-4,
        )


@pytest.mark.parametrize("way", ["hide_rows", "exact"])
def test_penalties_of_filters_together_end_where_rows_are_hidden(way, tmp_path):
    """They would see filters that nobody computes with; L2 sees the same."""
    options = {"kernel_regularizer": keras.regularizers.OrthogonalRegularizer()}
    base = randomize(network({"kernel_regularizer": L2}, dense=options))
    warned = pytest.warns(UserWarning, match="'dense' has a kernel_regularizer")
    if way == "exact":
        with warned:
            model, passport = kp.protect_trained(base, sizes=False)
    else:
        model = kp.protect(base, select=["conv", "dense"], insert=True)
        passport = kp.Passport.random_pattern(model)
        with warned:
            model = kp.hide_rows(model, passport)
    x = inputs_of(base)
    expected = pytest.approx(float(L2(base.get_layer("conv").kernel)))
    assert sum(losses_of(model, x)) == expected
    copy = kp.bind(loaded(model, tmp_path), passport)
    assert sum(losses_of(copy, x)) == expected
    assert_near(copy(x), model(x))
