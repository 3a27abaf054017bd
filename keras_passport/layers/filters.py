"""Kernels as matrices of filters, and what a filter's asymmetry tells."""

import dataclasses
import math

import numpy as np
from keras import ops

from keras_passport.layers import row_order, scopes

# Rows of a key matrix that meet a kernel at once.
ROWS = 1024
# Of a regression's weights, so that a few filters say no more than they know;
# and its Newton steps.
RIDGE = 1.0
STEPS = 30
# Quantiles that are added to those as far from the other end.
_QUANTILES = (0.02, 0.1, 0.25, 0.5)


def response_matrix(layer, order=None) -> np.ndarray:
    """A protected layer's linear map from keys to hidden parameters.

    Args:
        layer: Built `PassportNormalization`.
        order: Of its rows, as a passport has it, where keys meet those in
            their own order; without, they are taken as they are stored.

    Returns:
        float64 array `(blocks, rows, columns)`: groups of input channels
        (`KernelAdapter.blocks`) have no number in common, so they are
        systems of their own. A block's rows are its part of the key in C
        order.
    """
    kernels = []
    if layer.gathered and order is not None:
        given = order, layer.row_groups
        kernels = row_order.gathered(layer.adapter, layer.layer, *given)
    with scopes.Substitution(kernels):
        return kernel_matrix(layer.adapter, layer.layer)


def kernel_matrix(adapter, layer) -> np.ndarray:
    """The same of a kernel layer alone, protected or not.

    Args:
        adapter: Its `KernelAdapter`.
        layer: A built kernel layer.
    """
    shape = adapter.key_shape(layer)
    blocks = adapter.blocks(layer)
    width = shape[-1] // blocks
    rows = math.prod(shape[:-1]) * width
    responses = []
    for at in range(0, rows, ROWS):
        ones = np.eye(min(ROWS, rows - at), rows, at, "float32")
        keys = np.tile(ones.reshape(-1, *shape[:-1], width), (blocks,))
        response = adapter.response(layer, keys)
        responses.append(ops.convert_to_numpy(response))
    matrix = np.concatenate(responses).astype("float64")
    return matrix.reshape(rows, blocks, -1).transpose(1, 0, 2)


def responses(matrix: np.ndarray, keys: np.ndarray):
    """Yields F of each group's channels, `(blocks, columns)` in float64.

    Args:
        matrix: As `response_matrix` returns it.
        keys: Of one role, float array `(groups, *filter_shape)`.
    """
    blocks, rows, _ = matrix.shape
    for group, key in enumerate(keys):
        parts = key.astype("float64").reshape(
            -1, blocks, key.shape[-1] // blocks
        )
        parts = parts.transpose(1, 0, 2).reshape(blocks, 1, rows)
        yield np.matmul(parts, matrix[:, :, group :: len(keys)])[:, 0]


def response(matrix: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """F of all channels, float64 `(channels,)`; see `responses`."""
    values = np.empty((len(matrix), matrix.shape[-1]))
    for group, of_group in enumerate(responses(matrix, keys)):
        values[:, group :: len(keys)] = of_group
    return values.reshape(-1)


def odd_statistics(adapter, layer) -> np.ndarray:
    """What changes its sign with a filter: sums, skewness, extremes.

    Trained filters are not symmetric. Seen with the sign that γ gives them,
    about two thirds have a negative sum of weights and a positive skewness,
    so these statistics say more than nothing of the sign of γ.

    Args:
        adapter: A `KernelAdapter`.
        layer: Its built kernel layer.

    Returns:
        float64 array `(channels, statistics)`, of filters of unit size.
    """
    matrix = kernel_matrix(adapter, layer)
    channels = adapter.key_shape(layer)[-1] // len(matrix)
    # Filters as rows: (filters, window, channels).
    filters = np.moveaxis(matrix, 1, 2).reshape(-1, matrix.shape[1])
    size = np.sqrt(np.mean(filters**2, axis=1, keepdims=True))
    filters = filters / np.maximum(size, 1e-12)
    window = filters.reshape(len(filters), -1, channels)
    by_channel, by_tap = window.mean(axis=1), window.mean(axis=2)
    middle = by_tap.shape[1] // 2
    return np.stack(
        [
            filters.mean(axis=1),
            np.mean(filters**3, axis=1),
            np.mean(filters * np.abs(filters), axis=1),
            *_ends(filters),
            by_tap[:, middle],
            by_tap.mean(axis=1) - by_tap[:, middle],
            np.mean(by_channel**3, axis=1),
            *_ends(by_channel),
            np.mean(by_tap**3, axis=1),
        ],
        axis=1,
    )


@dataclasses.dataclass(frozen=True)
class SignRegression:
    """A logistic regression of signs on odd statistics, without an offset.

    A filter and its γ can be negated together, so the chance of a negative
    γ must be that of a positive one with the filter negated: only statistics
    that change their sign with the filter count, and there is no offset.

    Args:
        weights: Of the statistics of `odd_statistics`, float64.
        scale: What they are divided by first, float64.
    """

    weights: np.ndarray
    scale: np.ndarray

    @classmethod
    def fit(cls, rows: np.ndarray) -> "SignRegression":
        """Learns from filters with the sign that γ gives them.

        Args:
            rows: Statistics times signs, `(filters, statistics)`.
        """
        scale = np.sqrt(np.mean(rows**2, axis=0)) + 1e-12
        rows = rows / scale
        weights = np.zeros(rows.shape[1])
        for _ in range(STEPS):
            chance = 1 / (1 + np.exp(-rows @ weights))
            slope = rows.T @ (1 - chance) - RIDGE * weights
            bend = (rows * (chance * (1 - chance))[:, None]).T @ rows
            bend += RIDGE * np.eye(len(weights))
            step = np.linalg.solve(bend, slope)
            weights = weights + step
            if np.max(np.abs(step)) < 1e-8:
                break
        return cls(weights, scale)

    def chances(self, statistics: np.ndarray) -> np.ndarray:
        """The chance that each γ is positive, float64 `(filters,)`.

        Args:
            statistics: Of filters as they are, `(filters, statistics)`.
        """
        return 1 / (1 + np.exp(-(statistics / self.scale) @ self.weights))


def _ends(values):
    """Extremes and quantiles of rows, each with that of the other end."""
    yield values.max(axis=1) + values.min(axis=1)
    for quantile in _QUANTILES:
        low, high = np.quantile(values, (quantile, 1 - quantile), axis=1)
        yield low + high
