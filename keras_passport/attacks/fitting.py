"""Fits γ and β to published statistics: damped Gauss-Newton steps."""

import dataclasses

import numpy as np

# What an attacker expects: errors of a mean (in standard deviations) and of a
# variance's logarithm by a single picture, as on CIFAR-10 with the true γ and
# β; and how γ and β spread, in parts of γ's usual size.
NOISE = (0.25, 0.6)
SPREAD = (0.5, 0.5)
# Over which slopes are taken, in parts of γ's usual size.
_STEP = 0.02


def fitted(block, own, steps=8):
    """Damped Gauss-Newton steps; returns γ and β, and their cost."""
    best, damping = None, 1.0
    for step in range(steps + 1):
        tried = _linearized(block, own)
        if best is None or tried.cost < best.cost:
            done = best is not None and tried.cost > 0.99 * best.cost
            best, damping = tried, damping / 3
            if done:
                break
        else:
            damping *= 9
        if step < steps:
            own = _stepped(block, best, damping)
    return best.own, best.cost


def misfit(reader, mean, square):
    """Errors of means, and of variances, by what is usual."""
    variance = np.maximum(square - mean**2, 1e-3 * reader.variance)
    of_mean, of_variance = np.array(NOISE) / np.sqrt(reader.pictures)
    return (
        (mean - reader.mean) * (1 / np.sqrt(reader.variance) / of_mean),
        np.log(variance / reader.variance) * (1 / of_variance),
    )


def unlikely(block, own):
    """What an attacker would not expect of γ and β, per channel."""
    total = np.zeros(block.units)
    for _, _, gap, spread in expected(block, own):
        total += (gap / spread) ** 2
    return total


def expected(block, own):
    """Path, role, distance from what is expected, and its spread."""
    size = block.usual
    for path, role in block.roles():
        gamma, beta = own[path]
        if role == "gamma":
            gap = gamma - np.where(gamma < 0, -size, size)
            yield path, 0, gap, SPREAD[0] * size
        else:
            yield path, 1, beta, SPREAD[1] * size


@dataclasses.dataclass
class _Linear:
    """Errors of γ and β, with their derivatives."""

    own: dict
    error: np.ndarray  # Of all readers' means and variances.
    slope: np.ndarray  # `(parameters, errors)`
    gap: np.ndarray  # Of parameters, from what is expected.
    spread: np.ndarray

    @property
    def cost(self) -> float:
        gap = self.gap / self.spread
        return float(self.error @ self.error + gap @ gap)


def _linearized(block, own):
    units = block.units
    epsilon = _STEP * block.usual
    varied = []
    for path, role in block.roles():
        changed = list(own[path])
        changed[role == "beta"] = changed[role == "beta"] + epsilon
        varied.append({**own, path: tuple(changed)})
    errors, slopes = [], []
    moments = block.moments([own, *varied], products=False)
    for (first, second), reader in zip(moments, block.readers, strict=True):
        second = second.T
        mean = first[:units].sum(axis=0)
        square = second[:units].sum(axis=0)
        error = np.stack(misfit(reader, mean, square))
        first, second = (
            value.reshape(-1, units, value.shape[-1])
            for value in (first, second)
        )
        moved_mean = mean + (first[1:] - first[:1])
        moved_square = square + 2 * (second[1:] - second[:1])
        moved = np.stack(misfit(reader, moved_mean, moved_square))
        slope = (moved - error[:, None, None]) / epsilon
        errors.append(error.ravel())
        slopes.append(np.moveaxis(slope, 0, 2).reshape(units * len(varied), -1))
    known = list(expected(block, own))
    return _Linear(
        own,
        np.concatenate(errors),
        np.concatenate(slopes, axis=1),
        np.concatenate([part[2] for part in known]),
        np.repeat([part[3] for part in known], units),
    )


def _stepped(block, at, damping):
    """γ and β after a step from where they were linearised."""
    change = np.linalg.solve(
        at.slope @ at.slope.T + np.diag((1 + damping) / at.spread**2),
        -(at.slope @ at.error + at.gap / at.spread**2),
    )
    most = 0.5 * block.usual
    change = np.clip(change, -most, most).reshape(-1, block.units)
    own = dict(at.own)
    for (path, role), some in zip(block.roles(), change, strict=True):
        changed = list(own[path])
        changed[role == "beta"] = changed[role == "beta"] + some
        own[path] = tuple(changed)
    return own
