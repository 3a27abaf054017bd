"""`protect` on every architecture of keras.applications.

    python tests/benchmarks/applications.py --nets=MobileNetV2,ResNet50
    python tests/benchmarks/applications.py --json=applications.json

For each net: how many normalisations a passport layer replaced; whether the
bound network's outputs equal the original's with γ and β overwritten by a
plain convolution of the passport, averaged; how long `protect` takes against
`keras.models.clone_model`.
"""

import gc
import time

import alternate
import keras
import numpy as np
from absl import app, flags

import keras_passport as kp

# Family: its nets, their input size, and in all of them the normalisations
# that follow a kernel layer directly (for VGG, none: kernel layers instead).
FAMILIES = {
    "ResNet": (["ResNet50", "ResNet101", "ResNet152"], 64, 312),
    "ResNetV2": (["ResNet50V2", "ResNet101V2", "ResNet152V2"], 64, 198),
    "MobileNet": (["MobileNet"], 64, 27),
    "MobileNetV2": (["MobileNetV2"], 64, 52),
    "MobileNetV3": (["MobileNetV3Small", "MobileNetV3Large"], 64, 80),
    "EfficientNet": ([f"EfficientNetB{i}" for i in range(8)], 64, 774),
    "EfficientNetV2": (
        [
            f"EfficientNetV2{size}"
            for size in ("B0", "B1", "B2", "B3", "S", "M", "L")
        ],
        64,
        780,
    ),
    "DenseNet": (["DenseNet121", "DenseNet169", "DenseNet201"], 64, 241),
    "InceptionV3": (["InceptionV3"], 75, 94),
    "InceptionResNetV2": (["InceptionResNetV2"], 75, 204),
    "Xception": (["Xception"], 71, 40),
    "NASNet": (["NASNetMobile", "NASNetLarge"], 64, 448),
    "VGG": (["VGG16", "VGG19"], 64, 35),
    "ConvNeXt": (
        [
            f"ConvNeXt{size}"
            for size in ("Tiny", "Small", "Base", "Large", "XLarge")
        ],
        64,
        126,
    ),
}
_NETS = flags.DEFINE_list("nets", None, "Which nets; all if not given.")
_NORMALIZATIONS = (
    keras.layers.BatchNormalization,
    keras.layers.LayerNormalization,
    keras.layers.GroupNormalization,
)


def with_affine(base: keras.Model) -> keras.Model:
    """A copy of a net whose normalisations all have a γ and a β."""

    def clone(layer):
        config = layer.get_config()
        if isinstance(layer, _NORMALIZATIONS):
            config.update(scale=True, center=True)
        return type(layer).from_config(config)

    copy = keras.models.clone_model(base, clone_function=clone, recursive=True)
    for old, new in zip(flat(base), flat(copy), strict=True):
        values = {variable.name: variable for variable in old.weights}
        for variable in new.weights:
            if variable.name in values:
                variable.assign(values[variable.name])
    return copy


def flat(model: keras.Model) -> list:
    """All layers that are no models, nested ones' too, in order."""
    layers = []
    for layer in model.layers:
        nested = isinstance(layer, keras.Model)
        layers.extend(flat(layer) if nested else [layer])
    return layers


def plain_average(layer: keras.layers.Layer, feature_map: np.ndarray):
    """The layer without bias and activation, applied and averaged."""
    config = {**layer.get_config(), "use_bias": False, "activation": None}
    plain = type(layer).from_config(config)
    plain.build((None, *feature_map.shape))
    names = {variable.name: variable for variable in layer.weights}
    for variable in plain.weights:
        variable.assign(names[variable.name])
    outputs = np.asarray(plain(feature_map[None]))
    return outputs.reshape(-1, outputs.shape[-1]).mean(0, dtype="float64")


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
        for layer in flat(model)
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    for layer in layers:
        layer.call = settling(layer, layer.call)
    model(pictures, training=False)
    for layer in layers:
        del layer.call


def measure(name: str, size: int) -> dict:
    """All that is measured of one net."""
    keras.utils.set_random_seed(0)
    base = getattr(keras.applications, name)(
        weights=None,
        input_shape=(size, size, 3),
        include_top=False,
        pooling="avg",
    )
    rng = np.random.default_rng(0)
    # Enough positions for statistics that don't amplify rounding errors.
    pictures = rng.uniform(0, 255, (16, size, size, 3)).astype("float32")
    insert = name.startswith("VGG")
    first = kp.protect(base, insert=insert)
    began = time.perf_counter()
    keras.models.clone_model(base)
    cloned = time.perf_counter() - began
    began = time.perf_counter()
    protected = kp.protect(base, insert=insert)
    seconds = time.perf_counter() - began
    result = {
        "net": name,
        "replaced": len(protected.report.protected),
        "protect_s": seconds,
        "clone_s": cloned,
    }
    if insert:
        return result

    truth = with_affine(base)
    normalizations = {layer.name: layer for layer in flat(truth)}
    maps = {}
    for path, layer in kp.protected_layers(first).items():
        stock = normalizations[layer.replaced["config"]["name"]]
        made = []
        for variable in (stock.gamma, stock.beta):
            shape = [n or 4 for n in layer.inputs_shape[1:]]
            feature_map = rng.normal(size=shape).astype("float32")
            average = plain_average(layer.layer, feature_map)
            made.append(feature_map / average.std())
            variable.assign(average / average.std())
        maps[path] = tuple(made)
    settle(truth, pictures)
    for old, new in zip(flat(truth), flat(base), strict=True):
        if isinstance(old, keras.layers.BatchNormalization):
            new.moving_mean.assign(old.moving_mean)
            new.moving_variance.assign(old.moving_variance)
    protected = kp.protect(base)
    kp.bind(protected, kp.Passport.from_feature_maps(protected, maps))
    expected = truth.predict(pictures, verbose=0)
    received = protected.predict(pictures, verbose=0)
    largest = np.abs(expected).max()
    result["difference"] = float(np.abs(expected - received).max() / largest)
    result["pictures"] = float(
        np.abs(expected[0] - expected[1]).max() / largest
    )
    return result


def main(_):
    results = []
    print(
        f"{'net':20}{'replaced':>9}{'difference':>12}{'pictures':>10}"
        f"{'protect':>9}{'clone':>8}"
    )
    for family, (nets, size, directly) in FAMILIES.items():
        chosen = [n for n in nets if not _NETS.value or n in _NETS.value]
        rows = []
        for name in chosen:
            row = measure(name, size)
            rows.append(row)
            print(
                f"{name:20}{row['replaced']:9}"
                f"{row.get('difference', float('nan')):12.1e}"
                f"{row.get('pictures', float('nan')):10.2f}"
                f"{row['protect_s']:8.1f}s{row['clone_s']:7.1f}s",
                flush=True,
            )
            keras.backend.clear_session()
            gc.collect()
        results += rows
        if chosen == nets:
            found = sum(row["replaced"] for row in rows)
            print(f"  {family}: {found} replaced, {directly} to be replaced")
    alternate.write({"nets": results})


if __name__ == "__main__":
    app.run(main)
