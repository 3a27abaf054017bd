"""The paper's measures of a protected network, and how certain they are.

Accuracies are in per cent throughout this package, probabilities in [0, 1].
"""

import math
import operator

import numpy as np

from keras_passport.hints import Tensor

_METHODS = ("wilson", "exact")


def inconsistency(original: float, protected: float) -> float:
    """Performance inconsistency I: what the protection costs its owner.

    I = A_o − A_p (eq. 7). It is negative where the protected network does
    better than the original one.

    Args:
        original: A_o, the original network's test accuracy. A number or an
            array of numbers in [0, 100], in the same unit as `protected`.
        protected: A_p, the protected network's test accuracy with its valid
            passport. A number, or an array that broadcasts with `original`.

    Returns:
        I in the unit given: a float for two numbers, else a float64 array.

    Raises:
        ValueError: If an accuracy is not a finite number in [0, 100].

    Example:

    >>> kp.metrics.inconsistency(92.5, 92.25)
    0.25
    """
    return _difference(original=original, protected=protected)


def protection_strength(protected: float, attacked: float) -> float:
    """Protection strength S: what an attacker lacks.

    S = A_p − A_t (eq. 7).

    Args:
        protected: A_p, the protected network's test accuracy with its valid
            passport. A number or an array of numbers in [0, 100], in the same
            unit as `attacked`.
        attacked: A_t, the test accuracy under attack, with a fake passport
            for instance. A number, or an array that broadcasts with
            `protected`: one accuracy per attack.

    Returns:
        S in the unit given: a float for two numbers, else a float64 array
        with one strength per attack. The paper's tables give its mean and
        standard deviation.

    Raises:
        ValueError: If an accuracy is not a finite number in [0, 100].

    Example:

    >>> kp.metrics.protection_strength(92.25, [10.0, 12.25]).tolist()
    [82.25, 80.0]
    """
    return _difference(protected=protected, attacked=attacked)


def is_functionality_preserving(
    inconsistency: float, threshold: float = 1.0
) -> bool:
    """Whether a network is functionality-preserving: I < τ_d (Definition 1).

    Args:
        inconsistency: I, in per cent. A negative one preserves.
        threshold: τ_d, in per cent.

    Returns:
        `True` if the inconsistency is smaller than the threshold.

    Raises:
        ValueError: If an argument is not a finite number.

    Example:

    >>> kp.metrics.is_functionality_preserving(0.25)
    True
    >>> kp.metrics.is_functionality_preserving(1.0)
    False
    """
    return _number(inconsistency, "inconsistency") < _number(
        threshold, "threshold"
    )


def is_well_protected(strength: float, threshold: float = 50.0) -> bool:
    """Whether a network is well-protected: S > τ_s (Definition 2).

    Args:
        strength: S, in per cent, not a fraction.
        threshold: τ_s, in per cent.

    Returns:
        `True` if the strength is larger than the threshold.

    Raises:
        ValueError: If an argument is not a finite number.

    Example:

    >>> kp.metrics.is_well_protected(82.25)
    True
    >>> kp.metrics.is_well_protected(50.0)
    False
    """
    return _number(strength, "strength") > _number(threshold, "threshold")


def accuracy_interval(
    correct: int,
    total: int,
    confidence: float = 0.95,
    method: str = "wilson",
) -> tuple[float, float]:
    """Confidence interval of an accuracy measured on a test set.

    The test examples are taken as independent draws, of which each is
    classified correctly with the same unknown probability.

    Args:
        correct: Number of correctly classified examples.
        total: Number of examples.
        confidence: Probability with which such intervals cover the true
            accuracy, in (0, 1).
        method: `"wilson"`, Wilson's score interval, or `"exact"`, the wider
            one of Clopper and Pearson.

    Returns:
        The interval's two ends `(low, high)`, in per cent.

    Raises:
        ValueError: If the counts are not integers with 0 <= correct <= total
            and total >= 1, if `confidence` is not in (0, 1), or if the method
            is unknown.

    Example:

    >>> low, high = kp.metrics.accuracy_interval(9272, 10000)
    >>> print(f"{low:.2f} to {high:.2f} %")
    92.19 to 93.21 %
    """
    if method not in _METHODS:
        raise ValueError(
            f"Expected method to be one of {_METHODS}. "
            f"Received: method={method!r}"
        )
    low, high = _proportion_interval(
        correct, total, confidence, method, names=("correct", "total")
    )
    return 100.0 * low, 100.0 * high


def strength_interval(
    protected_correct: int,
    protected_total: int,
    attacked_correct: int,
    attacked_total: int,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Confidence interval of a protection strength S = A_p − A_t.

    It is Newcombe's, made of the two accuracies' Wilson intervals. They are
    taken as independent, so it is rather too wide where both were measured
    on the same examples.

    Args:
        protected_correct: Number of examples that are correctly classified
            under the valid passport.
        protected_total: Of how many.
        attacked_correct: The same under attack.
        attacked_total: Of how many.
        confidence: Probability with which such intervals cover the true
            strength, in (0, 1).

    Returns:
        The interval's two ends `(low, high)`, in per cent.

    Raises:
        ValueError: As for `accuracy_interval`.

    Example:

    >>> low, high = kp.metrics.strength_interval(9272, 10000, 104, 1000)
    >>> print(f"{low:.1f} to {high:.1f} %")
    80.2 to 84.1 %

    Reference:

    - Newcombe: Interval estimation for the difference between independent
      proportions, Statistics in Medicine 17 (1998), method 10.
    """
    ends = []
    for correct, total in (
        (protected_correct, protected_total),
        (attacked_correct, attacked_total),
    ):
        interval = accuracy_interval(correct, total, confidence)
        ends.append((100.0 * correct / total, *interval))
    (protected, low, high), (attacked, attacked_low, attacked_high) = ends
    strength = protected - attacked
    return (
        strength - math.hypot(protected - low, attacked_high - attacked),
        strength + math.hypot(high - protected, attacked - attacked_low),
    )


def advantage_interval(
    attacked_correct: int,
    control_correct: int,
    total: int,
    both: int | None = None,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Confidence interval of an advantage A = A_t − A_c on the same examples.

    Args:
        attacked_correct: Number of examples that the attacked network
            classifies correctly.
        control_correct: The same of the control, trained from scratch on the
            attacker's data.
        total: Number of examples.
        both: Number of examples that both classify correctly. `None` if that
            is not known: the two are then taken as independent, and the
            interval is rather too wide.
        confidence: Probability with which such intervals cover the true
            advantage, in (0, 1).

    Returns:
        The interval's two ends `(low, high)`, in per cent.

    Raises:
        ValueError: As for `accuracy_interval`, or if `both` does not fit the
            other counts.

    Example:

    >>> low, high = kp.metrics.advantage_interval(5400, 5000, 10000, both=4200)
    >>> print(f"{low:.1f} to {high:.1f} %")
    3.1 to 4.9 %

    Reference:

    - Newcombe: Improved confidence intervals for the difference between
      binomial proportions based on paired data, Statistics in Medicine 17
      (1998), method 10.
    """
    counts = attacked_correct, control_correct
    (low, high), (control_low, control_high) = (
        accuracy_interval(count, total, confidence) for count in counts
    )
    attacked, control = (100.0 * count / total for count in counts)
    correlation = 0.0
    if both is not None:
        both = _integer(both, "both", at_least=max(0, sum(counts) - total))
        if both > min(counts):
            raise ValueError(
                f"Expected both to be at most {min(counts)}. "
                f"Received: both={both}"
            )
        correlation = _correlation(*counts, total, both)

    def width(ours, theirs):
        square = ours**2 - 2 * correlation * ours * theirs + theirs**2
        return math.sqrt(max(0.0, square))

    value = attacked - control
    return (
        value - width(attacked - low, control_high - control),
        value + width(high - attacked, control - control_low),
    )


def _correlation(first, second, total, both):
    """Newcombe's φ of two yes-or-no answers, with his correction."""
    neither = total - first - second + both
    excess = both * neither - (first - both) * (second - both)
    if excess > 0:
        excess = max(0.0, excess - total / 2)
    size = first * (total - first) * second * (total - second)
    return excess / math.sqrt(size) if size else 0.0


def success_interval(
    successes: int, trials: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Confidence interval of the probability that a fake passport succeeds.

    It is the exact interval of Clopper and Pearson, so it also says what no
    success at all in n trials proves: with a confidence of 95 % that the
    probability is under 1 − 0.025^(1/n), about 3.7 / n.

    Args:
        successes: Number of fake passports that succeeded, by whatever
            criterion the caller has fixed beforehand.
        trials: Number of fake passports tried, drawn independently.
        confidence: Probability with which such intervals cover the true
            probability, in (0, 1).

    Returns:
        The interval's two ends `(low, high)`, as probabilities in [0, 1].

    Raises:
        ValueError: If the counts are not integers with 0 <= successes <=
            trials and trials >= 1, or if `confidence` is not in (0, 1).

    Example:

    >>> low, high = kp.metrics.success_interval(0, 1000)
    >>> print(f"{low:.4f} to {high:.4f}")
    0.0000 to 0.0037
    """
    return _proportion_interval(
        successes,
        trials,
        confidence,
        method="exact",
        names=("successes", "trials"),
    )


def prediction_entropy(predicted_classes: Tensor, num_classes: int) -> float:
    """Entropy of the classes that a network predicts over a test set.

    H = −Σ_k q_k log₂ q_k, with q_k the fraction of examples that are given
    class k. It is 0 for a network that always answers the same and
    log₂(`num_classes`) for one that gives every class equally often. An
    accuracy near chance under a fake passport says little without it.

    Args:
        predicted_classes: Integer array of shape `(..., examples)`: class
            indices in `[0, num_classes)`. Leading axes, one row per fake
            passport say, are kept.
        num_classes: Number of classes.

    Returns:
        The entropy in bits: a float for one row, else a float64 array of
        shape `(...)`.

    Raises:
        ValueError: If the predictions are not integers in range, if there are
            none, or if `num_classes` is not a positive integer.

    Example:

    >>> kp.metrics.prediction_entropy([0, 1, 2, 3, 0, 1, 2, 3], num_classes=10)
    2.0
    >>> classes = [[3, 3, 3, 3], [0, 0, 1, 1]]
    >>> kp.metrics.prediction_entropy(classes, 10).tolist()
    [0.0, 1.0]
    """
    num_classes = _integer(num_classes, "num_classes", at_least=1)
    classes = np.asarray(predicted_classes)
    if (
        classes.ndim < 1
        or classes.size == 0
        or not np.issubdtype(classes.dtype, np.integer)
    ):
        raise ValueError(
            "Expected predicted_classes to be an integer array of class "
            "indices, of shape (..., examples), with at least one example. "
            f"Received: shape={classes.shape}, dtype={classes.dtype}"
        )
    if classes.min() < 0 or classes.max() >= num_classes:
        raise ValueError(
            f"Expected predicted_classes in [0, {num_classes}). "
            f"Received: values from {classes.min()} to {classes.max()}"
        )
    rows = classes.reshape(-1, classes.shape[-1])
    entropies = np.empty(len(rows))
    for index, row in enumerate(rows):
        counts = np.bincount(row.astype("int64"), minlength=num_classes)
        fractions = counts[counts > 0] / row.size
        # + 0.0 turns the -0.0 of a single class into 0.0.
        entropies[index] = -(fractions * np.log2(fractions)).sum() + 0.0
    if classes.ndim == 1:
        return float(entropies[0])
    return entropies.reshape(classes.shape[:-1])


def _difference(**accuracies):
    first, second = (
        _accuracies(value, name) for name, value in accuracies.items()
    )
    try:
        difference = first - second
    except ValueError as error:
        names = " and ".join(accuracies)
        raise ValueError(
            f"Expected {names} to have shapes that broadcast. "
            f"Received: shapes {first.shape} and {second.shape}"
        ) from error
    return float(difference) if difference.ndim == 0 else difference


def _accuracies(value, name):
    try:
        array = np.asarray(value, dtype="float64")
    except (TypeError, ValueError):
        array = None
    # The comparison is false for NaN too.
    if array is None or not np.all((array >= 0.0) & (array <= 100.0)):
        raise ValueError(
            f"Expected {name} to be an accuracy in [0, 100], or an array of "
            f"accuracies. Received: {name}={value!r}"
        )
    return array


def _number(value, name):
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(
            f"Expected {name} to be a finite number, in per cent. "
            f"Received: {name}={value!r}"
        )
    return number


def _integer(value, name, at_least):
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or number < at_least:
        raise ValueError(
            f"Expected {name} to be an integer of at least {at_least}. "
            f"Received: {name}={value!r}"
        )
    return number


def _proportion_interval(hits, trials, confidence, method, names):
    from scipy import stats

    trials = _integer(trials, names[1], at_least=1)
    hits = _integer(hits, names[0], at_least=0)
    if hits > trials:
        raise ValueError(
            f"Expected {names[0]} to be at most {names[1]}={trials}. "
            f"Received: {names[0]}={hits}"
        )
    if not 0.0 < _number(confidence, "confidence") < 1.0:
        raise ValueError(
            "Expected confidence to be a probability in (0, 1). "
            f"Received: confidence={confidence!r}"
        )
    interval = stats.binomtest(hits, trials).proportion_ci(
        confidence_level=float(confidence), method=method
    )
    return float(interval.low), float(interval.high)
