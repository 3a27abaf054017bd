"""How secrets are recognised in arrays by correlation, however scaled."""

import dataclasses
import math

import numpy as np
from scipy import fft, sparse

from keras_passport.leaks.searches import (
    FALSE_ALARM,
    Secret,
    is_numeric,
    orders,
)

# Elements of an array, and secrets, that are compared at a time.
_PIECE, _TOGETHER = 2**15, 64
# Of a piece's energy a window has more than this part's inverse: then float32's
# rounding changes a correlation by 3e-4 at most.
_EVEN = 1e5


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
        telling = [s for s in self.secrets if s.tells(FALSE_ALARM / 2)]
        self._keys = [secret for secret in telling if secret.what == "key"]
        # Forms of equal size meet an array together.
        self._forms = {}
        for secret in telling:
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
            piece = piece.astype("float64") - np.median(piece)
            # Of size 1, whatever the scale: float32 has no smaller squares.
            piece /= np.sqrt(np.mean(piece**2)) or 1.0
            sums = _window_sums(piece, size)
            squares = _window_sums(piece**2, size)
            energy = squares - sums**2 / size
            # What is left of a constant by rounding is no signal.
            flat_windows = energy <= 1e-13 * squares
            energy[flat_windows] = np.inf
            if np.all(flat_windows):
                continue
            # Where sizes differ little, float32 rules most windows out.
            even = np.min(energy) * _EVEN > np.sum(piece**2)
            dtype = "float32" if even else "float64"
            energy = energy.astype(dtype)
            rounding = 2e-3 if even else 1e-6
            for first in range(0, len(forms), _TOGETHER):
                batch = forms[first : first + _TOGETHER]
                units = np.stack([unit for *_, unit in batch]).astype(dtype)
                squared = _products(piece.astype(dtype), units) ** 2 / energy
                limits = np.array([secret.least**2 for secret, *_ in batch])
                limits -= rounding
                above = np.any(squared > limits[:, None], axis=1)
                for row in np.flatnonzero(above):
                    yield from self._exactly(
                        piece, squared[row], limits[row], *batch[row]
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
                matrix = order.reshape(math.prod(shape), -1).astype("float64")
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
    """An array's numbers as floats, or None if it holds something else.

    Numbers that are no numbers, or larger than any weight, become 0.
    """
    array = np.squeeze(array)
    if not is_numeric(array):
        return None
    if array.size < 4:
        return None
    large = array.dtype.itemsize > 4 - 2 * (array.dtype.kind in "iu")
    with np.errstate(invalid="ignore"):  # Any bytes may be taken for numbers.
        array = array.astype("float64" if large else "float32")
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
