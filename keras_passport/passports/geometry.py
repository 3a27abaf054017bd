"""From a passport's feature map to its key, with NumPy alone.

The passport function is linear in the passport and averages over output
positions, so it depends on the passport only through the mean patch that the
kernel sees. That mean patch is the *key* κ(p). Every kernel position (i, j)
meets each input position as often along one axis as it does whatever happens
along the others, so the digest takes one spatial axis after the other.
"""

import dataclasses
import math

import numpy as np

from keras_passport.errors import PassportError
from keras_passport.secrecy import hidden
from keras_passport.texts import shown

_KINDS = ("convolution", "transpose", "pointwise")
_PADDINGS = ("valid", "same", "causal")


@dataclasses.dataclass(frozen=True)
class Geometry:
    """All that the digest of one layer's passport depends on.

    Args:
        kind: `"convolution"` (plain, grouped, depthwise and separable alike),
            `"transpose"`, or `"pointwise"` for a layer that maps the last
            axis at every position (Dense).
        channels: Number of input channels.
        kernel_size: Kernel size per spatial axis, in elements.
        strides: Stride per spatial axis.
        dilation: Dilation rate per spatial axis.
        padding: `"valid"`, `"same"` or `"causal"`.
        data_format: `"channels_last"` or `"channels_first"`: where the
            feature maps hold their channels.
        output_padding: For `"transpose"`: extra output elements per axis, or
            `None` for Keras's default.
        key_groups: Groups of output channels that have a key each; see
            `KernelAdapter.response`.
        ordered_rows: How many rows each of the layer's kernels has, where
            they are stored in a secret order (`layers.row_order`).
        row_groups: Into how many groups of filters each of those kernels
            falls whose rows have an order of their own; one if not given.
        gathered: Whether keys meet such rows as a call gathers them, in
            their own order; else as they are stored.

    Example:

    >>> from keras_passport.passports.geometry import Geometry
    >>> geometry = Geometry(
    ...     *("convolution", 3, (3, 3), (1, 1), (1, 1)), padding="same"
    ... )
    >>> geometry.key_shape
    (3, 3, 3)
    """

    kind: str
    channels: int
    kernel_size: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    padding: str = "valid"
    data_format: str = "channels_last"
    output_padding: tuple[int, ...] | None = None
    key_groups: int = 1
    ordered_rows: tuple[int, ...] = ()
    row_groups: tuple[int, ...] = ()
    gathered: bool = False

    def __post_init__(self):
        rank = len(self.kernel_size)
        extra = self.output_padding
        if (
            self.kind not in _KINDS
            or self.padding not in _PADDINGS
            or self.data_format not in ("channels_last", "channels_first")
            or (self.kind == "pointwise") != (rank == 0)
            or rank > 3
            or not _are_sizes(self.kernel_size, rank)
            or not _are_sizes(self.strides, rank)
            or not _are_sizes(self.dilation, rank)
            or not _are_sizes((self.channels,), 1, largest=2**24)
            or not _are_sizes((self.key_groups,), 1)
            or len(self.ordered_rows) > 2
            or not _are_sizes(
                self.ordered_rows, len(self.ordered_rows), largest=2**24
            )
            or len(self.row_groups) not in (0, len(self.ordered_rows))
            or not _are_sizes(self.row_groups, len(self.row_groups))
            or type(self.gathered) is not bool
            or self.gathered > bool(self.ordered_rows)
            or not (extra is None or _are_sizes(extra, rank, smallest=0))
        ):
            raise PassportError(
                "Expected a kind, kernel size, strides, dilation, padding and "
                "data_format that describe a kernel layer. "
                f"Received: {shown(dataclasses.asdict(self))}"
            )

    @property
    def filter_shape(self) -> tuple[int, ...]:
        """Shape of one filter over all input channels."""
        return (*self.kernel_size, self.channels)

    @property
    def key_shape(self) -> tuple[int, ...]:
        """Shape of the key: a filter's, one for each group if there are."""
        groups = (self.key_groups,) if self.key_groups > 1 else ()
        return (*groups, *self.filter_shape)

    @property
    def key_size(self) -> int:
        """Number of elements of the key."""
        return math.prod(self.key_shape)

    @property
    def orders(self) -> tuple[tuple[int, int], ...]:
        """Rows, and orders that they have, of each kernel that has any."""
        groups = self.row_groups or (1,) * len(self.ordered_rows)
        return tuple(zip(self.ordered_rows, groups, strict=True))

    @property
    def order_size(self) -> int:
        """Number of elements of all orders of rows."""
        return sum(rows * groups for rows, groups in self.orders)

    @property
    def moves_keys(self) -> bool:
        """Whether a key follows rows to where they are stored.

        It can if all filters have one order.
        """
        stored = not self.gathered
        return stored and [groups for _, groups in self.orders] == [1]

    def fits(self, other: "Geometry") -> bool:
        """Whether keys of another geometry serve this one.

        Those for rows in their own order do for rows that are gathered, and
        for such as they can follow; see `moved`.
        """
        if (self.gathered or self.moves_keys) and not other.ordered_rows:
            return self.in_own_order() == other
        return self == other

    def in_own_order(self) -> "Geometry":
        """The geometry of the same layer whose rows have no secret order."""
        return dataclasses.replace(
            self, ordered_rows=(), row_groups=(), gathered=False
        )

    def moved(
        self, key: np.ndarray, order: np.ndarray, back: bool = False
    ) -> np.ndarray:
        """A key for rows in their own order, for where they are stored.

        W'ᵀ κ' = Wᵀ κ: each element goes where the row goes that it meets, and
        takes its sign. That is for layers with one kernel, whose blocks
        (groups of a convolution) have their rows in the same order.

        Args:
            key: Float array of shape `key_shape`.
            order: Of the rows, `(rows,)`; see `layers.row_order`.
            back: Whether it is the other way round.
        """
        [rows] = self.ordered_rows
        window = math.prod(self.kernel_size)
        blocks = window * self.channels // rows
        split = (-1, window, blocks, self.channels // blocks)
        whole = np.swapaxes(key.reshape(split), 1, 2)
        flat = whole.reshape(-1, rows)
        places = np.abs(order).astype("int64") - 1
        moved = np.empty_like(flat)
        if back:
            moved[:] = flat[:, places] * np.sign(order)
        else:
            moved[:, places] = flat * np.sign(order)
        moved = np.swapaxes(moved.reshape(whole.shape), 1, 2)
        return hidden(moved.reshape(self.key_shape))

    def to_dict(self) -> dict:
        """Plain lists, strings and numbers, for JSON."""
        # What the first files could not have is named where it is there.
        usual = {"key_groups": 1, "ordered_rows": (), "row_groups": ()}
        usual["gathered"] = False
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
            if name not in usual or usual[name] != value
        }

    @classmethod
    def from_dict(cls, config: dict) -> "Geometry":
        """The geometry that `to_dict` described."""
        try:
            return cls(
                **{
                    name: tuple(value) if isinstance(value, list) else value
                    for name, value in config.items()
                }
            )
        except TypeError as error:
            raise PassportError(
                "Expected the description of a kernel layer's geometry. "
                f"Received: {shown(config)}"
            ) from error

    def check_map(self, feature_map: np.ndarray, name: str = "passport"):
        """Raises `PassportError` unless the array can be digested."""
        self.check_shape(np.shape(feature_map), name)

    def check_shape(self, shape: tuple[int, ...], name: str = "passport"):
        """Raises `PassportError` unless maps of a shape can be digested."""
        rank = len(self.kernel_size)
        first = self.data_format == "channels_first"
        if self.kind == "pointwise":
            good = len(shape) >= 1 and shape[-1] == self.channels
            expected = f"(..., {self.channels})"
        else:
            good = (
                len(shape) == rank + 1
                and shape[0 if first else -1] == self.channels
            )
            spatial = ("length",) if rank == 1 else ("depth", "height", "width")
            axes = [*spatial[-rank:]]
            axes.insert(0 if first else rank, str(self.channels))
            expected = f"({', '.join(axes)})"
        if not good or 0 in shape:
            raise PassportError(
                f"Expected {name} to be a feature map of shape {expected}. "
                f"Received: shape={tuple(shape)}"
            )


def digest(feature_map: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Digests a passport's feature map into its key κ(p).

    κ(p)[i, j, c] = mean over output positions (u, v) of
    p_padded[u·s + i·d, v·s + j·d, c], so that the average response of a
    kernel W is Σ W[i, j, c, :] · κ(p)[i, j, c] (Table 1, "Avg(W*p)").

    Args:
        feature_map: Float array with the shape of the layer's input for one
            example, `(height, width, channels)` for a Conv2D.
        geometry: The layer's `Geometry`.

    Returns:
        The key, float32, of shape `geometry.key_shape`; of several groups,
        each has the same.

    Raises:
        PassportError: If the map does not have the layer's rank or channels,
            or is smaller than a `valid` kernel.

    Example:

    >>> from keras_passport.passports.geometry import Geometry, digest
    >>> geometry = Geometry("pointwise", channels=2)
    >>> digest(np.array([[1.0, 2.0], [3.0, 4.0]]), geometry).tolist()
    [2.0, 3.0]
    """
    feature_map = hidden(feature_map)
    geometry.check_map(feature_map)
    key = _mean_patch(feature_map, geometry)
    return hidden(np.broadcast_to(key, geometry.key_shape).copy())


def _mean_patch(feature_map, geometry):
    """The mean patch that a filter meets."""
    key = hidden(np.asarray(feature_map, dtype="float64"))
    if geometry.kind == "pointwise":
        return key.reshape(-1, geometry.channels).mean(0).astype("float32")
    if geometry.data_format == "channels_first":
        key = np.moveaxis(key, 0, -1)
    # Last the axes along which the key is larger than the map, so that
    # nothing on the way is larger than both.
    kernel = geometry.kernel_size
    for axis in sorted(
        range(len(kernel)), key=lambda axis: kernel[axis] / key.shape[axis]
    ):
        key = _digest_axis(key, geometry, axis)
    return key.astype("float32")


def _digest_axis(values, geometry: Geometry, axis: int) -> np.ndarray:
    """Digests one spatial axis: what kernel element i meets, on average.

    The sum of the input elements x that i meets, each as often as there are
    output positions at which it does, divided by the number of those.
    """
    size = values.shape[axis]
    kernel = geometry.kernel_size[axis]
    stride = geometry.strides[axis]
    dilation = geometry.dilation[axis]
    extent = (kernel - 1) * dilation + 1
    if geometry.kind == "transpose":
        padding = geometry.output_padding
        padding = None if padding is None else padding[axis]
        outputs, pad = _transposed_size(
            size, extent, stride, geometry.padding, padding
        )
        near, far = size, outputs
    else:
        outputs, pad = _convolved_size(size, extent, stride, geometry.padding)
        near, far = outputs, size
    if outputs < 1:
        raise PassportError(
            f"Expected a passport of at least {extent} elements along spatial "
            f"axis {axis}, the extent of its layer's kernel. "
            f"Received: {size}"
        )
    values = np.moveaxis(values, axis, 0)
    sums = hidden(np.zeros((kernel, *values.shape[1:])))
    # `near` steps by the stride, `far` is where it lands; a convolution reads
    # its input at `far`, a transposed one writes its output there.
    for i in range(kernel):
        shift = i * dilation - pad
        first = max(-(shift // stride), 0)
        end = min(-((shift - far) // stride), near)
        if first < end and geometry.kind == "transpose":
            sums[i] = values[first:end].sum(0)
        elif first < end:
            last = (end - 1) * stride + shift
            sums[i] = values[first * stride + shift : last + 1 : stride].sum(0)
    return np.moveaxis(sums / outputs, 0, axis)


def _are_sizes(values, rank, smallest=1, largest=2**20) -> bool:
    return (
        isinstance(values, tuple)
        and len(values) == rank
        and all(type(n) is int and smallest <= n <= largest for n in values)
    )


def _convolved_size(size, extent, stride, padding) -> tuple[int, int]:
    """Output size and left padding of a convolution along one axis."""
    if padding == "valid":
        return (size - extent) // stride + 1, 0
    if padding == "causal":
        return (size - 1) // stride + 1, extent - 1
    outputs = -(-size // stride)
    return outputs, max((outputs - 1) * stride + extent - size, 0) // 2


def _transposed_size(
    size, extent, stride, padding, output_padding
) -> tuple[int, int]:
    """Output size and left cropping of a transposed convolution."""
    if padding == "valid":
        if output_padding is None:
            output_padding = max(extent, stride) - extent
        return (size - 1) * stride + extent + output_padding, 0
    if output_padding is None:
        outputs = size * stride
    else:
        outputs = (size - 1) * stride + extent % 2 + output_padding
    return outputs, max((size - 1) * stride + extent - outputs, 0) // 2
