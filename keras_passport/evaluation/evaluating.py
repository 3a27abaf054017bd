"""`evaluate`: a battery of attacks on a protected model, and its report."""

import dataclasses
import os
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from absl import logging

from keras_passport import metrics
from keras_passport.evaluation import advantages, page, verdict
from keras_passport.evaluation.battery import LEVELS, plan
from keras_passport.evaluation.budgets import Budget
from keras_passport.evaluation.case import Case
from keras_passport.evaluation.owner import Owner, told
from keras_passport.evaluation.records import Records
from keras_passport.evaluation.registry import ATTACKS
from keras_passport.files import write_json
from keras_passport.layers.protected import protected_layers
from keras_passport.passports.passport import Passport


def evaluate(
    model: keras.Model,
    passport: Passport,
    train: tuple,
    test: tuple,
    *,
    budget: str = "quick",
    attacks: Sequence[str] | Mapping[str, Budget] | None = None,
    fractions: Sequence[float] | None = None,
    seed: int = 0,
    reference: keras.Model | None = None,
    augment: Callable[[Any, np.random.Generator], Any] | None = None,
    ancestor: keras.Model | None = None,
    directory: str | os.PathLike | None = None,
    title: str | None = None,
    fingerprint: str | None = None,
    tell: Callable[[str], Any] | None = None,
    progress: bool = False,
) -> "Evaluation":
    """Tries attacks on a protected model, and says what is left.

    Each attacker gets what `kp.public` shows of the model, and data; none
    gets the passport. All are judged on examples that no attacker has.

    Args:
        model: Protected classifier with one output, trained. Keys that are
            bound to it are not used.
        passport: Its valid passport.
        train: Tuple of the inputs that it was trained on, float array
            `(examples, ...)` in the model's input domain (or a structure of
            them as the model takes it), and integer labels `(examples,)`.
        test: The same, of other data: 60 % of each class are the judge's,
            the rest is what attackers with other data have.
        budget: How much attackers spend, a name of `LEVELS`: `"quick"`,
            `"standard"` or `"full"`.
        attacks: Names of `ATTACKS` to try, or a dict from a name to a
            `Budget` of its own, in place of `budget`, `fractions` and `seed`.
            Defaults to all of the battery, and then it is also measured what
            changes of the network (pruning, fine-tuning, rewrites) leave to
            its owner.
        fractions: Parts of the data that attackers have, in (0, 1]. Defaults
            to the battery's own.
        seed: Of all draws.
        reference: A network of the same architecture, such as the original:
            fakes of images are made with it, and tried with one alone.
        augment: Function `(x, rng)` of a batch of inputs and a NumPy
            generator that returns them as your training shows them. Defaults
            to none.
        ancestor: A network that the model was made of and that attackers have
            too, such as a public checkpoint, or another version of it: then
            `known_ancestor` and `difference` are tried. Defaults to none.
        directory: Folder that keeps a record of each attack in `attacks`, and
            in `owner`, mode 0700, what is for the owner alone. Interrupted,
            the same call goes on; what is finished is read. Defaults to a
            temporary one.
        title: Of the data, for the report. Defaults to none.
        fingerprint: Text that says what the records are of. Defaults to a
            digest of the model's weights, the passport and the data. It does
            not know of `augment`: another one needs another `directory`.
        tell: Function, such as `print`, that is called with one line for each
            attack when it is done.
        progress: Whether attacks show progress bars.

    Returns:
        An `Evaluation`. An attack that breaks is named in it, and costs no
        other one.

    Raises:
        ValueError: If an argument is out of range, a label is no class, or
            scores under the valid passport are not finite.
        PassportError: If the model is not protected, or the passport does not
            fit it.

    Example:

    >>> evaluation = kp.evaluation.evaluate(
    ...     model, passport, data, test, attacks=["key_forgery"]
    ... )
    >>> [row["title"] for row in evaluation.rows]
    ['Key forgery']
    >>> evaluation.save_page("report.html")
    """
    planned = _planned(budget, attacks, seed, fractions)
    case = Case.of(
        model,
        passport,
        train,
        test,
        reference=reference,
        augment=augment,
        ancestor=ancestor,
        fingerprint=fingerprint,
    )
    passport = passport.fitted(case.model)
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary if directory is None else directory)
        owner = Owner(case, passport, folder / "owner")
        numbers = owner.numbers()
        records = Records(case, folder / "attacks", progress)
        tried = _Tried(numbers)
        for number, (name, spent) in enumerate(planned, 1):
            line = tried.attack(records, name, spent)
            if line and tell:
                tell(f"[{number}/{len(planned)}] {line}")
        advantages.add_advantages(tried.rows, tried.records, numbers)
        owner.write_hits(tried.records)
        changes, noise, left_out = {}, {}, []
        network = _network(case, passport, numbers)
        if title is not None:
            network = {"Data": title, **network}
        if not isinstance(attacks, Mapping):
            network["Battery"] = budget
            names = {name for name, _ in planned}
            left_out = [a.title for n, a in ATTACKS.items() if n not in names]
            noise = owner.noise()
        if attacks is None:
            changes = owner.changes(budget, seed, tried.errors)
    return Evaluation(
        rows=tried.rows,
        verdict=verdict.verdict(
            tried.rows, numbers, tried.missing + tried.errors, left_out
        ),
        network=network,
        numbers=numbers,
        changes=changes,
        noise=noise,
        records=tried.records,
        errors=tried.errors,
    )


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What attacks left of a protected model. `str` of it is a table.

    Args:
        rows: A dict for each attack that came to a result, as `verdict.row`
            makes it: `attack`, `accuracy` (per cent) and `interval`,
            `strength` (S) and `strength_interval`, `advantage` (A, or `None`
            where there is no control) and `advantage_interval`, `status`, and
            what it had and spent.
        verdict: Sentences: the worst case first.
        network: What was attacked, from words to words.
        numbers: What attacks are compared with; see `Owner.numbers`.
        changes: For the owner: from a change of the network to what
            `kp.audit.accuracies` returns.
        noise: For the owner: from a manner to what
            `kp.audit.accuracy_under_noise` returns.
        records: The attacks' records, one for each row.
        errors: What broke, in one line each.
    """

    rows: list[dict]
    verdict: list[str]
    network: dict[str, str]
    numbers: dict[str, Any]
    changes: dict[str, dict] = dataclasses.field(repr=False)
    noise: dict[str, dict] = dataclasses.field(repr=False)
    records: list[dict] = dataclasses.field(repr=False)
    errors: list[str]

    @property
    def worst(self) -> dict | None:
        """The row of the attack that reached most; `None` if none counts."""
        return verdict.worst(self.rows)

    @property
    def complete(self) -> bool:
        """Whether everything that was tried came to a result."""
        return not self.errors

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON, without what is for the owner alone."""
        return {
            "verdict": self.verdict,
            "network": self.network,
            "numbers": self.numbers,
            "rows": self.rows,
        }

    def save(self, path: str | os.PathLike) -> None:
        """Writes `to_dict` as JSON.

        Args:
            path: File to write, replaced if it exists.

        Raises:
            OSError: If it can't be written.
        """
        write_json(path, self.to_dict())

    def save_page(self, path: str | os.PathLike) -> None:
        """Writes one HTML page with tables and figures that needs nothing else.

        Args:
            path: Of the page.

        Raises:
            ImportError: If matplotlib is missing: it comes with the extra
                `keras-passport[plots]`.
        """
        page.write(
            path,
            {
                "title": "What attacks leave of a protected network",
                "facts": self.network,
                "rows": self.rows,
                "verdict": self.verdict,
                "changes": self.changes,
                "figures": page.figures(
                    self.records, self.rows, self.numbers, self.noise
                ),
            },
        )

    def __str__(self):
        table = verdict.table(self.rows, self.numbers)
        if self.changes:
            table += verdict.changes_table(self.changes)
        return "\n".join([*table, *self.verdict])


class _Tried:
    """What became of the attacks that were tried."""

    def __init__(self, numbers):
        self.numbers = numbers
        self.records, self.rows, self.errors = [], [], []
        self.unfit = {}  # From a reason to titles.

    @property
    def missing(self) -> list[str]:
        """What the case has nothing for, and why."""
        return [
            f"{'; '.join(titles)} ({reason})"
            for reason, titles in self.unfit.items()
        ]

    def attack(self, records, name, budget) -> str | None:
        """Tries one; a line that says what it reached, or what broke."""
        attack, case = ATTACKS[name], records.case
        if reason := attack.unfit(case):
            titles = self.unfit.setdefault(reason, [])
            if attack.title not in titles:
                titles.append(attack.title)
            return None
        began = time.monotonic()
        try:
            record = records.perform(name, budget)
        # One attack that breaks must not cost the others; none of its own
        # errors counts as a strength.
        except Exception as error:
            logging.debug("%s", attack.title, exc_info=True)
            self.errors.append(f"{attack.title} ({told(error)})")
            return self.errors[-1]
        labels = attack.judged_on(case, budget)[1]
        row = verdict.row(record, self.numbers, labels)
        row["record"] = records.path(name, budget).stem
        self.records.append(record)
        self.rows.append(row)
        return (
            f"{verdict.named(row)}: {row['accuracy']:.1f} % "
            f"({time.monotonic() - began:.0f} s)"
        )


def _planned(level, names, seed, fractions) -> list[tuple]:
    if level not in LEVELS:
        raise ValueError(
            f"Expected budget to be one of {', '.join(LEVELS)}. "
            f"Received: budget={level!r}"
        )
    if isinstance(names, str):
        names = (names,)
    if names is not None and not isinstance(names, Iterable):
        raise ValueError(
            "Expected attacks to be names, or a dict from names to Budgets. "
            f"Received: attacks={names!r}"
        )
    if unknown := sorted(map(str, set(names or ()) - ATTACKS.keys())):
        raise ValueError(
            f"Expected attacks of {', '.join(ATTACKS)}. "
            f"Received: {', '.join(unknown)}"
        )
    fractions = None if fractions is None else tuple(fractions)
    if fractions and not all(0 < part <= 1 for part in fractions):
        raise ValueError(
            "Expected fractions of numbers in (0, 1]. "
            f"Received: fractions={list(fractions)}"
        )
    if isinstance(names, Mapping):
        if not all(isinstance(one, Budget) for one in names.values()):
            raise ValueError(
                "Expected a Budget for each of attacks. "
                f"Received: attacks={dict(names)}"
            )
        return list(names.items())
    planned = [
        (name, budget)
        for name, budget in plan(level, seed, fractions)
        if names is None or name in names
    ]
    if not planned:
        raise ValueError(
            f"Expected attacks that the budget {level} has. "
            f"Received: {', '.join(names)}"
        )
    return planned


def _network(case, passport, numbers) -> dict[str, str]:
    """What is attacked, in words."""
    total = numbers["total"]

    def accuracy(name):
        low, high = metrics.accuracy_interval(numbers[name], total)
        value = 100 * numbers[name] / total
        return f"{value:.1f} % ({low:.1f} to {high:.1f})"

    facts = {}
    if "original" in numbers:
        facts["Original"] = accuracy("original")
    facts["Valid passport"] = accuracy("valid")
    if "original" in numbers:
        inconsistency = metrics.inconsistency(
            100 * numbers["original"] / total, 100 * numbers["valid"] / total
        )
        preserving = metrics.is_functionality_preserving(inconsistency)
        facts["Inconsistency I"] = (
            f"{inconsistency:.2f}; {'' if preserving else 'not '}"
            "functionality-preserving (I < 1)"
        )
    return {
        **facts,
        "Chance": f"{numbers['chance']:.1f} %",
        "Judged on": f"{total:,} test pictures that no attacker has",
        "Network": f"{case.model.name}, "
        f"{len(protected_layers(case.model))} passport layers",
        "Passport": f"{passport.kind}, {passport.function.name}",
    }
