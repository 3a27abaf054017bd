"""The basis dual to keys: along it a change of one response leaves others."""

import numpy as np
from keras import ops

from keras_passport.errors import PassportError
from keras_passport.layers import offsets, packing, row_order, scopes
from keras_passport.layers.bindings import KEYS
from keras_passport.passports.entries import ROLES

# Two keys with a smaller angle (in radians) than about this count as one.
_PARALLEL = 1e-3
# A key is none beside one that is larger by more than this: its dual would be
# so large that the first step along it ruins the kernel.
SMALL = 1e-4


def dual_basis(keys, blocks: int = 1, groups: int = 1) -> np.ndarray:
    """The basis κ̃ dual to keys: κ̃_i · κ_j = 1 if i is j, else 0.

    Args:
        keys: Float array of shape `(rows, ..., channels)`; with several
            groups, `(rows, groups, ..., channels)`.
        blocks: Groups of channels that have filters of their own, and so a
            basis each.
        groups: Groups of output channels, with a basis each.

    Returns:
        float32 array in the shape of `keys`.
    """
    if groups > 1:
        parts = [dual_basis(keys[:, at], blocks) for at in range(groups)]
        return np.stack(parts, 1)
    shape = keys.shape
    rows = shape[0]
    grouped = keys.reshape(rows, -1, blocks, shape[-1] // blocks)
    grouped = grouped.transpose(2, 0, 1, 3)
    flat = grouped.reshape(blocks, rows, -1).astype("float64")
    # Of keys of equal size, so that only their angle says whether they are
    # parallel: duals of such keys would be all rounding error.
    norms = np.linalg.norm(flat, axis=-1, keepdims=True)
    largest = norms.max(axis=1, keepdims=True)
    largest[largest == 0.0] = 1.0
    is_key = norms > SMALL * largest
    flat = np.where(is_key, flat, 0.0)
    norms = np.where(is_key, norms, 1.0)
    duals = np.linalg.pinv(flat / norms, rcond=_PARALLEL)
    duals = duals.transpose(0, 2, 1) / norms
    if rows == len(ROLES):
        # One direction for both, of which each takes its part.
        cosine = np.abs(np.sum(np.prod(flat / norms, 1), -1))[:, None, None]
        parallel = 1.0 - cosine < _PARALLEL**2 * (1.0 + cosine)
        total = np.sum(flat**2, axis=(1, 2), keepdims=True)
        total[total == 0.0] = 1.0
        duals = np.where(parallel, flat / total, duals)
    duals = duals.reshape(grouped.shape).transpose(1, 2, 0, 3)
    return duals.reshape(shape).astype("float32")


def packed_basis(layer, packed: np.ndarray) -> np.ndarray:
    """The dual basis of a passport layer's keys, packed as they are."""
    basis = dual_basis(
        packing.keys_in(layer, packed),
        layer.adapter.blocks(layer.layer),
        layer.key_groups,
    ).reshape(1, -1)
    # An order of rows has none.
    return np.pad(basis, ((0, 0), (0, packed.shape[1] - basis.shape[1])))


def change_of_kernel(layer, gamma, beta, size) -> tuple:
    """See `PassportNormalization.change_of_kernel`."""
    wanted = {"gamma": gamma, "beta": beta}
    given = tuple(r for r, value in wanted.items() if value is not None)
    kernel = layer.adapter.solvable(layer.layer)
    if given != layer.function.roles or not layer.is_bound or kernel is None:
        raise PassportError(
            f"Expected a bound layer with one trainable kernel and "
            f"{' and '.join(layer.function.roles)}. Received: layer "
            f"'{layer.name}', bound: {layer.is_bound}, "
            f"{type(layer.layer).__name__}, {' and '.join(given) or 'none'}"
            ". With keras_passport.protect(model, select=...) a layer is "
            "left out"
        )
    rows = np.stack(
        [np.asarray(wanted[role]) - offsets.of(layer, role) for role in given]
    )
    keys = layer._secret.bound.eager(KEYS)
    met = row_order.met_by_keys(layer, keys)
    response = ops.convert_to_numpy(layer._respond(keys, met))
    # A separable layer's pointwise kernel meets what the other makes of keys.
    with scopes.Substitution(met):
        change = layer.adapter.smallest_change(
            layer.layer,
            packing.keys_in(layer, keys),
            rows - size * response,
        )
    return kernel, row_order.stored(layer, keys, kernel, change)
