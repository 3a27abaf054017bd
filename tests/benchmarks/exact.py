"""`protect_trained`: time, memory, exactness, and inference afterwards.

    python tests/benchmarks/exact.py --net=ResNet50
    python tests/benchmarks/exact.py --net=EfficientNetB7 --calls=0
    python tests/benchmarks/exact.py --net=ResNet50 --batch=16 --steps=10
    python tests/benchmarks/exact.py --net=ResNet50 --noorder --steps=60

Time: once, in a process that has protected a small net before. Memory: what it
adds to the peak of a process of its own, in copies of the net's weights. Calls
are compiled ones of the original, of the bound model, of the one that takes
the passport as an input, and of the unlocked one, in turn: with kernels' rows
in their own order and, but for `--noorder`, in a secret one, the default.
"""

import time

import alternate
import keras
import numpy as np
import resident
import tensorflow as tf
from absl import app, flags

import keras_passport as kp

_NET = flags.DEFINE_string("net", "ResNet50", "Of keras.applications.")
_SIZE = flags.DEFINE_integer("size", None, "Pixels a side; the net's own.")
_BATCH = flags.DEFINE_integer("batch", 1, "Pictures a call.")
_CALLS = flags.DEFINE_bool("calls", True, "Whether to measure calls.")
_ORDER = flags.DEFINE_bool("order", True, "Rows in a secret order, too.")
_ONLY = flags.DEFINE_bool("only", False, "Print the memory and nothing else.")


def look_trained(model: keras.Model) -> keras.Model:
    """Draws what a training makes of normalisations and biases."""
    rng = np.random.default_rng(0)
    spreads = {"gamma": 0.3, "moving_variance": 0.5}
    for variable in model.variables:
        shape = variable.shape
        if variable.name in spreads:
            variable.assign(rng.lognormal(0, spreads[variable.name], shape))
        elif variable.name in ("beta", "moving_mean", "bias"):
            variable.assign(rng.normal(0, 0.2, shape))
    return model


def protect(base):
    return kp.protect_trained(base, seed=0, order=_ORDER.value)


def gap(received, expected) -> float:
    """Largest difference, relative to the largest output."""
    return float(np.abs(received - expected).max() / np.abs(expected).max())


def calls_of(base, x) -> dict:
    """Compiled functions without arguments, by name."""
    model, passport = kp.protect_trained(base, seed=0, order=False)
    served = kp.require_passport(model)
    packed = tf.constant(passport.pack(kp.passport_spec(served)))
    plain = kp.unlock(model, passport)
    calls = {
        "original": lambda: base(x, training=False),
        "bound": lambda: model(x, training=False),
        "passport input": lambda: served([x, packed], training=False),
        "unlocked, folded": lambda: plain(x, training=False),
    }
    if _ORDER.value:
        stored, owners = kp.protect_trained(base, seed=0)
        asking = kp.require_passport(stored)
        row = tf.constant(owners.pack(kp.passport_spec(asking)))
        calls |= {
            "bound, rows in order": lambda: stored(x, training=False),
            "passport input, rows in order": lambda: asking(
                [x, row], training=False
            ),
        }
    return {name: tf.function(call) for name, call in calls.items()}


def main(_):
    options = (
        {}
        if _SIZE.value is None
        else {
            "input_shape": (_SIZE.value, _SIZE.value, 3),
            "include_top": False,
            "pooling": "avg",
        }
    )
    make = getattr(keras.applications, _NET.value)
    base = look_trained(make(weights=None, **options))
    # What a first call imports and compiles is none of the net's.
    protect(keras.applications.MobileNetV3Small(weights=None))
    if _ONLY.value:
        before = resident.now()
        added = resident.peak(lambda: protect(base)) - before
        print(added / sum(4 * weight.numpy().size for weight in base.weights))
        return
    began = time.perf_counter(), time.process_time()
    model, passport = protect(base)
    took = time.perf_counter() - began[0], time.process_time() - began[1]
    rows = [row for row in model.report.rows if not row.protected]
    results = {
        "seconds": took[0],
        "processor seconds": took[1],
        "copies of the weights": resident.in_fresh_process("--only"),
        "layers": len(model.report.protected),
        "not protected": len(rows),
        "keys": passport.packed().size,
        "parameters": base.count_params(),
        "largest error of a key": max(row.error for row in model.solution),
    }
    for name, value in results.items():
        print(f"{name:32}{value:12.4g}")
    for row in rows:
        print(f"not protected: {row.path}: {row.reason}")
    everything = {f"Protecting {_NET.value}": results}
    if _CALLS.value:
        size = base.input_shape[1]
        pictures = np.random.default_rng(1).random(
            (_BATCH.value, size, size, 3)
        )
        x = tf.constant(pictures, "float32")
        calls = calls_of(base, x)
        outputs = {name: call().numpy() for name, call in calls.items()}
        title = f"Inference, {_NET.value} at {size}, batch {_BATCH.value}"
        times = alternate.medians(
            {name: lambda c=call: c().numpy() for name, call in calls.items()}
        )
        everything[title] = alternate.show(title, times)
        for name, value in outputs.items():
            print(f"{name}: differs by {gap(value, outputs['original']):.1e}")
    alternate.write(everything)


if __name__ == "__main__":
    app.run(main)
