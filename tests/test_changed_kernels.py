"""Whatever changes a protected layer's kernel is followed, or refused."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_passport as kp
from support.marks import marked, needs_keras
from support.plain_models import randomize
from support.truth import relative_difference

pytestmark = pytest.mark.eager

LATER = {"awq": needs_keras("3.14", "no such quantisation")}
X = np.random.default_rng(0).normal(size=(16, 5, 8)).astype("float32")


def network():
    inputs = keras.Input((5, 8))
    x = layers.Dense(12, name="first")(inputs)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.EinsumDense(
        "abc,cd->abd", (None, 6), bias_axes="d", name="second"
    )(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    return randomize(keras.Model(inputs, layers.Dense(3, name="head")(x)))


def protected():
    base = network()
    model = kp.protect(base)
    passport = kp.Passport.random_pattern(model, seed=1)
    return base, kp.bind(model, passport), passport


def predicted(model):
    return ops.convert_to_numpy(model(X, training=False))


@pytest.mark.parametrize("mode", ["int8", "int4", "float8"])
@pytest.mark.parametrize("outer", [False, True])
def test_quantising_a_model_leaves_protected_layers(mode, outer, tmp_path):
    _, model, passport = protected()
    plain = kp.unlock(model, fold=False)
    expected = predicted(model)
    whole = model
    if outer:
        inputs = keras.Input((5, 8))
        whole = keras.Model(inputs, model(inputs))
    with pytest.warns(UserWarning, match="'first' is protected and stays"):
        whole.quantize(mode)
    assert model.get_layer("head").quantization_mode == mode
    received = predicted(whole)
    # No worse than the unlocked model, quantised in the same way, but for how
    # its few numbers happen to be rounded.
    plain.quantize(mode)
    error = relative_difference(predicted(plain), expected)
    assert relative_difference(received, expected) < 1.1 * error + 1e-4
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    kp.bind(loaded, passport)
    np.testing.assert_allclose(predicted(loaded), predicted(model), rtol=1e-4)


@pytest.mark.parametrize("name", ["first", "second"])
def test_a_wrapped_layer_refuses(name):
    _, model, _ = protected()
    expected = predicted(model)
    layer = model.get_layer(name)
    for quantize in (layer.layer.quantize, layer.quantize):
        with pytest.raises(kp.PassportError, match="stays as it is"):
            quantize("int8")
    np.testing.assert_array_equal(predicted(model), expected)
    # Which raises once the policy is set: no call gives wrong outputs.
    with pytest.raises(kp.PassportError, match="stays as it is"):
        layer.layer.dtype_policy = "int8_from_float32"
    with pytest.raises(kp.PassportError, match="stays as it is"):
        predicted(model)


@pytest.mark.parametrize("mode", marked(("gptq", "awq"), LATER))
def test_block_wise_quantisation_is_refused(mode):
    _, model, _ = protected()
    before = model.get_weights()
    kind = getattr(keras.quantizers, f"{mode.upper()}Config")
    config = kind(dataset=["a"], tokenizer=lambda x: x)
    with pytest.raises(kp.PassportError, match="stays as it is"):
        model.quantize(mode, config=config)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("part", ["layer", "normalization", "between"])
def test_parts_stay(part):
    _, model, _ = protected()
    expected = predicted(model)
    with pytest.raises(kp.PassportError, match="Expected layer 'first' to"):
        setattr(model.get_layer("first"), part, layers.Dense(12))
    np.testing.assert_array_equal(predicted(model), expected)


def test_an_assigned_kernel_is_followed():
    _, model, _ = protected()
    layer = model.get_layer("first")
    layer.layer.kernel.assign(2.0 * layer.layer.kernel)
    gamma, _ = layer.hidden_parameters()
    plain = kp.unlock(model)
    np.testing.assert_allclose(
        predicted(plain), predicted(model), rtol=1e-3, atol=1e-4
    )
    assert np.any(gamma)


def test_lora_is_followed(tmp_path):
    _, model, passport = protected()
    for name in ("first", "second"):
        model.get_layer(name).layer.enable_lora(2)
    expected = predicted(model)
    model.compile(keras.optimizers.SGD(0.05), "mse")
    model.fit(X, np.zeros((16, 5, 3), "float32"), verbose=0)
    trained = predicted(model)
    assert relative_difference(trained, expected) > 1e-3
    for name in ("first", "second"):
        layer = model.get_layer(name)
        kernel = ops.convert_to_numpy(layer.layer.kernel)
        assert np.any(ops.convert_to_numpy(layer.layer.lora_kernel_b))
        keys = passport.keys(model)[name]
        for hidden, role in zip(
            layer.hidden_parameters(), ("gamma", "beta"), strict=True
        ):
            np.testing.assert_allclose(
                hidden, np.asarray(keys[role]) @ kernel, rtol=1e-3, atol=1e-4
            )
    for fold in (True, False):
        plain = kp.unlock(model, fold=fold)
        assert relative_difference(predicted(plain), trained) < 1e-4
    kp.calibrate(model)
    assert model.calibration.left == ["first", "second"]
    # Files hold the merged kernel.
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    kp.bind(loaded, passport)
    assert relative_difference(predicted(loaded), trained) < 1e-4
    again = kp.protect(kp.unlock(model, fold=False))
    kp.bind(again, kp.Passport.random_pattern(again, seed=1))
    assert predicted(again).shape == trained.shape
