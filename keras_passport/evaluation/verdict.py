"""What attacks leave of a protection: rows of a table, and one verdict."""

from collections.abc import Sequence
from typing import Any

from keras_passport import metrics, texts
from keras_passport.attacks import AttackResult
from keras_passport.attacks.training import is_stuck
from keras_passport.evaluation import advantages

# The paper's τ_s of Definition 2.
THRESHOLD = 50


def row(record: dict[str, Any], numbers: dict[str, Any], labels) -> dict:
    """One attack against the valid passport, in per cent.

    Args:
        record: As `Records.perform` returns it.
        numbers: As `Owner.numbers` returns them.
        labels: Of the pictures that the attack was judged on.

    Returns:
        Plain values. `status` is `"failed"` for a training that learned
        nothing (its accuracy is no strength of the protection), `"control"`,
        `"void"` where the valid passport itself is at chance, `"holds"` for
        S > 50 and `"falls"` for less.
    """
    result = AttackResult.from_dict(record["result"])
    total = record["examples"]
    correct = round(result.accuracy * total)
    valid, valid_total = numbers["valid"], numbers["total"]
    strength = metrics.protection_strength(
        100 * valid / valid_total, 100 * correct / total
    )
    # The mean of all trials, for the best of many is above chance by chance.
    at_chance = bool(is_stuck(result.mean, (None, labels)))
    trained = bool(result.validation)
    if record["control"]:
        status = "control"
    elif trained and is_stuck(result.accuracy, (None, labels)):
        status = "failed"
    elif not is_informative(numbers):
        status = "void"
    elif metrics.is_well_protected(strength, THRESHOLD):
        status = "holds"
    else:
        status = "falls"
    budget = dict(record["budget"])
    if "trials" in budget:
        # A tuned search makes 40 at least.
        budget["trials"] = result.budget["trials"]
    found = {
        **{
            key: record[key]
            for key in ("attack", "title", "knowledge", "examples")
        },
        "budget": budget,
        "trials": len(result.accuracies),
        "accuracy": 100 * correct / total,
        "interval": metrics.accuracy_interval(correct, total),
        "mean": 100 * result.mean,
        "entropy": result.entropies[result.chosen],
        "strength": strength,
        "strength_interval": metrics.strength_interval(
            valid, valid_total, correct, total
        ),
        "status": status,
        "paralysed": at_chance and not trained,
        "seconds": result.seconds,
    }
    if not trained and len(result.accuracies) > 1:
        strengths = metrics.protection_strength(
            100 * valid / valid_total,
            [100 * accuracy for accuracy in result.accuracies],
        )
        found["successes"] = sum(
            not metrics.is_well_protected(s, THRESHOLD) for s in strengths
        )
        found["success_interval"] = metrics.success_interval(
            found["successes"], len(strengths)
        )
    return found


def is_informative(numbers: dict[str, Any]) -> bool:
    """Whether the valid passport does better than one class for all."""
    low, _ = metrics.accuracy_interval(
        numbers["valid"], numbers["total"], confidence=0.997
    )
    return low > numbers["chance"]


def worst(rows: list[dict]) -> dict | None:
    """The attack that reached most, of those that say something."""
    counted = [r for r in rows if r["status"] in ("holds", "falls")]
    return max(counted, key=lambda r: r["accuracy"], default=None)


def verdict(
    rows: list[dict],
    numbers: dict[str, Any],
    missing: list[str],
    left_out: Sequence[str] = (),
) -> list[str]:
    """Sentences: the worst case first, then what limits its meaning.

    Args:
        rows: As `row` returns them.
        numbers: As `Owner.numbers` returns them.
        missing: What ended with an error, or could not be tried.
        left_out: What was not asked for, or is no part of this battery.
    """
    valid = 100 * numbers["valid"] / numbers["total"]
    lines = []
    case = worst(rows)
    if not is_informative(numbers):
        lines.append(
            f"No verdict: with its valid passport the network has {valid:.1f} "
            f"%, no better than chance ({numbers['chance']:.1f} %). It is "
            "paralysed for its owner too, so low accuracies under attack are "
            "no protection."
        )
    elif case is None:
        lines.append("No verdict: no attack came to a result.")
    else:
        if gaining := advantages.best(rows):
            lines.append(advantages.sentence(gaining, named(gaining)))
        low, high = case["strength_interval"]
        holds = case["status"] == "holds"
        lines.append(
            f"Worst case: {named(case)} reaches {case['accuracy']:.1f} % "
            f"(valid passport {valid:.1f} %), S = {case['strength']:.1f} "
            f"({low:.1f} to {high:.1f}): "
            + (
                f"well-protected (S > {THRESHOLD}) against the attacks tried."
                if holds
                else f"not well-protected (S > {THRESHOLD})."
            )
        )
        if low <= THRESHOLD < high:
            lines.append(
                f"The interval of S has {THRESHOLD} in it: more test pictures "
                "could turn this verdict."
            )
        if valid - numbers["chance"] <= THRESHOLD:
            lines.append(
                f"S > {THRESHOLD} is out of reach here: from the valid "
                f"passport to chance it is {valid - numbers['chance']:.1f}."
            )
        for control in rows:
            if control["status"] == "control" and _same_data(control, case):
                lines.append(
                    f"The same data without the network: {named(control)} "
                    f"reaches {control['accuracy']:.1f} %."
                )
        fakes = worst([r for r in rows if "successes" in r])
        if fakes and fakes is not case:
            lines.append(
                f"Without training, the best of {fakes['trials']:,} fakes "
                f"({named(fakes)}) reaches {fakes['accuracy']:.1f} %, "
                f"S = {fakes['strength']:.1f}."
            )
    failed = [named(r) for r in rows if r["status"] == "failed"]
    if failed:
        lines.append(
            "Failed attacks, which learned nothing and prove nothing: "
            f"{'; '.join(failed)}."
        )
    if missing:
        lines.append(f"Not tried: {'; '.join(missing)}.")
    if left_out:
        lines.append(f"Left out of this battery: {'; '.join(left_out)}.")
    return lines


def changes_table(changes: dict[str, dict]) -> list[str]:
    """What the owner is left with, as lines of text.

    Args:
        changes: From a change to what `kp.audit.accuracies` returns.
    """
    rows = [
        (name, *(f"{100 * value:.1f}" for value in accuracies.values()))
        for name, accuracies in changes.items()
    ]
    head = ("change of the network", "valid", "fakes", "best")
    return ["", texts.table([head, *rows], right=(1, 2, 3)), ""]


def _same_data(one, other):
    data = ("source", "fraction", "seed")
    return "fraction" in one["budget"] and all(
        one["budget"].get(k) == other["budget"].get(k) for k in data
    )


def named(row: dict) -> str:
    """An attack with the data that it had."""
    budget = row["budget"]
    if "fraction" not in budget:
        return row["title"]
    words = f"{100 * budget['fraction']:g} % of "
    if budget.get("source") == "disjoint":
        return f"{row['title']} on {words}other data"
    return f"{row['title']} on {words}the training data"


def spent(row: dict) -> str:
    """What an attack had to spend, in short."""
    words = {
        "num_fakes": "{:,} fakes",
        "epochs": "{:,} epochs",
        "tuned": "tuned",
        "trials": "{:,} trainings",
    }
    parts = []
    for name, value in row["budget"].items():
        if name == "fraction":
            parts.append(f"{100 * value:g} % of the data")
        elif name in words and not (name == "trials" and value == 1):
            parts.append(words[name].format(value))
        elif name == "source" and value == "disjoint":
            parts.append("other data")
    return ", ".join(parts)


def table(rows: list[dict], numbers: dict[str, Any]) -> list[str]:
    """The rows as lines of text."""
    valid = 100 * numbers["valid"] / numbers["total"]
    cells = [("attack", "spent", "accuracy", "S", "A", "status")]
    for r in rows:
        low, high = r["interval"]
        below, above = r["strength_interval"]
        cells.append(
            (
                r["title"],
                spent(r),
                f"{r['accuracy']:5.1f} ({low:.1f} to {high:.1f})",
                f"{r['strength']:5.1f} ({below:.1f} to {above:.1f})",
                _advantage(r),
                status_of(r),
            )
        )
    return [
        f"Test accuracy in %; valid passport {valid:.1f}, "
        f"chance {numbers['chance']:.1f}; 95 % intervals",
        *texts.table(cells).split("\n"),
    ]


def _advantage(r):
    if r.get("advantage") is None:
        return ""
    low, high = r["advantage_interval"]
    return f"{r['advantage']:5.1f} ({low:.1f} to {high:.1f})"


def status_of(r: dict) -> str:
    """A row's status, with what it was on average."""
    if r["status"] == "failed":
        return "failed: learned nothing"
    if r["status"] == "void":
        return "no verdict: valid passport at chance"
    if r["paralysed"]:
        return f"{r['status']}; paralysed, mean {r['mean']:.1f}"
    return r["status"]
