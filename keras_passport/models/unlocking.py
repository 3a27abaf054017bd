"""`unlock`: a protected model and its passport become a plain Keras model."""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_passport import graph, secrecy, subclasses
from keras_passport.errors import PassportError, PassportRequiredError
from keras_passport.layers import folding, normalization, row_order, scopes
from keras_passport.layers.channel_scale import ChannelScale
from keras_passport.layers.passport_normalization import PassportNormalization
from keras_passport.layers.protected import layers_or_error, protected_layers
from keras_passport.models import checks
from keras_passport.models.protected_model import ProtectedModel
from keras_passport.passports.passport import check_passport


def unlock(
    model: keras.Model, passport: Any = None, fold: bool = True
) -> keras.Model:
    """An ordinary Keras model that computes what the bound model computes.

    No layer of this package is in it, and no protection: it is for machines
    that are trusted with the hidden parameters.

    Args:
        model: Protected functional model, bound or not.
        passport: Its `Passport`. Defaults to the one that is bound.
        fold: Whether to fold statistics, γ and β into the kernels where that
            is exact (a batch normalisation right behind one of Keras's kernel
            layers without activation): the fastest for inference. With
            `False`, or where it is not, γ and β go into normalisation layers
            of the original's names and places, so that weights load by name.
            Those of an exactly protected network have no statistics, and are
            frozen: see `restore_statistics` before you train it on.

    Returns:
        A new model; the protected one is left as it was.

    Raises:
        PassportError: If the model is not protected, or the passport is
            another model's.
        PassportRequiredError: If no passport is given or bound.

    Example:

    >>> plain = kp.unlock(model, kp.Passport.load("owner.h5"))
    >>> plain.save("trusted.keras")
    """
    passport = secrecy.hidden(passport)
    layers = layers_or_error(model)
    checks.check_graph(model)
    if getattr(model, "takes_passport", False):
        raise PassportError(
            "Expected the model that require_passport was given. "
            f"Received: '{model.name}' with the passport as an input"
        )
    if issubclass(subclasses.own_class(model), ProtectedModel):
        raise PassportError(
            "Expected a model whose class is no keras_passport.ProtectedModel "
            f"without protection. Received: '{model.name}' of class "
            f"{type(model).__name__}, derived from it"
        )
    hidden = {}
    rows, scales = {}, {}
    if passport is not None:
        check_passport(passport)
        fitted = passport.fitted(model)
        rows = fitted.rows()
        scales = {path: entry.scales for path, entry in fitted.layers.items()}
    for path, layer in layers.items():
        if passport is None and not layer.is_bound:
            raise PassportRequiredError(
                f"Layer '{path}' has no passport. Give one: "
                "keras_passport.unlock(model, passport)"
            )
        if path not in rows:
            rows[path] = layer._secret.bound.array
        hidden[path] = layer.hidden_parameters(rows[path])
    return with_parameters(model, hidden, fold, scales, rows)


def with_parameters(
    model: keras.Model,
    parameters: dict,
    fold: bool,
    scales: dict | None = None,
    rows: dict | None = None,
) -> keras.Model:
    """An ordinary Keras model that has these γ and β, whoever they are from.

    Args:
        model: Protected functional model.
        parameters: Dict from the path of every protected layer to a tuple of
            γ and β, arrays `(channels,)`; `None` for the layer's own.
        fold: As for `unlock`.
        scales: Dict from path to what the layer's filters were multiplied by
            before they were published, `(channels,)` or `None`.
        rows: Dict from path to packed keys `(1, passport_size)`, for the
            order of the kernels' rows; by default they stay as they are
            stored.
    """
    layers = protected_layers(model)
    rewrite = _Unlocking(
        {
            id(layer): (
                *parameters[path],
                (scales or {}).get(path),
                (rows or {}).get(path),
            )
            for path, layer in layers.items()
        },
        fold,
    )
    plain = graph.rebuild(model, rewrite)
    checks.check_reached(layers, rewrite)
    return plain


@dataclasses.dataclass
class _Chain:
    """Layers, one after the other, in a passport layer's place.

    Args:
        layers: The layers.
        write: Function that writes their weights once they are built.
    """

    layers: list
    write: Callable


class _Unlocking(graph.Rewrite):
    """Puts layers with these γ and β in the place of each passport layer."""

    def __init__(self, parameters, fold):
        super().__init__()
        self._parameters = parameters
        self._fold = fold

    def make(self, operation):
        if not isinstance(operation, PassportNormalization):
            return super().make(operation)
        parameters = self._parameters[id(operation)]
        if (self._fold or operation.identity) and _folds(operation):
            chain = _folded(operation, *parameters, self._fold)
        else:
            chain = _unfolded(operation, *parameters)
        if operation.activity_regularizer is not None:
            chain.layers[
                -1
            ].activity_regularizer = operation.activity_regularizer
        return chain

    def call(self, operation, new, args, kwargs, extra):
        if not isinstance(new, _Chain):
            return new(*args, **kwargs)
        outputs = args[0]
        for layer in new.layers:
            takes_training = isinstance(layer, keras.layers.BatchNormalization)
            outputs = layer(outputs, **(kwargs if takes_training else {}))
        return outputs

    def copy_state(self, layer, new):
        if isinstance(new, _Chain):
            new.write()
        else:
            super().copy_state(layer, new)


def _folds(wrapper) -> bool:
    """Whether all can go into a kernel that the original has."""
    alone = isinstance(wrapper.layer, ChannelScale)
    # A penalty sees what the kernel alone gives out.
    seen = wrapper.layer.activity_regularizer is not None
    return not (alone or seen) and folding.refusal(wrapper) is None


# Up to which difference float32 makes two numbers of one.
_EQUAL = 1e-5


def _folded(wrapper, gamma, beta, scales, row, always):
    """One kernel layer, and what writes its weights once it is built.

    Args:
        wrapper: The passport layer.
        gamma: As `with_parameters` has it.
        beta: As `with_parameters` has it.
        scales: As `with_parameters` has it.
        row: The layer's packed keys, or `None`.
        always: Whether it is to have a bias although the original has none.
    """
    scale, shift = folding.scale_and_shift(wrapper, gamma, beta)
    config = wrapper.layer.get_config()
    if always or np.abs(shift).max() > _EQUAL * np.abs(scale).max():
        config = wrapper.adapter.with_bias(config)
    if wrapper.activation is not keras.activations.linear:
        config["activation"] = keras.activations.serialize(wrapper.activation)
    layer = type(wrapper.layer).from_config(config)

    def write():
        weights = {variable.name: variable for variable in layer.weights}
        factors = scale
        if not always and scales is not None:
            # Bit for bit the original's, where nothing was trained since.
            unchanged = np.abs(scale * scales - 1.0) < _EQUAL
            factors = np.where(unchanged, 1.0 / scales.astype("float64"), scale)
        with _in_order(wrapper, row):
            scaled = wrapper.adapter.folded(wrapper.layer, factors)
        for name, value in scaled.items():
            weights[name].assign(value)
        if "bias" in weights:
            weights["bias"].assign(shift)
        graph.copy_trainable(wrapper.layer, layer)

    return _Chain([layer], write)


def _unfolded(wrapper, gamma, beta, scales, row):
    """The original's layers, and what writes their weights once built."""
    gamma, beta = folding.gamma_and_beta(wrapper, gamma, beta)
    values = {
        variable.name: variable for variable in wrapper.normalization.variables
    }
    values.update(gamma=gamma, beta=beta)
    alone = isinstance(wrapper.layer, ChannelScale)
    factors = ops.convert_to_numpy(wrapper.layer.kernel) if alone else scales
    if factors is not None:
        values.update(_as_before(wrapper, gamma, beta, factors))
    layer = graph.clone(wrapper.layer)
    between = [graph.clone(part) for part in wrapper.between]
    options = {
        **wrapper.replaced["config"],
        "scale": values["gamma"] is not None,
        "center": values["beta"] is not None,
    }
    normal = type(wrapper.normalization).from_config(options)
    parts = [*([] if alone else [layer]), *between, normal]
    if wrapper.activation is not keras.activations.linear:
        parts.append(
            keras.layers.Activation(
                wrapper.activation,
                dtype=wrapper.normalization.dtype_policy,
                name=f"{wrapper.name}_activation",
            )
        )

    def write():
        if not alone:
            graph.copy_state(wrapper.layer, layer)
            graph.copy_trainable(wrapper.layer, layer)
        if scales is not None or wrapper.geometry.ordered_rows:
            _restore(wrapper, layer, scales, row)
        for variable in normal.variables:
            graph.copy_variable(values[variable.name], variable)
        graph.copy_trainable(wrapper.normalization, normal)
        for role in ("gamma", "beta"):
            trained = getattr(wrapper, role)
            variable = getattr(normal, role, None)
            if trained is not None and variable is not None:
                variable.trainable = trained.trainable

    return _Chain(parts, write)


def _as_before(wrapper, gamma, beta, factors):
    """What a trained model's own normalisation is to hold.

    The statistics that say the same, where it had no scale or no shift, or
    they are no longer what was published.

    Args:
        wrapper: The passport layer.
        gamma: γ, float64.
        beta: β, float64.
        factors: What the original's filters were multiplied by.

    Returns:
        Dict from `"gamma"`, `"beta"` and statistics to values.
    """
    normal, options = wrapper.normalization, wrapper.replaced["config"]
    values = {"gamma": gamma * factors, "beta": beta}
    if not isinstance(normal, keras.layers.BatchNormalization):
        for role, name in (("gamma", "scale"), ("beta", "center")):
            values[role] = values[role] if options[name] else None
        return values
    mean, deviation = normalization.statistics_of(normal)
    values["moving_mean"] = mean = mean / factors
    variance = (deviation / factors) ** 2 - normal.epsilon
    if normal.trainable and np.all(variance >= 0):
        # Of the original's filters as well: it trains by those of the batch.
        deviation = deviation / np.abs(factors)
        values.update(gamma=gamma * np.sign(factors), moving_variance=variance)
    scale = values["gamma"] / deviation
    if not options["scale"] and np.all(scale > 0):
        variance = 1.0 / scale**2 - normal.epsilon
        if np.all(variance >= 0):
            values.update(gamma=None, moving_variance=variance)
    if not options["center"] and np.all(scale != 0):
        values.update(beta=None, moving_mean=mean - beta / scale)
    return values


def _restore(wrapper, layer, scales, row):
    """Gives a kernel layer the filters that it had before it was protected."""
    factors = np.ones(wrapper.adapter.units(layer))
    if scales is not None:
        factors = 1.0 / scales.astype("float64")
    with _in_order(wrapper, row):
        restored = wrapper.adapter.folded(wrapper.layer, factors)
    for name, value in restored.items():
        getattr(layer, name).assign(value)


def _in_order(wrapper, row):
    """A block in which a passport layer's kernels have their rows in order."""
    kernels = [] if row is None else row_order.kernels_of(wrapper, row)
    return scopes.Substitution(kernels)
