"""What files hold: their bytes, unpacked and decoded, and their arrays."""

import codecs
import dataclasses
import hashlib
import itertools
import pathlib
from collections.abc import Iterator

import numpy as np

from keras_passport.leaks import encodings, formats, printed_numbers, unpacking
from keras_passport.leaks.unpacking import Content, Limits

# Contents in contents (archives, streams, encodings) are opened this deep.
DEEPEST = 8
# Larger files of an unknown format are searched for runs of bytes alone.
LARGEST_UNKNOWN = 2**25
# Of an unknown format, smaller files are taken for numbers of 8 bits, too.
_LARGEST_BYTES = 2**16
# Elements of a stretch of numbers among which their sizes are compared.
_STRETCH = 16
# Encodings may hide so many times a file's bytes; base64 takes three of them.
_DECODED = 8
# Blocks whose entropy is looked at, and bits per byte that no numbers have.
_BLOCK, _ENTROPY = 2**14, 7.9


@dataclasses.dataclass(frozen=True)
class Part:
    """A file, a member of an archive, or what an encoding hides.

    Args:
        path: The file.
        place: Names of members, outermost first, joined by "/"; "" for the
            file itself.
        data: Its bytes, a uint8 array.
        stored: Arrays in it, read one by one: pairs of name and NumPy array.
        raw: Whether no format is known that says where its arrays are.
        picture: Whether it is a picture.
    """

    path: pathlib.Path
    place: str
    data: np.ndarray
    stored: Iterator
    raw: bool
    picture: bool = False

    def numbers(self) -> Iterator[printed_numbers.Numbers]:
        """The numbers in its text, in each order in which a table is read."""
        yield from printed_numbers.numbers_in(self.data)

    def arrays(self, blank=None) -> Iterator[tuple[str, np.ndarray]]:
        """All that may be taken for an array: pairs of name and array.

        Where no format says what is an array, its bytes are taken for numbers
        wherever they may be some.

        Args:
            blank: Function that takes bytes as an array and returns them with
                zeros where kernels are.
        """
        yield from self.stored
        yield from encodings.tagged_numbers(self.data)
        if self.raw and self.data.size <= LARGEST_UNKNOWN:
            yield from _numbers_anywhere(
                blank(self.data) if blank else self.data
            )


# What raw bytes may be: the type, bytes of an element, bits of the fraction
# that the second byte ends with, and by how much exponents in a row differ.
_FLOATS = (
    ("f4", 4, 7, 8),
    ("f8", 8, 4, 8),
    ("f2", 2, 2, 5),
    ("bfloat16", 2, 7, 8),
)


def _numbers_anywhere(data):
    """Yields bytes as numbers, of each type and from each place on.

    Neighbours in a secret are of about one size; bytes that are none of a
    type's numbers have exponents of any size. So stretches of numbers show,
    and little of what is no number is compared with secrets.
    """
    first = data[:-1].astype("int16")
    second = data[1:].astype("int16")
    for order, high, low in (("<", second, first), (">", first, second)):
        for kind, size, bits, most in _FLOATS:
            if data.size < size * _STRETCH:
                continue
            shift = 8 - bits if bits > 2 else 0
            exponents = ((high & 127) << shift) | (low >> bits)
            if kind == "f2":
                exponents = (high & 127) >> bits
            # Where the two bytes with the exponent are in an element.
            before = size - 2 if order == "<" else 0
            good = _alike(exponents, size, most)
            for offset in range(size):
                count = (data.size - offset) // size
                inside = good[before + offset :: size][:count]
                if inside.size < count:
                    inside = np.append(inside, [False] * (count - inside.size))
                if np.count_nonzero(inside) < _STRETCH:
                    continue
                raw = data[offset : offset + count * size].tobytes()
                if kind == "bfloat16":
                    bits16 = np.frombuffer(raw, f"{order}u2")
                    values = formats.from_bfloat16(bits16.astype("uint16"))
                else:
                    values = np.frombuffer(raw, f"{order}{kind}")
                if not np.all(inside):
                    values = values[inside]
                values = values.astype(values.dtype.newbyteorder("="))
                yield f"bytes as {order}{kind} from {offset}", values
    if data.size <= _LARGEST_BYTES:
        for kind in ("uint8", "int8"):
            yield f"bytes as {kind}", data.view(kind)


def _alike(exponents, size, most):
    """Where elements are whose neighbours' exponents are like theirs.

    Args:
        exponents: Of the elements that begin at each place.
        size: Bytes of an element.
        most: The greatest difference of two in a row.
    """
    here, there = exponents[:-size], exponents[size:]
    alike = np.abs(here - there) <= most
    # A zero among numbers is one, but zeros alone are nothing.
    alike |= (here == 0) ^ (there == 0)
    alike &= (here != 0) | (there != 0)
    rows = -(-alike.size // size)
    table = np.zeros((rows, size), "int32")
    table.ravel()[: alike.size] = alike
    sums = np.zeros((rows + 1, size), "int32")
    np.cumsum(table, axis=0, out=sums[1:])
    count = _STRETCH - 1
    if rows < count:
        return np.zeros(exponents.size, bool)
    enough = sums[count:] - sums[:-count] >= 0.8 * count
    # All elements of such a stretch count.
    marks = np.zeros((len(enough) + _STRETCH, size), "int32")
    marks[: len(enough)] += enough
    marks[_STRETCH:] -= enough
    good = np.zeros((rows + 2) * size, bool)
    inside = (np.cumsum(marks, axis=0) > 0).ravel()[: good.size]
    good[: inside.size] = inside
    return good[: exponents.size]


def parts_of(path: pathlib.Path, data: np.ndarray, problem) -> Iterator[Part]:
    """The parts of a file: itself, and what is in it, unpacked and decoded.

    Args:
        path: The file.
        data: Its bytes, a uint8 array.
        problem: Function that is told a place in the file and why it was not
            examined.
    """
    budget = _Budget(Limits(data.size), 2**22 + _DECODED * data.size, set())
    yield from _parts(path, "", data, problem, budget, 0)


@dataclasses.dataclass
class _Budget:
    """What may still be made of a file, and what was made already.

    Args:
        unpacked: What archives and streams may unpack to.
        decoded: Bytes that encodings may hide.
        seen: Digests of contents that are not looked at again.
    """

    unpacked: Limits
    decoded: int
    seen: set


def _parts(path, place, data, problem, budget, depth, hidden=False):
    name = place or str(path)
    reader = formats.reader_of(name, data)
    picture = formats.is_picture(data)
    archive = unpacking.is_archive(data)
    # An archive, a stream and a picture hold no numbers as they are.
    packed = picture or unpacking.begins_packed(data)
    raw = not (reader or packed or _is_text(data))
    stored = _Stored(reader, name, place, data, problem)
    yield Part(path, place, data, iter(stored), raw, picture)
    if stored.failed:
        yield Part(path, place, data, iter(()), True)
    if raw and data.size > LARGEST_UNKNOWN:
        problem(place, "unknown format, searched as bytes alone")
    closed = unpacking.closed(data)
    if closed:
        problem(place, closed)
    opened = False
    known = picture or (reader and not stored.failed)
    for content, decoded in _children(data, budget, stored, known):
        inside = f"{place}/{content.name}".strip("/")
        if content.unread:
            problem(inside, content.unread)
        if content.data.size == 0:
            continue
        opened |= not decoded and content.data.size >= data.size // 8
        if depth == DEEPEST:
            problem(inside, f"more than {DEEPEST} contents in one another")
            return
        yield from _parts(
            path, inside, content.data, problem, budget, depth + 1, decoded
        )
    # What an encoding does not hide, but was taken for it, looks random, too.
    opened |= bool(archive or closed or hidden)
    if raw and not opened and _looks_random(data):
        problem(place, "compressed or encrypted in an unknown way")


class _Stored:
    """The arrays that a format stores, and texts that are found on the way."""

    def __init__(self, reader, name, place, data, problem):
        self._reader, self._name, self._place = reader, name, place
        self._data, self._problem = data, problem
        self.failed, self.texts = False, []

    def __iter__(self):
        if self._reader is None:
            return
        limit = 2**26 + 256 * self._data.size
        try:
            for name, array in self._reader(self._name, self._data, limit):
                where = f"{self._place}/{name}".strip("/")
                if isinstance(array, str):
                    self.failed = True
                    self._problem(where, array)
                elif array.dtype.kind in "SU":
                    self.texts.append(Content(name, _lines(array)))
                elif array.dtype == np.uint8 and name == formats.OBJECTS:
                    self.texts.append(Content(name, array))
                else:
                    yield from formats.plain(name, array)
        except formats.Refused as error:
            self._fail(str(error))
        # A damaged file may fail in any way, and is searched all the same.
        except Exception as error:
            self._fail(f"not readable ({type(error).__name__})")

    def _fail(self, why):
        self.failed = True
        self._problem(self._place, f"{why}; searched as bytes")


def _lines(array):
    """Texts in an array as one."""
    if array.dtype.kind == "U":
        array = np.char.encode(array, "utf-8")
    return np.frombuffer(b"\n".join(array.ravel().tolist()), "uint8")


def _children(data, budget, stored, known):
    """Yields what is in some data, and whether an encoding hid it."""
    for content in stored.texts:
        yield content, False
    for content in unpacking.members_of(data, budget.unpacked):
        yield content, False
    if known:
        return
    if not unpacking.is_archive(data):
        for content in unpacking.streams_in(data, budget.unpacked):
            yield content, False
    if unpacking.begins_packed(data):
        return
    listed = ("bytes as decimals", printed_numbers.listed_bytes(data))
    for name, content in itertools.chain([listed], encodings.decoded(data)):
        digest = hashlib.sha256(content).digest()
        if digest in budget.seen:
            continue
        budget.seen.add(digest)
        budget.decoded -= content.size
        if budget.decoded < 0:
            unread = "encodings in one another; the rest was not decoded"
            yield Content(name, data[:0], unread), True
            return
        yield Content(name, content), True


def _is_text(data):
    """Whether bytes are those of a text in ASCII or UTF-8."""
    for start in range(0, data.size, 2**24):
        if np.any(data[start : start + 2**24] < 9):
            return False
    try:
        decoder = codecs.getincrementaldecoder("utf-8")()
        decoder.decode(data[: 2**20].tobytes())
    except UnicodeDecodeError:
        return False
    return True


def _looks_random(data):
    """Whether most of some bytes are as random as compression makes them."""
    blocks = range(0, data.size - _BLOCK + 1, max(_BLOCK, data.size // 64))
    random = 0
    for start in blocks:
        counts = np.bincount(data[start : start + _BLOCK], minlength=256)
        shares = counts[counts > 0] / _BLOCK
        random += -np.sum(shares * np.log2(shares)) > _ENTROPY
    return random > len(blocks) / 2
