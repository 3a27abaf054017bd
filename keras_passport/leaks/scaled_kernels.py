"""Kernels into which γ was folded, recognised by what they are divided by.

A folded kernel is the public one times γ/σ of each channel: whoever has both
divides them. Neither is like a key; their ratio is like γ.

Where rows are in a secret order, that holds for the kernel as a call gathers
it, which is a secret itself, whatever it was multiplied by: the original, an
unlocked copy and the network of before `hide_rows` all have it.
"""

import dataclasses
import math

import numpy as np

from keras_passport.leaks import searches

# Cosine of a channel's filter and the kernel's that a scaled copy has, be it
# quantised; a kernel that was trained on has less.
_COPY = 0.99
# By how much the scales differ at least: a kernel is not folded by one number.
_DIFFERENT = 0.1
# Logarithm of the chance at which random filters, of few rows, may be alike.
_CHANCE = math.log(1e-12)
# Different numbers in a filter that others do not have by chance.
_VALUES = 8
# Channels, and elements of each, by which most arrays are ruled out.
_SAMPLE = 16


@dataclasses.dataclass(frozen=True)
class Folded:
    """A protected layer's kernel and what `unlock` folds into it.

    Args:
        path: The layer's path.
        kernel: Its array, without axes of size 1.
        channels: Of each element, the number of its output channel.
        count: Number of output channels.
        gathered: Whether it is what a secret order of rows gathers.
    """

    path: str
    kernel: np.ndarray
    channels: np.ndarray
    count: int
    gathered: bool


def kernels_of(layers, rows) -> list[Folded]:
    """The kernels of protected layers.

    Args:
        layers: Pairs of a path and a built `PassportNormalization` layer.
        rows: Of each, what the passport binds, float32 `(1, passport_size)`.
    """
    kernels = []
    for (path, layer), row in zip(layers, rows, strict=True):
        in_order = _in_order(layer, row)
        has_deviations = deviations_of(layer) is not None
        count = layer.adapter.units(layer.layer)
        ones = layer.adapter.folded(
            layer.layer,
            np.arange(count, dtype="float64"),
            read=lambda kernel: np.ones(kernel.shape),
        )
        for name, channels in ones.items():
            weight = getattr(layer.layer, name, None)
            # Of two kernels in a row one is not scaled.
            if weight is None or np.ptp(channels) == 0:
                continue
            channels = np.squeeze(np.broadcast_to(channels, weight.shape))
            about = channels.astype("int32"), count
            if has_deviations:
                stored = np.squeeze(np.asarray(weight, "float32"))
                kernels.append(Folded(path, stored, *about, gathered=False))
            if id(weight) in in_order:
                own = Folded(path, in_order[id(weight)], *about, gathered=True)
                if _is_telling(own):
                    kernels.append(own)
    return kernels


def _in_order(layer, row) -> dict:
    """By the id of a kernel, what the passport's order of its rows gathers."""
    # Where there is a layer, Keras has been imported.
    from keras import ops

    from keras_passport.layers import row_order

    return {
        id(kernel): np.squeeze(ops.convert_to_numpy(ops.cast(value, "float32")))
        for kernel, value in row_order.kernels_of(layer, row)
    }


def _is_telling(one) -> bool:
    """Whether no other filters are like a kernel's by chance.

    The cosine of n random numbers exceeds c with a chance of at most
    (1 - c²)^((n - 1) / 2); so must half of the filters, or more. Filters of
    few different values, as those that blur, have others like them.
    """
    order = np.argsort(one.channels, axis=None, kind="stable")
    filters = one.kernel.reshape(-1)[order].reshape(one.count, -1)
    rows = filters.shape[1]
    chance = math.log(1.0 - _COPY**2) * (rows - 1) / 2
    if one.count * (math.log(2.0) + chance / 2) >= _CHANCE:
        return False
    values = [np.unique(np.abs(row)).size for row in filters[:_SAMPLE]]
    return bool(np.median(values) >= min(rows, _VALUES))


def deviations_of(layer) -> np.ndarray | None:
    """σ of a layer's batch normalisation per channel, or None without one."""
    if not hasattr(layer.normalization, "moving_variance"):
        return None
    # Where there is a layer, Keras has been imported.
    from keras_passport.layers.normalization import statistics_of

    return statistics_of(layer.normalization)[1]


def scales_in(array: np.ndarray, folded: list[Folded]):
    """Yields each kernel that an array is, but for a factor per channel.

    Args:
        array: Numbers of any shape, in any order of axes.
        folded: The kernels.

    Returns:
        Pairs of `Folded` and the factors, a float64 array `(channels,)`.
    """
    if not searches.is_numeric(array):
        return
    for one in folded:
        if array.size != one.kernel.size:
            continue
        flat = array.reshape(-1)
        sample = _sample(one.channels)
        for axes in searches.ways(one.kernel.ndim):
            places = _places(sample, one.kernel.shape, axes)
            if _scales(flat[places], one, sample) is None:
                continue
            order = np.arange(one.kernel.size).reshape(one.kernel.shape)
            order = order.transpose(axes).reshape(-1)
            scales = _scales(flat, one, order)
            if scales is not None:
                # Else it is the kernel itself, or that times one number.
                size = np.abs(scales).mean()
                if one.gathered or np.std(scales) > _DIFFERENT * size > 0:
                    yield one, scales
                break


def _sample(channels):
    """Elements of some channels, several of each."""
    order = np.argsort(channels, axis=None, kind="stable")
    count = np.unique(channels).size
    each = order.size // count
    rows = order[: each * count].reshape(count, each)
    return rows[:: -(-count // _SAMPLE), :_SAMPLE].ravel()


def _places(elements, shape, axes):
    """Where elements of an array are in it, with its axes in another order."""
    places = np.unravel_index(elements, shape)
    return np.ravel_multi_index(
        tuple(places[axis] for axis in axes),
        tuple(shape[axis] for axis in axes),
    )


def _scales(values, one, order):
    """Factors of all channels if the values are those of a scaled kernel."""
    values = values.astype("float64")
    kernel = one.kernel.reshape(-1)[order].astype("float64")
    channels = one.channels.reshape(-1)[order]
    count = one.count

    def sums(products):
        return np.bincount(channels, products, minlength=count)

    with np.errstate(all="ignore"):
        dot, of_kernel = sums(values * kernel), sums(kernel**2)
        of_values = sums(values**2)
        cosines = np.abs(dot) / np.sqrt(of_kernel * of_values)
        scales = dot / of_kernel
    # A sample may have one element of a channel, which says nothing.
    many = (np.bincount(channels, minlength=count) > 1) & (
        of_kernel * of_values > 0
    )
    if not np.any(many) or np.mean(cosines[many] >= _COPY) < 0.5:
        return None
    return np.nan_to_num(scales)
