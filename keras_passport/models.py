"""Models that hold passport layers: binding a passport, and asking for one."""

import contextlib
import importlib
import os
import pathlib
import stat

import keras
import numpy as np
from keras.src.utils import io_utils

from keras_passport import (
    access,
    files,
    graph,
    optimizer_state,
    quantization,
    registration,
    secrecy,
    subclasses,
)
from keras_passport.errors import PassportError, PassportRequiredError
from keras_passport.layers import PassportNormalization
from keras_passport.passports import Passport
from keras_passport.secrecy import hidden, type_of


def protected_layers(model) -> dict[str, PassportNormalization]:
    """The passport layers of a model by path, in the graph's order.

    Args:
        model: Any Keras model.

    Returns:
        Dict from path (names of nested models and the layer joined by "/") to
        layer.
    """
    return {
        path: layer
        for path, layer in graph.walk(model, stop=(PassportNormalization,))
        if isinstance(layer, PassportNormalization)
    }


def _layers_or_error(model) -> dict[str, PassportNormalization]:
    layers = protected_layers(model)
    if not layers:
        raise PassportError(
            "Expected a protected model (see keras_passport.protect). "
            f"Received: model '{model.name}' without any passport layer"
        )
    return layers


def function_of(model):
    """The passport function of a protected model.

    Raises:
        PassportError: If the model is not protected, or its layers differ.
    """
    found = {layer.function for layer in _layers_or_error(model).values()}
    if len(found) != 1:
        raise PassportError(
            "Expected one passport function in all protected layers. "
            f"Received: {sorted(f.name for f in found)}"
        )
    return found.pop()


def bind(model: keras.Model, passport) -> keras.Model:
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

    >>> base = keras.Sequential([keras.Input((8, 8, 3)),
    ...     keras.layers.Conv2D(4, 3), keras.layers.BatchNormalization()])
    >>> model = protect(base)
    >>> model = bind(model, Passport.random_pattern(model))
    """
    passport = hidden(passport)
    layers = _layers_or_error(model)
    check_passport(passport)
    keys = passport.keys(model)
    access.bind(
        {
            layer._secret: layer.keys_of(**keys[path])
            for path, layer in layers.items()
        }
    )
    return model


def check_passport(passport) -> None:
    """Raises `PassportError` unless it is a `Passport`."""
    passport = hidden(passport)
    if not isinstance(passport, Passport):
        raise PassportError(
            "Expected passport to be a keras_passport.Passport, such as "
            "Passport.load(path) returns. "
            f"Received: a {type_of(passport)}"
        )


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
        {layer._secret: None for layer in _layers_or_error(model).values()}
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
def presented(model: keras.Model, passport):
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
            graph's order, per layer γ's, then β's, each in C order.

    Raises:
        PassportError: If the passport has another shape.

    Example:

    >>> with presented(model, keys):
    ...     outputs = model(images, training=False)
    """
    if _is_array(passport):
        passport = secrecy.hidden(passport)
    layers = list(_layers_or_error(model).values())
    sizes = [layer.passport_size for layer in layers]
    shape = tuple(np.shape(passport) if _is_array(passport) else passport.shape)
    if len(shape) != 2 or shape[1] != sum(sizes):
        raise PassportError(
            f"Expected a packed passport of shape (1 or batch, {sum(sizes)}). "
            f"Received: shape={shape}"
        )
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
def assumed(model, parameters: dict):
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

    >>> with assumed(model, {path: (gamma, beta)}):
    ...     outputs = model(images, training=False)
    """
    layers = _layers_or_error(model)
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


def public(model: keras.Model) -> "ProtectedModel":
    """What everybody may see of a protected model: all that an attack gets.

    That is its architecture, kernels and statistics, V1's β and V2's γ.

    Args:
        model: Protected functional model, bound or not.

    Returns:
        A new model of the same weights, without a passport.

    Raises:
        PassportError: If the model is not protected, or no functional one.

    Example:

    >>> public(model).save("public.keras")
    """
    _layers_or_error(model)
    if not graph.is_model(model):
        raise PassportError(
            "Expected a Functional or Sequential model. "
            f"Received: {type(model).__name__} '{model.name}'"
        )
    made = {}
    copy = graph.copy(model, ProtectedModel, made)
    graph.copy_states(model, copy, made, stop=(PassportNormalization,))
    return copy


@contextlib.contextmanager
def secret_checkpoint(model: keras.Model):
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

    Example:

    >>> with secret_checkpoint(model):
    ...     model.save_weights("owner/checkpoint.weights.h5")
    """
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
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        @tf.function(reduce_retracing=True)
        def function(passport, inputs):
            with presented(model, passport):
                return model(inputs, training=False)

        return function
    if backend == "jax":
        import jax

        @jax.jit
        def stateless(passport, inputs, trainable, non_trainable):
            with presented(model, passport):
                return model.stateless_call(
                    trainable, non_trainable, inputs, training=False
                )[0]

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


def _asks_first(name):
    """A method of `keras.Model` that asks for the passport before tracing.

    Raised from inside a traced function, the error would reach the user as
    one about tracing; on JAX the model would lose its weights by it.
    """
    original = getattr(keras.Model, name)

    def method(self, *args, **kwargs):
        self._require_bound()
        if hasattr(self, "jax_state_sync"):
            # A callback of `fit`: JAX's trainer has the weights.
            self.jax_state_sync()
        return getattr(super(ProtectedModel, self), name)(*args, **kwargs)

    method.__name__ = name
    method.__doc__ = original.__doc__
    return method


def _file_on_disk(filepath, suffixes) -> pathlib.Path | None:
    """Where a file is to be written in one step; `None`: that is Keras's."""
    if not isinstance(filepath, (str, os.PathLike)):
        return None
    # What a link leads to is replaced, as Keras overwrites it.
    place = pathlib.Path(os.path.realpath(filepath))
    if (
        not str(filepath).endswith(suffixes)
        or "://" in str(filepath)
        or not place.parent.is_dir()
        or (place.exists() and not place.is_file())
    ):
        return None
    return place


def _written_whole(save, suffixes, filepath, overwrite):
    """Lets Keras write a file beside its place, then puts it there.

    Args:
        save: Function of the path to write and whether to overwrite it.
        suffixes: Of the files that Keras would write here.
        filepath: As given to Keras.
        overwrite: Likewise.
    """
    place = _file_on_disk(filepath, suffixes)
    if place is None:
        return save(filepath, overwrite)
    mode = None
    if place.exists():
        asks = io_utils.ask_to_proceed_with_overwrite
        if not overwrite and not asks(filepath):
            return None
        mode = stat.S_IMODE(place.stat().st_mode)
    if files.is_owner_only():
        mode = 0o600
    with files.replacing(place, mode) as temporary:
        return save(temporary, True)


@registration.named_in_hdf5
@keras.saving.register_keras_serializable(package="keras_passport")
class ProtectedModel(keras.Model):
    """A functional Keras model with passport layers, as `protect` returns it.

    It is an ordinary Keras model in all but four points. Without a bound
    passport `fit`, `evaluate`, `predict` and the `*_on_batch` methods raise
    `PassportRequiredError` before anything is traced. Files that it is saved
    to hold no optimizer state, since that gives keys away. `save` and
    `save_weights` replace a file in one step: whatever happens meanwhile, the
    old one or the new one is there, whole. `export` is refused: it would write
    the bound keys into the graph.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        optimizer_state.withhold(self)

    fit = _asks_first("fit")
    evaluate = _asks_first("evaluate")
    predict = _asks_first("predict")
    train_on_batch = _asks_first("train_on_batch")
    test_on_batch = _asks_first("test_on_batch")
    predict_on_batch = _asks_first("predict_on_batch")

    def _require_bound(self):
        for path, layer in protected_layers(self).items():
            if not access.is_available(layer._secret):
                raise PassportRequiredError(
                    f"Model '{self.name}' is protected and layer '{path}' has "
                    "no passport. Bind one with "
                    "keras_passport.bind(model, passport); files never hold "
                    "it, so a loaded model must be bound anew."
                )

    def compile_from_config(self, config):
        users = super().compile_from_config.__func__
        if users is not keras.Model.compile_from_config:
            users(self, config)
            return
        if super().compile.__func__ is not keras.Model.compile:
            # Which arguments that takes, only its author knows.
            super().compile_from_config(config)
            return
        # Keras's own fails on a model that was compiled without an optimizer.
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.optimizer is not None and self.built:
            self.optimizer.build(self.trainable_variables)

    def get_config(self):
        config = super().get_config()
        own = self.protected_class
        if own is not keras.Model:
            config["protected_class"] = subclasses.describe(own)
        return config

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        own = config.pop("protected_class", None)
        if own is not None and cls.protected_class is keras.Model:
            own = subclasses.find(own, custom_objects)
            cls = subclasses.joined(cls, own)
            return cls.from_config(config, custom_objects=custom_objects)
        # A user's own may take no custom objects.
        custom = (
            {} if custom_objects is None else {"custom_objects": custom_objects}
        )
        return super().from_config(config, **custom)

    # Of a class that is a user's as well, the user's.
    protected_class = keras.Model

    def save(self, filepath, overwrite=True, zipped=None, **kwargs):
        def save(path, overwrite):
            super(ProtectedModel, self).save(
                path, overwrite=overwrite, zipped=zipped, **kwargs
            )

        suffixes = (".keras", ".h5", ".hdf5")
        if zipped is not None and not zipped:
            suffixes = ()
        _written_whole(save, suffixes, filepath, overwrite)

    save.__doc__ = keras.Model.save.__doc__

    def save_weights(self, filepath, overwrite=True, max_shard_size=None):
        def save(path, overwrite):
            super(ProtectedModel, self).save_weights(
                path, overwrite=overwrite, max_shard_size=max_shard_size
            )

        suffixes = (".weights.h5",) if max_shard_size is None else ()
        _written_whole(save, suffixes, filepath, overwrite)

    save_weights.__doc__ = keras.Model.save_weights.__doc__

    def quantize(self, mode=None, config=None, filters=None, **kwargs):
        layers = list(protected_layers(self).values())
        quantization.check_mode(mode, layers)
        super().quantize(mode, config=config, filters=filters, **kwargs)

    quantize.__doc__ = keras.Model.quantize.__doc__

    def export(self, *args, **kwargs):
        raise PassportError(
            "Expected an export without secrets: `export` on a protected "
            "model would write the bound keys into the file. Use "
            "keras_passport.export_saved_model, whose SavedModel takes the "
            "passport as an input, or `model.save(...)`."
        )


def __getattr__(name):
    # It had been here before it got a module, which stands on this one.
    if name == "calibrate":
        return importlib.import_module("keras_passport.calibration").calibrate
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
