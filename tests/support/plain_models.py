"""Plain Keras models, small enough for a test to train.

Each has batch normalisations after kernel layers. Nothing here uses
`keras_passport`.
"""

import keras
import numpy as np
from keras import layers


def _shape(height, width, channels, data_format):
    if data_format == "channels_first":
        return (channels, height, width)
    return (height, width, channels)


def _conv_bn_relu(x, filters, data_format="channels_last", strides=1, name=""):
    axis = 1 if data_format == "channels_first" else -1
    x = keras.layers.Conv2D(
        filters,
        3,
        strides=strides,
        padding="same",
        use_bias=False,
        data_format=data_format,
        name=f"{name}_conv",
    )(x)
    x = keras.layers.BatchNormalization(axis=axis, name=f"{name}_bn")(x)
    return keras.layers.ReLU(name=f"{name}_relu")(x)


def plain_cnn(
    data_format: str = "channels_last", size: int | None = 8, classes: int = 4
) -> keras.Model:
    """Two convolutions in a row, without branches; `size` may be None."""
    images = keras.Input(_shape(size, size, 3, data_format), name="images")
    x = _conv_bn_relu(images, 8, data_format, name="first")
    x = _conv_bn_relu(x, 12, data_format, strides=2, name="second")
    x = keras.layers.GlobalAveragePooling2D(data_format=data_format)(x)
    outputs = keras.layers.Dense(classes, name="classes")(x)
    return keras.Model(images, outputs, name="plain_cnn")


def small_resnet(
    data_format: str = "channels_last", size: int | None = 8, classes: int = 4
) -> keras.Model:
    """Two residual blocks, the second with a projection shortcut."""
    axis = 1 if data_format == "channels_first" else -1
    images = keras.Input(_shape(size, size, 3, data_format), name="images")
    x = _conv_bn_relu(images, 8, data_format, name="stem")
    for block, (filters, strides) in enumerate([(8, 1), (12, 2)]):
        name = f"block{block}"
        shortcut = x
        x = _conv_bn_relu(x, filters, data_format, strides, f"{name}_1")
        x = keras.layers.Conv2D(
            filters,
            3,
            padding="same",
            use_bias=False,
            data_format=data_format,
            name=f"{name}_2_conv",
        )(x)
        x = keras.layers.BatchNormalization(axis=axis, name=f"{name}_2_bn")(x)
        if strides > 1:
            shortcut = keras.layers.Conv2D(
                filters,
                1,
                strides=strides,
                use_bias=False,
                data_format=data_format,
                name=f"{name}_0_conv",
            )(shortcut)
            shortcut = keras.layers.BatchNormalization(
                axis=axis, name=f"{name}_0_bn"
            )(shortcut)
        x = keras.layers.Add(name=f"{name}_add")([shortcut, x])
        x = keras.layers.ReLU(name=f"{name}_out")(x)
    x = keras.layers.GlobalAveragePooling2D(data_format=data_format)(x)
    outputs = keras.layers.Dense(classes, name="classes")(x)
    return keras.Model(images, outputs, name="small_resnet")


def sequential_cnn(size: int | None = 8, classes: int = 4) -> keras.Sequential:
    """A Sequential model with biased and depthwise convolutions."""
    return keras.Sequential(
        [
            keras.Input((size, size, 3), name="images"),
            keras.layers.Conv2D(8, 3, padding="same", name="conv"),
            keras.layers.BatchNormalization(name="conv_bn"),
            keras.layers.ReLU(name="conv_relu"),
            keras.layers.DepthwiseConv2D(3, name="depthwise"),
            keras.layers.BatchNormalization(name="depthwise_bn"),
            keras.layers.ReLU(name="depthwise_relu"),
            keras.layers.GlobalAveragePooling2D(name="pool"),
            keras.layers.Dense(classes, name="classes"),
        ],
        name="sequential_cnn",
    )


def nested_model(size: int | None = 8, classes: int = 4) -> keras.Model:
    """A functional and a Sequential model inside a functional one.

    The two inner models have layers of the same names.
    """
    inner = keras.Input((size, size, 8), name="features")
    functional = keras.Model(
        inner, _conv_bn_relu(inner, 8, name="inner"), name="functional"
    )
    sequential = keras.Sequential(
        [
            keras.Input((size, size, 8)),
            keras.layers.Conv2D(12, 3, strides=2, name="inner_conv"),
            keras.layers.BatchNormalization(name="inner_bn"),
            keras.layers.ReLU(name="inner_relu"),
        ],
        name="sequential",
    )
    images = keras.Input((size, size, 3), name="images")
    x = _conv_bn_relu(images, 8, name="outer")
    x = sequential(functional(x))
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    outputs = keras.layers.Dense(classes, name="classes")(x)
    return keras.Model(images, outputs, name="nested_model")


def multi_input_model(size: int = 8, classes: int = 4) -> keras.Model:
    """Two named inputs (an image, a vector), two named outputs."""
    images = keras.Input((size, size, 3), name="images")
    vector = keras.Input((5,), name="vector")
    x = _conv_bn_relu(images, 8, name="images")
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    y = keras.layers.Dense(6, use_bias=False, name="vector_dense")(vector)
    y = keras.layers.BatchNormalization(name="vector_bn")(y)
    y = keras.layers.ReLU(name="vector_relu")(y)
    joined = keras.layers.Concatenate(name="joined")([x, y])
    return keras.Model(
        {"images": images, "vector": vector},
        {
            "classes": keras.layers.Dense(classes, name="classes")(joined),
            "score": keras.layers.Dense(1, name="score")(joined),
        },
        name="multi_input_model",
    )


def randomize(model: keras.Model, seed: int = 0) -> keras.Model:
    """Gives a model weights as a training leaves them.

    Fresh batch normalisations have γ = 1, β = 0, mean 0 and variance 1, which
    hides mistakes in what is done with them.
    """
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        shape = tuple(weight.shape)
        kind = weight.path.rsplit("/", 1)[-1]
        if kind == "gamma":
            weight.assign(rng.uniform(0.5, 1.5, shape))
        elif kind == "moving_variance":
            weight.assign(rng.uniform(0.5, 2.0, shape))
        elif kind in ("beta", "bias", "moving_mean"):
            weight.assign(rng.normal(0.0, 0.3, shape))
    return model


def shared_model():
    """One sub-model, called on both of two inputs."""
    size = keras.Input((6, 6, 4), name="inner")
    x = layers.Conv2D(6, 3, name="conv")(size)
    x = layers.BatchNormalization(name="bn")(x)
    branch = keras.Model(size, layers.ReLU(name="relu")(x), name="branch")
    left = keras.Input((6, 6, 4), name="left")
    right = keras.Input((6, 6, 4), name="right")
    x = layers.Concatenate(name="both")([branch(left), branch(right)])
    x = layers.Conv2D(4, 2, name="last_conv")(x)
    outputs = layers.BatchNormalization(name="last_bn")(x)
    return keras.Model([left, right], outputs, name="shared_model")


def inputs_of(model, count=4, seed=5):
    """Random inputs in the model's own structure."""
    rng = np.random.default_rng(seed)

    def make(tensor):
        shape = (count, *(n or 8 for n in tensor.shape[1:]))
        return rng.normal(0.2, 1, shape).astype("float32")

    return keras.tree.map_structure(make, functional_of(model)._inputs_struct)


def functional_of(model):
    return getattr(model, "_functional", model)


def wide_cnn():
    """Two convolutions with so many filters that chance can't hit a γ."""
    images = keras.Input((8, 8, 3))
    x = images
    for filters in (16, 20):
        x = keras.layers.Conv2D(filters, 3, strides=2)(x)
        x = keras.layers.BatchNormalization()(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(images, keras.layers.Dense(4)(x))
