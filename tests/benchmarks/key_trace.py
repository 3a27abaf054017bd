"""What trained kernels show of their keys, layer by layer.

    python tests/benchmarks/key_trace.py --run_dir=runs/resnet-digits-...

For each layer of a V3 run: the cosine of its two keys; the cosines of the
kernel's first left singular vector with γ's key and with the direction in
which β's key differs from it; and the kernel's energy in the plane of both
keys, over what any plane holds of it on average.
"""

import pathlib

import keras
import numpy as np
from absl import app, flags

import keras_passport as kp

_RUN_DIR = flags.DEFINE_string("run_dir", None, "Of a trainer.", required=True)


def main(_):
    run = pathlib.Path(_RUN_DIR.value)
    model = keras.saving.load_model(run / "public" / "protected.keras")
    keys = kp.Passport.load(run / "owner" / "passport.h5").keys(model)
    print(f"{'layer':32}{'size':>6}{'keys':>8}{'γ':>6}{'diff':>6}{'energy':>8}")
    for path, layer in kp.protected_layers(model).items():
        kernel = keras.ops.convert_to_numpy(layer.layer.kernel)
        kernel = kernel.reshape(-1, kernel.shape[-1])
        pair = np.stack(
            [keys[path][role].ravel() for role in ("gamma", "beta")]
        )
        pair /= np.linalg.norm(pair, axis=1, keepdims=True)
        plane = np.linalg.qr(pair.T)[0]
        first = np.linalg.svd(kernel, full_matrices=False)[0][:, 0]
        energy = np.sum((plane.T @ kernel) ** 2) / np.sum(kernel**2)
        print(
            f"{path:32}{len(kernel):6}{pair[0] @ pair[1]:8.3f}"
            f"{abs(first @ pair[0]):6.2f}{abs(first @ plane[:, 1]):6.2f}"
            f"{energy * len(kernel) / 2:8.2f}"
        )


if __name__ == "__main__":
    app.run(main)
