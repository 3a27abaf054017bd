"""Nets of keras.applications, and what their protected copies must equal."""

import dataclasses
import functools

import keras
import numpy as np
from keras.src.applications import (
    convnext,
    densenet,
    efficientnet_v2,
    resnet,
)

import keras_passport as kp
from support.truth import (
    NORMALIZATIONS,
    flat_layers,
    kernels_and_normalizations,
    overwrite_affine,
    relative_difference,
)


@dataclasses.dataclass
class Case:
    """A protected net with a passport bound, and what it must equal.

    Args:
        protected: The protected net, bound.
        truth: The net with its γ and β overwritten.
        pictures: Pictures whose statistics the normalisations hold.
    """

    protected: keras.Model
    truth: keras.Model
    pictures: np.ndarray

    @functools.cached_property
    def received(self) -> np.ndarray:
        """The protected net's outputs."""
        return run(self.protected, self.pictures)

    def difference(self) -> tuple[float, float]:
        """Of protected and true outputs, and of two pictures', relative."""
        expected = run(self.truth, self.pictures)
        received = self.received
        scale = np.abs(expected).max()
        return (
            float(np.abs(received - expected).max() / scale),
            float(np.abs(expected[0] - expected[1]).max() / scale),
        )

    def rounding(self) -> tuple[float, float]:
        """What float32 costs the protected net, and what the truth.

        Both against the truth in float64, relative to its largest output.
        """
        exact = run(copy_of(self.truth, "float64"), self.pictures)
        scale = np.abs(exact).max()
        return tuple(
            float(np.abs(run(model, self.pictures) - exact).max() / scale)
            for model in (self.protected, self.truth)
        )


def run(model: keras.Model, pictures: np.ndarray) -> np.ndarray:
    """Outputs in inference mode, without tracing."""
    return keras.ops.convert_to_numpy(model(pictures, training=False))


def _stages(stack, blocks, strides):
    def stack_fn(x):
        for stage, (count, stride) in enumerate(
            zip(blocks, strides, strict=True)
        ):
            x = stack(x, 64 * 2**stage, count, stride, name=f"conv{stage + 2}")
        return x

    return stack_fn


# Families whose nets repeat a block, with each block once and, where the first
# of a stage is another, twice; by Keras's own functions.
SHALLOW = {
    "ResNet50": functools.partial(
        resnet.ResNet,
        _stages(resnet.stack_residual_blocks_v1, (2, 2, 1, 1), (1, 2, 2, 2)),
        preact=False,
        use_bias=True,
    ),
    "ResNet50V2": functools.partial(
        resnet.ResNet,
        _stages(resnet.stack_residual_blocks_v2, (2, 2, 2, 2), (2, 2, 2, 1)),
        preact=True,
        use_bias=True,
    ),
    "EfficientNetV2B0": functools.partial(
        efficientnet_v2.EfficientNetV2, 1.0, 0.25, 224, name="efficientnetv2-b0"
    ),
    "DenseNet121": functools.partial(densenet.DenseNet, [2, 1, 1, 1]),
    "ConvNeXtTiny": functools.partial(
        convnext.ConvNeXt, [2, 1, 1, 1], [96, 192, 384, 768]
    ),
}


def net(
    name: str, size: int, include_top: bool = False, shallow: bool = False
) -> keras.Model:
    """A net with random weights; without its classifier if not said."""
    make = SHALLOW[name] if shallow else getattr(keras.applications, name)
    return make(
        weights=None,
        input_shape=(size, size, 3),
        include_top=include_top,
        pooling="avg",
    )


def make_case(
    name: str, size: int, count: int = 16, seed: int = 0, shallow: bool = False
) -> Case:
    """Protects a net and makes the truth, by plain convolutions.

    Under a dtype policy of float64 the truth takes its γ and β from the
    protected net, once they equal the plain convolutions': they are computed
    in float32, and a deep net would amplify the difference.
    """
    base = net(name, size, shallow=shallow)
    protected = kp.protect(base)
    # It shares nothing with its protected copy.
    truth = base if _has_affine(base) else copy_of(base)
    maps = overwrite_affine(truth, seed=seed, paths=protected.report.protected)
    kp.bind(protected, kp.Passport.from_feature_maps(protected, maps))
    if keras.config.dtype_policy().name == "float64":
        _take_hidden_parameters(protected, truth)
    pictures = make_pictures(count, size, seed)
    settle(truth, pictures)
    _copy_statistics(truth, protected)
    return Case(protected, truth, pictures)


def _has_affine(model) -> bool:
    return all(
        layer.scale and layer.center
        for layer in flat_layers(model)
        if isinstance(layer, NORMALIZATIONS)
    )


def _take_hidden_parameters(protected, truth):
    pairs = kernels_and_normalizations(truth)
    for path, layer in kp.protected_layers(protected).items():
        normal = pairs[path][1]
        hidden = layer.hidden_parameters()
        for own, value in zip((normal.gamma, normal.beta), hidden, strict=True):
            assert relative_difference(value, own) < 1e-5, path
            own.assign(value)


def _copy_statistics(truth, protected):
    targets = {}
    for layer in flat_layers(protected):
        if isinstance(layer, kp.PassportNormalization):
            name = layer.replaced["config"]["name"]
            targets[name] = layer.normalization
        else:
            targets[layer.name] = layer
    for layer in flat_layers(truth):
        if isinstance(layer, keras.layers.BatchNormalization):
            target = targets[layer.name]
            target.moving_mean.assign(layer.moving_mean)
            target.moving_variance.assign(layer.moving_variance)


def make_pictures(count: int, size: int, seed: int = 0) -> np.ndarray:
    """Random pictures with differences of every scale, in [0, 255].

    Of pixels that are noise, deep layers would see little but the mean, and
    normalising what is left would amplify rounding errors.
    """
    rng = np.random.default_rng(seed)
    pictures = 0.0
    for cells, weight in ((1, 0.4), (2, 0.2), (4, 0.2), (size, 0.2)):
        field = rng.uniform(0, 255, (count, cells, cells, 3))
        index = np.arange(size) * cells // size
        pictures = pictures + weight * field[:, index][:, :, index]
    return pictures.astype("float32")


def copy_of(base: keras.Model, dtype: str | None = None) -> keras.Model:
    """A copy of a net whose normalisations all have a γ and a β.

    Args:
        base: Net of keras.applications.
        dtype: Dtype of all its layers, if it is to be another one.
    """

    def clone(layer):
        config = layer.get_config()
        if isinstance(layer, NORMALIZATIONS):
            config.update(scale=True, center=True)
        if dtype is not None and isinstance(layer, keras.layers.Layer):
            config["dtype"] = dtype
        return type(layer).from_config(config)

    copy = keras.models.clone_model(base, clone_function=clone, recursive=True)
    pairs = zip(flat_layers(base), flat_layers(copy), strict=True)
    for old, new in pairs:
        values = {variable.name: variable for variable in old.weights}
        for variable in new.weights:
            if variable.name in values:
                variable.assign(values[variable.name])
    return copy


def settle(model: keras.Model, pictures: np.ndarray) -> None:
    """Sets all moving statistics to those of the pictures, layer by layer."""

    def settling(layer, call):
        def wrapped(inputs, *args, **kwargs):
            axes = list(range(len(inputs.shape) - 1))
            mean, variance = keras.ops.moments(inputs, axes)
            layer.moving_mean.assign(mean)
            layer.moving_variance.assign(variance)
            return call(inputs, *args, **kwargs)

        return wrapped

    layers = [
        layer
        for layer in flat_layers(model)
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    for layer in layers:
        layer.call = settling(layer, layer.call)
    model(pictures, training=False)
    for layer in layers:
        del layer.call
