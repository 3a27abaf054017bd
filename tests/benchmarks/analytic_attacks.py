"""Closed-form and label-poor attacks on a run, judged with its passport.

    python tests/benchmarks/analytic_attacks.py --run_dir=runs/resnet-digits-...

Prints what forged keys reach; how much of γ and β lies in the kernels'
leading singular vectors, and what the spectral attack makes of that; which
signs of γ the published statistics give away, layer by layer; what reverse
engineering reaches from each of these starts; and what the valid passport
reaches on rewritten models.
"""

import pathlib
import sys

import keras
import numpy as np
from absl import app, flags

import keras_passport as kp
from keras_passport import attacks
from keras_passport.attacks import opened, training

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "examples"))

from common import data  # noqa: E402

_RUN_DIR = flags.DEFINE_string("run_dir", None, "Of a trainer.", required=True)
_DATASET = flags.DEFINE_string("dataset", "digits", "What it was trained on.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "As of a trainer.")
_ATTACKS = flags.DEFINE_list(
    "attacks", "forgery,rewrites,spectral,statistics", "Which to try."
)
_IMAGES = flags.DEFINE_integer("images", 256, "Without labels, for statistics.")
_FRACTION = flags.DEFINE_float("fraction", 0.1, "Of the labels.")
_EPOCHS = flags.DEFINE_integer("epochs", 20, "Of reverse engineering.", 1)


def main(_):
    run = pathlib.Path(_RUN_DIR.value)
    model = keras.saving.load_model(
        run / "public" / "protected.keras", compile=False
    )
    passport = kp.Passport.load(run / "owner" / "passport.h5")
    dataset = data.load(_DATASET.value, _DATA_DIR.value)
    known = dataset.normalize(dataset.x_train), dataset.y_train
    test = dataset.test_examples(2000)
    truth = _truth(kp.bind(model, passport))
    print(f"valid {100 * training.judge(model, test)[0]:.2f}")
    for name in _ATTACKS.value:
        globals()[f"_{name}"](model, passport, truth, known, test)


def _truth(model):
    neutral = opened.neutral(model)
    return {
        path: tuple(
            public if hidden is None else hidden
            for hidden, public in zip(
                layer.hidden_parameters(), neutral[path], strict=True
            )
        )
        for path, layer in kp.protected_layers(model).items()
    }


def _forgery(model, passport, truth, known, test):
    result = attacks.key_forgery(model, test, parameters=truth)
    systems = result.history[0]["systems"]
    print(
        f"forged {100 * result.accuracy:.2f} in {result.seconds:.1f} s, "
        f"largest residual {max(s['residual'] for s in systems):.1e}"
    )


def _rewrites(model, passport, truth, known, test):
    for rewrite in (
        attacks.permute_channels,
        attacks.scale_filters,
        attacks.flip_signs,
    ):
        result = rewrite(model)
        attacked = attacks.Opened(result.model, result.parameters(truth))
        valid = kp.bind(result.model, passport)
        print(
            f"{rewrite.__name__}: γ and β adapted "
            f"{100 * training.judge(attacked, test)[0]:.2f}, valid passport "
            f"{100 * training.judge(valid, test)[0]:.2f}, "
            f"{len(result.skipped)} layers of {len(truth)} left alone"
        )


def _spectral(model, passport, truth, known, test):
    for path, basis in attacks.spectral_directions(model).items():
        shares = [
            np.sum((basis @ value) ** 2) / np.sum(value**2)
            for value in truth[path]
        ]
        print(
            f"{path:32} γ {shares[0]:.2f}, β {shares[1]:.2f}, by chance "
            f"{len(basis) / basis.shape[1]:.2f}"
        )
    result = attacks.spectral(model, known, test, fraction=_FRACTION.value)
    print(f"spectral {_percent(result.accuracies)}")
    _reverse(model, known, test, result.history[result.chosen]["parameters"])


def _statistics(model, passport, truth, known, test):
    result = attacks.statistics_matching(model, known[0][: _IMAGES.value], test)
    about = result.history[0]
    for block in about["blocks"]:
        for path in block["layers"]:
            gamma = np.array(about["parameters"][path][0])
            signs = np.mean(np.sign(gamma) == np.sign(truth[path][0]))
            cost = block["cost"]
            cost = "none" if cost is None else f"{cost:.2f}"
            print(f"{path:32} signs {100 * signs:.0f} %, cost {cost}")
    print(f"statistics {100 * result.accuracy:.2f} in {result.seconds:.0f} s")
    _reverse(model, known, test, about["parameters"])


def _reverse(model, known, test, found):
    for start in ("neutral", found):
        result = attacks.reverse_engineering(
            model,
            known,
            test,
            fraction=_FRACTION.value,
            start=start,
            recipe=attacks.Recipe(epochs=_EPOCHS.value, batch_size=16),
        )
        name = start if isinstance(start, str) else "found"
        print(f"RevA from {name}: {_percent(result.accuracies)}")


def _percent(accuracies):
    return ", ".join(f"{100 * accuracy:.2f}" for accuracy in accuracies)


if __name__ == "__main__":
    app.run(main)
