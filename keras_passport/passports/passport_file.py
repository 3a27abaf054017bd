"""The passport file: HDF5 whose every byte is covered by a hash.

The file opens with a 512-byte user block that holds a SHA-256 of all that
follows, so a damaged one is refused before anything in it is interpreted. A
hostile one can have the right checksum: the HDF5 library, which hostile files
crash, never sees it, and all that `PlainHDF5` reads is checked. Inside, a JSON
header names and hashes every array, so what is read has the shapes that were
written.

There are three versions of the header, whose SHA-256 is the fingerprint. The
first names feature maps, which the file holds whole. The second is that of
passports whose maps can be made anew and are large: beside each map's hash it
names the hash of its key, and the file holds the key alone. A passport that
was loaded from a file of the first keeps it: published fingerprints stay. The
third is that of trained models' passports, which hold what filters were
multiplied by (`PassportEntry.scales`) as well.
"""

import copy
import dataclasses
import hashlib
import io
import json
import os
from collections.abc import Callable

import numpy as np

from keras_passport import files
from keras_passport.errors import PassportError
from keras_passport.passports import palettes
from keras_passport.passports.derivation import MADE_KINDS, array_hash
from keras_passport.passports.entries import ROLES, MapRecord, PassportEntry
from keras_passport.passports.geometry import Geometry
from keras_passport.passports.plain_hdf5 import PlainHDF5
from keras_passport.secrecy import SecretText, hidden, type_of
from keras_passport.texts import shown

VERSIONS = (1, 2, 3)
_MAGIC = b"keras_passport passport file\n"
_BLOCK = 512
_PIECE = 2**20
# Bytes of maps that a file holds whole, although they can be made anew.
_LARGEST_MAPS = 2**18
# Bytes. Whatever is larger takes too long to be checked.
_LARGEST_FILE = 2**32
# Bytes; JSON grows up to 40 times when it is read. A layer takes about 700.
_LARGEST_HEADER = 2**21
# A hostile geometry would make gigabytes, or hours of work, of a small map.
# How many elements the keys may have, and how many additions they may take:
# a number, or in large files a multiple of the elements in the file.
_LARGEST_KEYS = (2**19, 16)
# Orders of rows are not in the file: a quarter to all of the numbers that the
# kernels have, of which it has two for each row.
_LARGEST_ORDERS = (2**26, 2**13)
_MOST_WORK = (2**28, 4096)


def header(passport, hashes: dict | None = None) -> bytes:
    """All of a passport but its arrays, which it names by their hashes.

    Args:
        passport: The passport.
        hashes: Dict from the names of its images to hashes that are known.
    """
    hashes = hashes or {}
    version = _version(passport)
    layers = []
    for path, entry in passport.layers.items():
        roles = {}
        for role in passport.function.roles:
            about = {"image": getattr(entry, f"{role}_image")}
            record = entry.record(role)
            key = None if version == 1 and record else entry.key(role)
            if record is None:
                about |= {"holds": "key", **_describe(key)}
            else:
                about |= {
                    "holds": "map",
                    "shape": list(record.shape),
                    "sha256": record.sha256,
                }
                if version > 1:
                    about["key"] = array_hash(key)
            roles[role] = about
        about = {
            "path": path,
            "geometry": entry.geometry.to_dict(),
            "roles": roles,
        }
        if entry.scales is not None:
            about["scales"] = _describe(entry.scales)
        if entry.origin is not None:
            about["origin"] = entry.origin
        if entry.order_seed is not None:
            about["order_seed"] = hidden(entry.order_seed.hex())
        if entry.own_rows:
            about["own_rows"] = True
        layers.append(about)
    about = {
        "version": version,
        "kind": passport.kind,
        "function": passport.function.name,
        "key_scaling": passport.key_scaling,
        "seed": hidden(passport.seed.hex()),
        "layers": layers,
        "images": {
            name: _describe(array, hashes.get(name))
            for name, array in _named(passport.images).items()
        },
    }
    return hidden(json.dumps(about, sort_keys=True).encode())


def _version(passport) -> int:
    entries = passport.layers.values()
    roles = passport.function.roles
    if any(entry.scales is not None for entry in entries):
        return 3
    if any(getattr(e, f"{role}_record") for e in entries for role in roles):
        return 2
    if passport.first_version or passport.kind not in MADE_KINDS:
        return 1
    elements = sum(e.map_size(role) for e in entries for role in roles)
    return 2 if 4 * elements > _LARGEST_MAPS else 1


def as_held(passport):
    """The passport as its file holds it: keys in place of large maps.

    What is done to a passport's elements is then the same before it is saved
    and after it is loaded.

    Args:
        passport: The passport, which is left as it is.
    """
    roles = passport.function.roles
    if _version(passport) == 1:
        return passport
    held = copy.copy(passport)
    held.layers = {
        path: dataclasses.replace(
            entry,
            **{
                name: value
                for role in roles
                for name, value in (
                    (role, None),
                    (f"{role}_key", entry.key(role)),
                    (f"{role}_record", entry.record(role)),
                )
            },
        )
        for path, entry in passport.layers.items()
    }
    return held


def save(passport, path: str | os.PathLike) -> None:
    """Writes a passport; see `Passport.save`."""
    # A name that leads nowhere is said before the work.
    files.check_target(path)
    buffer = _written(passport)
    # What can't be read back must not replace an older file.
    _load(buffer, path, type(passport))
    files.write_bytes(path, buffer.getvalue(), mode=0o600)


def _written(passport) -> io.BytesIO:
    """The file in memory: on a full disk the HDF5 library would crash.

    It is read by `getvalue`, which copies nothing: a view that the error of a
    full disk keeps crashes Python 3.12.1, too.
    """
    import h5py  # which `load` does without

    buffer = io.BytesIO()
    compact = _version(passport) > 1
    # The form of HDF5 that `PlainHDF5` reads.
    with h5py.File(
        buffer, "w", libver="earliest", userblock_size=_BLOCK
    ) as file:
        text = np.frombuffer(header(passport), "uint8")
        file.create_dataset("header", data=text)
        for index, entry in enumerate(passport.layers.values()):
            for role in passport.function.roles:
                array = entry.key(role) if compact else entry.array(role)
                _write(file, f"layers/{index}/{role}", array)
            if entry.scales is not None:
                _write(file, f"layers/{index}/scales", entry.scales)
        for name, array in _named(passport.images).items():
            packed = palettes.pack(array) if compact else None
            if packed is None:
                _write(file, _image(name), array)
            else:
                file.create_dataset(_image(name), data=packed[0])
                _write(file, _image(name, "palettes"), packed[1])
    digest = _checksum(buffer)
    buffer.seek(0)
    buffer.write(_MAGIC + digest)
    buffer.seek(0)
    return buffer


def _checksum(file) -> bytes:
    """SHA-256 over all that follows the user block, in hexadecimal."""
    file.seek(_BLOCK)
    total = hashlib.sha256()
    while piece := file.read(_PIECE):
        total.update(piece)
    return total.hexdigest().encode()


def load(path: str | os.PathLike, make: Callable):
    """Reads a passport; see `Passport.load`.

    Args:
        path: The file.
        make: Makes the passport of what the file says: `Passport`, or a class
            derived from it.

    Returns:
        What `make` returned.
    """
    try:
        with files.open_regular(path) as file:
            return _load(file, path, make)
    except OSError as error:
        raise PassportError(
            f"Expected a passport file at '{shown(path)}'. "
            f"Received: {error.strerror or shown(error)}"
        ) from None


def is_passport(path: str | os.PathLike) -> bool:
    """Whether a file begins as a passport file does.

    Args:
        path: Any path.
    """
    try:
        with files.open_regular(path) as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False


def _load(file, path, make):
    """The passport in an open file; `path` is for messages."""
    _check_file(file, path)
    failed = None
    try:
        return _read(PlainHDF5(file, _BLOCK), make)
    except PassportError as error:
        raise PassportError(f"{error} (in '{shown(path)}')") from None
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        MemoryError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        failed = type(error).__name__
    raise PassportError(
        f"Expected '{shown(path)}' to hold a passport. Received: a file with "
        f"a valid checksum that can't be read ({failed})"
    )


def _check_file(file, path) -> None:
    block = file.read(_BLOCK)
    if not block.startswith(_MAGIC):
        raise PassportError(
            f"Expected '{shown(path)}' to be a passport file. Received: a "
            "file of another kind, or one whose beginning is damaged"
        )
    size = file.seek(0, 2)
    if size > _LARGEST_FILE:
        raise PassportError(
            f"Expected a passport file of at most {_LARGEST_FILE:,} bytes. "
            f"Received: '{shown(path)}', which has {size:,}"
        )
    expected = block[len(_MAGIC) :].rstrip(b"\0")
    if len(block) < _BLOCK or expected != _checksum(file):
        raise PassportError(
            f"Expected '{shown(path)}' to match its checksum. Received: a "
            "file that was truncated or changed after it was written"
        )


def _read(file: PlainHDF5, make):
    stored = file.datasets["header"]
    if stored.dtype != np.uint8 or not 0 < stored.size <= _LARGEST_HEADER:
        raise PassportError(
            f"Expected a header of at most {_LARGEST_HEADER} bytes of text. "
            f"Received: {stored.size} elements of {stored.dtype}"
        )
    text = hidden(file.read("header").tobytes())
    about = _parsed(text)
    version = about["version"]
    if version not in VERSIONS:
        raise PassportError(
            f"Expected a passport file of version {VERSIONS[0]} to "
            f"{VERSIONS[-1]}. Received: version {shown(version)}; a newer "
            "keras_passport may read it"
        )
    layers = {}
    for index, layer in enumerate(about["layers"]):
        if not isinstance(layer["path"], str):
            raise PassportError(
                "Expected the path of a layer to be a string. "
                f"Received: a {type_of(layer['path'])}"
            )
        layers[layer["path"]] = _entry(file, index, layer, version)
    images = {
        name: _image_array(file, name, description)
        for name, description in about["images"].items()
    }
    passport = make(
        about["kind"],
        about["function"],
        layers,
        bytes.fromhex(about["seed"]),
        about["key_scaling"],
        _unnamed(images),
    )
    passport.first_version = version == 1
    _check_keys(passport)
    # Nothing was passed over, nothing was given twice or as another type.
    if file.datasets:
        raise PassportError(
            "Expected no arrays but those that the header names. "
            f"Received: {len(file.datasets)} more"
        )
    hashes = {
        name: description["sha256"]
        for name, description in about["images"].items()
    }
    if header(passport, hashes) != text:
        raise PassportError(
            "Expected a header that describes the passport and nothing else. "
            "Received: another one"
        )
    return passport


def _parsed(text: bytes) -> dict:
    about = json.loads(SecretText(text, "utf-8"))
    if isinstance(about, dict) and isinstance(about.get("seed"), str):
        about["seed"] = hidden(about["seed"])
    return about


def _entry(file, index, layer, version) -> PassportEntry:
    """A layer's entry, of what the header says and the file holds of it."""
    roles, records = {}, {}
    for role, about in layer["roles"].items():
        if role not in ROLES:
            raise PassportError(
                f"Expected gamma or beta. Received: '{shown(role)}'"
            )
        is_map = about["holds"] == "map"
        whole = is_map and version == 1
        name, place = role, f"layers/{index}/{role}"
        if not whole:
            name = f"{role}_key"
        if is_map:
            records[role] = MapRecord(tuple(about["shape"]), about["sha256"])
        roles[f"{role}_image"] = about["image"]
        if is_map and not whole:
            if "key" not in about:
                raise PassportError(
                    "Expected version 1 of a header that names maps without "
                    f"keys. Received: version {version}"
                )
            # Its shape is the geometry's, as the entry checks.
            shape = file.datasets[place].shape
            roles[f"{role}_record"] = records.pop(role)
            about = {"shape": shape, "sha256": about["key"]}
        roles[name] = _array(file, place, about)
    if "scales" in layer:
        place = f"layers/{index}/scales"
        roles["scales"] = _array(file, place, layer["scales"])
    if "origin" in layer:
        roles["origin"] = layer["origin"]
    if "order_seed" in layer:
        roles["order_seed"] = bytes.fromhex(layer["order_seed"])
    if "own_rows" in layer:
        roles["own_rows"] = layer["own_rows"] is True
    entry = PassportEntry(Geometry.from_dict(layer["geometry"]), **roles)
    for role, record in records.items():
        entry.note_record(role, record)
    return entry


def _check_keys(passport):
    stored = elements = ordered = additions = 0
    for entry in passport.layers.values():
        key_size, kernel = entry.geometry.key_size, entry.geometry.kernel_size
        ordered += entry.geometry.order_size
        for role in passport.function.roles:
            size = entry.array(role).size
            stored += size
            elements += key_size
            additions += max(size, key_size) * sum(kernel)
    for received, (least, factor), of_what in (
        (elements, _LARGEST_KEYS, "elements"),
        (ordered, _LARGEST_ORDERS, "numbers of orders"),
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


def _unnamed(images: dict):
    """Images as `_named` was given them."""
    if set(images) == {""}:
        return images[""]
    if images and set(images) == set(map(str, range(len(images)))):
        return [images[str(index)] for index in range(len(images))]
    return images or None


def _describe(array, known=None) -> dict:
    return {"shape": list(array.shape), "sha256": known or array_hash(array)}


def _image(name, folder="images") -> str:
    """Where an image lies: a single input's has no name."""
    return f"{folder}/{name}".rstrip("/")


def _write(file, name, array):
    file.create_dataset(name, data=np.asarray(array, "<f4"))


def _image_array(file, name, description) -> np.ndarray:
    place = _image(name)
    if file.datasets[place].dtype != np.uint8:
        return _array(file, place, description)
    numbers, palette = file.datasets[place], _image(name, "palettes")
    _check_dataset(file, palette, file.datasets[palette].shape)
    if numbers.shape != tuple(description["shape"]):
        raise PassportError(
            f"Expected '{shown(place)}' to have shape "
            f"{shown(description['shape'])}. Received: {numbers.shape}"
        )
    array = palettes.unpack(file.read(place), file.read(palette))
    return _checked(array, place, description)


def _array(file, name, description) -> np.ndarray:
    _check_dataset(file, name, tuple(description["shape"]))
    return _checked(file.read(name), name, description)


def _check_dataset(file, name, expected) -> None:
    stored = file.datasets[name]
    if stored.dtype != np.float32 or stored.shape != expected:
        raise PassportError(
            f"Expected '{shown(name)}' to be float32 of shape "
            f"{shown(expected)}. "
            f"Received: {stored.dtype} of shape {stored.shape}"
        )


def _checked(array, name, description) -> np.ndarray:
    if array_hash(array) != description["sha256"]:
        raise PassportError(
            f"Expected '{shown(name)}' to match its hash. "
            "Received: other content"
        )
    if not np.all(np.isfinite(array)):
        raise PassportError(
            f"Expected finite values in '{shown(name)}'. "
            "Received: NaN or infinity"
        )
    return array
