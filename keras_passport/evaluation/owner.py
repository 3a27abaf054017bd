"""What only the owner measures of a case, kept where only the owner reads."""

import dataclasses
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_passport import attacks, audit, scores
from keras_passport.evaluation.battery import LEVELS
from keras_passport.evaluation.budgets import Budget
from keras_passport.evaluation.case import Case, chance
from keras_passport.evaluation.running import training_options
from keras_passport.files import read_json, write_json
from keras_passport.models import binding, protected_model
from keras_passport.passports.passport import Passport

_PRIVATE = 0o600
# What noise is put on the owner's passport, and on how many pictures it is
# judged.
_NOISE = {"Added": {}, "In their place": {"replace": True}}
_EXAMPLES = 1000
# Parts of the kernels' weights that are pruned, and part of the training set
# that everything is fine-tuned on.
_PRUNED = tuple(i / 10 for i in range(1, 10))
_FINE_TUNED = 0.1
# Fakes that are tried on a changed network.
_CHANGE_FAKES = 5


class Owner:
    """Who has the passport, and judges the attacks.

    Args:
        case: What is attacked.
        passport: Its valid passport.
        folder: Made if need be, with mode 0700: what is measured is kept
            there, and read when it is asked for again.
    """

    def __init__(self, case: Case, passport: Passport, folder: os.PathLike):
        self.case = case
        self.passport = passport
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def numbers(self) -> dict[str, Any]:
        """What attacks are compared with.

        Returns:
            Plain values: `total`, how many examples the judge has; `chance`,
            in per cent; `valid`, and `original` if there is a reference, how
            many of them the network classifies rightly.

        Raises:
            ValueError: If scores are not finite.
        """
        x, y = self.case.judges()
        bound = protected_model.public(self.case.model)
        binding.bind(bound, self.passport)
        numbers = {"total": len(y), "chance": chance(y)}
        for name, model in (
            ("valid", bound),
            ("original", self.case.reference),
        ):
            if model is not None:
                found = scores.predict(model, x)
                labels = scores.finite_classes_of(found, f"the {name} network")
                numbers[name] = int(np.sum(labels == y))
        return numbers

    def write_hits(self, records: Sequence[dict]) -> None:
        """How many of their guesses fakes of the owner's images got right.

        Args:
            records: As `Records.perform` returns them.
        """
        for record in records:
            if record["attack"] != "fake_known_images":
                continue
            result = record["result"]
            right = audit.right_guesses(self.passport, result["history"])
            self._write(
                "hits",
                {
                    "guesses": int(np.prod(right.shape[1:])),
                    "right": right.sum((1, 2)).tolist(),
                    "layers_right": right.all(2).sum(1).tolist(),
                    "accuracies": result["accuracies"],
                },
            )

    def noise(self) -> dict[str, dict]:
        """Accuracies with noise on the passport (Figure 5), by its manner."""
        found = self._read("noise")
        if found.get("of") != self.case.fingerprint:
            examples = self.case.judges(_EXAMPLES)
            found = {"of": self.case.fingerprint}
            for name, options in _NOISE.items():
                found[name] = audit.accuracy_under_noise(
                    self.case.model, self.passport, examples, **options
                )
            self._write("noise", found)
        return {name: found[name] for name in _NOISE}

    def changes(self, level: str, seed: int, errors: list[str]) -> dict:
        """What changes of the network leave to its owner.

        Args:
            level: Of `LEVELS`.
            seed: Of all draws.
            errors: What breaks is added to it.

        Returns:
            Dict from a change to what `kp.audit.accuracies` returns.
        """
        made_of = [self.case.fingerprint, seed, LEVELS[level].budget.epochs]
        found = self._read("changes")
        if found.get("of") != made_of:
            found = {"of": made_of, "changes": {}}
        changes = found["changes"]
        makers = self._changed(level, seed)
        for name, make in makers.items():
            if name in changes:
                continue
            try:
                changes[name] = audit.accuracies(
                    make(),
                    self.passport,
                    self.case.judges(_EXAMPLES),
                    fakes=_CHANGE_FAKES,
                    seed=seed,
                )
            except Exception as error:
                errors.append(f"{name} ({told(error)})")
                continue
            self._write("changes", found)
        return {name: changes[name] for name in makers if name in changes}

    def _changed(self, level, seed) -> dict:
        """From a change to a function that makes the changed model."""
        model = self.case.model
        budget = dataclasses.replace(
            LEVELS[level].budget,
            fraction=_FINE_TUNED,
            epochs=5 * LEVELS[level].budget.epochs,
            seed=seed,
        )
        return {
            "none": lambda: model,
            **{
                f"{100 * fraction:.0f} % of the weights pruned": (
                    lambda fraction=fraction: attacks.prune(model, fraction)
                )
                for fraction in _PRUNED
            },
            f"all trained on {100 * _FINE_TUNED:.0f} % of the data": (
                lambda: fine_tuned(self.case, budget)
            ),
            **{
                name: lambda rewrite=rewrite: rewrite(model, seed=seed).model
                for name, rewrite in (
                    ("filters scaled", attacks.scale_filters),
                    ("filters' signs flipped", attacks.flip_signs),
                    ("channels permuted", attacks.permute_channels),
                )
            },
        }

    def _read(self, name) -> dict:
        return read_json(self.folder / f"{name}.json") or {}

    def _write(self, name, content) -> None:
        write_json(self.folder / f"{name}.json", content, _PRIVATE)


def fine_tuned(case: Case, budget: Budget) -> keras.Model:
    """The protected model with what fine-tuning made of its kernels."""
    return attacks.fine_tuning(
        case.model,
        case.examples(budget.source),
        case.judges(),
        training_options(case, budget),
        keep_model=True,
    ).public


def told(error: Exception) -> str:
    """An error in one line, for the report."""
    reason = f"{type(error).__name__}: {error}".split("\n")[0]
    return f"error: {reason[:200]}"
