"""Batches of examples that have one packed passport in common.

Keras wants as many rows of each input as there are examples, and copies all of
them before it begins. A passport of rows in secret orders has up to as many
numbers as the kernels.
"""

import functools
import inspect
import math

import keras
import numpy as np


class _Batches(keras.utils.PyDataset):
    """Examples of arrays, each batch with the passport once.

    Args:
        arrays: What Keras takes: tuple of inputs and, if there are any,
            targets and weights, structures of arrays.
        passport: The one of them that is one row, repeated.
        size: Examples a batch.
        replicas: Among how many each batch is dealt out, rows included.
    """

    def __init__(self, arrays, passport, size, replicas):
        super().__init__()
        self._arrays, self._passport = arrays, passport
        self._size, self._replicas = size, replicas

    def __len__(self):
        return math.ceil(len(self._passport) / self._size)

    def __getitem__(self, index):
        some = slice(index * self._size, (index + 1) * self._size)

        def taken(array):
            if array is self._passport and self._replicas == 1:
                return array[:1]
            part = array[some]
            # As Keras does with arrays.
            floats = part.dtype.kind == "f"
            return part.astype(keras.config.floatx()) if floats else part

        batch = keras.tree.map_structure(taken, self._arrays)
        # As Keras hands on arrays: its generators know of no lists.
        return keras.tree.lists_to_tuples(batch)


def by_batches(method):
    """`evaluate` or `predict` that repeats no passport beyond a batch.

    Args:
        method: That of a model with `_passport_in`, which finds the packed
            passport among inputs.

    Returns:
        The method; what it does with all that is not made of arrays, with one
        row repeated among them, is the given one's.
    """
    signature = inspect.signature(method)

    @functools.wraps(method)
    def by_batch(self, *args, **kwargs):
        given = dict(signature.bind(self, *args, **kwargs).arguments)
        batches = _batches(self, given)
        if batches is None:
            return method(self, *args, **kwargs)
        self._checked_call(given["x"])
        for name in ("self", "x", "y", "sample_weight", "batch_size"):
            given.pop(name, None)
        given |= given.pop("kwargs", {})
        return method(self, batches, **given)

    return by_batch


def _batches(model, given):
    x, y, weights = (given.get(n) for n in ("x", "y", "sample_weight"))
    if given.get("steps") is not None or _is_sharded():
        return None
    arrays = (
        (x,) if y is None else (x, y) if weights is None else (x, y, weights)
    )
    leaves = keras.tree.flatten(arrays)
    if not all(
        isinstance(leaf, np.ndarray) and leaf.ndim and leaf.dtype.kind in "biuf"
        for leaf in leaves
    ):
        return None
    passport = model._passport_in(x)
    rows = {len(leaf) for leaf in leaves}
    is_one = passport is not None and passport.strides[0] == 0
    if not is_one or len(rows) > 1 or (y is None and weights is not None):
        return None
    strategy = getattr(model, "distribute_strategy", None)
    replicas = getattr(strategy, "num_replicas_in_sync", 1)
    return _Batches(arrays, passport, given.get("batch_size") or 32, replicas)


def _is_sharded() -> bool:
    return keras.distribution.distribution() is not None
