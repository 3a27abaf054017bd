"""How a layer's keys lie in a packed passport.

γ's key comes first, then β's, each in C order, and last the order of the
kernel's rows, where they are stored in a secret one.
"""

import numpy as np
from keras import ops

from keras_passport.errors import PassportError


def size(layer) -> int:
    """Number of elements of a layer's part of a packed passport."""
    return keys_size(layer) + layer.geometry.order_size


def keys_size(layer) -> int:
    """Number of elements of γ's and β's keys together."""
    return len(layer.function.roles) * layer.geometry.key_size


def pack(layer, keys: dict, order=None) -> np.ndarray:
    """Keys of a passport in one row.

    Args:
        layer: The passport layer.
        keys: Dict from `"gamma"` and `"beta"` to float arrays of shape
            `geometry.key_shape`; `None` for what the function does not hide.
        order: Float array as `row_order` has it, `(geometry.order_size,)`;
            `None` where rows are in their own order.

    Returns:
        float32 array `(1, size)`.

    Raises:
        PassportError: If something is missing, superfluous, of the wrong
            shape, or not finite.
    """
    packed = []
    for role, key in keys.items():
        if role not in layer.function.roles:
            if key is not None:
                raise PassportError(
                    f"Layer '{layer.name}' has function "
                    f"{layer.function.name}, which hides no {role}. "
                    f"Received: a key for {role}"
                )
            continue
        _check(layer, f"a key for {role}", key, layer.geometry.key_shape)
        packed.append(key)
    size = layer.geometry.order_size
    if size or order is not None:
        _check(layer, "an order of rows", order, (size,))
        packed.append(order)
    packed = [np.asarray(part, "float32").reshape(1, -1) for part in packed]
    packed = np.concatenate(packed, axis=1)
    if not np.all(np.isfinite(packed)):
        raise PassportError(
            f"Expected finite keys for layer '{layer.name}'. "
            "Received: NaN or infinity"
        )
    return packed


def _check(layer, what, array, expected):
    shape = None if array is None else np.shape(array)
    if shape != expected:
        raise PassportError(
            f"Expected {what} of layer '{layer.name}' of shape {expected}. "
            f"Received: shape={shape}"
        )


def keys_in(layer, packed):
    """γ's and β's keys of packed passports: `(rows · roles, *key_shape)`.

    Args:
        layer: The passport layer.
        packed: Tensor or array `(rows, size)`.
    """
    if layer.geometry.ordered_rows:
        packed = packed[:, : keys_size(layer)]
    shape = (-1, *layer.geometry.key_shape)
    if isinstance(packed, np.ndarray):
        return packed.reshape(shape)
    return ops.reshape(packed, shape)


def order_in(layer, packed):
    """The order of rows in one packed passport, as `row_order` has it.

    Args:
        layer: The passport layer.
        packed: Tensor or array `(1, size)`.
    """
    return packed[0, keys_size(layer) :]
