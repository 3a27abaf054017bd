"""CIFAR-10, CIFAR-100 and the digits as uint8 arrays, and their batches."""

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from common.errors import UserError
from keras_passport.attacks.labelled import Batches


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Pictures in memory, and how a network sees them.

    Attributes:
        name: the `--dataset` it was asked for by.
        num_classes: labels are `0 .. num_classes - 1`.
        x_train, x_test: uint8 pictures, `(n, height, width, channels)`.
        y_train, y_test: int32 labels, `(n,)`.
        mean, std: one number per channel that the networks take, in units
            of uint8.
        pad: a training picture is shifted by up to this many pixels.
        flip: whether half of the training pictures are mirrored.
        bgr: whether the networks take the channels in reverse.
    """

    name: str
    num_classes: int
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pad: int
    flip: bool
    bgr: bool = False

    @property
    def input_shape(self) -> tuple[int, int, int]:
        return self.x_train.shape[1:]

    def normalize(self, pictures: np.ndarray) -> np.ndarray:
        """uint8 pictures into the networks' input domain, float32."""
        height, width, channels = self.input_shape
        # One constant per pixel, not per channel: NumPy's inner loop would
        # otherwise be 3 numbers long, and ten times slower.
        pixels = height * width
        if self.bgr:
            pictures = pictures[..., ::-1]
        std = np.tile(np.asarray(self.std, "float32"), pixels)
        mean = np.tile(np.asarray(self.mean, "float32"), pixels)
        x = pictures.reshape(len(pictures), -1).astype("float32")
        x -= mean
        x /= std
        return x.reshape(-1, height, width, channels)

    def test_examples(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """A fixed stratified part of the test set: normalised x, and y.

        Takes the first pictures of every class, the same ones in every run.
        """
        rank = np.empty(len(self.y_test), "int64")
        for label in range(self.num_classes):
            (places,) = np.nonzero(self.y_test == label)
            rank[places] = np.arange(len(places))
        chosen = np.sort(np.lexsort((self.y_test, rank))[:count])
        return self.normalize(self.x_test[chosen]), self.y_test[chosen]


@dataclasses.dataclass(frozen=True)
class Source:
    """A dataset's entry: where it comes from, how it is best trained on.

    Attributes:
        read: `--data_dir` (or None) -> `x_train, y_train, x_test, y_test`.
        properties: the other fields of `Dataset`.
        defaults: values of the flags that the user leaves open.
    """

    read: Callable[[str | None], tuple[np.ndarray, ...]]
    properties: dict[str, Any]
    defaults: dict[str, Any]


def load(name: str, data_dir: str | None = None) -> Dataset:
    """Reads a dataset of `SOURCES` into memory."""
    source = SOURCES[name]
    x_train, y_train, x_test, y_test = source.read(data_dir)
    return Dataset(
        name=name,
        x_train=np.ascontiguousarray(x_train, "uint8"),
        y_train=np.asarray(y_train, "int32").reshape(-1),
        x_test=np.ascontiguousarray(x_test, "uint8"),
        y_test=np.asarray(y_test, "int32").reshape(-1),
        **source.properties,
    )


class TrainingBatches(Batches):
    """Shuffled, augmented batches of the training set.

    Batch i of epoch e depends on `(seed, e, i)` alone, so a training that
    was interrupted goes on with the very batches it would have seen. Whoever
    trains calls `start_epoch` (`on_epoch_begin` of a callback is the place:
    the dataset's own `on_epoch_end` is also called when no epoch ended).

    Args:
        dataset: the pictures.
        batch_size: pictures in a batch; what is left over at the end of an
            epoch is dropped (another part of the data in every epoch).
        seed: any non-negative integer.
    """

    def __init__(self, dataset: Dataset, batch_size: int, seed: int):
        def shown(x, rng):
            return dataset.normalize(augment(x, rng, dataset.pad, dataset.flip))

        self.dataset = dataset
        x, y = dataset.x_train, dataset.y_train
        super().__init__(x, y, batch_size, seed, shown)
        # As the user says: no attacker's data, which may be few.
        self.batch_size = min(batch_size, len(y))

    def plan(self, epoch: int) -> tuple[np.ndarray, ...]:
        """What an epoch shows, for who holds the pictures elsewhere.

        Returns:
            Arrays `(steps, batch size)`: which pictures, and of each whether
            it is mirrored, and the shifts, as `augment` draws them.
        """
        rng = np.random.default_rng([self._seed, epoch, 0])
        order = rng.permutation(len(self._y))[: len(self) * self.batch_size]
        order = order.reshape(len(self), self.batch_size)
        drawn = [
            _drawn(
                np.random.default_rng([self._seed, epoch, index + 1]),
                self.batch_size,
                self.dataset.pad,
                self.dataset.flip,
            )
            for index in range(len(self))
        ]
        how = [np.stack(parts) for parts in zip(*drawn, strict=True)]
        return (order.astype("int32"), *how)


def _drawn(
    rng: np.random.Generator, n: int, pad: int, flip: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which of n pictures are mirrored, and where they are cropped."""
    mirrored = rng.random(n) < 0.5 if flip else np.zeros(n, bool)
    top, left = rng.integers(0, 2 * pad + 1, (2, n)).astype("int32")
    return mirrored, top, left


def augment(
    pictures: np.ndarray, rng: np.random.Generator, pad: int, flip: bool
) -> np.ndarray:
    """Mirrors half of the pictures and shifts each by up to `pad` pixels.

    Args:
        pictures: `(n, height, width, channels)`; left as they are.
        rng: where the choices come from.
        pad: black pixels put around a picture before it is cropped.
        flip: whether to mirror at all.

    Returns:
        An array of the same shape and type.
    """
    n, height, width, channels = pictures.shape
    padded = np.zeros(
        (n, height + 2 * pad, width + 2 * pad, channels), pictures.dtype
    )
    padded[:, pad : pad + height, pad : pad + width] = pictures
    mirrored, top, left = _drawn(rng, n, pad, flip)
    padded[mirrored] = padded[mirrored][:, :, ::-1]
    # Rows are kept in one piece (columns and channels as one axis): copying
    # them whole is three times as fast as gathering pixels.
    windows = np.lib.stride_tricks.sliding_window_view(
        padded.reshape(n, height + 2 * pad, -1),
        (height, width * channels),
        axis=(1, 2),
    )
    cropped = windows[np.arange(n), top, left * channels]
    return cropped.reshape(pictures.shape)


def _read_digits(data_dir: str | None) -> tuple[np.ndarray, ...]:
    """scikit-learn's 1,797 digits of 8x8 pixels; 500 of them for testing."""
    del data_dir  # They come with scikit-learn.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    # 17 grey levels become uint8, so that an identity picture of one's own
    # means the same here as on CIFAR.
    x = np.round(x * (255 / 16)).reshape(-1, 8, 8, 1)
    x_train, x_test, y_train, y_test = train_test_split(
        x, y, test_size=500, stratify=y, random_state=0
    )
    return x_train, y_train, x_test, y_test


def _cifar_reader(name: str) -> Callable[[str | None], tuple[np.ndarray, ...]]:
    def read(data_dir: str | None) -> tuple[np.ndarray, ...]:
        archive = os.path.join(data_dir or "", f"{name}.npz")
        if data_dir and os.path.exists(archive):
            return _read_npz(archive)
        return _read_tfds(name, data_dir)

    return read


def _read_npz(path: str) -> tuple[np.ndarray, ...]:
    keys = ("x_train", "y_train", "x_test", "y_test")
    try:
        with np.load(path, allow_pickle=False) as archive:
            return tuple(archive[key] for key in keys)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{path} should hold the arrays {', '.join(keys)}: {error}"
        ) from error


def _read_tfds(name: str, data_dir: str | None) -> tuple[np.ndarray, ...]:
    try:
        splits = load_tfds(name, data_dir, batch_size=-1)
    except UserError as error:
        raise UserError(f"{error} Or use --dataset=digits.") from error
    return *splits["train"], *splits["test"]


def load_tfds(name: str, data_dir: str | None, **options: Any) -> Any:
    """`tfds.load`, from the disk if it is there, and with one clear error.

    Args:
        name: of the dataset.
        data_dir: TensorFlow Datasets' folder, or None for its own choice.
        options: as `tfds.load` takes them.

    Returns:
        A dict of all splits, pictures with labels (NumPy arrays if
        `batch_size=-1` is given); with its info if `with_info=True` is.
    """
    where = data_dir or "TensorFlow Datasets' own folder"
    try:
        import tensorflow as tf
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise UserError(
            f"{name} is read with tensorflow-datasets ({error}). Install it, "
            "or give the data in another form (--help)."
        ) from error
    if keras.backend.backend() != "tensorflow":
        # TensorFlow only decodes pictures here; it must not take the
        # accelerator's memory away from the backend that trains.
        tf.config.set_visible_devices([], "GPU")
    for download in (False, True):
        try:
            loaded = tfds.load(
                name,
                data_dir=data_dir and os.path.expanduser(data_dir),
                download=download,
                as_supervised=True,
                **options,
            )
            whole = options.get("batch_size") == -1
            return tfds.as_numpy(loaded) if whole else loaded
        # tfds raises whatever its file systems, parsers and downloaders do.
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".split("\n")[0]
    raise UserError(
        f"{name} was not found in {where} and could not be downloaded "
        f"({reason}). Name the folder that holds it with --data_dir."
    )


def _cifar(
    name: str, num_classes: int, mean: tuple, std: tuple, epochs: int
) -> Source:
    return Source(
        read=_cifar_reader(name),
        properties=dict(
            num_classes=num_classes, mean=mean, std=std, pad=4, flip=True
        ),
        defaults=dict(
            epochs=epochs,
            batch_size=128,
            learning_rate=0.1,
            num_fakes=200,
            fake_examples=2000,
        ),
    )


SOURCES: dict[str, Source] = {
    "cifar10": _cifar(
        "cifar10", 10, (125.3, 123.0, 113.9), (63.0, 62.1, 66.7), epochs=30
    ),
    "cifar100": _cifar(
        "cifar100", 100, (129.3, 124.1, 112.4), (68.2, 65.4, 70.4), epochs=60
    ),
    "digits": Source(
        read=_read_digits,
        properties=dict(
            num_classes=10, mean=(77.9,), std=(95.9,), pad=1, flip=False
        ),
        defaults=dict(
            epochs=60,
            batch_size=64,
            learning_rate=0.1,
            num_fakes=100,
            fake_examples=500,
        ),
    ),
}
