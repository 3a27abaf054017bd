"""A finished run as an attacker has it, and as its judge does."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

import keras_passport as kp
from common import data
from common.errors import UserError
from common.rundir import RunDirectory, load_model, read_json
from common.training import count_right
from keras_passport.attacks import training

# Part of the test set that an attacker may have: the judge uses the rest.
_DISJOINT = 0.4
# Pictures that an attacker makes fakes of.
_IMAGES = 100


@dataclasses.dataclass(frozen=True)
class Case:
    """All that attacks may be given, and what they are judged by.

    Attributes:
        model: what is published; no passport was ever bound to it.
        dataset: what it classifies.
        reference: a network of the same architecture: the original itself,
            which is more than a real attacker has.
        key_scaling: of the passport; no secret.
        known_images: the owner's identity pictures, normalised, for the
            attacker who knows them; None if the passport has none to guess.
        fingerprint: of the published file and of the passport.
        disclosed: returns γ and β of the valid passport by path, as a holder
            may give them away.
    """

    model: keras.Model
    dataset: data.Dataset
    reference: keras.Model | None
    key_scaling: str
    known_images: np.ndarray | None
    fingerprint: str
    disclosed: Callable[[], dict] = dataclasses.field(repr=False)

    @functools.cached_property
    def _parts(self) -> tuple:
        """The attacker's part of the test set, and the judge's."""
        pictures = self.dataset.normalize(self.dataset.x_test)
        examples = pictures, self.dataset.y_test
        judges, attackers = training.divide(examples, 1 - _DISJOINT, seed=0)
        return attackers, judges

    def examples(self, source: str) -> tuple[np.ndarray, np.ndarray]:
        """An attacker's labelled data: normalised pictures, and labels.

        Args:
            source: `"defender"`, the very training set, or `"disjoint"`, a
                part of the test set that the judge leaves alone.
        """
        if source == "disjoint":
            return self._parts[0]
        return self._training_set

    @functools.cached_property
    def _training_set(self) -> tuple[np.ndarray, np.ndarray]:
        pictures = self.dataset.normalize(self.dataset.x_train)
        return pictures, self.dataset.y_train

    def judges(self, count: int | None = None) -> tuple:
        """The judge's pictures and labels: `count` of them, or all."""
        x, y = self._parts[1]
        if count is None or count >= len(y):
            return x, y
        return training.share((x, y), count / len(y), seed=0)

    @property
    def images(self) -> np.ndarray:
        """The attacker's own pictures for fakes, normalised."""
        return self._parts[0][0][:_IMAGES]

    def augment(self, x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Normalised pictures as the defender's training shows them."""
        black = self.dataset.normalize(np.zeros((1, *x.shape[1:]), "uint8"))
        shown = data.augment(
            x - black, rng, self.dataset.pad, self.dataset.flip
        )
        return shown + black


class Owner:
    """What the run's owner, who judges the attacks, has of it.

    Args:
        run_dir: of a finished run of a trainer.
        data_dir: as for the trainer.
    """

    def __init__(self, run_dir: str, data_dir: str | None = None):
        self.directory = RunDirectory(run_dir)
        config = read_json(self.directory.config)
        if config is None:
            raise UserError(f"--run_dir={self.directory.path} holds no run.")
        self.config = config
        if config.get("dataset") not in data.SOURCES:
            raise UserError(
                f"Runs on {', '.join(sorted(data.SOURCES))} can be attacked "
                f"here. Received: {config.get('dataset')}"
            )
        if not self.directory.protected.exists():
            raise UserError(
                f"--run_dir={self.directory.path} holds no finished run: "
                f"{self.directory.protected} is missing."
            )
        model = load_model(self.directory.protected)
        passport = kp.Passport.load(self.directory.passport)
        self.passport = passport.fitted(model)
        reference = None
        if self.directory.original.exists():
            reference = load_model(self.directory.original)
        known = None
        if self.passport.kind == "random_image":
            known = self.passport.images
        digest = hashlib.sha256(self.directory.protected.read_bytes())
        digest.update(self.passport.fingerprint.encode())
        self.case = Case(
            model=model,
            dataset=data.load(config["dataset"], data_dir),
            reference=reference,
            key_scaling=self.passport.key_scaling,
            known_images=known,
            fingerprint=digest.hexdigest(),
            disclosed=lambda: self.hidden_parameters(model),
        )

    def hidden_parameters(self, model: keras.Model) -> dict:
        """γ and β of the passport by path; None for what is not hidden."""
        rows = self.passport.rows()
        return {
            path: layer.hidden_parameters(rows[path])
            for path, layer in kp.protected_layers(model).items()
        }

    def reference_numbers(self) -> dict[str, Any]:
        """Right answers of original and valid passport, of how many."""
        x, y = self.case.judges()
        bound = load_model(self.directory.protected)
        kp.bind(bound, self.passport)
        numbers = {"total": len(y), "chance": chance(y)}
        for name, model in (
            ("valid", bound),
            ("original", self.case.reference),
        ):
            if model is not None:
                numbers[name] = count_right(model, x, y, name)
        return numbers


def chance(labels: np.ndarray) -> float:
    """Accuracy in per cent of always saying the most frequent class."""
    return 100 * float(np.bincount(labels).max() / len(labels))
