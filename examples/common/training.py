"""One resumable training, for originals and protected networks alike."""

import contextlib
import dataclasses
import io
import json
import math
import pathlib
import sys
import time
from collections.abc import Iterator
from typing import Protocol

import h5py
import keras
import numpy as np

from common.data import Dataset, TrainingBatches
from common.distribution import Distribution
from common.errors import UserError, users_mistakes
from common.rundir import PRIVATE, replacing
from keras_passport import scores

MOMENTUM = 0.9
EVALUATION_BATCH = 500


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a network is trained: SGD, warm-up, then a cosine to zero.

    Attributes:
        epochs: passes over the training set.
        batch_size: pictures per step.
        learning_rate: its peak, reached after the warm-up.
        weight_decay: in the usual convention, where it is added to the
            gradient (5e-4 for CIFAR).
        seed: of the order of the data, and of its augmentation.
        from_logits: whether the network's outputs are logits, and not
            probabilities.
        steps_per_execution: steps in one call of the device.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    seed: int
    from_logits: bool = True
    steps_per_execution: int = 1

    def optimizer(
        self, model: keras.Model, steps_per_epoch: int
    ) -> keras.optimizers.Optimizer:
        """A fresh optimizer for `model`."""
        steps = self.epochs * steps_per_epoch
        warmup = max(1, min(5 * steps_per_epoch, steps // 10))
        optimizer = keras.optimizers.SGD(
            keras.optimizers.schedules.CosineDecay(
                0.0,
                decay_steps=max(1, steps - warmup),
                warmup_target=self.learning_rate,
                warmup_steps=warmup,
            ),
            momentum=MOMENTUM,
            nesterov=True,
            # Keras subtracts its decay outside of the momentum, so it has to
            # be larger by what momentum would have made of it.
            weight_decay=self.weight_decay / (1 - MOMENTUM) or None,
        )
        # Only kernels decay: neither biases nor scales and shifts.
        optimizer.exclude_from_weight_decay(
            [v for v in model.trainable_variables if len(v.shape) < 2]
        )
        if _computes_in_float16(model):
            # Keras does this by itself only for models whose own policy, not
            # just their layers', says float16: a loaded one's does not.
            return keras.optimizers.LossScaleOptimizer(optimizer)
        return optimizer


def _computes_in_float16(model: keras.Model) -> bool:
    return any(
        layer.compute_dtype == "float16"
        for layer in model._flatten_layers(include_self=False)
    )


class DivergedError(UserError):
    """A training came to numbers that are not finite.

    Args:
        epoch: in which, counted from 1.
        what: names of what is not finite.
        history: what was measured until then, this epoch included.
    """

    def __init__(
        self, epoch: int, what: list[str], history: dict[str, list[float]]
    ):
        self.epoch = epoch
        self.what = what
        self.history = history
        super().__init__(
            f"The training diverged in epoch {epoch}: not finite any more are "
            f"{', '.join(what)}."
        )


class Watch(Protocol):
    """Measures something of a network over each epoch of its training."""

    def start(self) -> None: ...

    def measure(self) -> dict[str, float]: ...


def train(
    model: keras.Model,
    dataset: Dataset,
    recipe: Recipe,
    checkpoint: pathlib.Path,
    watch: Watch | None = None,
    distribution: Distribution | None = None,
) -> dict[str, list[float]]:
    """Trains a network, or goes on from its checkpoint.

    Args:
        model: classifies `dataset`'s pictures with logits. Its weights are
            replaced by the checkpoint's, if there is one.
        dataset: what to train on; its test set is looked at, not learned.
        recipe: how.
        checkpoint: an HDF5 file, replaced after every epoch.
        watch: its numbers join the history after every epoch.
        distribution: over what it is spread; one device if not given.

    Returns:
        The history: one list per quantity, one number per epoch. Accuracies
        are fractions.

    Raises:
        DivergedError: If losses or weights are not finite any more. The
            checkpoint is that of the epoch before.
    """
    batches = TrainingBatches(dataset, recipe.batch_size, recipe.seed)
    distribution = distribution or Distribution()
    with distribution.scope():
        model.compile(
            recipe.optimizer(model, len(batches)),
            keras.losses.SparseCategoricalCrossentropy(recipe.from_logits),
            metrics=["accuracy"],
            auto_scale_loss=False,
            steps_per_execution=recipe.steps_per_execution,
        )
        history = _restore(model, checkpoint)
    # The chief removes it when it is done: others must have read it by then.
    distribution.agree()
    done = len(history.get("loss", ()))
    if done < recipe.epochs:
        if done:
            print(f"Going on after epoch {done} of {recipe.epochs}.")
        verbose = 1 if sys.stdout.isatty() else 2
        distribution.fit(
            model,
            batches,
            initial_epoch=done,
            epochs=recipe.epochs,
            verbose=verbose if distribution.is_chief else 0,
            validation_data=(dataset.normalize(dataset.x_test), dataset.y_test),
            validation_batch_size=EVALUATION_BATCH,
            callbacks=[
                keras.callbacks.LambdaCallback(
                    on_epoch_begin=lambda epoch, _: batches.start_epoch(epoch)
                ),
                _Checkpoint(
                    checkpoint if distribution.is_chief else None,
                    history,
                    watch,
                    recipe.epochs,
                ),
            ],
        )
    return history


def predict_labels(model: keras.Model, x: np.ndarray) -> np.ndarray:
    """Predicted classes, `(n,)`, of normalised pictures.

    Where a network's scores are not finite that is `scores.NO_CLASS`, which
    no label equals.
    """
    return scores.classes_of(scores.predict(model, x, EVALUATION_BATCH))


def count_right(
    model: keras.Model, x: np.ndarray, y: np.ndarray, name: str
) -> int:
    """How many pictures a network that must work classifies correctly.

    Args:
        model: classifies them.
        x: normalised pictures.
        y: their labels.
        name: of the network, for the message.
    """
    with users_mistakes():
        found = scores.predict(model, x, EVALUATION_BATCH)
        labels = scores.finite_classes_of(found, f"the {name} network")
    return int(np.sum(labels == y))


@contextlib.contextmanager
def precision(name: str) -> Iterator[None]:
    """Builds models in mixed precision: "none", "float16", "bfloat16"."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(
        "float32" if name == "none" else f"mixed_{name}"
    )
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


class _Checkpoint(keras.callbacks.Callback):
    """Keeps the history, and writes all that a training resumes from."""

    def __init__(
        self,
        path: pathlib.Path | None,
        history: dict[str, list[float]],
        watch: Watch | None,
        epochs: int,
    ):
        super().__init__()
        self.path = path
        self.history = history
        self.watch = watch
        self.epochs = epochs

    def on_epoch_begin(self, epoch, logs=None):
        if self.watch:
            self.watch.start()
        self._start = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        # Reading `self.model` is what brings JAX's state back into it.
        model = self.model
        numbers = dict(logs or {}, seconds=time.perf_counter() - self._start)
        if self.watch:
            numbers.update(self.watch.measure())
        for name, value in numbers.items():
            self.history.setdefault(name, []).append(float(value))
        if what := _not_finite(model, numbers, epoch + 1 == self.epochs):
            raise DivergedError(epoch + 1, what, self.history)
        if self.path is None:
            return
        content = io.BytesIO()
        # Made in memory: on a disk that is full, the HDF5 library ends the
        # process instead of raising an error; a view of the memory that an
        # error has kept, Python 3.12.1.
        with h5py.File(content, "w") as file:
            for name, variables in _state(model).items():
                for index, variable in enumerate(variables):
                    file[f"{name}/{index}"] = keras.ops.convert_to_numpy(
                        variable
                    )
            file["history"] = json.dumps(self.history)
        with replacing(self.path, PRIVATE) as temporary:
            temporary.write_bytes(content.getvalue())


def _not_finite(
    model: keras.Model, numbers: dict[str, float], is_last: bool
) -> list[str]:
    """What shows that a training has diverged.

    With float16, single steps overflow: the optimizer leaves them out, and
    the network is none the worse for it, but the epoch's loss is not finite.
    There the weights count, and in the end the losses of the test set.
    """
    names = [
        name for name, value in numbers.items() if not math.isfinite(value)
    ]
    if isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer):
        names = [name for name in names if is_last and name.startswith("val_")]
    weights = [keras.ops.convert_to_numpy(v) for v in model.weights]
    # NumPy knows no `isfinite` of bfloat16.
    wrong = sum(not np.isfinite(w.astype("float32")).all() for w in weights)
    if wrong:
        names.append(f"{wrong} of {len(weights)} weights")
    return names


def _state(model: keras.Model) -> dict[str, list[keras.Variable]]:
    """All that a training changes.

    `save_weights` would not do: of a protected model it leaves out the
    optimizer, whose momentum gives keys away.
    """
    return {"model": model.variables, "optimizer": model.optimizer.variables}


def _restore(
    model: keras.Model, checkpoint: pathlib.Path
) -> dict[str, list[float]]:
    """Loads a checkpoint, if there is one; returns its history."""
    if not checkpoint.exists():
        return {}
    # An optimizer has no variables before it is built.
    model.optimizer.build(model.trainable_variables)
    try:
        with h5py.File(checkpoint) as file:
            for name, variables in _state(model).items():
                for index, variable in enumerate(variables):
                    variable.assign(file[f"{name}/{index}"][()])
            return json.loads(file["history"][()])
    except (OSError, KeyError, ValueError) as error:
        raise UserError(
            f"{checkpoint} cannot be read ({error}). Remove it to train this "
            "network again from its first epoch."
        ) from error
