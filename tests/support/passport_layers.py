"""Passport layers of every kind, and ordinary Keras layers in their place."""

import keras
import numpy as np
from keras import ops

import keras_passport as kp
from keras_passport.passports.geometry import digest
from support.kernel_layers import KERNELS
from support.truth import plain_response


def random(shape, seed=0):
    return np.random.default_rng(seed).normal(0.2, 1, shape).astype("float32")


def build(kernel="conv2d", function="V3", normalization=None, **kwargs):
    """A built passport layer with passport maps bound, and those maps."""
    layer_class, arguments, shape = KERNELS[kernel]
    layer = kp.PassportNormalization(
        layer_class(**arguments), normalization, function, **kwargs
    )
    layer.build((None, *shape))
    for index, weight in enumerate(layer.weights):
        if "moving" not in weight.path:
            weight.assign(random(weight.shape, 100 + index))
    maps = {
        role: random(shape, seed)
        for seed, role in enumerate(layer.function.roles, start=1)
    }
    layer.bind_keys(**keys_of(layer, maps))
    return layer, maps


def keys_of(layer, maps):
    return {role: digest(p, layer.geometry) for role, p in maps.items()}


def packed(layer, maps):
    """The keys as a row of the call argument."""
    return np.concatenate([k.ravel() for k in keys_of(layer, maps).values()])


def affine(layer, maps):
    """γ and β by plain convolution, or the layer's trainable ones."""
    values = []
    for role in ("gamma", "beta"):
        if role in maps:
            values.append(plain_response(layer.layer, maps[role]))
        else:
            weight = getattr(layer, role)
            values.append(
                None if weight is None else ops.convert_to_numpy(weight)
            )
    return values


def copy_of(layer):
    copy = type(layer).from_config(layer.get_config())
    return copy, [ops.convert_to_numpy(v) for v in layer.variables]


def stock(layer, maps, **options):
    """The layers a passport layer stands for, γ and β overwritten.

    Returns:
        A function of `(inputs, training, mask)`, and its normalisation.
    """
    kernel, weights = copy_of(layer.layer)
    normal = keras.saving.deserialize_keras_object(layer.replaced)
    shape = layer.inputs_shape
    parts = [kernel, *(copy_of(part)[0] for part in layer.between), normal]
    for part in parts:
        part.build(shape)
        shape = part.compute_output_shape(shape)
    kernel.set_weights(weights)
    gamma, beta = affine(layer, maps)
    if gamma is not None:
        normal.gamma.assign(gamma)
    if beta is not None:
        normal.beta.assign(beta)

    def call(inputs, training=None, mask=None):
        for part in parts[:-1]:
            inputs = part(inputs)
        if isinstance(normal, keras.layers.BatchNormalization):
            options = {"training": training, "mask": mask}
        else:
            options = {}
        return layer.activation(normal(inputs, **options))

    return call, normal


def assert_near(received, expected, tolerance=1e-5):
    received = ops.convert_to_numpy(ops.cast(received, "float32"))
    expected = ops.convert_to_numpy(ops.cast(expected, "float32"))
    assert received.shape == expected.shape
    np.testing.assert_allclose(
        received, expected, rtol=tolerance, atol=tolerance
    )


def assert_same_statistics(layer, normal):
    for name in ("moving_mean", "moving_variance"):
        assert_near(
            getattr(layer.normalization, name), getattr(normal, name), 1e-5
        )
