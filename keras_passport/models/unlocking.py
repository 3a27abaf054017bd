"""`unlock`: a protected model and its passport become a plain Keras model."""

import keras
import numpy as np
from keras import ops

from keras_passport import graph, secrecy, subclasses
from keras_passport.errors import PassportError, PassportRequiredError
from keras_passport.layers import kernels
from keras_passport.layers.passport_normalization import PassportNormalization
from keras_passport.layers.protected import protected_layers
from keras_passport.models.binding import check_passport
from keras_passport.models.protected_model import ProtectedModel


def unlock(model: keras.Model, passport=None, fold: bool = True) -> keras.Model:
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
    layers = protected_layers(model)
    if not layers:
        raise PassportError(
            "Expected a protected model (see keras_passport.protect). "
            f"Received: model '{model.name}' without any passport layer"
        )
    if not graph.is_model(model):
        raise PassportError(
            "Expected a Functional or Sequential model. "
            f"Received: {type(model).__name__} '{model.name}'"
        )
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
    rows = {}
    if passport is not None:
        check_passport(passport)
        rows = passport.fitted(model).rows()
    for path, layer in layers.items():
        if passport is None and not layer.is_bound:
            raise PassportRequiredError(
                f"Layer '{path}' has no passport. Give one: "
                "keras_passport.unlock(model, passport)"
            )
        hidden[path] = layer.hidden_parameters(rows.get(path))
    return with_parameters(model, hidden, fold)


def with_parameters(
    model: keras.Model, parameters: dict, fold: bool
) -> keras.Model:
    """An ordinary Keras model that has these γ and β, whoever they are from.

    Args:
        model: Protected functional model.
        parameters: Dict from the path of every protected layer to a tuple of
            γ and β, arrays `(channels,)`; `None` for the layer's own.
        fold: As for `unlock`.
    """
    layers = protected_layers(model)
    hidden = {id(layer): parameters[path] for path, layer in layers.items()}
    made = {}
    plain = _unlock(model, hidden, fold, made)
    for path, layer in layers.items():
        if id(layer) not in made:
            raise PassportError(
                "Expected passport layers in the model's graph. Received: "
                f"'{path}' inside another layer, which only its own code "
                "can replace"
            )

    def special(layer, counterpart):
        if not isinstance(layer, PassportNormalization):
            return False
        for write in counterpart[1]:
            write()
        return True

    graph.copy_states(model, plain, made, special, (PassportNormalization,))
    return plain


def _unlock(model, hidden, fold, made):
    """Rebuilds one graph, and those nested in it."""

    def replace(operation):
        if id(operation) not in made:
            made[id(operation)] = make(operation)
        return made[id(operation)]

    def make(operation):
        if graph.is_model(operation):
            return _unlock(operation, hidden, fold, made)
        if not isinstance(operation, PassportNormalization):
            return graph.clone(operation)
        gamma, beta = hidden[id(operation)]
        if fold and _folds(operation):
            return _folded(operation, gamma, beta)
        return _unfolded(operation, gamma, beta)

    def call(operation, new, args, kwargs):
        if not isinstance(operation, PassportNormalization):
            return new(*args, **kwargs)
        outputs = args[0]
        for layer in new[0]:
            takes_training = isinstance(layer, _WITH_TRAINING)
            outputs = layer(outputs, **(kwargs if takes_training else {}))
        return outputs

    return graph.rebuild(model, replace, call)


_WITH_TRAINING = (keras.layers.BatchNormalization,)


def _folds(wrapper) -> bool:
    return (
        isinstance(wrapper.normalization, keras.layers.BatchNormalization)
        and kernels.is_stock(wrapper.layer)
        and not wrapper.between
        and getattr(wrapper.layer, "activation", None)
        in (None, keras.activations.linear)
    )


def _parameters(wrapper, gamma, beta):
    """γ and β, hidden or trained, as float64 arrays; `None` for none."""

    def value(hidden, trained):
        if hidden is None and trained is not None:
            hidden = ops.convert_to_numpy(trained)
        return None if hidden is None else np.asarray(hidden, "float64")

    return value(gamma, wrapper.gamma), value(beta, wrapper.beta)


def _folded(wrapper, gamma, beta):
    """One kernel layer, and what writes its weights once it is built."""
    gamma, beta = _parameters(wrapper, gamma, beta)
    statistics = wrapper.normalization
    mean, variance = (
        ops.convert_to_numpy(value).astype("float64")
        for value in (statistics.moving_mean, statistics.moving_variance)
    )
    scale = 1.0 / np.sqrt(variance + statistics.epsilon)
    scale = scale if gamma is None else scale * gamma
    bias = getattr(wrapper.layer, "bias", None)
    bias = 0.0 if bias is None else ops.convert_to_numpy(bias)
    shift = (bias - mean) * scale + (0.0 if beta is None else beta)
    config = wrapper.adapter.with_bias(wrapper.layer.get_config())
    if wrapper.activation is not keras.activations.linear:
        config["activation"] = keras.activations.serialize(wrapper.activation)
    layer = type(wrapper.layer).from_config(config)

    def write():
        weights = {variable.name: variable for variable in layer.weights}
        for name, value in wrapper.adapter.folded(wrapper.layer, scale).items():
            weights[name].assign(value.astype("float32"))
        weights["bias"].assign(shift.astype("float32"))
        graph.copy_trainable(wrapper.layer, layer)

    return [layer], [write]


def _unfolded(wrapper, gamma, beta):
    """The original's layers, and what writes their weights once built."""
    gamma, beta = _parameters(wrapper, gamma, beta)
    layer = graph.clone(wrapper.layer)
    between = [graph.clone(part) for part in wrapper.between]
    options = {
        **wrapper.replaced["config"],
        "scale": gamma is not None,
        "center": beta is not None,
    }
    normalization = type(wrapper.normalization).from_config(options)
    parts = [layer, *between, normalization]
    if wrapper.activation is not keras.activations.linear:
        parts.append(
            keras.layers.Activation(
                wrapper.activation,
                dtype=wrapper.normalization.dtype_policy,
                name=f"{wrapper.name}_activation",
            )
        )

    def write():
        graph.copy_state(wrapper.layer, layer)
        values = {
            variable.name: variable
            for variable in wrapper.normalization.variables
        }
        values.update(gamma=gamma, beta=beta)
        for variable in normalization.variables:
            graph.copy_variable(values[variable.name], variable)
        graph.copy_trainable(wrapper.layer, layer)
        graph.copy_trainable(wrapper.normalization, normalization)
        for role in ("gamma", "beta"):
            trained = getattr(wrapper, role)
            variable = getattr(normalization, role, None)
            if trained is not None and variable is not None:
                variable.trainable = trained.trainable

    return parts, [write]
