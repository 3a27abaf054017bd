"""The networks of the examples: stock Keras, functional, with logits.

Every builder takes `(input_shape, num_classes, **its own options)`. A new
architecture is one function here and one thin program beside
`cifar_resnet.py`.
"""

import keras


def resnet(
    input_shape: tuple[int, int, int],
    num_classes: int,
    depth: int | None = None,
    width: int = 16,
) -> keras.Model:
    """A ResNet with basic blocks for small pictures.

    Args:
        input_shape: `(height, width, channels)` of a picture.
        num_classes: number of logits.
        depth: 8, 14, 20, ... (6n + 2: three stages of n blocks), or 18 for
            the ResNet-18 of the paper (four stages of two blocks). None is
            20, or 8 for pictures that are smaller than CIFAR's.
        width: channels of the first stage; doubles from stage to stage. The
            paper's ResNet-18 has 64.
    """
    depth = depth or (20 if input_shape[0] >= 32 else 8)
    blocks_per_stage = resnet_stages(depth)
    inputs = keras.Input(input_shape, name="picture")
    x = _conv_bn(inputs, width, 3, name="stem")
    x = keras.layers.Activation("relu", name="stem_relu")(x)
    for stage, blocks in enumerate(blocks_per_stage):
        for block in range(blocks):
            x = _basic_block(
                x,
                filters=width * 2**stage,
                strides=2 if stage and not block else 1,
                name=f"stage{stage + 1}_block{block + 1}",
            )
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    # Logits stay in float32 under mixed precision: a softmax over rounded
    # logits is what makes such training diverge.
    outputs = keras.layers.Dense(num_classes, dtype="float32", name="logits")(x)
    return keras.Model(inputs, outputs, name=f"resnet{depth}_width{width}")


def resnet_stages(depth: int) -> list[int]:
    """Number of basic blocks in each stage of a ResNet of this depth."""
    if depth == 18:
        return [2, 2, 2, 2]
    blocks, remainder = divmod(depth - 2, 6)
    if remainder or blocks < 1:
        raise ValueError(
            "A ResNet's depth is 18 or 6n + 2 (8, 14, 20, ...). "
            f"Received: depth={depth}"
        )
    return [blocks] * 3


def _basic_block(x, filters: int, strides: int, name: str):
    shortcut = x
    if strides != 1 or x.shape[-1] != filters:
        shortcut = _conv_bn(x, filters, 1, strides, name=f"{name}_shortcut")
    x = _conv_bn(x, filters, 3, strides, name=f"{name}_1")
    x = keras.layers.Activation("relu", name=f"{name}_1_relu")(x)
    x = _conv_bn(x, filters, 3, name=f"{name}_2")
    x = keras.layers.Add(name=f"{name}_add")([shortcut, x])
    return keras.layers.Activation("relu", name=f"{name}_relu")(x)


def _conv_bn(x, filters: int, size: int, strides: int = 1, name: str = ""):
    x = keras.layers.Conv2D(
        filters,
        size,
        strides=strides,
        padding="same",
        use_bias=False,
        kernel_initializer="he_normal",
        name=f"{name}_conv",
    )(x)
    return _bn(x, name)


def _bn(x, name: str):
    # Keras's default momentum of 0.99 needs some 500 steps to forget its
    # initial statistics, which is a whole training on the digits.
    return keras.layers.BatchNormalization(
        momentum=0.9, epsilon=1e-5, name=f"{name}_bn"
    )(x)


def vgg(
    input_shape: tuple[int, int, int],
    num_classes: int,
    depth: int = 16,
    width: int = 64,
) -> keras.Model:
    """A VGG with batch normalisation for small pictures.

    Args:
        input_shape: `(height, width, channels)` of a picture.
        num_classes: number of logits.
        depth: 11, 13, 16 or 19, of which all but three layers are
            convolutions; instead of those three it has one, the classifier.
        width: channels of the first stage; the paper's has 64.
    """
    inputs = x = keras.Input(input_shape, name="picture")
    for stage, convolutions in enumerate(VGG_STAGES[depth]):
        for index in range(convolutions):
            name = f"stage{stage + 1}_{index + 1}"
            x = _conv_bn(x, width * min(2**stage, 8), 3, name=name)
            x = keras.layers.Activation("relu", name=f"{name}_relu")(x)
        if min(x.shape[1:3]) > 1:
            x = keras.layers.MaxPooling2D(name=f"stage{stage + 1}_pool")(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    outputs = keras.layers.Dense(num_classes, dtype="float32", name="logits")(x)
    return keras.Model(inputs, outputs, name=f"vgg{depth}_width{width}")


# Convolutions per stage, by depth.
VGG_STAGES = {
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}


def alexnet(
    input_shape: tuple[int, int, int], num_classes: int, width: int = 64
) -> keras.Model:
    """AlexNet with batch normalisation for small pictures.

    Five convolutions and two fully connected layers, each with a batch
    normalisation, and the classifier.

    Args:
        input_shape: `(height, width, channels)` of a picture.
        num_classes: number of logits.
        width: channels of the first convolution; the paper's has 64.
    """
    inputs = x = keras.Input(input_shape, name="picture")
    # Channels in units of the width's third, and whether a pooling follows.
    for index, (thirds, pools) in enumerate(
        [(3, True), (9, True), (18, False), (12, False), (12, True)]
    ):
        name = f"conv{index + 1}"
        x = _conv_bn(x, max(1, width * thirds // 3), 3, name=name)
        x = keras.layers.Activation("relu", name=f"{name}_relu")(x)
        if pools and min(x.shape[1:3]) > 1:
            x = keras.layers.MaxPooling2D(name=f"{name}_pool")(x)
    x = keras.layers.Flatten(name="flatten")(x)
    for index in range(2):
        name = f"fc{index + 1}"
        x = keras.layers.Dense(
            width * 8,
            use_bias=False,
            kernel_initializer="he_normal",
            name=name,
        )(x)
        x = _bn(x, name)
        x = keras.layers.Activation("relu", name=f"{name}_relu")(x)
    outputs = keras.layers.Dense(num_classes, dtype="float32", name="logits")(x)
    return keras.Model(inputs, outputs, name=f"alexnet_width{width}")
