"""Tuned attacks: the attackers, and the controls, whose numbers count."""

import dataclasses
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_passport.attacks import labelled, reverse, training
from keras_passport.attacks.kept import Kept, fingerprint
from keras_passport.attacks.options import STARTS, TrainingOptions, check_counts
from keras_passport.attacks.recipe import OPTIMIZERS, SCHEDULES, Recipe
from keras_passport.attacks.result import AttackResult
from keras_passport.attacks.searching import Search, enough_epochs
from keras_passport.layers import normalization
from keras_passport.layers.protected import protected_layers
from keras_passport.models import protected_model

SEARCHES = ("random", "hyperband")
_PROJECT = "reverse_engineering"
# The best of many trials on few pictures is the luckiest: on how many splits
# of the data one must lead, and what part of the trials may be spent on that.
_SPLITS = 3
_CONFIRMING = 4
# Those of CIFAR-10's training set, for parts of which `enough_epochs` is.
_PICTURES = 50_000


def tuned(
    attack: Callable[..., AttackResult],
    model: keras.Model,
    data: tuple,
    test: tuple,
    options: TrainingOptions | None = None,
    **changes: Any,
) -> AttackResult:
    """An attack or a control with its optimizer and learning rate tuned.

    Numbers of two trainings compare only if both were tuned alike: an
    attacker who reaches what their pictures are worth to somebody who trains
    from scratch has gained nothing, and a control that was not tuned says
    that of nobody. All of them try the same recipes.

    Args:
        attack: One that trains and takes `TrainingOptions`, such as
            `reverse_engineering`, `fine_tuning` or `from_scratch`.
        model: Protected classifier with one output; what is public of it is
            used alone.
        data: The attacker's inputs and integer labels.
        test: The judge's inputs and labels, for the accuracy reported.
        options: Of the attack. The recipe says what is not tried; without
            one, cosine after a warm-up, weight decay 5e-4, batches of 64,
            pictures as they are (`augment` is worth much to the few), and
            15 epochs for 50,000 pictures or more, up to 100 for fewer
            (`enough_epochs`). The search says what is; `Search()` if none is
            given.
        **changes: Fields of `options` by name, and the attack's own
            arguments.

    Returns:
        The attack's result; every training is in its `history`, and what all
        of them cost in its `budget`, in steps and pictures seen.

    Raises:
        ValueError: If an argument is out of range.
        PassportError: If the model is not protected.

    Example:

    >>> few = kp.attacks.TrainingOptions(
    ...     recipe=kp.attacks.Recipe(epochs=1),
    ...     search=kp.attacks.Search(
    ...         tried=(("sgd", 0.1), ("adam", 0.007)), finalists=1, doublings=0
    ...     ),
    ... )
    >>> given = (model, data, test, few)
    >>> control = kp.attacks.tuned(kp.attacks.from_scratch, *given)
    >>> result = kp.attacks.tuned(
    ...     kp.attacks.ambiguity, *given, block="CERB"
    ... )
    >>> gained = kp.attacks.advantage(result, control, len(test[1])).value
    """
    given = options or TrainingOptions()
    fields = {field.name for field in dataclasses.fields(TrainingOptions)}
    own = {k: v for k, v in changes.items() if k not in fields}
    given = dataclasses.replace(
        given, **{k: v for k, v in changes.items() if k in fields}
    )
    pictures = given.fraction * len(data[1])
    recipe = given.recipe or Recipe(
        # All of few pictures make few steps, too.
        epochs=enough_epochs(min(1.0, pictures / _PICTURES)),
        warmup=0.05,
        weight_decay=5e-4,
    )
    search = given.search or Search()
    given = dataclasses.replace(given, recipe=recipe, search=search)
    return attack(model, data, test, given, **own)


def tune_reverse_engineering(
    model: keras.Model,
    data: tuple,
    test: tuple,
    options: TrainingOptions | None = None,
    *,
    trials: int = 40,
    search: str = "random",
    directory: str | None = None,
    **changes: Any,
) -> AttackResult:
    """Searches RevA's learning rate, optimizer, start, statistics, schedule.

    The first trial is `reverse_engineering` as it is by default; keras-tuner
    proposes the others. By the attacker's validation is chosen: the test data
    has no say. Since the best of many is the luckiest, too, the trial that
    leads is trained again on other splits of the data, and counts with its
    mean, until one leads on three, or as many as a quarter of the trials have
    been trained again.

    Args:
        model: As for `reverse_engineering`.
        data: The attacker's inputs and integer labels.
        test: The judge's inputs and labels, for the accuracy reported.
        options: As for `reverse_engineering`. `start` and `statistics` are
            searched for, and there are `trials` instead of `restarts`. Of
            the recipe count what is not searched for: epochs (at most, for
            Hyperband), batch size, weight decay, augmentation. With
            `keep_model` the chosen trial is trained once more.
        trials: How many to try, 1 or more.
        search: `"random"`, or `"hyperband"`: many trials of few epochs, the
            best of which get more.
        directory: Folder in which to keep the trials: a search that was ended,
            or is to have more trials, goes on from there. It holds
            hyperparameters and accuracies. Defaults to none.
        **changes: Fields of `options` by name.

    Returns:
        An `AttackResult` whose `history` has every trial.

    Raises:
        ValueError: If an argument is out of range, or the directory is
            another search's.
        ImportError: If keras-tuner is missing: it comes with the extra
            `keras-passport[tune]`.

    Example:

    >>> result = kp.attacks.tune_reverse_engineering(
    ...     model, data, test, trials=2, recipe=kp.attacks.Recipe(epochs=1)
    ... )
    >>> rate = result.history[result.chosen]["learning_rate"]

    Reference:

    - Fan, Ng, Chan: Digital Passport, Section 3.1, Table 4.
    """
    if search not in SEARCHES:
        raise ValueError(
            f"Expected search to be one of {SEARCHES}. Received: {search!r}"
        )
    check_counts(1, trials=trials)
    options = TrainingOptions.of(
        options,
        changes,
        unused=("start", "statistics", "restarts", "search"),
        recipe=reverse.RECIPE,
    )
    mine = labelled.share(data, options.fraction, options.seed)
    if directory is not None:
        folder = pathlib.Path(directory)
        return _search(model, mine, test, folder, trials, search, options)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        return _search(model, mine, test, folder, trials, search, options)


def _search(model, data, test, folder, trials, search, options):
    recipe, seed = options.recipe, options.seed
    kept = Kept(
        folder,
        {
            "search": search,
            "recipe": recipe.to_dict(),
            "seed": seed,
            "model": fingerprint(protected_model.public(model).get_weights()),
            "data": fingerprint(keras.tree.flatten([data, test])),
        },
    )
    opener = reverse.Opener(model, data=data)
    choices = _statistics(opener.public)
    oracle = _oracle(search, recipe, seed, folder, choices)

    def attack(start, statistics, recipe, split=0, keep_model=False):
        trial = opener.trial(start, statistics, recipe, [seed, 0])
        return training.run(
            "tuned reverse engineering",
            [trial],
            data,
            test,
            seed=seed + split,
            knowledge={"labels": True, "images": len(data[1])},
            keep_model=keep_model,
        )

    bar = None
    if options.progress:
        bar = keras.utils.Progbar(trials, stateful_metrics=["best"])
    searched = []

    def reach(name, settings, split=0):
        """A training's result: read, if it was here before, or made."""
        return AttackResult.from_dict(
            kept.reach(
                f"{name}-{split}" if split else name,
                lambda: attack(**settings, split=split).to_dict(),
            )
        )

    def note(name, settings):
        trial = _Searched(name, settings, [reach(name, settings)])
        searched.append(trial)
        if bar:
            best = max(trial.validation for trial in searched)
            bar.update(len(searched), [("best", best)])
        return trial

    note("default", {"start": "neutral", "statistics": True, "recipe": recipe})
    for identity in oracle.end_order[: trials - 1]:
        values = oracle.trials[identity].hyperparameters.values
        note(identity, _settings(values, recipe))
    while len(searched) < trials:
        proposed = oracle.create_trial(_PROJECT)
        if proposed.status == "STOPPED":
            break
        settings = _settings(proposed.hyperparameters.values, recipe)
        reached = note(proposed.trial_id, settings)
        oracle.update_trial(
            proposed.trial_id, {"val_accuracy": reached.validation}
        )
        proposed.status = "COMPLETED"
        oracle.end_trial(proposed)
    if searched[0].results[0].budget["validation"] and len(searched) > 1:
        for _ in range(-(-len(searched) // _CONFIRMING)):
            leader = min(searched, key=_Searched.standing)
            split = len(leader.results)
            if split == _SPLITS:
                break
            leader.results.append(reach(leader.name, leader.settings, split))
    return _together(searched, attack, options.keep_model)


@dataclasses.dataclass
class _Searched:
    """A trial of the search, trained on one split of the data or more."""

    name: str
    settings: dict
    results: list[AttackResult]

    @property
    def validation(self) -> float:
        return float(np.mean([r.validation[0] for r in self.results]))

    @property
    def loss(self) -> float:
        return float(np.mean([r.losses[0] for r in self.results]))

    def standing(self) -> tuple[float, float]:
        """The less the better; as `AttackResult.chosen` has it."""
        return -self.validation, self.loss

    def told(self) -> dict:
        """What the history says of it."""
        about = self.results[0].history[0]
        if len(self.results) == 1:
            return about
        return {
            **about,
            "validation_on_splits": [r.validation[0] for r in self.results],
        }


def _together(searched, attack, keep_model):
    """All trials as one result; accuracies are those on the first split."""
    first = searched[0].results[0]
    results = [result for trial in searched for result in trial.results]
    whole = dataclasses.replace(
        first,
        accuracies=tuple(t.results[0].accuracies[0] for t in searched),
        entropies=tuple(t.results[0].entropies[0] for t in searched),
        validation=tuple(t.validation for t in searched),
        losses=tuple(t.loss for t in searched),
        history=tuple(t.told() for t in searched),
        budget={
            **first.budget,
            "trials": len(searched),
            **{
                name: sum(r.budget[name] for r in results)
                for name in ("epochs", "steps", "seen")
            },
        },
        # Those of a search that was ended and gone on with, too.
        seconds=sum(r.seconds for r in results),
    )
    chosen = searched[whole.chosen].results[0]
    whole = dataclasses.replace(whole, right=chosen.right)
    if keep_model:
        again = attack(**searched[whole.chosen].settings, keep_model=True)
        whole = dataclasses.replace(
            whole, model=again.model, public=again.public
        )
    return whole


def _settings(values, recipe):
    """What a trial's hyperparameters say of start, statistics and recipe."""
    return {
        "start": values["start"],
        "statistics": values["statistics"],
        "recipe": dataclasses.replace(
            recipe,
            optimizer=values["optimizer"],
            learning_rate=values["learning_rate"],
            schedule=values["schedule"],
            epochs=values.get("tuner/epochs", recipe.epochs),
        ),
    }


def _statistics(model) -> list[bool]:
    """Whether to re-estimate statistics: what there is to choose from."""
    found = [
        layer.normalization
        for layer in protected_layers(model).values()
        if isinstance(layer.normalization, keras.layers.BatchNormalization)
    ]
    # Hidden ones belong to γ and β that are hidden too: of no use to others.
    published = all(map(normalization.tells_channels_apart, found))
    return [False, True] if published else [True]


def _oracle(search, recipe, seed, folder, statistics):
    """A keras-tuner oracle that proposes trials, as far as it had come."""
    import keras_tuner

    space = keras_tuner.HyperParameters()
    space.Float("learning_rate", 3e-3, 1.0, sampling="log")
    space.Choice("optimizer", list(OPTIMIZERS))
    space.Choice("schedule", list(SCHEDULES))
    space.Choice("start", list(STARTS))
    space.Choice("statistics", statistics)
    options = {
        "objective": keras_tuner.Objective("val_accuracy", "max"),
        "hyperparameters": space,
        # keras-tuner takes 0 for none.
        "seed": seed + 1,
    }
    if search == "random":
        oracle = keras_tuner.oracles.RandomSearchOracle(**options)
    else:
        oracle = keras_tuner.oracles.HyperbandOracle(
            max_epochs=recipe.epochs, hyperband_iterations=None, **options
        )
    oracle.verbose = 0
    oracle._set_project_dir(str(folder), _PROJECT)
    if (folder / _PROJECT / "oracle.json").exists():
        oracle.reload()
    # The caller counts.
    oracle.max_trials = None
    return oracle
