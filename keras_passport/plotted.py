"""The plain numbers that figures are drawn of, checked; and their texts.

Functions that check take a mapping, the key of an entry, and how a message
names it.
"""

from collections.abc import Mapping, Sequence

import numpy as np


def mapping_of(parent, key):
    """The mapping that an entry holds."""
    value = parent.get(key)
    if not isinstance(value, Mapping):
        raise ValueError(
            f"Expected '{key}' to be a mapping. Received: {key}={value!r}"
        )
    return value


def sequence_of(parent, key):
    """The sequence that an entry holds, of one element or more."""
    value = parent.get(key)
    if not isinstance(value, Sequence) or not value or isinstance(value, str):
        raise ValueError(
            f"Expected '{key}' to be a non-empty sequence. Received: {value!r}"
        )
    return value


def curve_of(curve, name):
    """x, and per x an array of accuracies."""
    x = numbers_of(curve, "x", f"{name}.x")
    trials = sequence_of(curve, "accuracies")
    if len(trials) != len(x):
        raise ValueError(
            f"Expected '{name}' to have as many accuracies as x. "
            f"Received: {len(trials)} and {len(x)}"
        )
    label = f"{name}.accuracies"
    return x, [accuracies_of({"": values}, "", label) for values in trials]


def numbers_of(mapping, key, name=None):
    """A non-empty 1D float array from a number or a sequence of numbers."""
    value = mapping.get(key)
    try:
        # NumPy makes NaN of what is missing.
        value = [] if value is None else value
        array = np.atleast_1d(np.asarray(value, dtype="float64"))
    except (TypeError, ValueError):
        array = np.empty(0)
    if array.ndim == 1 and not np.isfinite(array).all():
        wrong = np.flatnonzero(~np.isfinite(array))
        raise ValueError(
            f"Expected '{name or key}' to hold finite numbers. Received: "
            f"{array[wrong[0]]} as number {wrong[0]} of {array.size}, counted "
            "from 0: a training that diverged leaves such numbers"
        )
    if array.ndim != 1 or array.size == 0:
        raise ValueError(
            f"Expected '{name or key}' to be a number or a non-empty sequence "
            f"of finite numbers. Received: {value!r}"
        )
    return array


def accuracies_of(mapping, key, name=None):
    """A non-empty 1D float array of accuracies in per cent."""
    array = numbers_of(mapping, key, name)
    if array.min() < 0 or array.max() > 100:
        raise ValueError(
            f"Expected '{name or key}' to be in per cent, in [0, 100]. "
            f"Received: values from {array.min()} to {array.max()}"
        )
    return array


def literal(text) -> str:
    """A text of somebody's for matplotlib, which takes dollars for formulas.

    One that is no formula would be an error, and no figure drawn.
    """
    return str(text).replace("$", r"\$")
