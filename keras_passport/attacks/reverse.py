"""RevA: reverse engineering of the hidden parameters (Section 3.1)."""

import functools
from typing import Any

import keras
import numpy as np

from keras_passport import scores
from keras_passport.attacks import labelled, training
from keras_passport.attacks.opened import Opened, neutral
from keras_passport.attacks.options import STARTS, TrainingOptions
from keras_passport.attacks.result import AttackResult
from keras_passport.attacks.statistics import usual_sizes
from keras_passport.layers.protected import function_of, protected_layers
from keras_passport.models import features, protected_model
from keras_passport.passports.derivation import FAKE, fake_seed
from keras_passport.passports.passport import Passport

# Pictures that tell the usual size of γ.
FEW = 64
# γ and β alone take larger steps than kernels do.
RECIPE = training.Recipe(learning_rate=0.05)


def reverse_engineering(
    model: keras.Model,
    data: tuple,
    test: tuple,
    options: TrainingOptions | None = None,
    **changes: Any,
) -> AttackResult:
    """Trains γ and β as variables, with the published kernels as they are.

    Args:
        model: Protected classifier with one output; what is public of it is
            used alone.
        data: The attacker's inputs, float array `(examples, ...)` (or a dict
            for several inputs), and integer labels `(examples,)`.
        test: The judge's inputs and labels, for the accuracy reported.
        options: How much of the data, from where, how often and how to train;
            the recipe is `Recipe(learning_rate=0.05)` if none is given.
        **changes: Fields of `options` by name.

    Returns:
        An `AttackResult`; the attacker's validation chooses the trial.

    Raises:
        ValueError: If an argument is out of range.
        PassportError: If the model is not protected.

    Example:

    >>> result = kp.attacks.reverse_engineering(
    ...     model, data, test, recipe=kp.attacks.Recipe(epochs=1)
    ... )
    >>> 0 <= result.accuracy <= 1
    True

    Reference:

    - Fan, Ng, Chan: Digital Passport, Section 3.1, Table 4, Figure 7.
    """
    return restarted(
        "reverse engineering",
        Opener(model, data=data),
        data,
        test,
        TrainingOptions.of(options, changes, recipe=RECIPE),
    )


class Opener:
    """Opens a model for one trial after another.

    Trials that train alike share an `Opened`, which is compiled once.

    Args:
        model: Protected model; what is public of it is used alone.
        make: `Opened` or a subclass; called with what is public, the starting
            parameters, `statistics` and the options.
        data: The attacker's inputs and labels. The inputs tell the size of
            fakes where the model leaves it open, and with published
            statistics the size of γ.
        **options: For `make`.
    """

    def __init__(self, model: keras.Model, make=Opened, data=None, **options):
        self.public = protected_model.public(model)
        self._size = None
        self._few = None
        if data is not None:
            inputs, _ = scores.pair(data)
            self._size = features.open_sizes(self.public, inputs)
            self._few = labelled.take(inputs, slice(0, FEW))
        self._make = functools.partial(make, **options)
        self._made = {}

    def trial(
        self,
        start: str | dict,
        statistics: bool,
        recipe: training.Recipe,
        seed: list[int],
    ) -> training.Trial:
        """One trial; see `reverse_engineering`.

        A start that is stuck is followed by the others of `STARTS`.
        """

        def start_of(attempt):
            if isinstance(start, dict):
                return [start, *STARTS][attempt % (1 + len(STARTS))]
            return STARTS[(STARTS.index(start) + attempt) % len(STARTS)]

        def about(attempt):
            begun = start_of(attempt)
            return {
                "start": begun if isinstance(begun, str) else "given",
                "statistics": "re-estimated" if statistics else "published",
            }

        def make(attempt):
            drawn = starting_parameters(
                self.public, start_of(attempt), [*seed, attempt], self._size
            )
            if not statistics and isinstance(start_of(attempt), str):
                drawn = self._of_usual_size(drawn)
            key = (statistics, recipe.optimizer, recipe.weight_decay)
            if key in self._made:
                self._made[key].reset(self.public, drawn)
            else:
                self._made[key] = self._make(
                    self.public, drawn, statistics=statistics
                )
            return self._made[key]

        return training.Trial(about, make, recipe)

    @functools.cached_property
    def _sizes(self):
        if self._few is None:
            return {}
        return usual_sizes(self.public, self._few)

    def _of_usual_size(self, parameters):
        """Made-up γ, and their β, as large as published statistics say.

        What the function does not hide is as it is published.
        """
        hides = function_of(self.public)
        sized = {}
        for path, (gamma, beta) in parameters.items():
            factor = 1.0
            if hides.hides_gamma and path in self._sizes:
                factor = self._sizes[path] / max(np.mean(np.abs(gamma)), 1e-12)
            sized[path] = (
                gamma * factor,
                beta * factor if hides.hides_beta else beta,
            )
        return sized


def restarted(
    name: str,
    opener: Opener,
    data: tuple,
    test: tuple,
    options: TrainingOptions,
) -> AttackResult:
    """Runs an attack from several starts; see `reverse_engineering`.

    Args:
        name: Of the attack.
        opener: Makes what is trained.
        data: The attacker's inputs and integer labels.
        test: The judge's.
        options: With a recipe.
    """
    mine = labelled.share(data, options.fraction, options.seed)
    return training.run(
        name,
        [
            opener.trial(
                options.start,
                options.statistics,
                options.recipe,
                [options.seed, number],
            )
            for number in range(options.restarts)
        ],
        mine,
        test,
        seed=options.seed,
        knowledge={"labels": True, "images": len(mine[1])},
        search=options.search,
        keep_model=options.keep_model,
        progress=options.progress,
    )


def starting_parameters(
    model: keras.Model,
    start: str | dict,
    seed: list[int],
    spatial_size: tuple[int, ...] | None = None,
) -> dict:
    """γ and β that an attacker starts from; see `reverse_engineering`.

    Args:
        model: Protected model.
        start: As for `reverse_engineering`.
        seed: Integers.
        spatial_size: Of the model's inputs where it leaves it open.

    Returns:
        Dict from path to γ and β, float32 arrays `(channels,)`. V1's β and
        V2's γ are the published ones.
    """
    parameters = neutral(model)
    if isinstance(start, dict):
        if missing := sorted(set(parameters) - set(start)):
            raise ValueError(
                "Expected start to have γ and β of every protected layer. "
                f"Received: none for '{missing[0]}'"
            )
        return start
    if start == "neutral":
        return parameters
    layers = protected_layers(model)
    if start == "fake":
        root = fake_seed(seed, "start")
        rows = Passport.random_pattern(
            model, seed=root, spatial_size=spatial_size, domain=FAKE
        ).rows()
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
