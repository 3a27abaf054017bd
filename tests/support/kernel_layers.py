"""The table of kernel layers, and what may stand behind one."""

import keras
from keras import layers

FUNCTIONS = ("V1", "V2", "V3")
IMAGE = (6, 6, 4)

# Name: the kernel layer's class, its arguments, its input's shape.
KERNELS = {
    "dense": (layers.Dense, {"units": 6}, (5,)),
    "dense_rank3": (layers.Dense, {"units": 6}, (7, 4)),
    "dense_without_bias": (
        layers.Dense,
        {"units": 6, "use_bias": False},
        (7, 4),
    ),
    "einsum": (
        layers.EinsumDense,
        {"equation": "abc,cd->abd", "output_shape": (7, 6)},
        (7, 4),
    ),
    "einsum_bias": (
        layers.EinsumDense,
        {"equation": "ab,bc->ac", "output_shape": 6, "bias_axes": "c"},
        (5,),
    ),
    "conv1d": (
        layers.Conv1D,
        {"filters": 6, "kernel_size": 3, "padding": "causal"},
        (8, 4),
    ),
    "conv2d": (
        layers.Conv2D,
        {"filters": 6, "kernel_size": 3, "strides": 2, "padding": "same"},
        IMAGE,
    ),
    "conv3d": (layers.Conv3D, {"filters": 6, "kernel_size": 2}, (4, 3, 4, 2)),
    "activated": (
        layers.Conv2D,
        {"filters": 6, "kernel_size": 3, "activation": "tanh"},
        IMAGE,
    ),
    "grouped": (
        layers.Conv2D,
        {"filters": 6, "kernel_size": 3, "groups": 2, "activation": "tanh"},
        IMAGE,
    ),
    "grouped_without_bias": (
        layers.Conv2D,
        {"filters": 6, "kernel_size": 3, "groups": 2, "use_bias": False},
        IMAGE,
    ),
    "depthwise1d": (
        layers.DepthwiseConv1D,
        {"kernel_size": 3, "depth_multiplier": 2},
        (8, 4),
    ),
    "depthwise": (
        layers.DepthwiseConv2D,
        {"kernel_size": 3, "depth_multiplier": 2},
        IMAGE,
    ),
    "depthwise_without_bias": (
        layers.DepthwiseConv2D,
        {"kernel_size": 3, "depth_multiplier": 3, "use_bias": False},
        IMAGE,
    ),
    "separable1d": (
        layers.SeparableConv1D,
        {"filters": 6, "kernel_size": 3, "use_bias": False},
        (8, 4),
    ),
    "separable": (
        layers.SeparableConv2D,
        {"filters": 6, "kernel_size": 3, "use_bias": False},
        IMAGE,
    ),
    "separable_bias": (
        layers.SeparableConv2D,
        {"filters": 6, "kernel_size": 3, "depth_multiplier": 2},
        IMAGE,
    ),
    "transpose1d": (
        layers.Conv1DTranspose,
        {"filters": 6, "kernel_size": 3, "strides": 2},
        (4, 4),
    ),
    "transpose": (
        layers.Conv2DTranspose,
        {"filters": 6, "kernel_size": 3, "strides": 2},
        (3, 3, 4),
    ),
    "transpose_without_bias": (
        layers.Conv2DTranspose,
        {"filters": 6, "kernel_size": 3, "strides": 2, "use_bias": False},
        (3, 3, 4),
    ),
    "transpose3d": (
        layers.Conv3DTranspose,
        {"filters": 6, "kernel_size": 2},
        (2, 3, 2, 4),
    ),
}
# One of each kind, where all of them would take long.
KINDS = (
    *("dense", "dense_rank3", "conv1d", "conv2d", "conv3d", "grouped"),
    *("depthwise", "separable", "transpose"),
)

# What stands behind the kernel layer of a `stack`.
TAILS = {
    "zero_padding": lambda: [
        layers.ZeroPadding2D(1, name="between"),
        layers.BatchNormalization(name="norm"),
    ],
    "average_pooling": lambda: [
        layers.AveragePooling2D(2, name="between"),
        layers.BatchNormalization(name="norm"),
    ],
    "max_pooling": lambda: [
        layers.MaxPooling2D(2, name="between"),
        layers.BatchNormalization(name="norm"),
    ],
    "two_between": lambda: [
        layers.ZeroPadding2D(1, name="between"),
        layers.MaxPooling2D(2, name="between2"),
        layers.BatchNormalization(epsilon=0.1, name="norm"),
    ],
    "layer_normalization": lambda: [
        layers.LayerNormalization(epsilon=1e-2, name="norm")
    ],
    "group_normalization": lambda: [
        layers.GroupNormalization(groups=2, name="norm")
    ],
}


def stack(kernel, tail=None):
    """Kernel layer, normalisation, activation and a classifier."""
    layer_class, arguments, shape = KERNELS[kernel]
    tail = tail or [layers.BatchNormalization(epsilon=0.01, name="norm")]
    inputs = x = keras.Input(shape, name="inputs")
    for layer in [layer_class(**arguments, name="kernel"), *tail]:
        x = layer(x)
    x = layers.Activation("swish", name="swish")(x)
    x = layers.Flatten(name="flatten")(x)
    return keras.Model(inputs, layers.Dense(3, name="classes")(x), name="stack")
