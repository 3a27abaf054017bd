"""Inputs in any form in which Keras's own `predict` takes them.

A model of one input takes one array, whether its author wrote
`keras.Model(x, y)`, `keras.Model([x], [y])` or `keras.Model({"x": x}, y)`.
"""

from collections.abc import Mapping

import keras
import numpy as np

from keras_passport import graph
from keras_passport.errors import PassportError
from keras_passport.secrecy import type_of


def flat(model, inputs) -> list:
    """A model's inputs in a list, in the order of its graph.

    Args:
        model: Functional or Sequential model.
        inputs: One array for one input, alone or in a list, tuple or dict;
            for several a dict by the names of the inputs, or a list or tuple
            where the model has one. What the arrays are is not looked at.

    Raises:
        PassportError: If they are not as many, or have other names.
    """
    structure = graph.inputs_of(model)
    if isinstance(inputs, Mapping):
        arrays = _by_name(model, inputs)
    elif isinstance(structure, dict) and len(model.inputs) > 1:
        arrays = None  # which is which, a list doesn't say
    else:
        arrays = keras.tree.flatten(inputs)
    if arrays is None or len(arrays) != len(model.inputs):
        shapes = keras.tree.map_structure(lambda t: t.shape, structure)
        raise PassportError(
            f"Expected images in the structure of the model's inputs, {shapes}"
            f". Received: {_described(inputs)}"
        )
    return arrays


def packed(model, arrays: list):
    """A flat list of inputs, in the structure that a model was written with."""
    return keras.tree.pack_sequence_as(graph.inputs_of(model), arrays)


def restructured(model, given):
    """What a model is called with, in the structure it was written with.

    Keras matches a dict to a list by names where the list's inputs have these
    names, and a list to a dict by the alphabetical order of its keys.

    Args:
        model: Functional or Sequential model.
        given: Arrays or tensors in one structure or the other.
    """
    structure = graph.inputs_of(model)
    if isinstance(given, Mapping) == isinstance(structure, Mapping):
        return given
    arrays = keras.tree.flatten(given)
    if isinstance(given, Mapping):
        arrays = _by_name(model, given) or arrays
    return packed(model, arrays)


def plain(model, arrays: list):
    """A flat list of inputs as this package keeps them.

    One array for one input, a dict for a model that has a dict, else a list.
    """
    structure = graph.inputs_of(model)
    if len(arrays) == 1:
        return arrays[0]
    is_flat = isinstance(structure, dict) and not any(
        isinstance(inner, dict | list | tuple) for inner in structure.values()
    )
    return packed(model, arrays) if is_flat else arrays


def of_rank(array: np.ndarray, shape: tuple) -> np.ndarray:
    """An array with a last axis of 1 more or less, where Keras would do so.

    Args:
        array: The array, batch axis first.
        shape: What the model's input has.
    """
    if array.ndim == len(shape) - 1 and shape[-1] == 1:
        return array[..., None]
    if array.ndim == len(shape) + 1 and array.shape[-1] == 1:
        return array[..., 0]
    return array


def _by_name(model, inputs) -> list | None:
    """A dict of inputs in the order of the graph, if its names are theirs."""
    structure = graph.inputs_of(model)
    if isinstance(structure, dict):
        if set(structure) != set(inputs):
            return None
        return keras.tree.flatten({name: inputs[name] for name in structure})
    names = [tensor.name for tensor in model.inputs]
    return (
        [inputs[name] for name in names] if set(names) <= set(inputs) else None
    )


def _described(inputs) -> str:
    if isinstance(inputs, list | tuple) and inputs:
        return f"a {type(inputs).__name__} of {len(inputs)}"
    if isinstance(inputs, Mapping):
        return f"a dict of {len(inputs)}"
    return f"a {type_of(inputs)}"
