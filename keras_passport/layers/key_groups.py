"""Groups of output channels with a key each.

One key meets all filters of a kernel, and so reaches as many hidden parameters
as a filter has elements. A kernel with more output channels than that, such as
a pointwise expansion, has several keys: of each block of the kernel's output
channels (`KernelAdapter.blocks`), channel c belongs to group c % groups.
"""

import numpy as np
from keras import ops


def count(keys, shape: tuple[int, ...]) -> int | None:
    """How many groups keys are for; `None` if they are of another shape.

    Args:
        keys: Array or tensor `(rows, *shape)` or `(rows, groups, *shape)`.
        shape: Of one filter.
    """
    given = tuple(keys.shape)[1:]
    if given == shape:
        return 1
    return given[0] if given[1:] == shape and len(given) > 0 else None


def of_channels(units: int, groups: int, blocks: int = 1) -> np.ndarray:
    """The group of each of a layer's output channels, int32 `(units,)`."""
    return (np.arange(units) % (units // blocks) % groups).astype("int32")


def join(response, groups: int, blocks: int = 1):
    """Of all keys' responses, each channel's to the key of its group.

    Args:
        response: Tensor `(rows · groups, units)`.
        groups: Number of groups.
        blocks: Number of blocks.

    Returns:
        Tensor `(rows, units)`.
    """
    units = response.shape[-1]
    places = of_channels(units, groups, blocks) * units + np.arange(units)
    response = ops.reshape(response, (-1, groups * units))
    return ops.take(response, places.astype("int32"), axis=1)


def split(values, groups: int, blocks: int = 1):
    """The adjoint of `join`: zeros for the channels of other groups.

    Args:
        values: Tensor `(rows, units)`.
        groups: Number of groups.
        blocks: Number of blocks.

    Returns:
        Tensor `(rows · groups, units)`.
    """
    if groups == 1:
        return values
    units = values.shape[-1]
    belongs = of_channels(units, groups, blocks) == np.arange(groups)[:, None]
    parts = ops.expand_dims(values, 1) * ops.cast(belongs, values.dtype)
    return ops.reshape(parts, (-1, units))
