"""Statistics matching: what published moments say of the layers before."""

import dataclasses
import itertools
import time

import keras
import numpy as np
from keras import ops

from keras_passport import graph, models, normalization
from keras_passport.attacks import training
from keras_passport.attacks.opened import Opened, neutral
from keras_passport.attacks.result import AttackResult
from keras_passport.errors import PassportError

# What an attacker expects: errors of a mean (in standard deviations) and of a
# variance's logarithm, and how sizes of γ and β spread about 1 and 0.
NOISE = (0.03, 0.06)
SPREAD = (0.5, 0.3)
# What a search tries of each channel: factors of γ, and shifts of β, which
# are halved from round to round.
FACTORS = (1.0, -1.0, 0.7, -0.7)
SHIFTS = (0.0, -0.3, 0.3, -0.15, 0.15)
# Most candidates of all channels together, and numbers in one array.
CANDIDATES = 700
CHUNK = 2**24
# An annealing's first and last temperature, and its steps; and how many of
# what a search finds are fitted.
HEATS = (100.0, 2.0, 200)
KEPT = 6


def statistics_matching(
    model: keras.Model,
    images,
    test: tuple,
    *,
    start: dict | None = None,
    restarts: int = 40,
    rounds: int = 3,
    seed: int = 0,
    keep_model: bool = False,
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
        seed: Likewise.
        keep_model: Whether the result holds the attacked model.

    Returns:
        An `AttackResult` with one trial. `history[0]["parameters"]` is a dict
        that `reverse_engineering` takes as its `start`;
        `history[0]["blocks"]` says which layers were solved together, by
        which layers' statistics, and the cost left per equation (about 1
        where all is found).

    Raises:
        PassportError: If the model is not protected, or has nested models.

    Example:

    >>> found = statistics_matching(model, x, test).history[0]["parameters"]
    >>> reverse_engineering(model, (x[:20], y[:20]), test, start=found)
    """
    began = time.monotonic()
    public = models.public(model)
    parameters, blocks = match_statistics(
        public,
        images,
        start=start,
        restarts=restarts,
        rounds=rounds,
        seed=seed,
    )
    opened = Opened(public, parameters)
    seconds = time.monotonic() - began
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
        seconds=seconds,
        history=(
            {
                "blocks": blocks,
                "parameters": {
                    path: [np.asarray(value).tolist() for value in pair]
                    for path, pair in parameters.items()
                },
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
    seed: int = 0,
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
            dict for several inputs; some hundreds are enough.
        start: Dict from path to γ and β, float arrays `(channels,)`, to
            start from. Defaults to 1 and 0, with V1's β and V2's γ as
            published.
        restarts: Random signs that each search starts from, besides `start`.
        rounds: Searches and fits in turn, per layer.
        seed: Of the restarts.

    Returns:
        Tuple of a dict from path to γ and β, and a list of dicts as in
        `statistics_matching`.

    Raises:
        PassportError: If the model is not protected, or has nested models.

    Example:

    >>> parameters, blocks = match_statistics(model, x[:500])
    """
    public = models.public(model)
    flow = _Flow(public)
    parameters = neutral(public) if start is None else dict(start)
    rng = np.random.default_rng(seed)
    known = flow.inputs(images)
    blocks = []
    for group, readers in flow.blocks():
        block = _Block(flow, group, readers, known)
        cost, equations = None, 0
        if block.readers:
            own = {path: _pair(parameters[path]) for path in group}
            own, cost, equations = _solved(block, own, restarts, rounds, rng)
            parameters.update(own)
        blocks.append(
            {
                "layers": list(group),
                "readers": [reader.path for reader in block.readers],
                "equations": equations,
                "cost": cost,
            }
        )
        if readers:
            known.update(block.outputs(parameters))
    return parameters, blocks


class _Flow:
    """Which protected layers feed which, and parts of the graph to run."""

    def __init__(self, model):
        if any(graph.is_model(layer) for _, layer in graph.walk(model)):
            raise PassportError(
                "Expected a model without nested models, whose graph can be "
                f"followed. Received: '{model.name}'"
            )
        self._functional = graph.functional_of(model)
        self.graph = graph.Graph(model)
        self.layers = models.protected_layers(model)
        self.nodes = {
            path: self.graph.calls[id(layer)][0]
            for path, layer in self.layers.items()
        }
        paths = {id(node): path for path, node in self.nodes.items()}
        self._sources = {
            path: self._feeding(node, paths)
            for path, node in self.nodes.items()
        }

    def _feeding(self, node, paths):
        """Paths of the protected layers that feed a call without others."""
        found, pending, seen = set(), list(node.input_tensors), set()
        while pending:
            tensor = pending.pop()
            producer = self.graph.maker(tensor)
            if producer is None or id(producer) in seen:
                continue
            seen.add(id(producer))
            if id(producer) in paths:
                found.add(paths[id(producer)])
            else:
                pending.extend(producer.input_tensors)
        return found

    def blocks(self):
        """Layers to solve for together, and those whose inputs they make."""
        solved = set()
        for sources in [*self._sources.values(), set(self.layers)]:
            new = sources - solved
            solved |= new
            if new:
                yield (
                    [path for path in self.layers if path in new],
                    [
                        path
                        for path, some in self._sources.items()
                        if some & new and some <= solved
                    ],
                )

    def inputs(self, images) -> dict:
        """The model's inputs, by their tensors' ids."""
        given = keras.tree.flatten(images)
        return {
            id(tensor): np.asarray(array, "float32")
            for tensor, array in zip(
                self._functional.inputs, given, strict=True
            )
        }

    def entering(self, path, known):
        """What enters a protected layer."""
        return self.graph.value(self.nodes[path].input_tensors[0], known)


@dataclasses.dataclass
class _Reader:
    """A layer whose published statistics are equations, and these."""

    path: str
    mean: np.ndarray  # Without the kernel layer's bias.
    variance: np.ndarray
    live: np.ndarray  # Of channels that vary.


class _Block:
    """Protected layers that are solved for together.

    Args:
        flow: The model's `_Flow`.
        group: Their paths.
        readers: Paths of layers that read what they, and known ones, make.
        known: Dict from tensors' ids to arrays over all pictures.
    """

    def __init__(self, flow, group, readers, known):
        self._flow, self._known = flow, known
        self.group = group
        self._count = _count(known)
        layers = [flow.layers[path] for path in group]
        self.units = layers[0].adapter.units(layers[0].layer)
        self._normalized = {path: self._normalize(path) for path in group}
        found = [self._reader(path) for path in readers]
        self.readers = [reader for reader in found if reader is not None]

    def roles(self):
        """What is unknown: pairs of path and role.

        Behind an addition, only the sum of its layers' β counts.
        """
        pairs = [
            (path, role)
            for path in self.group
            for role in self._flow.layers[path].function.roles
        ]
        shifts = [pair for pair in pairs if pair[1] == "beta"]
        return [pair for pair in pairs if pair not in shifts[1:]]

    def _parts(self, size):
        for at in range(0, self._count, size):
            part = slice(at, at + size)
            yield part, {i: array[part] for i, array in self._known.items()}

    def _normalize(self, path):
        """A layer's normalised outputs, by the pictures' own moments."""
        layer = self._flow.layers[path]
        outputs = []
        for _, known in self._parts(256):
            output = layer.layer(self._flow.entering(path, known))
            for part in layer.between:
                output = part(output)
            outputs.append(ops.convert_to_numpy(output))
        outputs = np.concatenate(outputs)
        axis = normalization.channel_axis(layer.normalization, outputs.ndim)
        axes = tuple(i for i in range(outputs.ndim) if i != axis)
        mean, variance = (
            moment(outputs, axis=axes, keepdims=True)
            for moment in (np.mean, np.var)
        )
        epsilon = layer.normalization.epsilon
        return (outputs - mean) / np.sqrt(variance + epsilon)

    def outputs(self, parameters, part=slice(None)) -> dict:
        """What the layers make of γ and β, by tensors' ids."""
        made = {}
        for path in self.group:
            layer, values = self._flow.layers[path], self._normalized[path]
            axis = normalization.channel_axis(layer.normalization, values.ndim)
            gamma, beta = (
                _along(value, axis, values.ndim) for value in parameters[path]
            )
            output = ops.convert_to_tensor(
                values[part] * gamma + beta, "float32"
            )
            tensor = self._flow.nodes[path].outputs[0]
            made[id(tensor)] = ops.convert_to_numpy(layer.activation(output))
        return made

    def _reader(self, path):
        """The equations that a layer gives, if it does."""
        layer = self._flow.layers[path]
        if (
            not isinstance(layer.normalization, keras.layers.BatchNormalization)
            or layer.between
            or getattr(layer.layer, "activation", None)
            not in (None, keras.activations.linear)
            or not self._is_channelwise(path)
        ):
            return None
        mean, variance = (
            ops.convert_to_numpy(value).astype("float64")
            for value in (
                layer.normalization.moving_mean,
                layer.normalization.moving_variance,
            )
        )
        if not np.any(mean) and np.ptp(variance) == 0.0:
            # Hidden (`kp.hide_statistics`), or never estimated.
            return None
        bias = getattr(layer.layer, "bias", None)
        if bias is not None:
            mean = mean - ops.convert_to_numpy(bias)
        live = variance > 1e-6 * np.max(variance)
        return _Reader(path, mean[live], variance[live], live)

    def _is_channelwise(self, path):
        """Whether each channel of a layer's input is one of the group's."""
        layer = self._flow.layers[path]
        if layer.adapter.channels(layer.layer) != self.units:
            return False
        odd = np.arange(self.units) % 2 == 1
        entering = []
        for signs in (1.0, -1.0, np.where(odd, -1.0, 1.0)):
            some = np.full(self.units, 0.1) * signs
            pair = (np.ones(self.units) * signs, some)
            _, known = next(self._parts(4))
            known.update(
                self.outputs({p: pair for p in self.group}, slice(0, 4))
            )
            value = ops.convert_to_numpy(self._flow.entering(path, known))
            entering.append(value)
        axis = layer.adapter.channel_axis(layer.layer)
        chosen = _along(odd, axis, value.ndim)
        return np.array_equal(
            entering[2], np.where(chosen, entering[1], entering[0])
        )

    def moments(self, candidates, products=True):
        """Moments of what each channel adds to each reader's outputs.

        Args:
            candidates: List of parameters of the group; channel c under
                candidate k is number k·C + c.
            products: Whether of all pairs; else of each and the sum over all
                channels under the first candidate.

        Returns:
            Per reader, first moments `(k·C, outputs)`, and second moments
            `(outputs, k·C, k·C)` or `(outputs, k·C)`.
        """
        totals = [[0.0, 0.0, 0] for _ in self.readers]
        at, size = 0, 4
        while at < self._count:
            part = slice(at, min(at + size, self._count))
            entering = [self._entering(some, part) for some in candidates]
            for i, reader in enumerate(self.readers):
                added = np.concatenate(
                    [self._added(reader, arrays[i]) for arrays in entering],
                    axis=1,
                )
                other = added
                if not products:
                    other = added[:, : self.units].sum(axis=1, keepdims=True)
                total = totals[i]
                total[0] += added.sum(axis=-1, dtype="float64").T
                total[1] += added @ other.transpose(0, 2, 1)
                total[2] += added.shape[-1]
            at, size = (
                part.stop,
                max(4, min(256, CHUNK * (part.stop - at) // added.size)),
            )
        return [
            (first / count, (second if products else second[..., 0]) / count)
            for first, second, count in totals
        ]

    def _entering(self, parameters, part):
        """What enters the readers under parameters of the group."""
        known = {i: array[part] for i, array in self._known.items()}
        known.update(self.outputs(parameters, part))
        return [
            ops.convert_to_numpy(self._flow.entering(reader.path, known))
            for reader in self.readers
        ]

    def _added(self, reader, array):
        """What each channel alone adds: `(outputs, channels, positions)`."""
        layer = self._flow.layers[reader.path]
        axis = layer.adapter.channel_axis(layer.layer) % array.ndim
        alone = np.stack(
            [
                array * _along(row, axis, array.ndim)
                for row in np.eye(self.units, dtype="float32")
            ]
        )
        outputs = ops.convert_to_numpy(
            layer.layer(alone.reshape(-1, *array.shape[1:]))
        )
        bias = getattr(layer.layer, "bias", None)
        outputs = np.moveaxis(outputs, axis, -1)[..., reader.live]
        if bias is not None:
            outputs = outputs - ops.convert_to_numpy(bias)[reader.live]
        outputs = outputs.reshape(self.units, -1, outputs.shape[-1])
        return outputs.transpose(2, 0, 1)


def _solved(block, own, restarts, rounds, rng):
    """Searches and fits in turn; returns γ and β, cost and equations."""
    best = None
    for number in range(rounds):
        tried = []
        for some in _searched(block, own, restarts, 0.5**number, rng):
            tried.append(_fitted(block, some))
        own, cost = min(tried, key=lambda pair: pair[1])
        if best is not None and cost > 0.98 * best[1]:
            break
        best = own, cost
    equations = 2 * sum(len(reader.mean) for reader in block.readers)
    own, cost = min([best, (own, cost)], key=lambda pair: pair[1])
    return own, cost / equations, equations


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
    for factors in (FACTORS, FACTORS[:2]):
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
            changed[path] = gamma, beta + width * shift
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
    for path, role in block.roles():
        gamma, beta = own[path]
        if role == "gamma":
            yield path, 0, gamma - np.where(gamma < 0, -1.0, 1.0), SPREAD[0]
        else:
            yield path, 1, beta, SPREAD[1]


class _Search:
    """Anneals combinations of candidates, a candidate for each channel.

    Args:
        block: The `_Block`.
        moments: Of all candidates, products included.
        unlikely: `(candidates, channels)` added to the cost.
    """

    def __init__(self, block, moments, unlikely):
        self._parts = [
            (first, second, np.diagonal(second, axis1=1, axis2=2), reader)
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
        for heat in np.geomspace(*HEATS):
            costs = self._costs(choice)
            chances = np.exp((costs.min() - costs) / heat).ravel()
            drawn = rng.choice(costs.size, p=chances / chances.sum())
            candidate, channel = np.unravel_index(drawn, costs.shape)
            choice[channel] = candidate
        cost = np.inf
        while True:
            costs = self._costs(choice)
            candidate, channel = np.unravel_index(costs.argmin(), costs.shape)
            if costs[candidate, channel] >= cost - 1e-6 * abs(cost):
                return tuple(choice.tolist()), cost
            cost = costs[candidate, channel]
            choice[channel] = candidate

    def _costs(self, choice):
        """Cost of each change of one channel, `(candidates, channels)`."""
        count, units = self._unlikely.shape
        channels = np.arange(units)
        now = choice * units + channels
        costs = self._unlikely - self._unlikely[choice, channels]
        costs = costs + self._unlikely[choice, channels].sum()
        for first, second, own, reader in self._parts:
            rows = second[:, now].sum(axis=1)
            power = rows[:, now].sum(axis=1)
            crossed = second.reshape(len(rows), count, units, -1)
            crossed = crossed[:, :, channels, now]
            mean = first[now].sum(axis=0) - first[now]
            mean = mean + first.reshape(count, units, -1)
            square = (
                (power[:, None] - 2 * rows[:, now] + own[:, now])[:, None]
                + 2 * (rows.reshape(-1, count, units) - crossed)
                + own.reshape(-1, count, units)
            )
            misfit = _misfit(reader, mean, square.transpose(1, 2, 0))
            costs = costs + np.sum(misfit**2, axis=(0, -1))
        return costs


def _misfit(reader, mean, square):
    """Errors of means and variances `(2, ..., outputs)`, by what is usual."""
    variance = np.maximum(square - mean**2, 1e-3 * reader.variance)
    return np.stack(
        [
            (mean - reader.mean) / np.sqrt(reader.variance) / NOISE[0],
            np.log(variance / reader.variance) / NOISE[1],
        ]
    )


def _fitted(block, own, steps=4, epsilon=0.02):
    """Damped Gauss-Newton steps; returns γ and β, and their cost."""
    roles, units = block.roles(), block.units
    best, damping = (None, np.inf), 1.0
    for step in range(steps + 1):
        varied = []
        for path, role in roles if step < steps else ():
            changed = list(own[path])
            changed[role == "beta"] = changed[role == "beta"] + epsilon
            varied.append({**own, path: tuple(changed)})
        errors, slopes = [], []
        moments = block.moments([own, *varied], products=False)
        for (first, second), reader in zip(moments, block.readers, strict=True):
            second = second.T
            mean = first[:units].sum(axis=0)
            square = second[:units].sum(axis=0)
            errors.append(_misfit(reader, mean, square))
            first, second = (
                value.reshape(-1, units, value.shape[-1])
                for value in (first, second)
            )
            moved_mean = mean + (first[1:] - first[:1])
            moved_square = square + 2 * (second[1:] - second[:1])
            slopes.append(
                (
                    _misfit(reader, moved_mean, moved_square)
                    - errors[-1][:, None, None]
                )
                / epsilon
            )
        error = np.concatenate([some.ravel() for some in errors])
        expected = list(_expected(block, own))
        gap = np.concatenate([part[2] for part in expected])
        spread = np.repeat([part[3] for part in expected], units)
        cost = float(error @ error + np.sum((gap / spread) ** 2))
        if cost < best[1]:
            best, damping = (own, cost), damping / 3
        else:
            return best
        if step == steps:
            return best
        slope = np.concatenate(
            [np.moveaxis(s, 0, 2).reshape(len(gap), -1) for s in slopes], axis=1
        )
        change = np.linalg.solve(
            slope @ slope.T + np.diag((1 + damping) / spread**2),
            -(slope @ error + gap / spread**2),
        )
        change = np.clip(change, -0.5, 0.5).reshape(-1, units)
        own = dict(own)
        for (path, role), some in zip(roles, change, strict=True):
            changed = list(own[path])
            changed[role == "beta"] = changed[role == "beta"] + some
            own[path] = tuple(changed)
    return best


def _pair(values):
    return tuple(np.asarray(value, "float64") for value in values)


def _along(values, axis, rank):
    """Values of channels in a shape that broadcasts over an array."""
    shape = [1] * rank
    shape[axis] = -1
    return np.asarray(values).reshape(shape)


def _count(arrays):
    return len(keras.tree.flatten(arrays)[0])
