"""Which of a run's layers `guess_images` and `orientation` find.

    python tests/benchmarks/guessing.py --run_dir=runs/resnet-digits-...

Prints, for a run with a random_image passport, how many layers' pairs of
images are guessed rightly with a few unlabelled pictures, taking keys for
those of the run's own scaling and for those of images alone, and what accuracy
that gives; then which part of γ's signs the filters tell, layer by layer, to
who learned from the original.
"""

import pathlib
import sys

import keras
import numpy as np
from absl import app, flags

import keras_passport as kp
from keras_passport import attacks
from keras_passport.attacks import training

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "examples"))

from common import data  # noqa: E402

_RUN_DIR = flags.DEFINE_string("run_dir", None, "Of a trainer.", required=True)
_DATASET = flags.DEFINE_string("dataset", "digits", "What it was trained on.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "As of a trainer.")
_PICTURES = flags.DEFINE_integer("pictures", 200, "Without labels.", 1)


def main(_):
    run = pathlib.Path(_RUN_DIR.value)
    model, original = (
        keras.saving.load_model(run / name, compile=False)
        for name in ("public/protected.keras", "owner/original.keras")
    )
    passport = kp.Passport.load(run / "owner" / "passport.h5").fitted(model)
    dataset = data.load(_DATASET.value, _DATA_DIR.value)
    pictures = dataset.normalize(dataset.x_train)[: _PICTURES.value]
    test = dataset.test_examples(2000)
    bound = kp.bind(kp.public(model), passport)
    print(f"valid {100 * training.judge(bound, test)[0]:.1f}")
    entries = passport.layers.values()
    choices = [[entry.gamma_image, entry.beta_image] for entry in entries]
    for key_scaling in dict.fromkeys([passport.key_scaling, "orthogonal"]):
        result = attacks.guess_images(
            model,
            passport.images,
            pictures,
            test,
            reference=original,
            key_scaling=key_scaling,
        )
        guessed = result.history[0]["images"]
        right = np.sum([a == b for a, b in zip(guessed, choices, strict=True)])
        print(
            f"keys {passport.key_scaling}, taken for {key_scaling}: {right} of "
            f"{len(choices)} layers, {100 * result.accuracy:.1f} %, "
            f"{result.seconds:.0f} s"
        )
    found = attacks.Orientation.fit([original]).parameters(model)
    hits = {
        path: np.sign(layer.hidden_parameters()[0]) == np.sign(found[path][0])
        for path, layer in kp.protected_layers(bound).items()
    }
    for path, right in hits.items():
        print(f"{path:32} signs {100 * right.mean():.0f} %")
    everything = np.concatenate([*hits.values()])
    print(f"signs {everything.sum()} of {everything.size}")


if __name__ == "__main__":
    app.run(main)
