"""`KernelAdapter`: how one type of kernel layer meets a passport."""

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_passport.errors import PassportError
from keras_passport.hints import Layer, Tensor
from keras_passport.layers import key_groups
from keras_passport.layers.duals import dual_basis
from keras_passport.passports.geometry import Geometry


class KernelAdapter:
    """How one type of linear layer meets a passport.

    A subclass says what differs between layer types. It holds no state; every
    method takes the built layer.
    """

    # Names of the kernels whose rows can be stored in another order, and
    # which of their axes is no part of the rows' numbers.
    kernel_names: tuple[str, ...] = ("kernel",)
    columns_axis = -1

    def channels(self, layer: Layer) -> int:
        """Number of input channels of the built layer."""
        raise NotImplementedError

    def units(self, layer: Layer) -> int:
        """Number of output channels of the built layer."""
        raise NotImplementedError

    def geometry(self, layer: Layer) -> Geometry:
        """The `Geometry` by which the layer's passports are digested."""
        raise NotImplementedError

    def apply(self, layer: Layer, keys: Tensor) -> Tensor:
        """The layer's linear map on mean patches.

        Args:
            layer: The built kernel layer.
            keys: float32 tensor of shape `(batch, *key_shape)`.

        Returns:
            float32 tensor of shape `(batch, output channels)`.
        """
        raise NotImplementedError

    def spread(self, layer: Layer, keys: Tensor, values: Tensor) -> Tensor:
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

    def weight(self, layer: Layer) -> Any:
        """The trainable variable in which `apply` is linear, if there is one.

        Without one, a passport's gradient is not decoupled.
        """
        if getattr(layer, "lora_enabled", False):
            return None
        kernels = [v for v in layer.trainable_variables if v.name == "kernel"]
        return kernels[0] if len(kernels) == 1 else None

    def blocks(self, layer: Layer) -> int:
        """Into how many groups of input channels a kernel's filters fall."""
        return 1

    def solvable(self, layer: Layer) -> Any:
        """The trainable variable that can be solved for responses, if any.

        That is `weight` where there is one; for separable layers, whose
        response is linear in each of two kernels, the pointwise one.
        """
        return self.weight(layer)

    def smallest_change(
        self, layer: Layer, keys: Tensor, change: Tensor
    ) -> Tensor:
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

    def spread_groups(
        self, layer: Layer, keys: Tensor, values: Tensor
    ) -> Tensor:
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

    def matrix(self, layer: Layer) -> np.ndarray:
        """The kernel as a linear map from keys to hidden parameters.

        Args:
            layer: The built kernel layer.

        Returns:
            float32 array `(blocks, rows, output channels of a block)`; see
            `blocks` and `keys_of`.
        """
        shape = self.key_shape(layer)
        # Of one block, whatever there are: a subclass may know better.
        ones = np.eye(math.prod(shape), dtype="float32")
        ones = ops.convert_to_tensor(ones.reshape(-1, *shape))
        response = self.apply(layer, ones)
        return ops.convert_to_numpy(response)[None]

    def keys_of(self, layer: Layer, rows: np.ndarray) -> np.ndarray:
        """The keys that the kernel meets as its `matrix` meets rows.

        Args:
            layer: The built kernel layer.
            rows: Array of shape `(groups, blocks, rows)`.

        Returns:
            Array of shape `(groups, *key_shape)` in which each block's rows
            are its part of a key in C order.
        """
        shape = self.key_shape(layer)
        groups, blocks, _ = rows.shape
        parts = rows.reshape(groups, blocks, -1, shape[-1] // blocks)
        return parts.transpose(0, 2, 1, 3).reshape(groups, *shape)

    def folded(
        self, layer: Layer, scale: Tensor, read: Callable = ops.convert_to_numpy
    ) -> dict:
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

    def refusal(self, layer: Layer) -> str | None:
        """Why this layer can't be protected, or `None` if it can."""
        mode = getattr(layer, "quantization_mode", None)
        return f"it is quantized ({mode})" if mode else None

    def with_bias(self, config: dict) -> dict:
        """The layer's config, changed so that it has a bias per channel."""
        return {**config, "use_bias": True}

    def channel_axis(self, layer: Layer) -> int:
        """The axis of the layer's output that holds its channels."""
        data_format = getattr(layer, "data_format", "channels_last")
        return 1 if data_format == "channels_first" else -1

    def key_shape(self, layer: Layer) -> tuple[int, ...]:
        """Shape of one key of the layer."""
        return self.geometry(layer).filter_shape

    def response(self, layer: Layer, keys: Tensor) -> Tensor:
        """Hidden parameters F(W, p) of keys (Table 1, "Avg(W*p)").

        Args:
            layer: The built kernel layer.
            keys: Float tensor of shape `(batch, *key_shape)`; or `(batch,
                groups, *key_shape)`: each output channel then has the key of
                its group, as `key_groups` deals them out.

        Returns:
            float32 tensor of shape `(batch, output channels)`; of a kernel in
            float64, float64.

        Raises:
            PassportError: If the keys do not have the layer's key shape.

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
            raise PassportError(
                f"Expected keys of shape (batch, *{expected}) for layer "
                f"'{layer.name}'. Received: shape={tuple(keys.shape)}"
            )
        keys = ops.cast(keys, _wide(layer.variable_dtype))
        if groups == 1:
            return self.apply(layer, reshaped(keys, *expected))
        response = self.apply(layer, ops.reshape(keys, (-1, *expected)))
        return key_groups.join(response, groups, self.blocks(layer))


# Tools of adapters -----------------------------------------------------------


def full_precision(kernel):
    """A kernel as a float32 tensor; one in float64 as it is."""
    kernel = ops.convert_to_tensor(kernel)
    return ops.cast(kernel, _wide(kernel.dtype))


def _wide(dtype) -> str:
    return keras.backend.result_type(dtype, "float32")


def numpy_of(kernel) -> np.ndarray:
    """A kernel as an array, float32 or float64."""
    return ops.convert_to_numpy(full_precision(kernel))


def reshaped(keys: Tensor, *last):
    """Keys in another shape, of which the batch axis may be open."""
    return ops.reshape(keys, (keys.shape[0] or -1, *last))
