"""Statistics matching: what published moments say of the layers before."""

import dataclasses
import itertools
import time

import keras
import numpy as np

from keras_passport.attacks import training
from keras_passport.attacks.kept import Kept, fingerprint
from keras_passport.attacks.moments import Block, Flow
from keras_passport.attacks.opened import Opened, neutral
from keras_passport.attacks.result import AttackResult
from keras_passport.models import protected_model

# What an attacker expects: errors of a mean (in standard deviations) and of a
# variance's logarithm by a single picture, as on CIFAR-10 with the true γ and
# β; and how γ and β spread, in parts of γ's usual size.
NOISE = (0.25, 0.6)
SPREAD = (0.5, 0.5)
# What a search tries of each channel: factors of γ, and shifts of β in parts
# of γ's usual size, which are halved from round to round.
FACTORS = (1.0, -1.0, 0.6, -0.6, 1.4, -1.4)
SHIFTS = (0.0, -0.4, 0.4, -0.8, 0.8, 1.2)
# Most candidates of all channels together.
CANDIDATES = 800
# An annealing's first and last temperature, and its steps; and how many of
# what a search finds are fitted for a few steps, and for more.
HEATS = (1000.0, 2.0, 400)
KEPT = 6
FITTED = 2
# A cost per equation that tells that a layer is solved: behind one that is
# lost, no search finds the truth, and it is tried once. Others are tried until
# two tries agree in what they cost, since one of four ends elsewhere, or as
# often as this.
SOLVED = 1.5
AGREED = 1.1
TRIES = 4


def statistics_matching(
    model: keras.Model,
    images,
    test: tuple,
    *,
    start: dict | None = None,
    restarts: int = 40,
    rounds: int = 3,
    directory=None,
    seed: int = 0,
    keep_model: bool = False,
    progress: bool = False,
) -> AttackResult:
    """Finds γ and β by the published statistics of the layers behind them.

    No label is used. What no statistics constrain, the layers before the
    classifier, keeps `start`, so it is a start for `reverse_engineering`
    rather than an attack of its own.

    Args:
        model: Protected classifier with one output; what is public of it is
            used alone.
        images: As for `match_statistics`.
        test: The judge's inputs and labels, for the accuracy reported.
        start: As for `match_statistics`.
        restarts: Likewise.
        rounds: Likewise.
        directory: Likewise.
        seed: Likewise.
        keep_model: Whether the result holds the attacked model.
        progress: As for `match_statistics`.

    Returns:
        An `AttackResult` with one trial. `history[0]["parameters"]` is a dict
        that `reverse_engineering` takes as its `start`;
        `history[0]["blocks"]` says which layers were solved together, by
        which layers' statistics, and the cost left per equation (about 1
        where all is found).

    Raises:
        PassportError: If the model is not protected, or has nested models.
        ValueError: If the directory is another attack's.

    Example:

    >>> found = statistics_matching(model, x, test).history[0]["parameters"]
    >>> reverse_engineering(model, (x[:20], y[:20]), test, start=found)
    """
    public = protected_model.public(model)
    parameters, blocks = match_statistics(
        public,
        images,
        start=start,
        restarts=restarts,
        rounds=rounds,
        directory=directory,
        seed=seed,
        progress=progress,
    )
    opened = Opened(public, parameters)
    accuracy, entropy = training.judge(opened, test)
    return AttackResult(
        name="statistics matching",
        accuracies=(accuracy,),
        entropies=(entropy,),
        knowledge={
            "labels": False,
            "images": _count(images),
            "statistics": "published",
            "start": "neutral" if start is None else "given",
        },
        budget={
            "images": _count(images),
            "epochs": 0,
            "trials": 1,
            "restarts": restarts,
            "rounds": rounds,
            "seed": seed,
        },
        # Those of an attack that was ended and gone on with, too.
        seconds=sum(block["seconds"] for block in blocks),
        history=(
            {
                "blocks": blocks,
                "parameters": _plain(parameters),
            },
        ),
        model=opened.plain() if keep_model else None,
    )


def match_statistics(
    model: keras.Model,
    images,
    *,
    start: dict | None = None,
    restarts: int = 40,
    rounds: int = 3,
    directory=None,
    seed: int = 0,
    progress: bool = False,
) -> tuple[dict, list[dict]]:
    """Solves for γ and β that make pictures have the published statistics.

    A batch normalisation publishes the mean μ_n and variance σ²_n of what its
    kernel w makes of the activations a before it, and those are functions,
    channel by channel, of the γ_c and β_c that made them:

        μ_n = Σ_c E[w_nc * a_c],  σ²_n = Σ_cd Cov(w_nc * a_c, w_nd * a_d)

    Moments of all pairs of channels, each with several γ_c and β_c (both
    signs among them), are measured once; with them, the moments of any
    combination are a sum. So signs are searched for by annealing from many
    starts, without the network; sizes are then fitted by damped Gauss-Newton
    steps. Layers are solved in the graph's order, those that
    meet in one addition together.

    Args:
        model: Protected functional model; what is public of it is used alone.
        images: The attacker's pictures, float array `(examples, ...)` or a
            dict for several inputs; some hundreds are enough. Statistics are
            of pictures as the training showed them: augment them likewise.
        start: Dict from path to γ and β, float arrays `(channels,)`, to
            start from. Defaults to 1 and 0, with V1's β and V2's γ as
            published.
        restarts: Random signs that each search starts from, besides `start`.
        rounds: Searches and fits in turn, per layer.
        directory: Folder in which to keep what was found, layer by layer: an
            attack that was ended goes on from there. Defaults to none.
        seed: Of the restarts.
        progress: Whether to show a progress bar over the layers, with the
            cost left per equation.

    Returns:
        Tuple of a dict from path to γ and β, and a list of dicts as in
        `statistics_matching`.

    Raises:
        PassportError: If the model is not protected, or has nested models.
        ValueError: If the directory is another attack's.

    Example:

    >>> parameters, blocks = match_statistics(model, x[:500])
    """
    public = protected_model.public(model)
    flow = Flow(public)
    parameters = neutral(public) if start is None else dict(start)
    known = flow.inputs(images)
    kept = Kept(
        directory,
        {
            "restarts": restarts,
            "rounds": rounds,
            "seed": seed,
            "model": fingerprint(public.get_weights()),
            "images": fingerprint(known.values()),
            "start": fingerprint(
                np.stack(_pair(own)) for own in parameters.values()
            ),
        },
    )
    blocks, lost = [], False
    bar = None
    if progress:
        bar = keras.utils.Progbar(
            len(flow.layers), stateful_metrics=["cost"], unit_name="layer"
        )
    for number, (group, readers) in enumerate(flow.blocks()):
        began = time.monotonic()
        block = Block(flow, group, readers, known)

        def solve(block=block, number=number, lost=lost, began=began):
            own = {path: _pair(parameters[path]) for path in block.group}
            # Draws are a layer's own, so that those before it may be kept.
            rng = np.random.default_rng([seed, number])
            tries = 1 if lost else TRIES
            own, cost = _solved(block, own, restarts, rounds, tries, rng)
            return {
                "parameters": _plain(own),
                "cost": cost,
                "seconds": time.monotonic() - began,
            }

        cost, seconds = None, 0.0
        if block.readers:
            found = kept.reach(str(number), solve)
            parameters.update(
                {path: _pair(own) for path, own in found["parameters"].items()}
            )
            cost, seconds = found["cost"], found["seconds"]
            lost = lost or cost > SOLVED
        blocks.append(
            {
                "layers": list(group),
                "readers": [reader.path for reader in block.readers],
                "equations": block.equations,
                "cost": cost,
                "seconds": seconds,
            }
        )
        if readers:
            known.update(block.outputs(parameters))
        if bar:
            bar.add(len(group), [] if cost is None else [("cost", cost)])
    return parameters, blocks


def _solved(block, own, restarts, rounds, tries, rng):
    """The best γ and β of some tries, and their cost per equation."""
    found = []
    for _ in range(tries):
        found.append(_tried(block, own, restarts, rounds, rng))
        found.sort(key=lambda pair: pair[1])
        if len(found) > 1 and found[1][1] < AGREED * found[0][1]:
            break
    return found[0]


def _tried(block, own, restarts, rounds, rng):
    """Searches and fits in turn; returns γ and β, and cost per equation."""
    own, best = _sized(block, own, rng), None
    for number in range(rounds):
        # A few steps tell which are worth the rest.
        begun = [
            _fitted(block, some, steps=2)
            for some in _searched(block, own, restarts, 0.5**number, rng)
        ]
        begun.sort(key=lambda pair: pair[1])
        tried = [_fitted(block, some) for some, _ in begun[:FITTED]]
        own, cost = min(tried, key=lambda pair: pair[1])
        if best is not None and cost > 0.98 * best[1]:
            break
        best = own, cost
    own, cost = min([best, (own, cost)], key=lambda pair: pair[1])
    return own, cost / block.equations


def _sized(block, own, rng, rounds=3, draws=6):
    """γ and β as large as the readers' variances say, whatever the signs.

    Training leaves γ at a third of where it starts, and steps that fit it
    from there would not converge. Sets the block's usual size of γ.
    """
    roles = block.roles()
    for _ in range(rounds):
        ratios = []
        for _ in range(draws):
            drawn = dict(own)
            for path, role in roles:
                if role == "gamma":
                    gamma, beta = own[path]
                    signs = rng.choice([-1.0, 1.0], block.units)
                    drawn[path] = gamma * signs, beta
            moments = block.moments([drawn], products=False)
            for (first, second), reader in zip(
                moments, block.readers, strict=True
            ):
                square = second.sum(axis=-1)
                variance = square - first.sum(axis=0) ** 2
                ratios.append(reader.variance / np.maximum(variance, 1e-12))
        factor = np.sqrt(np.median(np.concatenate(ratios)))
        for path, role in roles:
            i = 0 if role == "gamma" else 1
            changed = list(own[path])
            changed[i] = changed[i] * factor
            own = {**own, path: tuple(changed)}
    sizes = [np.mean(np.abs(gamma)) for gamma, _ in own.values()]
    block.usual = float(np.mean(sizes))
    return own


def _searched(block, own, restarts, width, rng):
    """The best few combinations of candidates, channel by channel."""
    candidates, mirrored = _candidates(block, own, width)
    search = _Search(
        block,
        block.moments(candidates),
        np.stack([_unlikely(block, some) for some in candidates]),
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


def _unlikely(block, own):
    """What an attacker would not expect of γ and β, per channel."""
    total = np.zeros(block.units)
    for _, _, gap, spread in _expected(block, own):
        total += (gap / spread) ** 2
    return total


def _expected(block, own):
    """Path, role, distance from what is expected, and its spread."""
    size = block.usual
    for path, role in block.roles():
        gamma, beta = own[path]
        if role == "gamma":
            gap = gamma - np.where(gamma < 0, -size, size)
            yield path, 0, gap, SPREAD[0] * size
        else:
            yield path, 1, beta, SPREAD[1] * size


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
            for error in _misfit(reader, *some.of_changes(choice)):
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


def _misfit(reader, mean, square):
    """Errors of means, and of variances, by what is usual."""
    variance = np.maximum(square - mean**2, 1e-3 * reader.variance)
    of_mean, of_variance = np.array(NOISE) / np.sqrt(reader.pictures)
    return (
        (mean - reader.mean) * (1 / np.sqrt(reader.variance) / of_mean),
        np.log(variance / reader.variance) * (1 / of_variance),
    )


def _fitted(block, own, steps=8):
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


def _linearized(block, own, epsilon=0.02):
    units = block.units
    epsilon = epsilon * block.usual
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
        error = np.stack(_misfit(reader, mean, square))
        first, second = (
            value.reshape(-1, units, value.shape[-1])
            for value in (first, second)
        )
        moved_mean = mean + (first[1:] - first[:1])
        moved_square = square + 2 * (second[1:] - second[:1])
        moved = np.stack(_misfit(reader, moved_mean, moved_square))
        slope = (moved - error[:, None, None]) / epsilon
        errors.append(error.ravel())
        slopes.append(np.moveaxis(slope, 0, 2).reshape(units * len(varied), -1))
    expected = list(_expected(block, own))
    return _Linear(
        own,
        np.concatenate(errors),
        np.concatenate(slopes, axis=1),
        np.concatenate([part[2] for part in expected]),
        np.repeat([part[3] for part in expected], units),
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


def _pair(values):
    return tuple(np.asarray(value, "float64") for value in values)


def _plain(parameters):
    return {
        path: [np.asarray(value).tolist() for value in pair]
        for path, pair in parameters.items()
    }


def _count(arrays):
    return len(keras.tree.flatten(arrays)[0])
