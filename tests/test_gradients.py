"""Gradients through passport layers, against the formula's own."""

import keras
import numpy as np
import pytest

import keras_passport as kp
from keras_passport.layers import normalization as normalization_module
from support.kernel_layers import FUNCTIONS, IMAGE
from support.passport_layers import build, keys_of, random

tf = pytest.importorskip("tensorflow")
pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="takes tf.GradientTape"
)


def decoupled(gradient, of_hidden, keys):
    """What a kernel gets if γ and β train as variables of their own.

    The features' gradient without its part along the keys, and along the dual
    keys what γ and β get.
    """
    keys = np.stack([key.ravel() for key in keys.values()])
    duals = np.linalg.pinv(keys)
    flat = np.reshape(gradient, (keys.shape[1], -1))
    flat = flat - duals @ keys @ flat + duals @ np.stack(of_hidden)
    return flat.reshape(gradient.shape)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(
    "training, fuse, decouple",
    [
        (True, True, False),
        (True, False, False),
        (True, True, True),
        (False, True, False),
        (False, True, True),
        (False, False, True),
    ],
)
def test_gradients_are_those_of_the_formula(
    function, training, fuse, decouple, monkeypatch
):
    if not fuse:
        monkeypatch.setattr(
            normalization_module, "_can_fuse", lambda *args: False
        )
    layer, maps = build("conv2d", function, decouple=decouple)
    layer.normalization.moving_mean.assign(random((6,), 8))
    x, target = tf.constant(random((5, *IMAGE), 3)), random((5, 3, 3, 6), 4)
    kernel, bias = map(tf.constant, layer.layer.get_weights())
    # What the function leaves trainable; what it hides, as a placeholder.
    free = {
        role: tf.constant(random((6,), 7) if weight is None else weight.numpy())
        for role, weight in (("gamma", layer.gamma), ("beta", layer.beta))
    }

    def convolve(inputs, kernel):
        return tf.nn.conv2d(inputs, kernel, 2, "SAME")

    with tf.GradientTape() as tape:
        tape.watch([x, kernel, bias, free])
        hidden = {
            role: tf.reduce_mean(convolve(p[None], kernel), (0, 1, 2))
            for role, p in maps.items()
        }
        if decouple:
            hidden = keras.tree.map_structure(tf.stop_gradient, hidden)
            tape.watch(hidden)
        y = convolve(x, kernel) + bias
        mean, variance = (
            tf.nn.moments(y, (0, 1, 2))
            if training
            else map(tf.constant, layer.normalization.get_weights())
        )
        y = (y - mean) / tf.sqrt(variance + 1e-3)
        y = {**free, **hidden}["gamma"] * y + {**free, **hidden}["beta"]
        loss = tf.reduce_sum(tf.square(y - target))
    expected, free, of_hidden = tape.gradient(
        loss, ([x, kernel, bias], free, hidden)
    )
    if decouple:
        expected[1] = decoupled(
            expected[1], list(of_hidden.values()), keys_of(layer, maps)
        )
    with tf.GradientTape() as tape:
        tape.watch(x)
        outputs = layer(x, training=training)
        loss = tf.reduce_sum(tf.square(outputs - target))
    trainable = [w for w in (layer.gamma, layer.beta) if w is not None]
    variables = [layer.layer.kernel, layer.layer.bias, *trainable]
    received = tape.gradient(loss, [x, *(v.value for v in variables)])
    expected += [free[w.name] for w in trainable]
    # Batch statistics take the bias out: its gradient is rounding error.
    scale = tf.norm(expected[1])
    for one, other in zip(received, expected, strict=True):
        assert tf.norm(one - other) < 1e-4 * scale


def test_what_cannot_be_set():
    layer, _ = build("conv2d", "V1")
    good = np.ones(6, "float32")
    for wrong in ({}, {"beta": good}, {"gamma": good, "beta": good}):
        with pytest.raises(kp.PassportError, match="Expected a bound layer"):
            layer.set_hidden_parameters(**wrong)
    layer.unbind_keys()
    with pytest.raises(kp.PassportError, match="bound: False"):
        layer.set_hidden_parameters(gamma=good)
    separable, _ = build("separable")
    separable.layer.trainable = False
    with pytest.raises(kp.PassportError, match="SeparableConv2D"):
        separable.set_hidden_parameters(good, good)
