"""Rows of kernels that are stored in a secret order, with secret signs.

A row is what one element of a kernel's window does with one input channel, for
all output channels of a group. Stored in a secret order, rows tell neither the
filters' shape, from which signs can be guessed, nor which channel meets which.

Filters fall into groups of at most four, whose rows have an order each: long
rows are found again by who has others like them, such as the numbers that the
training began with (`groups`).

The order is a key of one number a row and group: its size says which of the
stored rows is meant, counted from 1, and its sign what that is multiplied by.
It follows from a passport's seed, and comes last in a packed passport. Keys of
γ and β that are solved for meet kernels as they are stored, and only what a
call does with its inputs has the rows gathered. Those that a network was
trained under meet what is gathered (`PassportNormalization.gathered`).
"""

import math
import warnings

import keras
import numpy as np
from keras import ops

from keras_passport.errors import PassportError
from keras_passport.layers import packing, received
from keras_passport.layers.bindings import has_values

# Most filters of a group, by the least number of rows that they have.
_FILTERS = ((64, 4), (0, 1))


def guard(layer, ordered: bool) -> None:
    """Lets a kernel layer refuse LoRA while its rows are in a secret order.

    Its product would be added to rows in their own order, and merged by
    Keras's files into those that are stored.

    Args:
        layer: The kernel layer.
        ordered: Whether its rows are in a secret order now.
    """
    for part in layer._flatten_layers():
        if ordered and hasattr(part, "enable_lora"):
            part.enable_lora = _refusal_of_lora(part)
        else:
            vars(part).pop("enable_lora", None)


def _refusal_of_lora(layer):
    def enable_lora(*args, **kwargs):
        raise PassportError(
            f"Expected layer '{layer.name}' to have its rows in their own "
            "order before LoRA is enabled: enable it in what "
            "keras_passport.unlock(model, passport, fold=False) returns, or "
            "protect with order=False. Received: rows in a secret order"
        )

    return enable_lora


def penalties(layer) -> dict:
    """What regularizers of a layer's kernels say now, by their names.

    Args:
        layer: A built kernel layer.
    """
    return {
        f"{variable.name.removesuffix('_kernel')}_regularizer": float(
            variable.regularizer(variable.value)
        )
        for variable in layer.variables
        if variable.name.endswith("kernel") and variable.regularizer is not None
    }


def release_penalties(layer, before: dict) -> None:
    """Takes off regularizers that see other kernels once rows are stored.

    Those of single elements don't; those of filters together, such as
    `OrthogonalRegularizer`, would have them trained for what nobody computes.

    Args:
        layer: The kernel layer.
        before: What `penalties` returned before.
    """
    for name, now in penalties(layer).items():
        if math.isclose(now, before[name], rel_tol=1e-4, abs_tol=1e-12):
            continue
        warnings.warn(
            f"Layer '{layer.name}' has a {name} of more than single elements. "
            "It can't see the kernel, whose rows are in a secret order, so it "
            "is left out: train on without.",
            stacklevel=3,
        )
        setattr(layer, name, None)
        label = name.removesuffix("_regularizer")
        for variable in layer.variables:
            if variable.name in (label, f"{label}_kernel"):
                variable.regularizer = None


def release(layer) -> None:
    """Takes the constraints off kernels that were given other signs or sizes.

    Args:
        layer: The kernel layer.
    """
    names = [
        name
        for name, value in vars(layer).items()
        if name.endswith("_constraint")
        and name != "bias_constraint"
        and value is not None
    ]
    if not names:
        return
    warnings.warn(
        f"Layer '{layer.name}' has a {names[0]}. Its kernel, as it is "
        "published, does not meet it, so it is left out: train on without.",
        stacklevel=3,
    )
    for name in names:
        setattr(layer, name, None)
    for variable in layer.variables:
        if variable.name.endswith("kernel"):
            variable.constraint = None


def counts(adapter, layer) -> tuple[int, ...]:
    """How many rows each of a layer's kernels has, as `Geometry` has it.

    Args:
        adapter: The layer's `KernelAdapter`.
        layer: A built kernel layer.
    """
    return tuple(
        _rows(adapter, kernel.shape)
        for kernel in stored_kernels(adapter, layer)
    )


def groups(
    adapter, layer, inputs_shape=None, filters: int | None = None
) -> tuple[int, ...]:
    """Into how many groups of filters each of a layer's kernels is to fall.

    A row of g numbers whose cosine with another is ρ tells g/2 log2(1/(1-ρ²))
    bits of which it is: 0.7 g at the 0.8 that trained kernels may have with
    their first weights. Of n rows and signs, log2(2n) are needed. With fewer,
    rows as they are put back are less like the kernel than what they were put
    back by: the first weights alone say as much. Eight filters are too many
    for 1,024 rows, too: at the 0.9 that a short training leaves they tell 9.6
    of 11 bits, and four tell half of that. Rows that a training hardly changed,
    as a window's corners over maps that are smaller than it, tell enough in
    fours as well: there each filter has an order, whose rows, single numbers,
    tell a filter's size, and no sign.

    Args:
        adapter: As for `counts`.
        layer: A built kernel layer.
        inputs_shape: Of what it is called with, examples included; `None`
            where it is not known.
        filters: Of a group at most, where it would have more.
    """
    found, reaches_out = [], _reaches_out(adapter.geometry(layer), inputs_shape)
    for kernel in stored_kernels(adapter, layer):
        columns = kernel.shape[adapter.columns_axis]
        rows = _rows(adapter, kernel.shape)
        most = next(most for least, most in _FILTERS if rows >= least)
        most = 1 if reaches_out else most
        most = min(most, filters or most)
        found.append(
            next(
                columns // size
                for size in range(most, 0, -1)
                if columns % size == 0
            )
        )
    return tuple(found)


def _reaches_out(geometry, inputs_shape) -> bool:
    """Whether a window is larger than the maps that it slides over."""
    if geometry.kind != "convolution" or inputs_shape is None:
        return False
    is_first = geometry.data_format == "channels_first"
    sizes = inputs_shape[2:] if is_first else inputs_shape[1:-1]
    return any(
        size is not None and size < (kernel - 1) * dilation + 1
        for size, kernel, dilation in zip(
            sizes, geometry.kernel_size, geometry.dilation, strict=True
        )
    )


def rows_of(adapter, layer) -> list[np.ndarray]:
    """Each of a layer's kernels as its rows, `(rows, output channels)`.

    Args:
        adapter: As for `counts`, and so is the next.
        layer: The kernel layer.
    """
    return [
        ops.convert_to_numpy(
            _columns_last(kernel.value, adapter.columns_axis)
        ).reshape(_rows(adapter, kernel.shape), -1)
        for kernel in stored_kernels(adapter, layer)
    ]


def store(
    adapter, layer, order: np.ndarray, groups: tuple[int, ...] = ()
) -> None:
    """Gives kernels the order from which a call gathers what they are now.

    Args:
        adapter: As for `counts`, and so is the next.
        layer: The kernel layer.
        order: As for `gathered`, and so is the next.
        groups: How many orders each kernel's rows have.
    """
    back = inverse(counts(adapter, layer), order, groups)
    for kernel, value in gathered(adapter, layer, back, groups):
        kernel.assign(value)


def inverse(
    rows: tuple[int, ...], order: np.ndarray, groups: tuple[int, ...] = ()
) -> np.ndarray:
    """The order that gathers what is in its own order to where it is stored.

    Args:
        rows: As `counts` returns them.
        order: As for `gathered`, and so is the next.
        groups: How many orders each kernel's rows have.
    """
    found, start = [], 0
    for count, own in zip(rows, groups or (1,) * len(rows), strict=True):
        part = order[start : start + count * own].reshape(count, own)
        places = np.argsort(np.abs(part), axis=0)
        signs = np.take_along_axis(np.sign(part), places, axis=0)
        found.append((signs * (places + 1)).ravel())
        start += count * own
    return np.concatenate(found).astype("float32")


def gathered(
    adapter,
    layer,
    order,
    groups: tuple[int, ...] = (),
    values: dict | None = None,
) -> list:
    """A layer's kernels with their rows in the order that they belong in.

    Args:
        adapter: As for `counts`, and so is the next.
        layer: The kernel layer.
        order: Tensor or array, as `draws.order_of_rows` makes it.
        groups: How many orders each kernel's rows have; one if not given.
        values: Dict from a variable's id to the tensor that it is to have
            instead of its own value.

    Returns:
        List of tuples of a variable and a tensor, bit for bit what was stored
        but for its place and sign.
    """
    found, start = [], 0
    axis, kernels = adapter.columns_axis, stored_kernels(adapter, layer)
    groups = groups or (1,) * len(kernels)
    for kernel, own in zip(kernels, groups, strict=True):
        value = (values or {}).get(id(kernel), kernel.value)
        rows = _rows(adapter, kernel.shape)
        part = order[start : start + rows * own]
        start += rows * own
        # Anybody may present anything: what is no order, or no number, takes
        # some rows.
        places = ops.clip(ops.cast(ops.abs(part), "int32"), 1, rows)
        group = np.tile(np.arange(own, dtype="int32"), rows)
        value = _columns_last(value, axis)
        shape = tuple(value.shape)
        value = ops.reshape(value, (rows * own, -1))
        value = _taken(value, places * own + (group - own))
        signs = ops.cast(ops.sign(part), value.dtype)
        value = ops.reshape(value * ops.expand_dims(signs, 1), shape)
        found.append((kernel, _columns_last(value, axis)))
    return found


def _taken(matrix, places):
    """Rows of a matrix, whose places are known to be in it."""
    if keras.backend.backend() != "tensorflow":
        return ops.take(matrix, places, axis=0)
    import tensorflow as tf

    # Keras's `take` asks for negative places first, and for many short rows
    # TensorFlow's `gather` needs twice the time.
    return tf.gather_nd(matrix, ops.expand_dims(places, 1))


def _columns_last(kernel, axis):
    """A kernel with this axis as its last one, or back again."""
    if axis == -1:
        return kernel
    axes = list(range(len(kernel.shape)))
    axes[axis], axes[-1] = axes[-1], axes[axis]
    return ops.transpose(kernel, axes)


def stored_kernels(adapter, layer) -> list:
    """A layer's kernels, those that have rows.

    Args:
        adapter: As for `counts`, and so is the next.
        layer: The kernel layer.
    """
    names = {variable.name: variable for variable in layer.variables}
    return [names[name] for name in adapter.kernel_names if name in names]


def _rows(adapter, shape) -> int:
    return math.prod(shape) // shape[adapter.columns_axis]


def kernels_of(layer, packed, values: dict | None = None) -> list:
    """What a call has in place of kernels whose rows are stored otherwise.

    Args:
        layer: A passport layer.
        packed: Tensor `(1, passport_size)`: its keys.
        values: As for `gathered`.

    Returns:
        What `gathered` does; an empty list where rows are in their own order.
    """
    if not layer.geometry.ordered_rows:
        return []
    order = packing.order_in(layer, packed)
    return gathered(layer.adapter, layer.layer, order, layer.row_groups, values)


def met_by_keys(layer, packed) -> list:
    """What keys meet in place of kernels as they are stored.

    Args:
        layer: A passport layer.
        packed: As for `kernels_of`.

    Returns:
        What `gathered` does; an empty list where they meet what is stored.
    """
    return kernels_of(layer, packed) if layer.gathered else []


def stored(layer, packed, kernel, value):
    """Where what is added to a kernel's rows in their order is to be added.

    Args:
        layer: A passport layer.
        packed: As for `kernels_of`, an array or eager tensor.
        kernel: The variable.
        value: Tensor of its shape, for what keys meet.
    """
    if not layer.gathered:
        return value
    adapter, kernel_layer = layer.adapter, layer.layer
    order = ops.convert_to_numpy(packing.order_in(layer, packed))
    back = inverse(counts(adapter, kernel_layer), order, layer.row_groups)
    values = {id(kernel): ops.convert_to_tensor(value)}
    found = gathered(adapter, kernel_layer, back, layer.row_groups, values)
    return next(value for variable, value in found if variable is kernel)


def one_passport(layer, packed):
    """The one row of keys that examples have in common, if rows have an order.

    There is one kernel for all of them. Where nobody can be told so, in a
    compiled function, outputs are NaN.

    Args:
        layer: A passport layer.
        packed: Tensor `(1 or examples, passport_size)`.

    Returns:
        Tensor `(1, passport_size)`; what is given where rows have no order.

    Raises:
        PassportError: If there are several passports.
    """
    if packed.shape[0] == 1 or not layer.geometry.ordered_rows:
        return packed
    one, several = packed[:1], _are_several(packed)
    if has_values(packed):
        if several:
            raise PassportError(received.several_for(layer))
        return one
    return ops.where(several, ops.cast(np.nan, one.dtype), one)


def of_one_passport(layers, packed, outputs):
    """A model's outputs, or NaN if a compiled call had several passports.

    Layers compute NaN of them themselves; but rectifiers that are fused with a
    bias, and maxima, drop it, and what follows makes numbers of nothing.

    Args:
        layers: The model's passport layers.
        packed: Tensor `(1 or examples, size)`: the model's passports.
        outputs: Structure of tensors.
    """
    parts = [part for _, part in received.ordered_parts(layers, packed)]
    if not parts or packed.shape[0] == 1 or has_values(packed):
        return outputs
    several = ops.any(ops.stack([_are_several(part) for part in parts]))
    return keras.tree.map_structure(
        lambda tensor: (
            ops.where(several, ops.cast(np.nan, tensor.dtype), tensor)
            if keras.backend.is_float_dtype(
                keras.backend.standardize_dtype(tensor.dtype)
            )
            else tensor
        ),
        outputs,
    )


def _are_several(packed):
    # Of one row, as long as all kernels together, nothing is compared.
    return ops.any(ops.not_equal(packed[1:], packed[:1]))
