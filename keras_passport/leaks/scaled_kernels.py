"""Kernels into which γ was folded, recognised by what they are divided by.

A folded kernel is the public one times γ/σ of each channel: whoever has both
divides them. Neither is like a key; their ratio is like γ.
"""

import dataclasses

import numpy as np

from keras_passport.leaks import searches

# Cosine of a channel's filter and the kernel's that a scaled copy has, be it
# quantised; a kernel that was trained on has less.
_COPY = 0.99
# By how much the scales differ at least: a kernel is not folded by one number.
_DIFFERENT = 0.1
# Channels, and elements of each, by which most arrays are ruled out.
_SAMPLE = 16


@dataclasses.dataclass(frozen=True)
class Folded:
    """A protected layer's kernel and what `unlock` folds into it.

    Args:
        path: The layer's path.
        kernel: Its array, without axes of size 1.
        channels: Of each element, the number of its output channel.
        deviations: σ of each channel, or `None` where nothing is folded.
    """

    path: str
    kernel: np.ndarray
    channels: np.ndarray
    deviations: np.ndarray | None


def kernels_of(layers) -> list[Folded]:
    """The kernels of protected layers.

    Args:
        layers: Pairs of a path and a built `PassportNormalization` layer.
    """
    kernels = []
    for path, layer in layers:
        deviations = deviations_of(layer)
        if deviations is None:
            continue
        ones = layer.adapter.folded(
            layer.layer,
            np.arange(deviations.size, dtype="float64"),
            read=lambda kernel: np.ones(kernel.shape),
        )
        for name, channels in ones.items():
            weight = getattr(layer.layer, name, None)
            # Of two kernels in a row one is not scaled.
            if weight is None or np.ptp(channels) == 0:
                continue
            kernel = np.squeeze(np.asarray(weight, "float32"))
            channels = np.squeeze(np.broadcast_to(channels, weight.shape))
            kernels.append(
                Folded(path, kernel, channels.astype("int32"), deviations)
            )
    return kernels


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
                if np.std(scales) > _DIFFERENT * size > 0:
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
    count = one.deviations.size

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
