"""Searches γ and β channel by channel: annealing over measured moments."""

import itertools

import numpy as np

from keras_passport.attacks import fitting

# What a search tries of each channel: factors of γ, and shifts of β in parts
# of γ's usual size, which are halved from round to round.
FACTORS = (1.0, -1.0, 0.6, -0.6, 1.4, -1.4)
SHIFTS = (0.0, -0.4, 0.4, -0.8, 0.8, 1.2)
# Most candidates of all channels together.
CANDIDATES = 800
# An annealing's first and last temperature, and its steps; and how many of
# what it finds are worth fitting.
HEATS = (1000.0, 2.0, 400)
KEPT = 6


def searched(block, own, restarts, width, rng):
    """The best few combinations of candidates, channel by channel."""
    candidates, mirrored = _candidates(block, own, width)
    search = _Search(
        block,
        block.moments(candidates),
        np.stack([fitting.unlikely(block, some) for some in candidates]),
    )
    choices = [np.zeros(block.units, int)] + [
        rng.integers(0, len(candidates), block.units) for _ in range(restarts)
    ]
    found = dict(search.anneal(choice, rng) for choice in choices)
    # What a search starts from is fitted, too.
    best = [*sorted(found, key=found.get)[:KEPT], (0,) * block.units]
    # All signs at once are hard to tell: pictures and negatives look alike.
    best.append(search.anneal(mirrored[list(best[0])], rng)[0])
    channels = np.arange(block.units)
    for choice in dict.fromkeys(best):
        yield {
            path: tuple(
                np.stack([some[path][i] for some in candidates])[
                    list(choice), channels
                ]
                for i in (0, 1)
            )
            for path in block.group
        }


def _candidates(block, own, width):
    """Parameters that a search may take channel by channel; own ones first.

    Returns:
        Tuple of their list, and the numbers of those with γ negated.
    """
    roles = block.roles()
    scaled = [path for path, role in roles if role == "gamma"]
    shifted = [path for path, role in roles if role == "beta"]
    shifts = SHIFTS if shifted else (0.0,)
    # Fewer sizes, then fewer shifts, where channels are many.
    for factors in (FACTORS, FACTORS[:4], FACTORS[:2]):
        count = len(factors) ** len(scaled) * len(shifts)
        if count * block.units <= CANDIDATES:
            break
    else:
        shifts = (0.0,)
    changes = list(itertools.product(shifts, *[factors] * len(scaled)))
    made = []
    for shift, *some in changes:
        changed = dict(own)
        for path, factor in zip(scaled, some, strict=True):
            changed[path] = changed[path][0] * factor, changed[path][1]
        for path in shifted:
            gamma, beta = changed[path]
            changed[path] = gamma, beta + width * shift * block.usual
        made.append(changed)
    mirrored = [
        changes.index((shift, *(-factor for factor in some)))
        for shift, *some in changes
    ]
    return made, np.array(mirrored)


class _Search:
    """Anneals combinations of candidates, a candidate for each channel.

    Args:
        block: The `Block`.
        moments: Of all candidates, products included.
        unlikely: `(candidates, channels)` added to the cost.
    """

    def __init__(self, block, moments, unlikely):
        # Outputs last: a candidate's row is then one piece of memory.
        self._parts = [
            (first, np.ascontiguousarray(second.transpose(1, 2, 0)), reader)
            for (first, second), reader in zip(
                moments, block.readers, strict=True
            )
        ]
        self._unlikely = unlikely

    def anneal(self, choice, rng):
        """Changes one channel at a time.

        At random first, by the Boltzmann distribution over all changes, then
        the best change each time while there is a better one.

        Args:
            choice: Candidate of each channel, integers.
            rng: NumPy generator.

        Returns:
            Tuple of the choice reached, as a tuple, and its cost.
        """
        choice = np.array(choice)
        sums = self.sums(choice)
        for heat in np.geomspace(*HEATS):
            costs = self._costs(choice, sums)
            chances = np.exp((costs.min() - costs) / heat).ravel()
            drawn = rng.choice(costs.size, p=chances / chances.sum())
            candidate, channel = np.unravel_index(drawn, costs.shape)
            for some in sums:
                some.change(channel, choice[channel], candidate)
            choice[channel] = candidate
        cost = np.inf
        while True:
            costs = self._costs(choice, sums)
            candidate, channel = np.unravel_index(costs.argmin(), costs.shape)
            if costs[candidate, channel] >= cost - 1e-6 * abs(cost):
                return tuple(choice.tolist()), cost
            cost = costs[candidate, channel]
            for some in sums:
                some.change(channel, choice[channel], candidate)
            choice[channel] = candidate

    def sums(self, choice):
        """The `_Sums` of a choice, one of each reader."""
        return [
            _Sums(first, second, choice) for first, second, _ in self._parts
        ]

    def _costs(self, choice, sums):
        """Cost of each change of one channel, `(candidates, channels)`."""
        channels = np.arange(len(choice))
        costs = self._unlikely - self._unlikely[choice, channels]
        costs = costs + self._unlikely[choice, channels].sum()
        for (_, _, reader), some in zip(self._parts, sums, strict=True):
            for error in fitting.misfit(reader, *some.of_changes(choice)):
                costs = costs + np.einsum("kco,kco->kc", error, error)
        return costs


class _Sums:
    """Sums of moments over chosen candidates, kept as the choice changes.

    Args:
        first: First moments, `(candidates * channels, outputs)`.
        second: Second moments, `(candidates * channels, candidates * channels,
            outputs)`.
        choice: Candidate of each channel, integers.
    """

    def __init__(self, first, second, choice):
        self._units = len(choice)
        channels = np.arange(self._units)
        now = choice * self._units + channels
        outputs = first.shape[-1]
        by_channel = (-1, self._units, outputs)
        self._first, self._second = first, second
        self._mean = first[now].sum(axis=0)
        self._firsts = first.reshape(by_channel)
        diagonal = np.arange(len(first))
        self._own = second[diagonal, diagonal].reshape(by_channel)
        # With all that is chosen, and with what is chosen of its channel. In
        # double precision, lest changes pile up errors.
        self._rows = second[now].sum(axis=0, dtype="float64")
        self._rows = self._rows.reshape(by_channel)
        crossed = second.reshape(-1, self._units, *second.shape[1:])
        self._crossed = crossed[:, channels, now]

    def change(self, channel, old, new):
        """Takes another candidate for a channel."""
        old, new = (number * self._units + channel for number in (old, new))
        self._mean = self._mean + self._first[new] - self._first[old]
        for sign, number in ((1, new), (-1, old)):
            self._rows += sign * self._second[number].reshape(self._rows.shape)
        self._crossed[:, channel] = self._second[new].reshape(self._rows.shape)[
            :, channel
        ]

    def of_changes(self, choice):
        """Mean and square after each change of one channel.

        Returns:
            Tuple of two arrays `(candidates, channels, outputs)`.
        """
        at = choice, np.arange(self._units)
        power = self._rows[at].sum(axis=0)
        mean = self._mean - self._firsts[at] + self._firsts
        square = (
            (power - 2 * self._rows[at] + self._own[at])
            + 2 * (self._rows - self._crossed)
            + self._own
        )
        return mean, square
