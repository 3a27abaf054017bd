"""Statistics matching: what published moments say of the layers before."""

import os
import time

import keras
import numpy as np

from keras_passport.attacks import annealing, fitting, training
from keras_passport.attacks.kept import Kept, fingerprint
from keras_passport.attacks.moments import Block, Flow
from keras_passport.attacks.opened import Opened, neutral
from keras_passport.attacks.options import check_counts
from keras_passport.attacks.result import AttackResult, plain
from keras_passport.errors import PassportError
from keras_passport.hints import Inputs
from keras_passport.models import protected_model

# How many of what a search finds are fitted for more than a few steps.
FITTED = 2
# A cost per equation that tells that a layer is solved: behind one that is
# lost, no search finds the truth, and it is tried once. Others are tried until
# two tries agree in what they cost, since one of four ends elsewhere, or as
# often as this.
SOLVED = 1.5
AGREED = 1.1
TRIES = 4
# How often γ's size is set anew, and over how many draws of its signs.
_SIZINGS, _DRAWS = 3, 6


def statistics_matching(
    model: keras.Model,
    images: Inputs,
    test: tuple,
    *,
    start: dict | None = None,
    restarts: int = 40,
    rounds: int = 3,
    directory: str | os.PathLike | None = None,
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
        images: The attacker's pictures, as for `match_statistics`.
        test: The judge's inputs and labels, for the accuracy reported.
        start: Where γ and β start, as for `match_statistics`.
        restarts: Random signs that each search starts from, besides `start`.
        rounds: Searches and fits in turn, per layer.
        directory: Folder in which to keep what was found, layer by layer.
        seed: Of the restarts.
        keep_model: Whether the result holds the attacked model.
        progress: Whether to show a progress bar over the layers.

    Returns:
        An `AttackResult` with one trial. `history[0]["parameters"]` is a dict
        that `reverse_engineering` takes as its `start`;
        `history[0]["blocks"]` says which layers were solved together, by
        which layers' statistics, and the cost left per equation (about 1
        where all is found).

    Raises:
        PassportError: If the model is not protected, has nested models, or
            calls a protected layer more than once.
        ValueError: If the directory is another attack's.

    Example:

    >>> result = kp.attacks.statistics_matching(
    ...     model, images, test, restarts=1, rounds=1
    ... )
    >>> start = result.history[0]["parameters"]
    >>> trained = kp.attacks.reverse_engineering(
    ...     model, data, test, start=start, recipe=kp.attacks.Recipe(epochs=1)
    ... )
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
                "parameters": plain(parameters),
            },
        ),
        model=opened.plain() if keep_model else None,
    )


def match_statistics(
    model: keras.Model,
    images: Inputs,
    *,
    start: dict | None = None,
    restarts: int = 40,
    rounds: int = 3,
    directory: str | os.PathLike | None = None,
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
            of pictures as the training showed them: augment them as it did.
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
        PassportError: If the model is not protected, has nested models, or
            calls a protected layer more than once.
        ValueError: If the directory is another attack's.

    Example:

    >>> parameters, blocks = kp.attacks.match_statistics(
    ...     model, images, restarts=1, rounds=1
    ... )
    >>> sorted(parameters)
    ['conv1', 'conv2']
    """
    check_counts(1, restarts=restarts, rounds=rounds)
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
                "parameters": plain(own),
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
            fitting.fitted(block, some, steps=2)
            for some in annealing.searched(
                block, own, restarts, 0.5**number, rng
            )
        ]
        begun.sort(key=lambda pair: pair[1])
        tried = [fitting.fitted(block, some) for some, _ in begun[:FITTED]]
        own, cost = min(tried, key=lambda pair: pair[1])
        if best is not None and cost > 0.98 * best[1]:
            break
        best = own, cost
    own, cost = min([best, (own, cost)], key=lambda pair: pair[1])
    return own, cost / block.equations


def _sized(block, own, rng):
    """γ and β as large as the readers' variances say, whatever the signs.

    Training leaves γ at a third of where it starts, and steps that fit it
    from there would not converge. Sets the block's usual size of γ.
    """
    roles = block.roles()
    for _ in range(_SIZINGS):
        ratios = []
        for _ in range(_DRAWS):
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


def usual_sizes(model: keras.Model, images) -> dict[str, float]:
    """How large γ is on average in each layer, by the published statistics.

    Who keeps published statistics and starts from γ = 1 starts elsewhere than
    the network ended: training leaves γ at a third of that, and outputs that
    are three times too large behind each layer are lost soon.

    Args:
        model: Protected functional model; what is public of it is used alone.
        images: Some inputs; a few dozen are enough.

    Returns:
        Dict from path to a size; layers that nothing published constrains
        have the median of the others. Empty if nothing is published, or
        the model is none that `match_statistics` takes.
    """
    public = protected_model.public(model)
    parameters, sizes = neutral(public), {}
    try:
        flow = Flow(public)
    except PassportError:
        return {}
    known = flow.inputs(images)
    rng = np.random.default_rng(0)
    for group, readers in flow.blocks():
        block = Block(flow, group, readers, known)
        own = {path: _pair(parameters[path]) for path in group}
        if block.readers and block.roles():
            own = _sized(block, own, rng)
            sizes.update(
                {path: float(np.mean(np.abs(own[path][0]))) for path in group}
            )
        known.update(block.outputs(own))
    if sizes:
        usual = float(np.median([*sizes.values()]))
        sizes = {path: sizes.get(path, usual) for path in flow.layers}
    return sizes


def _pair(values):
    return tuple(np.asarray(value, "float64") for value in values)


def _count(arrays):
    return len(keras.tree.flatten(arrays)[0])
