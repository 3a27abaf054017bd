"""Public offsets of γ and β, for keys that can't give all of them.

A trained network has the γ and β that it has, and keys of images give others.
What is lacking is published, a number for each channel: γ = F(W, p_γ) + δ_γ.
How little that tells of γ is a matter of how large F is beside it; see
`models.exact_images`. Of networks in float64, it is what keys in float32 lack
by rounding, and tells nothing.
"""

import keras
import numpy as np
from keras import ops


def add(layer) -> None:
    """Adds the variables to a passport layer that is being built."""
    for role in layer.function.roles:
        variable = layer.add_weight(
            name=_name(role),
            shape=(layer.adapter.units(layer.layer),),
            initializer="zeros",
            trainable=False,
            # What keys in float32 lack of a float64 is no float32.
            dtype=keras.backend.result_type(
                layer.layer.variable_dtype, "float32"
            ),
        )
        setattr(layer, _name(role), variable)


def publish(layer, role: str, values: np.ndarray) -> None:
    """Sets a role's offset.

    Args:
        layer: A built passport layer with offsets.
        role: `"gamma"` or `"beta"`.
        values: What its keys' responses lack, `(channels,)`.
    """
    getattr(layer, _name(role)).assign(values)


def variables(layer) -> list:
    """A built passport layer's offsets, γ's first; none where it has none."""
    roles = layer.function.roles if layer.offsets else ()
    return [getattr(layer, _name(role)) for role in roles]


def added(layer, role: str, response):
    """A hidden parameter: the response to its key, and what is lacking.

    Args:
        layer: A built passport layer.
        role: `"gamma"` or `"beta"`.
        response: Tensor `(..., channels)`.
    """
    if not layer.offsets:
        return response
    return response + ops.convert_to_tensor(getattr(layer, _name(role)))


def of(layer, role: str) -> np.ndarray | float:
    """A role's offset, float64 `(channels,)`; 0 where the layer has none.

    Args:
        layer: A built passport layer.
        role: `"gamma"` or `"beta"`.
    """
    if not layer.offsets:
        return 0.0
    offset = getattr(layer, _name(role))
    return ops.convert_to_numpy(offset).astype("float64")


def _name(role):
    return f"{role}_offset"
