"""Licences: keys to one network, each with its holder's marks."""

import dataclasses
import functools
import math
import numbers
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_passport.errors import PassportError
from keras_passport.layers import offsets, spaces
from keras_passport.layers.protected import protected_layers
from keras_passport.licensing import codes
from keras_passport.licensing.ledger import Ledger
from keras_passport.ownership.claim_secret import check_secret
from keras_passport.passports import specs
from keras_passport.passports.derivation import derive
from keras_passport.passports.entries import PassportEntry
from keras_passport.passports.passport import Passport, check_passport
from keras_passport.secrecy import hidden, type_of
from keras_passport.texts import shown

# A per cent of γ and β costs no accuracy to speak of.
RANGE_STRENGTH = 0.01
# As a part of a key's norm.
NULL_STRENGTH = 0.5
# Words of one licensee that are tried before none will do.
_WORDS = 30
_LONGEST_NAME = 200


class Licence(Passport):
    """A licensee's own passport: `bind`, `save`, `pack` it as any other.

    `Licensor.issue` makes it; its file is a passport's, in which no name
    stands.
    """

    licensee: str | None = None


class Licensor:
    """Issues licences to a network, and says whose a leak is.

    Two marks are in each key:

    - the null-space mark, κ + n with Wᵀn = 0 and n from
      HMAC(secret, licensee): exactly the same network, and found again in a
      key of any precision. An expert strips it by projecting the key onto the
      range of W, or by leaking γ and β instead, and it is gone where kernels
      were trained on;
    - the range mark: γ and β are changed by about a per cent of their size, by
      a Tardos code over all channels. It is found again in projected keys, in
      γ and β, in an unlocked model, and in averages and mixtures of several
      keys. Whoever trains γ and β on for long enough loses it.

    Args:
        passport: The owner's.
        model: The protected model.
        secret: 32 bytes, such as `ownership.new_secret()`, which no licensee
            ever sees.
        range_strength: The range mark's size, in the root mean square of a
            layer's γ or β; 0 for none.
        null_strength: The null-space mark's size, in the norm of a key; 0 for
            none.

    Raises:
        PassportError: If the passport does not fit the model, or the secret
            is none.
        ValueError: If a strength is negative, infinite, or no number.

    Example:

    >>> secret = kp.ownership.new_secret()
    >>> licensor = kp.licensing.Licensor(passport, model, secret)
    >>> licensor.issue("Bob & Co").save("bob.h5")
    >>> licensor.trace(kp.Passport.load("bob.h5"), ["Bob & Co", "Eve"]).verdict
    'Bob & Co'
    """

    def __init__(
        self,
        passport: Passport,
        model: keras.Model,
        secret: bytes,
        *,
        range_strength: float = RANGE_STRENGTH,
        null_strength: float = NULL_STRENGTH,
    ):
        passport, secret = hidden(passport), hidden(secret)
        # What shows locals asks for a `repr` when the rest raises, too.
        self._layers, self.places = {}, {}
        check_passport(passport)
        check_secret(secret)
        if not all(
            isinstance(strength, numbers.Real) and 0 <= strength < math.inf
            for strength in (range_strength, null_strength)
        ):
            raise ValueError(
                "Expected finite strengths of 0 or more. Received: "
                f"range_strength={range_strength}, "
                f"null_strength={null_strength}"
            )
        self.secret = secret
        self.range_strength = float(range_strength)
        self.null_strength = float(null_strength)
        self.model = model
        self.passport = passport.fitted(model)
        self._layers = protected_layers(model)
        keys = self.passport.keys()
        # Of rows that were hidden after the training: a licence is for the
        # network of before, and of after.
        entries, orders = self.passport.layers, specs.orders_of(self.passport)
        self.orders = {
            path: order
            for path, order in orders.items()
            if entries[path].own_rows or entries[path].geometry.gathered
        }
        for path, layer in self._layers.items():
            space = spaces.of_layer(layer, orders.get(path))
            for role, key in keys[path].items():
                key = hidden(np.asarray(key, "float64"))
                offset = offsets.of(layer, role)
                values = space.response(key) + offset
                self.places[path, role] = Place(
                    space=space,
                    offset=offset,
                    key=key,
                    values=values,
                    size=self.range_strength
                    * float(np.sqrt(np.mean(np.square(values)))),
                    chances=codes.biases(secret, path, role, values.size),
                )

    def __repr__(self):
        return (
            f"<Licensor, {len(self._layers)} layers, "
            f"{self.positions} positions>"
        )

    @property
    def positions(self) -> int:
        """How many channels of γ and β hold a bit."""
        return sum(
            place.values.size
            for place in self.places.values()
            if place.holds_bits
        )

    def issue(
        self,
        licensee: str,
        ledger: Ledger | None = None,
        accept: Callable[[Licence], bool] | None = None,
        word: int = 0,
    ) -> Licence:
        """A licensee's key. The same name and word always give the same.

        A range mark of a per cent turns the decision on one example in a
        hundred, for better or worse; so the accuracy under a licence differs
        by chance from the owner's. `accept` keeps that as small as is wanted.

        Args:
            licensee: A name, at most 200 characters.
            ledger: `Ledger` to write it down in, before it is given out;
                `None` for none.
            accept: Function of a licence that says whether it is good enough,
                such as that its accuracy is within 0.1 points; if not, the
                licensee's next word is tried. `None` for any. The ledger
                holds which word it became.
            word: Which of the licensee's words it is, or `accept` begins
                with: that of the ledger, to make a licence again.

        Returns:
            A `Licence`.

        Raises:
            PassportError: If the name is none, or has a licence in the
                ledger, what is given as one is none, or 30 words are not good
                enough.

        Example:

        >>> x, y = test
        >>> def accuracy(key):
        ...     scores = kp.bind(model, key).predict(x, verbose=0)
        ...     return (scores.argmax(-1) == y).mean()
        >>> expected = accuracy(passport)
        >>> licensor = kp.licensing.Licensor(
        ...     passport, model, kp.ownership.new_secret()
        ... )
        >>> licence = licensor.issue(
        ...     "Bob", accept=lambda key: abs(accuracy(key) - expected) < 0.02
        ... )
        """
        if (
            not isinstance(licensee, str)
            or not 0 < len(licensee) <= _LONGEST_NAME
        ):
            raise PassportError(
                f"Expected a name of 1 to {_LONGEST_NAME} characters. "
                f"Received: {shown(licensee, 80)!r}"
            )
        if licensee in codes.NO_NAMES:
            raise PassportError(
                f"Expected a name other than {' or '.join(codes.NO_NAMES)}, "
                "which say that a leak names nobody. "
                f"Received: '{licensee}'"
            )
        codes.check_word(word)
        if ledger is not None:
            _check_ledger(ledger)
        if not (accept is None or callable(accept)):
            raise PassportError(
                "Expected accept to be a function of a licence. "
                f"Received: a {type_of(accept)}"
            )
        for number in range(word, word + _WORDS):
            licence = self._made(licensee, number)
            if accept is None or accept(licence):
                break
        else:
            raise PassportError(
                f"Expected accept to take one of {_WORDS} words of "
                f"'{shown(licensee)}'. Received: it took none; a smaller "
                f"range_strength than {self.range_strength} changes less"
            )
        if ledger is not None:
            ledger.append(
                licensee,
                fingerprint=licence.fingerprint,
                range_strength=self.range_strength,
                null_strength=self.null_strength,
                word=number,
            )
        return licence

    def again(self, licensee: str, ledger: Ledger) -> Licence:
        """A licence that was issued before, as for a licensee who lost it.

        Args:
            licensee: Who has one.
            ledger: Where it is written down.

        Returns:
            The same `Licence`.

        Raises:
            PassportError: If the ledger has none, or not its fingerprint, or
                it was made of another passport, or with other strengths.

        Example:

        >>> secret = kp.ownership.new_secret()
        >>> licensor = kp.licensing.Licensor(passport, model, secret)
        >>> ledger = kp.licensing.Ledger("ledger.jsonl", secret)
        >>> licence = licensor.issue("Bob", ledger)
        >>> licensor.again("Bob", ledger).fingerprint == licence.fingerprint
        True
        """
        _check_ledger(ledger)
        entries = {entry["licensee"]: entry for entry in ledger.entries}
        if not isinstance(licensee, str) or licensee not in entries:
            raise PassportError(
                "Expected a licensee of the ledger. Received: "
                f"'{shown(licensee, 80)}', who has no licence"
            )
        entry = entries[licensee]
        if "fingerprint" not in entry:
            raise PassportError(
                "Expected a ledger that issue wrote. Received: one without "
                f"the fingerprint of what '{shown(licensee)}' has"
            )
        licence = self._made(licensee, codes.word_in(entry))
        if licence.fingerprint != entry["fingerprint"]:
            raise PassportError(
                f"Expected the passport and strengths that '{shown(licensee)}' "
                "has a licence of. Received: others"
            )
        return licence

    def _made(self, licensee: str, word: int) -> Licence:
        keys: dict = {path: {} for path in self._layers}
        for (path, role), place in self.places.items():
            key = place.key + self.range_mark(licensee, path, role, word)
            key = key + self.null_mark(licensee, path, role, word)
            key = self.moved(path, key, back=True)
            keys[path][f"{role}_key"] = np.asarray(key).astype("float32")
        entries = {
            path: PassportEntry(
                layer.geometry.in_own_order()
                if path in self.orders
                else layer.geometry,
                # The owner's: rows may yet be given it.
                order_seed=specs.order_seed(self.passport, path),
                **keys[path],
            )
            for path, layer in self._layers.items()
        }
        licence = Licence(
            "feature_maps",
            self.passport.function,
            entries,
            derive(self.secret, "licensing", "seed", *_named(licensee, word)),
        )
        licence.licensee = licensee
        return licence

    def moved(
        self, path: str, key: np.ndarray, back: bool = False
    ) -> np.ndarray:
        """A key for rows in their own order, for where they are now.

        Args:
            path: Of the layer.
            key: Float array of a key's shape.
            back: Whether it is the other way round.
        """
        geometry = self._layers[path].geometry
        if path not in self.orders or geometry.gathered:
            return key
        return geometry.moved(key, self.orders[path], back)

    def trace(self, leak: Any, ledger: Any, bound: float = 1e-6) -> Any:
        """Whose key leaked; see `tracing.trace`.

        Args:
            leak: What was found.
            ledger: `Ledger`, or names of all licensees.
            bound: Chance that anybody is accused falsely.

        Returns:
            A `Trace`.
        """
        from keras_passport.licensing import tracing

        return tracing.trace(leak, ledger, self, bound)

    def bits(
        self, licensee: str, path: str, role: str, word: int = 0
    ) -> np.ndarray:
        """A licensee's word at a layer, `(channels,)` of 1 and -1."""
        chances = self.places[path, role].chances
        name, *number = _named(licensee, word)
        return codes.word(self.secret, chances, name, path, role, *number)

    def range_mark(
        self, licensee: str, path: str, role: str, word: int = 0
    ) -> np.ndarray:
        """The key's smallest change that changes γ or β by the word."""
        place = self.places[path, role]
        if place.size == 0:
            return hidden(np.zeros(place.key.shape))
        bits = self.bits(licensee, path, role, word)
        return place.space.solve(place.size * bits)

    def drawn(
        self, licensee: str, path: str, role: str, word: int = 0
    ) -> np.ndarray:
        """What the null-space mark is the part of, in a key's shape."""
        key = self.places[path, role].key
        name, *number = _named(licensee, word)
        labels = ("null", name, path, role, *number)
        noise = codes.noise(self.secret, key.size, *labels)
        return self.moved(path, noise.reshape(key.shape))

    def null_mark(
        self, licensee: str, path: str, role: str, word: int = 0
    ) -> np.ndarray:
        """What a licensee's key has in the null space of Wᵀ."""
        place = self.places[path, role]
        if self.null_strength == 0 or place.space.freedom == 0:
            return hidden(np.zeros(place.key.shape))
        mark = place.space.null_part(self.drawn(licensee, path, role, word))
        norm = np.linalg.norm(place.key) or 1.0
        return mark * (self.null_strength * norm / np.sqrt(place.space.freedom))


def _check_ledger(ledger) -> None:
    if not isinstance(ledger, Ledger):
        raise PassportError(
            "Expected a licensing.Ledger(path, secret). "
            f"Received: a {type_of(ledger)}"
        )


def _named(licensee: str, word: int) -> tuple[str, ...]:
    """Labels of a licensee's word; the first one's are the name alone."""
    return (licensee, str(word)) if word else (licensee,)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Place:
    """One role of one layer: where a part of the marks stands.

    Args:
        space: The layer's `Space`.
        offset: What the layer adds to γ or β.
        key: The owner's, float64.
        values: γ or β of it, `(channels,)`.
        size: Of the range mark, in the unit of `values`.
        chances: Biases of the code's positions.
    """

    space: object
    offset: np.ndarray | float
    key: np.ndarray
    values: np.ndarray
    size: float
    chances: np.ndarray

    @functools.cached_property
    def holds_bits(self) -> bool:
        """Whether the range mark is more than float32 rounds.

        That of a β of 0 is not: there rounding would count as a leak's, and
        in the mark's size it would hide all other marks.
        """
        return self.size > self.space.rounding(self.key)

    def parameters(self, key: np.ndarray) -> np.ndarray:
        """γ or β of another key, `(channels,)`."""
        return self.space.response(key) + self.offset


def issue_licence(
    passport: Passport,
    model: keras.Model,
    licensee: str,
    secret: bytes,
    ledger: Any = None,
) -> Licence:
    """A licensee's own key to a network (see `Licensor`, which issues many).

    Args:
        passport: The owner's.
        model: The protected model.
        licensee: A name.
        secret: 32 bytes that no licensee ever sees.
        ledger: `Ledger` to write it down in; `None` for none.

    Returns:
        A `Licence`.

    Raises:
        PassportError: As `Licensor` and `Licensor.issue` raise it.

    Example:

    >>> secret = kp.ownership.new_secret()
    >>> licence = kp.licensing.issue_licence(
    ...     passport, model, "Bob & Co", secret
    ... )
    >>> model = kp.bind(model, licence)
    """
    return Licensor(passport, model, secret).issue(licensee, ledger)
