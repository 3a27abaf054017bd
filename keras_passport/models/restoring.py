"""`restore_statistics`: normalisations that see what they normalise again."""

from collections.abc import Iterable

import keras
import numpy as np
from keras import ops

from keras_passport import graph
from keras_passport.hints import Inputs
from keras_passport.layers import estimating, folding, normalization
from keras_passport.layers.passport_normalization import PassportNormalization
from keras_passport.models import features


def restore_statistics(
    model: keras.Model, batches: Iterable[Inputs]
) -> keras.Model:
    """Estimates statistics without a change of what the model computes.

    What `unlock(fold=False)` gives of an exactly protected network is that
    network, but for its statistics, which are 0 and 1 and frozen: all that they
    did is in scale and shift. Whoever trains it on with the batches' own
    statistics would start anew. Here means and variances become those of what
    the layers see, scales and shifts make up for it, and layers are no longer
    frozen.

    Args:
        model: An ordinary Keras model, such as `unlock` returns. Passport
            layers stay as they are; without a shift the mean does, without a
            scale the variance.
        batches: Iterable of inputs as the model takes them.

    Returns:
        The model itself.

    Raises:
        ValueError: If there are no batches, or one is not what the model
            takes, or makes NaN or infinity. The model is then left as it was.

    Example:

    >>> protected, passport = kp.protect_trained(base)
    >>> plain = kp.unlock(protected, passport, fold=False)
    >>> plain = kp.restore_statistics(plain, np.array_split(images, 4))
    >>> np.allclose(plain(images), base(images), atol=1e-4)
    True
    """
    layers = {
        path: layer
        for path, layer in graph.walk(model, stop=(PassportNormalization,))
        if isinstance(layer, keras.layers.BatchNormalization)
    }
    sums = {path: [0.0, 0.0, 0] for path in layers}

    def note(path, seen):
        layer = layers[path]
        values = ops.convert_to_numpy(ops.cast(seen, "float32"))
        axis = normalization.channel_axis(layer, values.ndim)
        values = np.moveaxis(values, axis, -1).reshape(-1, values.shape[axis])
        total = sums[path]
        total[0] = total[0] + values.sum(0, dtype="float64")
        total[1] = total[1] + np.square(values).sum(0, dtype="float64")
        total[2] += len(values)

    with features.watching(layers, "call", note):
        for inputs in estimating.checked_batches(model, batches):
            model(inputs, training=False)
    for path, (first, second, _) in sums.items():
        if not (np.all(np.isfinite(first)) and np.all(np.isfinite(second))):
            raise ValueError(
                "Expected batches of which layers see finite numbers. "
                f"Received: ones with NaN or infinity before layer '{path}'"
            )
    for path, layer in layers.items():
        first, second, seen = sums[path]
        if seen:
            mean = first / seen
            _restore(layer, mean, np.maximum(second / seen - mean**2, 0.0))
    return model


def _restore(layer, mean, variance):
    old_mean, old_deviation = normalization.statistics_of(layer)
    gamma, beta = folding.gamma_and_beta(layer)
    slope = (1.0 if gamma is None else gamma) / old_deviation
    if gamma is not None:
        layer.gamma.assign(slope * np.sqrt(variance + layer.epsilon))
        layer.moving_variance.assign(variance)
    if beta is not None:
        layer.beta.assign(beta + slope * (mean - old_mean))
        layer.moving_mean.assign(mean)
    graph.thaw(layer)
