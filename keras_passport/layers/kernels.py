"""The registry of kernel layers: how each type meets a passport.

One entry per layer type says which kernel it has, how a passport is digested
into a key (its `Geometry`), and how a key meets the kernel (its `response`).
Nothing else in the package asks what type a kernel layer is.
"""

import keras

from keras_passport.layers import channel_scale, stock_kernels
from keras_passport.layers.kernel_adapter import KernelAdapter

_REGISTRY = {
    keras.layers.Conv1D: stock_kernels.Convolution(),
    keras.layers.Conv2D: stock_kernels.Convolution(),
    keras.layers.Conv3D: stock_kernels.Convolution(),
    keras.layers.DepthwiseConv1D: stock_kernels.Depthwise(),
    keras.layers.DepthwiseConv2D: stock_kernels.Depthwise(),
    keras.layers.SeparableConv1D: stock_kernels.Separable(),
    keras.layers.SeparableConv2D: stock_kernels.Separable(),
    keras.layers.Conv1DTranspose: stock_kernels.Transpose(),
    keras.layers.Conv2DTranspose: stock_kernels.Transpose(),
    keras.layers.Conv3DTranspose: stock_kernels.Transpose(),
    keras.layers.Dense: stock_kernels.Dense(),
    keras.layers.EinsumDense: stock_kernels.EinsumDense(),
    channel_scale.ChannelScale: channel_scale.ChannelScaleAdapter(),
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
        TypeError: If the class is no Keras layer or the adapter none.

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
        raise TypeError(
            "Expected layer_class to be a subclass of keras.layers.Layer. "
            f"Received: layer_class={layer_class}"
        )
    if not isinstance(adapter, KernelAdapter):
        raise TypeError(
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
    stock = _STOCK.get(type(layer))
    return stock is not None and stock is adapter_for(layer)


def adapter_for(layer) -> KernelAdapter | None:
    """The adapter of a layer or layer class; `None` if it has no kernel."""
    base, changed = _registered(layer)
    return None if base is None or changed else _REGISTRY[base]


def unregistered(layer) -> str | None:
    """Why a subclass of a registered layer has no adapter.

    Args:
        layer: Any layer.

    Returns:
        The reason; `None` if it has one, or is no such subclass.
    """
    base, changed = _registered(layer)
    if not changed:
        return None
    return (
        f"has its own '{changed[0]}', so it is no {base.__name__} to a "
        "passport; see register_kernel_layer"
    )


def _registered(layer) -> tuple:
    """The registered class of a layer, and what its own class changes."""
    cls = layer if isinstance(layer, type) else type(layer)
    for base in cls.__mro__:
        if base in _REGISTRY:
            derived = cls.__mro__[: cls.__mro__.index(base)]
            return base, [
                name
                for name in _LINEAR_MAP
                if any(name in vars(c) for c in derived)
            ]
    return None, []
