"""Pictures from files: single ones, folders of classes, tfds datasets."""

import os
import pathlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import keras
import numpy as np

from common import data
from common.errors import UserError, users_mistakes
from keras_passport import scores
from keras_passport.cli.pictures import (
    PREPROCESSING,
    SUFFIXES,
    fitted,
    read_picture,
)

_TEST_NAMES = ("test", "val", "validation")

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def read(
    model: keras.Model,
    images: str,
    data_dir: str | None,
    config: dict[str, Any],
) -> Arrays:
    """The pictures of a run of `protect_model.py`.

    Args:
        model: a classifier of them.
        images: a folder as `read_folder` takes it, or a tfds dataset's name.
        data_dir: TensorFlow Datasets' folder.
        config: `image_size`, `class_names`, `test_fraction` and `seed`.
    """
    shape = _picture_shape(model, config["image_size"])
    options = {name: config[name] for name in ("test_fraction", "seed")}
    if os.path.isdir(images):
        arrays, names = read_folder(
            images,
            shape,
            names=config["class_names"],
            progress=os.isatty(1),
            **options,
        )
    elif os.sep in images:
        raise UserError(f"--images={images} is not a folder.")
    else:
        try:
            arrays, names = read_tfds(images, data_dir, shape, **options)
        except UserError as error:
            raise UserError(f"--images is not a folder, and {error}") from error
    classes = scores.only_shape(model.output_shape)[-1]
    if len(names) != classes:
        raise UserError(
            f"--model has {classes} outputs. Received: {len(names)} "
            f"classes in --images ({', '.join(names[:10])})"
        )
    return arrays


def of_run(
    model: keras.Model,
    config: dict[str, Any],
    images: str | None = None,
    data_dir: str | None = None,
) -> data.Dataset:
    """The pictures of a finished run, whichever program made it.

    Args:
        model: its network.
        config: what its `config.json` says.
        images: as for `read`, of a run of `protect_model.py`; what the run
            was given if it is not said.
        data_dir: TensorFlow Datasets' folder.
    """
    check_run(config)
    name = config.get("dataset")
    if config.get("images"):
        arrays = read(model, images or name, data_dir, config)
        return dataset(model, arrays, config)
    return data.load(name, data_dir)


def check_run(config: dict[str, Any]) -> None:
    """Raises a `UserError` if a run's pictures are none that we know.

    Args:
        config: as for `of_run`.
    """
    name = config.get("dataset")
    if not config.get("images") and name not in data.SOURCES:
        raise UserError(
            f"Runs on {', '.join(sorted(data.SOURCES))}, and those of "
            "protect_model.py that were given --images, can be taken up here. "
            f"Received: {name}"
        )


def dataset(
    model: keras.Model, arrays: Arrays, config: dict[str, Any]
) -> data.Dataset | None:
    """The pictures as a model sees them; None if they lack its colours.

    Args:
        model: a classifier of them.
        arrays: as `read` returns them.
        config: `images`, `preprocessing`, `shift` and `flip`.
    """
    mean, std, bgr = PREPROCESSING[config["preprocessing"]]
    x_train, y_train, x_test, y_test = arrays
    channels = x_train.shape[-1]
    if len(mean) > channels:
        return None
    return data.Dataset(
        name=config["images"],
        num_classes=scores.only_shape(model.output_shape)[-1],
        x_train=x_train,
        y_train=y_train,
        x_test=x_test,
        y_test=y_test,
        mean=np.resize(mean, channels),
        std=np.resize(std, channels),
        pad=config["shift"],
        flip=config["flip"],
        bgr=bgr,
    )


def _picture_shape(
    model: keras.Model, size: int | None
) -> tuple[int, int, int]:
    """The one input's shape; the user's word where it is open."""
    shape = scores.only_shape(getattr(model, "input_shape", None))
    gives = scores.only_shape(getattr(model, "output_shape", None))
    if (
        not isinstance(shape, tuple)
        or len(shape) != 4
        or shape[-1] not in (1, 3)
        or not isinstance(gives, tuple)
        or len(gives) != 2
        or gives[-1] < 2
    ):
        raise UserError(
            "--model should be a classifier with one input of pictures "
            "(height, width, 1 or 3 channels) and one output per class. "
            f"Received: inputs {shape}, outputs {gives}"
        )
    if None in shape[1:3] and size is None:
        raise UserError(
            f"--model leaves its input size open {shape}: give --image_size."
        )
    if size is not None and any(n not in (None, size) for n in shape[1:3]):
        raise UserError(
            f"--model takes pictures of {shape[1]}x{shape[2]} pixels. "
            f"Received: --image_size={size}"
        )
    return (shape[1] or size, shape[2] or size, shape[3])


def read_folder(
    folder: str | os.PathLike,
    shape: tuple[int, int, int],
    names: Sequence[str] | None = None,
    test_fraction: float = 0.2,
    seed: int = 0,
    progress: bool = False,
) -> tuple[Arrays, list[str]]:
    """A folder whose sub-folders are named after the classes.

    Or one that holds two such folders, `train` and `test` (or `val`, or
    `validation`).

    Args:
        folder: where the pictures are.
        shape: `(height, width, channels)` that they are brought to.
        names: the classes in the order of the network's outputs; sorted by
            name if not given, as Keras's own loader sorts them.
        test_fraction: part of every class that is kept for testing, where
            there is no folder of test pictures.
        seed: of this choice.
        progress: whether to show a bar.

    Returns:
        `(x_train, y_train, x_test, y_test)`, uint8 and int32, and the names
        of the classes.
    """
    folder = pathlib.Path(folder)
    inside = _subfolders(folder)
    tests = [folder / name for name in _TEST_NAMES if folder / name in inside]
    if folder / "train" in inside and tests:
        names = _class_names(folder / "train", names)
        train = _labelled_files(folder / "train", names)
        test = _labelled_files(tests[0], names)
    else:
        names = _class_names(folder, names)
        train, test = _split(
            *_labelled_files(folder, names), test_fraction, seed
        )
    total = len(train[0]) + len(test[0])
    bar = keras.utils.Progbar(total, unit_name="picture") if progress else None
    arrays = []
    for files, labels in (train, test):
        arrays += [_read_all(files, shape, bar), np.asarray(labels, "int32")]
    return tuple(arrays), names


def read_tfds(
    name: str,
    data_dir: str | None,
    shape: tuple[int, int, int],
    test_fraction: float = 0.2,
    seed: int = 0,
) -> tuple[Arrays, list[str]]:
    """A dataset of TensorFlow Datasets; arguments as for `read_folder`."""
    from PIL import Image

    splits, info = data.load_tfds(name, data_dir, with_info=True)
    if info.supervised_keys is None or "train" not in splits:
        raise UserError(
            f"{name} has no pictures with labels in a split named train."
        )
    arrays = []
    for split in ("train", *(n for n in _TEST_NAMES if n in splits)):
        pictures, labels = [], []
        for picture, label in splits[split].as_numpy_iterator():
            if picture.shape[-1] == 1:
                picture = picture[..., 0]
            pictures.append(fitted(Image.fromarray(picture), shape))
            labels.append(label)
        arrays.append((np.stack(pictures), np.asarray(labels, "int32")))
        if len(arrays) == 2:
            break
    if len(arrays) == 1:
        arrays = _split(*arrays[0], test_fraction, seed)
    (x_train, y_train), (x_test, y_test) = arrays
    if np.any(y_test < 0):
        raise UserError(f"{name} has no labels in the split that tests.")
    names = list(info.features[info.supervised_keys[1]].names)
    return (x_train, y_train, x_test, y_test), names


def _subfolders(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(
        item
        for item in folder.iterdir()
        if item.is_dir() and not item.name.startswith(".")
    )


def _class_names(
    folder: pathlib.Path, names: Sequence[str] | None
) -> list[str]:
    found = [item.name for item in _subfolders(folder)]
    if names and sorted(names) != found:
        raise UserError(
            f"--class_names should name every sub-folder of {folder} once "
            f"({', '.join(found[:10])}). Received: {', '.join(names)}"
        )
    if len(found) < 2:
        raise UserError(
            f"{folder} should hold a sub-folder of pictures for each class, "
            f"named after it. Found: {', '.join(found) or 'no sub-folder'}"
        )
    return list(names or found)


def _labelled_files(
    folder: pathlib.Path, names: list[str]
) -> tuple[list[pathlib.Path], list[int]]:
    """All pictures, and their classes' numbers."""
    files, labels = [], []
    for label, name in enumerate(names):
        some = sorted(
            path
            for path in (folder / name).rglob("[!.]*")
            if path.suffix.lower() in SUFFIXES
        )
        if not some:
            raise UserError(
                f"{folder / name} should hold pictures "
                f"({', '.join(SUFFIXES)}). Found: none"
            )
        files += some
        labels += [label] * len(some)
    return files, labels


def _split(x, y, test_fraction: float, seed: int) -> tuple[tuple, tuple]:
    from sklearn.model_selection import train_test_split

    try:
        x_train, x_test, y_train, y_test = train_test_split(
            x, y, test_size=test_fraction, stratify=y, random_state=seed
        )
    except ValueError as error:
        raise UserError(
            f"The pictures can't be split, --test_fraction={test_fraction} of "
            f"every class for testing: {error}"
        ) from error
    return (x_train, y_train), (x_test, y_test)


def _read_all(files: list[pathlib.Path], shape, bar) -> np.ndarray:
    pictures = np.empty((len(files), *shape), "uint8")
    with ThreadPoolExecutor() as pool:  # Pillow decodes without the GIL.
        read = pool.map(lambda path: read_picture(path, shape), files)
        with users_mistakes():
            for index, picture in enumerate(read):
                pictures[index] = picture
                if bar:
                    bar.add(1)
    return pictures
