"""Pictures from files, in the input domain of a model."""

import os
import pathlib
from collections.abc import Sequence

import numpy as np

from keras_passport import files
from keras_passport.texts import shown

# As keras.applications names them: means and deviations per channel, in units
# of uint8, and whether channels are reversed.
PREPROCESSING = {
    "none": ((0.0,), (1.0,), False),
    "unit": ((0.0,), (255.0,), False),
    "tf": ((127.5,), (127.5,), False),
    "torch": ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), False),
    "caffe": ((103.939, 116.779, 123.68), (1.0,), True),
}
MODES = tuple(PREPROCESSING)
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
# What a file is that NumPy can't read: it says more of pickles than of that.
ANOTHER = "of another kind, or a damaged one"


def listed(paths: Sequence[str | os.PathLike]) -> list[str]:
    """Picture files, and the pictures in folders, by name.

    Args:
        paths: Files, which stay as they are, and folders.

    Raises:
        ValueError: If there is no picture in a folder, or a name is empty.
    """
    pictures = []
    if not all(map(os.fspath, paths)):
        raise ValueError(
            "Expected names of pictures or folders. Received: an empty one, as "
            "a comma too many makes it"
        )
    for path in map(pathlib.Path, paths):
        if not path.is_dir():
            pictures.append(str(path))
            continue
        inside = sorted(
            str(file)
            for file in path.iterdir()
            if file.suffix.lower() in SUFFIXES and not file.is_dir()
        )
        if not inside:
            raise ValueError(
                "Expected a folder with pictures "
                f"({', '.join(SUFFIXES)}). Received: '{shown(path)}', which "
                "has none, its own folders aside"
            )
        pictures += inside
    return pictures


def read_images(
    paths: Sequence[str],
    input_shape: tuple,
    preprocessing: str | None = None,
    image_size: int | None = None,
) -> np.ndarray:
    """Picture files, or arrays from `.npy` files, as a model takes them.

    Args:
        paths: Files, all pictures or all `.npy`, or folders of pictures.
            Arrays `(n, ...)` are in the model's input domain already and are
            returned as they are.
        input_shape: The model's, batch axis first, in either data_format.
        preprocessing: One of `MODES`, for pictures; `None` is `"none"`.
        image_size: Pixels a side where the model leaves them open.

    Returns:
        Array `(n, ...)`; of pictures float32, 0..255 before preprocessing.

    Raises:
        ValueError: If a file can't be read, or pictures don't fit.
    """
    paths = listed(paths)
    suffixes = {pathlib.Path(path).suffix.lower() for path in paths}
    if suffixes == {".npy"}:
        if preprocessing is not None:
            raise ValueError(
                "Expected --preprocessing for pictures alone: arrays are in "
                "the model's input domain already. "
                f"Received: --preprocessing={preprocessing}"
            )
        arrays = [_read_array(path) for path in paths]
        if len({array.shape[1:] for array in arrays}) != 1:
            raise ValueError(
                "Expected arrays of images of one shape. Received: "
                f"{', '.join(str(array.shape) for array in arrays)}"
            )
        return np.concatenate(arrays)
    if ".npy" in suffixes:
        raise ValueError(
            "Expected either pictures or .npy files. Received: both"
        )
    height, width, channels, first = _picture_shape(input_shape, image_size)
    mean, deviation, reversed_ = PREPROCESSING[preprocessing or "none"]
    if len(mean) > channels:
        raise ValueError(
            "Expected a model of pictures in colour for "
            f"--preprocessing={preprocessing}. Received: {channels} channel"
        )
    shape = (height, width, channels)
    images = np.stack([read_picture(path, shape) for path in paths])
    images = images.astype("float32")
    if reversed_:
        images = images[..., ::-1]
    images = (images - np.asarray(mean, "float32")) / np.asarray(
        deviation, "float32"
    )
    return np.moveaxis(images, -1, 1) if first else images


def _picture_shape(shape, image_size) -> tuple[int, int, int, bool]:
    """Height, width and channels of pictures; whether channels come first."""
    first = False
    if isinstance(shape, tuple) and len(shape) == 4:
        sizes, first = shape[1:], shape[3] not in (1, 3)
        *sizes, channels = (*sizes[1:], sizes[0]) if first else sizes
        if channels in (1, 3):
            if None in sizes and image_size is None:
                raise ValueError(
                    "Expected --image_size, since the model leaves its input "
                    f"size open. Received: {shape}"
                )
            height, width = (size or image_size for size in sizes)
            return height, width, channels, first
    raise ValueError(
        "Expected a model with one input of pictures of 1 or 3 channels, or "
        f"images in .npy files. Received: a model with inputs {shape}"
    )


def _read_array(path) -> np.ndarray:
    try:
        with files.open_regular(path) as file:
            array = np.load(file, allow_pickle=False)
    except FileNotFoundError:
        raise
    except Exception as error:
        # Of NumPy's own errors none says more.
        said = getattr(error, "strerror", None) or f"a file {ANOTHER}"
        raise ValueError(
            f"Expected images in '{shown(path)}', saved by numpy.save. "
            f"Received: {said}"
        ) from error
    if not isinstance(array, np.ndarray) or array.ndim < 2:
        raise ValueError(
            f"Expected images in '{shown(path)}' of shape (n, ...). Received: "
            f"{getattr(array, 'shape', type(array).__name__)}"
        )
    return array


def read_picture(path, shape: tuple[int, int, int]) -> np.ndarray:
    """A picture file of any kind, transparency put on white.

    Args:
        path: The file.
        shape: `(height, width, channels)` that it is brought to, with 1
            channel or 3.

    Returns:
        uint8 array of this shape.

    Raises:
        FileNotFoundError: If it is missing.
        ValueError: If it can't be read as a picture.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise ValueError(
            "Expected Pillow, which reads pictures (pip install pillow), or "
            f"images in .npy files. Received: {error}"
        ) from error
    try:
        with files.open_regular(path) as opened, Image.open(opened) as file:
            picture = ImageOps.exif_transpose(file)
            if picture.mode[0] in "IF":
                # More than 8 bits: Pillow would clip them, not scale them.
                values = np.asarray(picture, "float64")
                values -= values.min()
                values *= 255 / (values.max() or 1)
                picture = Image.fromarray(values.round().astype("uint8"))
            if picture.has_transparency_data:
                picture = picture.convert("RGBA")
                white = Image.new("RGBA", picture.size, "white")
                picture = Image.alpha_composite(white, picture)
            return fitted(picture, shape)
    except FileNotFoundError:
        raise
    except IsADirectoryError as error:
        raise ValueError(
            f"Expected '{shown(path)}' to be one picture. Received: a folder: "
            "name a picture in it"
        ) from error
    # Pillow's decoders raise each what they like.
    except Exception as error:
        raise ValueError(
            f"Expected '{shown(path)}' to be a picture. "
            f"Received: {shown(error)}"
        ) from error


def fitted(picture, shape: tuple[int, int, int]) -> np.ndarray:
    """A Pillow image of this shape, uint8; see `read_picture`."""
    from PIL import Image

    height, width, channels = shape
    picture = picture.convert("L" if channels == 1 else "RGB")
    if picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    return np.asarray(picture, "uint8").reshape(shape)
