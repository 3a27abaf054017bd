"""What `verify` and `trace` read of a network, whatever its layers."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_passport as kp
from keras_passport.ownership import networks
from keras_passport.ownership.alignment import align
from support.plain_models import randomize


def network(*between):
    """Convolutions, each with what is given behind it."""
    x = inputs = keras.Input((8, 8, 3))
    for number in range(2):
        x = layers.Conv2D(6, 3, padding="same", name=f"conv{number}")(x)
        for make in between:
            x = make()(x)
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(x))
    return randomize(keras.Model(inputs, layers.Dense(4)(x)))


def before_a_kernel():
    """A normalisation that follows no kernel of its own."""
    x = inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(6, 3, name="conv0")(layers.BatchNormalization()(x))
    x = layers.Conv2D(6, 3, name="conv1")(layers.ReLU()(x))
    x = layers.GlobalAveragePooling2D()(layers.BatchNormalization()(x))
    return randomize(keras.Model(inputs, layers.Dense(4)(x)))


BETWEEN = {
    "batch": (layers.BatchNormalization,),
    "layer": (layers.LayerNormalization,),
    "groups": (lambda: layers.GroupNormalization(3),),
    "maximum": (layers.MaxPooling2D, layers.BatchNormalization),
    "average": (lambda: layers.AveragePooling2D(2), layers.BatchNormalization),
    "padding": (layers.ZeroPadding2D, layers.BatchNormalization),
    "cropping": (layers.Cropping2D, layers.BatchNormalization),
}


@pytest.mark.parametrize("between", BETWEEN)
def test_finds_the_scale_and_shift_of_an_unlocked_network(between):
    model = kp.protect(network(*BETWEEN[between]))
    passport = kp.Passport.random_pattern(model)
    kp.calibrate(kp.bind(model, passport))
    read = {
        layer.path: layer
        for layer in networks.read(kp.unlock(model, passport, fold=False))
    }
    protected = kp.protected_layers(model)
    assert len(protected) == 2
    for path, layer in protected.items():
        gamma, beta = layer.hidden_parameters()
        # As `unlock` names its layers after the kernels'.
        np.testing.assert_allclose(read[path].gamma, gamma, 1e-5)
        np.testing.assert_allclose(read[path].beta, beta, 1e-5, 1e-6)


@pytest.mark.parametrize("order", [True, False])
def test_a_normalisation_alone_has_nothing_to_match(order):
    model, passport = kp.protect_trained(before_a_kernel(), order=order)
    found = networks.read(model, networks.orders(model, passport))
    assert [layer.kernel.ndim for layer in found] == [3] * len(found)
    assert len(found) < len(kp.protected_layers(model))
    matches = align(found, networks.read(kp.unlock(model, passport)))
    assert len(matches) == len(found)
    assert min(match.cosines.min() for match in matches) > 0.999


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_said(value):
    model = network(layers.BatchNormalization)
    kernel = model.get_layer("conv1").kernel
    kernel.assign(np.where(np.arange(6) == 2, value, kernel.numpy()))
    with pytest.raises(kp.PassportError, match="finite.*'conv1'"):
        networks.read(model)
