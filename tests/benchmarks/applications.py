"""`protect` on every architecture of keras.applications.

    python tests/benchmarks/applications.py --nets=MobileNetV2,ResNet50
    python tests/benchmarks/applications.py --json=applications.json

For each net: how many normalisations a passport layer replaced; whether the
bound network's outputs equal the original's with γ and β overwritten by a
plain convolution of the passport, averaged; where they don't to 1e-5, what
rounding to float32 costs either of them, against the overwritten original in
float64; how long `protect` takes against `keras.models.clone_model`.
"""

import gc
import pathlib
import sys
import time

import keras
from absl import app, flags

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import alternate  # noqa: E402

import keras_passport as kp  # noqa: E402
from support.applications import make_case, net  # noqa: E402

# Family: its nets, their input size, and in all of them the normalisations
# that follow a kernel layer directly (for VGG, with its classifier and with
# insert=True, all kernel layers but the last).
FAMILIES = {
    "ResNet": (["ResNet50", "ResNet101", "ResNet152"], 64, 312),
    "ResNetV2": (["ResNet50V2", "ResNet101V2", "ResNet152V2"], 64, 198),
    "MobileNet": (["MobileNet"], 64, 27),
    "MobileNetV2": (["MobileNetV2"], 64, 52),
    "MobileNetV3": (["MobileNetV3Small", "MobileNetV3Large"], 64, 80),
    "EfficientNet": ([f"EfficientNetB{i}" for i in range(8)], 64, 774),
    "EfficientNetV2": (
        [
            f"EfficientNetV2{size}"
            for size in ("B0", "B1", "B2", "B3", "S", "M", "L")
        ],
        64,
        780,
    ),
    "DenseNet": (["DenseNet121", "DenseNet169", "DenseNet201"], 64, 241),
    "InceptionV3": (["InceptionV3"], 75, 94),
    "InceptionResNetV2": (["InceptionResNetV2"], 75, 204),
    "Xception": (["Xception"], 71, 40),
    "NASNet": (["NASNetMobile", "NASNetLarge"], 64, 448),
    "VGG": (["VGG16", "VGG19"], 64, 33),
    "ConvNeXt": (
        [
            f"ConvNeXt{size}"
            for size in ("Tiny", "Small", "Base", "Large", "XLarge")
        ],
        64,
        126,
    ),
}
_NETS = flags.DEFINE_list("nets", None, "Which nets; all if not given.")


def measure(name: str, size: int) -> dict:
    """All that is measured of one net."""
    keras.utils.set_random_seed(0)
    insert = name.startswith("VGG")
    base = net(name, size, include_top=insert)
    kp.protect(base, insert=insert)
    began = time.perf_counter()
    keras.models.clone_model(base)
    cloned = time.perf_counter() - began
    began = time.perf_counter()
    protected = kp.protect(base, insert=insert)
    seconds = time.perf_counter() - began
    result = {
        "net": name,
        "replaced": len(protected.report.protected),
        "protect_s": seconds,
        "clone_s": cloned,
    }
    if insert:
        return result
    del base, protected
    case = make_case(name, size)
    result["difference"], result["pictures"] = case.difference()
    # ConvNeXt's convolutions take minutes in float64; it needs no excuse.
    if result["difference"] >= 1e-5:
        rounding = case.rounding()
        result["rounding_protected"], result["rounding_truth"] = rounding
    return result


def main(_):
    results = []
    print(
        f"{'net':20}{'replaced':>9}{'difference':>12}{'pictures':>10}"
        f"{'rounding':>10}{'of truth':>10}{'protect':>9}{'clone':>8}"
    )
    for family, (nets, size, directly) in FAMILIES.items():
        chosen = [n for n in nets if not _NETS.value or n in _NETS.value]
        rows = []
        for name in chosen:
            row = measure(name, size)
            rows.append(row)
            print(
                f"{name:20}{row['replaced']:9}"
                f"{row.get('difference', float('nan')):12.1e}"
                f"{row.get('pictures', float('nan')):10.2f}"
                f"{row.get('rounding_protected', float('nan')):10.1e}"
                f"{row.get('rounding_truth', float('nan')):10.1e}"
                f"{row['protect_s']:8.1f}s{row['clone_s']:7.1f}s",
                flush=True,
            )
            keras.backend.clear_session()
            gc.collect()
        results += rows
        if chosen == nets:
            found = sum(row["replaced"] for row in rows)
            print(f"  {family}: {found} replaced, {directly} to be replaced")
    alternate.write({"nets": results})


if __name__ == "__main__":
    app.run(main)
