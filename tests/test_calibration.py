"""Where training starts, against what the original computes."""

import warnings

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_passport as kp
from support.plain_models import randomize
from support.truth import relative_difference

pytestmark = pytest.mark.eager


def random(shape, seed=0):
    return np.random.default_rng(seed).normal(0.2, 1, shape).astype("float32")


def bound(model, scale=1.0):
    """The model with keys of a size that is given."""
    for index, layer in enumerate(kp.protected_layers(model).values()):
        keys = [
            scale * random(layer.geometry.key_shape, 10 * index + i)
            for i in range(2)
        ]
        layer.bind_keys(**dict(zip(layer.function.roles, keys, strict=False)))
    return model


def numpy(value):
    return ops.convert_to_numpy(value)


@pytest.mark.parametrize("function", ["V1", "V2", "V3"])
@pytest.mark.parametrize(
    "layer_class, shape",
    [
        (layers.SeparableConv1D, (9, 5)),
        (layers.SeparableConv2D, (7, 7, 5)),
        (layers.Conv2D, (7, 7, 5)),
        (layers.DepthwiseConv2D, (7, 7, 5)),
        (layers.Dense, (6, 5)),
    ],
)
def test_like_the_original(layer_class, shape, function):
    size = (6,) if layer_class is layers.Dense else (6, 3)
    if layer_class is layers.DepthwiseConv2D:
        size = (3,)
    inputs = keras.Input(shape)
    x = layer_class(*size, name="kernel")(inputs)
    base = randomize(
        keras.Model(inputs, layers.BatchNormalization(name="normal")(x))
    )
    model = bound(kp.protect(base, function))
    layer = model.get_layer("kernel")
    before = layer.layer.get_weights()
    kp.calibrate(model, like=base)
    normal = base.get_layer("normal")
    for role, hidden in zip(
        ("gamma", "beta"), layer.hidden_parameters(), strict=True
    ):
        value = getattr(layer, role) if hidden is None else hidden
        np.testing.assert_allclose(
            numpy(value), numpy(getattr(normal, role)), atol=1e-3
        )
    # One kernel changed, by what the report says.
    after = layer.layer.get_weights()
    moved = [
        np.linalg.norm(new - old) / np.linalg.norm(old)
        for old, new in zip(before, after, strict=True)
        if np.any(new != old)
    ]
    assert moved == pytest.approx([model.calibration.rows[0].change], rel=1e-3)
    assert "kernel  changed by" in str(model.calibration)


def plain_vgg():
    inputs = keras.Input((10, 10, 3))
    x = inputs
    for index in range(2):
        x = layers.Conv2D(12, 3, activation="relu", name=f"conv{index}")(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(4, name="classes")(x))


@pytest.mark.parametrize("scale", [1.0, 0.2])
def test_inserted_normalisations_start_from_the_originals_own(scale):
    keras.utils.set_random_seed(0)
    base = randomize(plain_vgg())
    images = [random((32, 10, 10, 3), seed) for seed in range(2)]
    model = bound(kp.protect(base, insert=True), scale)
    kp.calibrate(model, like=base, batches=iter(images))
    x = np.concatenate(images)
    for index in range(2):
        layer = model.get_layer(f"conv{index}")
        kernel, bias = base.get_layer(f"conv{index}").get_weights()
        outputs = numpy(ops.conv(x, kernel)) + bias
        gamma, beta = layer.hidden_parameters()
        deviation = np.sqrt(outputs.var((0, 1, 2)) + 1e-3)
        np.testing.assert_allclose(gamma, deviation, rtol=2e-3, atol=2e-3)
        np.testing.assert_allclose(beta, outputs.mean((0, 1, 2)), atol=5e-3)
        x = np.maximum(outputs, 0)
    # Kernels are larger where that makes the change small.
    sizes = [row.size for row in model.calibration.rows]
    assert max(sizes) > 1 if scale < 1 else min(sizes) < 4
    assert all(row.change < 0.5 for row in model.calibration.rows)
    unlike = bound(kp.protect(base, insert=True), scale)
    with pytest.warns(UserWarning, match="2 normalisations that the original"):
        kp.calibrate(unlike, like=base)
    kp.estimate_statistics(unlike, images)
    x = np.concatenate(images)
    errors = [
        relative_difference(one.predict(x, verbose=0), base(x))
        for one in (model, unlike)
    ]
    assert errors[0] < 0.6 * errors[1]


def test_large_changes_are_named_and_can_be_left_out():
    inputs = keras.Input((12,))
    x = layers.BatchNormalization()(layers.Dense(6, name="small")(inputs))
    x = layers.BatchNormalization()(layers.Dense(6, name="large")(x))
    base = randomize(keras.Model(inputs, x))

    def fresh():
        model = bound(kp.protect(base))
        layer = model.get_layer("small")
        layer.bind_keys(1e-2 * random((12,), 1), 1e-2 * random((12,), 2))
        layer = model.get_layer("large")
        layer.bind_keys(1e2 * random((6,), 3), 1e2 * random((6,), 4))
        return model

    # Of the second one, most of what there is in 6 directions may go.
    model = fresh()
    with pytest.warns(UserWarning, match="more than half .* \\(small: "):
        kp.calibrate(model, like=base)
    assert "small" in model.calibration.large
    model = fresh()
    before = model.get_layer("small").layer.get_weights()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        kp.calibrate(model, like=base, max_change=1.5)
    assert model.calibration.left == ["small"]
    assert "left as it was: it would change by" in str(model.calibration)
    for old, new in zip(
        before, model.get_layer("small").layer.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(old, new)
    # Beside a large change, a layer that can't change has none to be named.
    model = fresh()
    model.get_layer("large").layer.trainable = False
    with pytest.warns(UserWarning, match="\\(small: [0-9.]+\\)"):
        kp.calibrate(model, like=base)
    assert model.calibration.left == ["large"]


def test_wrong_arguments():
    base = plain_vgg()
    model = bound(kp.protect(base, insert=True))
    for options in ({"batches": [1]}, {"max_change": 0.5}):
        with pytest.raises(ValueError, match="Expected like"):
            kp.calibrate(model, **options)
    with pytest.raises(ValueError, match="at least one batch"):
        kp.calibrate(model, like=base, batches=[])
    from keras_passport import models

    assert models.calibrate is kp.calibrate
    kernel = next(iter(kp.protected_layers(model).values())).layer.kernel
    kernel.assign(np.full(kernel.shape, np.nan))
    with pytest.raises(kp.PassportError, match="Expected finite numbers"):
        kp.calibrate(model)
    # Finite, though not its square.
    kernel.assign(np.full(kernel.shape, 1e25))
    kp.calibrate(model)


# Biases that a normalisation cancels ---------------------------------------

# Name: layers of the base, and whether the first one's bias is folded.
CHAINS = {
    "conv": ([layers.Conv2D, layers.BatchNormalization], True),
    "depthwise": ([layers.DepthwiseConv2D, layers.BatchNormalization], True),
    "separable": ([layers.SeparableConv2D, layers.BatchNormalization], True),
    "transpose": ([layers.Conv2DTranspose, layers.BatchNormalization], True),
    "pooled": (
        [
            layers.Conv2D,
            lambda: layers.MaxPooling2D(2, padding="same"),
            lambda: layers.AveragePooling2D(2, padding="same"),
            layers.Cropping2D,
            layers.BatchNormalization,
        ],
        True,
    ),
    "padded": (
        [layers.Conv2D, layers.ZeroPadding2D, layers.BatchNormalization],
        False,
    ),
    "layer": ([layers.Conv2D, layers.LayerNormalization], False),
    "group": (
        [layers.Conv2D, lambda: layers.GroupNormalization(2)],
        False,
    ),
    "active": (
        [
            lambda *a, **k: layers.Conv2D(*a, **k, activation="relu"),
            layers.BatchNormalization,
        ],
        False,
    ),
}


def chain(name):
    first, *rest = CHAINS[name][0]
    size = (3,) if first is layers.DepthwiseConv2D else (4, 3)
    inputs = keras.Input((13, 13, 2))
    x = first(*size, name="kernel")(inputs)
    for make in rest:
        x = make()(x)
    x = layers.GlobalAveragePooling2D()(x)
    return randomize(keras.Model(inputs, layers.Dense(2)(x)))


@pytest.mark.parametrize("name", CHAINS)
def test_a_cancelled_bias_becomes_part_of_the_mean(name):
    base, folded = chain(name), CHAINS[name][1]
    normal = next(one for one in base.layers if "normalization" in one.name)
    model = bound(kp.protect(base))
    layer = model.get_layer("kernel")
    assert layer.layer.use_bias
    x, y = random((6, 13, 13, 2), 3), random((6, 2), 4)
    gamma, beta = layer.hidden_parameters()
    normal.gamma.assign(gamma)
    normal.beta.assign(beta)
    for training in (False, True):
        expected = base(x, training=training)
        received = model(x, training=training)
        assert relative_difference(received, expected) < 1e-4
    assert np.any(numpy(layer.layer.bias)) != folded
    for fold in (True, False):
        plain = kp.unlock(model, fold=fold)
        assert relative_difference(plain(x), model(x)) < 1e-4
    # Nor does it come back, whether statistics are the batch's or frozen.
    for trainable in (True, False):
        layer.normalization.trainable = trainable
        model.compile(keras.optimizers.AdamW(0.05, weight_decay=0.1), "mse")
        before = numpy(layer.layer.bias)
        model.train_on_batch(x, y)
        if folded:
            assert not np.any(numpy(layer.layer.bias))
        else:
            assert np.any(numpy(layer.layer.bias) != before)


def test_hidden_statistics_fold_an_old_bias():
    base = chain("conv")
    model = bound(kp.protect(base))
    layer = model.get_layer("kernel")
    layer.layer.bias.assign(random((4,), 5))
    x = random((64, 13, 13, 2), 3)
    kp.hide_statistics(model, [x])
    assert not np.any(numpy(layer.layer.bias))


@pytest.mark.parametrize(
    "policy", ["float64", "bfloat16", "float16", "mixed_bfloat16"]
)
def test_kernels_of_any_type(policy):
    """Changes are computed in float32, whatever kernels are stored in."""
    if keras.backend.backend() == "jax" and policy == "float64":
        pytest.skip("JAX has it where it is told to alone")
    keras.config.set_dtype_policy(policy)
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(6, 3, use_bias=False, name="conv")(inputs)
    x = layers.BatchNormalization(name="norm")(x)
    base = keras.Model(inputs, layers.GlobalAveragePooling2D()(x))
    model = kp.protect(base)
    kp.bind(model, kp.Passport.random_pattern(model, seed=0))
    kp.calibrate(model)
    layer = kp.protected_layers(model)["conv"]
    tolerance = 0.05 if "float16" in policy else 1e-4
    gamma, beta = layer.hidden_parameters()
    np.testing.assert_allclose(np.abs(gamma), 1, atol=tolerance)
    np.testing.assert_allclose(beta, 0, atol=tolerance)
    layer.set_hidden_parameters(gamma=2 * gamma, beta=beta)
    again, _ = layer.hidden_parameters()
    np.testing.assert_allclose(again, 2 * gamma, atol=2 * tolerance)
    kp.hide_statistics(model, [random((64, 8, 8, 3))])
