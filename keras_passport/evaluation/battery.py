"""Batteries: which attacks are tried, each on which data, at what cost."""

import dataclasses
from collections.abc import Iterator, Sequence

from keras_passport.evaluation.budgets import Budget
from keras_passport.evaluation.registry import ATTACKS


@dataclasses.dataclass(frozen=True)
class Level:
    """How thorough a battery is.

    Args:
        budget: Of every attack, but for its data.
        fractions: Parts of the data that attackers have.
        sources: Where the data come from.
    """

    budget: Budget
    fractions: tuple[float, ...]
    sources: tuple[str, ...] = ("defender",)


LEVELS: dict[str, Level] = {
    "quick": Level(Budget(100, 500, epochs=10), (0.1, 1.0)),
    "standard": Level(
        Budget(1000, 1000, epochs=20, tuned=True),
        (0.01, 0.1, 0.5, 1.0),
        ("defender", "disjoint"),
    ),
    "full": Level(
        Budget(10_000, 1000, epochs=60, trials=3, tuned=True),
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
        battery: Its name.
        seed: Of all draws.
        fractions: Parts of the data that attackers have, in (0, 1]; the
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
