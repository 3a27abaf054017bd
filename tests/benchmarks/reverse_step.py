"""A step of RevA against a training step of the protected network.

    python tests/benchmarks/reverse_step.py --net=resnet18 --batch=64
    python tests/benchmarks/reverse_step.py --net=resnet20 --batch=128

RevA trains γ and β alone, so no gradient of a kernel is computed.
"""

import alternate
import keras
import nets
import numpy as np
from absl import app, flags

import keras_passport as kp

_FUNCTION = flags.DEFINE_string("function", "V3", "Passport function.")


def main(_):
    base = nets.build()
    x = nets.pictures()
    y = np.random.default_rng(0).integers(0, 10, len(x))
    protected = kp.protect(base, function=_FUNCTION.value)
    models = {
        "protected": protected,
        "RevA": kp.attacks.Opened(protected, statistics=True),
        "RevA, published statistics": kp.attacks.Opened(protected),
        "fine-tuning of everything": kp.attacks.Opened(
            protected, kernels=True, statistics=True
        ),
    }
    kp.bind(protected, kp.Passport.random_pattern(protected))
    for model in models.values():
        model.compile(
            keras.optimizers.SGD(0.001, momentum=0.9),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
    steps = {
        name: lambda model=model: model.train_on_batch(x, y)
        for name, model in models.items()
    }
    title = nets.title("RevA's step", base)
    alternate.write({title: alternate.show(title, alternate.medians(steps))})


if __name__ == "__main__":
    app.run(main)
