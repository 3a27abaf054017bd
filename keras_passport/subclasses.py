"""Which class the copy of a model has, where its class is a user's own.

A functional model may be of a class with its own `call`, `train_step` or
`compute_loss`. Keras's `clone_model` keeps such a class if it can be made of
inputs and outputs, and loses it otherwise without a word. Here it is kept
likewise, and refused where what its copy would lose says how it computes.
"""

import copy
import functools
import types

import keras
import numpy as np
from absl import logging
from keras.src.models.functional import functional_like_constructor
from keras.src.saving import object_registration, serialization_lib
from keras.src.utils.python_utils import is_default

from keras_passport.errors import PassportError

# Attributes of a model that describe, build or store it. A copy that lacks a
# user's own of these still computes and trains as the original does.
_DESCRIBING = {
    "build",
    "build_from_config",
    "count_params",
    "dtype",
    "dtype_policy",
    "export",
    "from_config",
    "get_build_config",
    "get_config",
    "get_layer",
    "get_quantization_layer_structure",
    "get_state_tree",
    "input",
    "input_spec",
    "layers",
    "load_own_variables",
    "load_weights",
    "metrics_names",
    "output",
    "path",
    "quantize",
    "save",
    "save_own_variables",
    "save_weights",
    "set_state_tree",
    "summary",
    "to_json",
}
_FUNCTIONAL_KEYS = {
    "input_layers",
    "layers",
    "name",
    "output_layers",
    "trainable",
}
_PLAIN = (bool, int, float, complex, str, bytes, np.generic, np.ndarray)


def own_class(model: keras.Model) -> type:
    """The class that a copy of a model has.

    Args:
        model: Functional or Sequential model.

    Returns:
        `keras.Model`, `keras.Sequential`, or the user's own class. For a
        model that `protect` made, that of its source.

    Raises:
        PassportError: If the class can't be made of inputs and outputs, and
            has its own way to compute or to train.
    """
    kind = class_of(model)
    plain = (
        keras.Sequential if isinstance(model, keras.Sequential) else keras.Model
    )
    if not _users(kind):
        return plain
    if plain is keras.Model and functional_like_constructor(kind):
        return kind
    overrides = overridden(model)
    if overrides:
        raise PassportError(
            "Expected a model whose class keras.models.clone_model keeps: a "
            "functional one with a constructor of (inputs, outputs, "
            f"name=None, **kwargs). Received: '{model.name}' of class "
            f"{kind.__name__}, whose copy would lose its own "
            f"{', '.join(overrides)}. For its graph alone, use "
            "keras.Model(model.inputs, model.outputs) in its place"
        )
    return plain


def overridden(model) -> list[str]:
    """Names of what a model's class does in its own way, sorted.

    Args:
        model: Keras model; only what Keras itself calls when a model runs,
            trains or is evaluated counts.
    """
    kind = class_of(model)
    return sorted(
        {
            name
            for owner in _users(kind)
            for name in vars(owner)
            if hasattr(keras.Model, name)
            and (name == "__call__" or not name.startswith("_"))
            and name not in _DESCRIBING
        }
    )


def class_of(model) -> type:
    """A model's class, without what this package adds to it."""
    kind = type(model)
    if _users(kind) and "protected_class" not in vars(kind):
        return kind
    return getattr(kind, "protected_class", kind)


def _users(kind) -> list[type]:
    """The classes among a class's bases that are a user's."""
    return [
        owner
        for owner in kind.__mro__
        if owner is not object
        and owner.__module__.partition(".")[0]
        not in ("keras", "keras_passport", "tensorflow")
    ]


class _Joined(type):
    """Type of the classes that are this package's and a user's."""

    def __setattr__(cls, name, value):
        # What a user's class keeps on itself, such as a counter that it
        # reaches through `type(self)`, stays on that class.
        own = cls.protected_class
        mine = name.startswith("__") or not hasattr(own, name)
        type.__setattr__(cls if mine else own, name, value)


@functools.cache
def joined(base: type, own: type) -> type:
    """A class of this package's that is the user's as well.

    Files name it as they name the class of this package; `describe` and
    `find` tell the user's.

    Args:
        base: Class of this package.
        own: Class that `own_class` returns.
    """
    if own in (keras.Model, keras.Sequential):
        return base
    if issubclass(own, base):
        return own
    kind = _Joined
    if type(own) is not type:
        kind = type("_Joined", (_Joined, type(own)), {})
    made = kind(
        base.__name__,
        (base, own),
        {
            "__module__": base.__module__,
            "__qualname__": f"{base.__name__}[{own.__name__}]",
            "__doc__": own.__doc__,
            "protected_class": own,
        },
    )
    registered = object_registration.get_registered_name(base)
    object_registration.GLOBAL_CUSTOM_NAMES[made] = registered
    return made


def describe(kind: type) -> dict:
    """What a configuration holds of a user's class, for `find`."""
    return {
        "class_name": kind.__name__,
        "module": kind.__module__,
        "registered_name": object_registration.get_registered_name(kind),
    }


def find(description: dict, custom_objects: dict | None) -> type:
    """The user's class, where Keras finds it: registered, or handed over.

    Raises:
        TypeError: Keras's own, if it is nowhere.
    """
    return serialization_lib._retrieve_class_or_fn(
        description["class_name"],
        description["registered_name"],
        description["module"],
        obj_type="class",
        full_config=description,
        custom_objects=custom_objects or {},
    )


def make(kind: type, model, inputs, outputs) -> keras.Model:
    """A model of a class, as `keras.models.clone_model` makes it.

    What the class adds to its configuration, and what was set on the model
    later, goes on as well: Keras's own clone starts without it.

    Args:
        kind: The class of the new model.
        model: The one that it is a copy of.
        inputs: Symbolic inputs.
        outputs: Symbolic outputs.
    """
    if not _users(kind):
        return kind(inputs, outputs, name=model.name)
    made = kind(inputs, outputs, name=model.name, **_own_arguments(model))
    _copy_attributes(model, made)
    _build_own_layers(model, made)
    return made


def _own_arguments(model) -> dict:
    """Arguments that a class keeps in its configuration, besides the graph."""
    own = class_of(model)
    if is_default(own.get_config):
        return {}
    try:
        config = own.get_config(model)
    except Exception:
        return {}
    if not config.keys() >= _FUNCTIONAL_KEYS:
        return {}
    return {k: v for k, v in config.items() if k not in _FUNCTIONAL_KEYS}


@functools.cache
def _keras_attributes() -> frozenset[str]:
    """Names of what Keras itself and this package set on a model."""
    inputs = keras.Input((1,))
    model = keras.Model(inputs, keras.layers.Identity()(inputs))
    model.compile()
    ours = ("calibration", "claim", "protected_class", "report", "solution")
    return frozenset((*vars(model), "history", *ours))


def _copy_attributes(source, target):
    """Copies plain values that were set on a model; names all others."""
    left_out = []
    for name, value in vars(source).items():
        if name in _keras_attributes():
            continue
        there = name in vars(target)
        if _is_plain(value):
            setattr(target, name, copy.deepcopy(value))
        elif not there and not name.startswith("_"):
            left_out.append(name)
    if left_out:
        logging.warning(
            "Model '%s' (%s) was copied without its attributes %s, which are "
            "no plain values: set them again, or in the class's __init__",
            source.name,
            type(source).__name__,
            ", ".join(left_out),
        )


def _is_plain(value) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_is_plain(item) for item in value)
    if isinstance(value, dict):
        return all(_is_plain(item) for item in value.values())
    return value is None or isinstance(
        value, (*_PLAIN, type, types.FunctionType)
    )


def _own_layers(model) -> list:
    """The layers that a model holds outside its graph."""
    inside = {id(operation) for operation in model.operations}
    # Before Keras 3.15, `_layers` has the graph's alone.
    _, tracked = model._tracker.config["layers"]
    return [layer for layer in tracked if id(layer) not in inside]


def _own_variables(model) -> list:
    """The weights that a model holds outside all layers."""
    return model._trainable_variables + model._non_trainable_variables


def _build_own_layers(source, target):
    """Builds what the constructor made outside the graph, as it was built.

    Raises:
        PassportError: If the constructor made something else.
    """
    old, new = _own_layers(source), _own_layers(target)
    counts = [
        (len(layers), len(_own_variables(model)))
        for layers, model in ((old, source), (new, target))
    ]
    if counts[0] != counts[1]:
        raise PassportError(
            "Expected a model whose constructor makes all of its layers and "
            f"weights outside its graph. Received: '{source.name}' "
            f"({class_of(source).__name__}) with {counts[0][0]} layers and "
            f"{counts[0][1]} weights there; its copy has {counts[1][0]} and "
            f"{counts[1][1]}"
        )
    for one, other in zip(old, new, strict=True):
        if one.built and not other.built:
            other.build_from_config(one.get_build_config() or {})
            other.built = True


def copy_own_state(source, target, copy_state) -> None:
    """Copies the weights that a model holds outside its graph.

    Of a plain model's, which were set later, Keras's clone knows nothing.

    Args:
        source: Functional model.
        target: What `make` made of it.
        copy_state: Function `(layer, counterpart)` that copies a layer's.
    """
    if not _users(class_of(source)):
        return
    for old, new in zip(
        _own_variables(source), _own_variables(target), strict=True
    ):
        new.assign(keras.ops.convert_to_numpy(old))
        new.trainable = old.trainable
    for old, new in zip(_own_layers(source), _own_layers(target), strict=True):
        copy_state(old, new)
        new.trainable = old.trainable
