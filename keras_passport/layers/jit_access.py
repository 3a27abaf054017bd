"""How a function that JAX has compiled fetches keys when it runs.

It calls back: to JAX, keys are what a function on the host returns, once per
call. So neither the program nor JAX's cache of programs holds any, and JAX
refuses to export it.

Keras's trainer takes a model's weights away while it runs compiled functions
on JAX, and gives them back at the end; an error in between would lose them.
So what is traced for a trainer is guarded: before each step it is asked
whether there is a passport, and which, where an error can still give the
weights back.
"""

import sys
import threading
import weakref

import jax
import keras
import numpy as np
from jax._src import core

from keras_passport.errors import PassportError
from keras_passport.layers import bindings, writers
from keras_passport.layers.readers import Reader, collect

_TRAINER = "keras.src.backend.jax.trainer"

# By the trainer's methods: which function they run, and of what its state is.
_WEIGHTS = ("trainable_variables", "non_trainable_variables")
_METRICS = "metrics_variables"
_RUNS = {
    "fit": ("train_function", (*_WEIGHTS, "optimizer_variables", _METRICS)),
    "evaluate": ("test_function", (*_WEIGHTS, _METRICS)),
    "predict": ("predict_function", _WEIGHTS),
}
_RUNS["train_on_batch"] = _RUNS["fit"]
_RUNS["test_on_batch"] = _RUNS["evaluate"]
_RUNS["predict_on_batch"] = _RUNS["predict"]


def is_tracing() -> bool:
    """Whether what is computed now becomes part of a compiled function."""
    if core.trace_state_clean():
        return False
    # Of a gradient alone, say, JAX computes the values at once.
    return isinstance(jax.numpy.zeros(()), jax.core.Tracer)


def is_constant(tensor) -> bool:
    """Whether the function being traced would hold a tensor's values."""
    return not isinstance(tensor, jax.core.Tracer)


def current():
    return core.get_opaque_trace_state("keras_passport")


def settle() -> None:
    """Waits for what this thread has started and that calls back."""
    if core.trace_state_clean():
        jax.effects_barrier()


def read(secret, kind, frame):
    """See `access.read`; called while a function is being traced."""
    try:
        return _read(secret, kind, frame)
    except PassportError:
        trainer = _trainer()
        if trainer is not None:
            trainer.give_back()
        raise


def _read(secret, kind, frame):
    if frame is not None:
        value = frame.values[secret]
        if frame.assumes:
            parts = [_current(part) for part in value]
            if all(p is not None for p in parts):
                return tuple(
                    keras.ops.convert_to_tensor(p, "float32") for p in parts
                )
        elif value.array is None:
            return value.tensor
        elif kind == bindings.KEYS and not value.is_one:
            kind = bindings.ROWS
    context = bindings.call_context()
    readers = None if context is None else context.get_value("jit_readers")
    if readers is None:
        readers = []
        if context is not None:
            context.set_value("jit_readers", readers)
    trace = current()
    for known, reader, fetched in readers:
        if known == trace and reader.serves(secret, kind, None):
            tensor = fetched
            break
    else:
        reader, tensor = _fetch(context, secret, kind, frame)
        readers.append((trace, reader, tensor))
    part = reader.part(tensor, secret)
    # For the error, if this layer has no passport.
    reader.pin(reader.collect())
    return part


def _current(value):
    """A value that no compiled function would keep; `None` if it would."""
    if isinstance(value, keras.Variable):
        # As any other weight.
        return value.value
    return value if isinstance(value, jax.core.Tracer) else None


def _fetch(context, secret, kind, frame):
    """A new reader, and what it returns when the function runs."""
    writers.refuse_writers()
    trainer = _trainer()
    if trainer is None and frame is not None:
        raise PassportError(
            "Expected keys that are an argument of the compiled function, as "
            "keras_passport.models.keyed_function makes them, or a bound "
            "passport. Received: values presented to or assumed for layer "
            f"'{bindings.name_of(secret)}' that the function would hold as "
            "constants"
        )
    secrets = (secret,)
    if context is not None:
        secrets = bindings.reached_by(context.entry_layer, secret)
    reader = _HostReader(secrets, kind)
    if trainer is not None:
        trainer.guard(reader)
    packed = reader.collect()
    reader.pin(packed)
    shape = jax.ShapeDtypeStruct(packed.shape, "float32")
    return reader, jax.pure_callback(reader.host, shape)


class _HostReader(Reader):
    """A reader whose `host` the compiled function calls."""

    def __init__(self, secrets, kind):
        super().__init__(secrets, kind)
        self.guarded = False  # Whether a trainer's steps pin it.
        self._pinned = None
        self._rows = None

    def collect(self):
        packed = super().collect()
        if self._rows is None:
            self._rows = len(packed)
        if len(packed) != self._rows:
            raise PassportError(
                f"Expected keys of {self._rows} rows, as this function was "
                f"traced for. Received: {len(packed)} rows"
            )
        return packed

    def is_pinned(self, packed) -> bool:
        return packed is self._pinned

    def pin(self, packed):
        """Decides what the next step of a trainer sees."""
        self._pinned = packed

    def host(self) -> np.ndarray:
        if self.guarded:
            return np.asarray(self._pinned)
        # A thread of JAX's own can't know whose call this is.
        thread = threading.current_thread()
        if isinstance(thread, threading._DummyThread) and self.is_shown():
            raise PassportError(
                "Expected keys that are an argument of the compiled function "
                "while passports are presented to its model. "
                "Received: a call that fetches the bound ones"
            )
        return np.asarray(self.collect())


class _Trainer:
    """A Keras model's `fit`, `evaluate` or `predict` that is under way.

    Args:
        model: The model that runs.
        method: Name of the method.
        state: The values of its variables, in the order of the method's.
    """

    def __init__(self, model, method, state):
        self._model = model
        self._function, self._names = _RUNS[method]
        self._state = state

    def give_back(self):
        give_back(self._model, self._names, self._state)

    def guard(self, reader):
        """Lets every further step ask for the passport first."""
        reader.guarded = True
        step = getattr(self._model, self._function)
        if not isinstance(step, _Guarded):
            step = _Guarded(self._model, self._names, step)
            setattr(self._model, self._function, step)
        step.readers.add(reader)


def _trainer():
    """The trainer that is tracing its step now, if one is."""
    frame, state = sys._getframe(1), None
    while frame is not None:
        if frame.f_globals.get("__name__") == _TRAINER:
            name = frame.f_code.co_name
            if name == "iterator_step" and state is None:
                state = frame.f_locals["state"]
            elif name in _RUNS:
                if state is None:
                    # A callback calls a function of its own.
                    return None
                return _Trainer(frame.f_locals["self"], name, state)
        frame = frame.f_back
    return None


def give_back(model, names, state):
    """Gives a model the values that its trainer took away."""
    for name, values in zip(names, state, strict=True):
        if name == "optimizer_variables":
            variables = model.optimizer.variables
        else:
            variables = getattr(model, name)
        for variable, value in zip(variables, values, strict=True):
            # Not `assign`: a function that is being traced has its own values.
            variable._value = value
    model._jax_state_synced = True


class _Guarded:
    """A trainer's function that asks for the passport before each step.

    Args:
        model: The model that it belongs to.
        names: Of what variables its state is.
        step: The function.
    """

    def __init__(self, model, names, step):
        self.readers = weakref.WeakSet()
        self._model = weakref.ref(model)
        self._names = names
        self._step = step

    def __call__(self, state, iterator):
        try:
            collected = collect(self.readers)
        except PassportError:
            give_back(self._model(), self._names, state)
            raise
        if not all(reader.is_pinned(packed) for reader, packed in collected):
            settle()
            for reader, packed in collected:
                reader.pin(packed)
        return self._step(state, iterator)
