"""Rows that a training hardly changed, put back by first weights alone.

    python tests/benchmarks/unchanged_rows.py --original=original.keras

What hardly ever counts learns little, such as the corners of a window over maps
of 2 x 2: its rows stay what they began as, up to one size, however much the
kernel as a whole has changed. Who knows the first weights finds such rows among
the stored ones, and with them the filters' signs and sizes, but for one sign
and size of a group. Nothing is given to this attacker but the first weights.
For each layer:

* how many rows, over all filters, have a cosine above 0.99 with their first,
* of how many groups these signs are found (by chance, one of 2 for two filters
  and of 8 for four),
* how many places have their right row as the nearest one, how many of those
  that are much nearer than any other (`claimed`) are right.

Each filter has an order of its own where windows are larger than maps.
`--filters=4` says what another number of filters to an order would do.
"""

import itertools
import json

import keras
import numpy as np
from absl import app, flags
from initial_weights import draw_again, rows
from scipy.spatial import cKDTree

import keras_passport as kp
from keras_passport.layers import row_order

_FILTERS = flags.DEFINE_integer("filters", None, "Filters to an order.", 1)
_LAYERS = flags.DEFINE_list("layers", None, "Their names; all if not given.")
_GROUPS = flags.DEFINE_integer("groups", 12, "Of each layer, at most.", 1)

# Part of a filter that its first numbers are, as a guess.
_LIKE = 0.85
# How near rows must be, in parts of a row, and of the next one's distance.
_NEAR = (0.25, 0.2, 0.15, 0.12, 0.1, 0.08, 0.07, 0.06) + (0.05,) * 6
_NEARER = (0.6,) * 6 + (0.4,) * 8
_SURE = 0.35


def main(_):
    model = keras.saving.load_model(flags.FLAGS.original, compile=False)
    first = keras.models.clone_model(model)
    draw_again(first, model, _LAYERS.value)
    if _FILTERS.value:
        row_order._FILTERS = ((0, _FILTERS.value),)
        row_order._reaches_out = lambda *of: False
    protected, _ = kp.protect_trained(model, select=_LAYERS.value)
    for path, layer in kp.protected_layers(protected).items():
        [(count, groups)] = layer.geometry.orders
        kernels = (
            one / np.linalg.norm(one, axis=0) * np.sqrt(2.0)
            for one in (
                rows(model.get_layer(path).kernel),
                rows(first.get_layer(path).kernel),
                rows(layer.layer.kernel),
            )
        )
        trained, began, stored = kernels
        alike = np.sum(trained * began, axis=1) / (
            np.linalg.norm(trained, axis=1) * np.linalg.norm(began, axis=1)
        )
        parts = zip(
            *(
                np.split(one, groups, axis=1)
                for one in (trained, began, stored)
            ),
            strict=True,
        )
        told = [
            judged(*part) for part in itertools.islice(parts, _GROUPS.value)
        ]
        signs, right, claimed, sure = np.mean(told, axis=0)
        numbers = {
            "above 0.99": np.mean(alike > 0.99),
            "signs": signs,
            "rows": right,
            "claimed": claimed,
            "right of those": sure / max(claimed, 1e-12),
        }
        numbers = {k: round(float(v), 4) for k, v in numbers.items()}
        print(path, (count, groups), json.dumps(numbers), flush=True)


def judged(trained, began, stored):
    """What the attacker finds of a group, as shares that are right."""
    signs, places, sure = found(began, stored)
    # Published rows are the original's, up to signs.
    gaps, true = cKDTree(np.abs(stored)).query(np.abs(trained))
    if gaps.max() > 1e-4:
        raise ValueError("Expected the original's rows in what is published")
    right = places == true
    row = stored[true]
    flips = np.sign(np.sum(trained * row / (trained[:, :1] * row[:, :1]), 0))
    return (
        np.array_equal(flips, signs * signs[0]),
        np.mean(right),
        np.mean(sure),
        np.mean(right & sure),
    )


def found(began, stored):
    """Filters' signs, the nearest stored row of each place, and if it is sure.

    For each combination of signs, sizes and pairs of rows are fitted by turns.
    """
    count, filters = stored.shape
    both = np.concatenate([stored, -stored])
    tree, size = cKDTree(both), np.linalg.norm(began, axis=1)
    best = None
    for rest in itertools.product((1.0, -1.0), repeat=filters - 1):
        signs, sizes = np.array((1.0, *rest)), np.full(filters, _LIKE)
        for near, nearer in zip(_NEAR, _NEARER, strict=True):
            gaps, places = tree.query(began * signs * sizes, k=2)
            pairs = (gaps[:, 0] < near * _LIKE * size) & (
                gaps[:, 0] < nearer * gaps[:, 1]
            )
            if pairs.sum() <= filters:
                break
            ours, theirs = (began * signs)[pairs], both[places[pairs, 0]]
            for _ in range(3):
                # Near rows count more, as in a median.
                weights = 1.0 / (
                    np.abs(theirs - ours * sizes) + 0.02 * np.median(size)
                )
                sizes = np.sum(weights * theirs * ours, axis=0)
                sizes /= np.sum(weights * ours**2, axis=0)
        gaps, places = tree.query(began * signs * sizes, k=2)
        # By how much rows are nearer than most are.
        gain = -np.log(np.maximum(gaps[:, 0] / size, 1e-6))
        score = np.sum(np.maximum(gain - np.median(gain) - 1.5, 0.0))
        if best is None or score > best[0]:
            sure = gaps[:, 0] < _SURE * gaps[:, 1]
            best = score, signs * np.sign(sizes), places[:, 0] % count, sure
    return best[1:]


if __name__ == "__main__":
    app.run(main)
