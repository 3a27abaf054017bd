"""`unlock`: a protected model and its passport become a plain Keras model."""

import keras
import numpy as np
from keras import ops

from keras_passport import graph, secrecy, subclasses
from keras_passport.errors import PassportError, PassportRequiredError
from keras_passport.layers import kernels
from keras_passport.layers.channel_scale import ChannelScale
from keras_passport.layers.passport_normalization import PassportNormalization
from keras_passport.layers.protected import protected_layers
from keras_passport.models.protected_model import ProtectedModel
from keras_passport.passports.passport import check_passport


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
        hidden[path] = layer.hidden_parameters(rows.get(path))
    return with_parameters(model, hidden, fold, scales)


def with_parameters(
    model: keras.Model,
    parameters: dict,
    fold: bool,
    scales: dict | None = None,
) -> keras.Model:
    """An ordinary Keras model that has these γ and β, whoever they are from.

    Args:
        model: Protected functional model.
        parameters: Dict from the path of every protected layer to a tuple of
            γ and β, arrays `(channels,)`; `None` for the layer's own.
        fold: As for `unlock`.
        scales: Dict from path to what the layer's filters were multiplied by
            before they were published, `(channels,)` or `None`.
    """
    layers = protected_layers(model)
    hidden = {
        id(layer): (*parameters[path], (scales or {}).get(path))
        for path, layer in layers.items()
    }
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
        if (fold or operation.identity) and _folds(operation):
            return _folded(operation, *hidden[id(operation)], fold)
        return _unfolded(operation, *hidden[id(operation)])

    def call(operation, new, args, kwargs):
        if not isinstance(operation, PassportNormalization):
            return new(*args, **kwargs)
        outputs = args[0]
        for layer in new[0]:
            takes_training = isinstance(layer, _WITH_TRAINING)
            outputs = layer(outputs, **(kwargs if takes_training else {}))
        return outputs

    return graph.rebuild(model, replace, call)


# Up to which difference float32 makes two numbers of one.
_EQUAL = 1e-5
_WITH_TRAINING = (keras.layers.BatchNormalization,)


def _folds(wrapper) -> bool:
    return (
        isinstance(wrapper.normalization, keras.layers.BatchNormalization)
        and kernels.is_stock(wrapper.layer)
        and not isinstance(wrapper.layer, ChannelScale)
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


def _folded(wrapper, gamma, beta, scales, always):
    """One kernel layer, and what writes its weights once it is built.

    Args:
        wrapper: The passport layer.
        gamma: As `with_parameters` has it.
        beta: Likewise.
        scales: Likewise.
        always: Whether it is to have a bias although the original has none.
    """
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
            own = np.abs(scale * scales - 1.0) < _EQUAL
            factors = np.where(own, 1.0 / scales.astype("float64"), scale)
        scaled = wrapper.adapter.folded(wrapper.layer, factors)
        for name, value in scaled.items():
            weights[name].assign(value.astype("float32"))
        if "bias" in weights:
            weights["bias"].assign(shift.astype("float32"))
        graph.copy_trainable(wrapper.layer, layer)

    return [layer], [write]


def _unfolded(wrapper, gamma, beta, scales):
    """The original's layers, and what writes their weights once built."""
    gamma, beta = _parameters(wrapper, gamma, beta)
    values = {
        variable.name: variable for variable in wrapper.normalization.variables
    }
    values.update(gamma=gamma, beta=beta)
    alone = isinstance(wrapper.layer, ChannelScale)
    if alone:
        values["gamma"] = gamma * ops.convert_to_numpy(wrapper.layer.kernel)
    elif scales is not None:
        values["gamma"] = gamma * scales
    if alone or scales is not None:
        values.update(_as_before(wrapper, values["gamma"], beta))
    layer = graph.clone(wrapper.layer)
    between = [graph.clone(part) for part in wrapper.between]
    options = {
        **wrapper.replaced["config"],
        "scale": values["gamma"] is not None,
        "center": values["beta"] is not None,
    }
    normalization = type(wrapper.normalization).from_config(options)
    parts = [*([] if alone else [layer]), *between, normalization]
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
        if scales is not None:
            _restore(wrapper, layer, scales)
        for variable in normalization.variables:
            graph.copy_variable(values[variable.name], variable)
        graph.copy_trainable(wrapper.normalization, normalization)
        for role in ("gamma", "beta"):
            trained = getattr(wrapper, role)
            variable = getattr(normalization, role, None)
            if trained is not None and variable is not None:
                variable.trainable = trained.trainable

    return parts, [write]


def _as_before(wrapper, gamma, beta):
    """What a trained model's own normalisation is to hold.

    The statistics that say the same, where it had no scale or no shift.

    Args:
        wrapper: The passport layer.
        gamma: γ of the original's filters, float64.
        beta: β, likewise.

    Returns:
        Dict from `"gamma"`, `"beta"` and statistics to values.
    """
    normal, options = wrapper.normalization, wrapper.replaced["config"]
    values = {"gamma": gamma, "beta": beta}
    if not isinstance(normal, keras.layers.BatchNormalization):
        for role, name in (("gamma", "scale"), ("beta", "center")):
            values[role] = values[role] if options[name] else None
        return values
    variance = ops.convert_to_numpy(normal.moving_variance).astype("float64")
    scale = gamma / np.sqrt(variance + normal.epsilon)
    if not options["scale"] and np.all(scale > 0):
        variance = 1.0 / scale**2 - normal.epsilon
        if np.all(variance >= 0):
            values.update(gamma=None, moving_variance=variance)
    if not options["center"] and np.all(scale != 0):
        mean = ops.convert_to_numpy(normal.moving_mean) - beta / scale
        values.update(beta=None, moving_mean=mean)
    return values


def _restore(wrapper, layer, scales):
    """Gives a kernel layer the filters that it had before it was protected."""
    factors = 1.0 / scales.astype("float64")
    for name, value in wrapper.adapter.folded(wrapper.layer, factors).items():
        getattr(layer, name).assign(value.astype("float32"))
