"""Keys that are solved for: Wᵀ κ = γ in float64, with NumPy alone.

A kernel with n rows (the elements of a key) reaches n independent hidden
parameters. Where there are more output channels than that, or where filters
are nearly dependent, the channels are dealt out to groups with a key each.
"""

import dataclasses
import math

import numpy as np

# What keys in float32 may cost a hidden parameter, in parts of a layer's
# typical one.
TOLERANCE = 5e-7
# Output channels per row of a kernel, at most, to start with: square systems
# of trained kernels are hardly ever well-conditioned.
_FILL = 0.75
# Elements of a kernel that are taken in float64 at a time.
_PIECE = 2**22
# Of a system's mean eigenvalue: it keeps an exactly singular one solvable.
_RIDGE = 1e-13
# How often what solving left is solved for again, and up to what.
_ROUNDS = 5
_SOLVED = 1e-12


@dataclasses.dataclass(frozen=True)
class Solution:
    """The solved keys of one layer.

    Args:
        groups: Number of keys per role. Output channel c of a block belongs
            to group c % groups.
        keys: Dict from role to float32 array `(groups, blocks, rows)`.
        residual: Largest gap between Wᵀ κ and what was wanted in float64, in
            parts of the layer's typical value.
        error: The same once keys are rounded to float32.
    """

    groups: int
    keys: dict = dataclasses.field(repr=False)
    residual: float
    error: float


def solve(
    matrix: np.ndarray,
    wanted: dict,
    generator: np.random.Generator,
    probe: np.random.Generator,
    tolerance: float = TOLERANCE,
) -> Solution:
    """Keys κ_0 + the smallest change that gives hidden parameters.

    Args:
        matrix: The kernel as a linear map of keys, float array `(blocks,
            rows, units)`; see `KernelAdapter.matrix`. No column is zero.
        wanted: Dict from role to hidden parameters, float64 `(blocks,
            units)`.
        generator: Of κ_0: a secret.
        probe: Of other hidden parameters, by which the number of groups is
            chosen. It is published, and so must not follow from what is
            wanted.
        tolerance: See `TOLERANCE`.

    Returns:
        A `Solution`. Its error is larger than the tolerance only where a
        single channel's key already has it.
    """
    blocks, rows, units = matrix.shape
    sizes = np.sqrt(sum(np.sum(piece**2, 1) for _, piece in pieces(matrix)))
    signs = probe.choice((-1.0, 1.0), (2, *sizes.shape))
    probes = dict(zip(("gamma", "beta"), signs / sizes, strict=True))
    groups = min(units, math.ceil(units / (_FILL * rows)))
    while True:
        systems = [
            _System(matrix[:, :, at::groups], sizes[:, at::groups])
            for at in range(groups)
        ]
        tried = _solved(systems, sizes, probes, probe)
        if tried.error <= tolerance or groups == units:
            found = _solved(systems, sizes, wanted, generator)
            if found.error <= 10 * tolerance or groups == units:
                return found
        groups = min(units, 2 * groups)


def _solved(systems, sizes, wanted, generator) -> Solution:
    """Keys of all groups, and how far off they are."""
    roles, groups = list(wanted), len(systems)
    targets = np.stack([wanted[role] for role in roles], -1)
    # As unit filters meet it: how large a random key must be to give values
    # of the size that is wanted.
    typical = np.sqrt(np.mean((targets / sizes[..., None]) ** 2)) or 1.0
    scale = np.sqrt(np.mean((targets * sizes[..., None]) ** 2, (0, 1)))
    scale = np.maximum(scale, np.max(scale)) / sizes[..., None]
    scale[scale == 0] = 1.0
    keys, residual, error = [], 0.0, 0.0
    for at, system in enumerate(systems):
        start = generator.standard_normal((*system.shape, len(roles)))
        some, allowed = targets[:, at::groups], scale[:, at::groups]
        key, left = system.solve(some, typical * start)
        rounded = key.astype("float32")
        residual = max(residual, np.max(np.abs(left) / allowed))
        gap = np.abs(some - system.response(rounded))
        error = max(error, np.max(gap / allowed))
        keys.append(rounded)
    keys = np.stack(keys)
    return Solution(
        groups,
        {role: keys[..., i] for i, role in enumerate(roles)},
        float(residual),
        float(error),
    )


class _System:
    """One group's filters, and the inverse of their Gram matrix.

    Args:
        matrix: Float array `(blocks, rows, columns)`.
        sizes: Norms of the columns, float64 `(blocks, columns)`.
    """

    def __init__(self, matrix, sizes):
        self._matrix = matrix
        self._sizes = sizes[..., None]
        self.shape = matrix.shape[:2]
        gram = sum(
            np.matmul(piece.transpose(0, 2, 1), piece)
            for _, piece in pieces(matrix)
        )
        gram /= self._sizes * self._sizes.transpose(0, 2, 1)
        gram += _RIDGE * np.eye(gram.shape[-1])
        self._inverse = np.linalg.inv(gram)

    def solve(self, wanted, start):
        """The key nearest to `start`, and what its response lacks."""
        key = start
        for _ in range(_ROUNDS):
            left = wanted - self.response(key)
            if np.max(np.abs(left) * self._sizes) <= _SOLVED * np.max(
                np.abs(wanted) * self._sizes
            ):
                break
            change = np.matmul(self._inverse, left / self._sizes)
            key = key + self._spread(change / self._sizes)
        return key, wanted - self.response(key)

    def response(self, key):
        return sum(
            np.matmul(piece.transpose(0, 2, 1), key[:, rows])
            for rows, piece in pieces(self._matrix)
        )

    def _spread(self, values):
        parts = [np.matmul(part, values) for _, part in pieces(self._matrix)]
        return np.concatenate(parts, 1)


def pieces(matrix):
    """Yields slices of a matrix's rows and those rows in float64.

    Args:
        matrix: Float array `(blocks, rows, columns)`.
    """
    blocks, rows, columns = matrix.shape
    step = max(1, _PIECE // (blocks * columns))
    for at in range(0, rows, step):
        part = slice(at, at + step)
        yield part, matrix[:, part].astype("float64")
