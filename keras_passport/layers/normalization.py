"""Normalisation with a scale and shift that are given, not stored.

Keras's normalisation layers hold their own γ and β. These functions do what
the layers do, statistics included, with γ and β as tensors through which
gradients flow.
"""

import keras
import numpy as np
from keras import ops

from keras_passport.errors import PassportError

# Where it was once.
from keras_passport.layers.estimating import estimate_statistics  # noqa: F401

SUPPORTED = (
    keras.layers.BatchNormalization,
    keras.layers.LayerNormalization,
    keras.layers.GroupNormalization,
)


def own_affine(layer, name: str) -> keras.Variable:
    """The γ or β that a passport layer holds itself.

    Args:
        layer: The passport layer, which has what stands in its place.
        name: `"gamma"` or `"beta"`.
    """
    options = vars(layer.normalization)
    variable = layer.add_weight(
        name=name,
        shape=(layer.adapter.units(layer.layer),),
        initializer=options[f"{name}_initializer"],
        regularizer=options[f"{name}_regularizer"],
        constraint=options[f"{name}_constraint"],
    )
    # Afterwards: what is made untrainable stays so for ever.
    variable.trainable = layer.normalization.trainable
    return variable


def refusal(layer) -> str | None:
    """Why a passport can't take this normalisation's place, or `None`."""
    if getattr(layer, "renorm", False):
        return "batch renormalisation (renorm=True) has its own scale and shift"
    if getattr(layer, "rms_scaling", False):
        return "rms_scaling=True has a scale that can't be switched off"
    axis = layer.axis
    if isinstance(axis, (list, tuple)) and len(axis) != 1:
        return f"it normalises over several axes ({list(axis)})"
    return None


def without_affine(layer):
    """Which affine part a normalisation has, and a new one of it without.

    Args:
        layer: Of a type in `SUPPORTED`.

    Returns:
        Tuple of a dict that says of `"center"` and of `"scale"` whether the
        normalisation has them, and of the new one.

    Raises:
        PassportError: If a passport can't take its scale's and shift's place.
    """
    if type(layer) not in SUPPORTED:
        raise PassportError(
            "Expected normalization to be a BatchNormalization, "
            "LayerNormalization or GroupNormalization layer. "
            f"Received: normalization={layer}"
        )
    reason = refusal(layer)
    if reason:
        raise PassportError(
            "Expected a normalisation that a passport can scale and shift, "
            f"but {reason}. Received: normalization={layer}"
        )
    affine = {"center": layer.center, "scale": layer.scale}
    config = {**layer.get_config(), "center": False, "scale": False}
    # The passport layer's, which alone has the outputs.
    config.pop("activity_regularizer", None)
    return affine, type(layer).from_config(config)


def with_affine(layer, affine: dict) -> dict:
    """The config of a normalisation whose place a passport layer took.

    It is asked for anew each time: the normalisation may have been frozen, or
    been given another momentum, since.

    Args:
        layer: The new one that `without_affine` returned, as it is now. All
            that says how γ and β start and train is still in its config.
        affine: The dict that it returned.
    """
    config = _unshared(keras.saving.serialize_keras_object(layer))
    # Who deserialises it need not build it: as it is built here, it has no
    # variables for its affine part.
    config.pop("build_config", None)
    config["config"].update(affine)
    return config


def _unshared(config):
    """A copy of a config that says nothing of which objects are shared.

    While a model is saved, Keras notes the ids of all that is serialised. What
    is serialised here, with the affine part, is no layer that there is.
    """
    if isinstance(config, dict):
        return {
            key: _unshared(value)
            for key, value in config.items()
            if key != "shared_object_id"
        }
    if isinstance(config, (list, tuple)):
        return [_unshared(value) for value in config]
    return config


def normalize(layer, inputs, gamma, beta, training=None, mask=None):
    """y = γ · normalise(x) + β (eq. 3).

    Args:
        layer: A built normalisation layer without affine part; its statistics
            are used and, in training, updated as it would itself.
        inputs: Tensor to normalise.
        gamma: float32 tensor of shape `(1 or batch, channels)`, or `None`.
        beta: Shift, of the same shapes.
        training: Whether to use the batch's own statistics.
        mask: Mask of one axis less than the inputs, or `None`.

    Returns:
        Tensor in the shape of `inputs` and the layer's compute dtype.
    """
    if not isinstance(layer, keras.layers.BatchNormalization):
        outputs = layer(ops.cast(inputs, layer.compute_dtype))
        return _scale_and_shift(layer, outputs, gamma, beta)
    inputs = ops.cast(inputs, layer.compute_dtype)
    training = bool(training) and layer.trainable
    one_row = all(p is None or p.shape[0] == 1 for p in (gamma, beta))
    if one_row and mask is None and not (training and layer.synchronized):
        gamma = None if gamma is None else gamma[0]
        beta = None if beta is None else beta[0]
        if _can_fuse(layer, inputs):
            return _fused(layer, inputs, gamma, beta, training)
        return _composed(layer, inputs, gamma, beta, training)
    if not training:
        # A row of γ and β per example: one multiply and add.
        dtype = keras.backend.result_type(inputs.dtype, "float32")
        scale, shift = affine(layer, gamma, beta, dtype)
        return _scale_and_shift(layer, inputs, scale, shift)
    outputs = layer(inputs, training=training, mask=mask)
    return _scale_and_shift(layer, outputs, gamma, beta)


def tells_channels_apart(layer) -> bool:
    """Whether a batch normalisation's statistics differ between channels.

    Those that `kp.hide_statistics` leaves, or that never were estimated, don't.
    """
    mean = ops.convert_to_numpy(layer.moving_mean)
    variance = ops.convert_to_numpy(layer.moving_variance)
    return bool(np.any(mean) or np.ptp(variance) > 0.0)


def statistics_of(layer) -> tuple[np.ndarray, np.ndarray]:
    """What a batch normalisation subtracts, and what it divides by.

    Args:
        layer: A built batch normalisation.

    Returns:
        Tuple of its moving mean, and of the square root of variance and
        epsilon together: float64 arrays `(channels,)`.
    """
    mean, variance = (
        ops.convert_to_numpy(value).astype("float64")
        for value in (layer.moving_mean, layer.moving_variance)
    )
    return mean, np.sqrt(variance + layer.epsilon)


def shifted(layer, inputs, shift):
    """Inputs plus a shift per channel, of shape `(channels,)`."""
    axis = channel_axis(layer, len(inputs.shape))
    shift = ops.cast(shift, inputs.dtype)
    if keras.backend.backend() == "tensorflow" and axis + 1 == len(
        inputs.shape
    ):
        import tensorflow as tf

        # Which TensorFlow makes one with the convolution before it.
        return tf.nn.bias_add(inputs, shift)
    return inputs + _over_channels(layer, inputs, shift[None])


def channel_axis(layer, rank: int) -> int:
    """The axis that the layer scales and shifts, of an input of this rank."""
    axis = layer.axis
    axis = axis[0] if isinstance(axis, (list, tuple)) else axis
    return axis % rank


def check_axis(layer, rank: int) -> None:
    """Raises `PassportError` unless it normalises along the kernel's channels.

    Args:
        layer: A passport layer.
        rank: Of its outputs.
    """
    channels = layer.adapter.channel_axis(layer.layer)
    if channel_axis(layer.normalization, rank) != channels % rank:
        raise PassportError(
            f"Expected a normalisation along the channel axis ({channels}) of "
            f"layer '{layer.layer.name}'. "
            f"Received: axis={layer.normalization.axis}"
        )


def _over_channels(layer, inputs, parameter):
    """A (rows, channels) parameter in a shape that broadcasts to inputs."""
    shape = [1] * len(inputs.shape)
    shape[channel_axis(layer, len(inputs.shape))] = parameter.shape[-1]
    shape[0] = parameter.shape[0] or -1
    return ops.reshape(parameter, shape)


def _wide(inputs, *parameters):
    """Inputs and parameters in float32, or float64 where the inputs are."""
    dtype = keras.backend.result_type(inputs.dtype, "float32")
    return (
        ops.cast(inputs, dtype),
        *(p if p is None else ops.cast(p, dtype) for p in parameters),
    )


def _scale_and_shift(layer, inputs, gamma, beta):
    outputs, gamma, beta = _wide(inputs, gamma, beta)
    if gamma is not None:
        outputs = outputs * _over_channels(layer, inputs, gamma)
    if beta is not None:
        outputs = outputs + _over_channels(layer, inputs, beta)
    return ops.cast(outputs, layer.compute_dtype)


def affine(layer, gamma, beta, dtype="float32"):
    """What a batch normalisation is at inference: a scale and a shift.

    Args:
        layer: As for `normalize`, and so are the next two.
        gamma: Scale.
        beta: Shift.
        dtype: To compute in.

    Returns:
        Tuple of scale and shift, of shape `(1 or batch, channels)`.
    """
    gamma, beta, mean, variance = (
        None if value is None else ops.cast(value, dtype)
        for value in (gamma, beta, layer.moving_mean, layer.moving_variance)
    )
    inverse = ops.rsqrt(variance + layer.epsilon)[None]
    scale = inverse if gamma is None else gamma * inverse
    shift = -mean[None] * scale
    return scale, shift if beta is None else beta + shift


def _composed(layer, inputs, gamma, beta, training):
    """Keras's own batch normalisation, in the order in which it computes."""
    axis = channel_axis(layer, len(inputs.shape))
    x, gamma, beta, mean, variance = _wide(
        inputs, gamma, beta, layer.moving_mean, layer.moving_variance
    )
    if training:
        axes = [i for i in range(len(x.shape)) if i != axis]
        mean, variance = ops.moments(x, axes=axes)
        _update_statistics(layer, mean, variance)
    outputs = ops.batch_normalization(
        x, mean, variance, axis, beta, gamma, layer.epsilon
    )
    return ops.cast(outputs, layer.compute_dtype)


def _update_statistics(layer, mean, variance):
    for moving, value in (
        (layer.moving_mean, mean),
        (layer.moving_variance, variance),
    ):
        # Variables of fewer digits than the statistics are, as in Keras.
        kept = ops.cast(moving, value.dtype) * layer.momentum
        value = kept + value * (1.0 - layer.momentum)
        moving.assign(ops.cast(value, moving.dtype))


def _can_fuse(layer, inputs) -> bool:
    return (
        keras.backend.backend() == "tensorflow"
        and channel_axis(layer, len(inputs.shape)) == len(inputs.shape) - 1
        and layer.compute_dtype in ("float32", "float16", "bfloat16")
        # The kernels for GPUs take no smaller one.
        and layer.epsilon >= 1e-5
    )


def _fused(layer, inputs, gamma, beta, training):
    """TensorFlow's one-pass kernel, which Keras 3 does not use.

    It takes four axes, and returns the unbiased variance where Keras keeps
    the biased one in its moving average.
    """
    import tensorflow as tf

    units = inputs.shape[-1]
    shape = tf.shape(inputs)
    x = inputs
    if len(inputs.shape) != 4:
        x = tf.reshape(inputs, (shape[0], -1, 1, units))
    # Of a kernel layer in float64 they are float64.
    gamma = tf.ones((units,)) if gamma is None else tf.cast(gamma, "float32")
    beta = tf.zeros((units,)) if beta is None else tf.cast(beta, "float32")
    empty = tf.zeros((0,))
    outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=x,
        scale=gamma,
        offset=beta,
        # Of a layer whose variables are bfloat16, too.
        mean=empty if training else tf.cast(layer.moving_mean, "float32"),
        variance=(
            empty if training else tf.cast(layer.moving_variance, "float32")
        ),
        epsilon=layer.epsilon,
        is_training=training,
    )
    if training:
        count = tf.cast(tf.size(x) // units, "float32")
        biased = variance * ((count - 1.0) / count)
        _update_statistics(
            layer, tf.stop_gradient(mean), tf.stop_gradient(biased)
        )
    if len(inputs.shape) != 4:
        outputs = tf.reshape(outputs, shape)
    outputs.set_shape(inputs.shape)
    return outputs
