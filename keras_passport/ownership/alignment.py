"""Which filter of a suspect is which of the owner's: order, sign and size.

Networks that were permuted, rescaled or negated compute what they did, and so
do those with a layer more, or with branches listed in another order. So layers
are paired by how alike their filters are, and filters by their direction
alone, by an assignment that is best for all of a layer; what is found for one
layer is tried on what the next ones read. A foreign network gets the same
search: its matches are as good as searching makes them, and so the search
itself is no evidence.
"""

import dataclasses
import functools

import numpy as np
from scipy.optimize import linear_sum_assignment

# How many of the orders found before are tried on what a layer reads.
_REMEMBERED = 12
_ROUNDS = 3
_TINY = 1e-12
# Filters by which layers are compared before they are matched as a whole.
_SAMPLE = 32
# By how much of what a rival lacks to be equal the owner's layer must be ahead
# of it, to be clear.
_CLEAR = 1 / 3
# How alike a rival would be where there is none.
_ALONE = 0.5
# How much more alike layers in equal places count: more than chance makes of
# the mean of a sample, and far less than what two copies have in common.
_IN_PLACE = 0.02


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
    """Matches layers of equal shapes, and filters by direction.

    Args:
        owners: `KernelLayer`s of the published network.
        suspects: Of the suspect.

    Returns:
        A `LayerMatch` for each of the owner's layers that has one, in the
        owner's order.
    """
    search = _Search(owners, suspects)
    while search.open:
        before = len(search.open)
        for number in list(search.open):
            search.settle(number)
        if len(search.open) == before:
            # Nothing is clear: what the next ones read may become so.
            search.settle(search.open[0], by_force=True)
    return [match for _, match in sorted(search.matches.items())]


def similarity(matches: list[LayerMatch], filters: int) -> float:
    """How much of the owner's kernels is there: mean cosine, 0 to 1.

    Args:
        matches: As `align` returns them.
        filters: How many filters the owner's network has. One whose layer was
            not found counts as 0.
    """
    total = sum(float(np.sum(match.cosines)) for match in matches)
    return total / max(filters, 1)


class _Search:
    """Pairs of layers, found together with the orders of their filters.

    Args:
        owners: `KernelLayer`s of the published network.
        suspects: Of the suspect.

    Attributes:
        open: Numbers of the owner's layers that have no partner as yet.
        matches: Dict from an owner's number to its `LayerMatch`.
    """

    def __init__(self, owners, suspects):
        self.open = list(range(len(owners)))
        self.matches = {}
        self._owners = [_Sketch(owner) for owner in owners]
        self._free: dict = {}
        for number, suspect in enumerate(suspects):
            for form in suspect.forms:
                sketches = self._free.setdefault(form.shape, {})
                sketches.setdefault(number, []).append(_Sketch(form))
        self._likeness: dict = {}

    def settle(self, number, by_force=False):
        """Gives a layer its partner, if it is clear or must be.

        Args:
            number: Of the owner's layer.
            by_force: Whether the best is taken, be it as unlike as may be.
        """
        shape = self._owners[number].layer.shape
        columns = [
            (suspect, sketch)
            for suspect, sketches in self._free.get(shape, {}).items()
            for sketch in sketches
        ]
        if not columns:
            self.open.remove(number)
            return
        rows = [n for n in self.open if self._owners[n].layer.shape == shape]
        table = np.array(
            [[self._alike(n, sketch) for _, sketch in columns] for n in rows]
        )
        places = np.unique([c for c, _ in columns], return_inverse=True)[1]
        find = _assigned_column if by_force else _clear_column
        column = find(table, rows.index(number), places)
        if column is not None:
            suspect, sketch = columns[column]
            self.matches[number] = _matched(
                self._owners[number].layer, sketch.layer, self._orders(number)
            )
            for sketches in self._free.values():
                sketches.pop(suspect, None)
        if column is not None or by_force:
            self.open.remove(number)

    def _orders(self, number):
        """The last orders found that a layer may read, the latest last."""
        orders: dict = {}
        for before in sorted(self.matches, reverse=True):
            order = self.matches[before].order
            if before > number or np.array_equal(order, np.arange(order.size)):
                continue
            orders.setdefault(order.tobytes(), order)
            if len(orders) == _REMEMBERED:
                break
        return list(orders.values())[::-1]

    def _alike(self, number, sketch) -> float:
        """Likeness under what is known; each order is tried but once."""
        owner = self._owners[number]
        best, tried = self._likeness.get((number, id(sketch)), (None, set()))
        if best is None:
            best = owner.likeness(sketch)
        for order in self._orders(number):
            if (key := order.tobytes()) not in tried:
                tried.add(key)
                best = max(best, owner.likeness(sketch, order))
        self._likeness[number, id(sketch)] = best, tried
        return best


def _clear_column(table, row, places) -> int | None:
    """The column that is a row's beyond doubt, as that row is the column's.

    Args:
        table: Likeness of the owner's layers to the suspect's, in their forms.
        row: Of the owner's layer.
        places: For each column the number of its layer.
    """
    column = int(np.argmax(table[row]))
    same = places == places[column]
    others = [*table[row, ~same], *np.delete(table, row, 0)[:, same].flat]
    rival = max(others, default=_ALONE)
    ahead = table[row, column] - rival
    return column if ahead >= _CLEAR * (1 - rival) else None


def _assigned_column(table, row, places) -> int | None:
    """A row's column where all rows have the best; `None` if there are few."""
    first = np.append(True, places[1:] != places[:-1])
    in_place = (np.arange(len(table))[:, None] == places) & first
    rows, columns = linear_sum_assignment(-table - _IN_PLACE * in_place)
    return dict(zip(rows, columns, strict=True)).get(row)


class _Sketch:
    """A layer's filters of length 1, to be compared with another's.

    Args:
        layer: A `KernelLayer`.
    """

    def __init__(self, layer):
        self.layer = layer

    @functools.cached_property
    def filters(self) -> list[np.ndarray]:
        """As they are, and as they are if all inputs are of one size."""
        plain = _of_length_1(self.layer.kernel.astype("float32"))
        if self.layer.kind != "full":
            return [plain]
        even = plain
        for _ in range(_ROUNDS):
            sizes = np.sqrt(np.einsum("pif,pif->i", even, even))
            # A channel that is not read has no size.
            sizes = np.maximum(sizes, 1e-3 * sizes.max() + _TINY)
            even = _of_length_1(even / sizes[None, :, None])
        return [plain, even]

    @functools.cached_property
    def sample(self) -> list[np.ndarray]:
        """The strongest ones, since others may have died."""
        norms = np.linalg.norm(self.layer.kernel, axis=(0, 1))
        chosen = np.argsort(-norms, kind="stable")[:_SAMPLE]
        return [filters[..., chosen] for filters in self.filters]

    def likeness(self, other, order=None) -> float:
        """How alike the filters are in the mean, 0 to 1.

        Each has whichever of the other's is nearest. Where filters do not see
        all channels, few numbers tell them apart, and so half of it is how
        alike those are that an order puts in their places.

        Args:
            other: `_Sketch` of a layer of equal shape.
            order: Of the filters of some layer before; `None` for none.
        """
        count = self.layer.filters
        if self.layer.kind == "full":
            reading = _reading(self.layer.kernel.shape[1], order)
            if reading is None:
                return 0.0
            return max(
                _nearest(known, seen, reading)
                for known, seen in zip(self.sample, other.filters, strict=True)
            )
        if order is None:
            order = np.arange(count)
        if order.size != count:
            return 0.0
        (known,), (seen,) = self.filters, other.filters
        in_place = np.abs(np.sum(known * seen[..., order], axis=(0, 1)))
        reading = np.arange(known.shape[1])
        nearest = _nearest(self.sample[0], seen, reading)
        return float(np.mean(in_place) + nearest) / 2


def _of_length_1(kernel):
    norms = np.linalg.norm(kernel, axis=(0, 1))
    return kernel / np.maximum(norms, _TINY)


def _nearest(known, seen, inputs) -> float:
    read = np.empty_like(known)
    read[:, inputs] = known
    cosines = read.reshape(-1, read.shape[-1]).T @ seen.reshape(
        -1, seen.shape[-1]
    )
    return float(np.abs(cosines).max(axis=1).mean())


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
    found = [_reading(width, order) for order in [None, *reversed(orders)]]
    return [reading for reading in found if reading is not None]


def _reading(width, order):
    """How a layer reads inputs in an order; `None` if it has no such inputs."""
    if order is None:
        return np.arange(width)
    times, rest = divmod(width, order.size)
    if rest:
        return None
    # A flattened map has all channels at each of its places.
    return (np.arange(times)[:, None] * order.size + order).reshape(-1)


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
