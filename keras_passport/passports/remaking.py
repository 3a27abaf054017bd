"""Feature maps made anew, of a passport whose file holds their keys alone."""

import copy
import dataclasses
import math
from collections.abc import Iterable, Mapping

import numpy as np

from keras_passport.errors import PassportError
from keras_passport.lazy import above
from keras_passport.passports.derivation import (
    FAKE,
    PASSPORT,
    array_hash,
    derive,
)
from keras_passport.passports.draws import uniform
from keras_passport.passports.entries import ROLES, PassportEntry
from keras_passport.passports.geometry import digest
from keras_passport.passports.matching import few_of
from keras_passport.texts import shown

# Of a key's norm. Machines differ in a reference's last bits; another image
# or another network differs by far more.
_TOLERANCE = 1e-2


def feature_maps(passport, model=None, reference=None) -> dict[str, tuple]:
    """See `Passport.feature_maps`."""
    wanted = {
        path: [
            role
            for role in passport.function.roles
            if getattr(entry, f"{role}_record") is not None
        ]
        for path, entry in passport.layers.items()
    }
    wanted = {path: roles for path, roles in wanted.items() if roles}
    made = _made(passport, wanted, model, reference) if wanted else {}
    return {
        path: tuple(
            made.get((path, role), getattr(entry, role)) for role in ROLES
        )
        for path, entry in passport.layers.items()
    }


def check(passport, model=None, reference=None) -> None:
    """Makes all maps anew, those that the passport holds as well.

    Args:
        passport: Of random patterns, or an image kind.
        model: As for `Passport.feature_maps`, and so is the next.
        reference: The network that images go through.

    Raises:
        PassportError: If they are others.
    """
    wanted = {path: passport.function.roles for path in passport.layers}
    _made(passport, wanted, model, reference)


def _made(passport, wanted, model, reference):
    if passport.kind == "random_pattern":
        return _drawn(passport, wanted)
    return _seen(passport, wanted, model, reference)


def _drawn(passport, wanted):
    made = {}
    for path, roles in wanted.items():
        for role in roles:
            record = passport.layers[path].record(role)
            if record is None:
                raise _another(path, role, "nothing is known of it but a key")
            for domain in (PASSPORT, FAKE):
                drawn = uniform(
                    derive(passport.seed, domain, path, role), record.shape
                )
                if array_hash(drawn) == record.sha256:
                    made[path, role] = drawn
                    break
            else:
                raise _another(path, role, "the seed makes another one")
    return made


def drawn(passport, path: str, role: str) -> np.ndarray:
    """One feature map of a random pattern, made anew of the seed."""
    return _drawn(passport, {path: [role]})[path, role]


def _seen(passport, wanted, model, reference):
    if model is None or reference is None or passport.images is None:
        raise PassportError(
            "Expected the protected model and the reference that the passport "
            "was made with: its file holds keys and identity images, of which "
            "the reference makes the feature maps anew. Received: "
            f"model={'one' if model is not None else None}, "
            f"reference={'one' if reference is not None else None}"
        )
    features = above("models.features")
    names = passport.match(model)
    images = features.check_images(model, passport.images)
    numbers = {
        path: {
            role: getattr(passport.layers[path], f"{role}_image")
            for role in roles
        }
        for path, roles in wanted.items()
    }
    seen = features.layer_inputs(
        model,
        reference,
        images,
        {
            path: {*numbers[given].values()} - {None}
            for path, given in names.items()
            if given in numbers
        },
    )
    seen = {names[path]: maps for path, maps in seen.items()}
    made = {}
    for path, by_role in numbers.items():
        entry = passport.layers[path]
        for role, index in by_role.items():
            value = seen[path].get(index)
            if value is None:
                raise _another(path, role, "no image is named for it")
            key = entry.key(role)
            gap = np.linalg.norm(digest(value, entry.geometry) - key)
            if not gap <= _TOLERANCE * np.linalg.norm(key):
                raise _another(path, role, "this reference makes another one")
            made[path, role] = value
    return made


def fitted(passport, names: Mapping[str, str], geometries: Mapping):
    """See `Passport.fitted`.

    Args:
        passport: The passport.
        names: Dict from a model's paths to the passport's, as `match` has it.
        geometries: Dict from the model's paths to geometries.
    """
    if list(names.items()) == [
        (path, path) for path in passport.layers
    ] and all(geometries[p] == passport.layers[p].geometry for p in names):
        return passport
    fitted = copy.copy(passport)
    fitted.layers = {}
    for path, given in names.items():
        entry = passport.layers[given]
        if entry.geometry != geometries[path]:
            entry = dataclasses.replace(
                entry,
                geometry=geometries[path],
                own_rows=geometries[path].moves_keys,
            )
        fitted.layers[path] = _moved(entry, given, path)
    return fitted


def with_hidden_rows(passport) -> list:
    """The passport for networks whose rows `hide_rows` hid in versions before.

    Of layers with one kernel and one block of inputs, such as nearly all are.
    Keys for what it hides now are the passport's own.

    Returns:
        A list with it; an empty one if all rows have an order by themselves.
    """
    moved = copy.copy(passport)
    moved.layers = {
        path: dataclasses.replace(
            entry,
            geometry=dataclasses.replace(
                entry.geometry,
                ordered_rows=(math.prod(entry.geometry.filter_shape),),
            ),
            own_rows=True,
        )
        for path, entry in passport.layers.items()
        if not entry.geometry.ordered_rows
    }
    return [moved] if moved.layers else []


def renamed(passport, names: Mapping[str, str]):
    """See `Passport.renamed`."""
    names = dict(names)
    unknown = set(names) - set(passport.layers)
    layers = {
        new: _moved(entry, path, new)
        for path, entry in passport.layers.items()
        for new in [names.get(path, path)]
    }
    if unknown or not all(isinstance(path, str) for path in layers):
        received = "a new path that is no text"
        if unknown:
            received = f"unknown: {few_of(unknown)}"
        raise PassportError(
            "Expected a dict from paths of the passport's layers to new "
            f"ones. Received: {received}"
        )
    if len(layers) != len(passport.layers):
        raise PassportError(
            f"Expected {len(passport.layers)} different paths. "
            f"Received: {len(layers)}"
        )
    renamed = copy.copy(passport)
    if passport.kind == "random_pattern":
        # Maps would be drawn anew by their paths: others. Keys stay.
        renamed.kind = "feature_maps"
        roles = passport.function.roles
        layers = {
            path: PassportEntry(
                entry.geometry,
                origin=entry.origin,
                order_seed=entry.order_seed,
                own_rows=entry.own_rows,
                **{f"{role}_key": entry.key(role) for role in roles},
            )
            for path, entry in layers.items()
        }
    renamed.layers = layers
    return renamed


def part(passport, paths: Iterable[str]):
    """See `Passport.part`."""
    wanted = [paths] if isinstance(paths, str) else list(paths)
    unknown = [path for path in wanted if path not in passport.layers]
    if unknown or not wanted:
        raise PassportError(
            "Expected paths of the passport's layers, one at least. Received: "
            f"{f'unknown: {few_of(unknown)}' if unknown else 'none'}"
        )
    kept = copy.copy(passport)
    kept.layers = {
        path: entry for path, entry in passport.layers.items() if path in wanted
    }
    return kept


def _moved(entry, old: str, new: str) -> PassportEntry:
    """A layer's entry under another path: its key and order stay the same.

    Rows that have no order now may be given one, by `hide_rows`.
    """
    if old == new:
        return entry
    origin = entry.origin or old
    return dataclasses.replace(entry, origin=None if origin == new else origin)


def _another(path, role, why) -> PassportError:
    return PassportError(
        f"Expected the feature map of {role} of layer '{shown(path)}' to be "
        f"made anew. Received: {why}"
    )
