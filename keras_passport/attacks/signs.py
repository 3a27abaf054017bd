"""A search over the signs of γ, which plain RevA leaves mostly as they are."""

import dataclasses
import time
from typing import Any

import keras
import numpy as np

from keras_passport.attacks import labelled, reverse, training
from keras_passport.attacks.opened import Opened, neutral
from keras_passport.attacks.options import TrainingOptions, check_counts
from keras_passport.attacks.result import AttackResult
from keras_passport.layers.protected import function_of
from keras_passport.models import protected_model

# Where γ starts, so that its sign is decided within a few steps; and how much
# larger those are.
SMALL, FASTER = 0.05, 2.0
# Starts, pictures that a change is judged by, and signs that are changed.
STARTS, PICTURES, FLIPS = 3, 500, 200


def sign_search(
    model: keras.Model,
    data: tuple,
    test: tuple,
    options: TrainingOptions | None = None,
    *,
    starts: int = STARTS,
    flips: int = FLIPS,
    **changes: Any,
) -> AttackResult:
    """Looks for signs of γ: from small ones, then one by one.

    RevA moves γ of size 1; a wrong sign must pass through 0, where the channel
    says nothing. So it starts here from γ of ±0.05, several times, with larger
    steps. Then the signs of the best one's smallest γ are changed, one by one,
    where that makes the labelled loss smaller; and RevA goes on from there.
    (Layers of one start in the place of another's were no better.)

    Args:
        model: As for `reverse_engineering`.
        data: The attacker's inputs and integer labels.
        test: The judge's inputs and labels, for the accuracy reported.
        options: As for `reverse_engineering`, but that `start` means nothing
            here, and `starts` stands in place of `restarts`.
        starts: How often to start.
        flips: How many signs to change.
        **changes: Fields of `options` by name.

    Returns:
        An `AttackResult`: the starts, and what came after them; the
        attacker's validation chooses. `history[-1]["flipped"]` is the number of
        signs that were changed.

    Raises:
        ValueError: If an argument is out of range.
        PassportError: If the model is not protected.

    Example:

    >>> result = kp.attacks.sign_search(
    ...     *(model, data, test),
    ...     starts=2,
    ...     flips=2,
    ...     recipe=kp.attacks.Recipe(epochs=1),
    ... )
    >>> len(result.accuracies)
    3
    """
    began = time.monotonic()
    options = TrainingOptions.of(
        options, changes, unused=("start", "restarts"), recipe=reverse.RECIPE
    )
    check_counts(1, starts=starts)
    check_counts(0, flips=flips)
    public = protected_model.public(model)
    first = _started(public, data, test, options, starts)
    judge = _Judge(public, *_few(data, options))
    parameters, flipped = judge.flipped(
        first.history[first.chosen]["parameters"], flips
    )
    last = reverse.restarted(
        "search over signs",
        reverse.Opener(public, data=data),
        data,
        test,
        dataclasses.replace(options, start=parameters, restarts=1),
    )
    told = {**last.history[0], "flipped": flipped}
    joined = {
        name: getattr(first, name) + getattr(last, name)
        for name in ("accuracies", "entropies", "validation", "losses")
    }
    history = tuple(
        {k: v for k, v in about.items() if k != "parameters"}
        for about in first.history
    )
    result = dataclasses.replace(
        last,
        **joined,
        history=(*history, told),
        seconds=time.monotonic() - began,
        budget={
            **last.budget,
            **{
                name: first.budget[name] + last.budget[name]
                for name in ("epochs", "steps", "seen", "trials")
            },
        },
    )
    if result.chosen < len(first.accuracies):
        kept = {n: getattr(first, n) for n in ("right", "model", "public")}
        result = dataclasses.replace(result, **kept)
    return result


def _few(data, options):
    """Some of the pictures that the attacker trains on."""
    mine = labelled.share(data, options.fraction, options.seed)
    some = labelled.split(mine, options.seed)[0]
    part = min(1.0, PICTURES / len(some[1]))
    x, y = labelled.share(some, part, options.seed)
    return x, labelled.classes_of(y)


def _started(public, data, test, options, starts):
    """Trainings from small γ, whose history has what they found."""
    mine = labelled.share(data, options.fraction, options.seed)
    recipe = dataclasses.replace(
        options.recipe, learning_rate=FASTER * options.recipe.learning_rate
    )
    opened = Opened(public, statistics=options.statistics)

    def trial(number):
        def make(attempt):
            opened.reset(
                public, _small(public, [options.seed, number, attempt])
            )
            return opened

        def about(attempt):
            return {"start": "small", "parameters": opened.parameters}

        return training.Trial(about, make, recipe)

    return training.run(
        "small starts",
        [trial(number) for number in range(starts)],
        mine,
        test,
        seed=options.seed,
        knowledge={"labels": True, "images": len(mine[1])},
        search=options.search,
        keep_model=options.keep_model,
        progress=options.progress,
    )


def _small(model, seed):
    """γ of ±0.05 where it is hidden; the first start's are all positive."""
    rng = np.random.default_rng(seed)
    parameters = neutral(model)
    if function_of(model).hides_gamma:
        for path, (gamma, beta) in parameters.items():
            signs = rng.choice([-1.0, 1.0], gamma.shape)
            signs = signs if seed[1] or seed[2] else 1.0
            parameters[path] = (SMALL * signs * gamma).astype("float32"), beta
    return parameters


class _Judge:
    """The loss of made-up γ and β on labelled pictures.

    Args:
        public: What is public of the model.
        x: Inputs, or a dict of them.
        y: Integer labels.
    """

    def __init__(self, public, x, y):
        self._opened = Opened(public, statistics=True)
        self._x, self._y = x, y
        self._hides = function_of(public).hides_gamma
        self._measure = keras.losses.SparseCategoricalCrossentropy(
            training.gives_logits(self._opened, x)
        )

    def loss(self, parameters) -> float:
        self._opened.assign(parameters)
        # By the batch's statistics: those of before are of other γ.
        return float(
            self._measure(self._y, self._opened(self._x, training=True))
        )

    def flipped(self, parameters, count) -> tuple:
        """γ with some signs changed, smallest first; and how many."""
        if not self._hides:
            return parameters, 0
        places = sorted(
            (abs(value), path, channel)
            for path, (gamma, _) in parameters.items()
            for channel, value in enumerate(gamma)
        )
        least, taken = self.loss(parameters), 0
        for _, path, channel in places[:count]:
            gamma, beta = parameters[path]
            changed = np.array(gamma)
            changed[channel] *= -1
            tried = {**parameters, path: (changed, beta)}
            loss = self.loss(tried)
            if loss < least:
                parameters, least, taken = tried, loss, taken + 1
        return parameters, taken
