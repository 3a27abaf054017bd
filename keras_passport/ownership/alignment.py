"""Which filter of a suspect is which of the owner's: order, sign and size.

Networks that were permuted, rescaled or negated compute what they did. So
filters are matched by their direction alone, by an assignment that is best
for all of a layer, and what is found for one layer is tried on what the next
ones read. A foreign network gets the same search: its matches are as good as
searching makes them, and so the search itself is no evidence.
"""

import dataclasses

import numpy as np
from scipy.optimize import linear_sum_assignment

# How many of the orders found before are tried on what a layer reads.
_REMEMBERED = 12
_ROUNDS = 3
_TINY = 1e-12


@dataclasses.dataclass(frozen=True, eq=False)
class LayerMatch:
    """How one layer of the owner's stands in the suspect.

    Args:
        path: The owner's layer.
        found: The suspect's.
        order: For each of the owner's filters, the number of the suspect's.
        signs: 1, or -1 where that one is negated.
        sizes: By what its size is larger, `(filters,)`.
        inputs: For each input channel of the owner's, the suspect's.
        input_sizes: By what the suspect reads it more weakly.
        cosines: Of the matched filters, 0 to 1.
    """

    path: str
    found: object
    order: np.ndarray
    signs: np.ndarray
    sizes: np.ndarray
    inputs: np.ndarray
    input_sizes: np.ndarray
    cosines: np.ndarray

    @property
    def gamma_signs(self) -> np.ndarray:
        """The signs that the suspect's γ has, seen with the owner's filters.

        A folded γ is in the kernel, and turns a filter round; a rewrite that
        negates a filter negates its γ as well. Their product is neither's.
        """
        return self.signs * self.found.signs[self.order]


def align(owners: list, suspects: list) -> list[LayerMatch]:
    """Matches layers by shape and order, and filters by direction.

    Args:
        owners: `KernelLayer`s of the published network.
        suspects: Of the suspect.

    Returns:
        A `LayerMatch` for each of the owner's layers that has one.
    """
    matches = []
    orders: list[np.ndarray] = []
    for owner, suspect in _pairs(owners, suspects):
        match = _matched(owner, suspect, orders)
        matches.append(match)
        orders.append(match.order)
        del orders[:-_REMEMBERED]
    return matches


def similarity(matches: list[LayerMatch], filters: int) -> float:
    """How much of the owner's kernels is there: mean cosine, 0 to 1.

    Args:
        matches: As `align` returns them.
        filters: How many filters the owner's network has. One whose layer was
            not found counts as 0.
    """
    total = sum(float(np.sum(match.cosines)) for match in matches)
    return total / max(filters, 1)


def _pairs(owners, suspects):
    """Layers of equal shapes, the longest sequence of them in both orders."""
    rows, columns = len(owners), len(suspects)
    longest = np.zeros((rows + 1, columns + 1), int)
    for row in range(rows - 1, -1, -1):
        for column in range(columns - 1, -1, -1):
            longest[row, column] = max(
                longest[row + 1, column],
                longest[row, column + 1],
                (owners[row].shape == suspects[column].shape)
                * (1 + longest[row + 1, column + 1]),
            )
    row = column = 0
    while row < rows and column < columns:
        same = owners[row].shape == suspects[column].shape
        if same and longest[row, column] == 1 + longest[row + 1, column + 1]:
            yield owners[row], suspects[column]
            row, column = row + 1, column + 1
        elif longest[row + 1, column] >= longest[row, column + 1]:
            row += 1
        else:
            column += 1


def _matched(owner, suspect, orders) -> LayerMatch:
    if owner.kind != "full":
        return _matched_alone(owner, suspect, orders)
    width = owner.kernel.shape[1]
    found = [
        _assigned(owner, suspect, inputs, np.ones(width))
        for inputs in _readings(width, orders)
    ]
    # The first is what the suspect reads as it stands: equals change nothing.
    best = max(found, key=lambda match: round(float(match.cosines.sum()), 6))
    for _ in range(_ROUNDS):
        sizes = _input_sizes(owner, suspect, best)
        again = _assigned(owner, suspect, best.inputs, sizes)
        if again.cosines.sum() <= best.cosines.sum() + 1e-6:
            break
        best = again
    return best


def _readings(width, orders):
    """In which orders a layer may read its inputs."""
    readings = [np.arange(width)]
    for order in reversed(orders):
        times, rest = divmod(width, order.size)
        if rest or np.array_equal(order, np.arange(order.size)):
            continue
        # A flattened map has all channels at each of its places.
        places = np.arange(times)[:, None] * order.size
        readings.append((places + order).reshape(-1))
    return readings


def _matched_alone(owner, suspect, orders) -> LayerMatch:
    """A match where a filter does not see all channels, or but its own.

    Few numbers tell such filters apart; an order that another layer gave away
    is as good as any that fits as well.
    """
    width = owner.kernel.shape[1]
    best = _assigned(owner, suspect, np.arange(width), np.ones(width))
    for order in reversed(orders):
        if order.size == owner.filters:
            match = _assigned(
                owner, suspect, np.arange(width), np.ones(width), order
            )
            if match.cosines.sum() >= 0.98 * best.cosines.sum():
                return match
    return best


def _assigned(owner, suspect, inputs, input_sizes, order=None) -> LayerMatch:
    known = owner.kernel.reshape(-1, owner.filters)
    if owner.kind == "full":
        seen = suspect.kernel[:, inputs] * input_sizes[None, :, None]
    else:
        seen = suspect.kernel
    seen = seen.reshape(-1, suspect.filters)
    norms = np.linalg.norm(known, axis=0)
    seen_norms = np.linalg.norm(seen, axis=0)
    cosines = (known / np.maximum(norms, _TINY)).T @ (
        seen / np.maximum(seen_norms, _TINY)
    )
    if order is None:
        # Where nothing was moved, equals stay where they are.
        bonus = 1e-9 * np.eye(*cosines.shape)
        _, order = linear_sum_assignment(-np.abs(cosines) - bonus)
    matched = cosines[np.arange(owner.filters), order]
    return LayerMatch(
        path=owner.path,
        found=suspect,
        order=order,
        signs=np.where(matched < 0, -1.0, 1.0),
        sizes=seen_norms[order] / np.maximum(norms, _TINY),
        inputs=np.asarray(inputs),
        input_sizes=np.asarray(input_sizes, float),
        cosines=np.clip(np.abs(matched), 0.0, 1.0),
    )


def _input_sizes(owner, suspect, match):
    """By how much less the suspect reads each channel, by least squares."""
    seen = suspect.kernel[:, match.inputs][..., match.order]
    seen = seen * (match.signs / np.maximum(match.sizes, _TINY))
    dots = np.einsum("pif,pif->i", owner.kernel, seen)
    energy = np.einsum("pif,pif->i", seen, seen)
    ratio = dots / np.maximum(energy, _TINY)
    return np.where(ratio > 1e-3, ratio, match.input_sizes)
