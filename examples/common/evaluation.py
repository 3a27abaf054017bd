"""The whole battery on one run, and its report."""

import dataclasses
import time

import numpy as np

import keras_passport as kp
from common import attacks, battery, page, verdict
from common.case import Owner
from common.errors import UserError
from common.rundir import PRIVATE, read_json, write_json

# What noise is put on the owner's passport, and on how many pictures it is
# judged.
_NOISE = {"Added": {}, "In their place": {"replace": True}}
_NOISE_EXAMPLES = 1000
# Parts of the kernels' weights that are pruned, and part of the training set
# that everything is fine-tuned on.
_PRUNED = tuple(i / 10 for i in range(1, 10))
_FINE_TUNED = 0.1
# Fakes that are tried on a changed network.
_CHANGE_FAKES = 5


def evaluate(
    owner: Owner,
    level: str,
    only: list[str] | None = None,
    seed: int = 0,
    fractions: list[float] | None = None,
) -> tuple[list[str], bool]:
    """Runs what is left of a battery, and writes the report.

    Args:
        owner: of the run.
        level: of `battery.LEVELS`.
        only: names of attacks; all if not given.
        seed: of the attacks.
        fractions: as for `battery.plan`.

    Returns:
        The lines to print, and whether all attacks came to a result.
    """
    case = owner.case
    planned = [
        (name, budget)
        for name, budget in battery.plan(level, seed, fractions)
        if only is None or name in only
    ]
    if not planned:
        raise UserError(
            f"Expected --only of attacks that --budget={level} has. "
            f"Received: {', '.join(only)}"
        )
    numbers = owner.reference_numbers()
    records, rows, missing, errors = [], [], [], []
    for number, (name, budget) in enumerate(planned, 1):
        attack = attacks.ATTACKS[name]
        if reason := attack.unfit(case):
            missing.append(f"{attack.title} ({reason})")
            continue
        began = time.monotonic()
        try:
            record = battery.perform(
                case, name, budget, owner.directory.attacks
            )
        except UserError:
            raise
        # One attack that breaks must not cost the others; none of its own
        # errors counts as a strength.
        except Exception as error:
            errors.append(f"{attack.title} ({_told(error)})")
            print(f"[{number}/{len(planned)}] {errors[-1]}", flush=True)
            continue
        count = budget.examples if "examples" in attack.uses else None
        row = verdict.row(record, numbers, case.judges(count)[1])
        records.append(record)
        rows.append(row)
        print(
            f"[{number}/{len(planned)}] {verdict.named(row)}: "
            f"{row['accuracy']:.1f} % ({time.monotonic() - began:.0f} s)",
            flush=True,
        )
    _write_hits(owner, records)
    changes = {} if only else _changes(owner, level, seed, errors)
    names = {name for name, _ in planned}
    left_out = [
        attack.title
        for name, attack in attacks.ATTACKS.items()
        if name not in names
    ]
    lines = verdict.verdict(rows, numbers, missing + errors, left_out)
    facts = _facts(owner, numbers, level)
    write_json(
        owner.directory.protection,
        {"verdict": lines, "network": facts, "numbers": numbers, "rows": rows},
    )
    page.write(
        owner.directory.report,
        {
            "title": "What attacks leave of a protected network",
            "facts": facts,
            "rows": rows,
            "verdict": lines,
            "changes": changes,
            "figures": page.figures(records, rows, numbers, _noise(owner)),
        },
    )
    table = verdict.table(rows, numbers)
    if changes:
        table += verdict.changes_table(changes)
    return [*table, *lines], not errors


def _facts(owner, numbers, level):
    total = numbers["total"]

    def accuracy(name):
        low, high = kp.metrics.accuracy_interval(numbers[name], total)
        value = 100 * numbers[name] / total
        return f"{value:.1f} % ({low:.1f} to {high:.1f})"

    facts = {"Data": owner.config["dataset"]}
    if "original" in numbers:
        facts["Original"] = accuracy("original")
    facts["Valid passport"] = accuracy("valid")
    if "original" in numbers:
        inconsistency = kp.metrics.inconsistency(
            100 * numbers["original"] / total, 100 * numbers["valid"] / total
        )
        preserving = kp.metrics.is_functionality_preserving(inconsistency)
        facts["Inconsistency I"] = (
            f"{inconsistency:.2f}; {'' if preserving else 'not '}"
            "functionality-preserving (I < 1)"
        )
    return {
        **facts,
        "Chance": f"{numbers['chance']:.1f} %",
        "Judged on": f"{total:,} test pictures that no attacker has",
        "Network": f"{owner.case.model.name}, "
        f"{len(kp.protected_layers(owner.case.model))} passport layers",
        "Passport": f"{owner.passport.kind}, {owner.passport.function.name}",
        "Battery": level,
    }


def _write_hits(owner, records):
    """How many of their guesses fakes got right: for the owner's eyes."""
    for record in records:
        if record["attack"] != "fake_known_images":
            continue
        right = kp.audit.right_guesses(
            owner.passport, record["result"]["history"]
        )
        write_json(
            owner.directory.hits,
            {
                "guesses": int(np.prod(right.shape[1:])),
                "right": right.sum((1, 2)).tolist(),
                "layers_right": right.all(2).sum(1).tolist(),
                "accuracies": record["result"]["accuracies"],
            },
            PRIVATE,
        )


def _noise(owner):
    """Accuracies with noise on the passport, measured once."""
    path, case = owner.directory.noise, owner.case
    found = read_json(path) or {}
    if found.get("of") != case.fingerprint:
        examples = case.judges(_NOISE_EXAMPLES)
        found = {"of": case.fingerprint}
        for name, options in _NOISE.items():
            found[name] = kp.audit.accuracy_under_noise(
                case.model, owner.passport, examples, **options
            )
        write_json(path, found, PRIVATE)
    return {name: found[name] for name in _NOISE}


def _changes(owner, level, seed, errors):
    """What changes of the network leave to the owner: dict by change.

    What was measured before is read; what breaks is added to the errors.
    """
    path, case = owner.directory.changes, owner.case
    budget = battery.LEVELS[level].budget
    made_of = [case.fingerprint, seed, budget.epochs]
    found = read_json(path) or {}
    if found.get("of") != made_of:
        found = {"of": made_of, "changes": {}}
    changes = found["changes"]

    def fine_tuned():
        epochs = dataclasses.replace(
            budget, fraction=_FINE_TUNED, epochs=5 * budget.epochs, seed=seed
        )
        return attacks.fine_tuned(case, epochs).public

    made = {
        "none": lambda: case.model,
        **{
            f"{100 * fraction:.0f} % of the weights pruned": (
                lambda fraction=fraction: kp.attacks.prune(case.model, fraction)
            )
            for fraction in _PRUNED
        },
        f"all trained on {100 * _FINE_TUNED:.0f} % of the data": fine_tuned,
        **{
            name: lambda rewrite=rewrite: rewrite(case.model, seed=seed).model
            for name, rewrite in (
                ("filters scaled", kp.attacks.scale_filters),
                ("filters' signs flipped", kp.attacks.flip_signs),
                ("channels permuted", kp.attacks.permute_channels),
            )
        },
    }
    examples = case.judges(_NOISE_EXAMPLES)
    for name, make in made.items():
        if name in changes:
            continue
        try:
            changes[name] = kp.audit.accuracies(
                make(), owner.passport, examples, fakes=_CHANGE_FAKES, seed=seed
            )
        except Exception as error:
            errors.append(f"{name} ({_told(error)})")
            continue
        write_json(path, found, PRIVATE)
    return {name: changes[name] for name in made if name in changes}


def _told(error):
    """An error in one line, for the report."""
    reason = f"{type(error).__name__}: {error}".split("\n")[0]
    return f"error: {reason[:200]}"
