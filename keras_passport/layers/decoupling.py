"""Gradients of hidden parameters as if they were variables of their own.

All values are the plain ones. Hidden parameters send their gradient g along
the dual keys κ̃, so that a step changes γ and β as one on variables would,
whatever the keys' size and angle. The features' gradient G is projected off
the keys, so that it leaves γ and β alone. Together: G + Σ κ̃ (g - κ · G),
which passes over the kernel as seldom as the formula's own gradient.
"""

import keras
from keras import ops

from keras_passport.layers import access, folding, scopes


def applies(layer, passport, training) -> bool:
    """Whether this call of a passport layer decouples its gradients.

    Args:
        layer: The layer.
        passport: Keys that are given with the call, or `None`.
        training: Whether it trains.
    """
    return (
        layer.decouple
        and bool(training)
        and passport is None
        and access.is_settled(layer._secret)
        and layer.adapter.weight(layer.layer) is not None
    )


def call(layer, inputs) -> tuple:
    """Kernel layer's outputs, γ and β, with decoupled gradients.

    Args:
        layer: A passport layer to which it `applies`.
        inputs: Tensor that it is called with.

    Returns:
        Tuple of the outputs, and of γ and β as `(1, channels)`, `None` where
        they are not hidden.
    """
    kernel = layer.adapter.weight(layer.layer)
    keys, duals = access.read(layer._secret, access.DUALS)
    duals = ops.reshape(duals, (-1, *layer.geometry.key_shape))

    def respond(value, keys):
        with scopes.Substitution([(kernel, value)]):
            return layer._respond(keys)

    # Keys are arguments: JAX lets no gradient close over traced values.
    @ops.custom_gradient
    def decoupled(value, response, keys, duals):
        def gradient(*upstream):
            # TensorFlow hands over two arguments, JAX a pair.
            of_features, of_hidden = keras.tree.flatten(upstream)
            # TensorFlow forgets the shape where inputs have open sizes.
            of_features = ops.reshape(of_features, kernel.shape)
            change = of_hidden - respond(of_features, keys)
            change = layer.adapter.spread_groups(layer.layer, duals, change)
            change = of_features + ops.cast(change, of_features.dtype)
            none = ops.zeros_like(keys), ops.zeros_like(duals)
            return change, of_hidden, *none

        return (value, response), gradient

    # The gradient of what else a response may depend on is its own.
    response = respond(ops.stop_gradient(kernel.value), keys)
    features, response = decoupled(kernel.value, response, keys, duals)
    values = [(kernel, features), *folding.still_bias(layer, True)]
    outputs = scopes.call_with(layer.layer, inputs, values)
    return outputs, *layer._by_role(response, 1)
