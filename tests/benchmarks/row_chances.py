"""What first weights tell of trained rows in a secret order, at most.

    python tests/benchmarks/row_chances.py

An attacker who knows a kernel's first numbers, how like the trained ones are to
them, and even the filters' signs, gives each place the mean of the stored rows,
weighted by the chances that each belongs there: better than any one order. For
kernels of normal numbers, by rows and filters that have an order in common: the
cosine of that mean with the trained kernel, both without what is along the
first numbers, and how many of the likeliest rows are right. 0 is no more than
the first weights say, and 1 is the trained kernel.
"""

import json

import numpy as np
from absl import app, flags

_REPEATS = flags.DEFINE_integer("repeats", 6, "Kernels of each kind.", 1)
_ROWS = flags.DEFINE_list("rows", ["16", "27", "64", "144", "576", "1152"], "")
_LIKE = flags.DEFINE_list("like", ["0.6", "0.8", "0.9", "0.95", "0.99"], "")
_FILTERS = flags.DEFINE_list("filters", ["1", "2", "4", "8"], "")

_BALANCED = 30


def main(_):
    rng = np.random.default_rng(0)
    for rows in map(int, _ROWS.value):
        for filters in map(int, _FILTERS.value):
            found = {}
            for like in map(float, _LIKE.value):
                told = [
                    beyond(rows, filters, like, rng)
                    for _ in range(_REPEATS.value)
                ]
                found[like] = np.round(np.mean(told, axis=0), 2).tolist()
            print(rows, "rows of", filters, json.dumps(found), flush=True)


def beyond(rows, filters, like, rng):
    first, noise = rng.normal(size=(2, rows, filters))
    noise = without(noise, first)
    noise *= np.linalg.norm(first, axis=0) / np.linalg.norm(noise, axis=0)
    trained = like * first + np.sqrt(1 - like**2) * noise
    order = rng.permutation(rows)
    stored = trained[order] * rng.choice((-1, 1), (rows, 1))
    as_is, negated = chances(like * first, stored, 1 - like**2)
    mean = without((as_is - negated) @ stored, first)
    cosine = np.sum(mean * noise)
    cosine /= np.linalg.norm(mean) * np.linalg.norm(noise) + 1e-30
    likeliest = (as_is + negated).argmax(1)
    return cosine, np.mean(order[likeliest] == np.arange(rows))


def without(values, first):
    along = np.sum(values * first, 0) / np.sum(first**2, 0)
    return values - along * first


def chances(expected, stored, variance):
    """That each place has each stored row, as it is and negated."""
    odds = expected @ stored.T / variance
    sizes = np.sum(stored**2, 1) / (2 * variance)
    most = (np.abs(odds) - sizes).max(1, keepdims=True)
    as_is, negated = (np.exp(s * odds - sizes - most) for s in (1, -1))
    total, of_columns = as_is + negated, np.ones(len(stored))
    # Each row is one of the others: rows and columns add up to one.
    for _ in range(_BALANCED):
        of_rows = 1 / np.maximum(total @ of_columns, 1e-300)
        of_columns = 1 / np.maximum(of_rows @ total, 1e-300)
    both = of_rows[:, None] * of_columns
    return as_is * both, negated * both


if __name__ == "__main__":
    app.run(main)
