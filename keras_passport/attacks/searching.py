"""`Search`: the recipes that are tried; which epoch is kept, and how many."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from keras_passport.attacks.recipe import Recipe

# Epochs that a training is given at least, by the part of the data: few
# pictures make few steps.
_EPOCHS = ((0.05, 100), (0.25, 40), (1.0, 15))
# Of a training, its end: what is no better there has converged.
_END = 0.25
# Standard errors by which the best of a hundred epochs is better by chance:
# last ones validated up to two worse, and were the better ones
# (tests/benchmarks/attacks.md).
_LUCK = 2.0


@dataclasses.dataclass(frozen=True)
class Search:
    """Recipes that an attacker tries before the best are trained to the end.

    Each is trained for a short time; the best few, by the attacker's own
    validation, for all of the recipe's epochs, and then for twice as many as
    long as the end of a training is still better than what was before it.

    Args:
        tried: Pairs of optimizer and learning rate. The set is wide, as γ
            and β alone take larger steps than kernels do.
        short: Part of the epochs that all of them are trained for, in (0, 1].
        finalists: How many are trained to the end.
        doublings: How often the epochs may be doubled.

    Raises:
        ValueError: If a value is out of range.
    """

    tried: tuple[tuple[str, float], ...] = (
        ("sgd", 0.02),
        ("sgd", 0.1),
        ("sgd", 0.5),
        ("adam", 0.001),
        ("adam", 0.007),
        ("adam", 0.05),
    )
    short: float = 0.2
    finalists: int = 2
    doublings: int = 1

    def __post_init__(self):
        if not self.tried or self.finalists < 1 or self.doublings < 0:
            raise ValueError(
                "Expected recipes to try, 1 finalist or more, and 0 doublings "
                f"or more. Received: tried={self.tried}, "
                f"finalists={self.finalists}, doublings={self.doublings}"
            )
        if not 0 < self.short <= 1:
            raise ValueError(
                f"Expected short in (0, 1]. Received: short={self.short}"
            )

    def go(
        self, recipe: Recipe, reach: Callable[[Recipe, bool], dict]
    ) -> Recipe:
        """Tries recipes, and returns the one that validated best.

        Args:
            recipe: What is not tried: epochs, batch size, augmentation, ...
            reach: Function of a recipe, and of whether it is the short
                training, that trains and returns how it went: `"standing"`,
                the more the better, and `"converged"`.
        """
        epochs = max(1, round(self.short * recipe.epochs))
        begun = []
        for optimizer, rate in self.tried:
            one = dataclasses.replace(
                recipe, optimizer=optimizer, learning_rate=rate, epochs=epochs
            )
            begun.append((reach(one, True)["standing"], one))
        begun.sort(key=lambda pair: pair[0], reverse=True)
        ended = []
        for _, one in begun[: self.finalists]:
            for doubling in range(1 + self.doublings):
                longer = dataclasses.replace(
                    one, epochs=recipe.epochs * 2**doubling
                )
                went = reach(longer, False)
                ended.append((went["standing"], longer))
                if went["converged"]:
                    break
        return max(ended, key=lambda pair: pair[0])[1]


def is_converged(accuracies: list[float], examples: int) -> bool:
    """Whether the last quarter of a training was no better than the rest.

    Args:
        accuracies: Validated after each epoch, fractions.
        examples: That they were measured on: what is better by less than a
            standard error is no better.
    """
    late = math.ceil((1 - _END) * len(accuracies))
    if late in (0, len(accuracies)):
        return False
    before, after = max(accuracies[:late]), max(accuracies[late:])
    return after <= before + _standard_error(before, examples)


def kept_epoch(
    accuracies: list[float], losses: list[float], examples: int
) -> int:
    """The latest epoch that validated about as well as the best.

    Of few pictures the best of many epochs is an early one by luck, while a
    schedule makes networks better up to its end. What is worse than the best
    by less than two standard errors is as good.

    Args:
        accuracies: Validated after each epoch, fractions.
        losses: Likewise; an epoch that has none that is finite is lost.
        examples: That they were measured on.

    Returns:
        The epoch's number, from 0.
    """
    ended = [n for n, loss in enumerate(losses) if math.isfinite(loss)]
    if not ended:
        return 0
    best = max(accuracies[n] for n in ended)
    enough = best - _LUCK * _standard_error(best, examples)
    return max(n for n in ended if accuracies[n] >= enough)


def _standard_error(accuracy: float, examples: int) -> float:
    # Keras's means are float32's.
    accuracy = min(accuracy, 1.0)
    return math.sqrt(accuracy * (1 - accuracy) / examples)


def enough_epochs(fraction: float) -> int:
    """Epochs for a part of the data: 100 for 5 %, 40 for 25 %, 15 for all.

    Args:
        fraction: In (0, 1]; in between by its logarithm.
    """
    parts, epochs = zip(*_EPOCHS, strict=True)
    logs = np.interp(np.log(fraction), np.log(parts), np.log(epochs))
    return math.ceil(np.exp(logs) - 1e-9)
