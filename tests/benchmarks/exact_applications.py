"""`protect_trained` on every architecture of keras.applications.

    python tests/benchmarks/exact_applications.py --nets=MobileNetV2,ResNet50
    python tests/benchmarks/exact_applications.py --dtype=float64
    python tests/benchmarks/exact_applications.py --json=exact.json

For each net, at a small size, with weights and statistics that look trained:
which kernel layers are left unprotected and why, how far outputs are from the
original's, how far the original's own are, in float32, from what it computes
in float64, and how long it took.
"""

import gc
import pathlib
import sys
import time

import keras
import numpy as np
from absl import app, flags

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import alternate  # noqa: E402
import applications  # noqa: E402

import keras_passport as kp  # noqa: E402
from support.applications import net  # noqa: E402
from support.trained_models import gap, look_trained  # noqa: E402

_DTYPE = flags.DEFINE_string("dtype", "float32", "Of the nets.")
_ORDER = flags.DEFINE_bool("order", False, "Rows in a secret order, too.")


def rounding_of(base, name: str, size: int, pictures, outputs) -> float:
    """How far an original in float32 is from itself in float64."""
    keras.config.set_dtype_policy("float64")
    exact = net(name, size, include_top=True)
    exact.set_weights(base.get_weights())
    exact.layers[-1].activation = keras.activations.linear
    expected = exact(pictures.astype("float64"), training=False)
    return gap(keras.ops.cast(outputs, "float64"), expected)


def measure(name: str, size: int) -> dict:
    """All that is measured of one net."""
    keras.utils.set_random_seed(0)
    # Which a cleared session forgets.
    keras.config.set_dtype_policy(_DTYPE.value)
    base = look_trained(net(name, size, include_top=True))
    # Of logits: random nets are all too sure of a class.
    base.layers[-1].activation = keras.activations.linear
    began = time.perf_counter()
    model, _ = kp.protect_trained(base, seed=0, order=_ORDER.value)
    seconds = time.perf_counter() - began
    pictures = np.random.default_rng(1).random((2, size, size, 3), "float32")
    pictures *= 255.0
    outputs = [one(pictures, training=False) for one in (model, base)]
    own = 0.0
    if _DTYPE.value == "float32":
        own = rounding_of(base, name, size, pictures, outputs[1])
    left = {
        f"{row.path} ({row.layer_type})": row.reason
        for row in model.report.rows
        if not row.protected
    }
    return {
        "net": name,
        "protected": len(model.report.protected),
        "left": left,
        "normalisations alone": sum(
            "on its own" in row.reason for row in model.report.rows
        ),
        "difference": gap(*outputs),
        "the original's own rounding": own,
        "seconds": seconds,
        "largest error of a key": max(row.error for row in model.solution),
    }


def main(_):
    results = []
    rounding = "the original's own rounding"
    for nets, size, _ in applications.FAMILIES.values():
        for name in nets:
            chosen = flags.FLAGS.nets
            if chosen and name not in chosen:
                continue
            row = measure(name, size)
            results.append(row)
            print(
                f"{name:20}{row['protected']:6} kernel layers, "
                f"{len(row['left'])} left, difference {row['difference']:.1e}, "
                f"own rounding {row[rounding]:.1e}, "
                f"keys {row['largest error of a key']:.1e}, "
                f"{row['seconds']:.1f} s",
                flush=True,
            )
            for path, reason in row["left"].items():
                print(f"    {path}: {reason}", flush=True)
            keras.backend.clear_session()
            gc.collect()
            alternate.write({"nets": results})


if __name__ == "__main__":
    app.run(main)
