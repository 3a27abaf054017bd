"""`ChannelScale`: the kernel of a normalisation that has none before it."""

import keras
from keras import ops

from keras_passport.layers.kernel_adapter import (
    KernelAdapter,
    full_precision,
    numpy_of,
)
from keras_passport.passports.geometry import Geometry


@keras.saving.register_keras_serializable(package="keras_passport")
class ChannelScale(keras.layers.Layer):
    """Multiplies each channel, of the last axis, by a factor of its own.

    The factors are 1. In a passport layer they are a kernel for keys to meet,
    where a normalisation that follows no kernel layer of its own is to have a
    secret scale and shift: a key of one element for each channel.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True

    def build(self, input_shape):
        self.kernel = self.add_weight(
            name="kernel", shape=(input_shape[-1],), initializer="ones"
        )

    def call(self, inputs):
        return inputs * self.kernel

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        # Keras makes one by itself of arguments that are plain values alone.
        return super().get_config()


class ChannelScaleAdapter(KernelAdapter):
    """A block for each channel, of one row and one column."""

    kernel_names = ()  # Ones: their order says nothing.

    def channels(self, layer):
        return layer.kernel.shape[0]

    def units(self, layer):
        return layer.kernel.shape[0]

    def geometry(self, layer):
        return Geometry("pointwise", channels=self.channels(layer))

    def blocks(self, layer):
        return self.channels(layer)

    def apply(self, layer, keys):
        return keys * full_precision(layer.kernel)

    def spread(self, layer, keys, values):
        return ops.sum(keys * values, axis=0)

    def matrix(self, layer):
        return numpy_of(layer.kernel).reshape(-1, 1, 1)
