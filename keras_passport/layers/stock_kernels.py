"""The adapters of Keras's own kernel layers; `kernels` registers them."""

import math
import re

import numpy as np
from keras import ops

from keras_passport.layers import key_groups
from keras_passport.layers.duals import dual_basis
from keras_passport.layers.kernel_adapter import (
    KernelAdapter,
    full_precision,
    numpy_of,
    reshaped,
)
from keras_passport.passports.geometry import Geometry


class Convolution(KernelAdapter):
    """Conv1D, Conv2D and Conv3D, grouped ones too."""

    def channels(self, layer):
        return layer.kernel.shape[-2] * layer.groups

    def units(self, layer):
        return layer.kernel.shape[-1]

    def geometry(self, layer):
        return Geometry(
            "convolution",
            channels=self.channels(layer),
            kernel_size=tuple(layer.kernel_size),
            strides=tuple(layer.strides),
            dilation=tuple(layer.dilation_rate),
            padding=layer.padding,
            data_format=layer.data_format,
        )

    def apply(self, layer, keys):
        kernel = full_precision(layer.kernel)
        groups, units = layer.groups, kernel.shape[-1]
        if groups == 1:
            flat = ops.reshape(kernel, (-1, units))
            return ops.matmul(reshaped(keys, flat.shape[0]), flat)
        width = kernel.shape[-2]
        kernel = ops.reshape(kernel, (-1, width, groups, units // groups))
        keys = reshaped(keys, kernel.shape[0], groups, width)
        return reshaped(ops.einsum("bkgc,kcgu->bgu", keys, kernel), units)

    def blocks(self, layer):
        return layer.groups

    def matrix(self, layer):
        kernel = numpy_of(layer.kernel)
        width, groups = kernel.shape[-2], layer.groups
        units = kernel.shape[-1] // groups
        kernel = kernel.reshape(-1, width, groups, units)
        return kernel.transpose(2, 0, 1, 3).reshape(groups, -1, units)

    def spread(self, layer, keys, values):
        shape = layer.kernel.shape
        groups, width, units = layer.groups, *shape[-2:]
        if groups == 1:
            keys = ops.transpose(reshaped(keys, math.prod(shape[:-1])))
            return ops.reshape(ops.matmul(keys, values), shape)
        keys = reshaped(keys, math.prod(shape[:-2]), groups, width)
        values = reshaped(values, groups, units // groups)
        return ops.reshape(ops.einsum("bkgc,bgu->kcgu", keys, values), shape)


class Depthwise(Convolution):
    """DepthwiseConv1D and DepthwiseConv2D: a key per input channel."""

    def channels(self, layer):
        return layer.kernel.shape[-2]

    def units(self, layer):
        return layer.kernel.shape[-2] * layer.kernel.shape[-1]

    def apply(self, layer, keys):
        return _depthwise_response(layer.kernel, keys)

    def blocks(self, layer):
        return self.channels(layer)

    def matrix(self, layer):
        kernel = numpy_of(layer.kernel)
        return kernel.reshape(-1, *kernel.shape[-2:]).transpose(1, 0, 2)

    def spread(self, layer, keys, values):
        shape = layer.kernel.shape
        keys = reshaped(keys, math.prod(shape[:-2]), shape[-2])
        values = reshaped(values, *shape[-2:])
        return ops.reshape(ops.einsum("bkc,bcm->kcm", keys, values), shape)

    def folded(self, layer, scale, read=ops.convert_to_numpy):
        kernel = read(layer.kernel)
        # The backend would make a tensor of NumPy's array.
        reshape = np.reshape if isinstance(scale, np.ndarray) else ops.reshape
        return {"kernel": kernel * reshape(scale, tuple(kernel.shape[-2:]))}


class Separable(Depthwise):
    """SeparableConv1D and SeparableConv2D: through both kernels."""

    kernel_names = ("depthwise_kernel", "pointwise_kernel")

    def weight(self, layer):
        return None  # The response is a product of two variables.

    def solvable(self, layer):
        kernel = layer.pointwise_kernel
        return kernel if kernel.trainable else None

    def smallest_change(self, layer, keys, change):
        # The pointwise kernel meets the keys as the depthwise one mixes them.
        shape = self.key_shape(layer)
        groups = key_groups.count(keys, shape)
        mixed = _depthwise_response(
            layer.depthwise_kernel, ops.reshape(keys, (-1, *shape))
        )
        mixed = ops.convert_to_numpy(mixed)
        if groups > 1:
            mixed = mixed.reshape(-1, groups, mixed.shape[-1])
        duals = dual_basis(mixed, 1, groups).reshape(-1, mixed.shape[-1])
        change = ops.convert_to_tensor(change, "float32")
        return ops.reshape(
            ops.matmul(
                ops.transpose(ops.convert_to_tensor(duals)),
                key_groups.split(change, groups),
            ),
            layer.pointwise_kernel.shape,
        )

    def blocks(self, layer):
        return 1  # The second kernel mixes the channels.

    def matrix(self, layer):
        # Of the depthwise kernel, the part that says how large and alike its
        # filters are: keys are sums of them, since nothing else gets through.
        mixes = np.linalg.qr(self._depthwise(layer))[1]
        last = numpy_of(layer.pointwise_kernel)
        last = last.reshape(len(mixes), -1, last.shape[-1])
        last = np.matmul(mixes, last.astype("float64"))
        return last.reshape(1, -1, last.shape[-1]).astype("float32")

    def keys_of(self, layer, rows):
        filters = np.linalg.qr(self._depthwise(layer))[0]
        rows = rows.reshape(len(rows), len(filters), -1)
        keys = np.einsum("ckr,gcr->gkc", filters, rows)
        return keys.reshape(-1, *self.key_shape(layer)).astype(rows.dtype)

    def _depthwise(self, layer):
        """The depthwise kernel, float64 `(channels, elements, multiplier)`."""
        kernel = numpy_of(layer.depthwise_kernel).astype("float64")
        return kernel.reshape(-1, *kernel.shape[-2:]).transpose(1, 0, 2)

    def folded(self, layer, scale, read=ops.convert_to_numpy):
        return {
            "depthwise_kernel": read(layer.depthwise_kernel),
            "pointwise_kernel": read(layer.pointwise_kernel) * scale,
        }

    def channels(self, layer):
        return layer.depthwise_kernel.shape[-2]

    def units(self, layer):
        return layer.pointwise_kernel.shape[-1]

    def apply(self, layer, keys):
        mixed = _depthwise_response(layer.depthwise_kernel, keys)
        pointwise = full_precision(layer.pointwise_kernel)
        return ops.matmul(
            mixed, ops.reshape(pointwise, (-1, pointwise.shape[-1]))
        )


def _depthwise_response(kernel, keys):
    kernel = full_precision(kernel)
    channels, multiplier = kernel.shape[-2:]
    kernel = ops.reshape(kernel, (-1, channels, multiplier))
    keys = reshaped(keys, kernel.shape[0], channels)
    return reshaped(
        ops.einsum("bkc,kcm->bcm", keys, kernel), channels * multiplier
    )


class Transpose(KernelAdapter):
    """Conv1DTranspose, Conv2DTranspose and Conv3DTranspose."""

    columns_axis = -2

    def channels(self, layer):
        return layer.kernel.shape[-1]

    def units(self, layer):
        return layer.kernel.shape[-2]

    def geometry(self, layer):
        padding = layer.output_padding
        rank = len(layer.kernel_size)
        if isinstance(padding, int):
            padding = (padding,) * rank
        return Geometry(
            "transpose",
            channels=self.channels(layer),
            kernel_size=tuple(layer.kernel_size),
            strides=tuple(layer.strides),
            dilation=tuple(layer.dilation_rate),
            padding=layer.padding,
            data_format=layer.data_format,
            output_padding=None if padding is None else tuple(padding),
        )

    def folded(self, layer, scale, read=ops.convert_to_numpy):
        return {"kernel": read(layer.kernel) * scale[:, None]}

    def matrix(self, layer):
        kernel = numpy_of(layer.kernel)
        units, channels = kernel.shape[-2:]
        kernel = kernel.reshape(-1, units, channels).transpose(0, 2, 1)
        return kernel.reshape(1, -1, units)

    def apply(self, layer, keys):
        kernel = full_precision(layer.kernel)
        units, channels = kernel.shape[-2:]
        kernel = ops.reshape(kernel, (-1, units, channels))
        keys = reshaped(keys, kernel.shape[0], channels)
        return ops.einsum("bkc,kuc->bu", keys, kernel)

    def spread(self, layer, keys, values):
        shape = layer.kernel.shape
        keys = reshaped(keys, math.prod(shape[:-2]), shape[-1])
        return ops.reshape(ops.einsum("bkc,bu->kuc", keys, values), shape)


class Dense(KernelAdapter):
    """Dense: the mean of the passport over all axes but the last."""

    def channels(self, layer):
        return layer.kernel.shape[0]

    def units(self, layer):
        return layer.kernel.shape[-1]

    def geometry(self, layer):
        return Geometry("pointwise", channels=self.channels(layer))

    def matrix(self, layer):
        return numpy_of(layer.kernel)[None]

    def apply(self, layer, keys):
        return ops.matmul(keys, full_precision(layer.kernel))

    def spread(self, layer, keys, values):
        return ops.matmul(ops.transpose(keys), values)


class EinsumDense(Dense):
    """EinsumDense where it is a Dense in other words."""

    def with_bias(self, config):
        return {**config, "bias_axes": config["equation"].strip()[-1]}

    # One input axis, the last, is contracted with the kernel's first; the
    # kernel's second becomes the last axis of the output.
    _PLAIN = re.compile(
        r"(?P<batch>(\.\.\.)?[a-zA-Z]*)(?P<i>[a-zA-Z]),(?P=i)(?P<o>[a-zA-Z])"
        r"->(?P=batch)(?P=o)"
    )

    def refusal(self, layer):
        if super().refusal(layer):
            return super().refusal(layer)
        equation = layer.equation.replace(" ", "")
        match = self._PLAIN.fullmatch(equation)
        letters = match and match["batch"] + match["i"] + match["o"]
        if not match or len(set(letters.replace("...", ""))) != len(
            letters.replace("...", "")
        ):
            return (
                f"its equation '{layer.equation}' does more than map the last "
                "axis, as 'abc,cd->abd' does"
            )
        return None
