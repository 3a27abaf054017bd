"""A layer's kernel as a linear map of keys: its range and its null space."""

import dataclasses
import math

import numpy as np

from keras_passport.layers import filters

# Singular values of a kernel below this part of its first are taken for zero:
# γ and β come in float32, and what is divided by less is rounding error.
RANK = 1e-6


@dataclasses.dataclass(frozen=True, eq=False)
class Space:
    """F(W, ·) of one layer, in float64.

    Args:
        matrix: As `filters.response_matrix` returns it.
        inverses: For each group of output channels, the pseudo-inverses of
            Wᵀ of each block of inputs: `(blocks, columns, rows)`.
        shape: Of a key, with a first axis for groups if there are several.
        rank: Of all groups together.
    """

    matrix: np.ndarray
    inverses: tuple[np.ndarray, ...]
    shape: tuple[int, ...]
    rank: int

    @property
    def units(self) -> int:
        """Number of output channels."""
        return self.matrix.shape[0] * self.matrix.shape[2]

    @property
    def freedom(self) -> int:
        """Dimensions of the null space."""
        return math.prod(self.shape) - self.rank

    def response(self, key: np.ndarray) -> np.ndarray:
        """γ or β of a key, `(channels,)`."""
        keys = np.asarray(key).reshape(len(self.inverses), -1, self.shape[-1])
        return filters.response(self.matrix, keys)

    def rounding(self, key: np.ndarray) -> float:
        """What float32 may change of a key's response, typically."""
        keys = np.asarray(key).reshape(len(self.inverses), -1, self.shape[-1])
        squares = filters.response(self.matrix**2, keys**2)
        return float(np.finfo("float32").eps * np.sqrt(np.mean(squares)))

    def solve(self, values: np.ndarray) -> np.ndarray:
        """The smallest key whose response comes closest to values."""
        groups, blocks = len(self.inverses), len(self.matrix)
        values = np.asarray(values).reshape(blocks, -1)
        parts = [
            np.einsum("bur,bu->br", inverse, values[:, group::groups])
            for group, inverse in enumerate(self.inverses)
        ]
        # A block's channels lie side by side in a key.
        width = self.shape[-1] // blocks
        parts = np.stack(parts).reshape(groups, blocks, -1, width)
        return parts.transpose(0, 2, 1, 3).reshape(self.shape)

    def null_part(self, key: np.ndarray) -> np.ndarray:
        """What of a key no response shows."""
        return np.asarray(key) - self.solve(self.response(key))


def of_layer(layer, order=None) -> Space:
    """The space of a protected layer.

    Args:
        layer: Built `PassportNormalization`.
        order: As for `filters.response_matrix`.
    """
    matrix = filters.response_matrix(layer, order)
    groups = layer.geometry.key_groups
    solved = [_inverse(matrix[:, :, group::groups]) for group in range(groups)]
    return Space(
        matrix,
        tuple(inverse for inverse, _ in solved),
        layer.geometry.key_shape,
        sum(rank for _, rank in solved),
    )


def _inverse(matrix):
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    kept = values > RANK * np.max(values, initial=0.0)
    scale = np.divide(1.0, values, out=np.zeros_like(values), where=kept)
    inverse = (right.transpose(0, 2, 1) * scale[:, None]) @ left.transpose(
        0, 2, 1
    )
    return inverse, int(kept.sum())
