"""What `protect` costs, against `keras.models.clone_model`.

    python tests/benchmarks/protecting.py --net=ResNet152

Time: medians of both, in turn, in one process. Memory: what either adds to
the peak of a process of its own, in copies of the net's weights.
"""

import pathlib
import subprocess
import sys

import alternate
import keras
from absl import app, flags

import keras_passport as kp

_NET = flags.DEFINE_string("net", "ResNet152", "Of keras.applications.")
_ONLY = flags.DEFINE_enum(
    "only", None, ["protect", "clone"], "Do one, once, and print its memory."
)


def memory(name: str) -> int:
    """A size from Linux's account of this process, in bytes."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise ValueError(name)


def copies(step, base) -> float:
    """Memory that a step takes at its peak, in copies of the weights."""
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # Forgets the peak.
    before = memory("VmRSS")
    made = step(base)
    added = memory("VmHWM") - before
    del made
    return added / sum(4 * weight.numpy().size for weight in base.weights)


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
        command = [sys.executable, *sys.argv, f"--only={name}"]
        output = subprocess.run(command, capture_output=True, text=True)
        results[name]["copies"] = float(output.stdout.split()[-1])
        print(f"{name}: {results[name]['copies']:.2f} copies of the weights")
    alternate.write({title: results})


if __name__ == "__main__":
    app.run(main)
