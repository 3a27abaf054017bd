"""Whether a picture, or an array of pictures, is one of a passport's.

Pictures of different things are alike, so no bound follows from chance as for
keys. A copy, scaled, quantised to 8 bits, resized or saved as JPEG, is alike
in its brightness and in how that changes from pixel to pixel.
"""

import dataclasses
import io
import warnings
from collections.abc import Iterator

import numpy as np

from keras_passport.leaks.searches import is_numeric
from keras_passport.passports.derivation import image_arrays

# Correlation of brightness, and of its changes, that a copy has at least: of
# small pictures, and of those from so many pixels on. Of the 1.6 million pairs
# of scikit-learn's digits (8x8) none reaches the first.
_SMALL, _LARGE, _MANY = (0.995, 0.99), (0.95, 0.9), 256
# Fewer pixels, or different values of them, show nothing.
_FEWEST, _DIFFERENT = 49, 8
_MOST_PIXELS, _MOST_FRAMES = 2**25, 64
_AT_A_TIME = 2**22
_FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM")
_BRIGHTNESS = np.array([0.299, 0.587, 0.114])


@dataclasses.dataclass(frozen=True)
class Likeness:
    """What a picture is a copy of.

    Args:
        what: `"identity image"` or `"feature map"`.
        layer: Path of the map's layer, or "".
        role: The map's, or "".
        measure: The lesser of both correlations.
        least: What a copy reaches.
    """

    what: str
    layer: str
    role: str
    measure: float
    least: float


class NotReadable(ValueError):
    """A picture that can't be compared; its text says why."""


def read(data: np.ndarray) -> Iterator[np.ndarray]:
    """Yields the pictures in a picture file, `(height, width, 3)`, 0 to 255.

    Raises:
        NotReadable: If it is damaged, too large, or Pillow is not installed.
    """
    try:
        from PIL import Image, ImageSequence
    except ImportError:
        raise NotReadable("a picture; Pillow is not installed") from None
    try:
        with (
            warnings.catch_warnings(),
            Image.open(io.BytesIO(data.tobytes()), formats=_FORMATS) as file,
        ):
            warnings.simplefilter("ignore")
            for i, frame in enumerate(ImageSequence.Iterator(file)):
                if frame.width * frame.height > _MOST_PIXELS:
                    raise NotReadable("a picture of too many pixels")
                if i == _MOST_FRAMES:
                    raise NotReadable("a picture with too many frames")
                yield np.asarray(frame.convert("RGB"), "float32")
    except NotReadable:
        raise
    # A damaged picture may fail in any way.
    except Exception as error:
        why = f"a damaged picture ({type(error).__name__})"
        raise NotReadable(why) from error


class Likenesses:
    """The identity images and feature maps of a passport, to compare with."""

    def __init__(self, passport):
        # By height and width: what they are, and how they look.
        self._known = {}
        for images in image_arrays(passport.images):
            if np.ndim(images) == 4:
                for image in np.asarray(images):
                    self._add("identity image", "", "", image)
        for path, entry in passport.layers.items():
            for role in ("gamma", "beta"):
                value = getattr(entry, role)
                # Of a map with more channels than a picture none is made.
                if np.ndim(value) == 3 and {1, 3} & set(value.shape):
                    self._add("feature map", path, role, value)
        self._known = {
            size: (about, *map(np.stack, zip(*looks, strict=True)))
            for size, (about, looks) in self._known.items()
        }

    def _add(self, what, layer, role, image):
        bright = _brightness(image)
        if bright is None:
            return
        about, looks = self._known.setdefault(bright.shape, ([], []))
        units = _looks(bright[None])
        if units is not None and np.unique(bright).size >= _DIFFERENT:
            about.append((what, layer, role))
            looks.append((units[0][0], units[1][0]))
        elif not about:
            del self._known[bright.shape]

    def pictures(self, data: np.ndarray) -> Iterator[Likeness]:
        """Yields what the pictures in a file are copies of."""
        for picture in read(data):
            if not self._known:
                continue
            bright = _brightness(picture)
            for size in self._known:
                if bright.size >= _FEWEST:
                    yield from self._compare(_resized(bright, size)[None])

    def search(self, array: np.ndarray) -> Iterator[Likeness]:
        """Yields what the pictures in an array are copies of.

        Its last axes are a picture's, in any order of channels, or the pixels
        of one in a row.
        """
        if not is_numeric(array):
            return
        for size in self._known:
            pixels = size[0] * size[1]
            for stack in _stacks(array, *size):
                step = max(1, _AT_A_TIME // pixels)
                for first in range(0, len(stack), step):
                    batch = stack[first : first + step].astype("float64")
                    batch = np.where(np.abs(batch) < 1e9, batch, 0.0)
                    if batch.ndim == 4:
                        batch = batch @ (
                            _BRIGHTNESS if batch.shape[-1] == 3 else np.ones(1)
                        )
                    yield from self._compare(batch)

    def _compare(self, bright):
        """Compares pictures of one size, `(n, height, width)`."""
        about, values, changes = self._known[bright.shape[1:]]
        looks = _looks(bright)
        if looks is None:
            return
        small = bright[0].size < _MANY
        least = _SMALL if small else _LARGE
        likeness = np.abs(looks[0] @ values.T)
        change = np.abs(looks[1] @ changes.T)
        alike = (likeness >= least[0]) & (change >= least[1])
        for one in np.flatnonzero(alike.any(axis=0)):
            measure = np.minimum(likeness, change)[:, one].max()
            yield Likeness(*about[one], min(1.0, float(measure)), min(least))


def _brightness(image):
    """A picture's brightness, `(height, width)`, or None if it is none."""
    image = np.asarray(image, "float64")
    if image.ndim != 3:
        return None
    if image.shape[-1] not in (1, 3) and image.shape[0] in (1, 3):
        image = np.moveaxis(image, 0, -1)
    if image.shape[-1] not in (1, 3):
        return None
    if image.shape[0] * image.shape[1] < _FEWEST:
        return None
    return image @ (_BRIGHTNESS if image.shape[-1] == 3 else np.ones(1))


def _stacks(array, height, width):
    """An array as pictures, channels last, in each way its shape allows."""
    shape, size = array.shape, (height, width)
    if shape[-3:-1] == size and shape[-1] in (1, 3):
        yield array.reshape(-1, *size, shape[-1])
    if shape[-2:] == size:
        yield array.reshape(-1, *size)
        if array.ndim >= 3 and shape[-3] in (1, 3):
            yield np.moveaxis(array.reshape(-1, shape[-3], *size), 1, -1)
    for channels in (1, 3):
        size = height * width * channels
        if array.ndim in (1, 2) and array.shape[-1] == size:
            yield array.reshape(-1, height, width, channels)


def _looks(bright):
    """Brightness and its changes, each centred and of length 1, or None."""
    if min(bright.shape[1:]) < 2:
        return None
    rows, columns = np.diff(bright, axis=1), np.diff(bright, axis=2)
    count = len(bright)
    changes = [rows.reshape(count, -1), columns.reshape(count, -1)]
    looks = []
    for values in (bright.reshape(count, -1), np.concatenate(changes, axis=1)):
        values = values - values.mean(axis=1, keepdims=True)
        length = np.linalg.norm(values, axis=1, keepdims=True)
        looks.append(values / np.where(length > 1e-6, length, np.inf))
    return looks if np.any(looks[0]) else None


def _resized(bright, size):
    """A picture at another size: the mean of what falls into each pixel."""
    if bright.shape == size:
        return bright
    from PIL import Image

    picture = Image.fromarray(bright.astype("float32"))
    filter_ = Image.Resampling.BILINEAR
    return np.asarray(picture.resize(size[::-1], filter_), "float64")
