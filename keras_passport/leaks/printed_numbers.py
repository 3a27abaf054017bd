"""The numbers that a text shows, in the orders in which a table is read.

No step looks at a byte more than a fixed number of times, whatever the text
is: a megabyte of digits takes as long as one of prose.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np

# A text is read in windows, which overlap by as much as this.
_WINDOW, _OVERLAP = 2**21, 2**18
# Longer numbers are cut: their first digits are enough.
_LONGEST = 40
# How many characters before a number tell which of a record's it is.
_LABEL = 6
# Texts with fewer numbers hold no table.
_FEWEST = 4

_DIGIT, _DOT, _SIGN, _EXPONENT = 1, 2, 3, 4
_CLASS = np.zeros(256, "uint8")
_CLASS[list(b"0123456789")] = _DIGIT
_CLASS[ord(".")] = _DOT
_CLASS[list(b"+-")] = _SIGN
_CLASS[list(b"eE")] = _EXPONENT
_APART = np.zeros(256, bool)
_APART[list(b", ;\n\t")] = True
# Of what is not a part of numbers, the sum over some bytes is their label.
_LABELS = np.random.default_rng(0).integers(0, 2**63, 256, "uint64")
_LABELS[_CLASS > 0] = 0
_LABELS[list(b" \t\r")] = 0


@dataclasses.dataclass(frozen=True)
class Numbers:
    """Numbers that a text shows.

    Args:
        values: float64 array of them.
        errors: By how much each may have been rounded.
        digits: How many significant digits each has.
        order: In which order they are.
    """

    values: np.ndarray
    errors: np.ndarray
    digits: np.ndarray
    order: str

    def __getitem__(self, places) -> "Numbers":
        parts = (self.values[places], self.errors[places], self.digits[places])
        return Numbers(*parts, self.order)


def numbers_in(data: np.ndarray) -> Iterator[Numbers]:
    """Yields the numbers with a decimal point or an exponent in a text.

    As they follow each other; then column by column, as in a CSV file or a
    log; then name by name, as in JSON records. Whole numbers come apart.

    Args:
        data: uint8 array.
    """
    for start in range(0, max(1, data.size), _WINDOW):
        piece = np.array(data[start : start + _WINDOW + _OVERLAP])
        columns = _read(piece)
        if columns is not None:
            yield from _orders(piece, *columns)


def listed_bytes(data: np.ndarray) -> np.ndarray:
    """The bytes that a text lists as whole numbers, -128 to 255.

    Args:
        data: uint8 array.
    """
    pieces = [np.zeros(0, "uint8")]
    for start in range(0, data.size, _WINDOW):
        piece = data[start : start + _WINDOW]
        # Lists have more commas and spaces than chance puts into bytes.
        if np.count_nonzero(_APART[piece]) < piece.size / 8:
            continue
        read = _read(np.array(data[start : start + _WINDOW]))
        if read is not None:
            values, fraction = read[0], read[3]
            inside = ~fraction & (values >= -128) & (values <= 255)
            pieces.append(values[inside].astype("int64").astype("uint8"))
    return np.concatenate(pieces)


def _read(data):
    """All numbers of some bytes.

    Returns:
        Values, errors, digits, whether each has a point or an exponent, and
        first position of each; or None if there are few.
    """
    padded = np.concatenate([np.zeros(4, "uint8"), data, np.zeros(64, "uint8")])
    kind = _CLASS[padded]
    inside = (kind == _DIGIT) | (kind == _DOT)
    edges = np.flatnonzero(np.diff(inside.view("int8")))
    starts, ends = edges[::2] + 1, edges[1::2] + 1
    if starts.size < _FEWEST:
        return None
    dots = np.flatnonzero(kind == _DOT)
    # The first point of each run, and how many it has.
    first = np.searchsorted(dots, starts)
    count = np.searchsorted(dots, ends) - first
    good = (count <= 1) & (ends - starts > count)
    # Of the runs behind an "e", those are exponents which are short.
    digits = ends - starts - count
    has_exponent = np.zeros(starts.size, bool)
    signed = kind[starts - 1] == _SIGN
    e_at = starts - 1 - signed
    is_exponent = (kind[e_at] == _EXPONENT) & (digits <= 3) & good
    is_exponent[1:] &= ends[:-1] == e_at[1:]
    is_exponent[:1] = False
    # A number follows directly on one, so two exponents can't.
    is_exponent[1:] &= ~is_exponent[:-1]
    good &= ~is_exponent
    has_exponent[:-1] = is_exponent[1:]
    if np.count_nonzero(good) < _FEWEST:
        return None
    exponents = np.zeros(starts.size)
    at = np.flatnonzero(is_exponent)
    if at.size:
        width = np.minimum(3, ends[at] - starts[at])
        value = np.zeros(at.size)
        for i in range(3):
            character = padded[starts[at] + i].astype("float64") - 48
            used = (i < width) & (kind[starts[at] + i] == _DIGIT)
            value = np.where(used, 10 * value + character, value)
        minus = padded[starts[at] - 1] == ord("-")
        exponents[at - 1] = np.where(minus, -value, value)
    starts, ends, first = starts[good], ends[good], first[good]
    count, exponents = count[good], exponents[good]
    has_exponent = has_exponent[good]
    lengths = np.minimum(ends - starts, _LONGEST)
    point = (
        dots[np.minimum(first, max(0, dots.size - 1))] if dots.size else ends
    )
    point = np.where(count > 0, point, ends)
    # A number cut before its point is too large to be any secret's.
    lost = point - starts > _LONGEST
    columns = np.arange(_LONGEST)
    values = np.empty(starts.size)
    significant = np.empty(starts.size)
    for begin in range(0, starts.size, 2**16):
        batch = slice(begin, begin + 2**16)
        matrix = padded[starts[batch, None] + columns]
        matrix[columns >= lengths[batch, None]] = 0
        texts = matrix.view(f"S{_LONGEST}").ravel()
        values[batch] = texts.astype("float64")
        leading = np.argmax((matrix > 48) & (matrix < 58), axis=1)
        rest = lengths[batch] - leading
        has_point = (count[batch] > 0) & (
            point[batch] - starts[batch] > leading
        )
        significant[batch] = np.where(values[batch] == 0, 0, rest - has_point)
    decimals = np.maximum(0, starts + lengths - point - 1)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        values = values * 10.0**exponents
        errors = 0.51 * 10.0 ** (exponents - decimals)
    values[lost | ~np.isfinite(values)] = 0.0
    values[padded[starts - 1] == ord("-")] *= -1
    fraction = (count > 0) | has_exponent
    return values, errors, significant, fraction, starts - 4


def _orders(data, values, errors, digits, fraction, starts):
    for what, chosen in (("numbers", fraction), ("whole numbers", ~fraction)):
        if np.count_nonzero(chosen) < _FEWEST:
            continue
        numbers = Numbers(
            values[chosen], errors[chosen], digits[chosen], f"{what} in text"
        )
        yield numbers
        at = starts[chosen]
        seen = [np.arange(at.size)]
        for name, order in (
            ("column by column", _by_column(data, at)),
            ("name by name", _by_label(data, at)),
        ):
            if not any(np.array_equal(order, other) for other in seen):
                seen.append(order)
                text = f"{what} in text, {name}"
                yield dataclasses.replace(numbers[order], order=text)


def _by_column(data, at):
    """The order of numbers by their places in lines."""
    lines = np.searchsorted(np.flatnonzero(data == 10), at)
    first = np.searchsorted(lines, lines)
    return np.argsort(np.arange(at.size) - first, kind="stable")


def _by_label(data, at):
    """The order of numbers by the letters before them."""
    if at.size and at[-1] > 0:  # A sign is none of them.
        before = np.maximum(0, at - 1)
        at = at - (_CLASS[data[before]] == _SIGN) * (at > 0)
    sums = np.concatenate([[np.uint64(0)], np.cumsum(_LABELS[data])])
    with np.errstate(over="ignore"):
        labels = sums[at] - sums[np.maximum(0, at - _LABEL)]
    # In the order in which the labels come first.
    _, first, which = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(first[which], kind="stable")
