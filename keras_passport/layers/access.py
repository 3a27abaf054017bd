"""Which passport a call sees: the bound one, one that is presented, or none.

`bindings` says what there is. Outside of compiled functions that is what a
call sees; inside, its backend's module says how the function fetches it
whenever it runs (`graph_access`, `jit_access`). Here it is chosen.
"""

import keras
from keras.src.backend.common import symbolic_scope

from keras_passport.errors import PassportError
from keras_passport.layers import bindings
from keras_passport.layers.bindings import (
    DUALS,
    KEYS,
    PARAMETERS,
    Frame,
    Keys,
    Secret,
    bound_in_call,
    has_values,
    is_available,
    name_of,
    required,
    shown_to,
    sizes_of,
)

__all__ = [
    "DUALS",
    "KEYS",
    "PARAMETERS",
    "Keys",
    "Secret",
    "apart",
    "bind",
    "is_available",
    "is_settled",
    "read",
    "refuse_constants",
    "showing",
]


def apart(passport):
    """Packed keys as an array and a tensor, each `None` where it can't be.

    No traced function gets a tensor of known keys: it would become a constant.
    """
    if isinstance(passport, keras.Variable):
        passport = passport.value
    if not has_values(passport):
        return None, keras.ops.convert_to_tensor(passport, "float32")
    array = keras.ops.convert_to_numpy(passport).astype("float32")
    if not keras.ops.is_tensor(passport) or _compiler() is not None:
        return array, None
    return array, keras.ops.cast(passport, "float32")


def _compiler():
    """The module through which the function being traced fetches keys."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        from keras_passport.layers import graph_access as module
    elif backend == "jax":
        from keras_passport.layers import jit_access as module
    else:
        return None
    return module if module.is_tracing() else None


# Binding --------------------------------------------------------------------


def bind(keys: dict) -> None:
    """Exchanges what layers are bound to: all of them at once.

    Args:
        keys: Dict from `Secret` to `Keys`, or `None`.
    """
    if keras.backend.backend() == "jax":
        from keras_passport.layers import jit_access

        # What this thread has started before ends under what was bound then.
        jit_access.settle()
    bindings.exchange(keys)


def showing(values: dict, assumes: bool = False):
    """A block whose calls see these values.

    Args:
        values: Dict from `Secret` to `Keys`, or to the pair of γ and β.
        assumes: Whether it is γ and β.
    """
    compiler = _compiler()
    graph = None if compiler is None else compiler.current()
    return bindings.showing(Frame(values, assumes, graph))


def is_settled(secret) -> bool:
    """Whether what a call sees are the known keys of one passport."""
    frame = shown_to(secret)
    if frame is None:
        return secret.bound is not None or symbolic_scope.in_symbolic_scope()
    return not frame.assumes and frame.values[secret].is_one


# Reading ----------------------------------------------------------------------


def read(secret, kind: str = KEYS):
    """What a call of this context sees, as tensors for its computation.

    Args:
        secret: Of the layer that is called.
        kind: `KEYS`, `DUALS` if `is_settled`, or `PARAMETERS`.

    Returns:
        Keys, a tensor `(1 or examples, passport_size)`; for `DUALS` a pair of
        such tensors; for `PARAMETERS` a pair of tensors `(channels,)`, γ and
        β, or `None` if keys are what this call sees.

    Raises:
        PassportRequiredError: If there is no passport.
    """
    frame = shown_to(secret)
    if kind == PARAMETERS and (frame is None or not frame.assumes):
        return None
    if kind != PARAMETERS and frame is not None and frame.assumes:
        frame = shown_to(secret, keys_only=True)
    if symbolic_scope.in_symbolic_scope():
        return _shapes_only(secret, kind)
    compiler = _compiler()
    if compiler is not None:
        return compiler.read(secret, kind, frame)
    if kind == PARAMETERS:
        return tuple(
            keras.ops.convert_to_tensor(value, "float32")
            for value in frame.values[secret]
        )
    keys = bound_in_call(secret) if frame is None else frame.values[secret]
    if keys is None:
        raise required(secret)
    if frame is None and secret.shown and _is_replica():
        raise PassportError(
            "Expected a passport that is presented inside the function that "
            "replicas run, as keras_passport.models.keyed_function does: "
            "their threads don't see what is presented outside. "
            f"Received: a call of layer '{name_of(secret)}'"
        )
    return keys.eager(kind)


def refuse_constants(passport, name: str) -> None:
    """Raises `PassportError` if a compiled function would hold these keys.

    Args:
        passport: Keys that are given with a call.
        name: Of the layer that is called.
    """
    if isinstance(passport, keras.Variable):
        passport = passport.value
    compiler = _compiler()
    if (
        compiler is not None
        and not symbolic_scope.in_symbolic_scope()
        and compiler.is_constant(passport)
    ):
        raise PassportError(
            "Expected the keys that are given with a call to be an argument "
            "of the function that is compiled. "
            f"Received: a constant, for layer '{name}'"
        )


def _is_replica() -> bool:
    if keras.backend.backend() != "tensorflow":
        return False
    from keras_passport.layers import graph_access

    return graph_access.is_replica()


def _shapes_only(secret, kind):
    """Tensors of the right shapes: nothing is computed here but shapes."""
    rows = () if kind == PARAMETERS else (1,)
    parts = [keras.ops.zeros((*rows, n)) for n in sizes_of(secret, kind)]
    return parts[0] if kind == KEYS else tuple(parts)
