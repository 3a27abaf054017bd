"""Memory that training takes at its peak, protected against the original.

    python tests/benchmarks/memory.py --net=resnet18 --batch=64 --steps=3

Each trains a few steps in `--steps` processes of its own, in turn. What Linux
counts as resident at the most while it trains, less what was resident before
anything was built: weights, optimizer slots, activations, gradients, and what
making the net left behind. Medians. TensorFlow counts nothing itself on CPUs.
"""

import gc
import statistics

import alternate
import keras
import nets
import resident
from absl import app, flags

import keras_passport as kp

_TRAIN = flags.DEFINE_enum(
    "train",
    None,
    ["original", "protected"],
    "Train it here, and print its memory in MiB.",
)


def protected(base: keras.Model) -> keras.Model:
    """The net in V3, bound to a random pattern."""
    model = kp.protect(base)
    return kp.bind(model, kp.Passport.random_pattern(model))


def training(model: keras.Model) -> int:
    """The most that is resident in a training of five steps, in bytes."""
    step = nets.training_step(model, nets.pictures())
    return resident.peak(lambda: [step() for _ in range(5)])


def main(_):
    if _TRAIN.value:
        before = resident.now()
        model = nets.build()
        if _TRAIN.value == "protected":
            model = protected(model)  # The original is let go.
        gc.collect()
        print((training(model) - before) / 2**20)
        return
    title = nets.title("Memory of training", nets.build())
    found = {"original": [], "protected": []}
    for _ in range(flags.FLAGS.steps):
        for name, sizes in found.items():
            sizes.append(resident.in_fresh_process(f"--train={name}"))
    results = {}
    print(f"\n{title}\n{'':32}{'MiB':>10}{'ratio':>8}")
    for name, sizes in found.items():
        size = statistics.median(sizes)
        ratio = size / statistics.median(found["original"])
        results[name] = {"MiB": size, "ratio": ratio, "all": sizes}
        print(f"{name:32}{size:10.0f}{ratio:8.3f}")
    alternate.write({title: results})


if __name__ == "__main__":
    app.run(main)
