"""`AttackResult`: what every attack returns."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class AttackResult:
    """What an attack reached, with what knowledge and at what cost.

    Args:
        name: The attack.
        accuracies: Accuracy of each trial, as a fraction, in order.
        entropies: Entropy of each trial's predicted classes, in bits. A
            paralysed network that says the same of every picture has 0.
        knowledge: What the attacker was given, in plain values.
        budget: Trials, pictures, epochs: what was spent, in plain values.
        seconds: Wall-clock time.
    """

    name: str
    accuracies: tuple[float, ...]
    entropies: tuple[float, ...]
    knowledge: dict
    budget: dict
    seconds: float

    @property
    def accuracy(self) -> float:
        """The best trial's accuracy: a protection's worst case."""
        return max(self.accuracies)

    @property
    def mean(self) -> float:
        """The mean accuracy over all trials."""
        return float(np.mean(self.accuracies))

    def to_dict(self) -> dict:
        """Plain lists, strings and numbers, for JSON."""
        return dataclasses.asdict(self)
