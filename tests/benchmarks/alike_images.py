"""How near the keys of other images come to a passport's own.

    python tests/benchmarks/alike_images.py --run_dir=RUN --dataset=cifar10

For each layer of a run whose passport is of images: the cosine of its key and
that of 100 test pictures, seen by the very network that the passport was made
with; how many signs of γ (of β under V2) these give; and how far what they
give is from it, in parts of its size.
"""

import pathlib
import sys

import alternate
import numpy as np
from absl import app, flags

import keras_passport as kp
from keras_passport.attacks.fake import image_keys
from keras_passport.layers import filters

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "examples"))

from common import data as datasets  # noqa: E402
from common.rundir import RunDirectory, load_model  # noqa: E402

_RUN_DIR = flags.DEFINE_string("run_dir", None, "A finished run.")
_DATASET = flags.DEFINE_string("dataset", "cifar10", "As the trainers' flag.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Likewise.")
_IMAGES = flags.DEFINE_integer("images", 100, "Other pictures.", 1)
flags.mark_flag_as_required("run_dir")


def main(_):
    run = RunDirectory(pathlib.Path(_RUN_DIR.value))
    model = load_model(run.protected)
    passport = kp.Passport.load(run.passport).fitted(model)
    data = datasets.load(_DATASET.value, _DATA_DIR.value)
    images, _ = data.test_examples(_IMAGES.value)
    others = image_keys(model, images, load_model(run.original))
    role = passport.function.roles[0]
    rows = {}
    for path, layer in kp.protected_layers(model).items():
        # Kernels as they were trained.
        if layer.ordered:
            raise app.UsageError("Expected a run with --nohide_rows.")
        matrix = filters.response_matrix(layer)
        own = passport.layers[path].key(role)
        wanted = filters.response(matrix, own[None])
        found = [filters.response(matrix, key[None]) for key in others[path]]
        size = np.sqrt(np.mean(wanted**2))
        rows[path] = {
            "cosine": np.mean([_cosine(own, key) for key in others[path]]),
            "signs": np.mean(np.sign(found) == np.sign(wanted)),
            "error": np.mean([_rms(one - wanted) / size for one in found]),
        }
    names = ("cosine", "signs", "error")
    for path, row in rows.items():
        print(f"{path:36}" + "".join(f"{row[name]:10.2f}" for name in names))
    mean = {n: float(np.mean([r[n] for r in rows.values()])) for n in names}
    print(f"{'mean':36}" + "".join(f"{mean[name]:10.2f}" for name in names))
    alternate.write({"Keys of other images": mean})


def _cosine(one, other) -> float:
    one, other = one.ravel(), other.ravel()
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


def _rms(values) -> float:
    return float(np.sqrt(np.mean(values**2)))


if __name__ == "__main__":
    app.run(main)
