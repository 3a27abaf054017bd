"""Images of few different values in a quarter of their size, bit for bit.

Pictures have 256 levels, and still do after any preprocessing that treats
every element of a channel alike. What has more is left as it is.
"""

import math

import numpy as np

from keras_passport.errors import PassportError
from keras_passport.secrecy import hidden

_LEVELS = 256
_MOST_CHANNELS = 64
# Elements that tell most images of many values apart from pictures.
_SAMPLE = 2**14


def pack(images: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Splits images into numbers of values, and the values.

    Args:
        images: float32 array `(n, ..., channels)` or `(n, channels, ...)`.

    Returns:
        Tuple of a uint8 array of the images' shape, and a float32 array of
        one more axis: the values per channel, along an axis that the shape
        shows, or one row for all. `None` if a channel has more than 256 of
        them, or if that would be no smaller.
    """
    # Bits are compared: 0 and -0 are two values.
    bits = np.ascontiguousarray(images, "<f4").view("<u4")
    for axis in dict.fromkeys((None, images.ndim - 1, 1)):
        channels = _channels(bits, axis)
        if channels is None:
            continue
        if np.unique(channels[0].reshape(-1)[:_SAMPLE]).size > _LEVELS:
            continue
        levels = [np.unique(channel) for channel in channels]
        length = max(map(len, levels))
        if length > _LEVELS or 2 * len(levels) * length > bits.size:
            continue
        numbers = np.empty(bits.shape, "uint8")
        values = np.zeros((len(levels), length), "<u4")
        parts = _channels(numbers, axis)
        for index, of_channel in enumerate(levels):
            values[index, : len(of_channel)] = of_channel
            parts[index][...] = np.searchsorted(of_channel, channels[index])
        shape = [1] * images.ndim
        shape[-1 if axis is None else axis] = len(levels)
        values = values.view("<f4").reshape(*shape, length)
        return hidden(numbers), hidden(values)
    return None


def unpack(numbers: np.ndarray, values: np.ndarray) -> np.ndarray:
    """What `pack` split.

    Raises:
        PassportError: If the arrays are not its.
    """
    shape, length = values.shape[:-1], values.shape[-1:]
    count = math.prod(shape)
    axes = [axis for axis, n in enumerate(shape) if n != 1]
    if (
        len(shape) != numbers.ndim
        or not 0 < math.prod(length) <= _LEVELS
        or len(axes) > 1
        or any(shape[axis] != numbers.shape[axis] for axis in axes)
    ):
        raise PassportError(
            "Expected values for every channel of an image. Received: "
            f"shape={values.shape} for shape={numbers.shape}"
        )
    images = np.empty(numbers.shape, "<f4")
    axis = axes[0] if axes else None
    rows = values.reshape(count, -1)
    for row, part, index in zip(
        rows, _channels(images, axis), _channels(numbers, axis), strict=True
    ):
        part[...] = row[index]
    return hidden(images)


def _channels(array, axis) -> list | np.ndarray | None:
    """Views of an array's channels along an axis, or of all of it."""
    if axis is None:
        return array[None]
    if axis >= array.ndim or not 1 < array.shape[axis] <= _MOST_CHANNELS:
        return None
    return np.moveaxis(array, axis, 0)
