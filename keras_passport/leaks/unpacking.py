"""Archives and compressed streams, unpacked within limits.

A few bytes can unpack to gigabytes, or to archives in archives without end.
What goes beyond the limits, or is damaged, or needs a library that is not
installed, is named; what comes before is searched.
"""

import bz2
import dataclasses
import importlib
import io
import lzma
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator

import numpy as np

# Bytes that one content may unpack to, and those of one file together: so
# many, and that many times its size.
LARGEST = 2**28
_FREE, _RATIO = 2**25, 256
# How many members one file may have, and how often a stream is tried.
_MOST_MEMBERS, _MOST_TRIES = 20_000, 50_000
_PIECE, _WINDOW = 2**20, 2**24
# A chance likeness of a stream unpacks to a few bytes.
_BY_CHANCE = 4096


class Limits:
    """What a file may still unpack to.

    Args:
        size: Its bytes.
    """

    def __init__(self, size: int):
        self.left = _FREE + _RATIO * size
        self.members = _MOST_MEMBERS
        self.tries = _MOST_TRIES + size // 256

    def take(self, size: int) -> None:
        """Counts bytes that were unpacked."""
        self.left -= size

    @property
    def room(self) -> int:
        """How many bytes the next content may have."""
        return max(0, min(LARGEST, self.left))


@dataclasses.dataclass(frozen=True)
class Content:
    """A member of an archive, or what a stream unpacks to.

    Args:
        name: The member's name, or what was done.
        data: uint8 array.
        unread: Why it is not whole, or "".
    """

    name: str
    data: np.ndarray
    unread: str = ""


class View(io.RawIOBase):
    """A file to read that is an array's bytes; they are not copied."""

    def __init__(self, data: np.ndarray):
        self._data, self._at = data, 0

    def readable(self):
        return True

    def seekable(self):
        return True

    def seek(self, offset, whence=io.SEEK_SET):
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at}
        self._at = max(0, base.get(whence, self._data.size) + offset)
        return self._at

    def tell(self):
        return self._at

    def readinto(self, buffer):
        piece = self._data[self._at : self._at + len(buffer)]
        buffer[: piece.size] = piece.tobytes()
        self._at += piece.size
        return piece.size


# Streams ---------------------------------------------------------------------


def _zlib():
    return zlib.decompressobj()


def _gzip():
    return zlib.decompressobj(31)


def _xz():
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=LARGEST)


def _lzma():
    return lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=LARGEST)


def _lz4():
    return importlib.import_module("lz4.frame").LZ4FrameDecompressor()


def _zstd():
    for name in ("compression.zstd", "backports.zstd"):
        try:
            return importlib.import_module(name).ZstdDecompressor()
        except ImportError:
            pass
    return _Zstandard(importlib.import_module("zstandard"))


class _Zstandard:
    """Python's interface of a decompressor for the library `zstandard`."""

    unused_data = b""

    def __init__(self, library):
        self._library = library
        self._reader = None
        self.eof = False

    def decompress(self, data, size):
        if self._reader is None:
            # It takes all that is left: no one else knows where it ends.
            stream = io.BytesIO(data)
            decompressor = self._library.ZstdDecompressor()
            self._reader = decompressor.stream_reader(
                stream, read_across_frames=True
            )
        content = self._reader.read(size)
        self.eof = not content
        return content


@dataclasses.dataclass(frozen=True)
class _Kind:
    name: str
    make: Callable
    magic: bytes
    # Whether so many bytes say what it is that it can't be chance.
    certain: bool = True


_STREAMS = (
    _Kind("gzip", _gzip, rb"\x1f\x8b\x08[\x00-\x1f]", False),
    _Kind("bz2", bz2.BZ2Decompressor, rb"BZh[1-9]1AY&SY"),
    _Kind("xz", _xz, rb"\xfd7zXZ\x00"),
    _Kind("zstd", _zstd, rb"\x28\xb5\x2f\xfd"),
    _Kind("lz4", _lz4, rb"\x04\x22\x4d\x18"),
    _Kind("zlib", _zlib, rb"\x78[\x01\x5e\x9c\xda]", False),
    _Kind("lzma", _lzma, rb"\x5d\x00\x00[\x00-\x80]\x00", False),
)
_ANY = re.compile(b"|".join(b"(%b)" % kind.magic for kind in _STREAMS), re.S)
_FIRST_TWO = np.zeros(2**16, bool)
_FIRST_TWO[[0x1F8B, 0x425A, 0xFD37, 0x28B5, 0x0422, 0x5D00]] = True
_FIRST_TWO[[0x7801, 0x785E, 0x789C, 0x78DA]] = True
# So few bytes that a text may begin with them.
_WEAK = ("zlib", "lzma")
# Formats that nothing here can open.
_CLOSED = {
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!\x1a\x07": "a RAR archive",
    b"MSCF\0\0\0\0": "a CAB archive",
    b"PAR1": "a Parquet file",
    b"\x02\x21\x4c\x18": "lz4 of the old format",
    b"\xff\x06\x00\x00sNaPpY": "snappy",
    b"\x1f\x9d": "compress (.Z)",
    b"%PDF-": "a PDF, whose streams were searched but not its objects",
    b"Salted__": "encrypted",
    b"age-encryption.org": "encrypted",
    b"-----BEGIN PGP MESSAGE": "encrypted",
}


def closed(data: np.ndarray) -> str:
    """What a file is that can't be opened here, or ""."""
    head = data[:32].tobytes()
    kinds = (what for magic, what in _CLOSED.items() if head.startswith(magic))
    return next(kinds, "")


def streams_in(data: np.ndarray, limits: Limits) -> Iterator[Content]:
    """Yields what compressed streams unpack to, wherever they begin.

    Args:
        data: uint8 array.
        limits: What may be unpacked.
    """
    at = 0
    for kind, start in _beginnings(data):
        if start < at:
            continue  # It is inside another stream.
        limits.tries -= 1
        if limits.tries < 0:
            unread = "too many beginnings of compressed streams"
            yield Content("", data[:0], unread)
            return
        try:
            decompressor = kind.make()
        except ImportError:
            if start == 0 or kind.certain:
                unread = f"{kind.name}, for which no library is installed"
                yield Content(kind.name, data[:0], unread)
            continue
        pieces, end, unread = _unpack(decompressor, data, start, limits)
        size = sum(map(len, pieces))
        likely = start == 0 and (kind.certain or kind.name == "gzip")
        if not size and not (unread and likely):
            continue
        if unread and size < _BY_CHANCE and start:
            continue
        if unread and size < 64 and not likely:
            continue
        at = end
        name = kind.name if start == 0 else f"{kind.name} at byte {start}"
        content = np.frombuffer(b"".join(pieces), "uint8")
        limits.members -= 1
        yield Content(name, content, unread)
        if limits.members <= 0:
            yield Content("", data[:0], "too many compressed streams")
            return


def _beginnings(data):
    """Yields where streams may begin, by their first two bytes at first."""
    for first in range(0, data.size, _WINDOW):
        piece = np.array(data[first : first + _WINDOW + 16])
        pairs = piece[:-1].astype("uint16") << 8 | piece[1:]
        likely = np.flatnonzero(_FIRST_TWO[pairs][:_WINDOW])
        text = piece.tobytes()
        for start in likely.tolist():
            match = _ANY.match(text, start)
            if match:
                yield _STREAMS[match.lastindex - 1], first + start


def _unpack(decompressor, data, start, limits):
    """A stream's pieces, where it ends, and why it is not whole, or ""."""
    pieces, size, position, waiting = [], 0, start, b""
    room = limits.room
    old = hasattr(decompressor, "unconsumed_tail")  # zlib's own interface
    # A first small piece rules most chance likenesses out.
    step = 256
    try:
        while not decompressor.eof:
            if not waiting and (old or getattr(decompressor, "needs_input", 1)):
                waiting = data[position : position + step].tobytes()
                position += len(waiting)
                if isinstance(decompressor, _Zstandard):
                    waiting = data[start:].tobytes()
                    position = data.size
                step = _PIECE
                # zlib may have more to give of what it has taken.
                full = old and pieces and len(pieces[-1]) == _PIECE
                if not waiting and not full:
                    return pieces, data.size, "cut off"
            piece = decompressor.decompress(waiting, _PIECE)
            waiting = decompressor.unconsumed_tail if old else b""
            pieces.append(piece)
            size += len(piece)
            limits.take(len(piece))
            if size > room:
                return pieces, data.size, _too_large(room)
    except Exception as error:
        return pieces, position, f"damaged ({type(error).__name__})"
    return pieces, position - len(decompressor.unused_data or b""), ""


def _too_large(room):
    return f"unpacks to more than {room:,} bytes; the rest was not examined"


# Archives --------------------------------------------------------------------


def members_of(data: np.ndarray, limits: Limits) -> Iterator[Content]:
    """Yields what a zip or tar archive holds; nothing if data is none.

    A zip archive may have anything before it, as one that extracts itself.

    Args:
        data: uint8 array.
        limits: What may be unpacked.
    """
    if is_zip(data):
        yield from _zipped(data, limits)
    elif is_tar(data):
        yield from _tarred(data, limits)


def is_zip(data: np.ndarray) -> bool:
    """Whether data is a zip archive, be it damaged or behind a prefix."""
    tail = data[-(2**16 + 22) :].tobytes()
    at = tail.rfind(b"PK\5\6")
    # Chance likenesses say nothing of a directory that is there.
    return data[:4].tobytes() == b"PK\3\4" or (
        0 <= at <= len(tail) - 22 and b"PK\1\2" in data[-(2**24) :].tobytes()
    )


def is_archive(data: np.ndarray) -> bool:
    """Whether data is an archive that can be opened here."""
    return is_zip(data) or is_tar(data)


def is_tar(data: np.ndarray) -> bool:
    """Whether data is a tar archive."""
    return data[257:262].tobytes() == b"ustar"


def begins_packed(data: np.ndarray) -> bool:
    """Whether data begins as an archive or a compressed stream does."""
    head = data[:16].tobytes()
    match = _ANY.match(head)
    certain = match and _STREAMS[match.lastindex - 1].name not in _WEAK
    return certain or head.startswith(b"PK\3\4") or is_tar(data)


def _zipped(data, limits):
    try:
        archive = zipfile.ZipFile(io.BufferedReader(View(data)))
        members = archive.infolist()
    except Exception as error:
        yield Content("", data[:0], f"not readable ({type(error).__name__})")
        yield from _without_directory(data, limits)
        return
    for info in members:
        if info.is_dir():
            continue
        limits.members -= 1
        if limits.members < 0 or limits.room == 0:
            yield Content("", data[:0], "more members than are unpacked")
            return
        yield _member(data, archive, info, limits)


def _member(data, archive, info, limits):
    stored = info.compress_type == zipfile.ZIP_STORED
    if stored and not info.flag_bits & 1:
        # A view of the archive costs nothing, however large it is.
        head = data[info.header_offset : info.header_offset + 30].tobytes()
        if len(head) == 30 and head.startswith(b"PK\3\4"):
            names = sum(struct.unpack("<2H", head[26:]))
            start = info.header_offset + 30 + names
            content = data[start : start + info.file_size]
            cut = content.size < info.file_size
            return Content(info.filename, content, "cut off" if cut else "")
    pieces, size, unread, room = [], 0, "", limits.room
    try:
        with archive.open(info) as member:
            while piece := member.read(_PIECE):
                pieces.append(piece)
                size += len(piece)
                limits.take(len(piece))
                if size > room:
                    unread = _too_large(room)
                    break
    except RuntimeError as error:  # A password, or an unknown method.
        encrypted = info.flag_bits & 1
        unread = "encrypted" if encrypted else f"not readable ({error})"
    except Exception as error:
        unread = f"damaged ({type(error).__name__})"
    content = np.frombuffer(b"".join(pieces), "uint8")
    return Content(info.filename, content, unread)


def _without_directory(data, limits):
    """Members by their own heads, where the directory is lost."""
    at = 0
    head = struct.Struct("<4s5H3I2H")
    # bytes.find is linear, however many heads are no members.
    whole = data[: 2**26].tobytes()
    while (at := whole.find(b"PK\3\4", at)) >= 0 and limits.members > 0:
        limits.members -= 1
        start, at = at, at + 4
        if start + head.size > len(whole):
            return
        fields = head.unpack_from(whole, start)
        method, names, extra = fields[3], fields[9], fields[10]
        first = start + head.size + names + extra
        name = whole[start + head.size : start + head.size + min(names, 200)]
        name = name.decode("utf-8", "replace")
        if method == zipfile.ZIP_DEFLATED:
            raw = zlib.decompressobj(-15)
            pieces, end, unread = _unpack(raw, data, first, limits)
            at = max(at, end) if not unread else at
            content = np.frombuffer(b"".join(pieces), "uint8")
            yield Content(name, content, unread)
        elif method == zipfile.ZIP_STORED and fields[8]:
            yield Content(name, data[first : first + fields[8]])
            at = max(at, min(first + fields[8], len(whole)))


def _tarred(data, limits):
    try:
        with tarfile.open(
            fileobj=io.BufferedReader(View(data)), mode="r:"
        ) as archive:
            for member in archive:
                limits.members -= 1
                if limits.members < 0:
                    yield Content("", data[:0], "more members than are read")
                    return
                start, size = member.offset_data, member.size
                if member.isfile() and size:
                    content = data[start : start + size]
                    sparse = member.issparse() or content.size < size
                    unread = "sparse or cut off" if sparse else ""
                    yield Content(member.name, content, unread)
    except Exception as error:
        yield Content("", data[:0], f"damaged ({type(error).__name__})")
