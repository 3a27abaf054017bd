"""Relatives of a network: a public ancestor, or another version of it.

What a passport hides must not have been public before. Who has the checkpoint
that a protected network was trained on from, or two versions that differ by a
change along the keys, has γ and β without any passport.
"""

import dataclasses
import time
from typing import Any

import keras
import numpy as np
import scipy.linalg
from keras import ops

from keras_passport import graph
from keras_passport.attacks import (
    aligning,
    labelled,
    reverse,
    spectral,
    training,
)
from keras_passport.attacks.opened import Opened, neutral
from keras_passport.attacks.options import TrainingOptions, check_counts
from keras_passport.attacks.recipe import Recipe
from keras_passport.attacks.result import AttackResult, packed, plain
from keras_passport.errors import PassportError
from keras_passport.layers import folding, kernels, normalization
from keras_passport.layers.filters import kernel_matrix, response_matrix
from keras_passport.layers.passport_normalization import PassportNormalization
from keras_passport.layers.protected import protected_layers
from keras_passport.models import protected_model, protecting

# Layers whose filters are less alike than this, by the median, are strangers;
# filters that are so tell no sign.
ALIKE = 0.5
# Directions of a difference that are less than this part of its first are
# rounding errors.
ROUNDING = 1e-5
# What is left beside the directions of a plane that is one.
CLEAR = 0.1


def known_ancestor(
    model: keras.Model,
    ancestor: keras.Model,
    test: tuple,
    *,
    keep_model: bool = False,
) -> AttackResult:
    """Takes γ, β and statistics from the network that this one came from.

    A network that was protected by training on from public weights has
    filters that are still like those. Each protected filter is matched with
    the ancestor's that it is most like, by the cosine of its weights, up to
    its sign and size: with W_c ≈ s r W_a (s = ±1, r > 0), and means without
    the kernels' biases,

        γ_c = s γ_a,  β_c = β_a,  μ_c = s r μ_a,  σ_c = r σ_a.

    Filters may have changed places, as long as those that they read have not;
    rows in a secret order (`protect_trained`) are put back where filters have
    their places.

    Args:
        model: Protected classifier with one output; what is public of it is
            used alone.
        ancestor: Plain Keras network with normalisations in the same places,
            such as a public checkpoint.
        test: The judge's inputs and labels, for the accuracy reported.
        keep_model: Whether the result holds the attacked model.

    Returns:
        An `AttackResult` with one trial. `history[0]["parameters"]` is a dict
        that other attacks take as their `start`; `history[0]["alike"]` has
        each layer's median cosine. Where they are strangers, γ is 1 and β is 0.

    Raises:
        PassportError: If the model is not protected, or the ancestor has no
            layer for one of the model's.

    Example:

    >>> found = kp.attacks.known_ancestor(model, base, test)
    >>> start = found.history[0]["parameters"]

    Reference:

    - Zhang et al.: No Privacy Left Outside: On the (In-)Security of
      TEE-Shielded DNN Partition for On-Device ML, S&P 2024.
    """
    began = time.monotonic()
    public, fits = aligning.with_rows_of(model, ancestor)
    parameters, alike = neutral(public), {}
    for path, (kernel, own) in aligning.counterparts(public, ancestor).items():
        layer = protected_layers(public)[path]
        ours, theirs = (_filters(layer), _filters_of(kernel))
        if ours.shape[1] != theirs.shape[1] or len(theirs) < len(ours):
            alike[path] = 0.0  # As a classifier for other classes.
            continue
        chosen, cosines, sizes = aligning.matched(ours, theirs)
        alike[path] = float(np.median(np.abs(cosines)))
        found = fits.get(path, alike[path] >= ALIKE)
        parameters[path] = _taken(
            layer, kernel, own, parameters[path], chosen, cosines, sizes, found
        )
    opened = Opened(public, parameters)
    return _result(
        "known ancestor",
        training.answers(opened, test),
        began,
        history=(
            {
                "alike": alike,
                "parameters": plain(parameters),
            },
        ),
        model=opened.plain() if keep_model else None,
    )


def difference(
    model: keras.Model,
    other: keras.Model,
    data: tuple,
    test: tuple,
    options: TrainingOptions | None = None,
    **changes: Any,
) -> AttackResult:
    """Finds the plane of the keys in the difference of two versions.

    What changes a kernel only along its keys, as `calibrate(like=...)` and
    `hide_statistics` do, leaves a difference W - W' = κ̃_γ a + κ̃_β b of rank
    two: its two left singular vectors span the plane of the keys, and so γ
    and β are two combinations of what the kernel makes of those. Four numbers
    a layer are left, and few labels tell them; a public network's own γ and β
    tell them by themselves, as far as they are still those. Rows that every
    few filters store in an order of their own leave such a plane for each few,
    and half of all numbers.

    Args:
        model: Protected classifier with one output; what is public of it is
            used alone.
        other: Another version: the public network that it was made of, a
            release of before its statistics were hidden, or of before an
            update; protected or not.
        data: The attacker's inputs and integer labels.
        test: The judge's inputs and labels, for the accuracy reported.
        options: As for `spectral`.
        **changes: Fields of `options` by name.

    Returns:
        An `AttackResult`; the attacker's validation chooses the trial. Each
        trial's `history` has `parameters`, a dict that `reverse_engineering`
        takes as its `start`.

    Raises:
        ValueError: If an argument is out of range.
        PassportError: If the model is not protected, the other one has no
            layer for one of its, or they don't differ.

    Example:

    >>> before = kp.public(kp.bind(model, passport))
    >>> model = kp.calibrate(kp.bind(model, passport))
    >>> result = kp.attacks.difference(
    ...     model, before, data, test, recipe=kp.attacks.Recipe(epochs=1)
    ... )
    """
    options = TrainingOptions.of(
        options,
        changes,
        unused=("start", "statistics"),
        recipe=Recipe(epochs=30, batch_size=32, learning_rate=0.1),
        restarts=3,
    )
    public = protected_model.public(model)
    result = spectral.along(
        "difference of versions",
        public,
        difference_directions(public, other),
        labelled.share(data, options.fraction, options.seed),
        test,
        options,
        None if protected_layers(other) else _adopted(public, other)[1],
    )
    return dataclasses.replace(
        result, knowledge={**result.knowledge, "versions": 2}
    )


def ancestor_alone(
    model: keras.Model, ancestor: keras.Model, test: tuple
) -> AttackResult:
    """What an ancestor says by itself: a control of `known_ancestor`.

    Args:
        model: Protected classifier, of which the architecture is used; where
            the ancestor has no like layer, its weights are untrained ones.
        ancestor: As for `known_ancestor`.
        test: The judge's inputs and labels.

    Returns:
        An `AttackResult`.

    Raises:
        PassportError: As `known_ancestor` raises it.

    Example:

    >>> control = kp.attacks.ancestor_alone(model, base, test)
    """
    began = time.monotonic()
    answers = training.answers(Opened(*_adopted(model, ancestor)), test)
    return _result("ancestor alone", answers, began)


def _result(name, answers, began, **more) -> AttackResult:
    """What the ancestor tells without a label."""
    right, entropy = answers
    return AttackResult(
        name=name,
        accuracies=(float(np.mean(right)),),
        entropies=(entropy,),
        knowledge={"labels": False, "images": 0, "ancestor": True},
        budget={"images": 0, "epochs": 0, "trials": 1},
        seconds=time.monotonic() - began,
        right=packed(right),
        **more,
    )


def ancestor_fine_tuned(
    model: keras.Model,
    ancestor: keras.Model,
    data: tuple,
    test: tuple,
    options: TrainingOptions | None = None,
    **changes: Any,
) -> AttackResult:
    """Trains an ancestor on the attacker's data: what that gives by itself.

    It is what attackers who have the ancestor could do without the protected
    network, of which nothing but the architecture is used.

    Args:
        model: As for `ancestor_alone`.
        ancestor: As for `known_ancestor`.
        data: The attacker's inputs and integer labels.
        test: The judge's inputs and labels, for the accuracy reported.
        options: As for `fine_tuning`, but that `start` means nothing here.
        **changes: Fields of `options` by name.

    Returns:
        An `AttackResult`; the attacker's validation chooses the trial.

    Raises:
        PassportError: As `known_ancestor` raises it.

    Example:

    >>> control = kp.attacks.ancestor_fine_tuned(
    ...     model, base, data, test, recipe=kp.attacks.Recipe(epochs=1)
    ... )
    """
    options = TrainingOptions.of(
        options, changes, unused=("start",), recipe=Recipe()
    )
    adopted, parameters = _adopted(model, ancestor, options.seed)
    result = reverse.restarted(
        "ancestor, fine-tuned",
        reverse.Opener(adopted, data=data, kernels=True),
        data,
        test,
        dataclasses.replace(options, start=parameters),
    )
    return dataclasses.replace(
        result, knowledge={**result.knowledge, "ancestor": True}
    )


def _adopted(model, ancestor, seed=0) -> tuple:
    """A protected model with the weights of another network; γ and β.

    What the other network does not have is untrained.
    """
    public = protecting.reinitialize(protected_model.public(model), seed)
    parameters = neutral(public)
    protected = protected_layers(public)
    for path, (kernel, owner) in aligning.counterparts(
        public, ancestor
    ).items():
        layer = protected[path]
        if _filters(layer).shape != _filters_of(kernel).shape:
            continue
        _copy_weights(kernel, layer.layer)
        theirs = owner
        if isinstance(owner, PassportNormalization):
            theirs = owner.normalization
        if isinstance(theirs, keras.layers.BatchNormalization):
            for name in ("moving_mean", "moving_variance"):
                value = ops.convert_to_numpy(getattr(theirs, name))
                getattr(layer.normalization, name).assign(value)
        parameters[path] = tuple(
            own if variable is None else ops.convert_to_numpy(variable)
            for variable, own in zip(
                _affine(kernel, owner), parameters[path], strict=True
            )
        )
    others = dict(graph.walk(ancestor))
    for path, layer in graph.walk(public, stop=(PassportNormalization,)):
        if path in others and path not in protected:
            _copy_weights(others[path], layer)
    return public, parameters


def _copy_weights(source, target):
    """Copies a layer's weights, if they are those of a layer like it."""
    shapes = [
        [tuple(weight.shape) for weight in layer.weights]
        for layer in (source, target)
    ]
    if shapes[0] == shapes[1] and not graph.children(target):
        target.set_weights(source.get_weights())


def difference_directions(
    model: keras.Model, other: keras.Model, rank: int = 2
) -> dict:
    """What a kernel makes of the directions in which two versions differ.

    Args:
        model: Protected model.
        other: Another version, protected or not.
        rank: How many directions, at most: one for each role.

    Returns:
        Dict from path to an orthonormal basis, float64 `(vectors, channels)`;
        without rows where the versions don't differ, or kernels' shapes do, a
        kernel's groups of channels have no number in common (depthwise), or a
        normalisation stands without a kernel.

    Raises:
        PassportError: If no layer differs, or the other one has no layer for
            one of the model's.

    Example:

    >>> before = kp.public(model)
    >>> model = kp.calibrate(kp.bind(model, passport))
    >>> kp.attacks.difference_directions(model, before)["conv2"].shape
    (2, 6)
    """
    check_counts(1, rank=rank)
    protected = protected_layers(model)
    found = {
        path: np.zeros((0, layer.adapter.units(layer.layer)))
        for path, layer in protected.items()
    }
    for path, (kernel, _) in aligning.counterparts(model, other).items():
        ours, theirs = response_matrix(protected[path]), _matrix_of(kernel)
        if len(ours) > 1 or ours.shape != theirs.shape:
            continue
        groups = [1, *protected[path].row_groups]
        found[path] = min(
            (_directions(ours[0], theirs[0], rank, own) for own in groups),
            key=lambda pair: pair[0],
        )[1]
    if not any(len(basis) for basis in found.values()):
        raise PassportError(
            "Expected two versions that differ in a kernel. "
            "Received: the same kernels twice"
        )
    return found


def _directions(ours, theirs, rank, groups):
    """What a kernel makes of the leading directions of a difference.

    Rows that groups of filters store in orders of their own, the same ones in
    both versions, leave a plane for each group.

    Returns:
        Tuple of what is left beside the directions, a part of the first, and
        an orthonormal basis as of `difference_directions`.
    """
    rests, parts = [], []
    for one, two in zip(
        np.split(ours, groups, axis=1),
        np.split(theirs, groups, axis=1),
        strict=True,
    ):
        rest, left = _plane(one, two, rank)
        # Of no more filters than directions any change leaves nothing.
        if groups == 1 or one.shape[1] > rank:
            rests.append(rest)
        parts.append(np.linalg.qr((left @ one).T)[0].T)
    return np.median(rests or [CLEAR]), scipy.linalg.block_diag(*parts)


def _plane(ours, theirs, rank):
    """Leading left singular vectors of a difference, up to a size.

    `calibrate` makes kernels larger as well: of all sizes the one that leaves
    least beside the leading directions; how much is told first.
    """
    fitted = np.sum(ours * theirs) / max(np.sum(theirs**2), 1e-30)
    best = None
    for size in (1.0, fitted, *np.linspace(1.0, 8.0, 29)):
        left, values, _ = np.linalg.svd(
            ours - size * theirs, full_matrices=False
        )
        if values[0] <= ROUNDING * np.linalg.norm(ours):
            return 1.0, np.zeros((0, len(ours)))
        rest = values[rank] / values[0] if len(values) > rank else 0.0
        if best is None or rest < 0.5 * best[0]:
            kept = values[:rank] > ROUNDING * values[0]
            best = rest, left.T[:rank][kept]
    return best


def _filters(layer):
    """A protected layer's filters as rows, `(channels, numbers)`."""
    return _rows(response_matrix(layer))


def _filters_of(kernel):
    return _rows(_matrix_of(kernel))


def _matrix_of(kernel):
    return kernel_matrix(kernels.adapter_for(kernel), kernel)


def _rows(matrix):
    return np.moveaxis(matrix, 1, 2).reshape(-1, matrix.shape[1])


def _affine(kernel, owner) -> tuple:
    """γ and β behind a kernel, `None` for none; without a normalisation, bias.

    Args:
        kernel: The kernel layer.
        owner: Its normalisation or passport layer, or `None`.
    """
    if owner is None:
        return None, getattr(kernel, "bias", None)
    return getattr(owner, "gamma", None), getattr(owner, "beta", None)


def _taken(layer, kernel, owner, own, chosen, cosines, sizes, found):
    """γ and β of the other network's filters; statistics are set."""
    if isinstance(owner, PassportNormalization):
        return own
    signs = aligning.signs_of(cosines, ALIKE)
    gamma, beta = (
        np.full(len(chosen), value)
        if variable is None
        else ops.convert_to_numpy(variable)[chosen]
        for value, variable in zip(
            (1.0, 0.0), _affine(kernel, owner), strict=True
        )
    )
    if owner is None:
        # Nothing divides by the filters' size.
        gamma = gamma / sizes
    ours = layer.normalization
    # Published statistics are better than an ancestor's.
    if (
        isinstance(ours, keras.layers.BatchNormalization)
        and isinstance(owner, keras.layers.BatchNormalization)
        and not normalization.tells_channels_apart(ours)
    ):
        mean, deviation = (
            value[chosen] for value in normalization.statistics_of(owner)
        )
        # What each normalisation subtracts, its kernel's bias aside.
        mean = mean - folding.bias_of(kernel, owner.moving_mean.shape)[chosen]
        bias = folding.bias_of(layer.layer, ours.moving_mean.shape)
        for variable, value in (
            (ours.moving_mean, signs * sizes * mean + bias),
            (
                ours.moving_variance,
                np.maximum((sizes * deviation) ** 2 - ours.epsilon, 0.0),
            ),
        ):
            now = ops.convert_to_numpy(variable)
            variable.assign(np.where(found, value, now))
    return (
        np.where(found, signs * gamma, own[0])
        if layer.function.hides_gamma
        else own[0],
        np.where(found, beta, own[1]) if layer.function.hides_beta else own[1],
    )
