"""The attacks by name, what each is given, and how much it may spend.

A new attack is one more entry of `ATTACKS`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras

from keras_passport import attacks
from keras_passport.attacks import AttackResult, Recipe, TrainingOptions
from keras_passport.attacks.searching import Search, enough_epochs
from keras_passport.evaluation.case import Case
from keras_passport.evaluation.progress import Progress
from keras_passport.layers.normalization import tells_channels_apart
from keras_passport.layers.protected import function_of, protected_layers

# Fakes that are tried between two writings of what they reached: on so many
# pictures together, some minutes' work, and of a long series a twentieth, since
# all of them are written each time.
_BETWEEN = 500_000
_PARTS = 20
# Trials of a tuned attacker, at least; pictures that statistics are matched on.
_TUNED = 40
_UNLABELLED = 512
_GUESSED = 200


@dataclasses.dataclass(frozen=True)
class Budget:
    """What an attack may spend. Each attack uses some of it.

    Args:
        num_fakes: Fake passports to try.
        examples: The judge's examples that each fake is tried on.
        source: The attacker's data: `"defender"` or `"disjoint"`.
        fraction: Part of them that the attacker has, in (0, 1].
        epochs: Passes over them.
        trials: Trainings, of which the attacker's validation chooses.
        seed: Of all draws.
        tuned: Whether trainings, of attacks and controls alike, try optimizers
            and learning rates (`kp.attacks.tuned`).

    Example:

    >>> kp.evaluation.Budget(fraction=0.04, epochs=30).num_fakes
    100
    """

    num_fakes: int = 100
    examples: int = 500
    source: str = "defender"
    fraction: float = 1.0
    epochs: int = 10
    trials: int = 1
    seed: int = 0
    tuned: bool = False


@dataclasses.dataclass(frozen=True)
class Attack:
    """One attack.

    Args:
        title: For tables and figures.
        knowledge: What the attacker has besides the published network.
        uses: Names of the `Budget`'s fields that matter to it.
        run: Function `(case, budget, progress)` that returns an
            `AttackResult`: the attack itself, which uses `uses` alone of the
            `Budget`. The `Progress` says whether to show bars, keeps what a
            long attack goes on with, and has what another attack found.
        control: Whether it is no attack on the protection but a measure for
            those that are, such as training from scratch.
        levels: Names of the batteries that it is in.
        unfit: Function of a case that returns why it has nothing for this
            attack; `None` if it has.
    """

    title: str
    knowledge: str
    uses: tuple[str, ...]
    run: Callable[[Case, Budget, Progress], AttackResult]
    control: bool = False
    levels: tuple[str, ...] = ("quick", "standard", "full")
    unfit: Callable[[Case], str | None] = lambda case: None

    def spends(self, budget: Budget) -> dict[str, Any]:
        """What of a budget it uses, in plain values."""
        spent = {field: getattr(budget, field) for field in self.uses}
        # Records of before there was a choice are of those not tuned.
        if spent.get("tuned") is False:
            del spent["tuned"]
        return spent

    def judged_on(self, case: Case, budget: Budget) -> tuple:
        """The judge's inputs and labels that its accuracy is measured on."""
        return case.judges(budget.examples if "examples" in self.uses else None)


_LONG = ("standard", "full")
_ALL = ("quick", *_LONG)
_FAKES = ("num_fakes", "examples", "seed")
_TRAINING = ("source", "fraction", "epochs", "trials", "seed", "tuned")
_LABELLED = "labelled pictures"
_OTHERS = "other pictures, the unprotected network"

# How an attacker trains, but for epochs: γ and β alone take larger steps than
# kernels do, a few coordinates of them many small batches.
_RECIPE = Recipe(batch_size=128)
_REVA = Recipe(batch_size=128, learning_rate=0.05)
_BLOCKS = Recipe(batch_size=128, learning_rate=0.01)
_COORDINATES = Recipe(batch_size=32, learning_rate=0.1)


def training_options(
    case: Case, budget: Budget, recipe: Recipe = _RECIPE, progress: bool = False
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
        epochs = max(epochs, enough_epochs(budget.fraction))
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


def _trained(
    attack: Callable[..., AttackResult], recipe: Recipe = _RECIPE, **own: Any
):
    """The `run` of an attack that trains on labelled pictures.

    Args:
        attack: Of `kp.attacks`, called as `reverse_engineering` is.
        recipe: How it trains, but for what the budget says.
        **own: Arguments of its own.
    """

    def run(case, budget, progress):
        return attack(
            case.model,
            case.examples(budget.source),
            case.judges(),
            training_options(case, budget, recipe, progress.shown),
            **own,
        )

    return run


def _from_what(
    first: str,
    attack: Callable[..., AttackResult] | None = None,
    recipe: Recipe = _REVA,
    **own: Any,
):
    """The `run` of an attack that starts from what another one found.

    Args:
        first: Name of the other one.
        attack: As for `_trained`; its γ and β start from those found. RevA
            if not given.
        recipe: As for `_trained`.
        **own: Arguments of its own.
    """

    def run(case, budget, progress):
        found, parameters = progress.found(first, budget)
        result = (attack or attacks.reverse_engineering)(
            case.model,
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


def _tuned(case, budget, progress):
    options = training_options(case, budget, _REVA, progress.shown)
    return attacks.tune_reverse_engineering(
        case.model,
        case.examples(budget.source),
        case.judges(),
        dataclasses.replace(options, restarts=1),
        trials=max(_TUNED, budget.trials),
        directory=progress.path,
    )


def _fakes(kind: str, title: str, knowledge: str) -> Attack:
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

    def unfit(case):
        return _no_images(case, known=kind == "known_images")

    if kind == "random_pattern":
        return Attack(title, knowledge, _FAKES, run)
    return Attack(title, knowledge, _FAKES, run, unfit=unfit)


def _no_images(case, known=True):
    """Why no feature maps of images can be tried, or None."""
    if case.reference is None:
        return "there is no original to make feature maps with"
    if known and case.known_images is None:
        return "the passport is none of random images"
    return None


def _blind(case, budget, progress):
    return attacks.spectral(case.model, None, case.judges())


def _statistics(case, budget, progress):
    return attacks.statistics_matching(
        case.model,
        # Statistics are of pictures as training shows them: without that they
        # miss by several times what pictures' own variety makes.
        case.unlabelled(budget.source, _UNLABELLED, budget.seed),
        case.judges(),
        directory=progress.path,
        seed=budget.seed,
        progress=progress.shown,
    )


def _guessed(case, budget, progress):
    return attacks.guess_images(
        case.model,
        case.known_images,
        case.unlabelled(budget.source, _GUESSED, budget.seed),
        case.judges(),
        reference=case.reference,
        key_scaling=case.key_scaling,
        seed=budget.seed,
        progress=progress.shown,
    )


def _shows_gamma(case):
    """Why signs of γ need not be predicted, or None."""
    hides = function_of(case.model).hides_gamma
    return None if hides else "γ is published"


def _hides_statistics(case):
    """Why statistics can't be matched, or None."""
    published = any(
        tells_channels_apart(layer.normalization)
        for layer in protected_layers(case.model).values()
        if isinstance(layer.normalization, keras.layers.BatchNormalization)
    )
    return None if published else "the statistics are hidden"


def _disclosed(case, budget, progress):
    result = attacks.key_forgery(
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


ATTACKS: dict[str, Attack] = {
    "fake_random_pattern": _fakes(
        "random_pattern", "Fakes, random patterns (T1)", "nothing"
    ),
    "fake_fixed_image": _fakes(
        "fixed_image",
        "Fakes, fixed images (T2)",
        _OTHERS,
    ),
    "fake_random_image": _fakes(
        "random_image",
        "Fakes, random images (T3)",
        _OTHERS,
    ),
    "fake_known_images": _fakes(
        "known_images",
        "Fakes of the owner's images (T3)",
        "the owner's pictures, the unprotected network",
    ),
    "reverse_engineering": Attack(
        "RevA",
        _LABELLED,
        _TRAINING,
        _trained(attacks.reverse_engineering, _REVA),
    ),
    "reverse_engineering_tuned": Attack(
        "RevA, tuned", _LABELLED, _TRAINING, _tuned, levels=_LONG
    ),
    "spectral_blind": Attack("Spectral, without data", "nothing", (), _blind),
    "spectral": Attack(
        "Spectral",
        _LABELLED,
        _TRAINING,
        _trained(attacks.spectral, _COORDINATES),
    ),
    "spectral_reva": Attack(
        "Spectral, then RevA",
        _LABELLED,
        _TRAINING,
        _from_what("spectral"),
        levels=_LONG,
    ),
    "statistics": Attack(
        "Statistics matching",
        "unlabelled pictures",
        ("source", "seed"),
        _statistics,
        levels=_LONG,
        unfit=_hides_statistics,
    ),
    "statistics_reva": Attack(
        "Statistics matching, then RevA",
        f"{_LABELLED}, and {_UNLABELLED} unlabelled ones",
        _TRAINING,
        _from_what("statistics"),
        levels=_LONG,
        unfit=_hides_statistics,
    ),
    "guess_images": Attack(
        "Guessed images, layer by layer",
        "the owner's pictures, the unprotected network, "
        f"{_GUESSED} unlabelled pictures",
        ("source", "seed"),
        _guessed,
        unfit=_no_images,
    ),
    "orientation": Attack(
        "Orientation",
        f"{_LABELLED}, for a network of their own",
        _TRAINING,
        _trained(attacks.orientation),
        unfit=_shows_gamma,
    ),
    **{
        f"orientation_{name}": Attack(
            f"Orientation, then {title}",
            _LABELLED,
            _TRAINING,
            _from_what("orientation", attack, recipe, **own),
            levels=levels,
            unfit=_shows_gamma,
        )
        for name, title, attack, recipe, levels, own in (
            ("reva", "RevA", None, _REVA, _ALL, {}),
            (
                *("cerb", "CERB", attacks.ambiguity, _BLOCKS, _LONG),
                {"block": "CERB"},
            ),
            (
                *("ftal", "FTAL", attacks.fine_tuning, _RECIPE, _LONG),
                {"method": "FTAL"},
            ),
        )
    },
    "key_forgery": Attack(
        "Key forgery",
        "γ and β, disclosed by a holder",
        (),
        _disclosed,
        control=True,
    ),
    **{
        f"ambiguity_{block.lower()}": Attack(
            block,
            _LABELLED,
            _TRAINING,
            _trained(attacks.ambiguity, _BLOCKS, block=block),
        )
        for block in ("IERB", "CERB")
    },
    "fine_tuning_ftal": Attack(
        "Fine-tuning, FTAL",
        _LABELLED,
        _TRAINING,
        _trained(attacks.fine_tuning, method="FTAL"),
    ),
    **{
        f"fine_tuning_{method.lower()}": Attack(
            f"Fine-tuning, {method}",
            _LABELLED,
            _TRAINING,
            _trained(attacks.fine_tuning, method=method),
            levels=_LONG,
        )
        for method in ("FTLL", "RTAL", "RTLL")
    },
    "fresh_normalization": Attack(
        "Fresh normalisations, all trained",
        _LABELLED,
        _TRAINING,
        _trained(attacks.fresh_normalization),
    ),
    "from_scratch": Attack(
        "From scratch",
        _LABELLED,
        _TRAINING,
        _trained(attacks.from_scratch),
        control=True,
    ),
}
