"""What kernels' rows tell of each other in a secret order.

    python tests/benchmarks/row_neighbours.py --original=original.keras

A row of a kernel is what one element of its window does with one input channel,
for all filters. Filters are smooth, so rows of one channel that lie side by
side in the window agree, and do so in whatever order they are stored: an order
changes rows' places and signs, not the angles between them. For each layer, of
how many rows the nearest one is of the same channel, and beside it.

Who has so found the rows of each channel, and their signs against each other,
is left with a sign a channel. Those and the filters' are guessed together, as
the signs under which the kernel's sum is largest: how many of γ's signs that
tells, but for one sign for all, from channels put together without a mistake,
and from rows as they are.

That is of an order that all filters have, as they had once. Where each group of
them has its own (`protect_trained`), rows have four numbers at most: "in
groups" says of how many the nearest one is of their channel then, and how many
signs are told from rows, but for one sign for all of a group.
"""

import json

import keras
import numpy as np
from absl import app, flags

from keras_passport.layers import kernels, row_order

_ORIGINAL = flags.DEFINE_string("original", None, "A .keras file.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the guesses' starts.", 0)
flags.mark_flag_as_required("original")

# From which signs a guess is improved; the best of them counts.
_STARTS = 20
# Of signs drawn at random, for what chance tells.
_DRAWS = 1000


def main(_):
    model = keras.saving.load_model(_ORIGINAL.value, compile=False)
    rng = np.random.default_rng(_SEED.value)
    totals = {"filters": 0, "by channels": 0, "by rows": 0, "chance": 0}
    totals |= {"by rows, in groups": 0, "chance in groups": 0}
    for layer in model._flatten_layers():
        if not isinstance(layer, keras.layers.Conv2D):
            continue
        kernel = keras.ops.convert_to_numpy(layer.kernel).astype("float64")
        [groups] = row_order.groups(kernels.adapter_for(layer), layer)
        found = {"groups": groups, **neighbours(kernel)}
        parts = [neighbours(some) for some in np.split(kernel, groups, -1)]
        if parts[0]:
            same = np.mean([part["same channel"] for part in parts])
            found["same channel, in groups"] = same
        normalization = layer._outbound_nodes[0].operation
        if getattr(normalization, "gamma", None) is not None:
            gamma = keras.ops.convert_to_numpy(normalization.gamma)
            kernel = kernel * np.where(gamma < 0, -1, 1)
            kernel /= np.sqrt(np.sum(kernel**2, axis=(0, 1, 2)))
            told = signs(kernel, rng)
            some = [signs(part, rng) for part in np.split(kernel, groups, -1)]
            for name, of in (("by rows", "by rows, "), ("chance", "chance ")):
                told[f"{of}in groups"] = np.mean([one[name] for one in some])
            found.update(told)
            totals["filters"] += len(gamma)
            for name, part in told.items():
                totals[name] += part * len(gamma)
        print(layer.name, kernel.shape, rounded(found), flush=True)
    count = totals.pop("filters")
    print(count, "signs", rounded({k: v / count for k, v in totals.items()}))


def neighbours(kernel):
    """Of how many rows the nearest is of their channel, and beside them."""
    height, width, channels, filters = kernel.shape
    if height * width == 1 or filters == 1:
        return {}
    rows = kernel.reshape(height * width * channels, -1)
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    angles = np.abs(rows @ rows.T)
    np.fill_diagonal(angles, 0)
    tap, channel = np.divmod(np.arange(len(rows)), channels)
    nearest = angles.argmax(1)
    same = channel == channel[nearest]
    (y, x), (other_y, other_x) = (
        np.divmod(taps, width) for taps in (tap, tap[nearest])
    )
    beside = same & (np.abs(y - other_y) + np.abs(x - other_x) == 1)
    return {
        "same channel": same.mean(),
        "chance of it": (height * width - 1) / (len(rows) - 1),
        "and beside": beside.mean(),
    }


def signs(kernel, rng):
    """How many signs of filters, all positive here, are told."""
    filters = kernel.shape[-1]
    drawn = rng.choice([-1, 1], (_DRAWS, filters))
    return {
        "by channels": agreement(largest_sum(kernel.sum((0, 1)), rng)),
        "by rows": agreement(largest_sum(kernel.reshape(-1, filters), rng)),
        "chance": np.mean([agreement(one) for one in drawn]),
    }


def largest_sum(rows, rng):
    """Signs of columns that make, with some of rows, the sum largest."""
    found = []
    first = np.linalg.svd(rows)[2][0]
    for number in range(_STARTS):
        start = first if number == 0 else rng.normal(size=rows.shape[1])
        columns, before = np.where(start < 0, -1, 1), None
        while before is None or (columns != before).any():
            before = columns
            of_rows = np.where(rows @ columns < 0, -1, 1)
            columns = np.where(of_rows @ rows < 0, -1, 1)
        found.append((np.abs(rows @ columns).sum(), number, columns))
    return max(found)[-1]


def agreement(columns):
    share = np.mean(columns > 0)
    return max(share, 1 - share)


def rounded(numbers):
    return json.dumps({k: round(float(v), 2) for k, v in numbers.items()})


if __name__ == "__main__":
    app.run(main)
