"""What CERB gains over RevA on one network, and what decides it.

    python tests/benchmarks/cerb.py --original=original.keras --fraction=0.02 \
        --out=cerb.json

On a trained network that is protected exactly, its rows in their own order
("exact": signs of γ are random), and on the same network with its γ and β
taken away and nothing else ("removed": γ has the signs that training gave it),
RevA and CERB with few labels, as published and with one difference at a time:
the perceptron's width and depth, statistics, rate and epochs. A finished row
is not run again.
"""

import functools
import importlib
import json
import os
import pathlib
import sys
from unittest import mock

import keras
import numpy as np
from absl import app, flags

import keras_passport as kp

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "examples"))

from common import data as datasets  # noqa: E402

_ORIGINAL = flags.DEFINE_string("original", None, "A .keras file.")
_DATASET = flags.DEFINE_string("dataset", "cifar10", "As the trainers' flag.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Likewise.")
_FRACTION = flags.DEFINE_float("fraction", 0.02, "Of the training set.", 0, 1)
_EPOCHS = flags.DEFINE_integer("epochs", 100, "Of each training.", 1)
_SEED = flags.DEFINE_integer("seed", 0, "Of the labels and trainings.", 0)
_ONLY = flags.DEFINE_list("only", None, "Rows to run; all by default.")
_OUT = flags.DEFINE_string("out", "cerb.json", "File of the rows.")
flags.mark_flag_as_required("original")
# Under this name the package has the function.
ambiguity = importlib.import_module("keras_passport.attacks.ambiguity")

# What is other than published: recipe and options, the part of a layer's
# channels that a perceptron is wide inside, its layers.
ROWS = {
    "from_scratch": {},
    "reverse_engineering removed": {},
    "cerb removed": {},
    "reverse_engineering exact": {},
    "cerb exact": {},
    "cerb exact: C wide": {"narrower": 1},
    "cerb exact: C/2 wide": {"narrower": 2},
    "cerb exact: 3 layers": {"layers": 3},
    "cerb exact: 5 layers": {"layers": 5},
    "cerb exact: published statistics": {"statistics": False},
    "cerb exact: rate 0.005": {"learning_rate": 0.005},
    "cerb exact: rate 0.5": {"learning_rate": 0.5},
    "reverse_engineering exact: rate 0.5": {"learning_rate": 0.5},
    "cerb exact: Adam 0.01": {"learning_rate": 0.01, "optimizer": "adam"},
    "cerb exact: 3 times the epochs": {"longer": 3},
}


class Deeper(ambiguity.Blocks):
    """Perceptrons of three layers or more, C -> C/8 -> ... -> C/8 -> C."""

    def __init__(self, *given, layers, **options):
        self._between = {}
        super().__init__(*given, **options)
        for path, (_, inner, *_) in self._block.items():
            self._between[path] = [
                self.add_weight(
                    shape=2 * tuple(inner.shape),
                    name=f"{path.replace('/', '_')}_between_{number}",
                )
                for number in range(layers - 2)
            ]
        self._start_blocks()

    def _start_blocks(self):
        super()._start_blocks()
        rng = np.random.default_rng([self._seed, 1])
        for between in self._between.values():
            for weight in between:
                scale = np.sqrt(2 / weight.shape[0])
                weight.assign(rng.normal(scale=scale, size=weight.shape))

    def _pairs(self):
        pairs = {}
        for path, (gamma, beta) in ambiguity.Opened._pairs(self).items():
            contract, bias, expand, shift = self._block[path]
            inner = keras.ops.expand_dims(gamma, 0) @ contract + bias
            for weight in self._between[path]:
                inner = keras.ops.leaky_relu(inner, ambiguity.SLOPE) @ weight
            inner = keras.ops.leaky_relu(inner, ambiguity.SLOPE)
            pairs[path] = gamma + (inner @ expand)[0] + shift, beta
        return pairs


def main(_):
    data = datasets.load(_DATASET.value, _DATA_DIR.value)
    train = data.normalize(data.x_train), data.y_train
    test = data.normalize(data.x_test), data.y_test
    base = keras.saving.load_model(_ORIGINAL.value, compile=False)
    exact, _ = kp.protect_trained(base, order=False)
    networks = {"exact": kp.public(exact), "removed": kp.protect(base)}
    out = pathlib.Path(_OUT.value)
    rows = json.loads(out.read_text()) if out.exists() else {}
    for name, changes in ROWS.items():
        if name in rows or (_ONLY.value and name not in _ONLY.value):
            continue
        attack, *words = name.split(":")[0].split()
        network = networks[words[0] if words else "exact"]
        result = attacked(attack, network, train, test, data, **changes)
        rows[name] = {
            "accuracy": result.accuracy,
            "seconds": round(result.seconds),
            "budget": {k: v for k, v in result.budget.items() if k != "trials"},
        }
        partial = out.with_suffix(".part")
        partial.write_text(json.dumps(rows, indent=1) + "\n")
        os.replace(partial, out)
        print(name, rows[name], flush=True)


def attacked(
    attack,
    network,
    train,
    test,
    data,
    narrower=ambiguity.NARROWER,
    layers=2,
    longer=1,
    statistics=True,
    optimizer="sgd",
    learning_rate=0.05,
):
    recipe = kp.attacks.Recipe(
        epochs=longer * _EPOCHS.value,
        batch_size=60,
        optimizer=optimizer,
        learning_rate=learning_rate,
        warmup=0.1,
        augment=lambda x, rng: datasets.augment(x, rng, data.pad, data.flip),
    )
    given = {"fraction": _FRACTION.value, "seed": _SEED.value}
    if attack == "from_scratch":
        return kp.attacks.from_scratch(
            network, train, test, recipe=recipe, **given
        )
    given["statistics"] = statistics
    if attack == "reverse_engineering":
        return kp.attacks.reverse_engineering(
            network, train, test, recipe=recipe, **given
        )
    blocks = ambiguity.Blocks
    if layers > 2:
        blocks = functools.partial(Deeper, layers=layers)
    with (
        mock.patch.object(ambiguity, "NARROWER", narrower),
        mock.patch.object(ambiguity, "Blocks", blocks),
    ):
        return kp.attacks.ambiguity(
            network, train, test, recipe=recipe, block="CERB", **given
        )


if __name__ == "__main__":
    app.run(main)
