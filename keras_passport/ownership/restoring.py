"""A suspect's kernels in the owner's network, as they stood there."""

import contextlib

import keras
import numpy as np
from keras import ops

from keras_passport import graph
from keras_passport.layers import folding, row_order
from keras_passport.layers.passport_normalization import PassportNormalization
from keras_passport.models import protected_model
from keras_passport.ownership.networks import normalizations

_TINY = 1e-12


def restored(
    published: keras.Model, matches: list, orders: dict | None = None
) -> keras.Model:
    """The published network with what a suspect made of its kernels.

    Orders, signs and sizes are undone; γ and β are a passport's again. Where
    normalisations were folded into kernels, the published statistics stay.

    Args:
        published: The owner's protected model.
        matches: As `alignment.align` returns them.
        orders: As `networks.read` took them for the owner's layers.

    Returns:
        A new `ProtectedModel`, without a passport.
    """
    model = protected_model.public(published)
    layers = dict(graph.walk(model, stop=(PassportNormalization,)))
    after = normalizations(model)
    last = matches[-1].path if matches else None
    for match in matches:
        layer = layers[match.path]
        if isinstance(layer, PassportNormalization):
            sizes = np.maximum(match.sizes, _TINY)
            with _in_order(layer, (orders or {}).get(match.path)):
                _write_kernel(layer.layer, match, match.signs / sizes)
            _write_statistics(layer.layer, layer.normalization, match, sizes)
            _write(layer.gamma, match.found.gamma, match.order)
            _write(layer.beta, match.found.beta, match.order)
        else:
            _restore_plain(layer, after.get(id(layer)), match, last)
    return model


@contextlib.contextmanager
def _in_order(layer, order):
    """Has a kernel's rows in their own order meanwhile."""
    if order is None:
        yield
        return
    ordered = layer.adapter, layer.layer, order, layer.row_groups
    for variable, value in row_order.gathered(*ordered):
        variable.assign(value)
    yield
    row_order.store(*ordered)


class AnyStatistics:
    """A judge of a restored network under two sets of statistics.

    Whoever trained γ and β anew has statistics that fit those; the published
    ones fit the passport. Fakes have the choice as well as the passport.

    Args:
        judge: A `Judge` of the restored network.
        model: The network.
        published: The network that was published.
    """

    def __init__(self, judge, model, published):
        self._judge = judge
        self._variables = _statistics(model)
        own = [ops.convert_to_numpy(v) for v in self._variables]
        theirs = [ops.convert_to_numpy(v) for v in _statistics(published)]
        same = all(map(np.array_equal, own, theirs))
        self._sets = [own] if same else [own, theirs]

    def __len__(self) -> int:
        return len(self._judge)

    def __call__(self, packed) -> tuple[float, float]:
        """Accuracy and entropy under packed keys: the better of both."""
        found = []
        for values in self._sets:
            if len(self._sets) > 1:
                for variable, value in zip(
                    self._variables, values, strict=True
                ):
                    variable.assign(value)
            found.append(self._judge(packed))
        return max(found)


def _statistics(model) -> list:
    return [
        variable
        for path, layer in graph.walk(model)
        for variable in layer.variables
        if isinstance(layer, keras.layers.BatchNormalization)
        and variable.name in ("moving_mean", "moving_variance")
    ]


def _restore_plain(layer, normalization, match, last):
    """A layer that has no passport: it computes what the suspect's does."""
    if match.path == last:
        # Classes have no order but their own.
        everything = np.arange(match.order.size)
        _write_kernel(layer, match, np.ones(everything.size), everything)
        _write(getattr(layer, "bias", None), match.found.beta, everything)
        return
    _write_kernel(layer, match, match.signs)
    if normalization is None:
        _write(
            getattr(layer, "bias", None),
            match.found.beta,
            match.order,
            match.signs,
        )
        return
    _write_statistics(layer, normalization, match, np.ones(match.order.size))
    _write(normalization.gamma, match.found.gamma, match.order, match.signs)
    _write(normalization.beta, match.found.beta, match.order)


def _write_kernel(layer, match, factors, order=None):
    order = match.order if order is None else order
    values = match.found.kernel
    if match.found.kind == "full":
        values = values[:, match.inputs] * match.input_sizes[None, :, None]
    values = values[..., order] * factors
    name = type(layer).__name__
    separable = name.startswith("Separable")
    variable = layer.pointwise_kernel if separable else layer.kernel
    if "Transpose" in name:
        values = np.moveaxis(values, -1, -2)
    variable.assign(values.reshape(variable.shape))


def _write_statistics(kernel, normalization, match, sizes):
    mean = getattr(normalization, "moving_mean", None)
    if mean is None or match.found.mean is None:
        return
    signs = match.signs
    own = folding.bias_of(kernel, mean.shape)
    mean.assign(match.found.mean[match.order] * signs / sizes + own)
    variance = match.found.variance[match.order] / sizes**2
    normalization.moving_variance.assign(
        np.maximum(variance - normalization.epsilon, 0.0)
    )


def _write(variable, values, order, factors=1.0):
    if variable is None or values is None:
        return
    values = np.asarray(values)[order] * factors
    if ops.size(variable) == values.size:
        variable.assign(values.reshape(variable.shape))
