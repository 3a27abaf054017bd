"""`Records`: what attacks reached, written as soon as it is known."""

import dataclasses
import hashlib
import json
import os
import pathlib
from typing import Any

import keras

from keras_passport.attacks import AttackResult
from keras_passport.errors import PassportError
from keras_passport.evaluation.budgets import Budget
from keras_passport.evaluation.case import Case
from keras_passport.evaluation.progress import Progress
from keras_passport.evaluation.registry import ATTACKS
from keras_passport.files import read_json, write_json

# Of the file beside a record with the γ and β that an attack found.
_FOUND = ".found"


class Records:
    """The records of a case's attacks, in a folder: a file for each.

    An attack that is finished is read, not tried again; one that was
    interrupted goes on where it can.

    Args:
        case: What is attacked.
        folder: Where the records are; it is made if need be. Records of other
            cases may lie there, too.
        shown: Whether attacks show progress bars.

    Example:

    >>> case = kp.evaluation.Case.of(model, passport, data, test)
    >>> records = kp.evaluation.Records(case, "attacks")
    >>> record = records.perform("spectral_blind", kp.evaluation.Budget())
    >>> record["title"]
    'Spectral, without data'
    """

    def __init__(
        self, case: Case, folder: str | os.PathLike, shown: bool = False
    ):
        self.case = case
        self.folder = pathlib.Path(folder)
        self.shown = shown

    def path(self, name: str, budget: Budget) -> pathlib.Path:
        """Where an attack's record lies: it belongs to what it is made of."""
        attack = ATTACKS[name]
        made_of = [name, attack.spends(budget), self.case.fingerprint]
        if of := attack.of(self.case):
            made_of.append(of)
        digest = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()
        return self.folder / f"{name}-{digest[:8]}.json"

    def perform(self, name: str, budget: Budget) -> dict[str, Any]:
        """An attack's record: read if it is finished, else made and written.

        Args:
            name: Of the attack, in `ATTACKS`.
            budget: What it may spend.

        Returns:
            Plain values: `attack`, `title`, `knowledge`, `control`, `over`
            (the control that A is measured over), `budget`, `examples` (how
            many the judge had), `result` (an `AttackResult`'s `to_dict`) and
            `backend`.

        Raises:
            PassportError: If the case has nothing for this attack, or a
                record is damaged.
        """
        attack = ATTACKS[name]
        if reason := attack.unfit(self.case):
            raise PassportError(
                "Expected an attack that can be tried on this model. "
                f"Received: {name}: {reason}"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.path(name, budget)
        found = read_json(path)
        if isinstance(found, dict) and "result" in found:
            return found
        if found is not None:
            raise PassportError(
                f"Expected the record of an attack in '{path}'. Received: JSON "
                "of another kind; remove it, and the attack is tried again"
            )
        progress = Progress(path.with_suffix(".part"), self.found, self.shown)
        result = attack.run(self.case, budget, progress)
        result = _without_found(result, path.with_suffix(_FOUND))
        record = {
            "attack": name,
            "title": attack.title,
            "knowledge": attack.knowledge,
            "control": attack.control,
            "over": attack.over,
            "budget": attack.spends(budget),
            "examples": len(attack.judged_on(self.case, budget)[1]),
            "result": result.to_dict(),
            "backend": keras.backend.backend(),
        }
        write_json(path, record)
        progress.forget()
        # Each attack leaves compiled functions behind.
        keras.utils.clear_session()
        # What was read of a file and what was just made are the same.
        return read_json(path)

    def found(
        self, name: str, budget: Budget
    ) -> tuple[AttackResult, dict[str, list]]:
        """An attack's result, with the γ and β that it found, by path.

        It is tried first if need be.
        """
        path = self.path(name, budget)
        if not path.with_suffix(_FOUND).exists():
            path.unlink(missing_ok=True)
        record = self.perform(name, budget)
        result = AttackResult.from_dict(record["result"])
        return result, read_json(path.with_suffix(_FOUND))


def _without_found(result, path) -> AttackResult:
    """The result without γ and β that the attack found: those go to a file."""
    found = [about.get("parameters") for about in result.history]
    if not any(found):
        return result
    write_json(path, found[result.chosen])
    history = tuple(
        {k: v for k, v in about.items() if k != "parameters"}
        for about in result.history
    )
    return dataclasses.replace(result, history=history)
