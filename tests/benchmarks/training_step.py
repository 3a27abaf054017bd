"""A training step of the protected network against the original's.

    python tests/benchmarks/training_step.py --net=resnet18 --batch=64
    python tests/benchmarks/training_step.py --net=MobileNetV2 --size=96

All are compiled as Keras compiles them; the protected one is bound to a
random-pattern passport. The floor is the same net with no normalisation. All
learn so slowly that its values stay finite: NaN would change its speed.
"""

import alternate
import keras
import nets
import numpy as np
from absl import app, flags

import keras_passport as kp

_FUNCTIONS = flags.DEFINE_list("functions", ["V3"], "Passport functions.")


def without_normalization(base: keras.Model) -> keras.Model:
    """A copy in which batch normalisations do nothing."""

    def call(layer, *args, **kwargs):
        if isinstance(layer, keras.layers.BatchNormalization):
            return args[0]
        return layer(*args, **kwargs)

    return keras.models.clone_model(
        base,
        clone_function=lambda layer: layer.from_config(layer.get_config()),
        call_function=call,
    )


def main(_):
    base = nets.build()
    x = nets.pictures()
    y = np.random.default_rng(0).integers(0, 10, len(x))
    models = {"original": base, "floor": without_normalization(base)}
    for function in _FUNCTIONS.value:
        model = kp.protect(base, function=function)
        models[f"protected, {function}"] = kp.bind(
            model, kp.Passport.random_pattern(model)
        )
    for model in models.values():
        model.compile(
            keras.optimizers.SGD(1e-6, momentum=0.9),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
    steps = {
        name: lambda model=model: model.train_on_batch(x, y)
        for name, model in models.items()
    }
    title = nets.title("Training step", base)
    results = alternate.show(title, alternate.medians(steps))
    for name, step in steps.items():
        loss = float(np.min(step()))
        if not np.isfinite(loss):
            raise ValueError(f"Expected {name}'s loss to be finite: {loss}")
    alternate.write({title: results})


if __name__ == "__main__":
    app.run(main)
