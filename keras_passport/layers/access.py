"""Which passport a call sees: the bound one, one that is presented, or none.

A passport is *bound* to layers, for everybody, or *presented* (or its γ and β
*assumed*) by a block of code, for the calls of that context alone: its thread,
its asyncio task, and what it calls.

What layers are bound to is one reference each, and all of a model's are
exchanged under one lock. Whoever reads takes those of all the layers that the
outermost call can reach under the same lock, once a call. So a call sees a
binding whole or not at all, whatever other threads do meanwhile.

A compiled function holds no keys. It fetches them whenever it runs, by means
of its backend's (`graph_access`, `jit_access`), from where it is called.
"""

import contextlib
import contextvars
import sys
import threading
import weakref

import keras
import numpy as np
from keras.src.backend.common import global_state, symbolic_scope

from keras_passport import secrecy
from keras_passport.errors import PassportError, PassportRequiredError

# What `read` may be asked for.
KEYS = "keys"  # Keys of one passport, for all examples.
ROWS = "rows"  # Keys, one row or one per example.
DUALS = "duals"  # Keys of one passport, and their dual basis.
PARAMETERS = "parameters"  # γ and β themselves.

_lock = threading.RLock()
_frames = contextvars.ContextVar("keras_passport", default=())

_HOW = (
    "Bind one with keras_passport.bind(model, passport), or give its keys "
    "with the call."
)


class Secret:
    """What one layer is bound to, where nobody looks for a layer's state.

    Keras and TensorFlow follow a layer's attributes to find what they save.
    An object of a class that they don't know hides its content from weights,
    state trees, checkpoints and exports alike.
    """

    __slots__ = ("__weakref__", "_layer", "bound", "shown")

    def __init__(self, layer=None):
        self._layer = weakref.ref(layer or Secret)
        self.bound = None  # Keys, or None
        self.shown = 0  # How many blocks present something to this layer.

    @property
    def layer(self):
        return self._layer()

    def __reduce__(self):
        # A copy has no passport.
        return (Secret, ())

    def __repr__(self):
        return "<secret>"


class Keys:
    """The packed keys of one layer; they never change.

    Args:
        array: float32 array `(1 or examples, passport_size)`; `None` if they
            are a tensor of a function that is being traced.
        dual: Function from one row of keys to their dual basis.
        tensor: The same keys as the backend's tensor, where they came as one.
    """

    __slots__ = ("_dual", "_duals", "_tensors", "array", "tensor")

    def __init__(self, array, dual, tensor=None):
        self.array = secrecy.hidden(array)
        self.tensor = tensor
        self._dual = dual
        self._duals = None
        self._tensors = {}

    @property
    def is_one(self) -> bool:
        """Whether they are the known keys of one passport."""
        return self.array is not None and len(self.array) == 1

    @property
    def duals(self):
        """Their dual basis, packed likewise."""
        if self._duals is None:
            self._duals = secrecy.hidden(self._dual(np.asarray(self.array)))
        return self._duals

    def eager(self, kind):
        """What `read` returns, outside of any traced function."""
        keys = self.tensor
        if keys is None:
            keys = self._tensor("array")
        return (keys, self._tensor("duals")) if kind == DUALS else keys

    def _tensor(self, name):
        if name not in self._tensors:
            self._tensors[name] = tensor_of(getattr(self, name))
        return self._tensors[name]

    def __repr__(self):
        return "<keys>"


class _Frame:
    """What one block presents.

    Args:
        values: Dict from `Secret` to `Keys`, or to the pair of γ and β.
        assumes: Whether it is γ and β.
        graph: The function that was being traced when the block began.
    """

    def __init__(self, values, assumes, graph):
        self.values = values
        self.assumes = assumes
        self.graph = graph
        self.ended = False

    def __repr__(self):
        return "<presented>"


def tensor_of(array):
    """A float32 array as a tensor outside of any traced function."""
    array = np.asarray(array)
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        with tf.init_scope():
            return tf.constant(array, "float32")
    return keras.ops.convert_to_tensor(array, "float32")


def apart(passport):
    """Packed keys as an array and a tensor, each `None` where it can't be.

    No traced function gets a tensor of known keys: it would become a constant.
    """
    if isinstance(passport, keras.Variable):
        passport = passport.value
    if is_symbolic(passport):
        return None, keras.ops.cast(passport, "float32")
    array = keras.ops.convert_to_numpy(passport).astype("float32")
    if not keras.ops.is_tensor(passport) or _compiler() is not None:
        return array, None
    return array, keras.ops.cast(passport, "float32")


def is_symbolic(value) -> bool:
    """Whether it is a tensor of a function that is being traced."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        return bool(tf.is_symbolic_tensor(value))
    if backend == "jax":
        import jax

        return isinstance(value, jax.core.Tracer)
    return False


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


def bind(bindings: dict) -> None:
    """Exchanges what layers are bound to: all of them at once.

    Args:
        bindings: Dict from `Secret` to `Keys`, or `None`.
    """
    if keras.backend.backend() == "jax":
        from keras_passport.layers import jit_access

        # What this thread has started before ends under what was bound then.
        jit_access.settle()
    with _lock:
        for secret, keys in bindings.items():
            secret.bound = keys


@contextlib.contextmanager
def showing(values: dict, assumes: bool = False):
    """A block whose calls see these values.

    Args:
        values: Dict from `Secret` to `Keys`, or to the pair of γ and β.
        assumes: Whether it is γ and β.
    """
    compiler = _compiler()
    graph = None if compiler is None else compiler.current()
    frame = _Frame(values, assumes, graph)
    with _lock:
        for secret in values:
            secret.shown += 1
    _frames.set((*_frames.get(), frame))
    try:
        yield
    finally:
        # Not by a token: blocks of generators end in any order, and in other
        # contexts than they began in.
        frame.ended = True
        _frames.set(tuple(f for f in _frames.get() if f is not frame))
        with _lock:
            for secret in values:
                secret.shown -= 1


def hold() -> None:
    """Lets this context see on what it sees now, also when blocks end.

    For a copy of a context in which a call is to be repeated.
    """
    _frames.set(
        tuple(
            _Frame(frame.values, frame.assumes, frame.graph)
            for frame in _frames.get()
            if not frame.ended
        )
    )


def shown_to(secret, keys_only=False):
    """The innermost block of this context that shows this layer something."""
    for frame in reversed(_frames.get()):
        shows = secret in frame.values and not frame.ended
        if shows and not (keys_only and frame.assumes):
            return frame
    return None


def is_available(secret) -> bool:
    """Whether a call of this context finds a passport."""
    return secret.bound is not None or shown_to(secret) is not None


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
    keys = _snapshot(secret) if frame is None else frame.values[secret]
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


def sizes_of(secret, kind) -> tuple[int, ...]:
    """Lengths of what `read` returns."""
    layer = secret.layer
    if kind == PARAMETERS:
        return (layer.adapter.units(layer.layer),) * 2
    return (layer.passport_size,) * (2 if kind == DUALS else 1)


def required(secret):
    """The error of a layer without a passport."""
    return PassportRequiredError(
        f"Layer '{name_of(secret)}' is protected and has no passport. {_HOW}"
    )


def name_of(secret) -> str:
    return getattr(secret.layer, "name", "of a model that is gone")


def call_context():
    """Keras's object for the outermost call of a layer in this thread."""
    return global_state.get_global_attribute("current_call_ctx")


def _snapshot(secret):
    """What the layer is bound to in this call, `None` if to nothing."""
    context = call_context()
    if context is None:
        return secret.bound
    taken = context.get_value("keras_passport")
    if taken is None or secret not in taken:
        secrets = reached_by(context.entry_layer, secret)
        with _lock:
            taken = {each: each.bound for each in secrets}
        context.set_value("keras_passport", taken)
    return taken[secret]


_reached = weakref.WeakKeyDictionary()


def reached_by(entry, secret) -> tuple:
    """Secrets of all the layers that a call of `entry` can reach.

    Args:
        entry: The layer that is called first.
        secret: Of a layer that is called inside, which must be among them.
    """
    found = _reached.get(entry, ())
    if secret not in found:
        found = tuple(
            layer._secret
            for layer in entry._flatten_layers()
            if isinstance(getattr(layer, "_secret", None), Secret)
            and layer.geometry is not None
        )
        _reached[entry] = found
    # A layer that Keras does not know of is on its own.
    return found if secret in found else (secret,)


class Reader:
    """Fetches what a compiled function needs, each time that it runs.

    It packs what all layers of a call need into one array, so that they are
    of one moment.

    Args:
        secrets: Of the layers that the call can reach.
        kind: As for `read`, or `ROWS`.
        frame: What a block inside of the function presents, to be seen
            whoever calls it. Defaults to what its caller's context sees.
    """

    def __init__(self, secrets, kind: str, frame: _Frame | None = None):
        self.kind = kind
        self._secrets = secrets
        self._frame = frame
        self._used = set()
        self._last = (None, None)
        self._places = {}
        self.size = 0
        for secret in secrets:
            sizes = sizes_of(secret, kind)
            self._places[secret] = self.size, sizes
            self.size += sum(sizes)

    def serves(self, secret, kind, frame) -> bool:
        return (
            secret in self._places
            and kind == self.kind
            and frame is self._frame
        )

    def part(self, tensor, secret):
        """One layer's part of the packed tensor; it is missed from now on."""
        self._used.add(secret)
        start, sizes = self._places[secret]
        parts = []
        for size in sizes:
            parts.append(tensor[:, start : start + size])
            start += size
        if self.kind == PARAMETERS:
            return tuple(part[0] for part in parts)
        return tuple(parts) if self.kind == DUALS else parts[0]

    def frame(self):
        """The block in this context that shows something to these layers."""
        if self._frame is not None:
            return self._frame
        found = (shown_to(secret) for secret in self._used)
        return next((frame for frame in found if frame is not None), None)

    def is_shown(self) -> bool:
        """Whether any context presents something to these layers."""
        return any(secret.shown for secret in self._used)

    def symbolic(self, read):
        """What a block of the function being traced shows: a tensor of it.

        Args:
            read: The `read` of the module that traces.
        """
        parts = []
        for secret in self._secrets:
            frame = self._frame or shown_to(secret)
            if secret not in self._used:
                sizes = self._places[secret][1]
                parts += [keras.ops.zeros((1, size)) for size in sizes]
                continue
            if frame is not None and (
                frame.assumes != (self.kind == PARAMETERS)
                or (self.kind == DUALS and not frame.values[secret].is_one)
            ):
                raise self._mismatch(secret, frame)
            found = read(secret, self.kind, frame)
            found = found if isinstance(found, tuple) else (found,)
            parts += [
                keras.ops.reshape(part, (-1, part.shape[-1])) for part in found
            ]
        return keras.ops.concatenate(parts, axis=1)

    def collect(self) -> np.ndarray:
        """What the calling context sees now, packed: `(rows, size)`.

        Raises:
            PassportRequiredError: If a layer that needs a passport has none.
            PassportError: If the function was traced for something else.
        """
        with _lock:
            values = [self._value(secret) for secret in self._secrets]
            last, packed = self._last
        # Variables among γ and β may have changed.
        if (
            last is not None
            and self.kind != PARAMETERS
            and all(a is b for a, b in zip(last, values, strict=True))
        ):
            return packed
        packed = self._pack(values)
        self._last = (values, packed)
        return packed

    def _value(self, secret):
        frame = self._frame or shown_to(secret)
        if frame is None:
            value = None if self.kind == PARAMETERS else secret.bound
        elif frame.assumes != (self.kind == PARAMETERS):
            if secret in self._used:
                raise self._mismatch(secret, frame)
            value = None
        else:
            value = frame.values[secret]
        if value is None and secret in self._used:
            raise required(secret)
        if isinstance(value, Keys) and not (
            value.is_one or (self.kind == ROWS and value.array is not None)
        ):
            raise self._mismatch(secret, frame)
        return value

    def _pack(self, values):
        parts, rows = [], 1
        for secret, value in zip(self._secrets, values, strict=True):
            _, sizes = self._places[secret]
            if value is None:
                found = [np.zeros((1, size), "float32") for size in sizes]
            elif self.kind == PARAMETERS:
                found = [
                    _row(part, size)
                    for part, size in zip(value, sizes, strict=True)
                ]
            elif self.kind == DUALS:
                found = [value.array, value.duals]
            else:
                found = [value.array]
            parts += found
            rows = max([rows, *map(len, found)])
        packed = np.concatenate(
            [np.broadcast_to(part, (rows, part.shape[1])) for part in parts],
            axis=1,
        )
        return secrecy.hidden(packed)

    def _mismatch(self, secret, frame):
        wants = {
            KEYS: "the keys of one passport",
            DUALS: "the keys of one passport",
            ROWS: "keys",
            PARAMETERS: "γ and β of kp.assumed",
        }[self.kind]
        got = "nothing"
        if frame is not None and frame.assumes:
            got = "γ and β of kp.assumed"
        elif frame is not None:
            rows = frame.values[secret].array
            got = "a tensor" if rows is None else f"keys of {len(rows)} rows"
        return PassportError(
            f"Expected {wants} for layer '{name_of(secret)}' in a function "
            "that was traced for that. Trace it anew inside the block, or "
            "make the keys an argument of it, as "
            "keras_passport.models.keyed_function does. "
            f"Received: {got}"
        )

    def __repr__(self):
        return "<reader of passports>"


def collect(readers) -> list:
    """Pairs of a reader and what it collects, all at one moment."""
    with _lock:
        return [(reader, reader.collect()) for reader in list(readers)]


def _row(value, size):
    """γ or β as an array; zeros for one that the function has itself."""
    if is_symbolic(value):
        return np.zeros((1, size), "float32")
    value = keras.ops.convert_to_numpy(value)
    return np.asarray(value, "float32").reshape(1, size)


# Writing ----------------------------------------------------------------------

# Modules that trace or freeze a function in order to write it into a file.
_WRITERS = (
    "keras.src.export.",
    "keras.src.backend.tensorflow.export",
    "keras.src.backend.jax.export",
    "tensorflow.python.framework.convert_to_constants",
    "tensorflow.python.saved_model.save",
    "tensorflow.lite.",
    "tf2onnx.",
    "jax._src.export.",
    "jax.experimental.jax2tf.",
    "jax2onnx.",
)


def refuse_writers(depth: int = sys.maxsize) -> None:
    """Raises `PassportError` if a function is traced or frozen for a file.

    Args:
        depth: How many of the calls under way are looked at.
    """
    frame = sys._getframe(1)
    while frame is not None and depth > 0:
        if f"{frame.f_globals.get('__name__', '')}.".startswith(_WRITERS):
            raise unexportable()
        frame, depth = frame.f_back, depth - 1


def unexportable():
    """The error of an export of layers that are not given their passport."""
    return PassportError(
        "Expected an export without secrets. Received: a protected layer "
        "without a passport as an input, so that the file would hold the "
        "keys. Use keras_passport.export_saved_model, export_onnx or "
        "export_litert, whose files take the passport as an input, or "
        "`model.save(...)`, and keep the passport file apart"
    )
