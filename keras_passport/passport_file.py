"""The passport file: HDF5 whose every byte is covered by a hash.

The file opens with a 512-byte user block that holds a SHA-256 of all that
follows, so a damaged one is refused before anything in it is interpreted. A
hostile one can have the right checksum: the HDF5 library, which hostile files
crash, never sees it, and all that `PlainHDF5` reads is checked. Inside, a JSON
header names and hashes every array, so what is read has the shapes that were
written.
"""

import hashlib
import json
import os
import pathlib

import numpy as np

from keras_passport import files
from keras_passport.derivation import array_hash
from keras_passport.errors import PassportError
from keras_passport.geometry import Geometry
from keras_passport.passports import ROLES, Passport, PassportEntry
from keras_passport.plain_hdf5 import PlainHDF5

VERSION = 1
_MAGIC = b"keras_passport passport file\n"
_BLOCK = 512
# Bytes; JSON grows up to 40 times when it is read. A layer takes about 550.
_LARGEST_HEADER = 2**20
# A hostile geometry would make gigabytes, or hours of work, of a small map.
# How many elements the keys may have, and how many additions they may take:
# a number, or in large files a multiple of the elements in the file.
_LARGEST_KEYS = (2**19, 16)
_MOST_WORK = (2**28, 4096)


def header(passport: Passport, hashes: dict | None = None) -> bytes:
    """All of a passport but its arrays, which it names by their hashes.

    Args:
        passport: The passport.
        hashes: Dict from the ids of its arrays to hashes that are known.
    """
    hashes = hashes or {}
    layers = []
    for path, entry in passport.layers.items():
        roles = {}
        for role in passport.function.roles:
            roles[role] = {
                "holds": "key" if getattr(entry, role) is None else "map",
                "image": getattr(entry, f"{role}_image"),
                **_describe(entry.array(role), hashes),
            }
        layers.append(
            {"path": path, "geometry": entry.geometry.to_dict(), "roles": roles}
        )
    about = {
        "version": VERSION,
        "kind": passport.kind,
        "function": passport.function.name,
        "key_scaling": passport.key_scaling,
        "seed": passport.seed.hex(),
        "layers": layers,
        "images": {
            name: _describe(array, hashes)
            for name, array in _named(passport.images).items()
        },
    }
    return json.dumps(about, sort_keys=True).encode()


def save(passport: Passport, path: str | os.PathLike) -> None:
    """Writes a passport; see `Passport.save`."""
    import h5py  # which `load` does without

    with files.replacing(path, mode=0o600) as temporary:
        # The form of HDF5 that `PlainHDF5` reads.
        with h5py.File(
            temporary, "w", libver="earliest", userblock_size=_BLOCK
        ) as file:
            text = np.frombuffer(header(passport), "uint8")
            file.create_dataset("header", data=text)
            for index, entry in enumerate(passport.layers.values()):
                for role in passport.function.roles:
                    _write(file, f"layers/{index}/{role}", entry.array(role))
            for name, array in _named(passport.images).items():
                _write(file, _image(name), array)
        with open(temporary, "r+b") as file:
            file.seek(_BLOCK)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            file.write(_MAGIC + digest.encode())
        # What can't be read back must not replace an older file.
        load(temporary)


def load(path: str | os.PathLike) -> Passport:
    """Reads a passport; see `Passport.load`."""
    path = pathlib.Path(path)
    _check_file(path)
    try:
        with open(path, "rb") as file:
            return _read(PlainHDF5(file, _BLOCK))
    except PassportError as error:
        raise PassportError(f"{error} (in '{path}')") from None
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        OSError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        raise PassportError(
            f"Expected '{path}' to hold a passport. Received: a file with a "
            f"valid checksum that can't be read ({type(error).__name__})"
        ) from error


def _check_file(path: pathlib.Path) -> None:
    try:
        with open(path, "rb") as file:
            block = file.read(_BLOCK)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise PassportError(
            f"Expected a passport file at '{path}'. "
            f"Received: {error.strerror or error}"
        ) from error
    if not block.startswith(_MAGIC):
        raise PassportError(
            f"Expected '{path}' to be a passport file. Received: a file of "
            "another kind, or one whose beginning is damaged"
        )
    expected = block[len(_MAGIC) :].rstrip(b"\0")
    if len(block) < _BLOCK or expected != digest.encode():
        raise PassportError(
            f"Expected '{path}' to match its checksum. Received: a file that "
            "was truncated or changed after it was written"
        )


def _read(file: PlainHDF5) -> Passport:
    stored = file.datasets["header"]
    if stored.dtype != np.uint8 or not 0 < stored.size <= _LARGEST_HEADER:
        raise PassportError(
            f"Expected a header of at most {_LARGEST_HEADER} bytes of text. "
            f"Received: {stored.size} elements of {stored.dtype}"
        )
    text = file.read("header").tobytes()
    about = json.loads(text)
    if about["version"] != VERSION:
        raise PassportError(
            f"Expected a passport file of version {VERSION}. Received: "
            f"version {about['version']}; a newer keras_passport may read it"
        )
    layers, hashes = {}, {}
    for index, layer in enumerate(about["layers"]):
        roles = {}
        for role, description in layer["roles"].items():
            if role not in ROLES:
                raise PassportError(
                    f"Expected gamma or beta. Received: {role!r}"
                )
            name = role if description["holds"] == "map" else f"{role}_key"
            array = _load(file, f"layers/{index}/{role}", description)
            hashes[id(array)] = description["sha256"]
            roles[name] = array
            roles[f"{role}_image"] = description["image"]
        if not isinstance(layer["path"], str):
            raise PassportError(
                "Expected the path of a layer to be a string. "
                f"Received: {layer['path']!r}"
            )
        layers[layer["path"]] = PassportEntry(
            Geometry.from_dict(layer["geometry"]), **roles
        )
    images = {
        name: _load(file, _image(name), description)
        for name, description in about["images"].items()
    }
    passport = Passport(
        about["kind"],
        about["function"],
        layers,
        bytes.fromhex(about["seed"]),
        about["key_scaling"],
        images.get("", images or None),
    )
    _check_keys(passport)
    # Nothing was passed over, nothing was given twice or as another type.
    if file.datasets:
        raise PassportError(
            "Expected no arrays but those that the header names. "
            f"Received: {len(file.datasets)} more"
        )
    if header(passport, hashes) != text:
        raise PassportError(
            "Expected a header that describes the passport and nothing else. "
            "Received: another one"
        )
    return passport


def _check_keys(passport):
    stored = elements = additions = 0
    for entry in passport.layers.values():
        key_size, kernel = entry.geometry.key_size, entry.geometry.kernel_size
        for role in passport.function.roles:
            size = entry.array(role).size
            stored += size
            elements += key_size
            additions += max(size, key_size) * sum(kernel)
    for received, (least, factor), of_what in (
        (elements, _LARGEST_KEYS, "elements"),
        (additions, _MOST_WORK, "additions"),
    ):
        if received > max(least, factor * stored):
            raise PassportError(
                f"Expected keys of at most {max(least, factor * stored)} "
                f"{of_what} for {stored} numbers. Received: {received}"
            )


def _named(images) -> dict:
    """Images by input; a single input's under the empty name."""
    if images is None:
        return {}
    if isinstance(images, dict):
        return images
    if isinstance(images, (list, tuple)):
        return {str(index): array for index, array in enumerate(images)}
    return {"": images}


def _describe(array, hashes) -> dict:
    known = hashes.get(id(array)) or array_hash(array)
    return {"shape": list(array.shape), "sha256": known}


def _image(name) -> str:
    """Where an image lies: a single input's has no name."""
    return f"images/{name}".rstrip("/")


def _write(file, name, array):
    file.create_dataset(name, data=np.asarray(array, "<f4"))


def _load(file, name, description) -> np.ndarray:
    stored = file.datasets[name]
    expected = tuple(description["shape"])
    if stored.dtype != np.float32 or stored.shape != expected:
        raise PassportError(
            f"Expected '{name}' to be float32 of shape {expected}. "
            f"Received: {stored.dtype} of shape {stored.shape}"
        )
    array = file.read(name)
    if array_hash(array) != description["sha256"]:
        raise PassportError(
            f"Expected '{name}' to match its hash. Received: other content"
        )
    if not np.all(np.isfinite(array)):
        raise PassportError(
            f"Expected finite values in '{name}'. Received: NaN or infinity"
        )
    return array
