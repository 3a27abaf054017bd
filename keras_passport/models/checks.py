"""What those ask of a model that rewrite its graph."""

import keras

from keras_passport import graph
from keras_passport.errors import PassportError
from keras_passport.secrecy import type_of


def check_graph(model, advice: str = "") -> None:
    """Raises `PassportError` unless a model has a graph to rewrite.

    Args:
        model: Keras model.
        advice: What to add to the message.
    """
    if not isinstance(model, keras.Model):
        raise PassportError(
            "Expected a Functional or Sequential model. "
            f"Received: a {type_of(model)}"
        )
    if not graph.is_model(model):
        raise PassportError(
            "Expected a Functional or Sequential model. Received: subclassed "
            f"model '{model.name}' ({type(model).__name__}), which has no "
            f"graph to rewrite{advice}"
        )


def check_reached(layers: dict, rewrite: graph.Rewrite) -> None:
    """Raises `PassportError` for layers that a rewrite has not come to.

    Args:
        layers: Dict from path to passport layer.
        rewrite: Of their model, done.
    """
    for path, layer in layers.items():
        if id(layer) not in rewrite.made:
            raise PassportError(
                "Expected passport layers in the model's graph. Received: "
                f"'{path}' inside another layer, whose own code calls it"
            )
