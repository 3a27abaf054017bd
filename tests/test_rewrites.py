"""Rewrites of public models, against the function of the original."""

import keras
import numpy as np
import pytest

import keras_passport as kp
from support.plain_models import (
    multi_input_model,
    nested_model,
    plain_cnn,
    randomize,
    sequential_cnn,
    small_resnet,
)
from support.truth import relative_difference

REWRITES = {
    "scale": kp.attacks.scale_filters,
    "flip": kp.attacks.flip_signs,
    "permute": kp.attacks.permute_channels,
}
MODELS = {
    "plain": plain_cnn,
    "resnet": small_resnet,
    "sequential": sequential_cnn,
    "nested": nested_model,
    "inputs": multi_input_model,
}


def bound(base=plain_cnn, function="V3"):
    model = kp.protect(randomize(base()), function)
    passport = kp.Passport.random_pattern(model, seed=1)
    return kp.bind(model, passport), passport


def inputs_of(model):
    rng = np.random.default_rng(0)
    return keras.tree.map_structure(
        lambda tensor: rng.random((6, *tensor.shape[1:]), "float32"),
        model._inputs_struct,
    )


def outputs(model, x):
    values = keras.tree.flatten(model(x, training=False))
    return np.concatenate([keras.ops.convert_to_numpy(v) for v in values], -1)


def hidden(model):
    """All γ and β of a bound model, public ones too."""
    return {
        path: tuple(
            keras.ops.convert_to_numpy(own) if value is None else value
            for value, own in zip(
                layer.hidden_parameters(),
                (layer.gamma, layer.beta),
                strict=True,
            )
        )
        for path, layer in kp.protected_layers(model).items()
    }


@pytest.mark.parametrize("rewrite", REWRITES)
@pytest.mark.parametrize(
    "base, function",
    [("resnet", "V1"), ("resnet", "V2"), *((base, "V3") for base in MODELS)],
)
def test_adapted_parameters_keep_the_function(base, rewrite, function):
    model, _ = bound(MODELS[base], function)
    x = inputs_of(model)
    expected = outputs(model, x)
    before = [keras.ops.convert_to_numpy(w) for w in model.weights]
    result = REWRITES[rewrite](model, seed=3)
    parameters = result.parameters(hidden(model))
    received = outputs(kp.attacks.Opened(result.model, parameters), x)
    assert relative_difference(received, expected) < 1e-5
    layers = kp.protected_layers(model)
    done = {*result.orders, *result.factors}
    assert done | set(result.skipped) == set(layers)
    assert not done & set(result.skipped)
    # Of the others, additions, depthwise kernels and so on read all outputs.
    if rewrite != "permute" or base in ("plain", "resnet"):
        assert done
    # The original is as it was.
    for old, new in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(old, keras.ops.convert_to_numpy(new))


@pytest.mark.parametrize("function", ["V1", "V2", "V3"])
@pytest.mark.parametrize("rewrite", REWRITES)
def test_what_the_valid_passport_makes_of_it(rewrite, function):
    model, passport = bound(function=function)
    x = inputs_of(model)
    expected = outputs(model, x)
    rewritten = kp.bind(REWRITES[rewrite](model, seed=3).model, passport)
    difference = relative_difference(outputs(rewritten, x), expected)
    if (rewrite, function) == ("flip", "V1"):
        assert difference < 1e-5  # -γ of -x is what it was.
    else:
        assert difference > 0.05


def test_every_factor_is_in_kernels_and_statistics():
    model, passport = bound()
    result = kp.attacks.scale_filters(model, 3.0, seed=1)
    for path, layer in kp.protected_layers(result.model).items():
        factor = result.factors[path]
        assert np.all((factor >= 1) & (factor <= 3)) and np.ptp(factor) > 0.1
        original = kp.protected_layers(model)[path]
        row = passport.rows()[path]
        for received, given in zip(
            layer.hidden_parameters(row),
            original.hidden_parameters(row),
            strict=True,
        ):
            np.testing.assert_allclose(received, given * factor, rtol=1e-4)


def test_share_of_flips():
    model, _ = bound()
    for share, count in ((0.0, 0), (0.25, 2), (1.0, 8)):
        result = kp.attacks.flip_signs(model, share, seed=1)
        assert np.sum(result.factors["first_conv"] < 0) == count


def test_channels_that_meet_in_an_addition_stay():
    result = kp.attacks.permute_channels(bound(small_resnet)[0])
    assert set(result.orders) == {"block0_1_conv", "block1_1_conv"}
    assert "block1_add" in result.skipped["block1_2_conv"]


def test_layer_normalisations_are_not_scaled():
    inputs = keras.Input((4,))
    x = keras.layers.Dense(6, name="one")(inputs)
    x = keras.layers.LayerNormalization()(x)
    x = keras.layers.Dense(6, name="two")(x)
    x = keras.layers.BatchNormalization()(x)
    model = kp.protect(keras.Model(inputs, x))
    result = kp.attacks.scale_filters(model)
    assert set(result.skipped) == {"one"}
    result = kp.attacks.permute_channels(model)
    assert set(result.skipped) == {"one", "two"}


def test_what_the_owner_froze_is_rewritten_all_the_same():
    model, _ = bound(small_resnet)
    orders = kp.attacks.permute_channels(model, seed=1).orders
    model.trainable = False
    frozen = kp.attacks.permute_channels(model, seed=1).orders
    np.testing.assert_equal(frozen, orders)


def test_wrong_arguments():
    model, _ = bound()
    with pytest.raises(ValueError, match="largest of 1 or more"):
        kp.attacks.scale_filters(model, 0.5)
    with pytest.raises(ValueError, match=r"share in \[0, 1\]"):
        kp.attacks.flip_signs(model, 1.5)
