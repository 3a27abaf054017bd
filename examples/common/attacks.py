"""The attacks by name, what each is given, and how much it may spend.

A new attack is one more entry of `ATTACKS`.
"""

import dataclasses
import sys
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

import keras_passport as kp
from common.case import Case
from keras_passport.attacks import AttackResult, Recipe
from keras_passport.layers.normalization import tells_channels_apart

# Fakes that are tried between two writings of what they reached: on so many
# pictures together, some minutes' work, and of a long series a twentieth, since
# all of them are written each time.
_BETWEEN = 500_000
_PARTS = 20
# Trials of a tuned attacker, at least; pictures that statistics are matched on.
_TUNED = 40
_UNLABELLED = 512


@dataclasses.dataclass(frozen=True)
class Budget:
    """What an attack may spend. Each attack uses some of it.

    Attributes:
        num_fakes: fake passports to try.
        examples: the judge's pictures that each fake is tried on.
        source: the attacker's data: `"defender"` or `"disjoint"`.
        fraction: part of them that the attacker has, in (0, 1].
        epochs: passes over them.
        trials: trainings, of which the attacker's validation chooses.
        seed: of all draws.
    """

    num_fakes: int = 100
    examples: int = 500
    source: str = "defender"
    fraction: float = 1.0
    epochs: int = 10
    trials: int = 1
    seed: int = 0


_FAKES = ("num_fakes", "examples", "seed")
_ALL = ("quick", "standard", "full")
_LONG = _ALL[1:]
_TRAINING = ("source", "fraction", "epochs", "trials", "seed")


@dataclasses.dataclass(frozen=True)
class Attack:
    """One attack.

    Attributes:
        title: for tables and figures.
        knowledge: what the attacker has besides the published network.
        uses: names of the `Budget`'s fields that matter to it.
        run: `(case, budget)` -> `AttackResult`: the attack itself; of the
            budget it may use `uses` alone.
        control: whether it is no attack on the protection but a measure for
            those that are, such as training from scratch.
        in_parts: whether `run` takes the number of the trial to start with
            as a third argument, and returns some of a long series.
        in_folder: whether `run` takes a folder as a third argument, and goes on
            with what it finds there.
        first: the attack that it goes on from, if any: `run` takes the γ and
            β which that one found as a third argument.
        levels: batteries that it is in.
        unfit: why a case has nothing for this attack; None if it has.
    """

    title: str
    knowledge: str
    uses: tuple[str, ...]
    run: Callable[..., AttackResult]
    control: bool = False
    in_parts: bool = False
    in_folder: bool = False
    first: str | None = None
    levels: tuple[str, ...] = _ALL
    unfit: Callable[[Case], str | None] = lambda case: None


# How an attacker trains, but for epochs: γ and β alone take larger steps than
# kernels do, a few coordinates of them many small batches.
_RECIPE = Recipe(batch_size=128)
_REVA = Recipe(batch_size=128, learning_rate=0.05)
_BLOCKS = Recipe(batch_size=128, learning_rate=0.01)
_COORDINATES = Recipe(batch_size=32, learning_rate=0.1)


def _recipe(case: Case, budget: Budget, like: Recipe = _RECIPE) -> Recipe:
    """How attackers train; of few data, in smaller batches."""
    pictures = budget.fraction * len(case.examples(budget.source)[1])
    return dataclasses.replace(
        like,
        epochs=budget.epochs,
        batch_size=int(min(like.batch_size, max(16, pictures // 16))),
        augment=case.augment,
    )


def _shows() -> bool:
    """Whether somebody watches, and wants bars."""
    return sys.stdout.isatty()


def _fakes(kind: str, title: str, knowledge: str) -> Attack:
    def run(case, budget, start=0):
        some = max(1, _BETWEEN // budget.examples, budget.num_fakes // _PARTS)
        sources = {}
        if kind != "random_pattern":
            known = kind == "known_images"
            sources["images"] = case.known_images if known else case.images
            sources["reference"] = case.reference
        return kp.attacks.fake_passports(
            case.model,
            kind,
            min(some, budget.num_fakes - start),
            case.judges(budget.examples),
            key_scaling=case.key_scaling,
            seed=budget.seed,
            start=start,
            progress=_shows(),
            **sources,
        )

    def unfit(case):
        if kind != "random_pattern" and case.reference is None:
            return "the run has no original to make feature maps with"
        if kind == "known_images" and case.known_images is None:
            return "the passport is none of random images"
        return None

    return Attack(title, knowledge, _FAKES, run, in_parts=True, unfit=unfit)


def _training(
    title: str,
    attack: Callable[..., AttackResult],
    recipe: Recipe = _RECIPE,
    **options: Any,
) -> Attack:
    """An attack that trains on labelled pictures.

    Args:
        title: for tables and figures.
        attack: of `kp.attacks`, called as `reverse_engineering` is.
        recipe: how it trains, but for what the budget says.
        options: arguments of its own; `control` and `levels` are the entry's.
    """
    own = {k: options.pop(k) for k in ("control", "levels") if k in options}

    def run(case, budget):
        return attack(
            case.model,
            case.examples(budget.source),
            case.judges(),
            fraction=budget.fraction,
            recipe=_recipe(case, budget, recipe),
            restarts=budget.trials,
            seed=budget.seed,
            progress=_shows(),
            **options,
        )

    return Attack(title, "labelled pictures", _TRAINING, run, **own)


def _tuned(case, budget, folder):
    return kp.attacks.tune_reverse_engineering(
        case.model,
        case.examples(budget.source),
        case.judges(),
        trials=max(_TUNED, budget.trials),
        fraction=budget.fraction,
        recipe=_recipe(case, budget, _REVA),
        seed=budget.seed,
        directory=folder,
        progress=_shows(),
    )


def _spectral(case, budget):
    return kp.attacks.spectral(
        case.model,
        case.examples(budget.source),
        case.judges(),
        fraction=budget.fraction,
        recipe=_recipe(case, budget, _COORDINATES),
        restarts=budget.trials,
        seed=budget.seed,
        progress=_shows(),
    )


def _blind(case, budget):
    del budget  # There is nothing to spend.
    return kp.attacks.spectral(case.model, None, case.judges())


def _statistics(case, budget, folder):
    pictures, _ = case.examples(budget.source)
    # Statistics are of pictures as training shows them: without that they
    # miss by several times what pictures' own variety makes.
    pictures = case.augment(
        pictures[:_UNLABELLED], np.random.default_rng(budget.seed)
    )
    return kp.attacks.statistics_matching(
        case.model,
        pictures,
        case.judges(),
        directory=folder,
        seed=budget.seed,
        progress=_shows(),
    )


def _hide_statistics(case):
    """Why statistics can't be matched, or None."""
    published = any(
        tells_channels_apart(layer.normalization)
        for layer in kp.protected_layers(case.model).values()
        if isinstance(layer.normalization, keras.layers.BatchNormalization)
    )
    return None if published else "the statistics are hidden"


def _disclosed(case, budget):
    del budget  # A closed form has nothing to spend.
    result = kp.attacks.key_forgery(
        case.model, case.judges(), parameters=case.disclosed()
    )
    # The keys' norms follow from γ and β, which were disclosed to the forger,
    # not to who reads the record.
    [about] = result.history
    systems = [
        {name: value for name, value in system.items() if name != "norm"}
        for system in about["systems"]
    ]
    return dataclasses.replace(result, history=({"systems": systems},))


def _reva_from(case, budget, parameters):
    return kp.attacks.reverse_engineering(
        case.model,
        case.examples(budget.source),
        case.judges(),
        fraction=budget.fraction,
        start=parameters,
        recipe=_recipe(case, budget, _REVA),
        restarts=budget.trials,
        seed=budget.seed,
        progress=_shows(),
    )


def fine_tuned(case: Case, budget: Budget) -> AttackResult:
    """Fine-tuning of all layers, with the models that came of it."""
    return kp.attacks.fine_tuning(
        case.model,
        case.examples(budget.source),
        case.judges(),
        fraction=budget.fraction,
        recipe=_recipe(case, budget),
        seed=budget.seed,
        keep_model=True,
    )


ATTACKS: dict[str, Attack] = {
    "fake_random_pattern": _fakes(
        "random_pattern", "Fakes, random patterns (T1)", "nothing"
    ),
    "fake_fixed_image": _fakes(
        "fixed_image",
        "Fakes, fixed images (T2)",
        "other pictures, the unprotected network",
    ),
    "fake_random_image": _fakes(
        "random_image",
        "Fakes, random images (T3)",
        "other pictures, the unprotected network",
    ),
    "fake_known_images": _fakes(
        "known_images",
        "Fakes of the owner's images (T3)",
        "the owner's pictures, the unprotected network",
    ),
    "reverse_engineering": _training(
        "RevA", kp.attacks.reverse_engineering, _REVA
    ),
    "reverse_engineering_tuned": Attack(
        "RevA, tuned",
        "labelled pictures",
        _TRAINING,
        _tuned,
        in_folder=True,
        levels=_LONG,
    ),
    "spectral_blind": Attack("Spectral, without data", "nothing", (), _blind),
    "spectral": Attack("Spectral", "labelled pictures", _TRAINING, _spectral),
    "spectral_reva": Attack(
        "Spectral, then RevA",
        "labelled pictures",
        _TRAINING,
        _reva_from,
        first="spectral",
        levels=_LONG,
    ),
    "statistics": Attack(
        "Statistics matching",
        "unlabelled pictures",
        ("source", "seed"),
        _statistics,
        in_folder=True,
        levels=_LONG,
        unfit=_hide_statistics,
    ),
    "statistics_reva": Attack(
        "Statistics matching, then RevA",
        f"labelled pictures, and {_UNLABELLED} unlabelled ones",
        _TRAINING,
        _reva_from,
        first="statistics",
        levels=_LONG,
        unfit=_hide_statistics,
    ),
    "key_forgery": Attack(
        "Key forgery",
        "γ and β, disclosed by a holder",
        (),
        _disclosed,
        control=True,
    ),
    "ambiguity_ierb": _training(
        "IERB", kp.attacks.ambiguity, _BLOCKS, block="IERB"
    ),
    "ambiguity_cerb": _training(
        "CERB", kp.attacks.ambiguity, _BLOCKS, block="CERB"
    ),
    **{
        f"fine_tuning_{method.lower()}": _training(
            f"Fine-tuning, {method}",
            kp.attacks.fine_tuning,
            method=method,
            levels=levels,
        )
        for method, levels in (
            ("FTAL", _ALL),
            ("FTLL", _LONG),
            ("RTAL", _LONG),
            ("RTLL", _LONG),
        )
    },
    "fresh_normalization": _training(
        "Fresh normalisations, all trained", kp.attacks.fresh_normalization
    ),
    "from_scratch": _training(
        "From scratch", kp.attacks.from_scratch, control=True
    ),
}
