"""What `verify` and `trace` read of a network, whatever its layers."""

import functools

import keras
import numpy as np
import pytest
from keras import layers

import keras_passport as kp
from keras_passport.ownership import networks
from keras_passport.ownership.alignment import align
from support.owned_networks import arrays_of
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


def block(kind):
    """A network with layers that names alone do not tell from others."""
    x = inputs = keras.Input((8, 8, 3))
    made = {
        "MobileNet": [
            layers.Conv2D(8, 3, use_bias=False, name="conv1"),
            layers.DepthwiseConv2D(3, use_bias=False, name="conv_dw_1"),
            layers.Conv2D(8, 1, use_bias=False, name="conv_pw_1"),
        ],
        "grouped": [
            layers.Conv2D(8, 3, use_bias=False, name="conv1"),
            layers.Conv2D(8, 3, groups=2, use_bias=False, name="conv2"),
        ],
        "transposed": [
            layers.Conv2D(8, 3, use_bias=False, name="conv1"),
            layers.Conv2DTranspose(6, 3, use_bias=False, name="conv2"),
            layers.Conv2DTranspose(6, 3, use_bias=False, name="conv3"),
        ],
        "separable": [
            layers.SeparableConv2D(8, 3, use_bias=False, name="conv1"),
            layers.SeparableConv2D(8, 3, name="conv2"),
        ],
        "many": [
            layers.Conv2D(8, 3, padding="same", name=f"conv{number}")
            for number in range(12)
        ],
        "einsum": [
            layers.Conv2D(8, 3, name="conv1"),
            layers.EinsumDense("abcd,def->abcef", (6, 6, 2, 4), name="conv2"),
        ],
    }[kind]
    for layer in made:
        x = layer(x)
        if kind == "einsum":
            continue
        x = layers.BatchNormalization(name=f"{layer.name}_bn")(x)
        x = layers.ReLU(name=f"{layer.name}_relu")(x)
    x = layers.Flatten(name="flat")(x)
    return randomize(keras.Model(inputs, layers.Dense(4, name="head")(x)))


def branches():
    """A shortcut beside a layer: Keras lists both, then what follows both."""
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, padding="same", name="stem")(inputs)
    outputs = []
    for name in ("b", "a"):
        y = layers.Conv2D(8, 1, name=f"conv_{name}")(x)
        outputs.append(layers.BatchNormalization(name=f"{name}_last")(y))
    x = layers.GlobalAveragePooling2D(name="pool")(layers.Add()(outputs))
    return randomize(keras.Model(inputs, layers.Dense(4, name="head")(x)))


NETWORKS = {
    kind: lambda kind=kind: block(kind)
    for kind in ("MobileNet", "grouped", "transposed", "separable", "many")
} | {"einsum": lambda: block("einsum"), "branches": branches}


def numbered(arrays):
    return {
        f"variables/{number}/.ATTRIBUTES/VARIABLE_VALUE": values
        for number, values in enumerate(arrays.values())
    }


def by_name(arrays):
    return dict(sorted(arrays.items()))


@functools.cache
def read_and_held(kind):
    model = NETWORKS[kind]()
    return networks.read(model), arrays_of(model)


HELD = {
    "as listed": dict,
    "by name": by_name,
    "numbered": numbered,
    "in a checkpoint": lambda arrays: by_name(numbered(arrays)),
    "backwards": lambda arrays: dict([*numbered(arrays).items()][::-1]),
    "with text": lambda arrays: {"graph": np.array(["x"]), **arrays},
}


@pytest.mark.parametrize("held", HELD)
@pytest.mark.parametrize("kind", NETWORKS)
def test_arrays_are_read_as_the_layers_that_they_are_of(kind, held):
    """Each kernel in its form, with its own γ, β and statistics."""
    owners, arrays = read_and_held(kind)
    suspects = networks.read(HELD[held](arrays))
    matches = align(owners, suspects)
    assert [match.path for match in matches] == [one.path for one in owners]
    for owner, match in zip(owners, matches, strict=True):
        np.testing.assert_allclose(match.found.kernel, owner.kernel)
        if (kind, held) == ("branches", "by name"):
            continue  # Names that have nothing in common tell nothing.
        for name in ("gamma", "beta", "mean"):
            found, expected = getattr(match.found, name), getattr(owner, name)
            assert (found is None) == (expected is None), (owner.path, name)
            if expected is not None:
                np.testing.assert_allclose(found, expected)


@pytest.mark.parametrize("read", [lambda model: model, arrays_of])
def test_a_bias_before_a_normalisation_is_a_part_of_its_mean(read):
    """Whoever adds a number to both has the same network."""
    model, other = block("many"), block("many")
    other.set_weights(model.get_weights())
    rng = np.random.default_rng(0)
    for layer in other.layers:
        if isinstance(layer, layers.Conv2D):
            added = rng.normal(size=layer.bias.shape).astype("float32")
            layer.bias.assign_add(added)
            after = other.get_layer(f"{layer.name}_bn")
            after.moving_mean.assign_add(added)
    x = rng.normal(size=(4, 8, 8, 3)).astype("float32")
    np.testing.assert_allclose(other(x), model(x), rtol=1e-3, atol=1e-4)
    for one, same in zip(
        networks.read(read(model)), networks.read(read(other)), strict=True
    ):
        for name in ("kernel", "gamma", "beta", "mean", "variance"):
            values, others = getattr(one, name), getattr(same, name)
            assert (values is None) == (others is None)
            if values is not None:
                np.testing.assert_allclose(others, values, atol=1e-5)


def test_arrays_without_a_kernel_are_said():
    with pytest.raises(kp.PassportError, match="kernel layers"):
        networks.read({"graph": np.array(["x"]), "count": np.zeros(())})
