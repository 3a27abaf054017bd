"""Filters, and rows in a secret order, aligned with another network's."""

import numpy as np

from keras_passport.layers import row_order

# Part of a layer's filters that are negated where signs were scrambled.
_SCRAMBLED = 0.1


def matched(ours: np.ndarray, theirs: np.ndarray) -> tuple:
    """Number of the other's filter for each, cosine with it, and size.

    Filters of the same number are each other's, unless others are clearly
    more alike: small ones change much when a kernel is made to give γ and β.

    Args:
        ours: Filters as rows, `(channels, numbers)`.
        theirs: Those of the other network, likewise.

    Returns:
        Tuple of three arrays `(channels,)`.
    """
    from scipy.optimize import linear_sum_assignment

    sizes, others = (
        np.maximum(np.linalg.norm(rows, axis=1), 1e-12)
        for rows in (ours, theirs)
    )
    cosines = (ours / sizes[:, None]) @ (theirs / others[:, None]).T
    rows, chosen = linear_sum_assignment(-np.abs(cosines))
    if len(ours) == len(theirs):
        same, best = (
            np.abs(cosines[rows, some]).sum() for some in (rows, chosen)
        )
        chosen = rows if same > 0.8 * best else chosen
    return chosen, cosines[rows, chosen], sizes / others[chosen]


def signs_of(cosines: np.ndarray, alike: float) -> np.ndarray:
    """Which filters are negated, by their cosines with the other's.

    What has changed much has the sign that it had, unless the others were
    negated at random: then its cosine tells more than that.

    Args:
        cosines: `(channels,)`.
        alike: What is sure of its sign.

    Returns:
        1 or -1 for each.
    """
    sure = np.abs(cosines) >= alike
    scrambled = np.any(sure) and np.mean(cosines[sure] < 0.0) > _SCRAMBLED
    return np.where(cosines < (0.0 if scrambled else -alike), -1.0, 1.0)


def put_back(layer, kernel) -> None:
    """Gives stored rows the places and signs that another kernel's have.

    An order hides rows from who has never seen them. Sizes of numbers stay:
    rows are matched by them, after filters are brought to one size. With a
    row's sign s and a filter's f, products of matched numbers are s f w², so
    the signs are those of their first singular vectors, but for one for all.

    Args:
        layer: Passport layer whose rows are in a secret order, of a copy that
            is the attacker's own: its kernels are changed.
        kernel: A kernel layer like it, of another network.
    """
    adapter = layer.adapter
    order = [
        _order(stored, known)
        for stored, known in zip(
            row_order.rows_of(adapter, layer.layer),
            row_order.rows_of(adapter, kernel),
            strict=True,
        )
    ]
    order = np.concatenate(order).astype("float32")
    for variable, value in row_order.gathered(adapter, layer.layer, order):
        variable.assign(value)


def _order(stored, known) -> np.ndarray:
    """The order of rows, as `row_order` has it, `(rows,)`."""
    from scipy.optimize import linear_sum_assignment

    stored, known = (
        rows / np.maximum(np.linalg.norm(rows, axis=0), 1e-12)
        for rows in (stored, known)
    )
    sizes = [
        np.abs(rows) / np.maximum(np.linalg.norm(rows, axis=1), 1e-12)[:, None]
        for rows in (known, stored)
    ]
    _, places = linear_sum_assignment(-(sizes[0] @ sizes[1].T))
    first = np.linalg.svd(known * stored[places], full_matrices=False)[0][:, 0]
    return np.where(first < 0, -1, 1) * (places + 1)
