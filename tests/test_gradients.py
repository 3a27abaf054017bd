"""Gradients through passport layers, and what training steps do to them."""

import keras
import numpy as np
import pytest

import keras_passport as kp
from keras_passport import normalization as normalization_module
from layer_case import FUNCTIONS, IMAGE, KERNELS, build, keys_of, random, stock
from test_case import plain_cnn, randomize, sequential_cnn

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
    decouple = decouple and training
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


# A separable layer's response is linear in no single kernel.
LINEAR = [name for name in KERNELS if name != "separable"]


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("kernel", LINEAR)
def test_a_step_moves_hidden_parameters_like_variables(kernel, function):
    layer, maps = build(kernel, function)
    call, normal = stock(layer, maps)
    x = random((6, *layer.inputs_shape[1:]), 3)
    target = random((6, *layer.compute_output_shape(x.shape)[1:]), 4)

    def gradients(outputs_of, variables):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(
                tf.square(outputs_of(x, training=True) - target)
            )
        return tape.gradient(loss, [v.value for v in variables])

    roles = layer.function.roles
    of_hidden = gradients(call, [getattr(normal, role) for role in roles])
    before = dict(
        zip(("gamma", "beta"), layer.hidden_parameters(), strict=True)
    )
    weights = layer.trainable_weights
    for weight, gradient in zip(
        weights, gradients(layer, weights), strict=True
    ):
        weight.assign_sub(0.1 * gradient)
    after = dict(zip(("gamma", "beta"), layer.hidden_parameters(), strict=True))
    for role, gradient in zip(roles, of_hidden, strict=True):
        np.testing.assert_allclose(
            after[role], before[role] - 0.1 * gradient.numpy(), atol=1e-5
        )


def test_parallel_keys_and_keys_of_zeros_stay_finite():
    layer, maps = build("conv2d")
    key = keys_of(layer, maps)["gamma"]
    for gamma, beta in [(key, key), (key, 0 * key), (0 * key, 0 * key)]:
        layer.bind_keys(gamma, beta)
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(random((3, *IMAGE)), training=True) ** 2)
        gradient = tape.gradient(loss, layer.layer.kernel.value)
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("kernel", LINEAR)
def test_set_hidden_parameters_changes_as_little_as_it_can(kernel, function):
    layer, maps = build(kernel, function)
    wanted = {
        role: random(layer.hidden_parameters()[i].shape, 5 + i)
        for i, role in enumerate(("gamma", "beta"))
        if role in layer.function.roles
    }
    before = layer.layer.kernel.numpy()
    bias = layer.layer.bias.numpy()
    layer.set_hidden_parameters(**wanted)
    received = dict(
        zip(("gamma", "beta"), layer.hidden_parameters(), strict=True)
    )
    for role, value in wanted.items():
        np.testing.assert_allclose(received[role], value, atol=1e-4)
    np.testing.assert_array_equal(layer.layer.bias, bias)
    # Set again to the same values, nothing changes; back, the kernel is back.
    after = layer.layer.kernel.numpy()
    layer.set_hidden_parameters(**wanted)
    np.testing.assert_allclose(layer.layer.kernel, after, atol=1e-4)
    change = (after - before).ravel()
    rng = np.random.default_rng(0)
    for _ in range(5):
        # No other change that does the same is smaller.
        other = rng.normal(size=before.shape).astype("float32")
        layer.layer.kernel.assign(before + other)
        layer.set_hidden_parameters(**wanted)
        moved = layer.layer.kernel.numpy() - before
        assert np.linalg.norm(moved) >= np.linalg.norm(change) * (1 - 1e-5)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("base", (plain_cnn, sequential_cnn))
def test_calibrate(base, function):
    model = kp.protect(randomize(base()), function)
    kp.bind(model, kp.Passport.random_pattern(model))
    before = {
        path: layer.hidden_parameters()
        for path, layer in kp.protected_layers(model).items()
    }
    assert kp.calibrate(model) is model
    for path, layer in kp.protected_layers(model).items():
        gamma, beta = layer.hidden_parameters()
        if gamma is not None:
            np.testing.assert_allclose(
                gamma, np.where(before[path][0] < 0, -1, 1), atol=1e-4
            )
        if beta is not None:
            np.testing.assert_allclose(beta, 0 * beta, atol=1e-4)
    kp.unbind(model)
    with pytest.raises(kp.PassportRequiredError):
        kp.calibrate(model)


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
    with pytest.raises(kp.PassportError, match="SeparableConv2D"):
        separable.set_hidden_parameters(good, good)
