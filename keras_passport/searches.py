"""How secrets are recognised: as bytes, in print, and by correlation."""

import dataclasses
import functools
import itertools
import math

import numpy as np
from scipy import fft, optimize, sparse

# The chance that a scan of files without any secret reports a correlation.
FALSE_ALARM = 1e-6
# Bytes of a run, and runs of feature maps that are looked for at most.
_RUN, _MOST_RUNS = 16, 2**22
# Printed numbers in a row, and significant digits of each, that give a secret.
_IN_A_ROW, _DIGITS = 4, 5
# A copy in float16 or bfloat16 lacks about this part of its original.
_ROUNDING = 1e-6
# Elements of an array, and secrets, that are compared at a time.
_PIECE, _TOGETHER = 2**15, 64
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
        if self.variances.size == 0:
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


def orders(array: np.ndarray):
    """Yields an array in every order of its axes, its own first."""
    array = np.squeeze(array)
    for axes in itertools.permutations(range(array.ndim)):
        yield array.transpose(axes)


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


def _hashes(data, at):
    """A 64-bit hash of each run of 16 bytes that starts at given bytes."""
    words = np.ndarray((data.size - 7,), "<u8", data, 0, (1,))
    factors = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F], "<u8")
    return words[at] * factors[0] + words[at + 8] * factors[1]


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
    """An index of all runs of 16 bytes of the secrets."""

    def __init__(self, secrets, seed):
        self.labels, pieces, starts, owners = [], [], [], []
        size, total = 0, sum(secret.values.size for secret in secrets)
        step = -(-total // _MOST_RUNS)

        def add(label, elements, step=1):
            nonlocal size
            found = _telling(elements, step)
            starts.append(found + size)
            owners.append(np.full(found.size, len(self.labels)))
            self.labels.append(label)
            pieces.append(elements.view("uint8"))
            size += pieces[-1].size

        for secret in secrets:
            is_map = secret.what == "feature map"
            for i, values in enumerate(orders(secret.values)):
                values = values.ravel()
                for form, convert in _FORMS.items():
                    with np.errstate(over="ignore"):
                        elements = convert(values)
                    what = f"{secret.what} as {form}" + ", transposed" * (i > 0)
                    label = (what, secret.layer, secret.role)
                    add(label, elements, step if is_map else 1)
                if is_map:
                    break
        for what, text in (
            ("seed", seed),
            ("seed in hexadecimal", seed.hex().encode()),
            ("seed in hexadecimal", seed.hex().upper().encode()),
        ):
            add((what, "", ""), np.frombuffer(text, "uint8"))
        self.data = np.concatenate(pieces)
        starts, owners = np.concatenate(starts), np.concatenate(owners)
        self.hashes, first = np.unique(
            _hashes(self.data, starts), return_index=True
        )
        self.starts, self.owners = starts[first], owners[first]
        # Most bytes of a file are ruled out by one look into a table.
        bits = min(27, max(16, 4 + int(self.hashes.size).bit_length()))
        self.shift = np.uint64(64 - bits)
        self.table = np.zeros(2**bits, bool)
        self.table[self.hashes >> self.shift] = True

    def search(self, data):
        """Yields (label, first position, number of runs) of what is found."""
        found = {}
        run = np.arange(_RUN)
        for start in range(0, data.size - _RUN + 1, 2**20):
            piece = np.array(data[start : start + 2**20 + _RUN - 1])
            hashes = _hashes(piece, np.arange(piece.size - _RUN + 1))
            at = np.flatnonzero(self.table[hashes >> self.shift])
            where = np.searchsorted(self.hashes, hashes[at])
            where = np.minimum(where, self.hashes.size - 1)
            same = self.hashes[where] == hashes[at]
            at, where = at[same], where[same]
            origins = self.starts[where][:, None] + run
            same = np.all(piece[at[:, None] + run] == self.data[origins], 1)
            for owner, i in zip(
                self.owners[where[same]], at[same], strict=True
            ):
                first, count = found.get(owner, (start + i, 0))
                found[owner] = first, count + 1
        for owner, (first, count) in found.items():
            yield self.labels[owner], first, count


class Printed:
    """An index of the numbers of keys and hidden parameters in a row."""

    def __init__(self, secrets):
        rows = [
            (secret, order.ravel())
            for secret in secrets
            if secret.what != "feature map"
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
        found = {}
        for owner in owners:
            secret = self.owners[owner]
            found[secret] = found.get(secret, 0) + 1
        yield from found.items()


# Correlation ---------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Correlation:
    """A correlation beyond what the only comparison would reach by chance."""

    secret: Secret
    what: str
    measure: float
    kind: str


class Correlations:
    """Compares arrays with secrets, and counts the comparisons.

    The bound follows from their number, known at the end alone: until then
    all is kept that would be above the bound if it were the only comparison.
    """

    def __init__(self, secrets):
        self.secrets = [
            secret for secret in secrets if secret.parts is not None
        ]
        self.compared = {"windows": 0, "vectors": 0}
        told = [s for s in self.secrets if s.tells(FALSE_ALARM / 2)]
        self._keys = [secret for secret in told if secret.what == "key"]
        # Forms of equal size meet an array together.
        self._forms = {}
        for secret in told:
            for i, values in enumerate(orders(secret.values)):
                what = secret.what + ", transposed" * (i > 0)
                size = self._forms.setdefault(values.size, [])
                size.append((secret, what, _unit(values.ravel())))

    def chance(self, kind: str) -> float:
        """The chance of one comparison, half of the whole for each kind."""
        return FALSE_ALARM / 2 / max(1, self.compared[kind])

    def search(self, array):
        """Yields the `Correlation`s of an array's windows with secrets."""
        array = _numeric(array)
        if array is None:
            return
        for i, order in enumerate(orders(array)):
            flat = order.ravel()
            for size, forms in self._forms.items():
                if i:
                    # Other orders of the array meet a key in its own order.
                    forms = [form for form in forms if "," not in form[1]]
                if size <= flat.size:
                    yield from self._windows(flat, size, forms)

    def _windows(self, flat, size, forms):
        self.compared["windows"] += (flat.size - size + 1) * len(forms)
        for start in range(0, flat.size - size + 1, _PIECE):
            piece = flat[start : start + _PIECE + size - 1]
            # Not the mean: a large number would take it far from all others.
            piece = piece - np.median(piece)
            sums = _window_sums(piece, size)
            squares = _window_sums(piece**2, size)
            energy = squares - sums**2 / size
            # What is left of a constant by rounding is no signal.
            flat_windows = energy <= 1e-13 * squares
            energy[flat_windows] = np.inf
            if np.all(flat_windows):
                continue
            for first in range(0, len(forms), _TOGETHER):
                some = forms[first : first + _TOGETHER]
                units = np.stack([unit for *_, unit in some])
                squared = _products(piece, units) ** 2 / energy
                limits = np.array([secret.least**2 for secret, *_ in some])
                limits -= 1e-6  # for rounding
                above = np.any(squared > limits[:, None], axis=1)
                for row in np.flatnonzero(above):
                    yield from self._exactly(
                        piece, squared[row], limits[row], *some[row]
                    )

    def _exactly(self, piece, squared, limit, secret, what, unit):
        """The greatest correlation of a secret, without rounding by the FFT."""
        likely = np.flatnonzero(squared > limit)
        likely = likely[np.argsort(-squared[likely])][:32]
        measures = [
            self._correlation(secret, piece[i : i + unit.size], unit)
            for i in likely
        ]
        if max(measures) > 0:
            yield Correlation(secret, what, max(measures), "windows")

    def _correlation(self, secret, window, unit):
        """|r|, or 0 where it is not above the least bound or rests on a few."""
        window = _unit(window)
        measure = abs(window @ unit)
        least = secret.least
        rest = np.argsort(np.abs(window * unit))[: -(window.size // 8 + 1)]
        remaining = abs(_unit(window[rest]) @ _unit(unit[rest]))
        return min(1.0, measure) if min(measure, remaining) > least else 0.0

    def vectors(self, array):
        """Yields `Correlation`s of an array's leading directions with keys.

        Gradients of a kernel are sums of key times row vector, one for γ and
        one for β.
        """
        for key, vectors in _directions(_numeric(array), self._keys, 2):
            unit = _unit(key.values.ravel())
            for vector in vectors:
                self.compared["vectors"] += 1
                measure = self._correlation(key, vector, unit)
                if measure:
                    what = "key, in a singular vector"
                    yield Correlation(key, what, measure, "vectors")


def cosines(kernel: np.ndarray, keys) -> list[tuple[Secret, float]]:
    """Centred cosines of a kernel's first left singular vector with keys."""
    return [
        (key, float(abs(_unit(vectors[0]) @ _unit(key.values.ravel()))))
        for key, vectors in _directions(_numeric(kernel), keys, 1)
    ]


def _directions(array, keys, count):
    """Yields each key with an array's first left singular vectors.

    In every order of the axes in which its rows have the shape of the key.
    """
    if array is None:
        return
    shapes = {key.values.shape for key in keys}
    for order in orders(array):
        for shape in shapes:
            if order.shape[:-1] == tuple(n for n in shape if n > 1):
                matrix = order.reshape(math.prod(shape), -1)
                vectors = _leading(matrix, count)
                for key in keys:
                    if key.values.shape == shape and len(vectors):
                        yield key, vectors


def _leading(matrix, count):
    """The first left singular vectors of a matrix, as rows."""
    wide = matrix.shape[0] < matrix.shape[1]
    gram = matrix @ matrix.T if wide else matrix.T @ matrix
    if not np.any(gram):
        return np.zeros((0, len(matrix)))
    if len(gram) <= 50:
        vectors = np.linalg.eigh(gram)[1][:, ::-1][:, :count]
    else:
        start = np.random.default_rng(0).normal(size=len(gram))
        values, vectors = sparse.linalg.eigsh(gram, count, v0=start)
        vectors = vectors[:, np.argsort(-values)]
    vectors = vectors if wide else matrix @ vectors
    lengths = np.linalg.norm(vectors, axis=0)
    return (vectors[:, lengths > 0] / lengths[lengths > 0]).T


def _unit(values):
    """A vector without its mean, of length 1 if it is not constant."""
    values = values.astype("float64")
    values = values - values.mean()
    return values / (np.linalg.norm(values) or 1.0)


def _numeric(array):
    """An array's numbers in float64, or None if it holds something else.

    Numbers that are no numbers, or larger than any weight, become 0.
    """
    array = np.squeeze(array)
    if array.dtype.kind not in "iuf" and "float" not in array.dtype.name:
        return None
    if array.size < 4 or array.ndim > 6:
        return None
    with np.errstate(invalid="ignore"):  # Any bytes may be taken for numbers.
        array = array.astype("float64")
    return np.where(np.abs(array) < 1e9, array, 0.0)


def _products(piece, units):
    """Inner products of unit vectors with all windows of a piece."""
    size = units.shape[1]
    count = piece.size - size + 1
    if size <= 32:
        windows = np.lib.stride_tricks.sliding_window_view(piece, size)
        return units @ np.ascontiguousarray(windows.T)
    # Overlapping frames, in each of which the FFT gives `valid` windows.
    length = fft.next_fast_len(min(max(4096, 4 * size), piece.size), True)
    valid = length - size + 1
    padded = np.pad(piece, (0, length + valid))
    frames = np.lib.stride_tricks.sliding_window_view(padded, length)
    frames = frames[: piece.size : valid]
    spectra = fft.rfft(frames) * np.conj(fft.rfft(units, length))[:, None]
    products = fft.irfft(spectra, length)[..., :valid]
    return products.reshape(len(units), -1)[:, :count]


def _window_sums(values, size):
    """Sums of all windows, from sums of halves: no large ones to cancel."""
    total, start, width = 0.0, 0, 1
    while True:
        if size & width:
            total = total + values[start : start + values.size + width - size]
            start += width
        if 2 * width > size:
            return total
        values = values[:-width] + values[width:]
        width *= 2
