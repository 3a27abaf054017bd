"""What tests expect, computed by other means than what they test.

Nothing here uses `keras_passport`.
"""

import keras
import numpy as np
from keras import ops

NORMALIZATIONS = (
    keras.layers.BatchNormalization,
    keras.layers.LayerNormalization,
    keras.layers.GroupNormalization,
)


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
    return plain_responses(layer, np.asarray(feature_map)[None])[0]


def plain_responses(layer: keras.layers.Layer, feature_maps) -> np.ndarray:
    """`plain_response` to several maps, a row for each."""
    config = {**layer.get_config(), "activation": None, "name": None}
    if "use_bias" in config:
        config["use_bias"] = False
    if "bias_axes" in config:
        config["bias_axes"] = None
    config["dtype"] = "float32"
    x = np.asarray(feature_maps, "float32")
    if config.get("data_format") == "channels_first":
        config["data_format"] = "channels_last"
        x = np.moveaxis(x, 1, -1)
    plain = type(layer).from_config(config)
    plain.build((1, *x.shape[1:]))
    for own, given in zip(plain.weights, layer.weights, strict=False):
        own.assign(given)
    output = np.asarray(plain(x), "float64")
    return output.reshape(len(x), -1, output.shape[-1]).mean(1)


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
        roles = [
            role
            for role, hidden in (("gamma", "V1 V3"), ("beta", "V2 V3"))
            if function in hidden
        ]
        drawn = [rng.normal(0.2, 1, [n or size for n in shape]) for _ in roles]
        made = {"gamma": None, "beta": None}
        values = plain_responses(kernel, np.stack(drawn))
        for role, p, value in zip(roles, drawn, values, strict=True):
            getattr(normalization, role).assign(value / value.std())
            made[role] = (p / value.std()).astype("float32")
        maps[path] = tuple(made.values())
    return maps


def relative_difference(received, expected) -> float:
    """Norm of the difference, as a fraction of the expected norm."""
    received = np.asarray(received, "float64")
    expected = np.asarray(expected, "float64")
    assert received.shape == expected.shape, (received.shape, expected.shape)
    return float(np.linalg.norm(received - expected) / np.linalg.norm(expected))


def largest_difference(received, expected):
    return max(
        np.abs(
            ops.convert_to_numpy(ops.cast(one, "float32"))
            - ops.convert_to_numpy(ops.cast(other, "float32"))
        ).max()
        for one, other in zip(
            keras.tree.flatten(received),
            keras.tree.flatten(expected),
            strict=True,
        )
    )


def outputs_of(model, x) -> np.ndarray:
    """A row per example of all outputs together."""
    outputs = keras.tree.flatten(model(x, training=False))
    outputs = [keras.ops.cast(y, "float32") for y in outputs]
    return np.concatenate(
        [
            keras.ops.convert_to_numpy(y).reshape(y.shape[0], -1)
            for y in outputs
        ],
        axis=1,
    )
