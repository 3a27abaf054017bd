"""Words that tell licensees apart, even several who put theirs together.

A Tardos code: each position has a secret bias, each word's bit there is drawn
with it, and where a leak shows what is rare, those who have the rare bit are
suspected most. Whoever had no part in a leak has scores of mean 0 and variance
1, whatever was done to it, so that a false accusation has a bound that holds
for any attack.

Reference:

- Tardos: Optimal probabilistic fingerprint codes, STOC 2003.
- Škorić, Katzenbeisser, Celik: Symmetric Tardos fingerprinting codes for
  arbitrary alphabet sizes, 2008.
"""

import math

import numpy as np
from scipy import special

from keras_passport.errors import PassportError
from keras_passport.passports import draws
from keras_passport.passports.derivation import derive
from keras_passport.secrecy import hidden
from keras_passport.texts import shown

# What a trace says in a name's place.
NO_NAMES = NOBODY, STRIPPED = "nobody", "stripped"
# Biases nearer to 0 or 1 make scores with long tails.
_CUTOFF = 0.05
_STEPS = np.geomspace(0.1, 24.0, 40)[:, None]
# What changes more than this many times the mark's size is no mark.
_LARGEST = 3.0


def biases(secret: bytes, path: str, role: str, count: int) -> np.ndarray:
    """The chance of a 1 at each position: an arcsine law, cut at both ends.

    Args:
        secret: The licensor's, 32 bytes.
        path: A layer's path.
        role: `"gamma"` or `"beta"`.
        count: Number of positions: the layer's channels.

    Returns:
        float64 array `(count,)`.
    """
    least = math.asin(math.sqrt(_CUTOFF))
    drawn = _uniform(secret, count, "bias", path, role)
    angles = least + drawn * (math.pi / 2 - 2 * least)
    return hidden(np.sin(angles) ** 2)


def check_word(number: int) -> None:
    """Raises `PassportError` unless it is the number of a word."""
    if type(number) is not int or number < 0:
        raise PassportError(
            "Expected a licensee's word of 0 or more. "
            f"Received: {shown(number)}"
        )


def word_in(entry: dict) -> int:
    """Which of its licensee's words a line of a ledger is of.

    Args:
        entry: One of `Ledger.entries`; the oldest ledgers count no words, and
            have each licensee's first.

    Raises:
        PassportError: If it is no number of a word.
    """
    number = entry.get("word", 0)
    check_word(number)
    return number


def word(secret: bytes, chances: np.ndarray, *labels: str) -> np.ndarray:
    """A licensee's bits at a layer's positions.

    Args:
        secret: The licensor's.
        chances: As `biases` returns them.
        *labels: Who it is, and the layer.

    Returns:
        float64 array of 1 and -1.
    """
    drawn = _uniform(secret, len(chances), "word", *labels)
    return hidden(np.where(drawn < np.asarray(chances), 1.0, -1.0))


def score(leak: np.ndarray, words: np.ndarray, chances: np.ndarray) -> tuple:
    """How much each licensee's word is in a leak, and how sure that is.

    Args:
        leak: What was changed at each position, in the mark's size.
        words: `(licensees, positions)` of 1 and -1.
        chances: `(positions,)`.

    Returns:
        Tuple of scores `(licensees,)`, whose mean is 0 and variance 1 for the
        innocent, and of a bound, `(licensees,)`, on the chance that one of
        them has such a score: Chernoff's, over how words are drawn, for this
        very leak.
    """
    # Of what is to be expected anyhow, nothing tells who it was.
    shown = np.clip(leak, -_LARGEST, _LARGEST) - (2 * chances - 1)
    shown = shown / max(float(np.linalg.norm(shown)), 1e-12)
    rare = np.sqrt((1 - chances) / chances)
    scores = np.where(words > 0, rare, -1 / rare) @ shown
    # exp(-t s) times the mean of exp(t · score) of an innocent one.
    log_means = np.sum(
        np.logaddexp(
            np.log(chances) + _STEPS * shown * rare,
            np.log1p(-chances) - _STEPS * shown / rare,
        ),
        axis=1,
    )
    exponents = log_means[:, None] - _STEPS * np.maximum(scores, 0.0)
    return scores, np.exp(np.minimum(exponents.min(axis=0), 0.0))


def capacity(positions: int, licensees: int, bound: float = 1e-6) -> int:
    """How many who mix their keys, element by element, are still found.

    Their largest score is to be expected at √positions · 0.18 · (5 / c) for c
    of them; the length that is needed grows with c² log(n / bound).

    Args:
        positions: Number of channels and roles that hold a bit.
        licensees: n, how many there are.
        bound: Chance that anybody is accused falsely.

    Returns:
        The largest c; 0 if even one would not be found.
    """
    needed = math.sqrt(2 * math.log(licensees / bound)) * 1.1
    return int(math.sqrt(positions) * 0.9 / needed)


def noise(secret: bytes, count: int, *labels: str) -> np.ndarray:
    """Normal numbers that follow from a secret and labels.

    Args:
        secret: The licensor's.
        count: How many.
        *labels: What they are for.

    Returns:
        float64 array `(count,)`, of mean 0 and variance 1.
    """
    return hidden(special.ndtri(_uniform(secret, count, *labels)))


def _uniform(secret, count, *labels):
    return draws.chances(derive(secret, "licensing", *labels), count)
