"""How a passport is packed for a model: the spec, and who fits whom."""

import json
import os
import pathlib
import sys
from collections.abc import Mapping

import numpy as np

from keras_passport import files
from keras_passport.errors import PassportError
from keras_passport.lazy import above
from keras_passport.passports import remaking
from keras_passport.passports.derivation import derive, scale_keys
from keras_passport.passports.draws import order_of_rows
from keras_passport.passports.geometry import Geometry
from keras_passport.passports.matching import match
from keras_passport.texts import shown

# What `serving.passport_spec` gives, and the name of its file.
SPEC_VERSION = 1
SPEC_FILE = "passport_spec.json"
# Bytes. A layer takes about 300.
_LARGEST_SPEC = 2**24


def order_seed(passport, path: str) -> bytes:
    """The 32 bytes that the order of a layer's rows follows from."""
    entry = passport.layers[path]
    if entry.order_seed is not None:
        return entry.order_seed
    return derive(passport.seed, "order", entry.origin or path)


def order_seeds(passport) -> dict[str, bytes]:
    """`order_seed` of each layer whose rows have a secret order, by path."""
    return {
        path: order_seed(passport, path)
        for path, entry in passport.layers.items()
        if entry.geometry.ordered_rows
    }


def order_of(passport, path: str) -> np.ndarray | None:
    """The order of a layer's rows; see `layers.row_order`.

    Args:
        passport: A `Passport`.
        path: Of the layer.

    Returns:
        float32 array, or `None` where rows are in their own order.
    """
    orders = passport.layers[path].geometry.orders
    return order_of_rows(order_seed(passport, path), orders) if orders else None


def orders_of(passport) -> dict[str, np.ndarray]:
    """`order_of` of each layer whose rows have a secret order, by path."""
    return {path: order_of(passport, path) for path in order_seeds(passport)}


def keys_of(passport) -> Mapping:
    """See `Passport.keys`; without a check against a model."""
    made = {
        path: scale_keys(
            {role: entry.key(role) for role in passport.function.roles},
            passport.key_scaling,
            derive(passport.seed, "key", entry.origin or path),
        )
        for path, entry in passport.layers.items()
    }
    return _moved(passport, made)


def _moved(passport, keys: Mapping) -> Mapping:
    """Keys for rows in their own order, for where they are stored now.

    Args:
        passport: A `Passport`.
        keys: Dict from path to dict from role to key, in the entries' order.
    """
    entries = passport.layers
    if not any(entry.own_rows for entry in entries.values()):
        return keys
    orders = orders_of(passport)
    return {
        path: {
            role: entries[path].geometry.moved(key, orders[path])
            if entries[path].own_rows
            else key
            for role, key in by_role.items()
        }
        for path, by_role in keys.items()
    }


def rows_of(passport) -> dict[str, np.ndarray]:
    """See `Passport.rows`."""
    rows = {}
    for path, keys in passport.keys().items():
        parts = [key.ravel() for key in keys.values()]
        order = order_of(passport, path)
        if order is not None:
            parts.append(order)
        rows[path] = np.concatenate(parts)[None]
    return rows


def pack(passport, spec) -> np.ndarray:
    """See `Passport.pack`."""
    function, geometries, offsets = layers_of(read_spec(spec))
    check_function(function, passport.function.name, "the spec's")
    names = match(geometries, passport.geometries)
    fitted = remaking.fitted(passport, names, geometries)
    rows = list(fitted.rows().values())
    ends = [0, *np.cumsum([row.size for row in rows]).tolist()]
    if offsets != ends:
        raise PassportError(
            "Expected a spec whose offsets and size add up to "
            f"{ends[-1]}. Received: size {shown(offsets[-1])}, "
            f"{len(offsets) - 1} offsets"
        )
    packed = np.concatenate(rows, axis=1)
    if not np.all(np.isfinite(packed)):
        raise PassportError(
            "Expected keys of finite numbers. Received: NaN or infinity"
        )
    return packed


def read_spec(spec) -> Mapping:
    """The spec itself, of a protected model, or of a JSON file or a folder.

    Raises:
        PassportError: If there is none.
    """
    if isinstance(spec, Mapping):
        return spec
    if not isinstance(spec, (str, os.PathLike)):
        # There is no model where Keras has not been imported.
        keras = sys.modules.get("keras")
        if keras is None or not isinstance(spec, keras.Model):
            raise PassportError(
                "Expected a spec as passport_spec returns it, a file or "
                "folder that holds one, or a protected model. "
                f"Received: a {type(spec).__name__}"
            )
        return above("serving.passport_input").passport_spec(spec)
    path = pathlib.Path(spec)
    try:
        if path.is_dir():
            path = path / "assets" / SPEC_FILE
        with files.open_regular(path) as file:
            text = file.read(_LARGEST_SPEC + 1)
        if len(text) > _LARGEST_SPEC:
            raise ValueError(f"more than {_LARGEST_SPEC:,} bytes")
        return json.loads(text)
    except (OSError, RecursionError, ValueError) as error:
        said = getattr(error, "strerror", None) or error
        raise PassportError(
            f"Expected the JSON of a passport spec at '{shown(path)}'. "
            f"Received: {type(error).__name__}: {shown(said)}"
        ) from None


def layers_of(spec: Mapping) -> tuple[str, dict[str, Geometry], list[int]]:
    """What a spec says of a passport.

    Returns:
        Tuple of the passport function's name, a dict from path to geometry,
        and where each layer's keys begin, followed by the number of all.

    Raises:
        PassportError: If it is no spec, or one of another version.
    """
    try:
        version, function = spec["version"], spec["function"]
        geometries = {
            layer["path"]: Geometry.from_dict(layer["geometry"])
            for layer in spec["layers"]
        }
        offsets = [layer["offset"] for layer in spec["layers"]]
        offsets.append(spec["size"])
        if not all(isinstance(path, str) for path in geometries):
            raise TypeError("a path that is no string")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise PassportError(
            "Expected a spec as passport_spec returns it. Received: one that "
            f"can't be read ({type(error).__name__}: {shown(error)})"
        ) from None
    if version != SPEC_VERSION:
        raise PassportError(
            f"Expected a spec of version {SPEC_VERSION}. "
            f"Received: version {shown(version)}"
        )
    return function, geometries, offsets


def check_function(expected: str, received: str, whose: str) -> None:
    """Raises `PassportError` unless both name one passport function."""
    if expected != received:
        raise PassportError(
            f"Expected a passport for function {shown(expected)}, {whose}. "
            f"Received: one for {received}"
        )
