"""The passport file: HDF5 whose every byte is covered by a hash.

The file opens with a 512-byte user block that holds a SHA-256 of all that
follows. It is checked before the HDF5 library sees the file, so a damaged one
is refused before anything in it is interpreted. Inside, a JSON header names
and hashes every array, so what is read has the shapes that were written.
"""

import hashlib
import json
import os
import pathlib

import h5py
import numpy as np

from keras_passport import files
from keras_passport.derivation import array_hash
from keras_passport.errors import PassportError
from keras_passport.geometry import Geometry
from keras_passport.passports import ROLES, Passport, PassportEntry

VERSION = 1
_MAGIC = b"keras_passport passport file\n"
_BLOCK = 512
_LARGEST_HEADER = 2**24


def header(passport: Passport) -> dict:
    """All of a passport but its arrays, which it names by their hashes."""
    layers = []
    for path, entry in passport.layers.items():
        roles = {}
        for role in passport.function.roles:
            roles[role] = {
                "holds": "key" if getattr(entry, role) is None else "map",
                "image": getattr(entry, f"{role}_image"),
                **_describe(entry.array(role)),
            }
        layers.append(
            {"path": path, "geometry": entry.geometry.to_dict(), "roles": roles}
        )
    return {
        "version": VERSION,
        "kind": passport.kind,
        "function": passport.function.name,
        "key_scaling": passport.key_scaling,
        "seed": passport.seed.hex(),
        "layers": layers,
        "images": {
            name: _describe(array)
            for name, array in _named(passport.images).items()
        },
    }


def save(passport: Passport, path: str | os.PathLike) -> None:
    """Writes a passport; see `Passport.save`."""
    text = json.dumps(header(passport), sort_keys=True).encode()
    with files.replacing(path, mode=0o600) as temporary:
        with h5py.File(temporary, "w", userblock_size=_BLOCK) as file:
            file.create_dataset("header", data=np.frombuffer(text, "uint8"))
            for index, entry in enumerate(passport.layers.values()):
                for role in passport.function.roles:
                    _write(file, f"layers/{index}/{role}", entry.array(role))
            for name, array in _named(passport.images).items():
                _write(file, f"images/{name}", array)
        with open(temporary, "r+b") as file:
            file.seek(_BLOCK)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            file.write(_MAGIC + digest.encode())


def load(path: str | os.PathLike) -> Passport:
    """Reads a passport; see `Passport.load`."""
    path = pathlib.Path(path)
    _check_file(path)
    try:
        with h5py.File(path, "r") as file:
            return _read(file)
    except PassportError as error:
        raise PassportError(f"{error} (in '{path}')") from None
    except (
        AttributeError,
        KeyError,
        OSError,
        RuntimeError,
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


def _read(file: h5py.File) -> Passport:
    stored = file["header"]
    if stored.dtype != np.uint8 or not 0 < stored.size <= _LARGEST_HEADER:
        raise PassportError(
            "Expected a header of text. "
            f"Received: {stored.dtype}, {stored.size} elements"
        )
    about = json.loads(stored[()].tobytes())
    if about["version"] != VERSION:
        raise PassportError(
            f"Expected a passport file of version {VERSION}. Received: "
            f"version {about['version']}; a newer keras_passport may read it"
        )
    layers = {}
    for index, layer in enumerate(about["layers"]):
        roles = {}
        for role, description in layer["roles"].items():
            if role not in ROLES:
                raise PassportError(
                    f"Expected gamma or beta. Received: {role!r}"
                )
            name = role if description["holds"] == "map" else f"{role}_key"
            roles[name] = _load(file, f"layers/{index}/{role}", description)
            roles[f"{role}_image"] = description["image"]
        layers[layer["path"]] = PassportEntry(
            Geometry.from_dict(layer["geometry"]), **roles
        )
    images = {
        name: _load(file, f"images/{name}", description)
        for name, description in about["images"].items()
    }
    return Passport(
        about["kind"],
        about["function"],
        layers,
        bytes.fromhex(about["seed"]),
        about["key_scaling"],
        images.get("", images or None),
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


def _describe(array) -> dict:
    return {"shape": list(array.shape), "sha256": array_hash(array)}


def _write(file, name, array):
    file.create_dataset(
        name.rstrip("/"),
        data=np.asarray(array, "<f4"),
        compression="gzip",
        shuffle=True,
    )


def _load(file, name, description) -> np.ndarray:
    stored = file[name.rstrip("/")]
    expected = tuple(description["shape"])
    if stored.dtype != np.dtype("<f4") or stored.shape != expected:
        raise PassportError(
            f"Expected '{name}' to be float32 of shape {expected}. "
            f"Received: {stored.dtype} of shape {stored.shape}"
        )
    # Gzip packs at most about a thousand to one: more is not in the file.
    if stored.size * 4 > 1100 * (stored.id.get_storage_size() + 64):
        raise PassportError(
            f"Expected '{name}' to be stored in full. Received: "
            f"{stored.id.get_storage_size()} bytes for shape {expected}"
        )
    array = stored[()]
    if array_hash(array) != description["sha256"]:
        raise PassportError(
            f"Expected '{name}' to match its hash. Received: other content"
        )
    return array
