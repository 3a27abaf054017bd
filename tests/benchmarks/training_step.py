"""A training step of the protected network against the original's.

    python tests/benchmarks/training_step.py --depth=20 --width=16

Both are compiled as Keras compiles them; the protected one is bound to a
random-pattern passport.
"""

import pathlib
import sys

import keras
import numpy as np
from absl import app, flags

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "examples"))

import alternate  # noqa: E402

import keras_passport as kp  # noqa: E402
from common import networks  # noqa: E402

_DEPTH = flags.DEFINE_integer("depth", 20, "Of the ResNet.")
_WIDTH = flags.DEFINE_integer("width", 16, "Channels of its first stage.")
_BATCH = flags.DEFINE_integer("batch", 128, "Pictures a step.")
_FUNCTIONS = flags.DEFINE_list("functions", ["V3"], "Passport functions.")


def main(_):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(_BATCH.value, 32, 32, 3)).astype("float32")
    y = rng.integers(0, 10, _BATCH.value)
    base = networks.resnet(
        (32, 32, 3), 10, depth=_DEPTH.value, width=_WIDTH.value
    )
    models = {"original": base}
    for function in _FUNCTIONS.value:
        model = kp.protect(base, function=function)
        models[f"protected, {function}"] = kp.bind(
            model, kp.Passport.random_pattern(model)
        )
    for model in models.values():
        model.compile(
            keras.optimizers.SGD(0.1, momentum=0.9),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
    title = f"Training step, {base.name}, batch {_BATCH.value}"
    steps = {
        name: lambda model=model: model.train_on_batch(x, y)
        for name, model in models.items()
    }
    alternate.write({title: alternate.show(title, alternate.medians(steps))})


if __name__ == "__main__":
    app.run(main)
