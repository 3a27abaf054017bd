"""Inference: the original against what becomes of it.

    python tests/benchmarks/inference.py --net=resnet18 --batch=64
    python tests/benchmarks/inference.py --net=ResNet50 --size=224 --batch=1

Compiled calls of the original, of the bound model, and of the unlocked and
folded one, alternately. Before that, the unlocked outputs are compared with
the bound ones'.
"""

import pathlib
import sys

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "examples"))

import alternate  # noqa: E402

import keras_passport as kp  # noqa: E402
from common import networks  # noqa: E402

_NET = flags.DEFINE_string(
    "net", "resnet18", "resnet18 or resnet20 (CIFAR), or of keras.applications."
)
_SIZE = flags.DEFINE_integer("size", 32, "Pixels a side.")
_BATCH = flags.DEFINE_integer("batch", 64, "Pictures a call.")


def build(name: str, size: int) -> keras.Model:
    """A net by name, its statistics not those of a new one."""
    shape = (size, size, 3)
    if name == "resnet18":
        base = networks.resnet(shape, 10, depth=18, width=64)
    elif name == "resnet20":
        base = networks.resnet(shape, 10, depth=20, width=16)
    else:
        base = getattr(keras.applications, name)(
            weights=None, input_shape=shape
        )
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, *shape)).astype("float32")
    return kp.estimate_statistics(base, [x])


def main(_):
    keras.utils.set_random_seed(0)
    base = build(_NET.value, _SIZE.value)
    model = kp.protect(base)
    kp.bind(model, kp.Passport.random_pattern(model, seed=0))
    kp.calibrate(model)
    x = np.random.default_rng(1).normal(
        size=(_BATCH.value, _SIZE.value, _SIZE.value, 3)
    )
    x = tf.constant(x, "float32")
    kp.estimate_statistics(model, [x])
    models = {
        "original": base,
        "bound": model,
        "unlocked, folded": kp.unlock(model),
    }
    steps, outputs = {}, {}
    for name, some in models.items():
        function = tf.function(
            lambda inputs, some=some: some(inputs, training=False)
        )
        outputs[name] = function(x).numpy()
        steps[name] = lambda function=function: function(x).numpy()
    bound, unlocked = outputs["bound"], outputs["unlocked, folded"]
    difference = np.abs(bound - unlocked).max() / np.abs(bound).max()
    title = (
        f"Inference, {base.name}, {_SIZE.value} pixels, batch {_BATCH.value}"
    )
    results = alternate.show(title, alternate.medians(steps))
    print(f"unlocked against bound outputs, relative: {difference:.1e}")
    alternate.write({title: results, "unlocked_difference": float(difference)})


if __name__ == "__main__":
    app.run(main)
