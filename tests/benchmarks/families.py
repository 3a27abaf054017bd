"""Trains small networks of other families, for `exact_under_attack.py`.

    python tests/benchmarks/families.py --dir=families
    python tests/benchmarks/exact_under_attack.py --dataset=digits \
        --original=families/convnext.keras --order --imitated \
        --fraction=0.05 --epochs=100 --out=convnext.json \
        --only="from_scratch exact,fine_tuning ordered,fine_tuning shuffled"

What the paper's networks have nothing of: depthwise convolutions and 1x1
expansions ("mobilenet"), layer normalisations ("convnext"), normalisations
before convolutions ("resnetv2"), and layers that see all before ("densenet").
"""

import pathlib
import sys

import keras
import numpy as np
from absl import app, flags
from keras import layers

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "examples"))

from common import data as datasets  # noqa: E402

_DIR = flags.DEFINE_string("dir", None, "Where to.", required=True)
_DATASET = flags.DEFINE_string("dataset", "digits", "As the trainers' flag.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Likewise.")
_EPOCHS = flags.DEFINE_integer("epochs", 60, "Of each training.", 1)
_BATCH = 64


def main(_):
    data = datasets.load(_DATASET.value, _DATA_DIR.value)
    x, y = data.normalize(data.x_train), data.y_train
    test = data.normalize(data.x_test), data.y_test
    folder = pathlib.Path(_DIR.value)
    folder.mkdir(parents=True, exist_ok=True)
    steps = len(y) // _BATCH
    for name, body in FAMILIES.items():
        file = folder / f"{name}.keras"
        if file.exists():
            continue
        keras.utils.set_random_seed(0)
        images = keras.Input(x.shape[1:])
        model = keras.Model(
            images, layers.Dense(10, activation="softmax")(body(images))
        )
        rate = keras.optimizers.schedules.CosineDecay(
            0.003, _EPOCHS.value * steps
        )
        model.compile(
            keras.optimizers.Adam(rate),
            "sparse_categorical_crossentropy",
            metrics=["accuracy"],
        )
        model.fit(
            _batches(x, y, data), steps_per_epoch=steps, epochs=_EPOCHS.value
        )
        model.save(file)
        print(name, model.evaluate(*test, verbose=0)[1], flush=True)


def _batches(x, y, data):
    rng = np.random.default_rng(0)
    while True:
        chosen = rng.choice(len(y), _BATCH, replace=False)
        yield datasets.augment(x[chosen], rng, data.pad, data.flip), y[chosen]


def _normalized(x):
    return layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))


def _convolved(x, filters, size=3, strides=1):
    return layers.Conv2D(
        filters, size, strides, padding="same", use_bias=False
    )(x)


def mobilenet(x):
    x = _normalized(_convolved(x, 16))
    for filters, strides in ((16, 1), (24, 2), (24, 1), (32, 1)):
        y = _normalized(_convolved(x, 4 * x.shape[-1], 1))
        y = layers.DepthwiseConv2D(3, strides, "same", use_bias=False)(y)
        y = _convolved(_normalized(y), filters, 1)
        y = layers.BatchNormalization(momentum=0.9)(y)
        x = layers.Add()([x, y]) if y.shape == x.shape else y
    return layers.GlobalAveragePooling2D()(_normalized(_convolved(x, 64, 1)))


def convnext(x):
    x = layers.LayerNormalization(epsilon=1e-6)(layers.Conv2D(24, 2, 2)(x))
    for _ in range(4):
        y = layers.DepthwiseConv2D(3, padding="same")(x)
        y = layers.LayerNormalization(epsilon=1e-6)(y)
        y = layers.Dense(24)(layers.Dense(96, activation="gelu")(y))
        x = layers.Add()([x, y])
    x = layers.GlobalAveragePooling2D()(x)
    return layers.LayerNormalization(epsilon=1e-6)(x)


def resnetv2(x):
    x = _convolved(x, 16)
    for filters, strides in ((16, 1), (32, 2), (32, 1)):
        before = _normalized(x)
        y = _convolved(before, filters, 3, strides)
        y = _convolved(_normalized(y), filters)
        same = y.shape == x.shape
        short = x if same else _convolved(before, filters, 1, strides)
        x = layers.Add()([short, y])
    return layers.GlobalAveragePooling2D()(_normalized(x))


def densenet(x):
    x = _convolved(x, 16)
    for block in range(2):
        if block:
            x = layers.AveragePooling2D(2)(_convolved(_normalized(x), 20, 1))
        for _ in range(3):
            y = _convolved(_normalized(x), 32, 1)
            x = layers.Concatenate()([x, _convolved(_normalized(y), 8)])
    return layers.GlobalAveragePooling2D()(_normalized(x))


FAMILIES = {f.__name__: f for f in (mobilenet, convnext, resnetv2, densenet)}


if __name__ == "__main__":
    app.run(main)
