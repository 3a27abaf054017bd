"""`TrainingOptions`: what every attack that trains can be told."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from keras_passport.attacks.recipe import Recipe
from keras_passport.attacks.searching import Search

STARTS = ("neutral", "fake", "random")


@dataclasses.dataclass(frozen=True)
class TrainingOptions:
    """How much an attack that trains has, and how it goes about it.

    All of them take it as `options`, or its fields as keywords of their own,
    which then count more. In place of integer labels their data may have what
    a service says of inputs without labels: float probabilities `(examples,
    classes)`.

    Args:
        fraction: Part of the labelled data that the attacker has, in (0, 1].
        start: Where γ and β start: `"neutral"` (1 and 0), `"fake"` (those of
            a fake random pattern), `"random"` (normal), or a dict from path
            to γ and β, float arrays `(channels,)`, such as another attack
            found. Where a start is stuck at chance, another one is tried.
        statistics: Whether statistics are those of the batch, and estimated
            anew; otherwise they stay as published.
        recipe: How to train; `None` for the attack's own recipe.
        search: Which recipes to try instead of that one; see `tuned`.
        restarts: Trials, each with draws of its own; the attacker's
            validation chooses. More than one start is told by `history`.
        seed: Of all draws.
        keep_model: Whether the result holds the attacked model.
        progress: Whether to show progress bars.

    Raises:
        ValueError: If a value is out of range.

    Example:

    >>> options = kp.attacks.TrainingOptions(
    ...     fraction=0.5, restarts=2, recipe=kp.attacks.Recipe(epochs=1)
    ... )
    >>> found = kp.attacks.reverse_engineering(model, data, test, options)
    >>> tuned = kp.attacks.fine_tuning(
    ...     model, data, test, options, method="RTAL"
    ... )
    """

    fraction: float = 1.0
    start: str | Mapping = "neutral"
    statistics: bool = True
    recipe: Recipe | None = None
    search: Search | None = None
    restarts: int = 1
    seed: int = 0
    keep_model: bool = False
    progress: bool = False

    def __post_init__(self):
        if not 0 < self.fraction <= 1:
            raise ValueError(
                "Expected a fraction in (0, 1]. "
                f"Received: fraction={self.fraction}"
            )
        check_counts(1, restarts=self.restarts)
        if isinstance(self.start, str) and self.start not in STARTS:
            raise ValueError(
                f"Expected start to be one of {STARTS} or a dict. "
                f"Received: start={self.start!r}"
            )

    @classmethod
    def of(
        cls,
        options: "TrainingOptions | None",
        changes: Mapping[str, Any],
        *,
        unused: tuple[str, ...] = (),
        **own: Any,
    ) -> "TrainingOptions":
        """The options of one attack, from what it was called with.

        Args:
            options: As it was given.
            changes: Fields that were given as keywords.
            unused: Fields that say nothing to this attack.
            **own: The attack's own values: they stand where neither `options`
                nor `changes` say anything.

        Raises:
            TypeError: If a keyword is no field, or one of `unused`.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if odd := sorted(set(changes) - (known - set(unused))):
            raise TypeError(
                "Expected fields of TrainingOptions that this attack uses: "
                f"{sorted(known - set(unused))}. Received: {odd}"
            )
        if options is None:
            return cls(**{**own, **changes})
        made = dataclasses.replace(options, **changes)
        if made.recipe is None:
            made = dataclasses.replace(made, recipe=own.get("recipe"))
        return made


def check_counts(least: int, **counts: int) -> None:
    """Raises `ValueError` of a count that is less than it may be."""
    for name, count in counts.items():
        if count < least:
            raise ValueError(
                f"Expected {name} of {least} or more. Received: {name}={count}"
            )
