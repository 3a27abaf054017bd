"""RevA with its settings searched for: the attacker whose number counts."""

import dataclasses
import hashlib
import json
import pathlib
import tempfile
import time

import keras
import numpy as np

from keras_passport import files, models
from keras_passport.attacks import reverse, training
from keras_passport.attacks.result import AttackResult

SEARCHES = ("random", "hyperband")
_PROJECT = "reverse_engineering"


def tune_reverse_engineering(
    model: keras.Model,
    data: tuple,
    test: tuple,
    *,
    trials: int = 40,
    search: str = "random",
    fraction: float = 1.0,
    recipe: training.Recipe | None = None,
    directory: str | None = None,
    seed: int = 0,
    keep_model: bool = False,
    progress: bool = False,
) -> AttackResult:
    """Searches RevA's learning rate, optimizer, start, statistics, schedule.

    The first trial is `reverse_engineering` as it is by default; keras-tuner
    proposes the others. By the attacker's validation is chosen: the test data
    has no say.

    Args:
        model: As for `reverse_engineering`.
        data: Likewise.
        test: Likewise.
        trials: How many to try, 1 or more.
        search: `"random"`, or `"hyperband"`: many trials of few epochs, the
            best of which get more.
        fraction: As for `reverse_engineering`.
        recipe: What is not searched for: epochs (at most, for Hyperband),
            batch size, weight decay, augmentation; as for
            `reverse_engineering` if not given.
        directory: Folder in which to keep the trials: a search that was ended,
            or is to have more trials, goes on from there. It holds
            hyperparameters and accuracies. Defaults to none.
        seed: Of all draws.
        keep_model: Whether the result holds the attacked model; the chosen
            trial is trained once more for it.
        progress: Whether to show a progress bar over the trials.

    Returns:
        An `AttackResult` whose `history` has every trial.

    Raises:
        ValueError: If an argument is out of range, or the directory is
            another search's.
        ImportError: If keras-tuner is missing: it comes with the extra
            `keras-passport[tune]`.

    Example:

    >>> result = tune_reverse_engineering(model, (x, y), (x_test, y_test))
    >>> result.accuracy, result.history[result.chosen]["learning_rate"]

    Reference:

    - Fan, Ng, Chan: Digital Passport, Section 3.1, Table 4.
    """
    if search not in SEARCHES:
        raise ValueError(
            f"Expected search to be one of {SEARCHES}. Received: {search!r}"
        )
    if trials < 1:
        raise ValueError(
            f"Expected trials of 1 or more. Received: trials={trials}"
        )
    arguments = {
        "trials": trials,
        "search": search,
        "recipe": recipe or reverse.RECIPE,
        "seed": seed,
        "keep_model": keep_model,
        "progress": progress,
    }
    mine = training.share(data, fraction, seed)
    if directory is not None:
        return _search(model, mine, test, pathlib.Path(directory), **arguments)
    with tempfile.TemporaryDirectory() as folder:
        return _search(model, mine, test, pathlib.Path(folder), **arguments)


def _search(
    model, data, test, folder, *, trials, search, recipe, seed, **options
):
    began = time.monotonic()
    _check_folder(
        folder,
        {
            "search": search,
            "recipe": recipe.to_dict(),
            "seed": seed,
            "model": _fingerprint(models.public(model).get_weights()),
            "data": _fingerprint([data[1], test[1]]),
        },
    )
    oracle = _oracle(search, recipe, seed, folder)
    opener = reverse.Opener(model)

    def attack(start, statistics, recipe, keep_model=False):
        trial = opener.trial(start, statistics, recipe, [seed, 0])
        return training.run(
            "tuned reverse engineering",
            [trial],
            data,
            test,
            seed=seed,
            knowledge={"labels": True, "images": len(data[1])},
            keep_model=keep_model,
        )

    bar = None
    if options["progress"]:
        bar = keras.utils.Progbar(trials, stateful_metrics=["best"])
    results = []

    def note(name, settings):
        """One trial's result: read, if it was here before, or reached."""
        path = folder / f"{name}.json"
        if path.exists():
            result = AttackResult(**json.loads(path.read_text()))
        else:
            result = attack(**settings)
            with files.replacing(path) as temporary:
                text = json.dumps(result.to_dict())
                temporary.write_text(text)
        results.append((result, settings))
        if bar:
            best = max(r.validation[0] for r, _ in results)
            bar.update(len(results), [("best", best)])
        return result

    note("default", {"start": "neutral", "statistics": True, "recipe": recipe})
    for identity in oracle.end_order[: trials - 1]:
        values = oracle.trials[identity].hyperparameters.values
        note(identity, _settings(values, recipe))
    while len(results) < trials:
        trial = oracle.create_trial(_PROJECT)
        if trial.status == "STOPPED":
            break
        settings = _settings(trial.hyperparameters.values, recipe)
        result = note(trial.trial_id, settings)
        oracle.update_trial(
            trial.trial_id, {"val_accuracy": result.validation[0]}
        )
        trial.status = "COMPLETED"
        oracle.end_trial(trial)
    return _together(results, attack, began, options["keep_model"])


def _together(results, attack, began, keep_model):
    """All trials as one result."""
    first = results[0][0]
    fields = ("accuracies", "entropies", "validation", "losses", "history")
    whole = dataclasses.replace(
        first,
        **{
            field: tuple(getattr(result, field)[0] for result, _ in results)
            for field in fields
        },
        budget={
            **first.budget,
            "trials": len(results),
            "epochs": sum(result.budget["epochs"] for result, _ in results),
        },
    )
    if keep_model:
        again = attack(**results[whole.chosen][1], keep_model=True)
        whole = dataclasses.replace(
            whole, model=again.model, public=again.public
        )
    return dataclasses.replace(whole, seconds=time.monotonic() - began)


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


def _oracle(search, recipe, seed, folder):
    """A keras-tuner oracle that proposes trials, as far as it had come."""
    import keras_tuner

    space = keras_tuner.HyperParameters()
    space.Float("learning_rate", 3e-3, 1.0, sampling="log")
    space.Choice("optimizer", list(training.OPTIMIZERS))
    space.Choice("schedule", list(training.SCHEDULES))
    space.Choice("start", list(reverse.STARTS))
    space.Boolean("statistics")
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


def _check_folder(folder, settings):
    """Notes what a folder's search is of, or refuses another one."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "search.json"
    text = json.dumps(settings, indent=2)
    if not path.exists():
        path.write_text(text)
    elif path.read_text() != text:
        raise ValueError(
            "Expected a directory of this search, or a new one. Received: "
            f"directory={str(folder)!r} of a search with other settings, "
            "model or data"
        )


def _fingerprint(arrays) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
