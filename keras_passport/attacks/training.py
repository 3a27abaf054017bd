"""What attacks that train share: data, one training, its judge."""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_passport import metrics, scores
from keras_passport.attacks.opened import Opened
from keras_passport.attacks.result import AttackResult

# Part of the attacker's data that chooses between epochs and between trials:
# the least, the number of pictures that tells trials apart, the most; and how
# many examples of a class there must be for it to be set apart.
LEAST, WANTED, MOST = 0.1, 100, 0.25
ENOUGH = 10
# Of moving statistics, which a short training must not leave half estimated.
MOMENTUM = 0.9
OPTIMIZERS = ("sgd", "adam")
SCHEDULES = ("constant", "cosine")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How an attacker trains.

    Args:
        epochs: Passes over the attacker's data.
        batch_size: Examples per step, at most: few are divided into 8
            batches, of 8 or more, for an epoch to be more than a step.
        optimizer: `"sgd"` (momentum 0.9, Nesterov) or `"adam"`.
        learning_rate: The schedule's first.
        schedule: `"constant"`, or `"cosine"` down to 0, by epochs.
        weight_decay: Of kernels, as added to their gradients.
        augment: Function `(x, rng)` of a batch of inputs and a NumPy
            generator that returns the inputs to train on; `None` for none.
    """

    epochs: int = 20
    batch_size: int = 64
    optimizer: str = "adam"
    learning_rate: float = 0.003
    schedule: str = "cosine"
    weight_decay: float = 0.0
    augment: Callable[[Any, np.random.Generator], Any] | None = None

    def __post_init__(self):
        for name, known in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES)):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"Expected {name} to be one of {known}. "
                    f"Received: {name}={getattr(self, name)!r}"
                )
        for name in ("epochs", "batch_size", "learning_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(
                    f"Expected {name} above 0. "
                    f"Received: {name}={getattr(self, name)}"
                )

    def to_dict(self) -> dict:
        """Plain values, for JSON."""
        fields = dataclasses.asdict(self)
        fields["augment"] = self.augment is not None
        return fields

    def rate(self, epoch: int) -> float:
        """The learning rate of an epoch, counted from 0."""
        if self.schedule == "constant":
            return self.learning_rate
        turn = math.pi * epoch / self.epochs
        return self.learning_rate * (1 + math.cos(turn)) / 2

    def _prepare(self, model, from_logits):
        """Compiles a model, or makes one that is compiled so start anew."""
        made_for = (self.optimizer, self.weight_decay, from_logits)
        if getattr(model, "made_for", None) != made_for:
            for layer in model._flatten_layers():
                if isinstance(layer, keras.layers.BatchNormalization):
                    layer.momentum = min(layer.momentum, MOMENTUM)
            model.compile(
                self._optimizer(model),
                keras.losses.SparseCategoricalCrossentropy(from_logits),
                metrics=["accuracy"],
                auto_scale_loss=False,
            )
            model.made_for = made_for
        for variable in model.optimizer.variables:
            variable.assign(np.zeros(variable.shape))

    def _optimizer(self, model):
        decay = self.weight_decay or None
        if self.optimizer == "adam":
            made = keras.optimizers.Adam(weight_decay=decay)
        else:
            # Keras decays outside of the momentum: 1 / (1 - 0.9) times more.
            decay = decay and 10 * decay
            made = keras.optimizers.SGD(
                momentum=0.9, nesterov=True, weight_decay=decay
            )
        made.exclude_from_weight_decay(
            [v for v in model.trainable_variables if len(v.shape) < 2]
        )
        made.build(model.trainable_variables)
        return made


class Batches(keras.utils.PyDataset):
    """Shuffled batches that depend on seed and epoch alone."""

    def __init__(self, x, y, batch_size, seed, augment=None):
        super().__init__()
        self._x, self._y, self._augment = x, np.asarray(y), augment
        few = max(8, len(self._y) // 8)
        self._size = min(batch_size, few, len(self._y))
        self._seed = seed
        self.start_epoch(0)

    def start_epoch(self, epoch: int) -> None:
        """Turns to an epoch's order."""
        self._epoch = epoch
        rng = np.random.default_rng([self._seed, epoch, 0])
        self._order = rng.permutation(len(self._y))

    def __len__(self):
        return len(self._y) // self._size

    def __getitem__(self, index):
        chosen = self._order[index * self._size : (index + 1) * self._size]
        x = take(self._x, chosen)
        if self._augment is not None:
            rng = np.random.default_rng([self._seed, self._epoch, index + 1])
            x = self._augment(x, rng)
        return x, self._y[chosen]


def take(x, chosen):
    """Some examples of inputs, which may be a dict of several."""
    return keras.tree.map_structure(lambda array: array[chosen], x)


def share(data: tuple, fraction: float, seed: int) -> tuple:
    """A stratified part of labelled data.

    Args:
        data: Tuple of inputs (array or dict) and integer labels.
        fraction: How much of each class, in (0, 1]; at least one example.
        seed: Which.
    """
    return divide(data, fraction, seed)[0]


def split(data: tuple, seed: int) -> tuple:
    """Divides an attacker's data into a training and a validation part.

    Args:
        data: Tuple of inputs (array or dict) and integer labels.
        seed: Which part.

    Returns:
        Two tuples of inputs and labels. The validation part is a tenth of
        each class; more, up to a quarter, where that is under 100 examples.
        Where there are fewer than 10 examples per class, both parts are all
        of the data: a handful of pictures tells an attacker less than the
        training does.
    """
    count = len(_labels(data))
    if count < ENOUGH * len(np.unique(data[1])):
        return data, data
    fraction = max(LEAST, min(MOST, WANTED / count))
    validation, training = divide(data, fraction, seed)
    return training, validation


def divide(data: tuple, fraction: float, seed: int) -> tuple:
    """A stratified part of labelled data, and the rest; as for `share`."""
    x, y = data
    y = _labels(data)
    if not 0 < fraction <= 1:
        raise ValueError(
            f"Expected a fraction in (0, 1]. Received: fraction={fraction}"
        )
    rng = np.random.default_rng([seed, 0x5EED])
    first = np.zeros(len(y), bool)
    for label in np.unique(y):
        places = rng.permutation(np.flatnonzero(y == label))
        first[places[: max(1, round(fraction * len(places)))]] = True
    return tuple(
        (take(x, chosen), y[chosen])
        for chosen in (np.flatnonzero(first), np.flatnonzero(~first))
    )


def _labels(data: tuple) -> np.ndarray:
    """Labels as integers, `(examples,)`; a ValueError if they are none."""
    x, y = data
    return scores.labels_of(y, len(keras.tree.flatten(x)[0]), name="labels")


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
    """Trains, and keeps the weights of the epoch that validated best.

    Args:
        model: Any Keras classifier with one output; it is compiled anew, but
            for one that was here before and is to be trained likewise.
        data: Inputs and integer labels to train on.
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
    recipe._prepare(model, from_logits)

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
            _KeepBest(),
            *callbacks,
        ],
    )
    return {
        name: [float(value) for value in values]
        for name, values in history.history.items()
    }


def standing(logs: dict) -> tuple[float, float]:
    """What an epoch is chosen by: accuracy, then loss, both validated."""
    loss = logs["val_loss"]
    if not math.isfinite(loss):
        # Keras counts scores of NaN as class 0.
        return 0.0, -math.inf
    return logs["val_accuracy"], -loss


class _KeepBest(keras.callbacks.Callback):
    """Ends a training with the weights that validated best."""

    def on_train_begin(self, logs=None):
        self.best = None

    def on_epoch_end(self, epoch, logs=None):
        if self.best is None or standing(logs) > self.best:
            self.best = standing(logs)
            self.weights = self.model.get_weights()

    def on_train_end(self, logs=None):
        self.model.set_weights(self.weights)


def judge(model: keras.Model, data: tuple) -> tuple[float, float]:
    """Accuracy (a fraction) and entropy (bits) of a model's predictions.

    Args:
        model: Classifier with one output. Where its scores are not finite it
            is wrong: an attacker's training may have diverged.
        data: Inputs and integer labels.

    Raises:
        ValueError: If a label is no class of the model's.
    """
    x, y = data
    found = scores.predict(model, x)
    examples, classes = found.shape
    labels = scores.labels_of(y, examples, classes)
    predicted = scores.classes_of(found)
    return (
        float(np.mean(predicted == labels)),
        # What is no class is an answer of its own.
        metrics.prediction_entropy(predicted + 1, classes + 1),
    )


def is_stuck(accuracy: float, data: tuple) -> bool:
    """Whether an accuracy is no better than always saying one class.

    Args:
        accuracy: Reached on `data`, a fraction.
        data: Inputs and integer labels.
    """
    _, counts = np.unique(np.asarray(data[1]), return_counts=True)
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
    """

    about: dict | Callable[[int], dict]
    make: Callable[[int], keras.Model]
    recipe: Recipe
    slower: float = 10.0


def run(
    name: str,
    trials: list[Trial],
    data: tuple,
    test: tuple,
    *,
    seed: int,
    knowledge: dict,
    attempts: int = 3,
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
        attempts: How often a trial that is stuck at chance is tried: a failed
            start is no strength of a protection.
        keep_model: Whether the result holds the attacked model.
        progress: Whether to show progress bars.

    Returns:
        An `AttackResult`. Its budget's `"validation"` is the number of
        pictures that were set apart; 0 if the training data had to serve.

    Raises:
        ValueError: If a label is no class of the model's.
    """
    began = time.monotonic()
    training, validation = split(data, seed)
    reached, epochs, kept = [], 0, None
    for number, trial in enumerate(trials):
        best = None
        for attempt in range(attempts):
            model = trial.make(attempt)
            if not reached and not attempt:
                _check_labels(model, data, test)
            recipe = dataclasses.replace(
                trial.recipe,
                learning_rate=trial.recipe.learning_rate
                / trial.slower**attempt,
            )
            history = train(
                model,
                training,
                validation,
                recipe,
                seed=seed + number,
                from_logits=gives_logits(model, training[0]),
                progress=progress,
            )
            epochs += recipe.epochs
            ends = zip(*history.values(), strict=True)
            stands = max(
                standing(dict(zip(history, e, strict=True))) for e in ends
            )
            about = (
                trial.about(attempt) if callable(trial.about) else trial.about
            )
            told = {**about, **recipe.to_dict(), "history": history}
            if best is None or stands > best[0]:
                best = stands, told, model, model.get_weights()
            if not (
                is_stuck(stands[0], validation)
                and is_stuck(max(history["accuracy"]), training)
            ):
                break
        stands, told, model, weights = best
        if attempt:
            model.set_weights(weights)
        accuracy, entropy = judge(model, test)
        if kept is None or stands > max(r[0] for r in reached):
            kept = model, weights
        told["attempts"] = attempt + 1
        reached.append((stands, accuracy, entropy, told))
    standings, accuracies, entropies, histories = zip(*reached, strict=True)
    attacked, public = None, None
    if keep_model:
        attacked, weights = kept
        attacked.set_weights(weights)
        if isinstance(attacked, Opened):
            attacked, public = attacked.plain(), attacked.protected()
    return AttackResult(
        name=name,
        accuracies=accuracies,
        entropies=entropies,
        knowledge=knowledge,
        budget={
            "images": len(data[1]),
            "validation": len(data[1]) - len(training[1]),
            "epochs": epochs,
            "trials": len(trials),
            "seed": seed,
        },
        seconds=time.monotonic() - began,
        validation=tuple(accuracy for accuracy, _ in standings),
        losses=tuple(-loss for _, loss in standings),
        history=histories,
        model=attacked,
        public=public,
    )


def _check_labels(model, data, test) -> None:
    """Raises a ValueError before long work, not at its end."""
    classes = scores.predict(model, take(data[0], slice(0, 1))).shape[-1]
    for (x, y), name in ((data, "the attacker's"), (test, "the judge's")):
        examples = len(keras.tree.flatten(x)[0])
        scores.labels_of(y, examples, classes, f"{name} labels")


def gives_logits(model: keras.Model, x) -> bool:
    """Whether a classifier's outputs are logits, and not probabilities."""
    found = scores.predict(model, take(x, slice(0, 4)))
    sums = np.sum(found, axis=-1)
    return not (np.all(found >= 0) and np.allclose(sums, 1.0, atol=1e-2))
