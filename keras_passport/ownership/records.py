"""What an owner writes down at release, to be compared in a dispute."""

import dataclasses
import hashlib
import os
from collections.abc import Sequence

import keras
import numpy as np

from keras_passport import audit, scores, sealed
from keras_passport.attacks.fake import Judge
from keras_passport.errors import PassportError
from keras_passport.ownership.networks import kernels_hash
from keras_passport.passports.passport import Passport, check_passport
from keras_passport.secrecy import hidden
from keras_passport.texts import shown

NOISE_LEVELS = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
_NAMES = {
    "accuracy",
    "examples",
    "fingerprint",
    "kernels",
    "key_scaling",
    "noise",
}


@dataclasses.dataclass(frozen=True, repr=False)
class Record:
    """A network's accuracy, and how it falls as noise spoils the passport.

    It is a secret until the dispute. Its hash may be published with the
    claim, so that it is known not to have been written afterwards.

    Args:
        accuracy: Under the valid passport, a fraction.
        examples: How many it was measured on.
        noise: As `audit.accuracy_under_noise` returns it.
        fingerprint: The passport's.
        key_scaling: Of the passport's keys.
        kernels: SHA-256 of the network's, as `networks.kernels_hash` returns
            it.

    Raises:
        PassportError: If it is not what `record` writes down.
    """

    accuracy: float
    examples: int
    noise: dict
    fingerprint: str
    key_scaling: str
    kernels: str

    def __post_init__(self):
        if not _is_whole(self):
            raise PassportError(
                "Expected a record of an accuracy between 0 and 1, of examples "
                "that it was measured on, and of two or more accuracies at "
                "each level of noise, from 0 to at most 1. Received: another"
            )

    def __repr__(self):
        return (
            f"<Record, accuracy {self.accuracy:.4f} of {self.examples} "
            f"examples, {len(self.noise['fractions'])} levels of noise>"
        )

    @property
    def means(self) -> np.ndarray:
        """Mean accuracy at each level of noise."""
        return np.mean(self.noise["accuracies"], axis=1)

    @property
    def deviations(self) -> np.ndarray:
        """Standard deviation of the draws at each level."""
        return np.std(self.noise["accuracies"], axis=1, ddof=1)

    @property
    def commitment(self) -> str:
        """SHA-256 of the file, to be published with the claim."""
        return hashlib.sha256(
            sealed.dumps("record", self._content())
        ).hexdigest()

    def save(self, path: str | os.PathLike) -> None:
        """Writes a file that only its owner can read.

        Args:
            path: File to write, replaced if it exists.
        """
        sealed.save(path, "record", self._content())

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Record":
        """Reads what `save` wrote.

        Args:
            path: The file.

        Raises:
            PassportError: If it is missing, no record, or changed.
        """
        content = sealed.load(path, "record")
        if content.keys() != _NAMES:
            raise PassportError(
                f"Expected a record in '{shown(path)}'. Received: one that "
                "says other things; a newer keras_passport may read it"
            )
        return cls(**content)

    def _content(self) -> dict:
        return dataclasses.asdict(self)


def record(
    model: keras.Model,
    passport: Passport,
    data: tuple,
    noise_levels: Sequence[float] = NOISE_LEVELS,
    *,
    repeats: int = 5,
    seed: int = 0,
    batch_size: int = 500,
) -> Record:
    """Writes down what the owner expects of the network (Section 3.2, step 2).

    Args:
        model: The protected model, as it is released.
        passport: The valid passport.
        data: Inputs and integer labels that training did not see.
        noise_levels: Values of c, parts of a passport's elements that noise
            replaces, in [0, 1], the first of them 0; M_{p^e(c)} of Figure 5.
        repeats: Draws per level, 2 or more.
        seed: Of the noise; a judge draws the same.
        batch_size: Examples per call.

    Returns:
        A `Record`.

    Raises:
        ValueError: If an argument is out of range.
        PassportError: If the passport does not fit the model.

    Example:

    >>> kp.ownership.record(model, passport, test).save("record.json")

    Reference:

    - Fan, Ng, Chan: Digital Passport, Section 3.2, Figure 5.
    """
    if repeats < 2:
        raise ValueError(
            f"Expected repeats of 2 or more. Received: repeats={repeats}"
        )
    if len(noise_levels) < 1 or noise_levels[0] != 0:
        raise ValueError(
            "Expected noise_levels that begin with 0, what the others are "
            f"compared with. Received: noise_levels={noise_levels}"
        )
    check_passport(passport)
    given = hidden(passport)
    passport = given.fitted(model)
    accuracy, _ = Judge(model, *scores.pair(data), batch_size)(
        passport.packed(), is_valid=True
    )
    return Record(
        accuracy=accuracy,
        examples=len(data[1]),
        noise=audit.accuracy_under_noise(
            model,
            passport,
            data,
            fractions=noise_levels,
            replace=True,
            repeats=repeats,
            seed=seed,
            batch_size=batch_size,
        ),
        # Of what the owner has and shows, whatever the model's paths.
        fingerprint=given.fingerprint,
        key_scaling=passport.key_scaling,
        kernels=kernels_hash(model, passport),
    )


def _is_whole(record) -> bool:
    """Whether a judge can compute with what a record holds."""
    try:
        noise = record.noise
        levels = np.asarray(noise["fractions"], "float64")
        accuracies = np.asarray(noise["accuracies"], "float64")
        scale, seed = float(noise["scale"]), int(noise["seed"])
        numbers = (np.float64(record.accuracy), levels, accuracies)
        return (
            all(np.all((n >= 0) & (n <= 1)) for n in numbers)
            and accuracies.ndim == 2
            and levels.shape == accuracies.shape[:1]
            and accuracies.shape[1] >= 2
            and levels[0] == 0
            and record.examples >= 1
            and np.isfinite(scale)
            and seed >= 0
            and isinstance(noise["replace"], bool)
            and all(
                isinstance(text, str)
                for text in (
                    record.fingerprint,
                    record.key_scaling,
                    record.kernels,
                )
            )
        )
    except (IndexError, KeyError, OverflowError, TypeError, ValueError):
        return False
