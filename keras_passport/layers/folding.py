"""Scale, shift and bias folded into a kernel or into statistics.

Where a batch normalisation follows a kernel's outputs themselves, γ and σ are
factors of the kernel's channels at inference, and all else is a bias. Where
statistics are subtracted, a bias before them has no effect.
"""

import math

import keras
import numpy as np
from keras import ops

from keras_passport.layers import kernels, normalization, scopes

# Layers that add to their outputs what is added to all their inputs.
_KEEPS_SHIFTS = tuple(
    getattr(keras.layers, name + rank)
    for name in ("AveragePooling", "MaxPooling", "Cropping")
    for rank in ("1D", "2D", "3D")
)


def is_linear(kernel_layer) -> bool:
    """Whether a kernel layer's outputs are those of its linear map."""
    activation = getattr(kernel_layer, "activation", None)
    return activation in (None, keras.activations.linear)


def bias_of(kernel_layer, shape) -> np.ndarray:
    """A kernel layer's bias for each channel; zeros where it has none.

    Args:
        kernel_layer: Built.
        shape: `(channels,)`.
    """
    bias = getattr(kernel_layer, "bias", None)
    if bias is None or tuple(bias.shape) != tuple(shape):
        return np.zeros(shape)
    return ops.convert_to_numpy(bias).astype("float64")


def is_direct(layer) -> bool:
    """Whether a batch normalisation follows the kernel's outputs themselves.

    Args:
        layer: A passport layer.
    """
    return (
        isinstance(layer.normalization, keras.layers.BatchNormalization)
        and not layer.between
        and is_linear(layer.layer)
    )


def refusal(layer) -> str | None:
    """Why no factor of a channel can go into a kernel; `None` if it can.

    Args:
        layer: A passport layer.
    """
    if not isinstance(layer.normalization, keras.layers.BatchNormalization):
        return f"a {type(layer.normalization).__name__} mixes channels"
    if not kernels.is_stock(layer.layer):
        return "it is no layer of Keras's own"
    if not is_direct(layer):
        return "something stands between kernel and normalisation"
    return None


def gamma_and_beta(layer, gamma=None, beta=None, neutral=False) -> tuple:
    """A passport layer's γ and β, whether they are hidden or trainable.

    Args:
        layer: A built passport layer, or a normalisation.
        gamma: The hidden γ, an array `(channels,)`; `None` where the passport
            function hides none.
        beta: The hidden β, or `None`.
        neutral: Whether a layer that has no γ or β has ones and zeros.

    Returns:
        Tuple of float64 arrays `(channels,)`; `None` for what it has not.
    """
    values = []
    for value, trained, nothing in (
        (gamma, layer.gamma, np.ones),
        (beta, layer.beta, np.zeros),
    ):
        value = trained if value is None else value
        if value is not None:
            value = ops.convert_to_numpy(value).astype("float64")
        elif neutral:
            value = nothing(layer.adapter.units(layer.layer))
        values.append(value)
    return tuple(values)


def scale_and_shift(layer, gamma=None, beta=None) -> tuple:
    """What γ, β, statistics and bias are together, at inference.

    Args:
        layer: A built passport layer with a batch normalisation.
        gamma: As for `gamma_and_beta`.
        beta: As for `gamma_and_beta`.

    Returns:
        Tuple of float64 arrays `(channels,)`: the kernel's factors, γ / σ,
        and the bias after them.
    """
    gamma, beta = gamma_and_beta(layer, gamma, beta)
    mean, deviation = normalization.statistics_of(layer.normalization)
    scale = (1.0 if gamma is None else gamma) / deviation
    bias = getattr(layer.layer, "bias", None)
    bias = 0.0 if bias is None else ops.convert_to_numpy(bias)
    return scale, (bias - mean) * scale + (0.0 if beta is None else beta)


# While calling ----------------------------------------------------------------


def pays(layer, inputs, gamma, beta) -> bool:
    """Whether scaling the kernel costs less than scaling the outputs.

    One or the other is read and written once more; the factor of 2 was
    measured with ResNet-50 (tests/benchmarks). XLA, of JAX, fuses the latter
    with what comes before and after.

    Args:
        layer: A built passport layer, at inference and without a mask.
        inputs: Tensor that it is called with.
        gamma: Tensor `(1 or examples, channels)`, or `None`.
        beta: Of the same shapes.
    """
    if (
        keras.backend.backend() != "tensorflow"
        or refusal(layer) is not None
        or not _keeps_precision(layer.layer, layer.normalization)
        or layer.layer.activity_regularizer is not None
        or getattr(layer.layer, "lora_enabled", False)
        or any(p is not None and p.shape[0] != 1 for p in (gamma, beta))
    ):
        return False
    outputs = layer.layer.compute_output_shape(tuple(inputs.shape))
    kernel = sum(math.prod(w.shape) for w in layer.layer.weights)
    return kernel <= 2 * math.prod(size or 1 for size in outputs)


def _keeps_precision(kernel_layer, normalization_layer) -> bool:
    """Whether a scaled kernel is as exact as scaled outputs.

    A kernel is scaled in float32 and rounded once, as it would be anyway;
    float16 has no exponents for what scaling can make of it.
    """
    dtype = normalization_layer.compute_dtype
    return dtype == kernel_layer.compute_dtype and dtype in (
        "float32",
        "bfloat16",
    )


def call(layer, inputs, gamma, beta, training, values=()):
    """Inference with scale and shift in the kernel and its bias.

    Args:
        layer: A passport layer for which it `pays`.
        inputs: As for `pays`, and so are the next two.
        gamma: Scale.
        beta: Shift.
        training: Whether the layers around it are training.
        values: Those of variables that stand for their own, with other
            gradients, as `scopes.Substitution` takes them.

    Returns:
        The outputs before the activation.
    """
    scale, shift = normalization.affine(layer.normalization, gamma, beta)
    scale, shift = scale[0], shift[0]
    with scopes.Substitution(values):
        folded = layer.adapter.folded(layer.layer, scale, _value)
    bias = getattr(layer.layer, "bias", None)
    if bias is not None:
        value = _value(bias)
        for _, still in still_bias(layer, training):
            value = ops.cast(still, value.dtype)
        folded["bias"] = value * scale + shift
    outputs = scopes.call_with(
        layer.layer,
        inputs,
        [
            (variable, folded[variable.name])
            for variable in layer.layer.variables
            if variable.name in folded
        ],
    )
    if bias is not None:
        return outputs
    return normalization.shifted(layer.normalization, outputs, shift)


def _value(variable):
    """What a variable is here and now, in float32 if it is less precise."""
    value = ops.convert_to_tensor(variable.value)
    dtype = keras.backend.standardize_dtype(value.dtype)
    return ops.cast(value, keras.backend.result_type(dtype, "float32"))


# Biases -----------------------------------------------------------------------


def cancels_bias(layer) -> bool:
    """Whether a bias only shifts what the statistics subtract again.

    Args:
        layer: A built passport layer.
    """
    bias = getattr(layer.layer, "bias", None)
    return (
        bias is not None
        and isinstance(layer.normalization, keras.layers.BatchNormalization)
        and kernels.is_stock(layer.layer)
        and is_linear(layer.layer)
        and layer.layer.activity_regularizer is None
        and tuple(bias.shape) == tuple(layer.normalization.moving_mean.shape)
        and all(isinstance(part, _KEEPS_SHIFTS) for part in layer.between)
    )


def into_mean(layer) -> None:
    """Moves a bias that statistics cancel into their mean.

    Args:
        layer: A built passport layer.
    """
    if cancels_bias(layer):
        bias, mean = layer.layer.bias, layer.normalization.moving_mean
        mean.assign(ops.convert_to_numpy(mean) - ops.convert_to_numpy(bias))
        bias.assign(np.zeros(bias.shape))


def still_bias(layer, training) -> list:
    """A bias that is cancelled, so that it does not train either.

    Its gradient is nothing but rounding errors where statistics are the
    batch's; where they are frozen, it is what β's would be.

    Args:
        layer: A built passport layer.
        training: Whether it trains.

    Returns:
        List of the variable with its value, as `Substitution` takes it; empty
        for no such bias.
    """
    if not training or not cancels_bias(layer):
        return []
    bias = layer.layer.bias
    return [(bias, ops.stop_gradient(bias.value) + 0.0 * bias.value)]
