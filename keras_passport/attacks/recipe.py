"""`Recipe`: how an attacker trains."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

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
        warmup: Part of the epochs in which the rate rises to its first, in
            [0, 1): with large steps from the start, a network may be lost.
        weight_decay: Of kernels: as added to their gradients with SGD; with
            Adam apart from them, as AdamW has it.
        augment: Function `(x, rng)` of a batch of inputs and a NumPy
            generator that returns the inputs to train on; `None` for none.
    """

    epochs: int = 20
    batch_size: int = 64
    optimizer: str = "adam"
    learning_rate: float = 0.003
    schedule: str = "cosine"
    warmup: float = 0.0
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

        if not 0 <= self.warmup < 1:
            raise ValueError(
                "Expected warmup to be a part of the epochs, in [0, 1). "
                f"Received: warmup={self.warmup}"
            )

    def to_dict(self) -> dict:
        """Plain values, for JSON."""
        fields = dataclasses.asdict(self)
        fields["augment"] = self.augment is not None
        return fields

    def rate(self, epoch: int) -> float:
        """The learning rate of an epoch, counted from 0."""
        rising = self.warmup * self.epochs
        if epoch < rising:
            return self.learning_rate * (epoch + 1) / (rising + 1)
        if self.schedule == "constant":
            return self.learning_rate
        turn = math.pi * (epoch - rising) / (self.epochs - rising)
        return self.learning_rate * (1 + math.cos(turn)) / 2

    def _prepare(self, model, from_logits, soft):
        """Compiles a model, or makes one that is compiled so start anew."""
        made_for = (self.optimizer, self.weight_decay, from_logits, soft)
        if getattr(model, "made_for", None) != made_for:
            for layer in model._flatten_layers():
                if isinstance(layer, keras.layers.BatchNormalization):
                    layer.momentum = min(layer.momentum, MOMENTUM)
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits)
            if soft:
                loss = keras.losses.CategoricalCrossentropy(from_logits)
            model.compile(
                self._optimizer(model),
                loss,
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
