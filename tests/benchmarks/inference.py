"""Inference: the original against what becomes of it.

    python tests/benchmarks/inference.py --net=resnet18 --batch=64
    python tests/benchmarks/inference.py --net=ResNet50 --size=224 --batch=1
    python tests/benchmarks/inference.py --net=MobileNetV2 --size=224 --batch=16

Compiled calls of the original, of the bound model, of the one that takes the
passport as an input, and of the unlocked and folded one, alternately. Their
outputs are compared with the bound one's.
"""

import alternate
import nets
import numpy as np
import tensorflow as tf
from absl import app

import keras_passport as kp


def main(_):
    base = nets.build()
    model = kp.protect(base)
    passport = kp.Passport.random_pattern(model, seed=0)
    kp.bind(model, passport)
    kp.calibrate(model)
    x = tf.constant(nets.pictures())
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
    title = nets.title("Inference", base)
    results = alternate.show(title, alternate.medians(steps))
    scale = np.abs(outputs["bound"]).max()
    for name in ("passport input", "unlocked, folded"):
        difference = np.abs(outputs[name] - outputs["bound"]).max() / scale
        results[name]["difference"] = float(difference)
        print(f"{name} against bound outputs, relative: {difference:.1e}")
    alternate.write({title: results})


if __name__ == "__main__":
    app.run(main)
