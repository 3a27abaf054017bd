"""What attacks that train share: one training, its trials, its judge."""

import dataclasses
import math
import time
from collections.abc import Callable

import keras
import numpy as np

from keras_passport import metrics, scores
from keras_passport.attacks.labelled import (  # noqa: F401
    Batches,
    classes_of,
    divide,
    is_soft,
    share,
    split,
    step_size,
    take,
)
from keras_passport.attacks.opened import Opened
from keras_passport.attacks.recipe import Recipe
from keras_passport.attacks.result import AttackResult, packed
from keras_passport.attacks.searching import Search, is_converged, kept_epoch
from keras_passport.models import compiling

# How often a trial that is stuck at chance is tried: a failed start is no
# strength of a protection.
_ATTEMPTS = 3


def train(
    model: keras.Model,
    data: tuple,
    validation: tuple,
    recipe: Recipe,
    seed: int,
    from_logits: bool,
    progress: bool = False,
    callbacks: tuple = (),
) -> dict[str, list[float]]:
    """Trains, and keeps the weights of `kept_epoch`.

    Args:
        model: Any Keras classifier with one output; it is compiled anew, but
            for one that was here before and is to be trained by a like recipe.
        data: Inputs and labels to train on, class numbers or probabilities.
        validation: The same, to choose the epoch by.
        recipe: How.
        seed: Of the order of the data.
        from_logits: Whether the outputs are logits, not probabilities.
        progress: Whether to show Keras's progress bars.
        callbacks: Keras callbacks.

    Returns:
        History: a list per quantity, a number per epoch.
    """
    batches = Batches(*data, recipe.batch_size, seed, recipe.augment)
    recipe._prepare(model, from_logits, is_soft(data[1]))
    compiling.build_ahead(model, *batches[0])

    def start_epoch(epoch, logs=None):
        batches.start_epoch(epoch)
        model.optimizer.learning_rate = recipe.rate(epoch)

    history = model.fit(
        batches,
        epochs=recipe.epochs,
        shuffle=False,
        verbose=1 if progress else 0,
        validation_data=validation,
        validation_batch_size=500,
        callbacks=[
            keras.callbacks.LambdaCallback(on_epoch_begin=start_epoch),
            _Keep(len(validation[1])),
            *callbacks,
        ],
    )
    return {
        name: [float(value) for value in values]
        for name, values in history.history.items()
    }


def standing(logs: dict) -> tuple[float, float]:
    """What a training is chosen by: accuracy, then loss, both validated."""
    loss = logs["val_loss"]
    if not math.isfinite(loss):
        # Keras counts scores of NaN as class 0.
        return 0.0, -math.inf
    return logs["val_accuracy"], -loss


class _Keep(keras.callbacks.Callback):
    """Ends a training with the weights of `kept_epoch`.

    Args:
        examples: That are validated on.
    """

    def __init__(self, examples):
        super().__init__()
        self._examples = examples

    def on_train_begin(self, logs=None):
        self._accuracies, self._losses = [], []

    def on_epoch_end(self, epoch, logs=None):
        self._accuracies.append(logs["val_accuracy"])
        self._losses.append(logs["val_loss"])
        kept = kept_epoch(self._accuracies, self._losses, self._examples)
        if kept == len(self._losses) - 1:
            self._weights = self.model.get_weights()

    def on_train_end(self, logs=None):
        self.model.set_weights(self._weights)


def judge(model: keras.Model, data: tuple) -> tuple[float, float]:
    """Accuracy (a fraction) and entropy (bits) of a model's predictions.

    Args:
        model: Classifier with one output. Where its scores are not finite it
            is wrong: an attacker's training may have diverged.
        data: Inputs and integer labels.

    Raises:
        ValueError: If a label is no class of the model's.
    """
    right, entropy = answers(model, data)
    return float(np.mean(right)), entropy


def answers(model: keras.Model, data: tuple) -> tuple[np.ndarray, float]:
    """Which examples are classified rightly, and entropy; see `judge`."""
    x, y = scores.pair(data, "test")
    found = scores.predict(model, x)
    examples, classes = found.shape
    labels = scores.labels_of(y, examples, classes)
    predicted = scores.classes_of(found)
    return (
        predicted == labels,
        # What is no class is an answer of its own.
        metrics.prediction_entropy(predicted + 1, classes + 1),
    )


def is_stuck(accuracy: float, data: tuple) -> bool:
    """Whether an accuracy is no better than always saying one class.

    Args:
        accuracy: Reached on `data`, a fraction.
        data: Inputs and integer labels.
    """
    _, counts = np.unique(classes_of(data[1]), return_counts=True)
    total = counts.sum()
    most = counts.max() / total
    # Three standard deviations of such a guess.
    return accuracy <= most + 3 * np.sqrt(most * (1 - most) / total)


@dataclasses.dataclass(frozen=True)
class Trial:
    """One training of an attack.

    Args:
        about: What is particular about it, in plain values; or a function of
            an attempt's number that returns that.
        make: Function of an attempt's number, from 0, that returns the model
            to train. A training that is stuck at chance is attempted again.
            It may return one model again and again, each time made ready: so
            it is compiled once.
        recipe: How to train it.
        slower: What the learning rate is divided by with every attempt.
        keeps_start: Whether what it starts from may be the best of it.
    """

    about: dict | Callable[[int], dict]
    make: Callable[[int], keras.Model]
    recipe: Recipe
    slower: float = 10.0
    keeps_start: bool = False


def run(
    name: str,
    trials: list[Trial],
    data: tuple,
    test: tuple,
    *,
    seed: int,
    knowledge: dict,
    search: Search | None = None,
    keep_model: bool = False,
    progress: bool = False,
) -> AttackResult:
    """Trains all trials of an attack; the attacker's validation chooses.

    Args:
        name: Of the attack.
        trials: What to train, in order.
        data: The attacker's inputs and labels, of which `split` sets some
            apart.
        test: The judge's inputs and labels: nothing is chosen by them.
        seed: Of the validation part and of the order of the data.
        knowledge: What the attacker has, in plain values.
        search: Recipes to try on the first trial; the others are trained by
            the best.
        keep_model: Whether the result holds the attacked model.
        progress: Whether to show progress bars.

    Returns:
        An `AttackResult`. Its budget's `"validation"` is the number of
        pictures that were set apart; 0 if the training data had to serve.
        `"steps"` and `"seen"` are the steps and the pictures, with
        repetitions, of all trainings.

    Raises:
        ValueError: If a label is no class of the model's.
    """
    began = time.monotonic()
    trainings = _Trainings(data, test, seed, progress)
    best = None
    for number, trial in enumerate(trials):
        if search is None:
            trainings.reach(trial, number, trial.recipe)
        elif best is None:

            def reach(recipe, short, trial=trial, number=number):
                tries = 1 if short else _ATTEMPTS
                return trainings.reach(trial, number, recipe, tries)

            best = search.go(trial.recipe, reach)
        else:
            trainings.reach(trial, number, best)
    reached = trainings.reached
    attacked, public = None, None
    if keep_model:
        attacked = trainings.best()
        if isinstance(attacked, Opened):
            attacked, public = attacked.plain(), attacked.protected()
    return AttackResult(
        name=name,
        accuracies=tuple(float(np.mean(one.right)) for one in reached),
        entropies=tuple(one.entropy for one in reached),
        knowledge=knowledge,
        budget={
            "images": len(data[1]),
            "validation": trainings.validated,
            **trainings.spent,
            "trials": len(reached),
            "seed": seed,
        },
        seconds=time.monotonic() - began,
        validation=tuple(one.standing[0] for one in reached),
        losses=tuple(-one.standing[1] for one in reached),
        history=tuple(one.told for one in reached),
        right=packed(trainings.kept[0].right),
        model=attacked,
        public=public,
    )


@dataclasses.dataclass(frozen=True)
class _Reached:
    """What one training came to."""

    standing: tuple[float, float]
    right: np.ndarray
    entropy: float
    told: dict


class _Trainings:
    """Trains one thing after another, and keeps what validated best.

    Args:
        data: The attacker's inputs and labels.
        test: The judge's.
        seed: Of the validation part and of the order of the data.
        progress: Whether to show progress bars.
    """

    def __init__(self, data, test, seed, progress):
        self._data, self._test = data, test
        self._seed, self._progress = seed, progress
        self._training, self._validation = split(data, seed)
        self.validated = len(data[1]) - len(self._training[1])
        self.reached: list[_Reached] = []
        self.spent = {"epochs": 0, "steps": 0, "seen": 0}
        # The best, its model and that model's weights.
        self.kept = None

    def reach(self, trial, number, recipe, attempts=_ATTEMPTS) -> dict:
        """Trains a trial by a recipe; returns what the history says of it."""
        best = None
        for attempt in range(attempts):
            model = trial.make(attempt)
            if not self.reached and not attempt:
                _check_labels(model, self._data, self._test)
            slowed = dataclasses.replace(
                recipe,
                learning_rate=recipe.learning_rate / trial.slower**attempt,
            )
            if trial.keeps_start:
                before = self._standing(model), model.get_weights()
            history = self._train(model, slowed, number)
            kept = kept_epoch(
                history["val_accuracy"],
                history["val_loss"],
                len(self._validation[1]),
            )
            stands = standing({name: h[kept] for name, h in history.items()})
            if trial.keeps_start and before[0] >= stands:
                stands, weights = before
                model.set_weights(weights)
                kept = None  # No epoch of it.
            about = (
                trial.about(attempt) if callable(trial.about) else trial.about
            )
            told = {
                **about,
                **slowed.to_dict(),
                "history": history,
                "kept": kept,
            }
            if best is None or stands > best[0]:
                best = stands, told, model, model.get_weights()
            if not (
                is_stuck(stands[0], self._validation)
                and is_stuck(max(history["accuracy"]), self._training)
            ):
                break
        stands, told, model, weights = best
        if attempt:
            model.set_weights(weights)
        told["attempts"] = attempt + 1
        told["converged"] = is_converged(
            told["history"]["val_accuracy"], len(self._validation[1])
        )
        one = _Reached(stands, *answers(model, self._test), told)
        if not self.reached or stands > self.kept[0].standing:
            self.kept = one, model, weights
        self.reached.append(one)
        return {"standing": stands, "converged": told["converged"]}

    def _standing(self, model):
        """What a model is chosen by, before it is trained."""
        x, y = self._validation
        found = scores.predict(model, x).astype("float64")
        if gives_logits(model, x):
            found = np.exp(found - found.max(axis=-1, keepdims=True))
            found /= found.sum(axis=-1, keepdims=True)
        labels = classes_of(y)
        chances = np.maximum(found[np.arange(len(labels)), labels], 1e-7)
        right = np.mean(scores.classes_of(found) == labels)
        return float(right), float(np.mean(np.log(chances)))

    def _train(self, model, recipe, number):
        count = len(self._training[1])
        size = step_size(count, recipe.batch_size)
        steps = recipe.epochs * (count // size)
        for name, more in (
            ("epochs", recipe.epochs),
            ("steps", steps),
            ("seen", steps * size),
        ):
            self.spent[name] += more
        return train(
            model,
            self._training,
            self._validation,
            recipe,
            seed=self._seed + number,
            from_logits=gives_logits(model, self._training[0]),
            progress=self._progress,
        )

    def best(self) -> keras.Model:
        """The model that validated best, with its weights of then."""
        _, model, weights = self.kept
        model.set_weights(weights)
        return model


def _check_labels(model, data, test) -> None:
    """Raises a ValueError before long work, not at its end."""
    classes = scores.predict(model, take(data[0], slice(0, 1))).shape[-1]
    for given, name in ((data, "the attacker's"), (test, "the judge's")):
        x, y = scores.pair(given, f"{name} data")
        examples = len(keras.tree.flatten(x)[0])
        if is_soft(y) and np.shape(y)[1] != classes:
            raise ValueError(
                f"Expected {name} labels of {classes} classes. "
                f"Received: labels of shape {np.shape(y)}"
            )
        scores.labels_of(classes_of(y), examples, classes, f"{name} labels")


def gives_logits(model: keras.Model, x) -> bool:
    """Whether a classifier's outputs are logits, and not probabilities."""
    found = scores.predict(model, take(x, slice(0, 4)))
    sums = np.sum(found, axis=-1)
    return not (np.all(found >= 0) and np.allclose(sums, 1.0, atol=1e-2))
