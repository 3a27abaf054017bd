"""Bytes that a text or another encoding hides, wherever they stand in data.

Each is looked for in the whole of the data, so that it does not matter what
is around it: a request in JSON, a mail, a log, a program's source.
"""

import re
import warnings
from collections.abc import Iterator
from urllib import parse

import numpy as np

# Shorter stretches can hold no run of 16 bytes.
_LEAST = 16
# No 100 bytes are written in hexadecimal or Base64 without a single letter.
_NUMBER = 200
# Data is looked through in windows, which overlap by as much as this.
_WINDOW, _OVERLAP = 2**24, 2**20

_DUMP = re.compile(
    rb"\n[0-9A-Fa-f]{4,16}:?[ \t]{1,4}"
    rb"((?:[0-9A-Fa-f]{2,8}[ \t]{1,2}){2,16})"
)
_PRINTABLE = rb"[\t\n\r\x20-\x7e]"
_WIDE = {
    "UTF-16": (re.compile(rb"(?:" + _PRINTABLE + rb"\0){16,}+"), 2),
    "UTF-32": (re.compile(rb"(?:" + _PRINTABLE + rb"\0\0\0){16,}+"), 4),
}


# What a character is if it is no digit: between digits, or none of both.
_BETWEEN, _NONE = 64, 65


def _values(alphabet: dict[bytes, int]) -> np.ndarray:
    table = np.full(256, _NONE, "uint8")
    for characters, first in alphabet.items():
        for i, character in enumerate(characters):
            table[character] = first + i
    return table


_CAPITALS, _SMALL = bytes(range(65, 91)), bytes(range(97, 123))
_IN_BASE64 = _values(
    {
        _CAPITALS: 0,
        _SMALL: 26,
        b"0123456789": 52,
        b"+": 62,
        b"/": 63,
        b"-": 62,
        b"_": 63,
    }
)
_IN_HEX = _values({b"0123456789": 0, b"ABCDEF": 10, b"abcdef": 10})
# What may stand between digits: line breaks and what marks a quotation.
_IN_BASE64[list(b"\r\n\\")] = _BETWEEN
_IN_HEX[list(b" \t\r\n,:;-_xX%=\\")] = _BETWEEN


def decoded(data: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the name of an encoding and where it begins, and what it hides.

    Args:
        data: uint8 array.
    """
    for start in range(0, max(1, data.size), _WINDOW):
        piece = np.array(data[start : start + _WINDOW + _OVERLAP])
        for find in (_wide, _base64, _hexadecimal, _escaped, _latin_in_utf8):
            for name, at, content in find(piece):
                if not isinstance(content, np.ndarray):
                    content = np.frombuffer(content, "uint8")
                yield f"{name} from byte {start + at}", content


def _wide(piece):
    # 16 characters of either fill some 16 bytes, of which 8 or 12 are zero.
    zeros = (piece[: piece.size // 16 * 16] == 0).reshape(-1, 16).sum(1)
    if not np.any(zeros >= 7):
        return
    piece = piece.tobytes()
    for name, (pattern, width) in _WIDE.items():
        matches = list(pattern.finditer(piece))
        if matches:
            texts = [match.group()[::width] for match in matches]
            yield name, matches[0].start(), b"\n".join(texts)


def _base64(piece):
    values = _IN_BASE64[piece]
    # The letter of a line break that JSON or C has written.
    behind = np.flatnonzero(piece[:-1] == ord("\\")) + 1
    letters = (piece[behind] == ord("n")) | (piece[behind] == ord("r"))
    values[behind[letters]] = _BETWEEN
    # Nobody says where Base64 begins if letters are before it, or which of
    # its lines is the first: each of four places is tried.
    decimal = (values >= 52) & (values < 62)
    first, digits, lengths = _stretches(values, 4 * _LEAST // 3, decimal)
    for before in range(4 if lengths.size else 0):
        a, b, c, d = _aligned(digits, lengths, before, 4).astype("uint32")
        whole = (a << 18) | (b << 12) | (c << 6) | d
        content = np.empty((whole.size, 3), "uint8")
        for i, shift in enumerate((16, 8, 0)):
            content[:, i] = (whole >> shift) & 255
        yield "Base64", first, content.ravel()


def _hexadecimal(piece):
    values = _IN_HEX[piece]
    # Of "0x" the 0 is no digit.
    marks = np.flatnonzero((piece[1:] | 32) == ord("x"))
    values[marks[piece[marks] == ord("0")]] = _BETWEEN
    first, digits, lengths = _stretches(values, 2 * _LEAST, values < 10)
    # A letter before it may be a digit, too.
    for before in range(2 if lengths.size else 0):
        high, low = _aligned(digits, lengths, before, 2)
        yield "hexadecimal", first, (high << 4) | low
    text = b"\n" + piece.tobytes()
    lines = [match.group(1) for match in _DUMP.finditer(text)]
    if len(lines) > 1:
        digits = _IN_HEX[np.frombuffer(b"".join(lines), "uint8")]
        digits = digits[digits < _BETWEEN]
        high, low = digits[: digits.size // 2 * 2].reshape(-1, 2).T
        yield "hexadecimal dump", 0, (high << 4) | low


def _stretches(values, least, decimal):
    """Digits in a row, without what is between them.

    Args:
        values: Of the characters, in an encoding.
        least: How many digits a stretch must have.
        decimal: Which of them are 0 to 9: so many of these alone are a
            number, since bytes have letters, too.

    Returns:
        Where the first stretch begins, all digits of all stretches, and how
        many digits each has, at least `least`.
    """
    inside = np.concatenate([[False], values <= _BETWEEN, [False]])
    edges = np.flatnonzero(inside[1:] != inside[:-1])
    starts, ends = edges[::2], edges[1::2]
    sums = np.concatenate([[0], np.cumsum(values < _BETWEEN)])
    lengths = sums[ends] - sums[starts]
    sums = np.concatenate([[0], np.cumsum(decimal)])
    only_decimal = sums[ends] - sums[starts] == lengths
    long = (lengths >= least) & ~(only_decimal & (lengths > _NUMBER))
    starts, ends, lengths = starts[long], ends[long], lengths[long]
    if starts.size == 0:
        return 0, values[:0], lengths
    marks = np.zeros(values.size + 1, "int8")
    marks[starts] += 1
    marks[ends] -= 1
    taken = np.cumsum(marks[:-1], dtype="int8") > 0
    return int(starts[0]), values[taken & (values < _BETWEEN)], lengths


def _aligned(digits, lengths, before, width):
    """Digits as rows of their places in groups; each stretch begins a group.

    All stretches are laid out together, as there may be thousands of them.
    """
    sizes = -(-(lengths + before) // width) * width
    begins = np.cumsum(sizes) - sizes + before
    shift = np.repeat(begins - (np.cumsum(lengths) - lengths), lengths)
    laid = np.zeros(sizes.sum(), "uint8")
    laid[shift + np.arange(digits.size)] = digits
    return laid.reshape(-1, width).T


def _escaped(piece):
    text = piece.tobytes()
    few = np.count_nonzero(piece == 92) < piece.size / 64
    if few and np.any(piece < 7) and text.count(b"\\u00") < 4:
        return  # No text, and no more backslashes than in any bytes.
    if text.count(b"\\") >= 4:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = text.decode("unicode_escape", "replace")
        yield "escaped text", 0, content.encode("latin-1", "replace")
    if text.count(b"%") >= 2 and re.search(rb"%[0-9A-Fa-f]{2}", text):
        yield "percent-encoded text", 0, parse.unquote_to_bytes(text)


def _latin_in_utf8(piece):
    """Bytes that an old pickle wrote as text: those above 127 as two."""
    high = np.count_nonzero(piece > 127)
    if high < _LEAST:
        return
    lead = (piece[:-1] & 0xFE) == 0xC2
    lead &= (piece[1:] & 0xC0) == 0x80
    # In other bytes such pairs are few.
    if 2 * np.count_nonzero(lead) < 0.9 * high:
        return
    lead = np.append(lead, False)
    result = piece.copy()
    result[1:] |= np.where(lead[:-1], (piece[:-1] & 1) << 6, 0).astype("uint8")
    yield "bytes as UTF-8", 0, result[~lead]


# Numbers, each behind a byte that says what it is, as pickle, msgpack and CBOR
# write a list of them.
_TAGGED = {b"G": ">f8", b"\xcb": ">f8", b"\xfb": ">f8"}
_TAGGED |= {b"\xca": ">f4", b"\xfa": ">f4"}


def tagged_numbers(data: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Yields numbers from lists in which each has a byte before it."""
    for tag, dtype in _TAGGED.items():
        step = 1 + np.dtype(dtype).itemsize
        pattern = re.compile(rb"(?:%b.{%d}){4,}+" % (tag, step - 1), re.S)
        lists = []
        for start in range(0, max(1, data.size), _WINDOW):
            piece = np.asarray(data[start : start + _WINDOW + _OVERLAP])
            there = piece == tag[0]
            if np.any(there[: -3 * step] & there[step : -2 * step]):
                matches = pattern.finditer(piece.tobytes())
                lists += [match.group() for match in matches]
        if lists:
            table = np.frombuffer(b"".join(lists), "uint8").reshape(-1, step)
            values = np.ascontiguousarray(table[:, 1:]).view(dtype).ravel()
            yield f"list of {np.dtype(dtype).name}", values
