"""`AttackResult`: what every attack returns."""

import dataclasses
from collections.abc import Mapping

import keras
import numpy as np

from keras_passport import metrics


@dataclasses.dataclass(frozen=True)
class AttackResult:
    """What an attack reached, with what knowledge and at what cost.

    Args:
        name: The attack.
        accuracies: Accuracy of each trial on the judge's data, as a fraction,
            in order.
        entropies: Entropy of each trial's predicted classes, in bits. A
            paralysed network that says the same of every picture has 0.
        knowledge: What the attacker was given, in plain values.
        budget: Trials, pictures, epochs: what was spent, in plain values.
        seconds: Wall-clock time.
        validation: Accuracy of each trial on data of the attacker's own, by
            which they choose; empty for who can try every trial out.
        losses: Loss of each trial on that data, for those that are as
            accurate.
        history: Per trial what was chosen for it and how it went, in plain
            values.
        right: Which of the judge's examples the chosen trial classifies
            rightly, as `packed` says it; empty if that was not kept. Two
            attacks on the same examples compare better by it.
        model: The attacked model of the chosen trial, an ordinary Keras
            model, if it was asked for.
        public: With it the protected model with the kernels and statistics
            that the attack left: what valid and fake passports reach on it is
            the owner's to find out.
    """

    name: str
    accuracies: tuple[float, ...]
    entropies: tuple[float, ...]
    knowledge: dict
    budget: dict
    seconds: float
    validation: tuple[float, ...] = ()
    losses: tuple[float, ...] = ()
    history: tuple[dict, ...] = ()
    right: str = ""
    model: keras.Model | None = dataclasses.field(default=None, repr=False)
    public: keras.Model | None = dataclasses.field(default=None, repr=False)

    @property
    def chosen(self) -> int:
        """Number of the trial that counts: a protection's worst case.

        It is the attacker's choice by validation; of trials that need none,
        the best.
        """
        worth = np.asarray(self.validation or self.accuracies)
        losses = np.asarray(self.losses or np.zeros(len(worth)))
        return int(np.lexsort((losses, -worth))[0])

    @property
    def accuracy(self) -> float:
        """The accuracy of the trial that counts."""
        return self.accuracies[self.chosen]

    @property
    def mean(self) -> float:
        """The mean accuracy over all trials."""
        return float(np.mean(self.accuracies))

    def to_dict(self) -> dict:
        """Plain lists, strings and numbers, for JSON; without models."""
        bare = dataclasses.replace(self, model=None, public=None)
        fields = dataclasses.asdict(bare)
        del fields["model"], fields["public"]
        return fields

    @classmethod
    def from_dict(cls, fields: dict) -> "AttackResult":
        """The result whose `to_dict` this was, before or after JSON."""
        return cls(
            **{
                name: tuple(value) if isinstance(value, list) else value
                for name, value in fields.items()
            }
        )

    def joined(self, rest: "AttackResult") -> "AttackResult":
        """A series of fakes with what it was gone on with, as one result."""
        fakes = len(self.accuracies) + len(rest.accuracies)
        return dataclasses.replace(
            self,
            accuracies=self.accuracies + rest.accuracies,
            entropies=self.entropies + rest.entropies,
            history=self.history + rest.history,
            budget={**self.budget, "fakes": fakes},
            seconds=self.seconds + rest.seconds,
        )


def plain(parameters: Mapping) -> dict:
    """γ and β by path as lists of numbers, for an attack's history."""
    return {
        path: [np.asarray(value).tolist() for value in pair]
        for path, pair in parameters.items()
    }


def packed(right: np.ndarray) -> str:
    """Yes or no for each example, as hexadecimal digits of packed bits."""
    return np.packbits(np.asarray(right, bool)).tobytes().hex()


def unpacked(text: str, examples: int) -> np.ndarray:
    """What `packed` made text of, boolean `(examples,)`."""
    bits = np.frombuffer(bytes.fromhex(text), "uint8")
    return np.unpackbits(bits, count=examples).astype(bool)


@dataclasses.dataclass(frozen=True)
class Advantage:
    """What an attack gains over training from scratch, in per cent.

    Args:
        value: A, the difference of the two accuracies.
        low: The lower end of its 95 % interval.
        high: The upper end.
    """

    value: float
    low: float
    high: float


def advantage(
    attack: AttackResult, control: AttackResult, examples: int
) -> Advantage:
    """The advantage A of an attack over a control, with its interval.

    A = A_t - A_c, with A_t what the attack reaches and A_c what training
    from scratch reaches on the same data with the same tuning. The strength
    S = A_p - A_t says how far an attacker stays from the valid passport; A
    says whether the network was worth stealing.

    Args:
        attack: The attack's result.
        control: That of `from_scratch` on the same data, judged by the same
            examples.
        examples: How many.

    Returns:
        An `Advantage`. The interval is of two proportions on the same
        examples, if both results have `right`.

    Example:

    >>> recipe = kp.attacks.Recipe(epochs=1)
    >>> given = (model, data, test)
    >>> attack = kp.attacks.fine_tuning(*given, recipe=recipe)
    >>> control = kp.attacks.from_scratch(*given, recipe=recipe)
    >>> gained = kp.attacks.advantage(attack, control, len(test[1])).value
    """
    counts = [round(one.accuracy * examples) for one in (attack, control)]
    both = None
    if attack.right and control.right:
        ours, theirs = (
            unpacked(one.right, examples) for one in (attack, control)
        )
        both = int(np.sum(ours & theirs))
    low, high = metrics.advantage_interval(*counts, examples, both=both)
    return Advantage(100 * (counts[0] - counts[1]) / examples, low, high)
