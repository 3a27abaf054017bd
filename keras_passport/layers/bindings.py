"""What layers are bound to, and what blocks of code present to them.

A passport is *bound* to layers, for everybody, or *presented* (or its γ and β
*assumed*) by a block of code, for the calls of that context alone: its thread,
its asyncio task, and what it calls.

What layers are bound to is one reference each, and all of a model's are
exchanged under one lock. Whoever reads takes those of all the layers that the
outermost call can reach under the same lock, once a call. So a call sees a
binding whole or not at all, whatever other threads do meanwhile.
"""

import contextlib
import contextvars
import threading
import weakref

import keras
import numpy as np
from keras.src.backend.common import global_state

from keras_passport import secrecy
from keras_passport.errors import PassportRequiredError

# What `read` may be asked for.
KEYS = "keys"  # Keys of one passport, for all examples.
ROWS = "rows"  # Keys, one row or one per example.
DUALS = "duals"  # Keys of one passport, and their dual basis.
PARAMETERS = "parameters"  # γ and β themselves.

# Where Keras notes the outermost call of a thread, and its `training`.
CALLS = "current_call_ctx"

# Held while what layers are bound to is exchanged, or read.
lock = threading.RLock()
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
        """Their dual basis, packed as they are."""
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


class Frame:
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


def has_values(tensor) -> bool:
    """Whether it is known now what a tensor holds, or a backend's variable.

    Of a variable, a function that is being traced reads it when it runs.
    """
    if isinstance(tensor, keras.Variable):
        tensor = tensor.value
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        if isinstance(tensor, tf.Variable) and not tf.executing_eagerly():
            return False
    return not is_symbolic(tensor)


def exchange(keys: dict) -> None:
    """Binds layers to keys, or to none: all of them at one moment.

    Args:
        keys: Dict from `Secret` to `Keys`, or `None`.
    """
    with lock:
        for secret, value in keys.items():
            secret.bound = value


@contextlib.contextmanager
def showing(frame: Frame):
    """A block whose calls see what a frame holds."""
    with lock:
        for secret in frame.values:
            secret.shown += 1
    _frames.set((*_frames.get(), frame))
    try:
        yield
    finally:
        # Not by a token: blocks of generators end in any order, and in other
        # contexts than they began in.
        frame.ended = True
        _frames.set(tuple(f for f in _frames.get() if f is not frame))
        with lock:
            for secret in frame.values:
                secret.shown -= 1


def hold() -> None:
    """Lets this context see on what it sees now, also when blocks end.

    For a copy of a context in which a call is to be repeated.
    """
    _frames.set(
        tuple(
            Frame(frame.values, frame.assumes, frame.graph)
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
    return global_state.get_global_attribute(CALLS)


def bound_in_call(secret):
    """What the layer is bound to in this call, `None` if to nothing."""
    context = call_context()
    if context is None:
        return secret.bound
    taken = context.get_value("keras_passport")
    if taken is None or secret not in taken:
        secrets = reached_by(context.entry_layer, secret)
        with lock:
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
    inside = _reached.get(entry, ())
    if secret not in inside:
        inside = tuple(
            layer._secret
            for layer in entry._flatten_layers()
            if isinstance(getattr(layer, "_secret", None), Secret)
            and layer.geometry is not None
        )
        _reached[entry] = inside
    # A layer that Keras does not know of is on its own.
    return inside if secret in inside else (secret,)
