"""Filters, and rows in a secret order, aligned with another network's."""

import keras
import numpy as np

from keras_passport import graph
from keras_passport.layers import kernels, row_order
from keras_passport.layers.channel_scale import ChannelScale
from keras_passport.layers.passport_normalization import PassportNormalization
from keras_passport.layers.protected import protected_layers
from keras_passport.models import protected_model, sites
from keras_passport.passports import functions
from keras_passport.passports.matching import match

# Part of a layer's filters that are negated where signs were scrambled.
_SCRAMBLED = 0.1
# What another kernel's rows may miss at most, of what its numbers
# miss in any order.
_BETTER = 0.85
# Rows of kernels that are matched by chances, at most: a number for each two.
_MOST = 4096
# Groups of filters, with an order each, by which it is seen whether rows fit.
_TRIED = 8
# Filters by which they are so matched, at most.
_FILTERS = 128
# Mean cosine of filters from which there is nothing to improve.
_SURE = 0.9
# Cosine of a filter with what it was trained from, as a guess; steps.
_LIKENESS = 0.55
_STEPS = 60
_BALANCED = 8
_TINY = 1e-30


def counterparts(model, other) -> dict:
    """Each protected layer's kernel layer in another network, and its γ."""
    available, owners = {}, {}
    protected = protected_layers(other)
    if protected:
        for path, layer in protected.items():
            available[path], owners[path] = layer.layer, layer
    else:
        plan = sites.Plan(other, functions.get("V3"), None, False)
        behind = {id(s.kernel): s.normalization for s in plan.sites.values()}
        # Kernels without a normalisation, too: exact models protect those.
        for path, layer in graph.walk(other):
            if kernels.adapter_for(layer) is not None and layer.built:
                available[path], owners[path] = layer, behind.get(id(layer))
    layers = {
        path: layer
        for path, layer in protected_layers(model).items()
        if not isinstance(layer.layer, ChannelScale)
    }
    names = {path: path for path in layers}
    if not layers.keys() <= available.keys():
        names = match(
            {path: layer.geometry for path, layer in layers.items()},
            {
                path: kernels.adapter_for(layer).geometry(layer)
                for path, layer in available.items()
            },
            "other network's",
        )
    return {
        path: (available[name], owners[name]) for path, name in names.items()
    }


def with_rows_of(model: keras.Model, ancestor: keras.Model) -> tuple:
    """A protected model whose rows have the places that an ancestor's have.

    Args:
        model: As for `relatives.known_ancestor`, and so is the next.
        ancestor: Whose kernels rows in a secret order are matched with.

    Returns:
        Tuple of a copy of what is public of the model, and a dict from the
        path of each layer whose rows are in a secret order to whether they
        fit the ancestor's; if not, they stay as they are stored.

    Example:

    >>> aligned, fits = kp.attacks.with_rows_of(model, base)
    """
    public, fits = protected_model.public(model), {}
    layers = protected_layers(public)
    for path, (kernel, own) in counterparts(public, ancestor).items():
        layer = layers[path]
        if layer.ordered and not isinstance(own, PassportNormalization):
            fits[path] = put_back(layer, kernel)
    return public, fits


def matched(ours: np.ndarray, theirs: np.ndarray) -> tuple:
    """Number of the other's filter for each, cosine with it, and size.

    Filters of the same number are each other's, unless others are clearly
    more alike: small ones change much when a kernel is made to give γ and β.

    Args:
        ours: Filters as rows, `(channels, numbers)`.
        theirs: Those of the other network, likewise.

    Returns:
        Tuple of three arrays `(channels,)`.
    """
    from scipy.optimize import linear_sum_assignment

    sizes, others = (
        np.maximum(np.linalg.norm(rows, axis=1), 1e-12)
        for rows in (ours, theirs)
    )
    cosines = (ours / sizes[:, None]) @ (theirs / others[:, None]).T
    rows, chosen = linear_sum_assignment(-np.abs(cosines))
    if len(ours) == len(theirs):
        same, best = (
            np.abs(cosines[rows, some]).sum() for some in (rows, chosen)
        )
        chosen = rows if same > 0.8 * best else chosen
    return chosen, cosines[rows, chosen], sizes / others[chosen]


def signs_of(cosines: np.ndarray, alike: float) -> np.ndarray:
    """Which filters are negated, by their cosines with the other's.

    What has changed much has the sign that it had, unless the others were
    negated at random: then its cosine tells more than that.

    Args:
        cosines: `(channels,)`.
        alike: What is sure of its sign.

    Returns:
        1 or -1 for each.
    """
    sure = np.abs(cosines) >= alike
    scrambled = np.any(sure) and np.mean(cosines[sure] < 0.0) > _SCRAMBLED
    return np.where(cosines < (0.0 if scrambled else -alike), -1.0, 1.0)


def put_back(layer, kernel) -> bool:
    """Gives stored rows the places and signs that another kernel's have.

    An order hides rows from who has never seen them, or what they were
    trained from: after a training kernels are still like those that they
    began as (a cosine of 0.5 to 0.8 in a ResNet-20 of ten epochs).

    Args:
        layer: Passport layer whose rows are in a secret order, of a copy that
            is the attacker's own: its kernels are changed.
        kernel: A kernel layer like it, of another network.

    Returns:
        Whether rows fit better than they would fit the same numbers in any
        order; if not, or if its kernel has another shape, they stay as they
        are stored.
    """
    adapter, rng, orders = layer.adapter, np.random.default_rng(0), []
    geometry = layer.geometry
    for stored, known, (_, groups) in zip(
        row_order.rows_of(adapter, layer.layer),
        row_order.rows_of(adapter, kernel),
        geometry.orders,
        strict=True,
    ):
        if stored.shape != known.shape:
            return False
        found, fits, chances = [], [], []
        for ours, theirs in zip(
            np.split(stored, groups, axis=1),
            np.split(known, groups, axis=1),
            strict=True,
        ):
            order, fit = fitted_order(ours, theirs)
            found.append(order)
            fits.append(fit)
            if len(chances) < _TRIED:
                shuffled = rng.permutation(theirs.ravel())
                shuffled = shuffled.reshape(theirs.shape)
                chances.append(fitted_order(ours, shuffled)[1])
            missed, chance = 1.0 - np.mean(fits), 1.0 - np.mean(chances)
            if len(fits) >= min(groups, _TRIED) and missed > _BETTER * chance:
                return False
        orders.append(np.stack(found, axis=1).ravel())
    order = np.concatenate(orders).astype("float32")
    for variable, value in row_order.gathered(
        adapter, layer.layer, order, geometry.row_groups
    ):
        variable.assign(value)
    return True


def fitted_order(stored: np.ndarray, known: np.ndarray) -> tuple:
    """The order in which rows are most like another kernel's.

    Which row is which, with which sign, and which filters were negated, are
    guessed together. Each is a chance at first, and all grow surer together
    (deterministic annealing): what filters' signs are says how like two rows
    are, and rows that are surely the same say what filters' signs are.

    Args:
        stored: Rows, `(rows, filters)`.
        known: Those of the other kernel, likewise.

    Returns:
        Tuple of the order, as `row_order` has it, `(rows,)`, and the mean
        cosine of filters then.
    """
    stored, known = (
        rows / np.maximum(np.linalg.norm(rows, axis=0), 1e-12)
        for rows in (stored, known)
    )
    # Angles between filters are what no order changes. The product of two
    # networks' is, but for noise, that of signs.
    alike = (stored.T @ stored) * (known.T @ known)
    np.fill_diagonal(alike, 0.0)
    first = np.linalg.eigh(alike)[1][:, -1]
    by_sizes = _signs_by_sizes(stored, known)
    found = _settled(stored, known, by_sizes)
    if found[1] >= _SURE or len(stored) > _MOST:
        return found
    for start in (first * np.sqrt(len(first)), by_sizes):
        signs = np.zeros(len(start))
        signs[:_FILTERS] = _annealed(
            stored[:, :_FILTERS], known[:, :_FILTERS], start[:_FILTERS]
        )
        found = max(
            found, _settled(stored, known, signs), key=lambda one: one[1]
        )
    return found


def _annealed(stored, known, signs):
    """Signs of filters, as sure as rows make them, `(filters,)`."""
    rows = len(stored)
    # Numbers of a deviation of 1, for the density of a normal distribution.
    stored, known = (
        (values * np.sqrt(rows)).astype("float32") for values in (stored, known)
    )
    signs = np.clip(signs, -1.0, 1.0).astype("float32")
    for step in range(_STEPS):
        done = step / _STEPS
        weight = _LIKENESS / (1.0 - _LIKENESS**2) * min(1.0, 0.15 + 1.2 * done)
        odds = weight * ((known * signs) @ stored.T)
        most = np.abs(odds).max()
        as_is, negated = np.exp(odds - most), np.exp(-odds - most)
        # Each row is one of the others: rows and columns add up to one.
        total, of_rows = as_is + negated, np.ones(rows, "float32")
        for _ in range(_BALANCED):
            of_columns = 1.0 / np.maximum(of_rows @ total, _TINY)
            of_rows = 1.0 / np.maximum(total @ of_columns, _TINY)
        sure = (as_is - negated) * of_rows[:, None] * of_columns
        pull = weight * np.sum((known.T @ sure) * stored.T, axis=1)
        signs = np.tanh(np.clip(pull * min(1.0, 0.05 + done), -20.0, 20.0))
    return signs


def _settled(stored, known, signs):
    """The best order for signs of filters, signs for it, and so on."""
    from scipy.optimize import linear_sum_assignment

    signs = np.sign(signs)
    for _ in range(_STEPS):
        cosines = (known * signs) @ stored.T
        rows, places = linear_sum_assignment(-np.abs(cosines))
        flips = np.where(cosines[rows, places] < 0, -1.0, 1.0)
        fits = np.sum(known * stored[places] * flips[:, None], axis=0)
        before, signs = signs, np.where(fits < 0, -1.0, 1.0)
        if np.array_equal(signs, before):
            break
    return flips * (places + 1), float(np.mean(np.abs(fits)))


def _signs_by_sizes(stored, known):
    """Signs of filters if rows of like numbers, in size, are the same."""
    from scipy.optimize import linear_sum_assignment

    sizes = [
        np.abs(rows) / np.maximum(np.linalg.norm(rows, axis=1), 1e-12)[:, None]
        for rows in (known, stored)
    ]
    _, places = linear_sum_assignment(-(sizes[0] @ sizes[1].T))
    # Products of matched numbers are s f w², of a row's sign and a filter's.
    products = known * stored[places]
    return np.sign(np.linalg.svd(products, full_matrices=False)[2][0])
