"""Models for `protect` to transform, and how to compare them."""

import keras
import numpy as np
from keras import layers, ops


def conv_bn(x, name, filters=6, **options):
    x = layers.Conv2D(filters, 3, padding="same", name=f"{name}_conv")(x)
    return layers.BatchNormalization(name=f"{name}_bn", **options)(x)


def image_model(function, name="made"):
    """A model of images whose graph a function builds."""
    images = keras.Input((8, 8, 3), name="images")
    return keras.Model(images, function(images), name=name)


class Scale(layers.Layer):
    """A layer of one's own, not registered for saving."""

    def __init__(self, start=0.5, **kwargs):
        super().__init__(**kwargs)
        self.start = start

    def build(self, input_shape):
        self.scale = self.add_weight(shape=(), initializer="zeros")

    def call(self, inputs):
        return inputs * (self.scale + self.start)

    def get_config(self):
        return {**super().get_config(), "start": self.start}


class Block(layers.Layer):
    """A kernel, a normalisation and a weight of its own: no graph of layers."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.conv = layers.Conv2D(6, 3, name="inner_conv")
        self.bn = layers.BatchNormalization(name="inner_bn")

    def build(self, input_shape):
        self.conv.build(input_shape)
        self.bn.build(self.conv.compute_output_shape(input_shape))
        self.factor = self.add_weight(shape=(), initializer="ones")

    def call(self, inputs):
        return self.bn(self.conv(inputs)) * self.factor


def random_inputs(model, count=4):
    rng = np.random.default_rng(7)
    return keras.tree.map_structure(
        lambda tensor: rng.random((count, *tensor.shape[1:]), "float32"),
        getattr(model, "_inputs_struct", model.inputs[0]),
    )


def assert_near(received, expected, tolerance=1e-5):
    keras.tree.assert_same_structure(expected, received)
    for one, other in zip(
        keras.tree.flatten(received), keras.tree.flatten(expected), strict=True
    ):
        one, other = (
            ops.convert_to_numpy(ops.cast(y, "float32")) for y in (one, other)
        )
        scale = max(1.0, np.abs(other).max())
        np.testing.assert_allclose(one, other, atol=tolerance * scale)
