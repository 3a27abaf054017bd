"""What somebody gives for packed keys: arrays or tensors of any kind.

Refused is what can only be a mistake, as far as it is known before anything
runs: whole numbers are what a cast has left of keys, and NaN behind a ReLU
that is fused looks like an answer. No message shows a value.
"""

from collections.abc import Mapping

import keras
import numpy as np
from keras import ops

from keras_passport.errors import PassportError
from keras_passport.layers import bindings
from keras_passport.secrecy import type_of

_FLOATS = ("float32", "float64")
# They lose digits of keys, and can't count rows in a secret order.
_HALVES = ("float16", "bfloat16")
_LARGEST = float(np.finfo("float32").max)


def check(
    packed,
    size: int | None,
    whose: str = "a packed passport",
    ordered: bool = False,
    values: bool = True,
) -> None:
    """Raises `PassportError` unless this may be packed keys.

    What a function that is being traced computes has no values yet.

    Args:
        packed: Anything.
        size: Number of elements of one passport; `None` if it isn't known.
        whose: What it is to be, for the message.
        ordered: Whether an order of rows is among its numbers.
        values: Whether to look at its numbers, too.
    """
    wanted = ("float32" if ordered else "float", "K" if size is None else size)
    expected = (
        f"Expected {whose} of {wanted[0]} numbers, of shape (1 or batch, "
        f"{wanted[1]})"
    )
    if not _is_packed(packed, size, ordered):
        hint = ". Pack it: passport.pack(model)" * hasattr(packed, "pack")
        raise PassportError(f"{expected}. Received: {described(packed)}{hint}")
    known = _values(packed) if values else None
    if known is not None and not _is_finite(known):
        raise PassportError(
            f"{expected}, all of them finite. Received: NaN, infinity or what "
            "is too large for float32"
        )


def check_model(layers, passport) -> None:
    """`check` of a whole model's keys.

    Args:
        layers: Its passport layers.
        passport: What is given for them.
    """
    layers = list(layers)
    check(
        passport,
        sum(layer.passport_size for layer in layers),
        ordered=any(layer.geometry.ordered_rows for layer in layers),
    )
    known = _values(passport)
    if known is None or len(known) == 1 or known.strides[0] == 0:
        return
    for layer, part in ordered_parts(layers, known):
        if np.any(part[1:] != part[:1]):
            raise PassportError(several_for(layer))


def ordered_parts(layers, packed):
    """Yields layers with rows in a secret order, and their keys.

    Args:
        layers: All passport layers of a model.
        packed: Array or tensor `(1 or examples, size)` of their keys.
    """
    start = 0
    for layer in layers:
        end = start + layer.passport_size
        if layer.geometry.ordered_rows:
            yield layer, packed[:, start:end]
        start = end


def several_for(layer) -> str:
    """The message for several passports where there is one kernel for all."""
    return (
        f"Expected one passport for all examples: layer '{layer.name}' has "
        "its rows in a secret order (`protect_trained(order=False)` leaves "
        "them in their own). Received: several passports"
    )


def check_call(layer, passport) -> None:
    """`check` of what a passport layer is called with.

    Args:
        layer: The passport layer, built or not.
        passport: What is given with the call.
    """
    context = bindings.call_context()
    check(
        passport,
        layer.passport_size if layer.built else None,
        f"a packed passport for layer '{layer.name}'",
        layer.ordered,
        # Of what is called inside, whoever is called has looked at all of it.
        values=context is None,
    )


def check_rows(layer, inputs, *parameters) -> None:
    """Raises `PassportError` unless there is one row, or one per example.

    Args:
        layer: The passport layer, for the message.
        inputs: Tensor that it is called with.
        *parameters: γ and β, a row for each of the keys; or `None`.
    """
    count = inputs.shape[0]
    for value in parameters:
        rows = None if value is None else value.shape[0]
        if None not in (rows, count) and rows not in (1, count):
            raise PassportError(
                "Expected one row of a packed passport for layer "
                f"'{layer.name}', or {count}, one per example. "
                f"Received: {rows}"
            )


def refuse_configured(passport, name: str) -> None:
    """Raises `PassportError` if a graph's config would hold keys.

    Args:
        passport: What a layer is called with while a graph is made.
        name: The layer's.
    """
    if passport is not None and not isinstance(passport, keras.KerasTensor):
        raise PassportError(
            f"Expected passport of layer '{name}' to be an input of the "
            "functional model, such as keras.Input(...): its config would "
            f"hold the keys. Received: a {type_of(passport)}"
        )


def described(value) -> str:
    """What a value is, without what it holds."""
    if isinstance(value, Mapping):
        inner = (f"{k!r}: {described(v)}" for k, v in value.items())
        return f"{{{', '.join(inner)}}}"
    if isinstance(value, (list, tuple)):
        arrays = all(hasattr(v, "shape") or v is None for v in value)
        if arrays and len(value) <= 8:
            return f"[{', '.join(map(described, value))}]"
        return f"a {type(value).__name__} of {len(value)}"
    if value is None:
        return "None"
    if not hasattr(value, "shape"):
        return f"a {type_of(value)}"
    rank = getattr(value.shape, "rank", 0)
    shape = "an unknown shape" if rank is None else f"shape {(*value.shape,)}"
    return f"a {type_of(value)} of {shape}, {_dtype_of(value)}"


def _dtype_of(value) -> str:
    dtype = getattr(value, "dtype", None)
    # PyTorch's have no name, and their module's before it.
    return str(getattr(dtype, "name", dtype)).rpartition(".")[2]


def _is_packed(packed, size, ordered) -> bool:
    if not hasattr(packed, "shape"):
        return False
    # No ragged or sparse one.
    if hasattr(packed, "flat_values") or hasattr(packed, "indices"):
        return False
    if _dtype_of(packed) not in (_FLOATS if ordered else _FLOATS + _HALVES):
        return False
    shape = packed.shape
    if getattr(shape, "rank", 2) is None:  # known when the graph runs
        return True
    return (
        len(shape) == 2
        and 0 not in (shape[0], shape[1])
        and (size is None or shape[1] in (size, None))
    )


def _values(packed) -> np.ndarray | None:
    """An array's or tensor's values, where there are any."""
    if isinstance(packed, np.ndarray):
        return packed
    if isinstance(packed, keras.Variable):
        packed = packed.value
    if ops.is_tensor(packed):
        known = bindings.has_values(packed)
        return ops.convert_to_numpy(packed) if known else None
    # Of another backend's, or a file's. A graph's input has it, and raises.
    if isinstance(packed, keras.KerasTensor) or not hasattr(
        packed, "__array__"
    ):
        return None
    return np.asarray(packed)


def _is_finite(values) -> bool:
    # One row for all examples, as `with_passport` makes it, is read once.
    values = values[:1] if values.strides[0] == 0 else values
    # NaN is neither, and there is no copy of a large array. Of NaN in halves
    # NumPy would warn.
    with np.errstate(invalid="ignore"):
        least, largest = float(values.min()), float(values.max())
    return -_LARGEST <= least <= largest <= _LARGEST
