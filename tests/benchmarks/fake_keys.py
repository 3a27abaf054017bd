"""How near fakes' keys come to a passport's own, and how large that is.

    python tests/benchmarks/fake_keys.py --run_dir=RUN --dataset=cifar10

For each layer of a run: the cosine of its key and those of fakes of the
passport's kind (of 100 test pictures, seen by the very network that the
passport was made with, or of 100 random patterns); how many signs of γ (of β
under V2) these give; how far what they give is from it, in parts of its size;
the key's norm; and what part of the kernel's energy lies along it. Then what
the network reaches on 1,000 test pictures with γ = 1 or β = 0 in place of what
is hidden, with the published statistics and with those of training pictures.
"""

import pathlib
import sys

import alternate
import keras
import numpy as np
from absl import app, flags

import keras_passport as kp
from keras_passport.attacks.fake import image_keys
from keras_passport.layers import filters
from keras_passport.passports.derivation import scale_keys

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "examples"))

from common import data as datasets  # noqa: E402
from common.rundir import RunDirectory, load_model  # noqa: E402

_RUN_DIR = flags.DEFINE_string("run_dir", None, "A finished run.")
_DATASET = flags.DEFINE_string("dataset", "cifar10", "As the trainers' flag.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Likewise.")
_FAKES = flags.DEFINE_integer("fakes", 100, "Pictures or patterns.", 1)
flags.mark_flag_as_required("run_dir")


def main(_):
    run = RunDirectory(pathlib.Path(_RUN_DIR.value))
    model = load_model(run.protected)
    passport = kp.Passport.load(run.passport).fitted(model)
    data = datasets.load(_DATASET.value, _DATA_DIR.value)
    images, _ = data.test_examples(_FAKES.value)
    role = passport.function.roles[0]
    if passport.kind == "random_pattern":
        fakes = [
            kp.Passport.random_pattern(
                model, key_scaling=passport.key_scaling
            ).keys()
            for _ in images
        ]
        others = {path: [one[path][role] for one in fakes] for path in fakes[0]}
    else:
        made = image_keys(model, images, load_model(run.original))
        others = {
            path: [
                scale_keys({role: key}, passport.key_scaling, bytes(32))[role]
                for key in keys
            ]
            for path, keys in made.items()
        }
    keys = passport.keys()
    rows = {}
    for path, layer in kp.protected_layers(model).items():
        # Kernels as they were trained.
        if layer.ordered:
            raise app.UsageError("Expected a run with --nohide_rows.")
        matrix = filters.response_matrix(layer)
        own = keys[path][role]
        wanted = filters.response(matrix, own[None])
        found = [filters.response(matrix, key[None]) for key in others[path]]
        size = np.sqrt(np.mean(wanted**2))
        rows[path] = {
            "cosine": np.mean([_cosine(own, key) for key in others[path]]),
            "signs": np.mean(np.sign(found) == np.sign(wanted)),
            "error": np.mean([_rms(one - wanted) / size for one in found]),
            "norm": np.linalg.norm(own),
            "energy": np.sum(wanted**2)
            / np.sum(own.astype("float64") ** 2)
            / np.sum(matrix**2),
        }
    names = ("cosine", "signs", "error", "norm", "energy")
    print(f"{'layer':36}" + "".join(f"{name:>10}" for name in names))
    for path, row in rows.items():
        print(f"{path:36}" + "".join(f"{row[name]:10.3f}" for name in names))
    mean = {n: float(np.mean([r[n] for r in rows.values()])) for n in names}
    print(f"{'mean':36}" + "".join(f"{mean[name]:10.2f}" for name in names))
    mean |= without_secrets(model, data)
    alternate.write({"Fakes' keys": mean})


def without_secrets(model, data) -> dict:
    """Accuracies with neutral hidden parameters, what is public as it is."""
    neutral = {}
    for path, layer in kp.protected_layers(model).items():
        ones = np.ones(layer.adapter.units(layer.layer), "float32")
        neutral[path] = tuple(
            value if own is None else keras.ops.convert_to_numpy(own)
            for value, own in ((ones, layer.gamma), (0 * ones, layer.beta))
        )
    x, y = data.test_examples(1000)
    accuracies = {}
    with kp.assumed(model, neutral):
        for name in ("as published", "statistics anew"):
            scores = [model(part, training=False) for part in np.split(x, 4)]
            found = keras.ops.convert_to_numpy(keras.ops.concatenate(scores))
            accuracies[name] = float(np.mean(found.argmax(-1) == y))
            print(f"{name:36}{accuracies[name]:10.3f}")
            kp.estimate_statistics(model, [data.normalize(data.x_train[:2000])])
    return accuracies


def _cosine(one, other) -> float:
    one, other = one.ravel(), other.ravel()
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


def _rms(values) -> float:
    return float(np.sqrt(np.mean(values**2)))


if __name__ == "__main__":
    app.run(main)
