"""Secrets to look for, and how they are recognised as bytes and in print."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable

import numpy as np
from scipy import optimize

# The chance that a scan of files without any secret reports a correlation.
FALSE_ALARM = 1e-6
# Bytes of a run, and runs of feature maps that are looked for at most, in
# each form.
_RUN, _MOST_RUNS = 16, 2**20
# Printed numbers in a row, and significant digits of each, that give a secret.
_IN_A_ROW, _DIGITS = 4, 5
# A copy in float16 or bfloat16 lacks about this part of its original.
_ROUNDING = 1e-6
# Keys by which it is judged what other hidden parameters would be like.
_PARTS = 1024


@dataclasses.dataclass(frozen=True, eq=False)
class Secret:
    """Numbers to look for.

    Args:
        what: What they are.
        layer: Path of their layer.
        role: `"gamma"` or `"beta"`.
        values: float32 array of them.
        parts: Variances of the independent parts of which another secret of
            this kind would be made, centred, greatest first; `None` for what
            is looked for as bytes alone.
    """

    what: str
    layer: str
    role: str
    values: np.ndarray
    parts: np.ndarray | None = None

    @functools.cached_property
    def variances(self) -> np.ndarray:
        """Of all parts but the one that a comparison looks at."""
        # Of one channel, whose neighbours are alike, there may be none.
        return self.parts[1:] / (self.parts[:1].sum() or 1.0)

    @functools.cached_property
    def different(self) -> bool:
        """Whether there are enough different values to tell from chance."""
        values = self.values.astype("float64")
        deviation = (values - values.mean()) / (values.std() or 1.0)
        return np.unique(np.round(deviation, 2)).size >= 6

    def bound(self, chance: float) -> float:
        """The correlation that has at most this chance; see `find_leaks`."""
        if np.max(self.variances, initial=0.0) < 1e-9:
            return 1.0
        logarithm = optimize.brentq(
            lambda x: (
                np.sum(np.log1p(self.variances * np.exp(x)))
                + 2 * math.log(chance)
            ),
            -50.0,
            500.0,
        )
        return 1 / math.sqrt(1 + math.exp(-logarithm))

    def simple_bound(self, chance: float) -> float:
        """The same if all elements were independent of each other."""
        degrees = max(1e-9, self.values.size - 2)
        return math.sqrt(1 - chance ** (2 / degrees))

    @functools.cached_property
    def least(self) -> float:
        """What must be reached for anything to be said of a correlation."""
        return self.simple_bound(FALSE_ALARM / 2)

    def tells(self, chance: float) -> bool:
        """Whether a rounded copy is above the bound for this chance."""
        return self.different and 1 - self.bound(chance) ** 2 >= _ROUNDING


@dataclasses.dataclass(frozen=True, eq=False)
class Map:
    """A feature map or images to look for, by samples of their bytes.

    Args:
        what: What it is.
        layer: Path of its layer, or "".
        role: `"gamma"`, `"beta"` or "".
        size: How many elements it has.
        make: Function that gives it: it may be too large to keep.
    """

    what: str
    layer: str
    role: str
    size: int
    make: Callable


def key_parts(key: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What keys like this one are made of.

    Neighbours in a key's window see nearly the same positions of the map, so
    its elements are not independent; its channels are. Its principal
    components over the window tell how alike the neighbours are.

    Args:
        key: float array of shape `(kernel size..., channels)`.

    Returns:
        Variances of the independent parts, greatest first and centred, and the
        parts, `(parts, *key.shape)`: one key for each component and channel,
        or of a large key that many random sums of them.
    """
    channels = key.shape[-1]
    values = key.astype("float64").reshape(-1, channels)
    components, sizes, _ = np.linalg.svd(
        values - values.mean(), full_matrices=False
    )
    count = sizes.size * channels
    if count <= _PARTS:
        weights = np.eye(count)
    else:
        weights = np.random.default_rng(0).normal(size=(_PARTS, count))
    weights = weights.reshape(-1, sizes.size, channels)
    parts = np.einsum("ke,e,nec->nkc", components, sizes, weights)
    variances = np.repeat(sizes**2, channels)
    return variances[1:], parts.reshape(-1, *key.shape).astype("float32")


def ways(count: int) -> list[tuple[int, ...]]:
    """The orders of so many axes, their own first."""
    axes = tuple(range(count))
    if count <= 4:
        return list(itertools.permutations(axes))
    # Of so many, those that a library would write.
    chosen = [axes, axes[::-1]]
    for i in axes:
        rest = axes[:i] + axes[i + 1 :]
        chosen += [(i, *rest), (*rest, i)]
    return list(dict.fromkeys(chosen))


def orders(array: np.ndarray):
    """Yields an array in every order of its axes, its own first."""
    array = np.squeeze(array)
    for axes in ways(array.ndim):
        yield array.transpose(axes)


def is_numeric(array: np.ndarray) -> bool:
    """Whether an array holds numbers, those of other libraries' types too."""
    return array.dtype.kind in "iuf" or "float" in array.dtype.name


# Runs of bytes -----------------------------------------------------------


def _bfloat16(values):
    bits = np.ascontiguousarray(values, "<f4").view("<u4")
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")


_FORMS = {
    "float32": lambda values: values.astype("<f4"),
    "float64": lambda values: values.astype("<f8"),
    "float16": lambda values: values.astype("<f2"),
    "bfloat16": _bfloat16,
}


_FACTORS = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F], "<u8")


def _words(data):
    """The 8 bytes that begin at each byte, as a number."""
    return np.ndarray((data.size - 7,), "<u8", data, 0, (1,))


def _telling(elements, step):
    """Where runs start that have enough different elements, not zero."""
    size = elements.itemsize
    count = _RUN // size
    if elements.size < count:
        return np.zeros(0, "int64")
    bits = elements.view(f"<u{size}")
    runs = np.lib.stride_tricks.sliding_window_view(bits, count)[::step]
    runs = np.sort(runs, axis=1)
    different = 1 + np.sum(runs[:, 1:] != runs[:, :-1], axis=1)
    different -= runs[:, 0] == 0
    needed = 6 if size == 1 else math.ceil(0.75 * count)
    return np.flatnonzero(different >= needed) * (step * size)


class Runs:
    """An index of all runs of 16 bytes of the secrets.

    A run is two numbers of 8 bytes, so that nothing of a secret is kept but
    the runs themselves: some 30 bytes for each.
    """

    def __init__(self, secrets, maps, texts):
        self.labels, runs, owners = [], [], []
        total = sum(one.size for one in maps)
        step = max(1, -(-total // _MOST_RUNS))

        def add(label, elements, step=1):
            starts = _telling(elements, step)
            if starts.size:
                words = _words(elements.view("uint8"))
                runs.append(np.stack([words[starts], words[starts + 8]]))
                owners.append(np.full(starts.size, len(self.labels), "int32"))
            self.labels.append(label)

        def add_forms(one, values, transposed, step=1):
            for form, convert in _FORMS.items():
                with np.errstate(over="ignore"):
                    elements = np.ascontiguousarray(convert(values))
                what = f"{one.what} as {form}" + ", transposed" * transposed
                add((what, one.layer, one.role), elements, step)

        for secret in secrets:
            for i, values in enumerate(orders(secret.values)):
                add_forms(secret, np.ravel(values), i > 0)
        for one in maps:
            add_forms(one, np.ravel(one.make()), False, step)
        for name, text in texts.items():
            for what, form in (
                (name, text),
                (f"{name} in hexadecimal", text.hex().encode()),
                (f"{name} in hexadecimal", text.hex().upper().encode()),
            ):
                add((what, "", ""), np.frombuffer(form, "uint8"))
        runs = np.concatenate(runs, axis=1)
        owners = np.concatenate(owners)
        hashes = _hash(*runs)
        order = np.argsort(hashes, kind="stable")
        self.hashes = hashes[order]
        first = np.append(True, self.hashes[1:] != self.hashes[:-1])
        order, self.hashes = order[first], self.hashes[first]
        self.first, self.second = runs[0][order], runs[1][order]
        self.owners = owners[order]
        # Most bytes of a file are ruled out by one look into a table.
        bits = min(26, max(16, 4 + int(self.hashes.size).bit_length()))
        self.shift = np.uint64(64 - bits)
        self.table = np.zeros(2**bits, bool)
        self.table[self.hashes >> self.shift] = True

    def search(self, data):
        """Yields (label, first position, number of runs) of what is found."""
        by_owner = {}
        for start in range(0, data.size - _RUN + 1, 2**20):
            piece = np.array(data[start : start + 2**20 + _RUN - 1])
            words = _words(piece)
            first, second = words[:-8], words[8:]
            hashes = _hash(first, second)
            at = np.flatnonzero(self.table[hashes >> self.shift])
            where = np.searchsorted(self.hashes, hashes[at])
            where = np.minimum(where, self.hashes.size - 1)
            same = self.first[where] == first[at]
            same &= self.second[where] == second[at]
            at, owners = at[same], self.owners[where[same]]
            for owner in np.unique(owners):
                places = at[owners == owner]
                position, count = by_owner.get(owner, (start + places[0], 0))
                by_owner[owner] = position, count + places.size
        for owner, (first, count) in by_owner.items():
            yield self.labels[owner], int(first), int(count)


def _hash(first, second):
    return first * _FACTORS[0] + second * _FACTORS[1]


class Known:
    """Arrays that are public, to leave out where raw bytes hold them."""

    def __init__(self, arrays):
        # The first bytes of each order, not all: of each array there are 24.
        self._runs = {}
        for array in arrays:
            for order in orders(array):
                head = order.flat[: _RUN // 4].astype("<f4").tobytes()
                if order.size >= _RUN:
                    self._runs.setdefault(head, []).append(order)
        starts = np.frombuffer(b"".join(self._runs), "<u8").reshape(-1, 2)
        self._hashes = np.sort(_hash(*starts.T))
        self._table = np.zeros(2**16, bool)
        self._table[self._hashes >> np.uint64(48)] = True

    def without(self, data: np.ndarray) -> np.ndarray:
        """Bytes with zeros where they are those of a known array."""
        if data.size < _RUN or self._hashes.size == 0:
            return data
        result = None
        for start in range(0, data.size - _RUN + 1, 2**20):
            piece = np.array(data[start : start + 2**20 + _RUN - 1])
            words = _words(piece)
            hashes = _hash(words[:-8], words[8:])
            likely = np.flatnonzero(self._table[hashes >> np.uint64(48)])
            hashes = hashes[likely]
            where = np.searchsorted(self._hashes, hashes)
            where = np.minimum(where, self._hashes.size - 1)
            for at in likely[self._hashes[where] == hashes]:
                head = piece[at : at + _RUN].tobytes()
                for order in self._runs.get(head, ()):
                    first = start + at
                    known = order.astype("<f4").tobytes()
                    place = slice(first, first + len(known))
                    if data[place].tobytes() == known:
                        result = data.copy() if result is None else result
                        result[place] = 0
                        break
        return data if result is None else result


class Printed:
    """An index of the numbers of keys and hidden parameters in a row."""

    def __init__(self, secrets):
        rows = [
            (secret, order.ravel())
            for secret in secrets
            for order in orders(secret.values.astype("float64"))
        ]
        self.values = np.concatenate([order for _, order in rows])
        self.owners = [secret for secret, _ in rows]
        self.ends = np.cumsum([order.size for _, order in rows])
        self.sorted = np.argsort(self.values)

    def search(self, numbers):
        """Yields (secret, how many rows of it) of what is found."""
        length = _IN_A_ROW
        if min(numbers.values.size, self.values.size) < length:
            return
        # Of a float32 number the shortest text may be shown.
        errors = numbers.errors + 6e-8 * np.abs(numbers.values)
        view = np.lib.stride_tricks.sliding_window_view
        long = np.all(view(numbers.digits, length) >= _DIGITS, axis=1)
        starts = np.flatnonzero(long)
        values = self.values[self.sorted]
        low = np.searchsorted(values, (numbers.values - errors)[starts])
        high = np.searchsorted(values, (numbers.values + errors)[starts])
        counts = high - low
        shown = np.repeat(starts, counts)
        within = np.arange(counts.sum()) - np.repeat(
            np.cumsum(counts) - counts, counts
        )
        secret = self.sorted[np.repeat(low, counts) + within]
        fits = secret + length <= self.values.size
        shown, secret = shown[fits], secret[fits]
        same = np.ones(shown.size, bool)
        for i in range(1, length):
            gap = self.values[secret + i] - numbers.values[shown + i]
            same &= np.abs(gap) <= errors[shown + i]
        runs = np.sort(view(self.values, length)[secret[same]], axis=1)
        secret = secret[same][np.all(np.diff(runs, axis=1) > 0, axis=1)]
        owners = np.searchsorted(self.ends, secret, side="right")
        by_owner = {}
        for owner in owners:
            secret = self.owners[owner]
            by_owner[secret] = by_owner.get(secret, 0) + 1
        yield from by_owner.items()
