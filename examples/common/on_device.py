"""Training whose epochs are single calls of a JAX device.

Pictures and labels go to the device once, as bytes; there they are chosen,
mirrored, shifted and normalised, and `jax.lax.scan` goes over an epoch's
steps. Per epoch the host sends which pictures are shown and how, a few numbers
each, and fetches the network. The steps are Keras's own, and what they are
shown is what `TrainingBatches` gives, so that a network comes out as from
`Distribution` but for rounding.

Keys are an argument of the compiled call: it holds none, calls nothing back,
and serves all networks that differ in their passport, or in their seed, alone.
"""

import json
import time
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np

import keras_passport as kp
from common.data import Dataset
from common.distribution import Distribution


class OnDevice(Distribution):
    """One device of JAX's.

    Attributes:
        calls: of each call of the device, what it was for, when it began and
            ended (seconds of `time.perf_counter`).
        sent: of each transfer to it, what it was and how many bytes.
    """

    def __init__(self):
        self.calls: list[tuple[str, float, float]] = []
        self.sent: list[tuple[str, int]] = []
        self._datasets: dict[int, tuple] = {}
        self._compiled: dict[str, tuple] = {}

    def fit(
        self,
        model,
        batches,
        *,
        epochs,
        initial_epoch,
        verbose,
        callbacks,
        validation_data,
        validation_batch_size,
    ):
        # The test set that `validation_data` is of is on the device already.
        del validation_data
        model._symbolic_build(data_batch=batches[0])
        model.optimizer.build(model.trainable_variables)
        data = self._place(batches.dataset)
        keys = _packed_keys(model)
        if keys is not None:
            keys = self._send("keys", keys)
        train, test = self._programs(
            model, batches.dataset, validation_batch_size
        )
        callbacks = keras.callbacks.CallbackList(
            callbacks,
            add_progbar=verbose != 0,
            model=model,
            verbose=verbose,
            epochs=epochs,
            steps=len(batches),
        )
        callbacks.on_train_begin()
        plan = self._send("plan of an epoch", batches.plan(initial_epoch))
        for epoch in range(initial_epoch, epochs):
            callbacks.on_epoch_begin(epoch)
            model.reset_metrics()
            state = _state(model)
            began = time.perf_counter()
            state, logs = train(state, keys, data, plan)
            if epoch + 1 < epochs:
                # While the device computes.
                plan = self._send("plan of an epoch", batches.plan(epoch + 1))
            self._wait(state, "train", began)
            _give(model, state)
            model.reset_metrics()
            trained, others, _, metrics = _state(model)
            began = time.perf_counter()
            found = test((trained, others, metrics), keys, data)
            self._wait(found, "test", began)
            logs = {
                **{name: float(value) for name, value in logs.items()},
                **{f"val_{name}": float(v) for name, v in found.items()},
            }
            callbacks.on_epoch_end(epoch, logs)
        callbacks.on_train_end()

    def _send(self, name: str, arrays: Any) -> Any:
        total = sum(array.nbytes for array in keras.tree.flatten(arrays))
        self.sent.append((name, total))
        return jax.device_put(arrays)

    def _wait(self, results: Any, name: str, began: float) -> None:
        jax.block_until_ready(results)
        self.calls.append((name, began, time.perf_counter()))

    def _place(self, dataset: Dataset) -> tuple:
        """Pictures and labels on the device, and what normalises them."""
        if id(dataset) not in self._datasets:
            arrays = {
                "x_train": dataset.x_train,
                "y_train": dataset.y_train,
                "x_test": dataset.x_test,
                "y_test": dataset.y_test,
                "mean": np.asarray(dataset.mean, "float32"),
                "std": np.asarray(dataset.std, "float32"),
            }
            # The dataset is kept so that its id stays its own.
            sent = self._send("pictures and labels", arrays)
            self._datasets[id(dataset)] = dataset, sent
        return self._datasets[id(dataset)][1]

    def _programs(self, model, dataset: Dataset, batch_size: int) -> tuple:
        """Compiled training and test epochs, shared by models that are alike.

        They compute with the variables that they are given alone.
        """
        optimizer = keras.saving.serialize_keras_object(model.optimizer)
        # Keras numbers those without a name of their own.
        optimizer["config"].pop("name")
        alike = json.dumps(
            [
                keras.saving.serialize_keras_object(model)["config"],
                optimizer,
                [variable.path for variable in model.trainable_variables],
                [dataset.name, dataset.pad, batch_size],
            ]
        )
        if alike not in self._compiled:
            self._compiled[alike] = (
                _training_epoch(model, dataset.pad),
                _test_epoch(model, len(dataset.y_test), batch_size),
            )
        return self._compiled[alike]


def _state(model: keras.Model) -> tuple:
    """All that a step of Keras's on JAX takes and gives."""
    return tuple(
        [variable.value for variable in variables]
        for variables in (
            model.trainable_variables,
            model.non_trainable_variables,
            model.optimizer.variables,
            model.metrics_variables,
        )
    )


def _give(model: keras.Model, state: tuple) -> None:
    for variables, values in zip(
        (
            model.trainable_variables,
            model.non_trainable_variables,
            model.optimizer.variables,
            model.metrics_variables,
        ),
        state,
        strict=True,
    ):
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)


def _packed_keys(model: keras.Model) -> np.ndarray | None:
    """The bound keys, `(1, K)`; None for a model without passport layers."""
    layers = kp.protected_layers(model)
    if not layers:
        return None
    rows = [np.asarray(layer._secret.bound.array) for layer in layers.values()]
    return np.concatenate(rows, axis=1)


def _step(model: keras.Model, method: str, state, keys, batch):
    """One of Keras's steps under keys; returns its logs and the new state."""
    step = getattr(model, method)
    if keys is None:
        return step(state, batch)
    with kp.presented(model, keys):
        return step(state, batch)


def _normalized(pictures, data):
    return (pictures.astype("float32") - data["mean"]) / data["std"]


def _training_epoch(model: keras.Model, pad: int):
    def shown(picture, mirrored, top, left):
        padded = jnp.pad(picture, ((pad, pad), (pad, pad), (0, 0)))
        padded = jnp.where(mirrored, padded[:, ::-1], padded)
        return jax.lax.dynamic_slice(padded, (top, left, 0), picture.shape)

    def epoch(state, keys, data, plan):
        def step(state, chosen):
            places, *how = chosen
            x = jax.vmap(shown)(data["x_train"][places], *how)
            batch = (_normalized(x, data), data["y_train"][places])
            logs, state = _step(model, "train_step", state, keys, batch)
            return state, logs

        state, logs = jax.lax.scan(step, state, plan)
        return state, {name: values[-1] for name, values in logs.items()}

    # The state that is replaced needs no memory beside the new one.
    return jax.jit(epoch, donate_argnums=0)


def _test_epoch(model: keras.Model, total: int, batch_size: int):
    whole = total // batch_size

    def epoch(state, keys, data):
        x, y = data["x_test"], data["y_test"]

        def step(state, batch):
            pictures, labels = batch
            batch = (_normalized(pictures, data), labels)
            logs, state = _step(model, "test_step", state, keys, batch)
            return state, logs

        logs = {}
        if whole:
            parts = [
                array[: whole * batch_size].reshape(
                    whole, batch_size, *array.shape[1:]
                )
                for array in (x, y)
            ]
            state, logs = jax.lax.scan(step, state, tuple(parts))
            logs = {name: values[-1] for name, values in logs.items()}
        if total > whole * batch_size:
            rest = (x[whole * batch_size :], y[whole * batch_size :])
            state, logs = step(state, rest)
        return logs

    return jax.jit(epoch)
