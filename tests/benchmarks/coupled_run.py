"""A protected net trained as the paper's formula has it, for attacks to try.

    python tests/benchmarks/coupled_run.py --run_dir=runs/coupled

ResNet-8 on the digits, V3, random patterns: keys as they are digested
(`key_scaling="paper"`), gradients by the formula alone (`decouple=False`).
With `--default`, the package's own keys and gradients, else the same.
"""

import pathlib
import sys

import keras
from absl import app, flags

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "examples"))

import keras_passport as kp  # noqa: E402
from common import data, networks, training  # noqa: E402

_RUN_DIR = flags.DEFINE_string("run_dir", None, "To write.", required=True)
_DEFAULT = flags.DEFINE_bool("default", False, "Train as the package does.")
_EPOCHS = flags.DEFINE_integer("epochs", 30, "Of training.", 1)


def main(_):
    run = pathlib.Path(_RUN_DIR.value)
    for part in ("public", "owner"):
        (run / part).mkdir(parents=True, exist_ok=True)
    dataset = data.load("digits")
    keras.utils.set_random_seed(0)
    base = networks.resnet(dataset.input_shape, 10, depth=8, width=16)
    model = kp.protect(base, "V3")
    scaling = {} if _DEFAULT.value else {"key_scaling": "paper"}
    passport = kp.Passport.random_pattern(model, **scaling)
    kp.bind(model, passport)
    if _DEFAULT.value:
        kp.calibrate(model)
    for layer in kp.protected_layers(model).values():
        layer.decouple = _DEFAULT.value
    recipe = training.Recipe(_EPOCHS.value, 64, 0.1, 5e-4, seed=0)
    training.train(model, dataset, recipe, run / "owner" / "checkpoint.h5")
    passport.save(run / "owner" / "passport.h5")
    model.save(run / "public" / "protected.keras")


if __name__ == "__main__":
    app.run(main)
