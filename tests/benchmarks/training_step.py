"""A training step of the protected network against the original's.

    python tests/benchmarks/training_step.py --net=resnet18 --batch=64
    python tests/benchmarks/training_step.py --net=MobileNetV2 --size=96
    python tests/benchmarks/training_step.py --net=ResNet50 --size=96 --batch=16

All are compiled as Keras compiles them; the protected one is bound to a
random-pattern passport. The floor is the same net with no normalisation;
`fused` normalises as passport layers do, with γ and β as variables, so that
what passports cost beyond it is their own.
"""

import alternate
import nets
from absl import app, flags

import keras_passport as kp

_FUNCTIONS = flags.DEFINE_list("functions", ["V3"], "Passport functions.")


def main(_):
    base = nets.build()
    models = {
        "original": base,
        "floor": nets.renormalized(base),
        "fused": nets.renormalized(base, nets.FusedNormalization),
    }
    for function in _FUNCTIONS.value:
        model = kp.protect(base, function=function)
        models[f"protected, {function}"] = kp.bind(
            model, kp.Passport.random_pattern(model)
        )
    x = nets.pictures()
    steps = {name: nets.training_step(m, x) for name, m in models.items()}
    title = nets.title("Training step", base)
    alternate.write({title: alternate.show(title, alternate.medians(steps))})


if __name__ == "__main__":
    app.run(main)
