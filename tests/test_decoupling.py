"""Hidden parameters train as variables would, and features leave them alone.

The truth is stock layers with γ and β overwritten: their gradients say how γ
and β should move, and a least-squares solution which change of the kernel is
the smallest that moves them so.
"""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_passport as kp
from keras_passport.layers import access, decoupling
from keras_passport.layers.duals import dual_basis
from support.plain_models import (
    multi_input_model,
    nested_model,
    plain_cnn,
    randomize,
    small_resnet,
)
from support.processes import run_in_fresh_process
from support.truth import (
    kernels_and_normalizations,
    overwrite_affine,
    relative_difference,
)

tf = pytest.importorskip("tensorflow")
pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="takes tf.GradientTape"
)

FUNCTIONS = ("V1", "V2", "V3")
IMAGE = (7, 7, 4)
RATE = 0.1

# Name: class, arguments, input shape, into how many blocks filters fall.
KERNELS = {
    "conv2d": (
        layers.Conv2D,
        {"filters": 6, "kernel_size": 3, "strides": 2},
        IMAGE,
        1,
    ),
    "grouped": (
        layers.Conv2D,
        {"filters": 6, "kernel_size": 3, "groups": 2, "padding": "same"},
        IMAGE,
        2,
    ),
    "depthwise": (
        layers.DepthwiseConv2D,
        {"kernel_size": 3, "depth_multiplier": 2, "use_bias": False},
        IMAGE,
        4,
    ),
    "transpose": (
        layers.Conv2DTranspose,
        {"filters": 6, "kernel_size": 3, "strides": 2},
        (3, 3, 4),
        1,
    ),
    "dense": (layers.Dense, {"units": 6}, (9,), 1),
    "dense_rank3": (layers.Dense, {"units": 6, "use_bias": False}, (7, 4), 1),
}


def random(shape, seed=0, mean=0.2):
    rng = np.random.default_rng(seed)
    return rng.normal(mean, 1, shape).astype("float32")


def build(kernel, function="V3", keys=None, decouple=True, **options):
    """A built, bound passport layer."""
    layer_class, arguments, shape, _ = KERNELS[kernel]
    layer = kp.PassportNormalization(
        layer_class(**{**arguments, **options}, name="kernel"),
        layers.BatchNormalization(epsilon=0.01),
        function,
        decouple=decouple,
    )
    layer.build((None, *shape))
    for index, weight in enumerate(layer.weights):
        if "moving" not in weight.path:
            weight.assign(random(weight.shape, 100 + index, 0.0))
    if keys is None:
        keys = [random(layer.geometry.key_shape, seed) for seed in (1, 2)]
    bind(layer, keys)
    return layer


def bind(layer, keys):
    given = dict(zip(("gamma", "beta"), keys, strict=True))
    layer.bind_keys(**{role: given[role] for role in layer.function.roles})
    return layer


def columns(kernel, values, blocks):
    """A kernel as matrices, (blocks, filter elements, filters of a block)."""
    values = np.asarray(values, "float64")
    if kernel == "transpose":
        values = np.swapaxes(values, -1, -2)
    if kernel == "depthwise":
        channels, multiplier = values.shape[-2:]
        values = values.reshape(-1, channels, multiplier)
        return values.transpose(1, 0, 2)
    values = values.reshape(-1, blocks, values.shape[-1] // blocks)
    return values.transpose(1, 0, 2)


def key_rows(key, blocks):
    """Keys as matrices, (blocks, 1, filter elements)."""
    key = np.asarray(key, "float64")
    key = key.reshape(-1, blocks, key.shape[-1] // blocks)
    return key.transpose(1, 0, 2).reshape(blocks, 1, -1)


def hidden_of(kernel, layer, keys):
    """γ and β of keys, (blocks, roles, filters), by matrix product."""
    blocks = KERNELS[kernel][3]
    rows = np.concatenate([key_rows(key, blocks) for key in keys], axis=1)
    return rows, rows @ columns(kernel, layer.layer.kernel, blocks)


def step(layer, x, target, training=True):
    """One step of SGD on the layer; returns what it was."""
    with tf.GradientTape() as tape:
        y = ops.cast(layer(x, training=training), "float32")
        loss = tf.reduce_mean(tf.square(y - target))
    variables = layer.trainable_variables
    gradients = tape.gradient(loss, [v.value for v in variables])
    for variable, gradient in zip(variables, gradients, strict=True):
        variable.assign_sub(RATE * gradient)


def stock_gradients(layer, x, target):
    """Gradients of stock layers by kernel, bias, γ and β at these values."""
    normal = keras.saving.deserialize_keras_object(layer.replaced)
    kernel = type(layer.layer).from_config(layer.layer.get_config())
    kernel.build(layer.inputs_shape)
    normal.build(kernel.compute_output_shape(layer.inputs_shape))
    kernel.set_weights(layer.layer.get_weights())
    for role, hidden in zip(
        ("gamma", "beta"), layer.hidden_parameters(), strict=True
    ):
        own = getattr(layer, role)
        getattr(normal, role).assign(own if hidden is None else hidden)
    with tf.GradientTape() as tape:
        y = ops.cast(normal(kernel(x), training=True), "float32")
        loss = tf.reduce_mean(tf.square(y - target))
    variables = [*kernel.trainable_variables, *normal.trainable_variables]
    gradients = tape.gradient(loss, [v.value for v in variables])
    return {
        variable.name: np.asarray(gradient)
        for variable, gradient in zip(variables, gradients, strict=True)
    }


def data_for(layer):
    x = random((5, *layer.inputs_shape[1:]), 7)
    return x, random(layer.compute_output_shape(x.shape), 8, 0.0)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_step_is_that_of_variables(kernel, function):
    layer = build(kernel, function)
    roles = layer.function.roles
    all_keys = [random(layer.geometry.key_shape, seed) for seed in (1, 2)]
    keys = [all_keys[("gamma", "beta").index(role)] for role in roles]
    x, target = data_for(layer)
    truth = stock_gradients(layer, x, target)
    blocks = KERNELS[kernel][3]
    rows, before = hidden_of(kernel, layer, keys)
    kernel_before = columns(kernel, layer.layer.kernel, blocks)
    others = {v.name: np.array(v) for v in layer.trainable_variables}
    step(layer, x, target)
    # γ and β moved as variables do; no other part of the gradient moved them.
    _, after = hidden_of(kernel, layer, keys)
    wanted = np.stack(
        [truth[role].reshape(blocks, -1) for role in roles], axis=1
    )
    assert np.linalg.norm(wanted) > 1e-2
    assert relative_difference(after - before, -RATE * wanted) < 1e-3
    # The kernel moved as the stock one, but for the smallest change that
    # makes γ and β move so.
    features = columns(kernel, truth["kernel"], blocks)
    expected = np.stack(
        [
            g + np.linalg.lstsq(k, w - k @ g)[0]
            for k, g, w in zip(rows, features, wanted, strict=True)
        ]
    )
    moved = columns(kernel, layer.layer.kernel, blocks) - kernel_before
    assert relative_difference(moved, -RATE * expected) < 1e-3
    # What is not hidden moves as ever.
    for variable in layer.trainable_variables:
        if variable.name != "kernel":
            np.testing.assert_allclose(
                variable - others[variable.name],
                -RATE * truth[variable.name],
                rtol=1e-3,
                atol=1e-5,
            )


def at_angle(angle, ratio=1.0):
    """Two keys for the grouped convolution, at an angle in every block."""
    shape = (3, 3, 4)
    one, other = random(shape, 1), random(shape, 2)
    for block in (np.s_[..., :2], np.s_[..., 2:]):
        a, b = one[block], other[block]
        a /= np.linalg.norm(a)
        b -= np.sum(a * b) * a
        b /= np.linalg.norm(b)
        other[block] = ratio * (np.cos(angle) * a + np.sin(angle) * b)
    return [one, other]


@pytest.mark.parametrize(
    "angle, ratio",
    [(np.pi / 2, 1), (0.5, 1e3), (0.1, 1e-3), (0.003, 1), (np.pi - 0.02, 20)],
)
def test_at_any_angle_and_size_of_keys(angle, ratio):
    keys = at_angle(angle, ratio)
    layer = build("grouped", keys=keys)
    x, target = data_for(layer)
    truth = stock_gradients(layer, x, target)
    wanted = np.stack(
        [truth[role].reshape(2, -1) for role in ("gamma", "beta")], axis=1
    )
    same = build("grouped", keys=keys, decouple=False)
    for training in (True, False):
        assert (
            relative_difference(
                layer(x, training=training), same(x, training=training)
            )
            < 1e-6
        )
    _, before = hidden_of("grouped", layer, keys)
    step(layer, x, target)
    _, after = hidden_of("grouped", layer, keys)
    for role in range(2):
        assert (
            relative_difference(
                (after - before)[:, role], -RATE * wanted[:, role]
            )
            < 1e-2
        )


@pytest.mark.parametrize("factor", (1.0, -1.0, 0.37, 1e-3))
@pytest.mark.parametrize("kernel", KERNELS)
def test_parallel_keys(kernel, factor):
    """One key for both, and one of zeros: nothing grows out of bounds."""
    shape = build(kernel).geometry.key_shape
    key = random(shape, 1)
    for keys in ([key, np.float32(factor) * key], [key, 0 * key]):
        layer = build(kernel, keys=keys)
        same = build(kernel, keys=keys, decouple=False)
        x, target = data_for(layer)
        assert (
            relative_difference(layer(x, training=True), same(x, training=True))
            < 1e-6
        )
        gradient = stock_gradients(layer, x, target)
        before = np.array(layer.layer.kernel)
        step(layer, x, target)
        moved = np.linalg.norm(layer.layer.kernel - before)
        # γ and β by themselves can move it by |gradient| / |key|, no more.
        norms = [np.linalg.norm(k) for k in keys if np.any(k)]
        bound = np.linalg.norm(gradient["kernel"]) + sum(
            np.linalg.norm(gradient[role]) for role in ("gamma", "beta")
        ) / (min(norms) / KERNELS[kernel][3])
        assert 0 < moved < 2 * RATE * bound


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_values_are_those_without(kernel, function):
    layer = build(kernel, function)
    same = build(kernel, function, decouple=False)
    assert layer.get_config()["decouple"] and not same.decouple
    x, _ = data_for(layer)
    for training in (True, False, None, True):
        assert (
            relative_difference(
                layer(x, training=training), same(x, training=training)
            )
            < 1e-6
        )
    for one, other in zip(layer.weights, same.weights, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


# What else acts on the kernel ---------------------------------------------


def in_model(layer):
    inputs = keras.Input(layer.inputs_shape[1:])
    model = keras.Model(inputs, layer(inputs))
    model.compile(keras.optimizers.SGD(RATE), "mse")
    return model


@pytest.mark.eager
@pytest.mark.parametrize("kernel", KERNELS)
def test_regularizers_act_as_ever(kernel):
    options = {}
    kind = "depthwise" if kernel == "depthwise" else "kernel"
    options[f"{kind}_regularizer"] = keras.regularizers.L2(0.05)
    if KERNELS[kernel][1].get("use_bias", True):
        options["bias_regularizer"] = keras.regularizers.L2(0.03)
    with_penalty = build(kernel, **options)
    without = build(kernel)
    x, target = data_for(without)
    before = without.layer.get_weights()
    losses = [
        in_model(layer).train_on_batch(x, target)
        for layer in (with_penalty, without)
    ]
    penalties = (0.05, 0.03)[: len(before)]
    assert losses[0] - losses[1] == pytest.approx(
        sum(p * np.sum(w**2) for p, w in zip(penalties, before, strict=True)),
        rel=1e-3,
    )
    for penalty, old, new, plain in zip(
        penalties,
        before,
        with_penalty.layer.get_weights(),
        without.layer.get_weights(),
        strict=True,
    ):
        np.testing.assert_allclose(
            new - plain, -RATE * 2 * penalty * old, rtol=1e-3, atol=1e-5
        )


def same_step(layer, other, tolerance=1e-5):
    """Whether a step does the same to both."""
    x, target = data_for(layer)
    losses = [in_model(one).train_on_batch(x, target) for one in (layer, other)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    return all(
        relative_difference(a, b) < tolerance
        for a, b in zip(layer.get_weights(), other.get_weights(), strict=True)
    )


@pytest.mark.eager
def test_what_falls_back_to_the_formulas_own_gradient():
    assert not same_step(build("conv2d"), build("conv2d", decouple=False))
    KERNELS["separable"] = (
        layers.SeparableConv2D,
        {"filters": 6, "kernel_size": 3},
        IMAGE,
        1,
    )
    try:
        assert same_step(build("separable"), build("separable", decouple=False))
    finally:
        del KERNELS["separable"]


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_passport_given_with_the_call_is_decoupled_too(kernel, function):
    """One row, or the same in a row for every example."""
    layer = build(kernel, function)
    x, target = data_for(layer)
    packed = random((1, layer.passport_size), 9)
    layer.bind_keys(
        **{
            role: key.reshape(layer.geometry.key_shape)
            for role, key in zip(
                layer.function.roles,
                np.split(packed[0], len(layer.function.roles)),
                strict=True,
            )
        }
    )

    def gradients(**given):
        with tf.GradientTape() as tape:
            y = layer(x, training=True, **given)
            loss = tf.reduce_mean(tf.square(y - target))
        weight = layer.adapter.weight(layer.layer).value
        return tape.gradient(loss, weight)

    expected = gradients()
    layer.unbind_keys()
    for rows in (1, len(x)):
        received = gradients(passport=np.repeat(packed, rows, axis=0))
        assert relative_difference(received, expected) < 1e-4


# How a call sees its passport: whether layers are bound; rows given with it.
MODES = {
    "bound": (True, 0),
    "presented": (False, 0),
    "a row": (False, 1),
    "rows": (False, 5),
}


@pytest.mark.parametrize("compiled", (False, True))
@pytest.mark.parametrize("mode", MODES)
def test_large_keys_stand_out_in_no_gradient(mode, compiled):
    """The first singular vector of a kernel's gradients is no key's.

    Whether a layer trains or not, and however its calls see the passport.
    """
    layer = build("conv2d", filters=16)
    size = layer.geometry.key_size
    keys = random((2, size), 3)
    keys -= keys.mean(axis=1, keepdims=True)
    keys *= 30.0 / np.linalg.norm(keys, axis=1, keepdims=True)
    plane = np.linalg.qr(keys.T)[0]
    packed = keys.reshape(1, -1)
    x, target = data_for(layer)
    bound, rows = MODES[mode]
    layer.unbind_keys()
    if bound:
        layer.bind_keys(*keys.reshape(2, *layer.geometry.key_shape))
    given = tf.constant(np.repeat(packed, rows, axis=0)) if rows else None
    shown = {layer._secret: layer.packed_keys(packed)}
    shown = shown if mode == "presented" else {}

    def gradient(passport, training):
        with access.showing(shown), tf.GradientTape() as tape:
            y = layer(x, passport=passport, training=training)
            loss = tf.reduce_mean(tf.square(y - target))
        return tape.gradient(loss, layer.layer.kernel.value)

    for training in (True, False):
        shares = {}
        for decouple in (True, False):
            layer.decouple = decouple
            function = tf.function(gradient) if compiled else gradient
            matrix = np.reshape(function(given, training), (size, -1))
            first = np.linalg.svd(matrix)[0][:, 0]
            shares[decouple] = np.sum((plane.T @ first) ** 2)
        # By chance 2 of all directions.
        assert shares[True] < 0.3 and shares[False] > 0.6


@pytest.mark.parametrize("kernel", KERNELS)
def test_no_mode_of_a_call_changes_a_gradient(kernel):
    """Bound, presented, given: what a call sees is one passport."""
    layer = build(kernel)
    x, target = data_for(layer)
    packed = np.asarray(layer._secret.bound.array)

    @tf.function
    def outside(passport):
        return layer(x, passport=passport, training=False)

    def gradients(call):
        passport = tf.constant(packed)
        with tf.GradientTape() as tape:
            tape.watch(passport)
            loss = tf.reduce_mean(tf.square(call(passport) - target))
        weight = layer.adapter.weight(layer.layer).value
        return tape.gradient(loss, [weight, passport])

    def plain(passport):
        return layer(x, passport=passport, training=False)

    expected, _ = gradients(lambda passport: plain(None))
    layer.unbind_keys()
    for call in (plain, outside):
        received, of_passport = gradients(call)
        assert relative_difference(received, expected) < 1e-4
        # A passport's own gradient is the formula's.
        layer.decouple = False
        coupled, truth = gradients(plain)
        layer.decouple = True
        assert relative_difference(of_passport, truth) < 1e-4
        assert relative_difference(coupled, expected) > 0.01


@pytest.mark.eager
@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_frozen_kernel_stays(function):
    layer, same = build("conv2d", function), build("conv2d", function)
    layer.layer.trainable = False
    x, target = data_for(layer)
    before = layer.layer.get_weights()
    truth = stock_gradients(layer, x, target)
    assert relative_difference(
        layer(x, training=True), same(x, training=True)
    ) == pytest.approx(0, abs=1e-6)
    own = {v.name: np.array(v) for v in layer.trainable_variables}
    assert set(own) == {"V1": {"beta"}, "V2": {"gamma"}, "V3": set()}[function]
    if own:
        in_model(layer).train_on_batch(x, target)
    for old, new in zip(before, layer.layer.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    for variable in layer.trainable_variables:
        np.testing.assert_allclose(
            variable - own[variable.name],
            -RATE * truth[variable.name],
            rtol=1e-3,
            atol=1e-5,
        )


@pytest.mark.parametrize("kernel", ("conv2d", "depthwise", "dense"))
def test_mixed_precision(kernel):
    layer = build(kernel, dtype="mixed_bfloat16")
    same = build(kernel, dtype="mixed_bfloat16", decouple=False)
    exact = build(kernel)
    x, target = data_for(layer)
    y = layer(x, training=True)
    assert y.dtype == same(x, training=True).dtype
    assert layer.layer.compute_dtype == "bfloat16"
    np.testing.assert_allclose(
        ops.cast(y, "float32"),
        ops.cast(same(x, training=True), "float32"),
        atol=0.05,
    )
    assert (
        relative_difference(ops.cast(y, "float32"), exact(x, training=True))
        < 0.02
    )
    keys = [random(layer.geometry.key_shape, seed) for seed in (1, 2)]
    _, before = hidden_of(kernel, layer, keys)
    step(layer, x, target)
    step(exact, x, target)
    _, after = hidden_of(kernel, layer, keys)
    _, expected = hidden_of(kernel, exact, keys)
    assert relative_difference(after - before, expected - before) < 0.03


# Whole models ---------------------------------------------------------------


def test_training_moves_the_hidden_parameters_as_a_stock_model():
    """SGD on a whole net: all γ and β move as the stock net's variables."""
    base = randomize(small_resnet())
    model = kp.protect(base)
    maps = overwrite_affine(base)
    kp.bind(model, kp.Passport.from_feature_maps(model, maps))
    x, y = random((6, 8, 8, 3), 3), np.arange(6) % 4
    wrappers = kp.protected_layers(model)
    before = {k: w.hidden_parameters() for k, w in wrappers.items()}
    for one in (model, base):
        one.compile(
            keras.optimizers.SGD(0.01),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
    stock = {
        path: base.get_layer(path.replace("_conv", "_bn")) for path in wrappers
    }
    old = {path: layer.get_weights()[:2] for path, layer in stock.items()}
    losses = [one.train_on_batch(x, y) for one in (model, base)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    for path, wrapper in wrappers.items():
        for was, now, old_value, new_value in zip(
            before[path],
            wrapper.hidden_parameters(),
            old[path],
            stock[path].get_weights()[:2],
            strict=True,
        ):
            assert relative_difference(now - was, new_value - old_value) < 0.01


ON_JAX = """
import sys
sys.modules["tensorflow"] = None
import numpy as np, keras, keras_passport as kp
assert keras.backend.backend() == "jax"
model = keras.saving.load_model("start.keras")
kp.bind(model, kp.Passport.load("owner.h5"))
case = np.load("case.npz")
model.compile(keras.optimizers.SGD(0.05), "mse")
model.fit(case["x"], case["y"], batch_size=3, epochs=2, shuffle=False,
          verbose=0)
for index, weight in enumerate(model.get_weights()):
    wanted = case[str(index)]
    scale = max(1e-3, np.abs(wanted).max())
    assert np.abs(weight - wanted).max() < 1e-3 * scale, index
print("done")
"""


def test_jax_trains_as_tensorflow_does(tmp_path):
    model = kp.protect(randomize(plain_cnn()))
    passport = kp.Passport.random_pattern(model)
    passport.save(tmp_path / "owner.h5")
    model.save(tmp_path / "start.keras")
    x, y = random((6, 8, 8, 3), 3), random((6, 4), 4)
    kp.bind(model, passport)
    start = model.get_weights()
    model.compile(keras.optimizers.SGD(0.05), "mse")
    model.fit(x, y, batch_size=3, epochs=2, shuffle=False, verbose=0)
    trained = model.get_weights()
    assert all(np.any(a != b) for a, b in zip(start, trained, strict=True))
    arrays = {str(index): value for index, value in enumerate(trained)}
    np.savez(tmp_path / "case.npz", x=x, y=y, **arrays)
    code = f"import os; os.chdir({str(tmp_path)!r})\n" + ON_JAX
    assert run_in_fresh_process(code, backend="jax").endswith("done\n")


# calibrate -------------------------------------------------------------------


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_calibration_of_a_layer(kernel, function):
    layer = build(kernel, function)
    model = in_model(layer)
    blocks = KERNELS[kernel][3]
    all_keys = dict(
        zip(
            ("gamma", "beta"),
            [random(layer.geometry.key_shape, seed) for seed in (1, 2)],
            strict=True,
        )
    )
    roles = layer.function.roles
    rows, before = hidden_of(kernel, layer, [all_keys[r] for r in roles])
    old = columns(kernel, layer.layer.kernel, blocks)
    rest = [np.array(w) for w in layer.weights if w.name != "kernel"]
    assert kp.calibrate(model) is model
    _, after = hidden_of(kernel, layer, [all_keys[r] for r in roles])
    wanted = np.stack(
        [
            np.sign(before[:, i]) if role == "gamma" else 0 * before[:, i]
            for i, role in enumerate(roles)
        ],
        axis=1,
    )
    np.testing.assert_allclose(after, wanted, atol=1e-4)
    # The smallest change that does it.
    smallest = np.stack(
        [
            np.linalg.lstsq(k, w)[0]
            for k, w in zip(rows, wanted - before, strict=True)
        ]
    )
    new = columns(kernel, layer.layer.kernel, blocks)
    assert relative_difference(new - old, smallest) < 1e-3
    others = [w for w in layer.weights if w.name != "kernel"]
    for one, other in zip(rest, others, strict=True):
        np.testing.assert_array_equal(one, other)
    # Once more changes nothing.
    kp.calibrate(model)
    np.testing.assert_allclose(
        columns(kernel, layer.layer.kernel, blocks), new, atol=1e-5
    )


@pytest.mark.parametrize("make", (nested_model, multi_input_model))
def test_calibration_of_a_model(make):
    model = kp.protect(make())
    with pytest.raises(kp.PassportRequiredError):
        kp.calibrate(model)
    kp.bind(model, kp.Passport.random_pattern(model))
    signs = {
        path: np.sign(layer.hidden_parameters()[0])
        for path, layer in kp.protected_layers(model).items()
    }
    kp.calibrate(model)
    for path, layer in kp.protected_layers(model).items():
        gamma, beta = layer.hidden_parameters()
        np.testing.assert_allclose(gamma, signs[path], atol=1e-4)
        np.testing.assert_allclose(beta, 0, atol=1e-4)


def test_calibration_leaves_alone_what_it_cannot_change():
    inputs = keras.Input((8, 8, 4))
    x = layers.SeparableConv2D(6, 3, name="separable")(inputs)
    x = layers.BatchNormalization()(x)
    x = layers.Conv2D(6, 3, name="frozen")(layers.ReLU()(x))
    x = layers.BatchNormalization()(x)
    x = layers.Conv2D(6, 3, name="conv")(layers.ReLU()(x))
    base = randomize(
        keras.Model(inputs, layers.BatchNormalization(name="bn")(x))
    )
    base.get_layer("frozen").trainable = False
    model = kp.protect(base)
    with pytest.raises(kp.PassportRequiredError):
        kp.calibrate(model)
    kp.bind(model, kp.Passport.random_pattern(model))
    kp.calibrate(model)
    wrappers = kp.protected_layers(model)
    for name, kept in (("separable", "depthwise_kernel"), ("frozen", "kernel")):
        np.testing.assert_array_equal(
            getattr(wrappers[name].layer, kept),
            getattr(base.get_layer(name), kept),
        )
    assert model.calibration.left == ["frozen"]
    for name in ("separable", "conv"):
        gamma, _ = wrappers[name].hidden_parameters()
        np.testing.assert_allclose(np.abs(gamma), 1, atol=1e-4)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_calibration_like_the_original(function):
    base = randomize(nested_model())
    model = kp.protect(base, function=function)
    kp.bind(model, kp.Passport.random_pattern(model))
    kp.calibrate(model, like=base)
    pairs = kernels_and_normalizations(base)
    for path, layer in kp.protected_layers(model).items():
        original = pairs[path][1]
        hidden = dict(
            zip(("gamma", "beta"), layer.hidden_parameters(), strict=True)
        )
        for role in layer.function.roles:
            np.testing.assert_allclose(
                hidden[role], getattr(original, role), atol=1e-4
            )


def test_calibration_like_an_original_without_scale_or_normalisation():
    inputs = keras.Input((8, 8, 4))
    x = layers.Conv2D(6, 3, name="one")(inputs)
    x = layers.BatchNormalization(scale=False)(x)
    x = layers.Conv2D(6, 3, name="two", activation="relu")(x)
    base = randomize(keras.Model(inputs, layers.Dense(2)(x)))
    model = kp.protect(base, insert=True)
    kp.bind(model, kp.Passport.random_pattern(model))
    kp.calibrate(model, like=base)
    one, two = kp.protected_layers(model).values()
    np.testing.assert_allclose(one.hidden_parameters()[0], 1, atol=1e-4)
    np.testing.assert_allclose(
        one.hidden_parameters()[1], base.layers[2].beta, atol=1e-4
    )
    np.testing.assert_allclose(two.hidden_parameters()[0], 1, atol=1e-4)
    np.testing.assert_allclose(two.hidden_parameters()[1], 0, atol=1e-4)


def test_calibration_like_another_network():
    base = nested_model()
    model = kp.protect(base)
    kp.bind(model, kp.Passport.random_pattern(model))
    before = [np.array(weight) for weight in model.weights]
    with pytest.raises(kp.PassportError, match="made of"):
        kp.calibrate(model, like=multi_input_model())
    for old, new in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.eager
@pytest.mark.parametrize("beta", [0.0, 1e-3, 0.1])
@pytest.mark.parametrize("order", [True, False])
def test_layers_of_one_row_train_on(order, beta):
    """Of one number, keys of γ and β are parallel, however small one is."""
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(6, 3, activation="relu")(inputs)
    x = keras.layers.BatchNormalization(name="before")(x)
    x = keras.layers.DepthwiseConv2D(1, use_bias=False)(x)
    x = keras.layers.BatchNormalization(name="after")(x)
    x = keras.layers.Conv2D(6, 3)(keras.layers.ReLU()(x))
    x = keras.layers.GlobalAveragePooling2D()(x)
    base = keras.Model(inputs, keras.layers.Dense(4, activation="softmax")(x))
    rng = np.random.default_rng(0)
    for name in ("before", "after"):
        given = base.get_layer(name).beta
        given.assign(beta * rng.normal(size=given.shape))
    model, _ = kp.protect_trained(base, seed=0, order=order)
    x = rng.normal(size=(32, 8, 8, 3)).astype("float32")
    y = np.arange(32) % 4
    model.compile(keras.optimizers.SGD(0.01), "sparse_categorical_crossentropy")
    losses = [float(model.train_on_batch(x, y)) for _ in range(5)]
    assert losses == sorted(losses, reverse=True), losses
    assert losses[-1] > 0.9 * losses[0]


@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("small", [0.0, 1e-12, 1e-5, 1e-2])
def test_duals_of_keys_of_any_size(rows, small):
    """Those of tensors are those of arrays, and none is huge."""
    base = keras.Sequential(
        [
            keras.Input((rows,)),
            keras.layers.Dense(3),
            keras.layers.BatchNormalization(),
        ]
    )
    model = kp.protect(base)
    [layer] = kp.protected_layers(model).values()
    rng = np.random.default_rng(0)
    keys = rng.normal(size=(2, rows)).astype("float32")
    keys[1] *= small / np.linalg.norm(keys[1])
    expected = dual_basis(keys)
    found = decoupling._duals(layer, ops.convert_to_tensor(keys.reshape(1, -1)))
    found = ops.convert_to_numpy(found).reshape(keys.shape)
    scale = 1 / np.linalg.norm(keys[0])
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * scale)
    assert np.abs(expected).max() < 200 * max(scale, 1 / max(small, 1e-2))
