"""What an attack is given, and how much it may spend."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from keras_passport.attacks import AttackResult
from keras_passport.evaluation.case import Case
from keras_passport.evaluation.progress import Progress

# The control of attacks on labelled data: what these are worth by themselves.
FROM_SCRATCH = "from_scratch"


@dataclasses.dataclass(frozen=True)
class Budget:
    """What an attack may spend. Each attack uses some of it.

    Args:
        num_fakes: Fake passports to try.
        examples: The judge's examples that each fake is tried on.
        source: The attacker's data: `"defender"` or `"disjoint"`.
        fraction: Part of them that the attacker has, in (0, 1].
        epochs: Passes over them.
        trials: Trainings, of which the attacker's validation chooses.
        seed: Of all draws.
        tuned: Whether trainings, of attacks and controls alike, try optimizers
            and learning rates (`kp.attacks.tuned`).

    Example:

    >>> kp.evaluation.Budget(fraction=0.04, epochs=30).num_fakes
    100
    """

    num_fakes: int = 100
    examples: int = 500
    source: str = "defender"
    fraction: float = 1.0
    epochs: int = 10
    trials: int = 1
    seed: int = 0
    tuned: bool = False

    def __post_init__(self):
        # A record's name is made of them, and NumPy's numbers are no JSON.
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, np.generic):
                object.__setattr__(self, field.name, value.item())


@dataclasses.dataclass(frozen=True)
class Attack:
    """One attack.

    Args:
        title: For tables and figures.
        knowledge: What the attacker has besides the published network.
        uses: Names of the `Budget`'s fields that matter to it.
        run: Function `(case, budget, progress)` that returns an
            `AttackResult`: the attack itself, which uses `uses` alone of the
            `Budget`. The `Progress` says whether to show bars, keeps what a
            long attack goes on with, and has what another attack found.
        control: Whether it is no attack on the protection but a measure for
            those that are, such as training from scratch.
        levels: Names of the batteries that it is in.
        unfit: Function of a case that returns why it has nothing for this
            attack; `None` if it has.
        over: Name of the control that the advantage A is measured over.
        of: Function of a case that returns what else of it the attack's
            records belong to: a text, or `None`.
    """

    title: str
    knowledge: str
    uses: tuple[str, ...]
    run: Callable[[Case, Budget, Progress], AttackResult]
    control: bool = False
    levels: tuple[str, ...] = ("quick", "standard", "full")
    unfit: Callable[[Case], str | None] = lambda case: None
    over: str = FROM_SCRATCH
    of: Callable[[Case], str | None] = lambda case: None

    def spends(self, budget: Budget) -> dict[str, Any]:
        """What of a budget it uses, in plain values."""
        spent = {field: getattr(budget, field) for field in self.uses}
        # Records of before there was a choice are of those not tuned.
        if spent.get("tuned") is False:
            del spent["tuned"]
        return spent

    def judged_on(self, case: Case, budget: Budget) -> tuple:
        """The judge's inputs and labels that its accuracy is measured on."""
        return case.judges(budget.examples if "examples" in self.uses else None)
