"""What `protect` costs, against `keras.models.clone_model`; and a passport.

    python tests/benchmarks/protecting.py --net=ResNet152
    python tests/benchmarks/protecting.py --net=ResNet50

Time: medians of both, in turn, in one process. Memory: what either adds to
the peak of a process of its own, in copies of the net's weights. And the time
to read the net's random-pattern passport from its file and to digest it into
keys, which is what `bind` waits for.
"""

import pathlib
import tempfile

import alternate
import keras
import resident
from absl import app, flags

import keras_passport as kp

_NET = flags.DEFINE_string("net", "ResNet152", "Of keras.applications.")
_ONLY = flags.DEFINE_enum(
    "only", None, ["protect", "clone"], "Do one, once, and print its memory."
)


def copies(step, base) -> float:
    """Memory that a step takes at its peak, in copies of the weights."""
    before = resident.now()
    added = resident.peak(lambda: step(base)) - before
    return added / sum(4 * weight.numpy().size for weight in base.weights)


def digesting(base: keras.Model) -> dict:
    """Reading a passport of the net's own picture size, and its digest."""
    passport = kp.Passport.random_pattern(kp.protect(base))
    title = f"A passport of {_NET.value}, {base.input_shape[1]} pixels"
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "owner.h5")
        passport.save(path)
        steps = {
            "load": lambda: kp.Passport.load(path),
            "keys": lambda: passport.keys(),
        }
        times = alternate.medians(steps, warm_up=1)
        print(f"\nThe file has {path.stat().st_size / 2**20:.0f} MiB.", end="")
    return {title: alternate.show(title, times)}


def main(_):
    steps = {"clone": keras.models.clone_model, "protect": kp.protect}
    base = getattr(keras.applications, _NET.value)(weights=None)
    if _ONLY.value:
        # What the first call imports and compiles is no copy of weights.
        small = keras.applications.ResNet50(
            weights=None, input_shape=(32,) * 2 + (3,), include_top=False
        )
        steps[_ONLY.value](small)
        print(copies(steps[_ONLY.value], base))
        return
    title = f"Cloning {_NET.value}"
    times = alternate.medians(
        {name: lambda step=step: step(base) for name, step in steps.items()},
        warm_up=1,
    )
    results = alternate.show(title, times)
    for name in steps:
        results[name]["copies"] = resident.in_fresh_process(f"--only={name}")
        print(f"{name}: {results[name]['copies']:.2f} copies of the weights")
    alternate.write({title: results, **digesting(base)})


if __name__ == "__main__":
    app.run(main)
