"""How each attack is run: what it takes of a case and of a budget."""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras

from keras_passport import attacks
from keras_passport.attacks import AttackResult, Recipe, TrainingOptions
from keras_passport.attacks.searching import Search, enough_epochs
from keras_passport.evaluation.budgets import Budget
from keras_passport.evaluation.case import Case
from keras_passport.layers.normalization import tells_channels_apart
from keras_passport.layers.protected import function_of, protected_layers

# Fakes that are tried between two writings of what they reached: on so many
# pictures together, some minutes' work, and of a long series a twentieth, since
# all of them are written each time.
_BETWEEN = 500_000
_PARTS = 20
# Trials of a tuned attacker, at least; pictures that statistics are matched on.
_TUNED = 40
UNLABELLED = 512
GUESSED = 200

# How an attacker trains, but for epochs: γ and β alone take larger steps than
# kernels do, a few coordinates of them many small batches.
RECIPE = Recipe(batch_size=128)
REVA = Recipe(batch_size=128, learning_rate=0.05)
BLOCKS = Recipe(batch_size=128, learning_rate=0.01)
COORDINATES = Recipe(batch_size=32, learning_rate=0.1)


def training_options(
    case: Case, budget: Budget, recipe: Recipe = RECIPE, progress: bool = False
) -> TrainingOptions:
    """How attackers train: of few data, in smaller batches.

    Args:
        case: What is attacked.
        budget: What the attack may spend.
        recipe: How it trains, but for what the budget says.
        progress: Whether to show bars.
    """
    pictures = budget.fraction * len(case.examples(budget.source)[1])
    epochs, search = budget.epochs, None
    if budget.tuned:
        # All of few pictures make few steps, too.
        part = min(1.0, pictures / len(case.train[1]))
        epochs = max(epochs, enough_epochs(part))
        recipe = dataclasses.replace(recipe, warmup=0.05, weight_decay=5e-4)
        search = Search()
    return TrainingOptions(
        fraction=budget.fraction,
        search=search,
        recipe=dataclasses.replace(
            recipe,
            epochs=epochs,
            batch_size=int(min(recipe.batch_size, max(16, pictures // 16))),
            augment=case.augment,
        ),
        restarts=budget.trials,
        seed=budget.seed,
        progress=progress,
    )


def trained(
    attack: Callable[..., AttackResult],
    recipe: Recipe = RECIPE,
    relative: bool = False,
    answers: str | None = None,
    **own: Any,
):
    """The `run` of an attack that trains on labelled pictures.

    Args:
        attack: Of `kp.attacks`, called as `reverse_engineering` is.
        recipe: How it trains, but for what the budget says.
        relative: Whether it has the ancestor too, behind the model.
        answers: `"labels"` or `"probabilities"`: what a service says of the
            pictures takes their labels' place.
        **own: Arguments of its own.
    """

    def run(case, budget, progress):
        return attack(
            case.model,
            *([case.ancestor] if relative else []),
            case.answered(budget.source, answers)
            if answers
            else case.examples(budget.source),
            case.judges(),
            training_options(case, budget, recipe, progress.shown),
            **own,
        )

    return run


def from_what(
    first: str,
    attack: str = "reverse_engineering",
    recipe: Recipe = REVA,
    aligned: bool = False,
    **own: Any,
):
    """The `run` of an attack that starts from what another one found.

    Args:
        first: Name of the other one.
        attack: As for `trained`; its γ and β start from those found. RevA
            if not given.
        recipe: As for `trained`.
        aligned: Whether rows in a secret order are put back as the ancestor
            has them: what was found is for those.
        **own: Arguments of its own.
    """

    def run(case, budget, progress):
        found, parameters = progress.found(first, budget)
        result = getattr(attacks, attack)(
            case.aligned if aligned else case.model,
            case.examples(budget.source),
            case.judges(),
            training_options(case, budget, recipe, progress.shown),
            start=parameters,
            **own,
        )
        return dataclasses.replace(
            result,
            name=f"{found.name}, then {result.name}",
            seconds=found.seconds + result.seconds,
        )

    return run


def searched(case, budget, progress):
    options = training_options(case, budget, REVA, progress.shown)
    return attacks.tune_reverse_engineering(
        case.model,
        case.examples(budget.source),
        case.judges(),
        dataclasses.replace(options, restarts=1),
        trials=max(_TUNED, budget.trials),
        directory=progress.path,
    )


def fakes(kind: str):
    """The `run` of an attack of fake passports.

    Args:
        kind: As for `kp.attacks.fake_passports`.
    """

    def run(case, budget, progress):
        sources = {}
        if kind != "random_pattern":
            known = kind == "known_images"
            sources["images"] = case.known_images if known else case.images
            sources["reference"] = case.reference
        between = max(
            1, _BETWEEN // budget.examples, budget.num_fakes // _PARTS
        )
        result = progress.kept()
        done = len(result.accuracies) if result else 0
        while done < budget.num_fakes:
            tried = attacks.fake_passports(
                case.model,
                kind,
                min(between, budget.num_fakes - done),
                case.judges(budget.examples),
                key_scaling=case.key_scaling,
                order_seeds=case.order_seeds,
                seed=budget.seed,
                start=done,
                progress=progress.shown,
                **sources,
            )
            result = result.joined(tried) if result else tried
            done = len(result.accuracies)
            if done < budget.num_fakes:
                progress.keep(result)
        return result

    return run


def related(attack: Callable[..., AttackResult]):
    """The `run` of an attack that has an ancestor, and no labels."""

    def run(case, budget, progress):
        return attack(case.model, case.ancestor, case.judges())

    return run


# What is missing in a case for an attack ---------------------------------


def no_reference(case):
    """Why no feature maps can be made, or None."""
    if case.reference is None:
        return "there is no original to make feature maps with"
    return None


def no_images(case):
    """Why the owner's images can't be guessed, or None."""
    if case.known_images is None:
        return no_reference(case) or "the passport is none of random images"
    return no_reference(case)


def no_ancestor(case):
    """Why nothing can be taken from an ancestor, or None."""
    return None if case.ancestor else "no ancestor is known"


def blind(case, budget, progress):
    return attacks.spectral(case.model, None, case.judges())


def statistics(case, budget, progress):
    return attacks.statistics_matching(
        case.model,
        # Statistics are of pictures as training shows them: without that they
        # miss by several times what pictures' own variety makes.
        case.unlabelled(budget.source, UNLABELLED, budget.seed),
        case.judges(),
        directory=progress.path,
        seed=budget.seed,
        progress=progress.shown,
    )


def guessed(case, budget, progress):
    return attacks.guess_images(
        case.model,
        case.known_images,
        case.unlabelled(budget.source, GUESSED, budget.seed),
        case.judges(),
        reference=case.reference,
        key_scaling=case.key_scaling,
        seed=budget.seed,
        progress=progress.shown,
    )


def shows_gamma(case):
    """Why signs of γ need not be predicted, or None."""
    hides = function_of(case.model).hides_gamma
    return None if hides else "γ is published"


def hides_statistics(case):
    """Why statistics can't be matched, or None."""
    published = any(
        tells_channels_apart(layer.normalization)
        for layer in protected_layers(case.model).values()
        if isinstance(layer.normalization, keras.layers.BatchNormalization)
    )
    return None if published else "the statistics are hidden"


def disclosed(case, budget, progress):
    result = attacks.key_forgery(case.model, case.judges(), **case.disclosed())
    # The keys' norms follow from γ and β, which were disclosed to the forger,
    # not to who reads the record.
    [about] = result.history
    systems = [
        {name: value for name, value in system.items() if name != "norm"}
        for system in about["systems"]
    ]
    return dataclasses.replace(result, history=({"systems": systems},))
