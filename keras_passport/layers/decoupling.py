"""Gradients of hidden parameters as if they were variables of their own.

All values are the plain ones. Hidden parameters send their gradient g along
the dual keys κ̃, so that a step changes γ and β as one on variables would,
whatever the keys' size and angle. The features' gradient G is projected off
the keys, so that it leaves γ and β alone. Together: G + Σ κ̃ (g - κ · G),
which passes over the kernel as seldom as the formula's own gradient.

So it is whether a layer trains or not, and whatever passport it sees, since a
gradient tells its keys in every mode: in attributions, in a user's own loop.
"""

import contextlib
import contextvars
import math

import keras
from keras import ops

from keras_passport.layers import (
    access,
    own_gradients,
    packing,
    row_order,
)
from keras_passport.layers.duals import SMALL

# Of a pair of keys, 1 - cos² of their angle at least.
PARALLEL = 1e-5

_values_only = contextvars.ContextVar("values_only", default=False)


@contextlib.contextmanager
def values_only():
    """A block whose calls are for their values: what an export traces.

    Formats of other programs know no gradients of ours.
    """
    token = _values_only.set(True)
    try:
        yield
    finally:
        _values_only.reset(token)


def hidden(layer, passport, training) -> tuple:
    """A passport layer's γ and β, and its kernel, with decoupled gradients.

    Args:
        layer: A passport layer that sees a passport.
        passport: Keys that are given with the call, `(1 or examples, size)`;
            `None` for those that it sees otherwise.
        training: Whether it trains.

    Returns:
        Tuple of values with which to call the kernel layer, as
        `scopes.Substitution` takes them, rows in their order, and of γ and β
        as `(1 or examples, channels)`, `None` where they are not hidden.
    """
    kernel = layer.adapter.weight(layer.layer) if layer.decouple else None
    if kernel is None or not _is_wanted():
        packed = layer._seen(passport)
        values = row_order.kernels_of(layer, packed)
        met = values if layer.gathered else ()
        return values, *layer._parameters(packed, met)
    duals = []
    if training and passport is None and access.is_settled(layer._secret):
        keys, *duals = access.read(layer._secret, access.DUALS)
    else:
        keys = layer._seen(passport)

    # What keys meet has decoupled gradients: of rows that are gathered, they
    # go on to where these are stored.
    [(_, met)] = row_order.met_by_keys(layer, keys) or [(kernel, kernel.value)]

    def respond(value, keys):
        return layer._respond(keys, [(kernel, value)])

    def gradient(tensors, upstream):
        _, _, keys, *duals = tensors
        of_features, of_hidden, *_ = upstream
        # TensorFlow forgets the shape where inputs have open sizes.
        of_features = ops.reshape(of_features, kernel.shape)
        taken = respond(of_features, keys)
        # Of a row for every example each takes its part. They are of one
        # passport, as a rule: together they take all of it once.
        rows = ops.cast(ops.shape(keys)[0], taken.dtype)
        change = of_hidden - taken / rows
        # Where there is no training, they cost nothing unless asked for.
        if duals:
            basis = packing.keys_in(layer, duals[0])
        else:
            basis = _duals(layer, packing.keys_in(layer, keys))
        change = layer.adapter.spread_groups(layer.layer, basis, change)
        change = of_features + ops.cast(change, of_features.dtype)
        return [change, of_hidden, *map(ops.zeros_like, (keys, *duals))]

    # The gradient of what else a response may depend on is its own.
    response = respond(ops.stop_gradient(met), keys)
    features, response, *_ = own_gradients.attach(
        gradient, [met, response, keys, *duals]
    )
    gamma, beta = layer._by_role(response, keys.shape[0])
    values = []
    if not layer.gathered:
        # A gradient of rows in their order goes to where they are stored.
        values = row_order.kernels_of(layer, keys, {id(kernel): features})
    return values or [(kernel, features)], gamma, beta


def _is_wanted() -> bool:
    """Whether anybody may ask for a gradient of what is computed now."""
    if _values_only.get():
        return False
    if keras.backend.backend() != "tensorflow":
        return True
    import tensorflow as tf
    from tensorflow.python.eager import record
    from tensorflow.python.saved_model import save_context

    if tf.executing_eagerly():
        return record.could_possibly_record()
    # Whoever calls a function may ask, unless it is traced to be saved.
    return not save_context.in_save_context()


def _duals(layer, rows):
    """The dual basis of keys that are tensors; see `duals.dual_basis`."""
    blocks = layer.adapter.blocks(layer.layer)
    channels = layer.geometry.filter_shape[-1]
    keys = ops.reshape(
        rows,
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

    squares = product(keys, keys)
    largest = ops.max(squares, axis=1, keepdims=True)
    is_key = squares > SMALL**2 * largest
    keys = ops.where(is_key, keys, 0.0)
    norms = ops.sqrt(ops.where(is_key, squares, 1.0))
    units = keys / norms
    if units.shape[1] == 2:
        others = ops.flip(units, axis=1)
        cosine = product(units, others)
        left = 1.0 - ops.square(cosine)
        # Duals of keys that are nearly parallel would be all rounding error.
        apart = left > PARALLEL
        # One direction for both, of which each takes its part.
        total = ops.sum(squares, axis=1, keepdims=True)
        total = ops.where(total == 0.0, 1.0, total)
        units = ops.where(
            apart,
            (units - cosine * others) / ops.where(apart, left, 1.0),
            keys * norms / total,
        )
    return ops.reshape(units / norms, ops.shape(rows))
