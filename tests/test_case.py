"""What several test files share: small models, fresh processes, the truth.

Nothing here uses `keras_passport`, so that what a test expects is computed by
other means than what it tests.
"""

import os
import pathlib
import subprocess
import sys

import keras
import numpy as np

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
NORMALIZATIONS = (
    keras.layers.BatchNormalization,
    keras.layers.LayerNormalization,
    keras.layers.GroupNormalization,
)


def run_in_fresh_process(
    code: str, backend: str | None = None, timeout: float = 300, **variables
) -> str:
    """Runs Python code in a new interpreter and returns what it printed.

    Args:
        code: The program. The repository, `examples` and `tests` are on its
            path.
        backend: The Keras backend it runs on; by default this process's.
        timeout: Seconds after which it is ended.
        **variables: Further environment variables.

    Raises:
        AssertionError: If it fails, with the end of what it wrote.
    """
    folders = [REPOSITORY, REPOSITORY / "examples", REPOSITORY / "tests"]
    environment = {
        **os.environ,
        "KERAS_BACKEND": backend or keras.backend.backend(),
        "PYTHONPATH": os.pathsep.join(map(str, folders)),
        "TF_CPP_MIN_LOG_LEVEL": "2",
        **variables,
    }
    finished = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert finished.returncode == 0, (
        f"The process exited with {finished.returncode}.\n"
        f"{finished.stdout[-2000:]}\n{finished.stderr[-6000:]}"
    )
    return finished.stdout


# Models. Each has batch normalisations after kernel layers, and is small
# enough for a test to train.


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


# The truth about passports.


def plain_response(layer: keras.layers.Layer, feature_map) -> np.ndarray:
    """F(W, p) as Table 1 has it: Avg(W * p), with the layer itself.

    The layer, without its bias and activation, is applied to the passport and
    its output averaged over all positions. It is computed in channels_last,
    since TensorFlow has no channels_first for some layers on a CPU.

    Args:
        layer: A built kernel layer.
        feature_map: Array with the shape of the layer's input for one
            example.

    Returns:
        float64 array of shape `(output channels,)`.
    """
    config = {**layer.get_config(), "activation": None, "name": None}
    if "use_bias" in config:
        config["use_bias"] = False
    if "bias_axes" in config:
        config["bias_axes"] = None
    config["dtype"] = "float32"
    x = np.asarray(feature_map, "float32")
    if config.get("data_format") == "channels_first":
        config["data_format"] = "channels_last"
        x = np.moveaxis(x, 0, -1)
    plain = type(layer).from_config(config)
    plain.build((1, *x.shape))
    for own, given in zip(plain.weights, layer.weights, strict=False):
        own.assign(given)
    output = np.asarray(plain(x[None]), "float64")
    return output.reshape(-1, output.shape[-1]).mean(0)


def flat_layers(model: keras.Model) -> list:
    """All layers that are no models, nested models' too, in order."""
    layers = []
    for layer in model.layers:
        nested = isinstance(layer, keras.Model)
        layers.extend(flat_layers(layer) if nested else [layer])
    return layers


def kernels_and_normalizations(model: keras.Model, prefix: str = "") -> dict:
    """What a passport layer stands for, found without the package.

    Args:
        model: Functional or Sequential model of stock layers.
        prefix: Of the paths.

    Returns:
        Dict from the kernel layer's path to it and the normalisation behind
        it, where only padding or pooling is in between.
    """
    found = {}
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            inner = f"{prefix}{layer.name}/"
            found.update(kernels_and_normalizations(layer, inner))
        elif isinstance(layer, NORMALIZATIONS):
            before = _layer_before(layer)
            while any(w in type(before).__name__ for w in ("Padd", "Pool")):
                before = _layer_before(before)
            weights = getattr(before, "weights", ())
            if any("kernel" in weight.name for weight in weights):
                found[prefix + before.name] = (before, layer)
    return found


def _layer_before(layer):
    tensor = layer._inbound_nodes[-1].input_tensors[0]
    return tensor._keras_history.operation


def overwrite_affine(
    model: keras.Model,
    function: str = "V3",
    seed: int = 0,
    size: int = 8,
    paths: list | None = None,
) -> dict:
    """Gives a stock model the γ and β of a passport, by plain convolution.

    The passport's maps are scaled so that each hidden parameter has a standard
    deviation of 1: the model's outputs then differ between inputs.

    Args:
        model: Model of stock layers, whose normalisations have γ and β.
        function: Passport function: which of the two to overwrite.
        seed: Seed of the maps.
        size: Spatial size where the model leaves it open.
        paths: Of the kernel layers to give it to; all if not given.

    Returns:
        Dict from the kernel layer's path to `(gamma map, beta map)`, as
        `Passport.from_feature_maps` takes it.
    """
    rng = np.random.default_rng(seed)
    maps = {}
    for path, pair in kernels_and_normalizations(model).items():
        if paths is not None and path not in paths:
            continue
        kernel, normalization = pair
        shape = kernel._inbound_nodes[-1].input_tensors[0].shape[1:]
        made = []
        for role, hidden in (("gamma", "V1 V3"), ("beta", "V2 V3")):
            if function not in hidden:
                made.append(None)
                continue
            p = rng.normal(0.2, 1, [n or size for n in shape])
            value = plain_response(kernel, p)
            getattr(normalization, role).assign(value / value.std())
            made.append((p / value.std()).astype("float32"))
        maps[path] = tuple(made)
    return maps


def relative_difference(received, expected) -> float:
    """Norm of the difference, as a fraction of the expected norm."""
    received = np.asarray(received, "float64")
    expected = np.asarray(expected, "float64")
    assert received.shape == expected.shape, (received.shape, expected.shape)
    return float(np.linalg.norm(received - expected) / np.linalg.norm(expected))
