"""Moving statistics, estimated from batches without training anything."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping

import keras
import numpy as np
from keras import ops

from keras_passport import graph
from keras_passport.hints import Inputs
from keras_passport.layers.kernel_adapter import numpy_of
from keras_passport.secrecy import type_of
from keras_passport.shapes import fits

# How many calls of a small model take as long as tracing one does.
_BEFORE_COMPILING = 5


def estimate_statistics(
    model: keras.Model, batches: Iterable[Inputs]
) -> keras.Model:
    """Sets moving statistics to their means over batches, training nothing.

    Moving averages remember some 1 / (1 - momentum) steps: after a short
    training, or a change of kernels, they are not the network's own yet.

    Args:
        model: Any Keras model, bound if it is protected. Frozen batch
            normalisations keep their statistics.
        batches: Iterable of inputs as the model takes them, each with as many
            examples as in training.

    Returns:
        The model itself.

    Raises:
        ValueError: If there are no batches, or one is not what the model
            takes, or makes NaN or infinity of a statistic. They are all as
            they were then.

    Example:

    >>> model = kp.calibrate(kp.bind(kp.protect(base), passport), like=base)
    >>> model = kp.estimate_statistics(model, np.array_split(images, 4))
    """
    return Estimator(model).estimate(batches)


class Estimator:
    """Estimates a model's statistics, once or again and again.

    Its calls are compiled after a few: from then on tracing costs less than
    what it saves.

    Args:
        model: As for `estimate_statistics`. Between two estimates its weights
            may change, but nothing else of what it computes: neither what is
            bound, presented or assumed, nor which layers are frozen.
    """

    def __init__(self, model: keras.Model):
        self._model = model
        self._layers = [
            layer
            for layer in model._flatten_layers()
            if isinstance(layer, keras.layers.BatchNormalization)
        ]
        self._calls = 0
        self._compiled = None

    def estimate(self, batches: Iterable[Inputs]) -> keras.Model:
        """As `estimate_statistics` does it."""
        before = [
            (variable, ops.convert_to_numpy(variable).copy())
            for layer in self._layers
            for variable in layer.non_trainable_variables
        ]
        try:
            given = checked_batches(self._model, batches)
            for count, inputs in enumerate(given, start=1):
                self._call(inputs, 1.0 - 1.0 / count)
            _check_finite(self._layers)
        except BaseException:
            for variable, value in before:
                variable.assign(value)
            raise
        return self._model

    def _call(self, inputs, momentum):
        self._calls += 1
        if self._calls == _BEFORE_COMPILING and not self._model.run_eagerly:
            self._compiled = self._compile()
        if self._compiled is not None:
            try:
                self._compiled(inputs, momentum)
                return
            except Exception:
                # Of a layer of the user's that runs as Python does, alone.
                self._compiled = None
        self._eager(inputs, momentum)

    def _eager(self, inputs, momentum):
        with self._momenta(momentum):
            self._model(inputs, training=True)

    def _compile(self):
        backend = keras.backend.backend()
        if backend == "tensorflow":
            import tensorflow as tf

            step = tf.function(
                self._eager, autograph=False, reduce_retracing=True
            )
            # A float would be traced anew, each of them.
            return lambda inputs, momentum: step(
                inputs, tf.constant(momentum, "float64")
            )
        if backend == "jax":
            import jax

            @jax.jit
            def stateless(inputs, momentum, trainable, others):
                with self._momenta(momentum):
                    return self._model.stateless_call(
                        trainable, others, inputs, training=True
                    )[1]

            def step(inputs, momentum):
                trainable = self._model.trainable_variables
                others = self._model.non_trainable_variables
                values = [
                    [v.value for v in each] for each in (trainable, others)
                ]
                new = stateless(inputs, momentum, *values)
                for variable, value in zip(others, new, strict=True):
                    variable.assign(value)

            return step
        return None

    @contextlib.contextmanager
    def _momenta(self, momentum):
        """Lets every layer's moving averages have this momentum, a number."""
        before = [layer.momentum for layer in self._layers]
        try:
            for layer in self._layers:
                layer.momentum = (
                    momentum
                    if isinstance(momentum, float)
                    else ops.cast(momentum, layer.moving_mean.dtype)
                )
            yield
        finally:
            for layer, own in zip(self._layers, before, strict=True):
                layer.momentum = own


def checked_batches(model: keras.Model, batches: Iterable[Inputs]) -> Iterator:
    """Batches one by one, as long as they are what a model can be called with.

    What it computes of them, and whether that is finite, is not looked at.

    Args:
        model: Any Keras model.
        batches: Iterable of inputs as the model takes them.

    Raises:
        ValueError: If there are no batches, or one is not what the model takes.
    """
    expected = "Expected batches of inputs as the model takes them"
    if not isinstance(batches, Iterable):
        raise ValueError(
            f"{expected}, in a list, generator or dataset. "
            f"Received: a {type_of(batches)}"
        )
    needed = model.inputs if graph.is_model(model) else None
    none = True
    for number, inputs in enumerate(batches):
        none = False
        received = f"batch number {number} counted from 0"
        parts = [
            part for part in keras.tree.flatten(inputs) if part is not None
        ]
        shapes = [getattr(part, "shape", None) for part in parts]
        if None in shapes or not parts:
            raise ValueError(
                f"{expected}, arrays with an axis of examples. Received: a "
                f"{type_of(inputs)} as {received}"
            )
        if needed is not None and not isinstance(inputs, Mapping):
            if len(shapes) > len(needed):
                raise ValueError(
                    f"{expected}, {len(needed)} arrays. Received: a "
                    f"{type_of(inputs)} of {len(shapes)} as {received}; labels "
                    "are left out with dataset.map(lambda x, y: x)"
                )
            if len(needed) == 1 and _lacks_an_axis(
                needed[0].shape, tuple(shapes[0])
            ):
                raise ValueError(
                    f"{expected}, of shape {('n', *needed[0].shape[1:])}. "
                    f"Received: shape={tuple(shapes[0])} as {received}; "
                    "numpy.array_split(images, 4) makes 4 batches of an array"
                )
        if any(len(shape) and shape[0] == 0 for shape in shapes):
            raise ValueError(
                f"{expected}, of one example or more. Received: {received}, "
                "without any"
            )
        yield inputs
    if none:
        raise ValueError("Expected at least one batch. Received: none")


def _lacks_an_axis(needed, received) -> bool:
    """Whether a batch seems to be an example: Keras adds a last axis of 1."""
    if needed[-1] == 1 and fits(needed[1:-1], received[1:]):
        return False
    return len(received) < len(needed)


def _check_finite(layers):
    for layer in layers:
        for variable in layer.non_trainable_variables:
            if not np.all(np.isfinite(numpy_of(variable))):
                raise ValueError(
                    "Expected batches that make finite statistics. Received: "
                    f"ones that make NaN or infinity of the {variable.name} "
                    f"of layer '{layer.name}'"
                )
