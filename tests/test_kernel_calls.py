"""A kernel layer inside a passport layer does all that it does outside.

The truth is the same layer in plain Keras, before a stock normalisation whose
γ and β are those of the passport.
"""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_passport as kp
from keras_passport.layers.kernels import adapter_for, register_kernel_layer
from support.truth import relative_difference

EAGERLY = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="JAX has no tape"
)


def random(shape, seed=0):
    return np.random.default_rng(seed).normal(0.2, 1, shape).astype("float32")


# State of its own -----------------------------------------------------------


@keras.saving.register_keras_serializable(package="tests")
class Stateful(layers.Dense):
    """A linear layer with every kind of state that Keras knows."""

    def __init__(self, units, **kwargs):
        super().__init__(units, **kwargs)
        self.seeds = keras.random.SeedGenerator(3)
        self.seen = keras.metrics.Mean(name="seen")
        self.inner = layers.BatchNormalization(scale=False, center=False)

    def build(self, shape):
        super().build(shape)
        self.inner.build((*shape[:-1], self.units))
        self.calls = self.add_weight(
            name="calls", dtype="int32", initializer="zeros", trainable=False
        )

    def call(self, inputs, training=None):
        outputs = super().call(inputs)
        self.calls.assign_add(1)
        self.seen.update_state(ops.mean(ops.abs(outputs)))
        self.inner(outputs, training=training)
        self.add_loss(0.1 * ops.mean(ops.square(outputs)))
        if training:
            outputs = keras.random.dropout(outputs, 0.5, seed=self.seeds)
        return outputs


register_kernel_layer(Stateful, adapter_for(layers.Dense))


def stateful(passport, **compiled):
    """A model with the layer, protected or plain with the same γ and β."""
    options = {"activity_regularizer": keras.regularizers.L2(0.03)}
    normal = layers.BatchNormalization(name="normal")
    inputs = keras.Input((5,))
    kernel = Stateful(4, name="kernel", **options)
    wrapper = kp.PassportNormalization(
        Stateful(4, name="kernel", **options), normal
    )
    wrapper.build((None, 5))
    wrapper.bind_keys(random((5,), 1), random((5,), 2))
    if passport:
        outputs = wrapper(inputs)
    else:
        normal = layers.BatchNormalization()
        outputs = normal(kernel(inputs))
        gamma, beta = wrapper.hidden_parameters()
        kernel.kernel.assign(wrapper.layer.kernel)
        gamma, beta = wrapper.hidden_parameters()
        normal.gamma.assign(gamma)
        normal.beta.assign(beta)
    model = keras.Model(inputs, outputs)
    # Steps of length 0: what training does to weights is tested elsewhere.
    model.compile(keras.optimizers.SGD(0.0), "mse", **compiled)
    return model, wrapper.layer if passport else kernel


@pytest.mark.parametrize(
    "compiled", [{}, {"run_eagerly": True}, {"jit_compile": True}]
)
def test_state_is_that_of_the_plain_layer(compiled):
    keras.utils.set_random_seed(0)
    found = []
    for passport in (False, True):
        keras.utils.set_random_seed(0)
        model, kernel = stateful(passport, **compiled)
        x, y = random((6, 5), 3), random((6, 4), 4)
        losses = [
            model.train_on_batch(x, y, return_dict=True)["loss"]
            for _ in range(3)
        ]
        state = [
            ops.convert_to_numpy(variable)
            for variable in (
                kernel.calls,
                kernel.seeds.state,
                *kernel.seen.variables,
                *kernel.inner.variables,
            )
        ]
        found.append([losses, *state])
    assert int(found[0][1]) >= 3
    for plain, mine in zip(*found, strict=True):
        np.testing.assert_allclose(mine, plain, rtol=1e-4, atol=1e-5)


@EAGERLY
def test_losses_reach_the_kernel():
    import tensorflow as tf

    x = random((6, 5), 3)
    gradients = []
    for passport in (False, True):
        keras.utils.set_random_seed(0)
        model, kernel = stateful(passport)
        with tf.GradientTape(persistent=True) as tape:
            model(x, training=True)
            assert len(model.losses) == 2
            loss = sum(model.losses)
        gradients.append(tape.gradient(loss, kernel.kernel.value))
        again = tape.gradient(loss, kernel.kernel.value)
        assert relative_difference(again, gradients[-1]) < 1e-6
    # But for their part along the keys, which belongs to γ and β.
    keys = np.linalg.qr(np.stack([random((5,), 1), random((5,), 2)], 1))[0]
    plain, mine = (np.asarray(gradient) for gradient in gradients)
    assert relative_difference(mine, plain - keys @ (keys.T @ plain)) < 1e-4


# Ranks and open sizes -------------------------------------------------------

# Name: class, arguments, input shape.
RANKED = {
    "dense2": (layers.Dense, {"units": 3}, (4,)),
    "dense3": (layers.Dense, {"units": 3}, (5, 4)),
    "dense4": (layers.Dense, {"units": 3}, (5, 2, 4)),
    "dense5": (layers.Dense, {"units": 3}, (2, 3, 2, 4)),
    "einsum3": (
        layers.EinsumDense,
        {"equation": "abc,cd->abd", "output_shape": (None, 3)},
        (5, 4),
    ),
    "einsum_any": (
        layers.EinsumDense,
        {"equation": "...c,cd->...d", "output_shape": (3,)},
        (5, 2, 4),
    ),
    "conv1d": (layers.Conv1D, {"filters": 3, "kernel_size": 3}, (7, 4)),
    "conv2d": (layers.Conv2D, {"filters": 3, "kernel_size": 3}, (6, 7, 4)),
    "conv3d": (layers.Conv3D, {"filters": 3, "kernel_size": 2}, (4, 5, 4, 4)),
    "grouped": (
        layers.Conv2D,
        {"filters": 4, "kernel_size": 3, "groups": 2},
        (6, 7, 4),
    ),
    "depthwise1d": (layers.DepthwiseConv1D, {"kernel_size": 3}, (7, 4)),
    "depthwise2d": (layers.DepthwiseConv2D, {"kernel_size": 3}, (6, 7, 4)),
    "separable1d": (
        layers.SeparableConv1D,
        {"filters": 3, "kernel_size": 3},
        (7, 4),
    ),
    "separable2d": (
        layers.SeparableConv2D,
        {"filters": 3, "kernel_size": 3},
        (6, 7, 4),
    ),
    "transpose1d": (
        layers.Conv1DTranspose,
        {"filters": 3, "kernel_size": 3, "strides": 2},
        (5, 4),
    ),
    "transpose2d": (
        layers.Conv2DTranspose,
        {"filters": 3, "kernel_size": 3},
        (4, 5, 4),
    ),
    "transpose3d": (
        layers.Conv3DTranspose,
        {"filters": 3, "kernel_size": 2},
        (3, 4, 3, 4),
    ),
}


def ranked(name, shape, batch=None):
    layer_class, arguments, _ = RANKED[name]
    keras.utils.set_random_seed(0)
    wrapper = kp.PassportNormalization(layer_class(**arguments, name="kernel"))
    inputs = keras.Input(batch_shape=(batch, *shape))
    model = keras.Model(inputs, wrapper(inputs))
    keys = [random(wrapper.geometry.key_shape, seed) for seed in (1, 2)]
    wrapper.bind_keys(*keys)
    model.compile(keras.optimizers.SGD(0.1), "mse")
    return model


@pytest.mark.parametrize("name", RANKED)
def test_a_step_with_open_sizes_is_that_with_known_ones(name):
    shape = RANKED[name][2]
    x = random((3, *shape), 3)
    known = ranked(name, shape, batch=3)
    y = random(known(x).shape, 4)
    models = [known, ranked(name, (*[None] * (len(shape) - 1), shape[-1]))]
    before = known.get_weights()
    losses = [model.fit(x, y, verbose=0).history["loss"] for model in models]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    known, opened = (model.get_weights() for model in models)
    for old, one, other in zip(before, known, opened, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-3, atol=1e-5)
        assert "bias" in name or np.any(one != old) or one.ndim == 1


# Rematerialisation ----------------------------------------------------------

SCOPES = {
    "full": {"mode": "full"},
    "activations": {"mode": "activations"},
    "larger": {"mode": "larger_than", "output_size_threshold": 1},
    "listed": {
        "mode": "list_of_layers",
        "layer_names": ["kernel", "second", "normal", "inner"],
    },
}


def two_layers(scope, under_scope):
    # Where Keras computes the whole model again, seeds go on meanwhile.
    of_model = scope["mode"] in ("full", "larger_than")
    second = layers.Dense if of_model else Stateful

    def make():
        inputs = keras.Input((6, 6, 3))
        x = kp.PassportNormalization(
            layers.Conv2D(4, 3, activation="tanh", name="kernel"),
            layers.BatchNormalization(name="normal"),
            between=[layers.AveragePooling2D(2)],
            activation="relu",
        )(inputs)
        x = kp.PassportNormalization(second(4, name="second"))(x)
        return keras.Model(inputs, layers.GlobalAveragePooling2D()(x))

    keras.utils.set_random_seed(0)
    with keras.RematScope(**scope if under_scope else {"mode": None}):
        model = make()
    for index, layer in enumerate(kp.protected_layers(model).values()):
        shape = layer.geometry.key_shape
        layer.bind_keys(random(shape, index), random(shape, 9 + index))
    return model


@EAGERLY
@pytest.mark.parametrize("mode", SCOPES)
def test_gradients_under_remat(mode):
    import tensorflow as tf

    x = tf.constant(random((5, 6, 6, 3), 3))
    found = []
    for under_scope in (False, True):
        model = two_layers(SCOPES[mode], under_scope)
        with tf.GradientTape() as tape:
            outputs = model(x, training=True)
            loss = tf.reduce_sum(outputs**2) + sum(model.losses)
        gradients = tape.gradient(
            loss, [variable.value for variable in model.trainable_variables]
        )
        found.append([loss, *gradients])
    for plain, mine in zip(*found, strict=True):
        np.testing.assert_allclose(mine, plain, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("compiled", [{}, {"jit_compile": True}])
@pytest.mark.parametrize("mode", ["activations", "listed"])
def test_compiled_steps_under_remat(mode, compiled):
    """Keras's own layers with a `training` argument do not compile so."""
    x, y = random((5, 6, 6, 3), 3), random((5, 4), 4)
    found = []
    for under_scope in (False, True):
        model = two_layers(SCOPES[mode], under_scope)
        model.compile(keras.optimizers.SGD(0.1), "mse", **compiled)
        losses = [model.train_on_batch(x, y) for _ in range(2)]
        found.append([losses, *model.get_weights()])
    for plain, mine in zip(*found, strict=True):
        np.testing.assert_allclose(mine, plain, rtol=1e-3, atol=1e-4)
