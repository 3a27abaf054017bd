"""The passport layers of a model, and the function that they share."""

import keras

from keras_passport import graph
from keras_passport.errors import PassportError
from keras_passport.hints import Model
from keras_passport.layers.passport_normalization import PassportNormalization
from keras_passport.passports.functions import PassportFunction
from keras_passport.secrecy import type_of


def protected_layers(model: Model) -> dict[str, PassportNormalization]:
    """The passport layers of a model by path, in the graph's order.

    Args:
        model: Any Keras model.

    Returns:
        Dict from path (names of nested models and the layer joined by "/") to
        layer.

    Raises:
        PassportError: If it is no model, such as the path of one.
    """
    if not isinstance(model, keras.layers.Layer):
        raise PassportError(
            "Expected a Keras model, such as keras.saving.load_model returns. "
            f"Received: a {type_of(model)}"
        )
    return {
        path: layer
        for path, layer in graph.walk(model, stop=(PassportNormalization,))
        if isinstance(layer, PassportNormalization)
    }


def layers_or_error(model) -> dict[str, PassportNormalization]:
    """What `protected_layers` returns; `PassportError` if there are none.

    It is raised as well if one of them is not built, and so has no kernel.
    """
    layers = protected_layers(model)
    if not layers:
        raise PassportError(
            "Expected a protected model (see keras_passport.protect). "
            f"Received: model '{model.name}' without any passport layer"
        )
    for path, layer in layers.items():
        if layer.geometry is None:
            raise PassportError(
                "Expected a model that is built: give it an Input, or call "
                "model.build(input_shape) first, or, where the model's class "
                "has no `build` of its own, model(keras.Input(shape)), which "
                f"needs no passport. Received: model '{model.name}' whose "
                f"layer '{path}' has no kernel yet"
            )
    return layers


def function_of(model: Model) -> PassportFunction:
    """The passport function of a protected model.

    Raises:
        PassportError: If the model is not protected, or its layers differ.
    """
    functions = {layer.function for layer in layers_or_error(model).values()}
    if len(functions) != 1:
        raise PassportError(
            "Expected one passport function in all protected layers. "
            f"Received: {sorted(function.name for function in functions)}"
        )
    return functions.pop()
