"""Pruning: kernels without their smallest weights."""

from collections.abc import Callable, Sequence

import keras
import numpy as np

from keras_passport.models import protected_model

FRACTIONS = tuple(round(0.1 * tenths, 1) for tenths in range(10))


def prune(
    model: keras.Model, fraction: float
) -> protected_model.ProtectedModel:
    """A copy of a protected model with each kernel's smallest weights at 0.

    Args:
        model: Protected model, of which what is public is used.
        fraction: Part of the weights of each kernel, by magnitude, in [0, 1].
            Biases, statistics and published γ or β stay.

    Returns:
        A new protected model, without a passport.

    Raises:
        ValueError: If the fraction is out of range.
        PassportError: If the model is not protected.

    Example:

    >>> pruned = kp.bind(kp.attacks.prune(model, 0.5), passport)
    """
    if not 0 <= fraction <= 1:
        raise ValueError(
            f"Expected a fraction in [0, 1]. Received: fraction={fraction}"
        )
    pruned = protected_model.public(model)
    for variable in pruned.weights:
        if len(variable.shape) < 2:
            continue
        values = keras.ops.convert_to_numpy(variable).copy()
        smallest = np.argsort(np.abs(values), axis=None)
        values.flat[smallest[: round(fraction * values.size)]] = 0.0
        variable.assign(values)
    return pruned


def pruning(
    model: keras.Model,
    judge: Callable[[protected_model.ProtectedModel], dict[str, float]],
    fractions: Sequence[float] = FRACTIONS,
) -> list[dict[str, float]]:
    """What pruning does to a protected model, in its owner's eyes.

    Args:
        model: Protected model, of which what is public is used.
        judge: Function of a pruned protected model, without a passport, that
            returns numbers by name: the owner's, who can bind the passport.
        fractions: Parts of the weights to prune, in [0, 1].

    Returns:
        A dict for each fraction: `"fraction"` and what the judge said.

    Raises:
        ValueError: If a fraction is out of range.
        PassportError: If the model is not protected.

    Example:

    >>> def judge(pruned):
    ...     return kp.audit.accuracies(pruned, passport, test)
    >>> rows = kp.attacks.pruning(model, judge, fractions=(0.0, 0.5))
    >>> [row["fraction"] for row in rows]
    [0.0, 0.5]

    Reference:

    - Han, Pool, Tran, Dally: Learning both Weights and Connections for
      Efficient Neural Networks, arXiv:1506.02626.
    """
    return [
        {"fraction": fraction, **judge(prune(model, fraction))}
        for fraction in fractions
    ]
