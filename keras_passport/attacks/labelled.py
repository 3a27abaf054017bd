"""An attacker's data: parts of it, and its order in a training.

Labels are class numbers, or what a service that was asked says: the
probabilities of all classes for each example.
"""

import keras
import numpy as np

from keras_passport import scores

# Part of the attacker's data that chooses between epochs and between trials:
# the least, the number of pictures that tells trials apart, the most; and how
# many examples of a class there must be for it to be set apart.
LEAST, WANTED, MOST = 0.1, 100, 0.25
ENOUGH = 10


class Batches(keras.utils.PyDataset):
    """Shuffled batches that depend on seed and epoch alone."""

    def __init__(self, x, y, batch_size, seed, augment=None):
        super().__init__()
        self._x, self._y, self._augment = x, np.asarray(y), augment
        self.batch_size = step_size(len(self._y), batch_size)
        self._seed = seed
        self.start_epoch(0)

    def start_epoch(self, epoch: int) -> None:
        """Turns to an epoch's order."""
        self._epoch = epoch
        rng = np.random.default_rng([self._seed, epoch, 0])
        self._order = rng.permutation(len(self._y))

    def __len__(self):
        return len(self._y) // self.batch_size

    def __getitem__(self, index):
        chosen = self._order[
            index * self.batch_size : (index + 1) * self.batch_size
        ]
        x = take(self._x, chosen)
        if self._augment is not None:
            rng = np.random.default_rng([self._seed, self._epoch, index + 1])
            x = self._augment(x, rng)
        # What Keras makes of a generator takes no lists.
        return keras.tree.lists_to_tuples(x), self._y[chosen]


def is_soft(y) -> bool:
    """Whether labels are probabilities, `(examples, classes)`."""
    y = np.asarray(y)
    return y.ndim == 2 and y.shape[1] > 1 and y.dtype.kind == "f"


def classes_of(y) -> np.ndarray:
    """The class numbers of labels, `(examples,)`."""
    return np.argmax(y, axis=-1) if is_soft(y) else np.asarray(y)


def step_size(count: int, batch_size: int) -> int:
    """Examples per step, of `count` in all: an epoch is 8 steps or more."""
    return min(batch_size, max(8, count // 8), count)


def take(x, chosen):
    """Some examples of inputs, which may be a dict of several."""
    return keras.tree.map_structure(lambda array: array[chosen], x)


def share(data: tuple, fraction: float, seed: int) -> tuple:
    """A stratified part of labelled data.

    Args:
        data: Tuple of inputs (array or dict) and integer labels.
        fraction: How much of each class, in (0, 1]; at least one example.
        seed: Which.
    """
    return divide(data, fraction, seed)[0]


def split(data: tuple, seed: int) -> tuple:
    """Divides an attacker's data into a training and a validation part.

    Args:
        data: Tuple of inputs (array or dict) and integer labels.
        seed: Which part.

    Returns:
        Two tuples of inputs and labels. The validation part is a tenth of
        each class; more, up to a quarter, where that is under 100 examples.
        Where there are fewer than 10 examples per class, both parts are all
        of the data: a handful of pictures tells an attacker less than the
        training does.
    """
    count = len(_labels(data))
    if count < ENOUGH * len(np.unique(_labels(data))):
        return data, data
    fraction = max(LEAST, min(MOST, WANTED / count))
    validation, training = divide(data, fraction, seed)
    return training, validation


def divide(data: tuple, fraction: float, seed: int) -> tuple:
    """A stratified part of labelled data, and the rest; as for `share`."""
    data = scores.pair(data)
    x, classes = data[0], _labels(data)
    y = np.asarray(data[1]) if is_soft(data[1]) else classes
    if not len(classes):
        raise ValueError(
            "Expected labelled examples for the attacker. Received: none"
        )
    if not 0 < fraction <= 1:
        raise ValueError(
            f"Expected a fraction in (0, 1]. Received: fraction={fraction}"
        )
    rng = np.random.default_rng([seed, 0x5EED])
    first = np.zeros(len(classes), bool)
    for label in np.unique(classes):
        places = rng.permutation(np.flatnonzero(classes == label))
        first[places[: max(1, round(fraction * len(places)))]] = True
    return tuple(
        (take(x, chosen), y[chosen])
        for chosen in (np.flatnonzero(first), np.flatnonzero(~first))
    )


def _labels(data: tuple) -> np.ndarray:
    """Labels as integers, `(examples,)`; a ValueError if they are none."""
    x, y = data
    if is_soft(y) and not np.isfinite(np.asarray(y)).all():
        raise ValueError(
            "Expected finite probabilities as labels. Received: NaN or infinity"
        )
    examples = len(keras.tree.flatten(x)[0])
    return scores.labels_of(classes_of(y), examples, name="labels")
