"""The attacks by name. A new one is one more entry of `ATTACKS`."""

from keras_passport import attacks
from keras_passport.evaluation import running
from keras_passport.evaluation.budgets import Attack, Budget
from keras_passport.evaluation.running import (
    BLOCKS,
    COORDINATES,
    GUESSED,
    RECIPE,
    REVA,
    UNLABELLED,
    from_what,
    trained,
)

__all__ = ["ATTACKS", "Attack", "Budget"]

_LONG = ("standard", "full")
_ALL = ("quick", *_LONG)
_FAKES = ("num_fakes", "examples", "seed")
_TRAINING = ("source", "fraction", "epochs", "trials", "seed", "tuned")
_LABELLED = "labelled pictures"

_ANCESTOR = "a network that this one was made of"
_RELATED = {
    "unfit": running.no_ancestor,
    "over": "ancestor_fine_tuned",
    "of": lambda case: case.ancestor_digest,
}


# Attacks that go on from the γ and β that another one found, or train on a
# service's answers: title, how they train, which batteries they are in.
_MAIN = {
    "reva": ("RevA", "reverse_engineering", REVA, _ALL, {}),
    "cerb": ("CERB", "ambiguity", BLOCKS, _LONG, {"block": "CERB"}),
    "ftal": ("FTAL", "fine_tuning", RECIPE, _LONG, {"method": "FTAL"}),
}


def _queried(answers, batteries):
    """Attacks on a service's answers to N pictures, and their control.

    Args:
        answers: `"labels"` or `"probabilities"`.
        batteries: Names of those that they may be in.
    """
    knowledge = f"pictures without labels, and a service's {answers} for them"
    return {
        **{
            f"queried_{answers}_{name}": Attack(
                f"{title} on a service's {answers}",
                knowledge,
                _TRAINING,
                trained(
                    getattr(attacks, attack), recipe, answers=answers, **own
                ),
                levels=tuple(set(levels) & set(batteries)),
                over=f"distilled_{answers}",
            )
            for name, (title, attack, recipe, levels, own) in _MAIN.items()
        },
        f"distilled_{answers}": Attack(
            f"Distilled from a service's {answers}",
            knowledge,
            _TRAINING,
            trained(attacks.from_scratch, answers=answers),
            control=True,
            levels=batteries,
        ),
    }


def _followed(first, found, knowledge=None, aligned=False, **options):
    """Attacks that start from what another one found.

    Args:
        first: Name of the other one.
        found: Its title.
        knowledge: What it has besides labelled pictures.
        aligned: As for `running.from_what`.
        **options: Of `Attack`.
    """
    return {
        f"{first}_{name}": Attack(
            f"{found}, then {title}",
            f"{_LABELLED}, {knowledge}" if knowledge else _LABELLED,
            _TRAINING,
            from_what(first, attack, recipe, aligned, **own),
            levels=levels,
            **options,
        )
        for name, (title, attack, recipe, levels, own) in _MAIN.items()
    }


ATTACKS: dict[str, Attack] = {
    "fake_random_pattern": Attack(
        "Fakes, random patterns (T1)",
        "nothing",
        _FAKES,
        running.fakes("random_pattern"),
    ),
    **{
        f"fake_{kind}": Attack(
            f"Fakes, {title}",
            "other pictures, the unprotected network",
            _FAKES,
            running.fakes(kind),
            unfit=running.no_reference,
        )
        for kind, title in (
            ("fixed_image", "fixed images (T2)"),
            ("random_image", "random images (T3)"),
        )
    },
    "fake_known_images": Attack(
        "Fakes of the owner's images (T3)",
        "the owner's pictures, the unprotected network",
        _FAKES,
        running.fakes("known_images"),
        unfit=running.no_images,
    ),
    "reverse_engineering": Attack(
        "RevA",
        _LABELLED,
        _TRAINING,
        trained(attacks.reverse_engineering, REVA),
    ),
    "reverse_engineering_tuned": Attack(
        "RevA, tuned", _LABELLED, _TRAINING, running.searched, levels=_LONG
    ),
    "sign_search": Attack(
        "Search over signs",
        _LABELLED,
        _TRAINING,
        trained(attacks.sign_search, REVA),
        levels=_LONG,
        unfit=running.shows_gamma,
    ),
    "spectral_blind": Attack(
        "Spectral, without data", "nothing", (), running.blind
    ),
    "spectral": Attack(
        "Spectral",
        _LABELLED,
        _TRAINING,
        trained(attacks.spectral, COORDINATES),
    ),
    "spectral_reva": Attack(
        "Spectral, then RevA",
        _LABELLED,
        _TRAINING,
        from_what("spectral"),
        levels=_LONG,
    ),
    "statistics": Attack(
        "Statistics matching",
        "unlabelled pictures",
        ("source", "seed"),
        running.statistics,
        levels=_LONG,
        unfit=running.hides_statistics,
    ),
    "statistics_reva": Attack(
        "Statistics matching, then RevA",
        f"{_LABELLED}, and {UNLABELLED} unlabelled ones",
        _TRAINING,
        from_what("statistics"),
        levels=_LONG,
        unfit=running.hides_statistics,
    ),
    "guess_images": Attack(
        "Guessed images, layer by layer",
        "the owner's pictures, the unprotected network, "
        f"{GUESSED} unlabelled pictures",
        ("source", "seed"),
        running.guessed,
        unfit=running.no_images,
    ),
    "orientation": Attack(
        "Orientation",
        f"{_LABELLED}, for a network of their own",
        _TRAINING,
        trained(attacks.orientation),
        unfit=running.shows_gamma,
    ),
    **_followed("orientation", "Orientation", unfit=running.shows_gamma),
    "known_ancestor": Attack(
        "Known ancestor",
        _ANCESTOR,
        (),
        running.related(attacks.known_ancestor),
        **{**_RELATED, "over": "ancestor"},
    ),
    **_followed(
        "known_ancestor", "Known ancestor", _ANCESTOR, True, **_RELATED
    ),
    "difference": Attack(
        "Difference of versions",
        f"{_LABELLED}, {_ANCESTOR}",
        _TRAINING,
        trained(attacks.difference, COORDINATES, relative=True),
        **_RELATED,
    ),
    **_followed("difference", "Difference", _ANCESTOR, **_RELATED),
    **_queried("probabilities", _ALL),
    **_queried("labels", ("full",)),
    "ancestor": Attack(
        "Ancestor as it is",
        _ANCESTOR,
        (),
        running.related(attacks.ancestor_alone),
        control=True,
        **_RELATED,
    ),
    "ancestor_fine_tuned": Attack(
        "Ancestor, fine-tuned",
        f"{_LABELLED}, {_ANCESTOR}",
        _TRAINING,
        trained(attacks.ancestor_fine_tuned, relative=True),
        control=True,
        **_RELATED,
    ),
    "key_forgery": Attack(
        "Key forgery",
        "γ and β, disclosed by a holder",
        (),
        running.disclosed,
        control=True,
    ),
    **{
        f"ambiguity_{block.lower()}": Attack(
            block,
            _LABELLED,
            _TRAINING,
            trained(attacks.ambiguity, BLOCKS, block=block),
        )
        for block in ("IERB", "CERB")
    },
    "fine_tuning_ftal": Attack(
        "Fine-tuning, FTAL",
        _LABELLED,
        _TRAINING,
        trained(attacks.fine_tuning, method="FTAL"),
    ),
    **{
        f"fine_tuning_{method.lower()}": Attack(
            f"Fine-tuning, {method}",
            _LABELLED,
            _TRAINING,
            trained(attacks.fine_tuning, method=method),
            levels=_LONG,
        )
        for method in ("FTLL", "RTAL", "RTLL")
    },
    "fresh_normalization": Attack(
        "Fresh normalisations, all trained",
        _LABELLED,
        _TRAINING,
        trained(attacks.fresh_normalization),
    ),
    "from_scratch": Attack(
        "From scratch",
        _LABELLED,
        _TRAINING,
        trained(attacks.from_scratch),
        control=True,
    ),
}
