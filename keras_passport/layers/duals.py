"""The basis dual to keys: along it a change of one response leaves others."""

import numpy as np

# Two keys with a smaller angle (in radians) than about this count as one.
_PARALLEL = 1e-3


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
    norms[norms == 0.0] = 1.0
    duals = np.linalg.pinv(flat / norms, rcond=_PARALLEL)
    duals = duals.transpose(0, 2, 1) / norms
    duals = duals.reshape(grouped.shape).transpose(1, 2, 0, 3)
    return duals.reshape(shape).astype("float32")
