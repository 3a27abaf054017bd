"""Two versions of a network whose difference shows the keys that it is along.

`calibrate(like=...)` and `hide_statistics` change kernels in the span of the
keys alone, and training on changes γ and β along them. Whoever has both
versions has most of γ and β so, and of rows in secret orders all orders but
one.
"""

import itertools
import math

import numpy as np
from scipy.sparse import linalg

from keras_passport.leaks import searches
from keras_passport.leaks.report import Leak

# Changes that are less than this part of a kernel are rounding errors.
_ROUNDING = 1e-6
# Matrices of fewer columns are taken apart whole.
_SMALL = 8


def leaks_of(passport, named) -> list[Leak]:
    """Keys that lie in the leading directions of what models differ by.

    The directions are the left singular vectors of a layer's difference, as
    many as it has keys; a key's share in their plane is at most the sum of its
    squared correlations with them, whose bound is `find_leaks`'s.

    Args:
        passport: `Passport`.
        named: Dict from names of files to protected models that it fits.
    """
    distinct = {}
    for name, model in named.items():
        if not any(_are_equal(model, one) for one in distinct.values()):
            distinct[name] = model
    pairs = list(itertools.combinations(distinct, 2))
    if not pairs:
        return []
    layers = {name: _layers(passport, one) for name, one in distinct.items()}
    count = sum(len(keys) for *_, keys in next(iter(layers.values())))
    leaks = []
    # Of all models' layers one at a time, since kernels may be large.
    for together in zip(*layers.values(), strict=True):
        path, *_, keys = together[0]
        kernels = [_matrix(*one) for one in together]
        for (one, other), both in zip(
            pairs, itertools.combinations(kernels, 2), strict=True
        ):
            planes = _planes(*both, keys)
            for role, key in keys.items():
                measure = _correlation(planes, key, len(both[0]))
                bound = _bound(key, len(keys), count * len(pairs))
                if measure > bound:
                    what = "key, in the difference of two versions"
                    about = what, measure, bound, path, role
                    leaks.append(Leak(other, f"beside {one}", *about))
    return leaks


def _are_equal(one, other) -> bool:
    weights = one.get_weights(), other.get_weights()
    return len(weights[0]) == len(weights[1]) and all(
        np.array_equal(*pair) for pair in zip(*weights, strict=True)
    )


def _layers(passport, model) -> list[tuple]:
    """Path, layer, packed keys and keys by role, of each protected layer."""
    from keras_passport.layers.protected import protected_layers

    fitted = passport.fitted(model)
    return [
        (path, layer, row, {r: np.asarray(k, "float64") for r, k in of.items()})
        for (path, layer), row, of in zip(
            protected_layers(model).items(),
            fitted.rows().values(),
            fitted.keys().values(),
            strict=True,
        )
    ]


def _matrix(path, layer, row, keys):
    """What keys meet of a layer, its rows in their own order."""
    from keras_passport.layers import packing
    from keras_passport.layers.filters import response_matrix

    order = packing.order_in(layer, row) if layer.gathered else None
    return response_matrix(layer, order)


def _planes(ours, theirs, keys):
    """Directions of a difference, `(group, block)` to `(rows, directions)`."""
    blocks, rows, columns = ours.shape
    groups = next(iter(keys.values())).size // (rows * blocks)
    planes = {}
    for group, block in itertools.product(range(groups), range(blocks)):
        kernel = ours[block, :, group::groups]
        change = kernel - theirs[block, :, group::groups]
        if np.linalg.norm(change) > _ROUNDING * np.linalg.norm(kernel):
            change = change - change.mean(axis=0)
            planes[group, block] = _leading(change, len(keys))
    return planes


def _leading(matrix, count):
    """Its leading left singular vectors, as columns."""
    if min(matrix.shape) <= max(count, _SMALL):
        left = np.linalg.svd(matrix, full_matrices=False)[0]
        return left[:, :count]
    start = np.ones(min(matrix.shape))
    return linalg.svds(matrix, count, v0=start)[0]


def _correlation(planes, key, blocks) -> float:
    """The root of a key's share in planes, of all of it that has one."""
    width = key.shape[-1] // blocks
    inside = whole = 0.0
    for (group, block), plane in planes.items():
        # A part for each group and block, as `filters.responses` takes them.
        parts = key.reshape(-1, len(plane) // width, blocks, width)
        part = parts[group, :, block].ravel()
        part = part - part.mean()
        inside += np.sum((part @ plane) ** 2)
        whole += np.sum(part**2)
    return math.sqrt(inside / whole) if whole else 0.0


def _bound(key, directions, compared) -> float:
    secret = searches.Secret("", "", "", key, searches.key_parts(key)[0])
    chance = searches.FALSE_ALARM / (directions * compared)
    return min(1.0, math.sqrt(directions) * secret.bound(chance))
