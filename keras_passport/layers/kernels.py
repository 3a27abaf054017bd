"""The registry of kernel layers: how each type meets a passport.

One entry per layer type says which kernel it has, how a passport is digested
into a key (its `Geometry`), and how a key meets the kernel (its `response`).
Nothing else in the package asks what type a kernel layer is.
"""

import math
import re

import keras
import numpy as np
from keras import ops

from keras_passport.layers import key_groups
from keras_passport.passports.geometry import Geometry

# Two keys with a smaller angle (in radians) than about this count as one.
_PARALLEL = 1e-3


class KernelAdapter:
    """How one type of linear layer meets a passport.

    A subclass says what differs between layer types. It holds no state; every
    method takes the built layer.
    """

    def channels(self, layer) -> int:
        """Number of input channels of the built layer."""
        raise NotImplementedError

    def units(self, layer) -> int:
        """Number of output channels of the built layer."""
        raise NotImplementedError

    def geometry(self, layer) -> Geometry:
        """The `Geometry` by which the layer's passports are digested."""
        raise NotImplementedError

    def apply(self, layer, keys):
        """The layer's linear map on mean patches.

        Args:
            layer: The built kernel layer.
            keys: float32 tensor of shape `(batch, *key_shape)`.

        Returns:
            float32 tensor of shape `(batch, output channels)`.
        """
        raise NotImplementedError

    def spread(self, layer, keys, values):
        """The adjoint of `apply`: kernels whose response to a key is given.

        Args:
            layer: The built kernel layer.
            keys: float32 tensor of shape `(rows, *key_shape)`.
            values: float32 tensor of shape `(rows, output channels)`.

        Returns:
            float32 tensor in the shape of `weight(layer)`: the sum over rows
            of key times value.
        """
        raise NotImplementedError

    def weight(self, layer):
        """The trainable variable in which `apply` is linear, if there is one.

        Without one, a passport's gradient is not decoupled.
        """
        if getattr(layer, "lora_enabled", False):
            return None
        found = [v for v in layer.trainable_variables if v.name == "kernel"]
        return found[0] if len(found) == 1 else None

    def blocks(self, layer) -> int:
        """Into how many groups of input channels a kernel's filters fall."""
        return 1

    def solvable(self, layer):
        """The trainable variable that can be solved for responses, if any.

        That is `weight` where there is one; for separable layers, whose
        response is linear in each of two kernels, the pointwise one.
        """
        return self.weight(layer)

    def smallest_change(self, layer, keys, change):
        """The smallest change of a kernel that changes responses as wanted.

        Args:
            layer: The built kernel layer.
            keys: Float array of shape `(rows, *key_shape)`.
            change: Float array of shape `(rows, output channels)`: what the
                keys' responses are to gain.

        Returns:
            float32 tensor in the shape of `solvable(layer)`, linear in
            `change`.
        """
        keys = ops.convert_to_numpy(keys)
        groups = key_groups.count(keys, self.key_shape(layer))
        duals = dual_basis(keys, self.blocks(layer), groups)
        return self.spread_groups(
            layer,
            ops.convert_to_tensor(duals),
            ops.convert_to_tensor(change, "float32"),
        )

    def spread_groups(self, layer, keys, values):
        """`spread` for keys as `response` takes them.

        Args:
            layer: The built kernel layer.
            keys: float32 tensor of shape `(rows, *key_shape)`, or `(rows,
                groups, *key_shape)`.
            values: float32 tensor of shape `(rows, output channels)`.
        """
        shape = self.key_shape(layer)
        groups = key_groups.count(keys, shape)
        values = key_groups.split(values, groups, self.blocks(layer))
        return self.spread(layer, ops.reshape(keys, (-1, *shape)), values)

    def matrix(self, layer) -> np.ndarray:
        """The kernel as a linear map from keys to hidden parameters.

        Args:
            layer: The built kernel layer.

        Returns:
            float32 array `(blocks, rows, output channels of a block)`, where
            rows are a block's part of a key in C order; see `blocks`.
        """
        shape = self.key_shape(layer)
        # Of one block, whatever there are: a subclass may know better.
        ones = np.eye(math.prod(shape), dtype="float32")
        ones = ops.convert_to_tensor(ones.reshape(-1, *shape))
        response = self.apply(layer, ones)
        return ops.convert_to_numpy(response)[None]

    def folded(self, layer, scale, read=ops.convert_to_numpy) -> dict:
        """The layer's kernels with its output channels scaled.

        Args:
            layer: The built kernel layer.
            scale: Array of shape `(output channels,)`, of the kind that
                `read` returns.
            read: Function from a kernel to its array: NumPy's, or the
                backend's (`ops.convert_to_tensor`).

        Returns:
            Dict from the names of weights to arrays.
        """
        return {"kernel": read(layer.kernel) * scale}

    def refusal(self, layer) -> str | None:
        """Why this layer can't be protected, or `None` if it can."""
        mode = getattr(layer, "quantization_mode", None)
        return f"it is quantized ({mode})" if mode else None

    def with_bias(self, config: dict) -> dict:
        """The layer's config, changed so that it has a bias per channel."""
        return {**config, "use_bias": True}

    def channel_axis(self, layer) -> int:
        """The axis of the layer's output that holds its channels."""
        data_format = getattr(layer, "data_format", "channels_last")
        return 1 if data_format == "channels_first" else -1

    def key_shape(self, layer) -> tuple[int, ...]:
        """Shape of one key of the layer."""
        return self.geometry(layer).filter_shape

    def response(self, layer, keys):
        """Hidden parameters F(W, p) of keys (Table 1, "Avg(W*p)").

        Args:
            layer: The built kernel layer.
            keys: Float tensor of shape `(batch, *key_shape)`; or `(batch,
                groups, *key_shape)`: each output channel then has the key of
                its group, as `key_groups` deals them out.

        Returns:
            float32 tensor of shape `(batch, output channels)`.

        Raises:
            ValueError: If the keys do not have the layer's key shape.

        Example:

        >>> from keras_passport.layers import kernels
        >>> layer = keras.layers.Dense(2, kernel_initializer="ones")
        >>> layer.build((None, 3))
        >>> adapter = kernels.adapter_for(layer)
        >>> tuple(adapter.response(layer, np.ones((1, 3), "float32")).shape)
        (1, 2)
        """
        keys = ops.convert_to_tensor(keys)
        expected = self.key_shape(layer)
        groups = key_groups.count(keys, expected)
        if groups is None:
            raise ValueError(
                f"Expected keys of shape (batch, *{expected}) for layer "
                f"'{layer.name}'. Received: shape={tuple(keys.shape)}"
            )
        keys = ops.cast(keys, "float32")
        if groups == 1:
            return self.apply(layer, _flat(keys, *expected))
        response = self.apply(layer, ops.reshape(keys, (-1, *expected)))
        return key_groups.join(response, groups, self.blocks(layer))


def _full_precision(kernel):
    return ops.cast(ops.convert_to_tensor(kernel), "float32")


def _numpy(kernel) -> np.ndarray:
    return ops.convert_to_numpy(_full_precision(kernel))


def _flat(keys, *last):
    return ops.reshape(keys, (keys.shape[0] or -1, *last))


class _Convolution(KernelAdapter):
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
        kernel = _full_precision(layer.kernel)
        groups, units = layer.groups, kernel.shape[-1]
        if groups == 1:
            flat = ops.reshape(kernel, (-1, units))
            return ops.matmul(_flat(keys, flat.shape[0]), flat)
        width = kernel.shape[-2]
        kernel = ops.reshape(kernel, (-1, width, groups, units // groups))
        keys = _flat(keys, kernel.shape[0], groups, width)
        return _flat(ops.einsum("bkgc,kcgu->bgu", keys, kernel), units)

    def blocks(self, layer):
        return layer.groups

    def matrix(self, layer):
        kernel = _numpy(layer.kernel)
        width, groups = kernel.shape[-2], layer.groups
        units = kernel.shape[-1] // groups
        kernel = kernel.reshape(-1, width, groups, units)
        return kernel.transpose(2, 0, 1, 3).reshape(groups, -1, units)

    def spread(self, layer, keys, values):
        shape = layer.kernel.shape
        groups, width, units = layer.groups, *shape[-2:]
        if groups == 1:
            keys = ops.transpose(_flat(keys, math.prod(shape[:-1])))
            return ops.reshape(ops.matmul(keys, values), shape)
        keys = _flat(keys, math.prod(shape[:-2]), groups, width)
        values = _flat(values, groups, units // groups)
        return ops.reshape(ops.einsum("bkgc,bgu->kcgu", keys, values), shape)


class _Depthwise(_Convolution):
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
        kernel = _numpy(layer.kernel)
        return kernel.reshape(-1, *kernel.shape[-2:]).transpose(1, 0, 2)

    def spread(self, layer, keys, values):
        shape = layer.kernel.shape
        keys = _flat(keys, math.prod(shape[:-2]), shape[-2])
        values = _flat(values, *shape[-2:])
        return ops.reshape(ops.einsum("bkc,bcm->kcm", keys, values), shape)

    def folded(self, layer, scale, read=ops.convert_to_numpy):
        kernel = read(layer.kernel)
        # The backend would make a tensor of NumPy's array.
        reshape = np.reshape if isinstance(scale, np.ndarray) else ops.reshape
        return {"kernel": kernel * reshape(scale, tuple(kernel.shape[-2:]))}


class _Separable(_Depthwise):
    """SeparableConv1D and SeparableConv2D: through both kernels."""

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
        first = _numpy(layer.depthwise_kernel)
        last = _numpy(layer.pointwise_kernel)
        first = first.reshape(-1, *first.shape[-2:])
        last = last.reshape(*first.shape[-2:], -1)
        both = np.einsum("kcm,cmu->kcu", first, last)
        return both.reshape(1, -1, both.shape[-1])

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
        pointwise = _full_precision(layer.pointwise_kernel)
        return ops.matmul(
            mixed, ops.reshape(pointwise, (-1, pointwise.shape[-1]))
        )


def dual_basis(keys, blocks: int = 1, groups: int = 1) -> np.ndarray:
    """The basis κ̃ dual to keys: κ̃_i · κ_j = 1 if i is j, else 0.

    Args:
        keys: Float array of shape `(rows, ..., channels)`; with several
            groups, `(rows, groups, ..., channels)`.
        blocks: Groups of channels that have filters of their own, and so a
            basis each.
        groups: Groups of output channels, with a basis each.

    Returns:
        float32 array in the shape of `keys`.
    """
    if groups > 1:
        parts = [dual_basis(keys[:, at], blocks) for at in range(groups)]
        return np.stack(parts, 1)
    shape = keys.shape
    rows = shape[0]
    grouped = keys.reshape(rows, -1, blocks, shape[-1] // blocks)
    grouped = grouped.transpose(2, 0, 1, 3)
    flat = grouped.reshape(blocks, rows, -1).astype("float64")
    # Of keys of equal size, so that only their angle says whether they are
    # parallel: duals of such keys would be all rounding error.
    norms = np.linalg.norm(flat, axis=-1, keepdims=True)
    norms[norms == 0.0] = 1.0
    duals = np.linalg.pinv(flat / norms, rcond=_PARALLEL)
    duals = duals.transpose(0, 2, 1) / norms
    duals = duals.reshape(grouped.shape).transpose(1, 2, 0, 3)
    return duals.reshape(shape).astype("float32")


def _depthwise_response(kernel, keys):
    kernel = _full_precision(kernel)
    channels, multiplier = kernel.shape[-2:]
    kernel = ops.reshape(kernel, (-1, channels, multiplier))
    keys = _flat(keys, kernel.shape[0], channels)
    return _flat(
        ops.einsum("bkc,kcm->bcm", keys, kernel), channels * multiplier
    )


class _Transpose(KernelAdapter):
    """Conv1DTranspose, Conv2DTranspose and Conv3DTranspose."""

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
        kernel = _numpy(layer.kernel)
        units, channels = kernel.shape[-2:]
        kernel = kernel.reshape(-1, units, channels).transpose(0, 2, 1)
        return kernel.reshape(1, -1, units)

    def apply(self, layer, keys):
        kernel = _full_precision(layer.kernel)
        units, channels = kernel.shape[-2:]
        kernel = ops.reshape(kernel, (-1, units, channels))
        keys = _flat(keys, kernel.shape[0], channels)
        return ops.einsum("bkc,kuc->bu", keys, kernel)

    def spread(self, layer, keys, values):
        shape = layer.kernel.shape
        keys = _flat(keys, math.prod(shape[:-2]), shape[-1])
        return ops.reshape(ops.einsum("bkc,bu->kuc", keys, values), shape)


class _Dense(KernelAdapter):
    """Dense: the mean of the passport over all axes but the last."""

    def channels(self, layer):
        return layer.kernel.shape[0]

    def units(self, layer):
        return layer.kernel.shape[-1]

    def geometry(self, layer):
        return Geometry("pointwise", channels=self.channels(layer))

    def matrix(self, layer):
        return _numpy(layer.kernel)[None]

    def apply(self, layer, keys):
        return ops.matmul(keys, _full_precision(layer.kernel))

    def spread(self, layer, keys, values):
        return ops.matmul(ops.transpose(keys), values)


class _EinsumDense(_Dense):
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


_REGISTRY = {
    keras.layers.Conv1D: _Convolution(),
    keras.layers.Conv2D: _Convolution(),
    keras.layers.Conv3D: _Convolution(),
    keras.layers.DepthwiseConv1D: _Depthwise(),
    keras.layers.DepthwiseConv2D: _Depthwise(),
    keras.layers.SeparableConv1D: _Separable(),
    keras.layers.SeparableConv2D: _Separable(),
    keras.layers.Conv1DTranspose: _Transpose(),
    keras.layers.Conv2DTranspose: _Transpose(),
    keras.layers.Conv3DTranspose: _Transpose(),
    keras.layers.Dense: _Dense(),
    keras.layers.EinsumDense: _EinsumDense(),
}

_STOCK = dict(_REGISTRY)

# What a subclass may not change without being registered itself: with any of
# these its output is no longer the registered linear map of its kernel.
_LINEAR_MAP = ("call", "convolution_op", "build", "kernel")


def register_kernel_layer(layer_class: type, adapter: KernelAdapter) -> None:
    """Teaches the package a kernel layer of your own.

    Args:
        layer_class: The layer's class. Its exact type is matched, and those of
            its subclasses that leave the linear map as it is.
        adapter: A `KernelAdapter`. Often the registered one of a similar
            layer serves: `adapter_for(keras.layers.Conv2D)`.

    Raises:
        ValueError: If the class is no Keras layer or the adapter none.

    Example:

    >>> from keras_passport.layers import kernels
    >>> class Scaled(keras.layers.Dense):
    ...     def call(self, inputs, training=None):
    ...         return 2 * super().call(inputs)
    >>> adapter = kernels.adapter_for(keras.layers.Dense)
    >>> kp.register_kernel_layer(Scaled, adapter)
    """
    if not (
        isinstance(layer_class, type)
        and issubclass(layer_class, keras.layers.Layer)
    ):
        raise ValueError(
            "Expected layer_class to be a subclass of keras.layers.Layer. "
            f"Received: layer_class={layer_class}"
        )
    if not isinstance(adapter, KernelAdapter):
        raise ValueError(
            "Expected adapter to be an instance of a KernelAdapter subclass. "
            f"Received: adapter={adapter}"
        )
    _REGISTRY[layer_class] = adapter


def registered_layers() -> tuple[type, ...]:
    """The layer classes that can be protected."""
    return tuple(_REGISTRY)


def is_stock(layer) -> bool:
    """Whether it is a layer of Keras's own, so that its bias is added last.

    Of a layer of the user's own we know that its output is linear in its
    kernel, but not what it does with its bias.
    """
    own = _STOCK.get(type(layer))
    return own is not None and own is adapter_for(layer)


def adapter_for(layer) -> KernelAdapter | None:
    """The adapter of a layer or layer class; `None` if it has no kernel."""
    cls = layer if isinstance(layer, type) else type(layer)
    for base in cls.__mro__:
        if base in _REGISTRY:
            own = cls.__mro__[: cls.__mro__.index(base)]
            changed = any(name in vars(c) for c in own for name in _LINEAR_MAP)
            return None if changed else _REGISTRY[base]
    return None
