"""Inference: the original against what becomes of it.

    python tests/benchmarks/inference.py --net=resnet18 --batch=64
    python tests/benchmarks/inference.py --net=ResNet50 --size=224 --batch=1

Compiled calls of the original, of the bound model, of the one that takes the
passport as an input, and of the unlocked and folded one, alternately. Their
outputs are compared with the bound one's.
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
    passport = kp.Passport.random_pattern(model, seed=0)
    kp.bind(model, passport)
    kp.calibrate(model)
    x = np.random.default_rng(1).normal(
        size=(_BATCH.value, _SIZE.value, _SIZE.value, 3)
    )
    x = tf.constant(x, "float32")
    kp.estimate_statistics(model, [x])
    served = kp.require_passport(model)
    packed = tf.constant(passport.pack(kp.passport_spec(served)))
    calls = {
        "original": lambda: base(x, training=False),
        "bound": lambda: model(x, training=False),
        "passport input": lambda: served([x, packed], training=False),
    }
    plain = kp.unlock(model)
    calls["unlocked, folded"] = lambda: plain(x, training=False)
    steps, outputs = {}, {}
    for name, call in calls.items():
        function = tf.function(call)
        outputs[name] = function().numpy()
        steps[name] = lambda function=function: function().numpy()
    shape = f"{_SIZE.value} pixels, batch {_BATCH.value}"
    title = f"Inference, {base.name}, {shape}"
    results = alternate.show(title, alternate.medians(steps))
    scale = np.abs(outputs["bound"]).max()
    for name in ("passport input", "unlocked, folded"):
        difference = np.abs(outputs[name] - outputs["bound"]).max() / scale
        results[name]["difference"] = float(difference)
        print(f"{name} against bound outputs, relative: {difference:.1e}")
    alternate.write({title: results})


if __name__ == "__main__":
    app.run(main)
