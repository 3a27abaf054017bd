"""Hidden statistics, against stock normalisations that have theirs."""

import keras
import numpy as np
import pytest

import keras_passport as kp
from support.attack_targets import hidden
from support.known_statistics import pictures, trained
from support.plain_models import (
    nested_model,
    plain_cnn,
    sequential_cnn,
    small_resnet,
)
from support.protected_models import compiled, predict
from support.truth import kernels_and_normalizations, relative_difference

pytestmark = pytest.mark.eager


def separable_cnn():
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.SeparableConv2D(6, 3, name="one", use_bias=False)(inputs)
    x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
    x = keras.layers.SeparableConv2D(8, 3, name="two")(x)
    x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(4)(x))


BASES = (plain_cnn, sequential_cnn, small_resnet, nested_model, separable_cnn)


def hide(base, function="V3"):
    """A model whose statistics are hidden, its passport, γ and β before."""
    model, truth = trained(base, function)
    passport = kp.Passport.random_pattern(model, seed=0)
    assert kp.hide_statistics(model, [pictures(256, seed=9)]) is model
    return model, passport, truth


def statistics(model):
    """Means and variances of each protected layer."""
    return [
        tuple(
            keras.ops.convert_to_numpy(value)
            for value in (
                layer.normalization.moving_mean,
                layer.normalization.moving_variance,
            )
        )
        for layer in kp.protected_layers(model).values()
    ]


def assert_hidden(model):
    for mean, variance in statistics(model):
        assert not mean.any()
        assert np.ptp(variance) == 0 and variance[0] > 0


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("function", ["V2", "V3"])
def test_it_is_what_stock_normalisations_do(base, function):
    """With the kernels as they are now, the γ and β that were before."""
    model, _, truth = hide(base, function)
    stock = base()
    pairs = kernels_and_normalizations(stock)
    layers = kp.protected_layers(model)
    assert pairs.keys() == layers.keys()
    for path, (kernel, normalization) in pairs.items():
        kernel.set_weights(layers[path].layer.get_weights())
        normalization.gamma.assign(truth[path][0])
        normalization.beta.assign(truth[path][1])
    stock.layers[-1].set_weights(model.layers[-1].get_weights())
    kp.estimate_statistics(stock, [pictures(256, seed=9)])
    x = pictures(64, seed=5)
    assert_hidden(model)
    assert relative_difference(predict(model, x), predict(stock, x)) < 0.01


@pytest.mark.parametrize("function", ["V2", "V3"])
def test_nothing_is_left_to_match(function):
    model, passport, truth = hide(plain_cnn, function)
    found, blocks = kp.attacks.match_statistics(kp.unbind(model), pictures())
    assert all(block["cost"] is None for block in blocks)
    start = kp.attacks.opened.neutral(kp.public(model))
    for path in start:
        np.testing.assert_array_equal(found[path], start[path])
    # γ and β do the work now: they are no more what they were.
    for path, (_, beta) in hidden(model, passport).items():
        assert np.abs(beta - truth[path][1]).max() > 0.1


def test_once_is_enough():
    model, _, _ = hide(plain_cnn)
    x = pictures(8)
    first = predict(model, x)
    kp.hide_statistics(model, [pictures(256, seed=9)])
    np.testing.assert_allclose(predict(model, x), first, rtol=1e-4, atol=1e-4)


def test_they_stay_hidden_in_training_and_in_files(tmp_path):
    model, passport, _ = hide(small_resnet)
    x = pictures(16)
    compiled(model).fit(x, np.arange(16) % 4, verbose=0)
    assert_hidden(model)
    expected = predict(model, x)
    model.save(tmp_path / "protected.keras")
    loaded = keras.saving.load_model(tmp_path / "protected.keras")
    kp.bind(loaded, passport)
    np.testing.assert_allclose(predict(loaded, x), expected, rtol=1e-5)
    compiled(loaded).fit(x, np.arange(16) % 4, verbose=0)
    assert_hidden(loaded)
    assert np.abs(predict(loaded, x) - expected).max() > 1e-3
    assert_hidden(kp.public(loaded))


def test_an_attacker_may_estimate_statistics_anew():
    """Frozen ones are no obstacle: that would hide nothing, only hinder."""
    model, _, _ = hide(plain_cnn)
    opened = kp.attacks.opened.Opened(model, statistics=True)
    compiled(opened).fit(pictures(16), np.arange(16) % 4, verbose=0)
    assert all(mean.any() for mean, _ in statistics(opened.public))


def test_normalisations_without_statistics_stay():
    inputs = keras.Input((6,))
    x = keras.layers.Dense(5, name="first")(inputs)
    x = keras.layers.LayerNormalization()(x)
    x = keras.layers.Dense(4, name="second")(x)
    outputs = keras.layers.BatchNormalization()(x)
    model = kp.protect(keras.Model(inputs, outputs))
    kp.bind(model, kp.Passport.random_pattern(model, seed=0))
    layer = kp.protected_layers(model)["first"]
    kernel, parameters = layer.get_weights(), layer.hidden_parameters()
    x = np.random.default_rng(0).normal(size=(64, 6)).astype("float32")
    kp.hide_statistics(model, [x])
    np.testing.assert_array_equal(layer.get_weights()[0], kernel[0])
    np.testing.assert_array_equal(layer.hidden_parameters(), parameters)
    found = kp.protected_layers(model)["second"].normalization
    assert not keras.ops.convert_to_numpy(found.moving_mean).any()


def refused(model, error, match, batches=None):
    before = model.get_weights()
    with pytest.raises(error, match=match):
        kp.hide_statistics(model, [pictures(8)] if batches is None else batches)
    for one, other in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, other)
    assert all(
        layer.normalization.trainable
        for layer in kp.protected_layers(model).values()
    )


def test_refusals():
    refused(trained(plain_cnn, "V1")[0], kp.PassportError, "'first_conv'.*V1")
    model, _ = trained(plain_cnn)
    refused(model, ValueError, "at least one batch", batches=[])
    refused(kp.unbind(model), kp.PassportRequiredError, "has no passport")
    with pytest.raises(kp.PassportError, match="Expected a protected model"):
        kp.hide_statistics(plain_cnn(), [pictures(8)])
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.SeparableConv2D(4, 3, name="odd")(inputs)
    model = kp.protect(
        keras.Model(inputs, keras.layers.BatchNormalization()(x))
    )
    model.get_layer("odd").layer.trainable = False
    kp.bind(model, kp.Passport.random_pattern(model, seed=0))
    refused(model, kp.PassportError, "'odd', SeparableConv2D")
