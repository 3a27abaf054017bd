"""Training on one device, on several, or on several machines.

All do the same: every replica takes its part of the global batch, statistics
and gradients are those of the whole, and so a run can be interrupted on one
number of replicas and go on with another.
"""

import contextlib
import functools
import json
import math
import os
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from common.data import TrainingBatches
from common.errors import UserError
from keras_passport import replicas


def start(name: str) -> "Distribution":
    """What `--strategy` asks for.

    "none", "on_device", "mirrored" or "multi_worker".

    To be called before TensorFlow computes anything: machines must find each
    other first.
    """
    if name == "none":
        return Distribution()
    backend = keras.backend.backend()
    if name == "on_device":
        if backend != "jax":
            raise UserError(
                "--strategy=on_device is JAX's. Set KERAS_BACKEND=jax, or "
                f"leave --strategy out. Received: KERAS_BACKEND={backend}"
            )
        from common.on_device import OnDevice

        return OnDevice()
    if backend != "tensorflow":
        raise UserError(
            f"--strategy={name} is TensorFlow's (tf.distribute). Set "
            "KERAS_BACKEND=tensorflow, or leave --strategy out. Received: "
            f"KERAS_BACKEND={backend}"
        )
    import tensorflow as tf

    # It tells of every all-reduce, twice.
    tf.get_logger().setLevel("WARNING")
    if name == "mirrored":
        return Replicated(tf.distribute.MirroredStrategy())
    is_chief, workers = _read_tf_config()
    print(f"Waiting for all {workers} workers.", flush=True)
    return Workers(tf.distribute.MultiWorkerMirroredStrategy(), is_chief)


class Distribution:
    """One device."""

    is_chief = True
    replicas = 1

    def scope(self) -> contextlib.AbstractContextManager:
        """In which models are built, loaded, bound and attacked."""
        return contextlib.nullcontext()

    def check_batch_size(self, batch_size: int) -> None:
        """Raises a `UserError` unless replicas can share a batch."""
        if batch_size % self.replicas:
            raise UserError(
                f"Expected a --batch_size that {self.replicas} replicas can "
                f"share equally. Received: {batch_size} pictures a step"
            )

    def agree(self, value: bool = True) -> bool:
        """What the chief says, for all workers; each waits for the others."""
        return value

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """Says it in one line when another worker is lost."""
        yield

    def fit(
        self, model: keras.Model, batches: TrainingBatches, **options: Any
    ) -> None:
        """`model.fit` on what `batches` gives, in the order that it has.

        Args:
            model: compiled; built in `scope`.
            batches: of the size of the global batch.
            options: `epochs`, `initial_epoch`, `verbose`, `callbacks`,
                `validation_data` and `validation_batch_size` as for
                `keras.Model.fit`.
        """
        # Traced once, not twice: Keras does it with a strategy alone.
        model._symbolic_build(data_batch=batches[0])
        model.fit(batches, shuffle=False, **options)


class Replicated(Distribution):
    """Several devices of one machine.

    Args:
        strategy: a `tf.distribute.Strategy` whose replicas are in step.
    """

    def __init__(self, strategy):
        self._strategy = strategy
        self.replicas = strategy.num_replicas_in_sync

    def scope(self):
        return self._strategy.scope()

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
        # Keras's own fit can't do it on several machines (3.15 with TensorFlow
        # 2.21: "Attempt to convert a value (PerReplica...)"). Its steps can.
        parts = math.ceil(len(validation_data[1]) / validation_batch_size)
        validation = [np.array_split(array, parts) for array in validation_data]
        with self.scope(), _synchronized(model):
            # Metrics are built by this; inside a step it would be too late.
            model._symbolic_build(data_batch=batches[0])
            train = self._on_replicas(model.train_step)
            test = self._on_replicas(model.test_step)
            callbacks = keras.callbacks.CallbackList(
                callbacks,
                add_progbar=verbose != 0,
                model=model,
                verbose=verbose,
                epochs=epochs,
                steps=len(batches),
            )
            callbacks.on_train_begin()
            for epoch in range(initial_epoch, epochs):
                callbacks.on_epoch_begin(epoch)
                model.reset_metrics()
                for step in range(len(batches)):
                    callbacks.on_train_batch_begin(step)
                    train(batches[step])
                    callbacks.on_train_batch_end(step)
                logs = _results(model)
                model.reset_metrics()
                for batch in zip(*validation, strict=True):
                    test(batch)
                for name, value in _results(model).items():
                    logs[f"val_{name}"] = value
                callbacks.on_epoch_end(epoch, logs)
            callbacks.on_train_end()

    def _on_replicas(self, step):
        """Keras's step on a batch, as a compiled one of all replicas."""
        import tensorflow as tf

        @tf.function(reduce_retracing=True)
        def run(batch):
            # Its results would be those of one replica: metrics have all.
            self._strategy.run(step, args=(batch,))

        return lambda batch: run(replicas.split(self._strategy, batch))


class Workers(Replicated):
    """Several machines, each running the same program on the same data.

    The chief alone writes files; the others read them, so the run's directory
    is one that all of them see.

    Args:
        strategy: a `tf.distribute.MultiWorkerMirroredStrategy`.
        is_chief: whether this is the first of the workers.
    """

    def __init__(self, strategy, is_chief: bool):
        super().__init__(strategy)
        self.is_chief = is_chief

    def agree(self, value=True):
        import tensorflow as tf

        said = self._strategy.experimental_distribute_values_from_function(
            lambda _: tf.constant(float(value and self.is_chief))
        )
        return bool(self._strategy.reduce("SUM", said, axis=None) > 0)

    @contextlib.contextmanager
    def guarded(self):
        from tensorflow import errors

        try:
            yield
        except (
            errors.AbortedError,
            errors.CancelledError,
            errors.DeadlineExceededError,
            errors.FailedPreconditionError,
            errors.UnavailableError,
        ) as error:
            raise UserError(
                f"Another worker was lost ({type(error).__name__}). Start all "
                "workers again with the same commands: they go on from the "
                "last epoch that was finished."
            ) from error


@contextlib.contextmanager
def _synchronized(model: keras.Model) -> Iterator[None]:
    """Normalises by the statistics of the global batch.

    Replicas with statistics of their own would keep different moving ones, of
    which a checkpoint can hold but one. It is for training alone: outside, and
    in files, the layers are the user's.
    """
    layers = [
        layer
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    before = [layer.synchronized for layer in layers]
    for layer in layers:
        layer.synchronized = True
        layer._moments = functools.partial(_moments, layer)
    try:
        yield
    finally:
        for layer, synchronized in zip(layers, before, strict=True):
            layer.synchronized = synchronized
            del layer._moments


def _moments(layer, inputs, mask=None):
    """Mean and variance over all replicas, from those of each.

    Keras's own take E(x²) - E(x)², which has no digits left where a channel
    hardly varies: a ResNet-8 then went 1e-3 off a single device's losses
    within ten steps, and 0.03 within twenty.
    """
    import tensorflow as tf

    if mask is not None:
        return type(layer)._moments(layer, inputs, mask)

    def over_replicas(value):
        context = tf.distribute.get_replica_context()
        return context.all_reduce(tf.distribute.ReduceOp.MEAN, value)

    # Every replica has equally many examples.
    mean, variance = tf.nn.moments(inputs, layer._reduction_axes)
    whole = over_replicas(mean)
    return whole, over_replicas(variance + tf.square(mean - whole))


def _results(model: keras.Model) -> dict[str, float]:
    """The metrics' values over all replicas."""
    return {
        name: float(value) for name, value in model.get_metrics_result().items()
    }


def _read_tf_config() -> tuple[bool, int]:
    """Whether this worker is the chief, and how many there are."""
    text = os.environ.get("TF_CONFIG", "")
    try:
        config = json.loads(text)
        cluster, task = config["cluster"], config["task"]
        kind, index = task["type"], task["index"]
        addresses = cluster[kind][index]
        valid = (
            index >= 0
            and isinstance(addresses, str)
            and cluster.keys() <= {"chief", "worker"}
        )
    except (ValueError, KeyError, IndexError, TypeError):
        valid = False
    if not valid:
        raise UserError(
            "--strategy=multi_worker reads the environment variable TF_CONFIG, "
            'such as {"cluster": {"worker": ["host1:2222", "host2:2222"]}, '
            '"task": {"type": "worker", "index": 0}}, with an index of its own '
            f"for each worker. Received: TF_CONFIG={text or ' not set'}"
        )
    is_chief = kind == "chief" or ("chief" not in cluster and index == 0)
    return is_chief, sum(map(len, cluster.values()))
