"""Two versions of a network whose difference shows the keys that it is along.

`calibrate(like=...)` and `hide_statistics` change kernels in the span of the
keys alone, and training on changes γ and β along them. Whoever has both
versions has most of γ and β so, and of rows in secret orders all orders but
one.
"""

import itertools
import math

import numpy as np

from keras_passport.leaks import searches
from keras_passport.leaks.report import Leak

# Changes that are less than this part of a kernel are rounding errors.
_ROUNDING = 1e-6


def leaks_of(passport, named) -> list[Leak]:
    """Keys that lie in the leading directions of what models differ by.

    The directions are the left singular vectors of a layer's difference, as
    many as it has keys; a key's share in their plane is at most the sum of its
    squared correlations with them, whose bound is `find_leaks`'s.

    Args:
        passport: `Passport`.
        named: Dict from names of files to protected models that it fits.
    """
    pairs = [
        (one, other)
        for one, other in itertools.combinations(named, 2)
        if not _are_equal(named[one], named[other])
    ]
    found = {
        name: _matrices(passport, named[name])
        for name in dict.fromkeys(itertools.chain(*pairs))
    }
    leaks = []
    compared = sum(len(keys) for one, _ in pairs for _, keys, _ in found[one])
    for one, other in pairs:
        for (path, keys, ours), (_, _, theirs) in zip(
            found[one], found[other], strict=True
        ):
            planes = _planes(ours, theirs, keys)
            for role, key in keys.items():
                measure = _correlation(planes, key, len(ours))
                bound = _bound(key, len(keys), compared)
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


def _matrices(passport, model) -> list[tuple]:
    """Path, keys and response matrix of each layer, rows in their own order."""
    from keras_passport.layers import packing
    from keras_passport.layers.filters import response_matrix
    from keras_passport.layers.protected import protected_layers

    fitted = passport.fitted(model)
    matrices = []
    for (path, layer), row, keys in zip(
        protected_layers(model).items(),
        fitted.rows().values(),
        fitted.keys().values(),
        strict=True,
    ):
        order = packing.order_in(layer, row) if layer.gathered else None
        keys = {role: np.asarray(key, "float64") for role, key in keys.items()}
        matrices.append((path, keys, response_matrix(layer, order)))
    return matrices


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
            left = np.linalg.svd(change, full_matrices=False)[0]
            planes[group, block] = left[:, : len(keys)]
    return planes


def _correlation(planes, key, blocks) -> float:
    """The root of a key's share in planes, of all of it that has one."""
    width = key.shape[-1] // blocks
    rows = next(iter(planes.values())).shape[0] if planes else 1
    # A part for each group and block, as `filters.responses` takes them.
    parts = key.reshape(-1, rows // width, blocks, width) if planes else None
    inside = whole = 0.0
    for (group, block), plane in planes.items():
        part = parts[group, :, block].ravel()
        part = part - part.mean()
        inside += np.sum((part @ plane) ** 2)
        whole += np.sum(part**2)
    return math.sqrt(inside / whole) if whole else 0.0


def _bound(key, directions, compared) -> float:
    secret = searches.Secret("", "", "", key, searches.key_parts(key)[0])
    chance = searches.FALSE_ALARM / (directions * compared)
    return min(1.0, math.sqrt(directions) * secret.bound(chance))
