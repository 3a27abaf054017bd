"""What passports add to a training step, as pictures grow.

    python tests/benchmarks/growth.py --batch=1 --steps=60

ResNet-20 of width 16 at four sizes, in V3: median of the differences between
its steps and those of the same net that normalises in the same way, with γ and
β as variables. So the convolutions and the normalisation, which grow with the
picture, cancel out; what is left is the passport's own: hidden parameters from
kernels and keys, forward and backward. Neither knows the picture's size. The
batch is small, so that the rest does not drown it.
"""

import statistics

import alternate
import nets
import numpy as np
from absl import app, flags

import keras_passport as kp
from common import networks

SIZES = (32, 64, 128, 256)


def steps_of(size: int) -> tuple:
    """The protected net's training step, and the other's."""
    base = networks.resnet((size, size, 3), 10, depth=20, width=16)
    model = kp.protect(base)
    kp.bind(model, kp.Passport.random_pattern(model))
    shape = (flags.FLAGS.batch, size, size, 3)
    x = np.random.default_rng(0).normal(size=shape).astype("float32")
    plain = nets.renormalized(base, nets.FusedNormalization)
    return nets.training_step(model, x), nets.training_step(plain, x)


def main(_):
    results = {}
    print(f"{'pixels':>8}{'step, ms':>10}{'added, ms':>11}{'quartiles':>16}")
    for size in SIZES:
        protected, plain = steps_of(size)
        seconds = alternate.times({"protected": protected, "plain": plain})
        added = [
            1e3 * (one - other)
            for one, other in zip(*seconds.values(), strict=True)
        ]
        low, middle, high = statistics.quantiles(added, n=4)
        step = 1e3 * statistics.median(seconds["protected"])
        results[size] = {"step_ms": step, "added_ms": middle}
        print(
            f"{size:8}{step:10.1f}{middle:11.2f}   {low:6.2f} to {high:.2f}",
            flush=True,
        )
    alternate.write({"growth": results})


if __name__ == "__main__":
    app.run(main)
