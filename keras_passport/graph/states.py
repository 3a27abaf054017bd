"""Copying what a layer holds: its variables, other state, and flags."""

import tempfile

import keras
import numpy as np

from keras_passport.graph.structure import is_model


def copy_variable(source, target):
    """Copies the value of a variable or array, not the array itself.

    Handed on as it is, JAX would give the array away with the first training
    step of either.
    """
    target.assign(keras.ops.convert_to_numpy(source))


def copy_state(source, target):
    """Copies the state of a layer to a layer of the same structure.

    That is all of its variables, and what Keras's files hold besides: the
    vocabularies, tables and adapted statistics of preprocessing layers, and
    whatever a layer of the user's saves in its own way. Not even Keras's files
    hold the states of a stateful RNN, which go on here as well.

    Args:
        source: Built layer.
        target: Layer made of its config, built for the same inputs.
    """
    pairs = list(zip(source.variables, target.variables, strict=True))
    for old, new in pairs:
        copy_variable(old, new)
    for old, new in zip(_unlisted(source), _unlisted(target), strict=True):
        for one, other in zip(_untracked(old), _untracked(new), strict=True):
            copy_variable(one, other)
        if _saves_itself(old, "load_own_variables"):
            store = {}
            old.save_own_variables(store)
            new.load_own_variables(
                {
                    name: np.array(keras.ops.convert_to_numpy(value))
                    for name, value in store.items()
                }
            )
        if _saves_itself(old, "load_assets"):
            with tempfile.TemporaryDirectory() as folder:
                old.save_assets(folder)
                new.load_assets(folder)


def _unlisted(layer) -> list:
    """The layers in a layer, itself too, that have state besides variables."""
    return [part for part in layer._flatten_layers() if has_more_state(part)]


def has_more_state(layer) -> bool:
    """Whether a layer itself has state besides the variables that it lists."""
    return (
        _saves_itself(layer, "load_own_variables")
        or _saves_itself(layer, "load_assets")
        or bool(_untracked(layer))
    )


def _untracked(layer) -> list:
    """Variables that are a layer's attributes, but not listed as its own."""
    listed = {id(variable) for variable in layer.variables}
    return [
        leaf
        for name, value in vars(layer).items()
        if not name.startswith("_")
        for leaf in keras.tree.flatten(value)
        if isinstance(leaf, keras.Variable) and id(leaf) not in listed
    ]


def _saves_itself(layer, method) -> bool:
    """Whether a layer's way of saving holds more than its variables.

    Keras's kernel layers only sort theirs by the kind of quantisation.
    """
    for owner in type(layer).__mro__:
        if method in vars(owner):
            module = owner.__module__
            if module.startswith("keras_passport."):
                return False  # Whether they are the weights that fit.
            return not module.startswith("keras.") or (
                module.startswith("keras.src.layers.preprocessing.")
            )
    return False


def thaw(model) -> None:
    """Makes all layers and variables trainable that can be.

    On TensorFlow, `model.trainable = True` does nothing where the model's own
    flag says so already, whatever its layers' say.

    Args:
        model: Any Keras model or layer.
    """
    for layer in model._flatten_layers():
        layer.trainable = True
        for variable in layer._trainable_variables:
            variable.trainable = True


def copy_trainable(source, target):
    """Copies `trainable` flags: a layer's, its sublayers', single variables'.

    Args:
        source: Layer, or a model, whose layers have calls of their own.
        target: Its counterpart.
    """
    pairs = [(source, target)]
    if not is_model(source) and not is_model(target):
        parts = source._flatten_layers(), target._flatten_layers()
        if len(parts[0]) == len(parts[1]):
            pairs = list(zip(*parts, strict=True))
    for old, new in pairs:
        # Only where they differ: setting it sets those of all that is inside.
        if new.trainable != old.trainable:
            new.trainable = old.trainable
        variables = old._trainable_variables, new._trainable_variables
        if len(variables[0]) == len(variables[1]):
            for one, other in zip(*variables, strict=True):
                if other.trainable != one.trainable:
                    other.trainable = one.trainable
