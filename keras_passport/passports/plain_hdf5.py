"""Reads plain HDF5 files, with NumPy alone, whoever wrote them.

The HDF5 library trusts a file's structure: a hostile file makes it crash, ask
for gigabytes, or read other files. Passports come from other people, so they
are read here. This reader knows one form, the one that `h5py.File(path, "w",
libver="earliest")` gives to groups and whole datasets, and refuses all others:
nothing is unpacked, no link is followed, and no more bytes are read than the
file has, so that its size bounds time and memory.

Reference:

- HDF5 File Format Specification, version 3.0: II.A (superblock 0), III.A to
  III.D (groups), IV.A.1 and IV.A.2 (object headers, messages).
"""

import dataclasses
import math
import struct
from typing import BinaryIO

import numpy as np

from keras_passport.errors import PassportError
from keras_passport.secrecy import hidden

# The first bytes of the datatype messages of the arrays that we read.
_DTYPES = {
    "10000000 01000000 00000800": np.dtype("uint8"),
    "11201f00 04000000 00002000 17080017 7f000000": np.dtype("<f4"),
}
_SPACE, _TYPE, _LAYOUT, _CONTINUATION, _GROUP = 0x01, 0x03, 0x08, 0x10, 0x11
# Padding, fill values and a time are allowed, and say nothing.
_PADDING = 0x00
_KNOWN = {_SPACE, _TYPE, _LAYOUT, _GROUP, _PADDING, 0x04, 0x05, 0x12}
_SHARED = 2  # a flag: the message lies elsewhere
_SOFT_LINK = 2
_CONTIGUOUS = (3, 1)  # version and class of a layout
_HIGHEST_RANK = 32
_LONGEST = 1024  # bytes of a name, characters of a path


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Where an array lies in the file, and what it is."""

    dtype: np.dtype
    shape: tuple[int, ...]
    address: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Number of bytes."""
        return self.size * self.dtype.itemsize


class PlainHDF5:
    """A plain HDF5 file, open for reading.

    Args:
        file: Binary file, opened for reading.
        start: Where in it HDF5 begins, in bytes: the user block's size.

    Raises:
        PassportError: If the file is not a plain HDF5 file.
    """

    def __init__(self, file: BinaryIO, start: int):
        self._file, self._start = file, start
        self._size = self._unread = file.seek(0, 2) - start
        signature, versions, root = self._unpack("<8s8s48xQ24x", 0)
        # Two bytes of `versions` are the sizes of addresses and of lengths.
        if signature != b"\x89HDF\r\n\x1a\n":
            raise _refusal("other content")
        if versions != b"\0\0\0\0\0\x08\x08\0":
            raise _refusal("a superblock of another version")
        #: Dict from path, such as `"layers/0/gamma"`, to `Dataset`, of what
        #: has not been read.
        self.datasets: dict[str, Dataset] = {}
        groups = [("", self._messages(root))]
        for prefix, group in groups:
            for name, address in self._members(group).items():
                path = prefix + name
                if len(path) > _LONGEST:
                    raise _refusal("a path of more than 1,024 characters")
                messages = self._messages(address)
                if _GROUP in messages:
                    groups.append((f"{path}/", messages))
                else:
                    self.datasets[path] = _dataset(messages)

    def read(self, name: str) -> np.ndarray:
        """The array of a name in `datasets`, which goes from there."""
        stored = self.datasets.pop(name)
        self._seek(stored.address, stored.nbytes)
        array = np.empty(stored.shape, stored.dtype)
        if self._file.readinto(array.reshape(-1).view("uint8")) < stored.nbytes:
            raise _refusal("an array that ends too early")
        return hidden(array)

    def _seek(self, address, count):
        """Goes to where `count` bytes will be read, if that can be."""
        # No byte belongs to two things, so more is read only in circles.
        self._unread -= count
        if self._unread < 0 or address > self._size - count:
            raise _refusal("parts outside the file, or within one another")
        self._file.seek(self._start + address)

    def _read(self, address, count):
        self._seek(address, count)
        return hidden(self._file.read(count))

    def _unpack(self, layout, address):
        return struct.unpack(
            layout, self._read(address, struct.calcsize(layout))
        )

    def _messages(self, address):
        """An object header's messages, by their type."""
        version, size = self._unpack("<B7xI4x", address)
        if version != 1:
            raise _refusal("an object header of another version")
        messages = {}
        blocks = [(address + 16, size)]
        for start, size in blocks:
            block = self._read(start, size)
            at = 0
            while at < size:
                kind, length, flags = _unpack("<HHB3x", block, at)
                content = block[at + 8 : at + 8 + length]
                at += 8 + length
                if kind == _CONTINUATION:
                    blocks.append(_unpack("<QQ", content))
                elif kind not in _KNOWN or kind in messages or flags & _SHARED:
                    raise _refusal(f"a header message of type {kind}")
                elif kind != _PADDING:
                    messages[kind] = content
        return messages

    def _members(self, messages):
        """Names in a group and the address of what each names."""
        tree, heap = _unpack("<QQ", messages[_GROUP])
        signature, size, start = self._unpack("<4s4xQ8xQ", heap)
        if signature != b"HEAP":
            raise _refusal("a group without names")
        names = self._read(start, size)
        members = {}
        nodes = [tree]
        for address in nodes:
            signature, count = self._unpack("<4s2xH", address)
            if signature == b"TREE":
                children = self._read(address + 8, 16 + 16 * count)[16:]
                nodes += [to for (to,) in struct.iter_unpack("<8xQ", children)]
                continue
            if signature != b"SNOD":
                raise _refusal("a group of another form")
            entries = self._read(address + 8, 40 * count)
            for at, to, link in struct.iter_unpack("<QQI20x", entries):
                name, *_ = names[at : at + _LONGEST].partition(b"\0")
                name = name.decode()
                if link == _SOFT_LINK or name in members or "/" in name:
                    raise _refusal("a link or a name used twice")
                members[name] = to
        return members


def _dataset(messages) -> Dataset:
    if not {_SPACE, _TYPE, _LAYOUT} <= set(messages):
        raise _refusal("neither a group nor a dataset")
    version, rank = _unpack("<BB", messages[_SPACE])
    if version != 1 or rank > _HIGHEST_RANK:
        raise _refusal("a dataset of another form")
    shape = _unpack(f"<8x{rank}Q", messages[_SPACE])
    dtypes = [
        dtype
        for start, dtype in _DTYPES.items()
        if messages[_TYPE].startswith(bytes.fromhex(start))
    ]
    if not dtypes:
        raise _refusal("a dataset of another type")
    form = _unpack("<BBQQ", messages[_LAYOUT])
    dataset = Dataset(dtypes[0], shape, address=form[2])
    if (*form[:2], form[3]) != (*_CONTIGUOUS, dataset.nbytes):
        raise _refusal("a dataset that is packed or not whole")
    return dataset


def _unpack(layout, content, at=0):
    if len(content) < at + struct.calcsize(layout):
        raise _refusal("a part that ends too early")
    return struct.unpack_from(layout, content, at)


def _refusal(received: str) -> PassportError:
    return PassportError(
        "Expected a plain HDF5 file: groups, and arrays of float32 or uint8 "
        f"that are stored whole. Received: {received}"
    )
