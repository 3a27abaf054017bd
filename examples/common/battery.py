"""Batteries of attacks, and the records of what was tried."""

import dataclasses
import hashlib
import json
import pathlib
import shutil
from collections.abc import Iterator, Sequence
from typing import Any

import keras

from common.attacks import ATTACKS, Budget
from common.case import Case
from common.errors import UserError
from common.rundir import read_json, write_json
from keras_passport.attacks import AttackResult

# Of the file beside a record with the γ and β that an attack found.
_FOUND = ".found"


@dataclasses.dataclass(frozen=True)
class Level:
    """How thorough a battery is.

    Attributes:
        budget: of every attack, but for its data.
        fractions: parts of the data that attackers have.
        sources: where the data come from.
    """

    budget: Budget
    fractions: tuple[float, ...]
    sources: tuple[str, ...] = ("defender",)


LEVELS: dict[str, Level] = {
    "quick": Level(Budget(100, 500, epochs=10), (0.1, 1.0)),
    "standard": Level(
        Budget(1000, 1000, epochs=20),
        (0.01, 0.1, 0.5, 1.0),
        ("defender", "disjoint"),
    ),
    "full": Level(
        Budget(10_000, 1000, epochs=60, trials=3),
        (0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0),
        ("defender", "disjoint"),
    ),
}
# How many more epochs few data may be passed over.
_MOST_PASSES = 5


def plan(
    battery: str, seed: int = 0, fractions: Sequence[float] | None = None
) -> Iterator[tuple[str, Budget]]:
    """The attacks of a battery of `LEVELS`, each with what it may spend.

    Args:
        battery: its name.
        seed: of all draws.
        fractions: parts of the data that attackers have, in (0, 1]; the
            level's own if not given.
    """
    level = LEVELS[battery]
    for name, attack in ATTACKS.items():
        if battery not in attack.levels:
            continue
        budget = dataclasses.replace(level.budget, seed=seed)
        if "fraction" not in attack.uses:
            yield name, budget
            continue
        for source in level.sources if "source" in attack.uses else (None,):
            for fraction in fractions or level.fractions:
                passes = min(_MOST_PASSES, 1 / fraction)
                yield (
                    name,
                    dataclasses.replace(
                        budget,
                        fraction=fraction,
                        source=source or budget.source,
                        epochs=round(budget.epochs * passes),
                    ),
                )


def used(name: str, budget: Budget) -> dict[str, Any]:
    """What of a budget an attack uses, in plain values."""
    return {field: getattr(budget, field) for field in ATTACKS[name].uses}


def record_path(
    folder: pathlib.Path, case: Case, name: str, budget: Budget
) -> pathlib.Path:
    """Where an attack's record lies: it belongs to what it was made of."""
    made_of = [name, used(name, budget), case.fingerprint]
    digest = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()
    return folder / f"{name}-{digest[:8]}.json"


def perform(
    case: Case, name: str, budget: Budget, folder: pathlib.Path
) -> dict[str, Any]:
    """An attack's record: read if it is finished, else made and written.

    Args:
        case: what to attack.
        name: of the attack, in `ATTACKS`.
        budget: what it may spend.
        folder: of the records; it is made if need be.

    Returns:
        Plain values: `attack`, `title`, `knowledge`, `control`, `budget`,
        `examples` (the judge's), `result` (an `AttackResult`'s `to_dict`) and
        `backend`.
    """
    attack = ATTACKS[name]
    if reason := attack.unfit(case):
        raise UserError(f"{name} can't be tried: {reason}.")
    folder.mkdir(parents=True, exist_ok=True)
    path = record_path(folder, case, name, budget)
    found = read_json(path)
    if found is not None:
        return found
    part = path.with_suffix(".part")
    if attack.in_parts:
        result = _in_parts(case, attack, budget, part)
    elif attack.in_folder:
        result = attack.run(case, budget, part)
    elif attack.first:
        result = _going_on(case, attack, budget, folder)
    else:
        result = attack.run(case, budget)
    result = _without_found(result, path.with_suffix(_FOUND))
    count = budget.examples if "examples" in attack.uses else None
    record = {
        "attack": name,
        "title": attack.title,
        "knowledge": attack.knowledge,
        "control": attack.control,
        "budget": used(name, budget),
        "examples": len(case.judges(count)[1]),
        "result": result.to_dict(),
        "backend": keras.backend.backend(),
    }
    write_json(path, record)
    if part.is_dir():
        shutil.rmtree(part)
    else:
        part.unlink(missing_ok=True)
    # Each attack leaves compiled functions behind.
    keras.utils.clear_session()
    # What was read of a file and what was just made are the same.
    return read_json(path)


def _in_parts(case, attack, budget, part) -> AttackResult:
    """A long series of fakes, gone on with where it was interrupted."""
    found = read_json(part)
    result = AttackResult.from_dict(found) if found else None
    while (done := len(result.accuracies) if result else 0) < budget.num_fakes:
        some = attack.run(case, budget, done)
        result = result.joined(some) if result else some
        if len(result.accuracies) < budget.num_fakes:
            write_json(part, result.to_dict())
    return result


def _going_on(case, attack, budget, folder) -> AttackResult:
    """An attack that starts from what another found, tried first if need be."""
    path = record_path(folder, case, attack.first, budget)
    if not path.with_suffix(_FOUND).exists():
        path.unlink(missing_ok=True)
    record = perform(case, attack.first, budget, folder)
    found = AttackResult.from_dict(record["result"])
    result = attack.run(case, budget, read_json(path.with_suffix(_FOUND)))
    return dataclasses.replace(
        result,
        name=f"{found.name}, then {result.name}",
        seconds=found.seconds + result.seconds,
    )


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
