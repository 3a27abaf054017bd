"""Models that hold passport layers: binding a passport, and asking for one."""

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from keras_passport import files, secrecy
from keras_passport.errors import PassportError
from keras_passport.hints import Model
from keras_passport.layers import access, optimizer_state, received, row_order
from keras_passport.layers.protected import layers_or_error
from keras_passport.passports import specs
from keras_passport.passports.passport import check_passport
from keras_passport.secrecy import hidden


def bind(model: keras.Model, passport: Any) -> keras.Model:
    """Binds a passport: the model then runs, trains and evaluates with it.

    The keys become part of no file, checkpoint or weight list: a model that
    was saved, or cloned, must be bound again. Nor do compiled functions hold
    them: whatever was traced with the model or with one around it goes on
    with the passport that is bound now. Other threads see all layers bound to
    it, or none: a call that has begun ends under the passport that it began
    with.

    Args:
        model: Protected model.
        passport: `Passport` made for this model or one of its structure.

    Returns:
        The model itself.

    Raises:
        PassportError: If the passport was made for another architecture or
            passport function. The model is then left as it was.

    Example:

    >>> model = kp.protect(base)
    >>> model = kp.bind(model, kp.Passport.random_pattern(model))
    """
    passport = hidden(passport)
    layers = layers_or_error(model)
    check_passport(passport)
    fitted = passport.fitted(model)
    keys = fitted.keys()
    access.bind(
        {
            layer._secret: layer.keys_of(
                **keys[path], order=specs.order_of(fitted, path)
            )
            for path, layer in layers.items()
        }
    )
    return model


def unbind(model: keras.Model) -> keras.Model:
    """Takes the bound passport away. Weights and statistics stay.

    Whatever was compiled with the model, or with one around it, says from now
    on that it has no passport.

    Args:
        model: Protected model, bound or not.

    Returns:
        The model itself.
    """
    access.bind(
        {layer._secret: None for layer in layers_or_error(model).values()}
    )
    return model


def forget_compiled(model):
    """Drops traced functions, for a model whose layers compute otherwise."""
    for layer in model._flatten_layers():
        if isinstance(layer, keras.Model):
            layer.train_function = None
            layer.test_function = None
            layer.predict_function = None


@contextlib.contextmanager
def presented(model: keras.Model, passport: Any) -> Iterator[None]:
    """Lets calls of the model inside the block see these keys.

    They belong to the context that presents them, as a bound passport belongs
    to everybody: to this thread or asyncio task and what it calls, not to
    other threads, nor to threads that it starts (`contextvars.copy_context`
    and `asyncio.to_thread` hand them on). Blocks nest; a block that ends
    takes away what it presented and nothing else. A generator that yields
    inside a block presents to whoever iterates it.

    `predict`, `evaluate` and `fit` of the model, and of models around it,
    answer under what is presented, also what TensorFlow traced before, under
    another's passport. A function of your own that JAX compiles takes keys as
    an argument: see `keyed_function`, which presents them inside; traced
    once, it serves any number of passports.

    Args:
        model: Protected model, bound or not.
        passport: Tensor `(1 or batch, K)`, float32: the layers' keys in the
            graph's order, per layer γ's, then β's, each in C order, and the
            order of its rows if they have one (`Passport.packed`).

    Raises:
        PassportError: If it is no packed passport of the model's: of another
            shape or kind, or with NaN or infinity.

    Example:

    >>> with kp.presented(model, passport.packed()):
    ...     outputs = model(images, training=False)
    """
    if _is_array(passport):
        passport = secrecy.hidden(passport)
    layers = list(layers_or_error(model).values())
    sizes = [layer.passport_size for layer in layers]
    received.check_model(layers, passport)
    array, tensor = access.apart(passport)
    values, start = {}, 0
    for layer, size in zip(layers, sizes, strict=True):
        part = slice(start, start + size)
        values[layer._secret] = layer.packed_keys(
            None if array is None else array[:, part],
            None if tensor is None else tensor[:, part],
        )
        start += size
    with access.showing(values):
        yield


def _is_array(value) -> bool:
    return isinstance(value, (np.ndarray, list, tuple))


@contextlib.contextmanager
def assumed(model: Model, parameters: dict) -> Iterator[None]:
    """Lets calls of the model inside the block use γ and β as they are given.

    It is how an attacker sees a protected model who makes them up. They
    belong to the context that assumes them, as with `presented`.

    Args:
        model: Protected model, bound or not.
        parameters: Dict from the path of every protected layer to a tuple of
            its γ and β, arrays or tensors of shape `(channels,)`, float32.

    Raises:
        PassportError: If layers are missing, or are not the model's.

    Example:

    >>> assumed = {
    ...     "conv1": (np.ones(4), np.zeros(4)),
    ...     "conv2": (np.ones(6), np.zeros(6)),
    ... }
    >>> with kp.assumed(model, assumed):
    ...     outputs = model(images, training=False)
    """
    layers = layers_or_error(model)
    if parameters.keys() != layers.keys():
        raise PassportError(
            f"Expected parameters for the protected layers {list(layers)}. "
            f"Received: {list(parameters)}"
        )
    values = {
        layer._secret: tuple(parameters[path]) for path, layer in layers.items()
    }
    with access.showing(values, assumes=True):
        yield


@contextlib.contextmanager
def secret_checkpoint(model: keras.Model) -> Iterator[None]:
    """Lets files hold the optimizer's state while they are saved.

    A training that resumes needs that state, but a kernel's gradient is κ
    times a row vector, and momentum is a sum of gradients: slots correlate
    with keys by up to 0.99. So nothing that Keras writes holds the state of an
    optimizer that trains a protected model: a file of the model itself, of a
    plain one around it, a state tree, a checkpoint of TensorFlow's or Orbax's.
    Inside this block all of it does, `fit` with `BackupAndRestore` included,
    and every file that this process makes meanwhile is readable by its owner
    only: files have mode 0600, folders 0700. They are secrets.

    It holds for the thread, or the task of an event loop, that opens it.

    Args:
        model: Compiled model, or one that a custom loop trains; nothing
            changes for one without passport layers.

    Raises:
        PassportError: If it is no model.

    Example:

    >>> with kp.secret_checkpoint(model):
    ...     model.save_weights("checkpoint.weights.h5")
    """
    if not isinstance(model, keras.layers.Layer):
        raise PassportError(
            "Expected a Keras model, compiled or trained by a loop of its own. "
            f"Received: a {secrecy.type_of(model)}"
        )
    if not optimizer_state.is_protected(model.variables):
        yield
        return
    with optimizer_state.let_through(model), files.owner_only():
        yield


def keyed_function(model: keras.Model):
    """The model as a compiled function of a packed passport and its inputs.

    Args:
        model: Protected model, bound or not; what is bound is not used. Its
            weights are those of this moment on JAX, the current ones on
            TensorFlow.

    Returns:
        Function of `(passport, inputs)` that returns the outputs in inference
        mode. Traced once per shape, it serves any number of passports.
    """
    layers = list(layers_or_error(model).values())
    function = _compiled(model, layers)

    def checked(passport, inputs):
        # What is wrong with its values, nobody can tell inside.
        received.check_model(layers, passport)
        return function(passport, inputs)

    return checked


def _compiled(model, layers):
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        @tf.function(reduce_retracing=True)
        def function(passport, inputs):
            with presented(model, passport):
                outputs = model(inputs, training=False)
            return row_order.of_one_passport(layers, passport, outputs)

        return function
    if backend == "jax":
        import jax

        @jax.jit
        def stateless(passport, inputs, trainable, non_trainable):
            with presented(model, passport):
                outputs, _ = model.stateless_call(
                    trainable, non_trainable, inputs, training=False
                )
            return row_order.of_one_passport(layers, passport, outputs)

        state = [
            [variable.value for variable in variables]
            for variables in (
                model.trainable_variables,
                model.non_trainable_variables,
            )
        ]
        return lambda passport, inputs: stateless(passport, inputs, *state)

    def eager(passport, inputs):
        with presented(model, passport):
            return model(inputs, training=False)

    return eager
