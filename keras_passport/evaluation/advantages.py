"""What attacks gain over training from scratch, beside what they leave."""

from typing import Any

from keras_passport import metrics
from keras_passport.attacks import AttackResult, advantage
from keras_passport.evaluation.budgets import FROM_SCRATCH

# What a control is called in a sentence, where its title alone says less.
_NAMES = {FROM_SCRATCH: "training from scratch"}
# Attacks that tune whatever the budget says.
_TUNED = ("reverse_engineering_tuned",)


def add_advantages(
    rows: list[dict], records: list[dict], numbers: dict[str, Any]
) -> None:
    """Adds the advantage A to the rows of attacks, once controls are known.

    A = A_t - A_c: what an attack reaches less what its control reaches on the
    same data, tuned alike, which for most is training from scratch. A control
    of another seed has other data, and so is none. Who has no labels could at
    best have said the most frequent class of every example: that is their A_c.

    Args:
        rows: As `verdict.row` returns them; `"advantage"`, its
            `"advantage_interval"` and `"control_accuracy"` are added, in per
            cent, and `"over"`, the control's title, `None` where no control
            was tried.
        records: One for each row, as `Records.perform` returns them.
        numbers: As `Owner.numbers` returns them.
    """
    controls = {
        (record["attack"], *_data(record)): record
        for record in records
        if record["control"]
    }
    for row, record in zip(rows, records, strict=True):
        found = None
        over = record.get("over", FROM_SCRATCH), *_data(record)
        if record["control"]:
            pass
        elif over in controls:
            found = _over_control(record, controls[over])
        elif "fraction" not in record["budget"]:
            found = _over_chance(row, numbers["chance"])
        for name in (
            "advantage",
            "advantage_interval",
            "control_accuracy",
            "over",
        ):
            row[name] = found and found[name]


def best(rows: list[dict]) -> dict | None:
    """The row of the attack that gains most, of those that say something."""
    counted = [
        row
        for row in rows
        if row["status"] in ("holds", "falls")
        and row.get("advantage") is not None
    ]
    return max(counted, key=lambda row: row["advantage"], default=None)


def sentence(row: dict, name: str) -> str:
    """What an attacker gains, and over what.

    Args:
        row: Of the attack, with its advantage.
        name: Of the attack.
    """
    low, high = row["advantage_interval"]
    over = row["over"]
    if "fraction" in row["budget"]:
        over += " on the same data"
    return (
        f"What an attacker gains: A = {row['advantage']:.1f} "
        f"({low:.1f} to {high:.1f}) over {over}, which reaches "
        f"{row['control_accuracy']:.1f} %; {name} reaches "
        f"{row['accuracy']:.1f} %."
    )


def _data(record):
    """What two trainings must have in common for their numbers to compare."""
    budget = record["budget"]
    alike = (budget.get(name) for name in ("source", "fraction", "seed"))
    tuned = budget.get("tuned", False) or record["attack"] in _TUNED
    return (*alike, tuned)


def _over_control(record, control):
    ours, theirs = (
        AttackResult.from_dict(one["result"]) for one in (record, control)
    )
    found = advantage(ours, theirs, record["examples"])
    return {
        "advantage": found.value,
        "advantage_interval": (found.low, found.high),
        "control_accuracy": 100 * theirs.accuracy,
        "over": _NAMES.get(control["attack"], control["title"]),
    }


def _over_chance(row, chance):
    correct = round(row["accuracy"] / 100 * row["examples"])
    low, high = metrics.accuracy_interval(correct, row["examples"])
    return {
        "advantage": row["accuracy"] - chance,
        "advantage_interval": (low - chance, high - chance),
        "control_accuracy": chance,
        "over": "always saying one class",
    }
