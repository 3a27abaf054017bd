"""Models that look trained, of every kind that `protect_trained` takes."""

import keras
import numpy as np
from keras import layers


def look_trained(model: keras.Model, seed: int = 0) -> keras.Model:
    """Draws weights and statistics as a training leaves them.

    Filters differ in size, a few γ are negative, no mean is zero.
    """
    rng = np.random.default_rng(seed)
    for layer in model._flatten_layers():
        own = [*layer._trainable_variables, *layer._non_trainable_variables]
        for variable in own:
            shape = variable.shape
            if variable.name == "gamma":
                signs = rng.choice((-1, 1), shape, p=(0.1, 0.9))
                variable.assign(signs * rng.lognormal(0, 0.3, shape))
            elif variable.name in ("beta", "moving_mean", "bias"):
                variable.assign(rng.normal(0, 0.3, shape))
            elif variable.name == "moving_variance":
                variable.assign(rng.lognormal(0, 0.5, shape))
            elif "kernel" in variable.name:
                sizes = rng.lognormal(0, 0.3, shape[-1])
                variable.assign(keras.ops.convert_to_numpy(variable) * sizes)
    return model


def _conv(x, filters=6, **options):
    options.setdefault("padding", "same")
    return layers.Conv2D(filters, 3, **options)(x)


def _head(x, classes=4, **options):
    x = layers.GlobalAveragePooling2D()(x)
    return layers.Dense(classes, activation="softmax", **options)(x)


def _images(make, shape=(8, 8, 3)):
    images = keras.Input(shape, name="images")
    return keras.Model(images, make(images))


def plain():
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(8, 3, activation="relu", name="first"),
            layers.MaxPooling2D(),
            layers.Conv2D(12, 3, activation="swish", use_bias=False),
            layers.Flatten(),
            layers.Dense(10, activation="tanh"),
            layers.Dense(4),
        ]
    )


def residual():
    def make(x):
        x = layers.ReLU()(layers.BatchNormalization()(_conv(x)))
        y = layers.BatchNormalization(scale=False)(_conv(x, use_bias=False))
        y = layers.BatchNormalization(center=False)(_conv(layers.ReLU()(y)))
        return _head(layers.ReLU()(layers.Add()([x, y])))

    return _images(make)


def preactivated():
    def make(x):
        x = _conv(x, 16)
        y = layers.ReLU()(layers.BatchNormalization()(x))
        y = _conv(y, 4)
        x = layers.Concatenate()([x, y])
        return _head(layers.ReLU()(layers.BatchNormalization()(x)))

    return _images(make)


def separable():
    def make(x):
        x = layers.SeparableConv2D(8, 3, depth_multiplier=2)(x)
        x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
        x = layers.DepthwiseConv2D(3, depth_multiplier=2)(x)
        x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
        x = layers.BatchNormalization()(layers.Conv2D(40, 1)(x))
        x = layers.Conv2D(12, 3, groups=4, activation="relu")(x)
        return layers.BatchNormalization()(
            layers.SeparableConv2D(30, 1, use_bias=False)(x)
        )

    return _images(make)


def pooled():
    """Layers between kernel and normalisation, linear ones and others."""

    def make(x):
        x = layers.ZeroPadding2D()(_conv(x, use_bias=False))
        x = layers.AveragePooling2D(2)(layers.BatchNormalization()(x))
        x = layers.BatchNormalization()(layers.ZeroPadding2D()(_conv(x)))
        x = layers.AveragePooling2D(2, padding="same")(_conv(x))
        x = layers.BatchNormalization()(x)
        x = layers.BatchNormalization()(layers.MaxPooling2D()(_conv(x)))
        return layers.BatchNormalization()(_conv(x, activation="relu"))

    return _images(make)


def generator():
    return keras.Sequential(
        [
            keras.Input((5,)),
            layers.Dense(4 * 4 * 6),
            layers.BatchNormalization(),
            layers.Reshape((4, 4, 6)),
            layers.Conv2DTranspose(8, 3, strides=2),
            layers.BatchNormalization(),
            layers.LeakyReLU(),
            layers.Conv2DTranspose(3, 3, strides=2, activation="tanh"),
        ]
    )


def sequence():
    """Layer normalisation, masks and one dimension."""
    tokens = keras.Input((12,), dtype="int32")
    x = layers.Embedding(20, 6, mask_zero=True)(tokens)
    x = layers.Dense(8, activation="gelu")(x)
    x = layers.LayerNormalization()(layers.Dense(6)(x))
    x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(tokens, layers.Dense(2)(x))


def shared():
    """One head on two inputs, two outputs, a model in a model."""
    left, right = keras.Input((8, 8, 3)), keras.Input((8, 8, 3))
    tower = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(6, 3),
            layers.GroupNormalization(3),
            layers.GlobalAveragePooling2D(),
        ],
        name="tower",
    )
    head = layers.Dense(3, name="head", activation="sigmoid")
    outputs = {"left": head(tower(left)), "right": head(tower(right))}
    return keras.Model({"left": left, "right": right}, outputs)


def multichannel():
    def make(x):
        x = layers.Conv1D(7, 5, padding="causal", dilation_rate=2)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
        return layers.Conv1DTranspose(3, 2)(x)

    return _images(make, (None, 4))


MODELS = {
    function.__name__: function
    for function in (
        plain,
        residual,
        preactivated,
        separable,
        pooled,
        generator,
        sequence,
        shared,
        multichannel,
    )
}


def inputs_of(model: keras.Model, count: int = 3):
    """Random inputs in the structure that the model takes."""
    rng = np.random.default_rng(1)

    def draw(tensor):
        shape = (count, *(size or 9 for size in tensor.shape[1:]))
        if "int" in tensor.dtype:
            return rng.integers(0, 20, shape).astype(tensor.dtype)
        return rng.normal(size=shape).astype("float32")

    structure = model.inputs[0]
    if not isinstance(model, keras.Sequential):
        structure = model._inputs_struct
    return keras.tree.map_structure(draw, structure)


def gap(received, expected) -> float:
    """Largest difference of outputs, relative to the largest output."""
    keras.tree.assert_same_structure(received, expected)
    gaps = []
    for one, other in zip(
        keras.tree.flatten(received), keras.tree.flatten(expected), strict=True
    ):
        one, other = (
            keras.ops.convert_to_numpy(
                keras.ops.cast(y, keras.backend.result_type(y.dtype, "float32"))
            )
            for y in (one, other)
        )
        gaps.append(np.abs(one - other).max() / np.abs(other).max())
    return float(max(gaps))
