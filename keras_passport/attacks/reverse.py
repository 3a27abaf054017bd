"""RevA: reverse engineering of the hidden parameters (Section 3.1)."""

import keras
import numpy as np

from keras_passport import models
from keras_passport.attacks import training
from keras_passport.attacks.opened import Opened, neutral
from keras_passport.attacks.result import AttackResult
from keras_passport.derivation import FAKE, derive
from keras_passport.passports import Passport

STARTS = ("neutral", "fake", "random")


def reverse_engineering(
    model: keras.Model,
    data: tuple,
    test: tuple,
    *,
    fraction: float = 1.0,
    start: str | dict = "neutral",
    statistics: bool = True,
    recipe: training.Recipe | None = None,
    restarts: int = 1,
    seed: int = 0,
    keep_model: bool = False,
    progress: bool = False,
) -> AttackResult:
    """Trains γ and β as variables, with the published kernels as they are.

    Args:
        model: Protected classifier with one output; what is public of it is
            used alone.
        data: The attacker's inputs, float array `(examples, ...)` (or a dict
            for several inputs), and integer labels `(examples,)`.
        test: The judge's inputs and labels, for the accuracy reported.
        fraction: Part of `data` that the attacker has, in (0, 1].
        start: Where γ and β start: `"neutral"` (1 and 0), `"fake"` (those of
            a fake random pattern), `"random"` (normal), or a dict from path
            to γ and β, such as another attack found.
        statistics: Whether statistics are those of the batch, and estimated
            anew; otherwise they stay as published.
        recipe: How to train; `Recipe()` if not given.
        restarts: Trials, each with draws of its own; more than one start is
            told by `history`.
        seed: Of all draws.
        keep_model: Whether the result holds the attacked model.
        progress: Whether to show progress bars.

    Returns:
        An `AttackResult`; the attacker's validation chooses the trial.

    Raises:
        ValueError: If an argument is out of range.
        PassportError: If the model is not protected.

    Example:

    >>> result = reverse_engineering(model, (x, y), (x_test, y_test))
    >>> result.accuracy

    Reference:

    - Fan, Ng, Chan: Digital Passport, Section 3.1, Table 4, Figure 8.
    """
    public = models.public(model)
    if isinstance(start, str) and start not in STARTS:
        raise ValueError(
            f"Expected start to be one of {STARTS} or a dict. "
            f"Received: start={start!r}"
        )
    if restarts < 1:
        raise ValueError(
            f"Expected restarts of 1 or more. Received: restarts={restarts}"
        )

    def make(number, attempt):
        drawn = starting_parameters(public, start, [seed, number, attempt])
        return Opened(public, drawn, statistics=statistics)

    trials = [
        training.Trial(
            {"start": start if isinstance(start, str) else "given"},
            lambda attempt, number=number: make(number, attempt),
            recipe or training.Recipe(),
        )
        for number in range(restarts)
    ]
    mine = training.share(data, fraction, seed)
    return training.run(
        "reverse engineering",
        trials,
        mine,
        test,
        seed=seed,
        knowledge={
            "labels": True,
            "images": len(mine[1]),
            "statistics": "re-estimated" if statistics else "published",
        },
        keep_model=keep_model,
        progress=progress,
    )


def starting_parameters(
    model: keras.Model, start: str | dict, seed: list[int]
) -> dict:
    """γ and β that an attacker starts from; see `reverse_engineering`.

    Args:
        model: Protected model.
        start: As for `reverse_engineering`.
        seed: Integers.

    Returns:
        Dict from path to γ and β, float32 arrays `(channels,)`. V1's β and
        V2's γ are the published ones.
    """
    if isinstance(start, dict):
        return start
    parameters = neutral(model)
    if start == "neutral":
        return parameters
    layers = models.protected_layers(model)
    if start == "fake":
        root = derive(str(seed).encode().rjust(16, b"0"), FAKE, "start")
        rows = Passport.random_pattern(model, seed=root, domain=FAKE).rows()
        drawn = {
            path: layer.hidden_parameters(rows[path])
            for path, layer in layers.items()
        }
    else:
        rng = np.random.default_rng(seed)
        drawn = {
            path: tuple(
                rng.normal(scale=scale, size=np.shape(parameters[path][0]))
                if role in layer.function.roles
                else None
                for role, scale in (("gamma", 1.0), ("beta", 0.5))
            )
            for path, layer in layers.items()
        }
    return {
        path: tuple(
            own if value is None else np.asarray(value, "float32")
            for own, value in zip(parameters[path], drawn[path], strict=True)
        )
        for path in parameters
    }
