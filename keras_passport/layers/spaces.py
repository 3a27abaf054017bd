"""A layer's kernel as a linear map of keys: its range and its null space."""

import dataclasses
import math

import numpy as np

from keras_passport.layers.filters import response_matrix

# Singular values of a kernel below this part of its first are taken for zero:
# γ and β come in float32, and what is divided by less is rounding error.
RANK = 1e-6


@dataclasses.dataclass(frozen=True, eq=False)
class Space:
    """F(W, ·) of one layer, in float64.

    Args:
        matrices: For each group of output channels, Wᵀ of each block of
            inputs: `(blocks, rows, columns)`.
        inverses: Their pseudo-inverses, `(blocks, columns, rows)`.
        shape: Of a key, with a first axis for groups if there are several.
        rank: Of all together.
    """

    matrices: tuple[np.ndarray, ...]
    inverses: tuple[np.ndarray, ...]
    shape: tuple[int, ...]
    rank: int

    @property
    def units(self) -> int:
        """Number of output channels."""
        return sum(m.shape[0] * m.shape[2] for m in self.matrices)

    @property
    def freedom(self) -> int:
        """Dimensions of the null space."""
        return math.prod(self.shape) - self.rank

    def response(self, key: np.ndarray) -> np.ndarray:
        """γ or β of a key, `(channels,)`."""
        blocks = len(self.matrices[0])
        values = np.empty((blocks, self.units // blocks))
        for group, (part, matrix) in enumerate(
            zip(self._split(key), self.matrices, strict=True)
        ):
            values[:, group :: len(self.matrices)] = np.einsum(
                "br,bru->bu", part, matrix
            )
        return values.reshape(-1)

    def solve(self, values: np.ndarray) -> np.ndarray:
        """The smallest key whose response comes closest to values."""
        values = np.asarray(values).reshape(len(self.matrices[0]), -1)
        return self._joined(
            [
                np.einsum(
                    "bur,bu->br", inverse, values[:, g :: len(self.matrices)]
                )
                for g, inverse in enumerate(self.inverses)
            ]
        )

    def null_part(self, key: np.ndarray) -> np.ndarray:
        """What of a key no response shows."""
        return np.asarray(key) - self.solve(self.response(key))

    def _split(self, key):
        """Parts of a key by group: `(groups, blocks, rows)`."""
        groups, blocks = len(self.matrices), len(self.matrices[0])
        key = np.asarray(key, "float64").reshape(
            groups, -1, blocks, self._width
        )
        return key.transpose(0, 2, 1, 3).reshape(groups, blocks, -1)

    def _joined(self, parts):
        groups, blocks = len(self.matrices), len(self.matrices[0])
        parts = np.stack(parts).reshape(groups, blocks, -1, self._width)
        return parts.transpose(0, 2, 1, 3).reshape(self.shape)

    @property
    def _width(self):
        return self.shape[-1] // len(self.matrices[0])


def of_layer(layer) -> Space:
    """The space of a protected layer.

    Args:
        layer: Built `PassportNormalization`.
    """
    whole = response_matrix(layer)
    groups = layer.geometry.key_groups
    matrices = tuple(whole[:, :, group::groups] for group in range(groups))
    solved = [_inverse(matrix) for matrix in matrices]
    return Space(
        matrices,
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
