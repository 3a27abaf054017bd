"""Keys that are solved for: Wᵀ κ = γ in float64, with NumPy alone.

A kernel with n rows (the elements of a key) reaches n independent hidden
parameters. Where there are more output channels than that, or where filters
are nearly dependent, the channels are dealt out to groups with a key each.
"""

import dataclasses
import math

import numpy as np
import scipy.linalg

# What keys in float32 may cost a hidden parameter, in parts of a layer's
# typical one.
TOLERANCE = 5e-7
# Output channels per row of a kernel, at most, to start with: square systems
# of trained kernels are hardly ever well-conditioned.
_FILL = 0.75
# Elements of a kernel that are taken in float64 at a time.
_PIECE = 2**20
# How far β may go beyond both what γ gives and the least of all β before it is
# taken for one that switches channels off (a class whose bias is -1e9).
_BEYOND = 10.0
_LEAST = 0.01
_EPSILON = 2.0**-24
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
            parts of the layer's typical value; of what is far beyond that, in
            parts of itself.
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
            wanted, but where that alone is out of keys' reach: it then says
            that the layer switches channels off.
        tolerance: See `TOLERANCE`.

    Returns:
        A `Solution`. Its error is larger than the tolerance only where a
        single channel's key already has it.
    """
    _, rows, units = matrix.shape
    sizes = np.sqrt(sum(np.sum(piece**2, 1) for _, piece in pieces(matrix)))
    signs = probe.choice((-1.0, 1.0), (*sizes.shape, len(wanted)))
    probes = signs / sizes[..., None]
    targets = np.stack(list(wanted.values()), -1)
    # Both in one go: what takes time is to read the kernel.
    sought = np.concatenate([probes, targets], -1)
    # A random key's elements, and what γ or β does to outputs, typically.
    by_role = [role == "beta" for role in wanted]
    widths, typical = (
        np.concatenate(
            [typically(probes * by, by_role), typically(targets * by, by_role)]
        )
        for by in (1.0 / sizes[..., None], sizes[..., None])
    )
    groups = min(units, math.ceil(units / (_FILL * rows)))
    while True:
        keys, residuals, errors = [], [], []
        for at in range(groups):
            part = slice(at, None, groups)
            system = _System(matrix[:, :, part], sizes[:, part])
            start = np.concatenate(
                [
                    one.standard_normal((*system.shape, len(wanted)))
                    for one in (probe, generator)
                ],
                -1,
            )
            # Of what lies far beyond the others, in parts of itself.
            allowed = np.maximum(
                typical / sizes[:, part, None],
                np.abs(sought[:, part]) / _BEYOND,
            )
            key, left = system.solve(sought[:, part], start * widths)
            residuals.append(np.max(np.abs(left) / allowed, (0, 1)))
            key = key.astype("float32")
            left = sought[:, part] - system.response(key)
            # A call rounds, too, whatever the rounded keys happen to give.
            widest = np.sqrt(np.mean(np.square(key, dtype="float64"), 1))
            rounding = _EPSILON * widest[:, None] * sizes[:, part, None]
            left = np.maximum(np.abs(left), rounding)
            errors.append(np.max(left / allowed, (0, 1)))
            keys.append(key[..., len(wanted) :])
        probed, error = np.split(np.max(errors, 0), 2)
        if groups == units or (
            np.max(probed) <= tolerance and np.max(error) <= 10 * tolerance
        ):
            break
        groups = min(units, 2 * groups)
    keys = np.stack(keys)
    return Solution(
        groups,
        {role: keys[..., i] for i, role in enumerate(wanted)},
        float(np.max(np.max(residuals, 0)[len(wanted) :])),
        float(np.max(error)),
    )


def typically(values: np.ndarray, are_shifts: list[bool]) -> np.ndarray:
    """How large a layer's γ or β are; of the smaller role, the larger one's.

    A root mean square, unless some β are far beyond all else: those that
    switch their channels off say nothing of how exact the others must be, and
    no key of their size, in float32, would give the others.

    Args:
        values: Float64 `(blocks, units, roles)`.
        are_shifts: For each role whether it is β.

    Returns:
        Array `(roles,)`.
    """
    rms = np.sqrt(np.mean(values**2, (0, 1)))
    least = np.quantile(np.abs(values), _LEAST, (0, 1), method="lower")
    scale = np.max(np.where(are_shifts, 0.0, rms))
    bound = _BEYOND * np.maximum(least, scale)
    rms = np.where(are_shifts & (bound > 0.0), np.minimum(rms, bound), rms)
    return np.full(rms.shape, np.max(rms) or 1.0)


class _System:
    """One group's filters, and what solves for them.

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
        self._solve = _solver(gram)

    def solve(self, wanted, start):
        """The keys nearest to `start`, and what their responses lack."""
        keys, bound = start, _SOLVED * np.max(np.abs(wanted) * self._sizes)
        left = wanted - self.response(keys)
        for _ in range(_ROUNDS):
            if np.max(np.abs(left) * self._sizes) <= bound:
                break
            change = self._solve(left / self._sizes)
            keys = keys + self._spread(change / self._sizes)
            left = wanted - self.response(keys)
        return keys, left

    def response(self, keys):
        """Wᵀ κ in float64."""
        return sum(
            np.matmul(piece.transpose(0, 2, 1), keys[:, rows])
            for rows, piece in pieces(self._matrix)
        )

    def _spread(self, values):
        parts = [np.matmul(part, values) for _, part in pieces(self._matrix)]
        return np.concatenate(parts, 1)


def _solver(gram):
    """What solves for right-hand sides, with as little ridge as it takes."""
    ridge, one = _RIDGE, np.eye(gram.shape[-1])
    while True:
        try:
            if len(gram) > 1:  # many small ones
                inverse = np.linalg.inv(gram + ridge * one)
                return lambda values: np.matmul(inverse, values)
            factor = scipy.linalg.cho_factor(
                gram[0] + ridge * one, check_finite=False
            )
            return lambda values: scipy.linalg.cho_solve(
                factor, values[0], check_finite=False
            )[None]
        except np.linalg.LinAlgError:
            ridge *= 100.0


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
