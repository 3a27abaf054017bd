"""Gradients of hidden parameters as if they were variables of their own.

All values are the plain ones. Hidden parameters send their gradient g along
the dual keys κ̃, so that a step changes γ and β as one on variables would,
whatever the keys' size and angle. The features' gradient G is projected off
the keys, so that it leaves γ and β alone. Together: G + Σ κ̃ (g - κ · G),
which passes over the kernel as seldom as the formula's own gradient.
"""

import math

import keras
from keras import ops

from keras_passport.layers import access, folding, scopes

# Of a pair of keys, 1 - cos² of their angle at least.
PARALLEL = 1e-5


def applies(layer, training) -> bool:
    """Whether this call of a passport layer decouples its gradients.

    Whatever passport it sees: bound, presented, or given with the call.

    Args:
        layer: The layer, which sees a passport.
        training: Whether it trains.
    """
    return (
        layer.decouple
        and bool(training)
        and layer.adapter.weight(layer.layer) is not None
    )


def call(layer, inputs, passport=None) -> tuple:
    """Kernel layer's outputs, γ and β, with decoupled gradients.

    Args:
        layer: A passport layer to which it `applies`.
        inputs: Tensor that it is called with.
        passport: Keys that are given with the call, `(1 or examples, size)`;
            `None` for those that it sees otherwise.

    Returns:
        Tuple of the outputs, and of γ and β as `(1 or examples, channels)`,
        `None` where they are not hidden.
    """
    kernel = layer.adapter.weight(layer.layer)
    if passport is None and access.is_settled(layer._secret):
        keys, duals = access.read(layer._secret, access.DUALS)
    else:
        keys = layer._seen(passport)
        duals = _duals(layer, ops.stop_gradient(keys))
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
            taken = respond(of_features, keys)
            # Of a row for every example each takes its part. They are of one
            # passport, as a rule: together they take all of it once.
            rows = ops.cast(ops.shape(keys)[0], taken.dtype)
            change = of_hidden - taken / rows
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
    return outputs, *layer._by_role(response, keys.shape[0])


def _duals(layer, packed):
    """The dual basis of keys that are tensors; see `duals.dual_basis`."""
    blocks = layer.adapter.blocks(layer.layer)
    channels = layer.geometry.filter_shape[-1]
    keys = ops.reshape(
        packed,
        (
            -1,
            len(layer.function.roles),
            layer.key_groups,
            math.prod(layer.geometry.filter_shape[:-1]),
            blocks,
            channels // blocks,
        ),
    )

    def product(one, other):
        return ops.sum(one * other, axis=(-3, -1), keepdims=True)

    norms = ops.sqrt(product(keys, keys))
    norms = ops.where(norms == 0.0, 1.0, norms)
    units = keys / norms
    if units.shape[1] == 2:
        others = ops.flip(units, axis=1)
        cosine = product(units, others)
        left = 1.0 - ops.square(cosine)
        # Duals of keys that are nearly parallel would be all rounding error.
        apart = left > PARALLEL
        units = ops.where(
            apart,
            (units - cosine * others) / ops.where(apart, left, 1.0),
            0.5 * units,
        )
    return ops.reshape(units / norms, ops.shape(packed))
