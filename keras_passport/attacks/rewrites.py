"""Rewrites of a public model that keep its function and unfit its passport.

They remove evidence and deny service: a passport's γ and β follow from the
kernels, so after a rewrite the valid passport makes others than the network
needs, while whoever knows γ and β goes on (`Rewrite.parameters`).
"""

import dataclasses
import math

import keras
import numpy as np
from keras import ops

from keras_passport import graph
from keras_passport.layers import folding, kernels, normalization, offsets
from keras_passport.layers.passport_normalization import PassportNormalization
from keras_passport.layers.protected import protected_layers
from keras_passport.models import protected_model

# Layers that treat every channel alike, whatever its number.
CHANNELWISE = (
    keras.layers.Activation,
    keras.layers.AveragePooling1D,
    keras.layers.AveragePooling2D,
    keras.layers.AveragePooling3D,
    keras.layers.Dropout,
    keras.layers.GlobalAveragePooling1D,
    keras.layers.GlobalAveragePooling2D,
    keras.layers.GlobalAveragePooling3D,
    keras.layers.GlobalMaxPooling1D,
    keras.layers.GlobalMaxPooling2D,
    keras.layers.GlobalMaxPooling3D,
    keras.layers.LeakyReLU,
    keras.layers.MaxPooling1D,
    keras.layers.MaxPooling2D,
    keras.layers.MaxPooling3D,
    keras.layers.ReLU,
    keras.layers.ZeroPadding1D,
    keras.layers.ZeroPadding2D,
    keras.layers.ZeroPadding3D,
)


@dataclasses.dataclass(frozen=True)
class Rewrite:
    """A rewritten model, and what was done to it.

    Args:
        model: The rewritten `ProtectedModel`, without a passport.
        orders: Dict from path to the permutation of a layer's channels.
        factors: Dict from path to what a layer's filters were multiplied by.
        skipped: Dict from the path of every other layer to why it was left
            as it is.
    """

    model: keras.Model = dataclasses.field(repr=False)
    orders: dict[str, np.ndarray]
    factors: dict[str, np.ndarray]
    skipped: dict[str, str]

    def parameters(self, parameters: dict) -> dict:
        """γ and β with which the rewritten model computes the same.

        Args:
            parameters: The original's: dict from path to γ and β, float
                arrays `(channels,)`.

        Returns:
            Those of the rewritten model, by path.
        """
        adapted = {}
        for path, (gamma, beta) in parameters.items():
            gamma = np.asarray(gamma) * np.sign(self.factors.get(path, 1.0))
            order = self.orders.get(path, slice(None))
            adapted[path] = gamma[order], np.asarray(beta)[order]
        return adapted


def scale_filters(
    model: keras.Model, largest: float = 4.0, *, seed: int = 0
) -> Rewrite:
    """Multiplies each filter by a positive number, and repairs statistics.

    With W_c → s W_c the moments become s μ_c and s² (σ²_c + ε) - ε, and what
    the normalisation makes of it is as it was. A passport's γ_c and β_c,
    being κ·W_c, are multiplied by s.

    Args:
        model: Protected functional model; what is public of it is used alone.
        largest: The factors are between 1 and this, uniform in logarithm.
        seed: Of the factors.

    Returns:
        A `Rewrite`.

    Raises:
        ValueError: If `largest` is under 1.

    Example:

    >>> rewritten = kp.attacks.scale_filters(model).model
    """
    if largest < 1:
        raise ValueError(
            f"Expected largest of 1 or more. Received: largest={largest}"
        )

    def draw(rng, units):
        return np.exp(rng.uniform(0.0, np.log(largest), units))

    return _scaled(model, draw, seed)


def flip_signs(
    model: keras.Model, share: float = 0.5, *, seed: int = 0
) -> Rewrite:
    """Negates filters with their statistics.

    What is normalised is negated, and so the network needs -γ_c. A passport's
    γ_c = κ·W_c follows by itself, so V1 does not notice; its β_c is negated,
    too, and wrong then.

    Args:
        model: Protected functional model; what is public of it is used alone.
        share: Of each layer's filters, in [0, 1].
        seed: Which.

    Returns:
        A `Rewrite`.

    Raises:
        ValueError: If `share` is not in [0, 1].

    Example:

    >>> rewritten = kp.attacks.flip_signs(model).model
    """
    if not 0 <= share <= 1:
        raise ValueError(f"Expected share in [0, 1]. Received: share={share}")

    def draw(rng, units):
        chosen = rng.permutation(units) < round(share * units)
        return np.where(chosen, -1.0, 1.0)

    return _scaled(model, draw, seed)


def permute_channels(model: keras.Model, *, seed: int = 0) -> Rewrite:
    """Puts channels in another order, in their readers' kernels too.

    A permuted layer's own γ and β follow, but its readers' keys now meet
    other rows of their kernels. Layers are left alone whose outputs go
    elsewhere than into kernels, such as into an addition.

    Args:
        model: Protected functional model; what is public of it is used alone.
        seed: Of the orders.

    Returns:
        A `Rewrite`.

    Raises:
        PassportError: If the model is not protected.

    Example:

    >>> rewrite = kp.attacks.permute_channels(model)
    >>> sorted(rewrite.orders)
    ['conv1', 'conv2']
    """
    public = protected_model.public(model)
    # Who rewrites a network is not held by what its owner froze.
    graph.thaw(public)
    rng = np.random.default_rng(seed)
    orders, skipped = {}, {}
    flow = _graphs(public)
    for path, layer in protected_layers(public).items():
        readers = _readers(layer, flow)
        if isinstance(readers, str):
            skipped[path] = readers
            continue
        order = rng.permutation(layer.adapter.units(layer.layer))
        _permute(layer.layer, layer.adapter, outputs=order)
        for variable in (
            *layer.normalization.variables,
            *(own for own in (layer.gamma, layer.beta) if own is not None),
            *offsets.variables(layer),
        ):
            variable.assign(ops.convert_to_numpy(variable)[order])
        for reader in readers:
            _permute(*reader, inputs=order)
        orders[path] = order
    return Rewrite(public, orders, {}, skipped)


def _scaled(model, draw, seed):
    public = protected_model.public(model)
    rng = np.random.default_rng(seed)
    factors, skipped = {}, {}
    for path, layer in protected_layers(public).items():
        refusal = folding.refusal(layer)
        if refusal:
            skipped[path] = refusal
            continue
        factor = draw(rng, layer.adapter.units(layer.layer))
        factors[path] = factor = factor.astype("float32")
        weights = {variable.name: variable for variable in layer.layer.weights}
        values = layer.adapter.folded(layer.layer, factor)
        if "bias" in weights:
            values["bias"] = ops.convert_to_numpy(weights["bias"]) * factor
        for name, value in values.items():
            weights[name].assign(value)
        statistics = layer.normalization
        mean, deviation = normalization.statistics_of(statistics)
        statistics.moving_mean.assign(mean * factor)
        statistics.moving_variance.assign(
            np.maximum((factor * deviation) ** 2 - statistics.epsilon, 0.0)
        )
        for offset in offsets.variables(layer):
            offset.assign(ops.convert_to_numpy(offset) * factor)
        if layer.gamma is not None:
            layer.gamma.assign(
                ops.convert_to_numpy(layer.gamma) * np.sign(factor)
            )
    return Rewrite(public, {}, factors, skipped)


def _graphs(model):
    """Graphs of a model and those nested in it, with their calls."""
    nested = [layer for _, layer in graph.walk(model) if graph.is_model(layer)]
    return [graph.Graph(one) for one in (model, *nested)]


def _readers(layer, graphs):
    """Kernel layers that read a layer's channels, or why it can't be said."""
    if not _can_permute(layer.layer, layer.adapter):
        return "its kernel's channels are not free to change places"
    if layer.between or not isinstance(
        layer.normalization, keras.layers.BatchNormalization
    ):
        return "something between kernel and scale may tell channels apart"
    if layer.row_groups:
        return "where a filter is says in which order its rows are"
    found = [
        (one, node) for one in graphs for node in one.calls.get(id(layer), ())
    ]
    if len(found) != 1:
        return "it is called several times"
    one, node = found[0]
    readers, pending = [], [node]
    while pending:
        nodes = one.readers(pending.pop())
        if nodes is None:
            return "its output is the model's"
        for reader in nodes:
            operation = reader.operation
            kernel = operation
            if isinstance(operation, PassportNormalization):
                if operation.ordered:
                    return f"'{operation.name}' reads it in a secret order"
                kernel = operation.layer
            adapter = kernels.adapter_for(kernel)
            if adapter is not None:
                if not _can_permute(kernel, adapter) or (
                    sum(len(g.calls.get(id(operation), ())) for g in graphs)
                    != 1
                ):
                    return f"'{operation.name}' reads it"
                readers.append((kernel, adapter))
            elif isinstance(operation, CHANNELWISE):
                pending.append(reader)
            else:
                return f"'{operation.name}' reads it"
    return readers


def _can_permute(kernel, adapter):
    return (
        kernels.is_stock(kernel)
        and adapter.refusal(kernel) is None
        and adapter.weight(kernel) is not None
        and adapter.blocks(kernel) == 1
        and adapter.channel_axis(kernel) == -1
    )


def _permute(kernel, adapter, inputs=slice(None), outputs=slice(None)):
    """Puts a kernel's channels in another order, through the registry."""
    shape = adapter.key_shape(kernel)
    size = math.prod(shape)
    ones = np.eye(size, dtype="float32").reshape(size, *shape)
    response = ops.convert_to_numpy(adapter.response(kernel, ones))
    moved = ones[..., inputs]
    values = adapter.spread(kernel, moved, response[:, outputs])
    adapter.weight(kernel).assign(values)
    bias = getattr(kernel, "bias", None)
    if bias is not None:
        bias.assign(ops.convert_to_numpy(bias)[outputs])
