"""What of a suspect network can be compared: kernels, γ, β, statistics.

A suspect comes in any form: a protected model, an ordinary Keras model, with
normalisations or with all of them folded into kernels, or the bare variables
of a file.
"""

import hashlib
from collections.abc import Mapping

import keras
import numpy as np
from keras import ops

from keras_passport import graph
from keras_passport.errors import PassportError
from keras_passport.layers import folding, kernels, packing, row_order
from keras_passport.layers.normalization import SUPPORTED
from keras_passport.layers.passport_normalization import PassportNormalization
from keras_passport.layers.protected import protected_layers
from keras_passport.models import sites
from keras_passport.ownership import arrays
from keras_passport.ownership.kernel_layer import KernelLayer
from keras_passport.passports.passport import Passport
from keras_passport.secrecy import type_of
from keras_passport.texts import shown

# Between a kernel and its normalisation these keep channels apart: those that
# a protected layer may have there, and those that others put there.
_BETWEEN = (
    *sites.BETWEEN,
    keras.layers.Dropout,
    keras.layers.Identity,
    *(getattr(keras.layers, f"SpatialDropout{n}D") for n in (1, 2, 3)),
)


def read(network, orders: dict | None = None) -> list[KernelLayer]:
    """All kernel layers of a network, in the order of its graph.

    Args:
        network: A Keras model, protected or not, whose passport, if one is
            bound, is not used; or a dict from names to arrays, as of a
            SavedModel's variables.
        orders: Dict from the path of a passport layer to the secret order in
            which its kernel's rows are stored, to be read as a call gathers
            them; `None` to read all as they are stored.

    Raises:
        PassportError: If it is neither, has no kernel, or one of numbers that
            are not finite.

    Example:

    >>> [layer.path for layer in kp.ownership.networks.read(model)]
    ['conv1', 'conv2', 'classes']
    """
    if isinstance(network, keras.Model):
        layers = _of_model(network, orders or {})
    elif isinstance(network, Mapping):
        layers = arrays.layers_of(network)
    else:
        raise PassportError(
            "Expected a suspect that is a Keras model, or a dict from names "
            f"to arrays. Received: a {type_of(network)}"
        )
    if not layers:
        raise PassportError(
            "Expected a network with kernel layers. Received: one without"
        )
    for layer in layers:
        if not np.all(np.isfinite(layer.kernel)):
            raise PassportError(
                "Expected a network of finite numbers. Received: NaN or "
                f"infinity in the kernel of '{shown(layer.path)}'"
            )
    return layers


def orders(model: keras.Model, passport: Passport) -> dict:
    """The secret orders of rows that a passport holds, as `read` takes them.

    Args:
        model: A protected model.
        passport: Its passport.

    Returns:
        Dict from paths of passport layers; empty if all rows are in theirs.
    """
    packed = passport.fitted(model).rows()
    return {
        path: packing.order_in(layer, packed[path])
        for path, layer in protected_layers(model).items()
        if layer.geometry.ordered_rows
    }


def kernels_hash(model: keras.Model, passport: Passport) -> str:
    """SHA-256 of the kernels that a passport is for.

    Of their rows as they belong, so that it is the same before and after
    `hide_rows`, and in whatever network they are a part of.

    Args:
        model: The protected model.
        passport: Its passport.
    """
    given = {own: path for path, own in passport.match(model).items()}
    stored, layers = orders(model, passport), protected_layers(model)
    total = hashlib.sha256()
    for own in passport.layers:
        layer = layers[given[own]]
        if given[own] in stored:
            found = row_order.gathered(
                layer.adapter,
                layer.layer,
                stored[given[own]],
                layer.row_groups,
            )
        else:
            found = [
                (kernel, kernel.value)
                for kernel in row_order.stored_kernels(
                    layer.adapter, layer.layer
                )
            ]
        for _, value in found:
            # Zeros have no sign.
            values = (_array(value) + 0.0).astype("<f8")
            total.update(f"{own} {values.shape}".encode())
            total.update(np.ascontiguousarray(values).tobytes())
    return total.hexdigest()


def _of_model(model, orders):
    after_layers = normalizations(model)
    layers = []
    for path, layer in graph.walk(model, stop=(PassportNormalization,)):
        if isinstance(layer, PassportNormalization):
            gathered = {}
            if path in orders:
                gathered = {
                    id(variable): value
                    for variable, value in row_order.gathered(
                        layer.adapter,
                        layer.layer,
                        orders[path],
                        layer.row_groups,
                    )
                }
            read_layer = _kernel(path, layer.layer, gathered)
            if read_layer is None:
                continue  # A normalisation alone has nothing to match.
            _read_normalization(
                *(read_layer, layer.layer, layer.normalization),
                layer.gamma,
                layer.beta,
            )
            layers.append(read_layer)
        elif kernels.adapter_for(layer) is not None and layer.built:
            read_layer = _kernel(path, layer)
            if read_layer is None:
                continue
            after = after_layers.get(id(layer))
            if after is None:
                bias = getattr(layer, "bias", None)
                read_layer.beta = None if bias is None else _array(bias)
            else:
                _read_normalization(
                    *(read_layer, layer, after),
                    getattr(after, "gamma", None),
                    getattr(after, "beta", None),
                )
            layers.append(read_layer)
    return layers


def _kernel(path, layer, gathered=None) -> KernelLayer | None:
    name = type(layer).__name__
    separable = name.startswith("Separable")
    kernel = getattr(layer, "pointwise_kernel" if separable else "kernel", None)
    if kernel is None or len(kernel.shape) < 2:
        return None  # A scale for each channel, such as `ChannelScale`.
    values, kind = _array((gathered or {}).get(id(kernel), kernel)), "full"
    if not separable:
        scale = getattr(layer, "kernel_scale", None)
        if scale is not None:
            # int8, of which the layer divides by a scale for each channel.
            values = values / _array(scale)
    if "Depthwise" in name:
        values = values.reshape(-1, 1, values.shape[-1] * values.shape[-2])
        kind = "depthwise"
    elif "Transpose" in name:
        values = np.moveaxis(values, -1, -2)
    elif name == "EinsumDense":
        values = values.reshape(values.shape[0], -1)
    if getattr(layer, "groups", 1) > 1:
        kind = "grouped"
    values = values.reshape(-1, *values.shape[-2:])
    return KernelLayer(path, values, kind)


def _read_normalization(layer, kernel, normalization, gamma, beta):
    mean = getattr(normalization, "moving_mean", None)
    if mean is not None:
        layer.mean = _array(mean) - folding.bias_of(kernel, mean.shape)
        layer.variance = (
            _array(normalization.moving_variance) + normalization.epsilon
        )
    layer.gamma = _of_size(gamma, layer.filters)
    layer.beta = _of_size(beta, layer.filters)


def _of_size(values, size):
    if values is None:
        return None
    values = _array(values).reshape(-1)
    return values if values.size == size else None


def normalizations(model) -> dict:
    """The normalisation that reads each kernel layer, by the layer's id."""
    read_by = {}
    models = [model, *(m for _, m in graph.walk(model) if graph.is_model(m))]
    for one in models:
        if not graph.is_model(one):
            continue
        calls = graph.Graph(one)
        for node in calls.nodes:
            if not isinstance(node.operation, SUPPORTED):
                continue
            source = calls.maker(node.input_tensors[0])
            while source is not None and isinstance(source.operation, _BETWEEN):
                source = calls.maker(source.input_tensors[0])
            if source is not None:
                read_by.setdefault(id(source.operation), node.operation)
    return read_by


def _array(values) -> np.ndarray:
    return ops.convert_to_numpy(values).astype("float64")
