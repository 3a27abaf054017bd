"""`trace`: the licensee whose key, γ and β, or model a leak came from."""

import dataclasses
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any

import keras
import numpy as np
from scipy import stats

from keras_passport.errors import PassportError
from keras_passport.layers.protected import protected_layers
from keras_passport.licensing import codes
from keras_passport.licensing.codes import NOBODY, STRIPPED
from keras_passport.ownership import networks
from keras_passport.ownership.alignment import align
from keras_passport.passports.entries import ROLES
from keras_passport.passports.passport import Passport
from keras_passport.secrecy import hidden, type_of
from keras_passport.texts import chance, shown

# A leak whose γ and β have less in common with the owner's is another's.
_RELATED = 0.5
_OWN = 1e-4
# Kinds of dtype; that of bfloat16 is NumPy's for what it does not know.
_NO_NUMBERS = "cOSUmM"


@dataclasses.dataclass(frozen=True)
class Trace:
    """Whose a leak is.

    Args:
        verdict: A licensee's name; `"stripped"` for a key to this network
            without a mark; `"nobody"` for the owner's own, or one of another
            network.
        licensees: All who are named, the surest first.
        scores: Dict from each licensee to the larger of their two scores, in
            standard deviations.
        bound: On the chance that anybody who is named is innocent.
        marks: Dict from each mark to the names that it gives.
    """

    verdict: str
    licensees: tuple[str, ...]
    scores: dict
    bound: float
    marks: dict

    def __str__(self):
        if not self.licensees:
            return f"{self.verdict}: no licensee's mark was found"
        return "\n".join(
            [f"{', '.join(map(shown, self.licensees))}"]
            + [
                f"  by the {mark} mark: {', '.join(map(shown, names)) or '-'}"
                for mark, names in self.marks.items()
            ]
            + [f"  chance of a false accusation at most {chance(self.bound)}"]
        )

    def to_dict(self) -> dict:
        """The trace as JSON values."""
        return {
            **dataclasses.asdict(self),
            "licensees": list(self.licensees),
        }


def trace(leak: Any, ledger: Any, licensor: Any, bound: float = 1e-6) -> Trace:
    """Names the licensee from whom a leak came.

    Args:
        leak: A `Passport` or licence; packed keys, `(1, K)` or `(K,)`; a dict
            from path to γ and β, arrays `(channels,)`, `None` for what is not
            known; or a Keras model, unlocked, folded or not.
        ledger: `Ledger`, or names of all licensees.
        licensor: The `Licensor` who issued the licences.
        bound: Chance that anybody is accused falsely, over all licensees.

    Returns:
        A `Trace`.

    Raises:
        PassportError: If the leak is nothing of that, or does not fit the
            network.
        ValueError: If `bound` is no chance.

    Example:

    >>> licensor = kp.licensing.Licensor(
    ...     passport, model, kp.ownership.new_secret()
    ... )
    >>> leak = licensor.issue("Eve").packed().astype("float16")
    >>> kp.licensing.trace(leak, ["Bob", "Eve"], licensor).verdict
    'Eve'
    """
    names = getattr(ledger, "licensees", ledger)
    # A text is a list of letters.
    is_list = isinstance(names, Iterable) and not isinstance(names, str | bytes)
    names = list(names) if is_list else []
    if not names or not all(isinstance(name, str) for name in names):
        raise PassportError(
            "Expected a ledger with licences, or the licensees' names. "
            f"Received: a {type_of(ledger)}"
        )
    names = list(dict.fromkeys(names))  # Named twice, it is one suspect.
    if not (isinstance(bound, Real) and 0 < bound < 1):
        raise ValueError(
            "Expected bound to be a chance between 0 and 1, such as 1e-6. "
            f"Received: bound={bound!r}"
        )
    keys, values = _read(hidden(leak), licensor)
    for array in (*(keys or {}).values(), *values.values()):
        if not np.all(np.isfinite(array)):
            raise PassportError(
                "Expected a leak of finite numbers. Received: NaN or infinity"
            )
    # Which of a licensee's words the ledger holds. Names alone have the first.
    words = {
        entry["licensee"]: codes.word_in(entry)
        for entry in getattr(ledger, "entries", ())
    }
    numbers = np.array([words.get(name, 0) for name in names])
    own = _distance(values, licensor)
    found = {}
    if keys is not None and licensor.null_strength > 0:
        found["null-space"] = _null_scores(keys, names, numbers, licensor)
    if licensor.range_strength > 0 and values:
        found["range"] = _range_scores(values, names, numbers, licensor)
    best = np.full(len(names), -np.inf if found else 0.0)
    chance = np.ones(len(names))
    marks = {}
    for mark, (scores, chances) in found.items():
        # Any of the words that were tried could have had such a score.
        chances = np.minimum(chances * (1 + numbers), 1.0)
        named = chances * len(names) * len(found) < bound
        marks[mark] = [
            names[number] for number in np.argsort(-scores) if named[number]
        ]
        best = np.maximum(best, scores)
        chance = np.minimum(chance, chances)
    guilty = [n for n in np.argsort(chance) if _is_named(names[n], marks)]
    if guilty:
        verdict = names[guilty[0]]
    else:
        is_own = own < _OWN and (keys is None or _is_own(keys, licensor))
        verdict = NOBODY if is_own or own > _RELATED else STRIPPED
    return Trace(
        verdict=verdict,
        licensees=tuple(names[number] for number in guilty),
        scores=dict(zip(names, map(float, best), strict=True)),
        bound=float(
            min(1.0, sum(chance[n] for n in guilty) * len(names) * 2)
            if guilty
            else 1.0
        ),
        marks=marks,
    )


def _is_named(name, marks) -> bool:
    return any(name in named for named in marks.values())


def _read(leak, licensor) -> tuple:
    """A leak's keys, if it has any, and its γ and β, in the owner's terms."""
    if isinstance(leak, Passport):
        keys = leak.fitted(licensor.model).keys()
    elif isinstance(leak, keras.Model):
        if protected_layers(leak):
            raise PassportError(
                "Expected a model with γ and β of its own, unlocked or folded: "
                "a protected one has none, and says nothing of whom it was "
                f"bound for. Received: '{shown(leak.name)}' with passport "
                "layers; trace the passport that was found with it"
            )
        return None, _of_model(leak, licensor)
    elif isinstance(leak, Mapping):
        return None, _of_parameters(leak, licensor)
    elif isinstance(leak, np.ndarray):
        keys = _unpacked(leak, licensor)
    else:
        raise PassportError(
            "Expected a passport, packed keys, γ and β by layer, or a Keras "
            f"model. Received: a {type_of(leak)}"
        )
    keys = {
        place: np.asarray(keys[place[0]][place[1]], "float64")
        for place in licensor.places
    }
    values = {
        place: licensor.places[place].parameters(key)
        for place, key in keys.items()
    }
    return keys, values


def _unpacked(packed, licensor) -> dict:
    if packed.dtype.kind in _NO_NUMBERS:
        raise PassportError(
            f"Expected packed keys of numbers. Received: dtype={packed.dtype}"
        )
    packed = np.asarray(packed, "float64").reshape(-1)
    # A layer's order of rows, which is everybody's, comes after its keys.
    orders = {
        path: entry.geometry.order_size
        for path, entry in licensor.passport.layers.items()
    }
    sizes = sum(place.key.size for place in licensor.places.values())
    needed = sizes + sum(orders.values())
    # Of a licence that was packed for rows in their own order.
    own = {path: 0 for path in licensor.orders}
    is_own = packed.size == sizes + sum({**orders, **own}.values()) != needed
    if is_own:
        orders = {**orders, **own}
    elif packed.size != needed:
        raise PassportError(
            f"Expected packed keys of {needed} numbers. Received: {packed.size}"
        )
    keys: dict = {}
    at = 0
    for path, rows in orders.items():
        for role in licensor.passport.function.roles:
            place = licensor.places[path, role]
            part = packed[at : at + place.key.size].reshape(place.key.shape)
            part = licensor.moved(path, part) if is_own else part
            keys.setdefault(path, {})[role] = part
            at += place.key.size
        at += rows
    return keys


def _of_parameters(leak, licensor) -> dict:
    values = {}
    for path, role in licensor.places:
        pair = leak.get(path, (None, None))
        if not isinstance(pair, (tuple, list)) or len(pair) != len(ROLES):
            raise PassportError(
                f"Expected γ and β of '{shown(path)}' in a tuple of two, None "
                f"for what is not known. Received: a {type_of(pair)}"
            )
        given = pair[ROLES.index(role)]
        if given is None:
            continue
        given = np.asarray(given)
        if given.dtype.kind in _NO_NUMBERS:
            raise PassportError(
                f"Expected {role} of '{shown(path)}' to be numbers. "
                f"Received: dtype={given.dtype}"
            )
        given = given.astype("float64").reshape(-1)
        if given.shape != licensor.places[path, role].values.shape:
            raise PassportError(
                f"Expected {role} of '{shown(path)}' to have shape "
                f"{licensor.places[path, role].values.shape}. Received: "
                f"shape={given.shape}"
            )
        values[path, role] = given
    if not values:
        raise PassportError(
            "Expected γ or β of at least one protected layer. Received: none"
        )
    return values


def _of_model(model, licensor) -> dict:
    """γ and β of an unlocked model, whatever it made of statistics.

    A layer computes a·u + b of u = conv(x); so does the owner's, with
    a = γ/σ and b = β - γμ/σ.
    """
    orders = networks.orders(licensor.model, licensor.passport)
    owners = {
        layer.path: layer for layer in networks.read(licensor.model, orders)
    }
    values = {}
    for match in align(list(owners.values()), networks.read(model)):
        owner, found = owners[match.path], match.found
        if match.path not in protected_layers(licensor.model):
            continue
        slope, shift = match.signs * match.sizes, np.zeros(match.order.size)
        if found.beta is not None:
            shift = found.beta[match.order]
        if found.gamma is not None or found.mean is not None:
            scale = np.ones(found.filters)
            if found.gamma is not None:
                scale = found.gamma
            if found.variance is not None:
                scale = scale / np.sqrt(found.variance)
            slope = slope * scale[match.order]
            if found.mean is not None:
                shift = shift - (scale * found.mean)[match.order]
        deviation = 1.0 if owner.variance is None else np.sqrt(owner.variance)
        mean = 0.0 if owner.mean is None else owner.mean
        known = {"gamma": slope * deviation, "beta": shift + slope * mean}
        for role, value in known.items():
            if (match.path, role) in licensor.places:
                values[match.path, role] = value
    if not values:
        raise PassportError(
            "Expected a model with the network's layers. Received: one "
            "without any"
        )
    return values


def _distance(values, licensor) -> float:
    """How far γ and β are from the owner's, in relation to theirs."""
    gap = size = 0.0
    for place, value in values.items():
        mine = licensor.places[place].values
        gap += float(np.sum((value - mine) ** 2))
        size += float(np.sum(mine**2))
    return float(np.sqrt(gap / max(size, 1e-300)))


def _is_own(keys, licensor) -> bool:
    return all(
        np.linalg.norm(key - licensor.places[place].key)
        <= _OWN * np.linalg.norm(licensor.places[place].key)
        for place, key in keys.items()
    )


def _null_scores(keys, names, numbers, licensor) -> tuple:
    """Scores of a normal law for the innocent, by their part of a key."""
    parts = {}
    for place, key in keys.items():
        at = licensor.places[place]
        part = at.space.null_part(key - at.key)
        # A projected key has rounding there, and nothing else.
        if np.linalg.norm(part) > 1e-3 * np.linalg.norm(at.key):
            parts[place] = part / np.linalg.norm(at.key)
    if not parts:
        return np.zeros(len(names)), np.ones(len(names))
    norm = np.sqrt(sum(np.sum(part**2) for part in parts.values()))
    scores = np.empty(len(names))
    for at, (name, number) in enumerate(zip(names, numbers, strict=True)):
        scores[at] = sum(
            np.sum(part * licensor.drawn(name, *place, number))
            for place, part in parts.items()
        )
    scores /= norm
    return scores, stats.norm.sf(scores)


def _range_scores(values, names, numbers, licensor) -> tuple:
    leaks, chances, told = [], [], []
    for place, value in values.items():
        at = licensor.places[place]
        if not at.holds_bits:
            continue
        leaks.append((value - at.values) / at.size)
        chances.append(at.chances)
        told.append(place)
    if not told:
        return np.zeros(len(names)), np.ones(len(names))
    words = np.stack(
        [
            np.concatenate(
                [licensor.bits(name, *place, number) for place in told]
            )
            for name, number in zip(names, numbers, strict=True)
        ]
    )
    return codes.score(np.concatenate(leaks), words, np.concatenate(chances))
