"""What protecting only some normalisations protects, on digits.

    python tests/benchmarks/architectures.py

In a DenseNet the normalisations after a concatenation stay as they are, in a
pre-activation ResNet those before the kernel. Trains a small one of each, the
protected copy from scratch, and tries 100 random-pattern fakes on it.
"""

import pathlib
import sys

import keras
import numpy as np
from absl import app, flags

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "examples"))

import alternate  # noqa: E402

import keras_passport as kp  # noqa: E402
from common import data, training  # noqa: E402

_EPOCHS = flags.DEFINE_integer("epochs", 40, "Of either training.")


def _normalized(x):
    x = keras.layers.BatchNormalization(momentum=0.9)(x)
    return keras.layers.ReLU()(x)


def _convolved(x, filters, size=3, strides=1):
    return keras.layers.Conv2D(
        filters,
        size,
        strides=strides,
        padding="same",
        use_bias=False,
        kernel_initializer="he_normal",
    )(x)


def _classified(inputs, x, name):
    x = keras.layers.GlobalAveragePooling2D()(_normalized(x))
    return keras.Model(inputs, keras.layers.Dense(10)(x), name=name)


def densenet(shape):
    """Two blocks of four bottlenecks, growth 12, as DenseNet-BC."""
    inputs = keras.Input(shape)
    x = _convolved(inputs, 24)
    for block in range(2):
        for _ in range(4):
            new = _convolved(_normalized(x), 48, 1)
            new = _convolved(_normalized(new), 12)
            x = keras.layers.Concatenate()([x, new])
        if block == 0:
            x = _convolved(_normalized(x), x.shape[-1] // 2, 1)
            x = keras.layers.AveragePooling2D(2)(x)
    return _classified(inputs, x, "densenet")


def preactivation_resnet(shape):
    """Three stages of two blocks: BN, ReLU, convolution, twice."""
    inputs = keras.Input(shape)
    x = _convolved(inputs, 16)
    for stage in range(3):
        for block in range(2):
            strides = 2 if stage and not block else 1
            y = _normalized(x)
            if x.shape[-1] != 16 * 2**stage:
                x = _convolved(y, 16 * 2**stage, 1, strides)
            y = _convolved(y, 16 * 2**stage, 3, strides)
            y = _convolved(_normalized(y), 16 * 2**stage)
            x = keras.layers.Add()([x, y])
    return _classified(inputs, x, "preactivation_resnet")


def measure(build, dataset) -> dict:
    """Accuracies in per cent, and what was protected."""
    keras.utils.set_random_seed(0)
    base = build(dataset.input_shape)
    model = kp.reinitialize(kp.protect(base), seed=1)
    kp.bind(model, kp.Passport.random_pattern(model, seed=0))
    kp.calibrate(model)
    x, y = dataset.normalize(dataset.x_test), dataset.y_test
    batches = training.TrainingBatches(dataset, 64, 0)
    recipe = training.Recipe(_EPOCHS.value, 64, 0.1, 5e-4, seed=0)
    found = {"net": base.name}
    for name, some in (("original", base), ("valid", model)):
        some.compile(
            recipe.optimizer(some, len(batches)),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
        some.fit(
            batches,
            epochs=recipe.epochs,
            verbose=0,
            shuffle=False,
            callbacks=[
                keras.callbacks.LambdaCallback(
                    on_epoch_begin=lambda epoch, _: batches.start_epoch(epoch)
                )
            ],
        )
        labels = training.predict_labels(some, x)
        found[name] = 100 * float(np.mean(labels == y))
    rows = [r for r in model.report.rows if r.role == "normalization"]
    fakes = kp.attacks.fake_passports(
        model, "random_pattern", 100, (x, y), seed=0
    )
    return {
        **found,
        "normalizations": len(rows),
        "protected": sum(row.protected for row in rows),
        "fakes_mean": 100 * fakes.mean,
        "fakes_maximum": 100 * fakes.accuracy,
    }


def main(_):
    dataset = data.load("digits")
    results = [measure(b, dataset) for b in (densenet, preactivation_resnet)]
    for result in results:
        print(result)
    alternate.write({"architectures": results})


if __name__ == "__main__":
    app.run(main)
