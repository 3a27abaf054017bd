"""Optimizer state of protected models, withheld from all that Keras writes.

A protected kernel's gradient is κ times a row vector, and what an optimizer
keeps is made of gradients: it correlates with keys by up to 0.99. Keras writes
it from many places, and the model that holds the optimizer need not be one of
ours: it may be a plain one around a protected one. So it is the optimizer that
withholds its state, whoever asks, as soon as it trains a variable of a
protected model. Keras offers nothing to say so with: the functions through
which its writers reach an optimizer are replaced here by ones that ask first.
Every other optimizer's state is written as ever.
"""

import contextlib
import contextvars
import pathlib
import threading
import weakref

import keras
from keras.src.legacy.saving import legacy_h5_format
from keras.src.saving import saving_lib

from keras_passport import files
from keras_passport.errors import PassportError
from keras_passport.layers import hooks

_MARK = "_keras_passport_withheld"
_LAYERS = weakref.WeakSet()
_LOCK = threading.Lock()
# The models whose optimizers' state may be written, in this context.
_LET_THROUGH = contextvars.ContextVar("let_through", default=())
# Whether it is a protected model, and none of those, that is being written.
_WRITING = contextvars.ContextVar("writing", default=False)


def withhold(layer: keras.layers.Layer) -> None:
    """Withholds the state of every optimizer that trains this layer.

    Args:
        layer: Passport layer or protected model, from when it has variables.
    """
    with _LOCK:
        _LAYERS.add(layer)
    _mark(layer)


def _mark(layer):
    # On the variables, since an optimizer may outlive its model.
    for variable in layer.variables:
        # What is inside is what TensorFlow's tapes and loops know.
        for one in (variable, variable._value):
            with contextlib.suppress(AttributeError):
                setattr(one, _MARK, True)


def is_protected(variables) -> bool:
    """Whether one of these variables is a protected model's."""
    with _LOCK:
        layers = list(_LAYERS)
    for layer in layers:
        # Variables come and go, as when LoRA is enabled.
        _mark(layer)
    return any(getattr(variable, _MARK, False) for variable in variables)


def is_withheld(optimizer) -> bool:
    """Whether an optimizer keeps its state to itself, here and now."""
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        return False
    if _WRITING.get():
        return True
    trained = _trained(optimizer)
    return is_protected(trained) and not _may_be_written(trained)


def _is_protected_model(model) -> bool:
    with _LOCK:
        return isinstance(model, keras.Model) and model in _LAYERS


@contextlib.contextmanager
def _written(model):
    """Withholds the state of any optimizer that a protected model holds.

    Even of one that it shares with a plain model, and that trains that one.
    """
    withholds = _is_protected_model(model) and not _may_be_written(
        model.variables
    )
    token = _WRITING.set(withholds or _WRITING.get())
    try:
        yield
    finally:
        _WRITING.reset(token)


def _may_be_written(trained) -> bool:
    """Whether all protected variables are those of models let through."""
    allowed = {
        id(one)
        for model in _LET_THROUGH.get()
        for variable in model.variables
        for one in (variable, variable._value)
    }
    return all(
        id(variable) in allowed
        for variable in trained
        if getattr(variable, _MARK, False)
    )


def _trained(optimizer) -> list:
    """The variables that an optimizer, and those inside it, was built for."""
    return [v for one in _family(optimizer) for v in one._trainable_variables]


def _family(optimizer, optimizers=None) -> list:
    """An optimizer and those that it wraps, as a loss scale does."""
    optimizers = [] if optimizers is None else optimizers
    if optimizer is not None and not any(
        one is optimizer for one in optimizers
    ):
        optimizers.append(optimizer)
        for value in keras.tree.flatten(list(vars(optimizer).values())):
            if isinstance(value, keras.optimizers.Optimizer):
                _family(value, optimizers)
    return optimizers


@contextlib.contextmanager
def let_through(model: keras.Model):
    """Lets the state of a model's optimizers be written inside the block.

    In this context alone: another thread that publishes the model meanwhile
    writes none.
    """
    token = _LET_THROUGH.set((*_LET_THROUGH.get(), model))
    try:
        yield
    finally:
        _LET_THROUGH.reset(token)


def _refuse(what):
    raise PassportError(
        f"Expected {what} inside `with keras_passport.secret_checkpoint("
        "model):`. Outside of it nothing that is written holds the optimizer "
        "state of a protected model, which gives keys away, so a training "
        "that resumed would silently go on differently. "
        "Received: a protected model outside of such a block"
    )


# `.keras`, `.weights.h5`, folders, shards, pickles and deep copies.


@hooks.replace(saving_lib, "_save_state")
def _save_state(original, saveable, weights_store, *args, **kwargs):
    if is_withheld(saveable):
        # The whole optimizer, as a user's own may write in ways of its own.
        return
    if _is_secret(saveable):
        _make_private(weights_store)
    with _written(saveable):
        original(saveable, weights_store, *args, **kwargs)


@hooks.replace(keras.optimizers.Optimizer, "save_own_variables")
def _save_own_variables(original, self, store):
    if not is_withheld(self):
        original(self, store)


@hooks.replace(keras.optimizers.Optimizer, "load_own_variables")
def _load_own_variables(original, self, store):
    # Of a file without state there is nothing to say: it is how it should be.
    if len(store.keys()) or not _serves_protected(self):
        original(self, store)


def _serves_protected(optimizer) -> bool:
    """Whether its state is withheld, or will be once it is built."""
    with _LOCK:
        layers = list(_LAYERS)
    return is_withheld(optimizer) or any(
        one is optimizer
        for model in layers
        if isinstance(model, keras.Model) and model.compiled
        for one in _family(model.optimizer)
    )


# The legacy `.h5`.


@hooks.replace(legacy_h5_format, "save_model_to_hdf5")
def _save_model_to_hdf5(original, model, *args, **kwargs):
    with _written(model):
        original(model, *args, **kwargs)


@hooks.replace(legacy_h5_format, "save_optimizer_weights_to_hdf5_group")
def _save_to_hdf5(original, group, optimizer):
    if is_withheld(optimizer):
        return
    if _is_secret(optimizer):
        files.make_private(group.file.filename)
    original(group, optimizer)


# State trees, and Orbax's checkpoints, which are made of them.


@hooks.replace(keras.Model, "get_state_tree")
def _get_state_tree(original, self, *args, **kwargs):
    tree = original(self, *args, **kwargs)
    with _written(self):
        if is_withheld(self.optimizer):
            # Its counter as well: what a count says has been done since the
            # start, such as averaging, was not done to slots that are new.
            tree["optimizer_variables"] = {}
    return tree


# TensorFlow's checkpoints and SavedModels.

if keras.backend.backend() == "tensorflow":

    @hooks.replace(keras.layers.Layer, "_trackable_children")
    def _children_of_layer(original, self, *args, **kwargs):
        children = original(self, *args, **kwargs)
        if not _writes(args):
            return children
        with _written(self):
            return {
                name: child
                for name, child in children.items()
                if not is_withheld(child)
            }

    @hooks.replace(keras.optimizers.Optimizer, "_trackable_children")
    def _children_of_optimizer(original, self, *args, **kwargs):
        # No model leads here: somebody listed it, and wants its state.
        if _writes(args) and is_withheld(self):
            _refuse("a tf.train.Checkpoint of an optimizer")
        return original(self, *args, **kwargs)

    def _writes(args) -> bool:
        """Whether the children are asked for to be saved.

        TensorFlow then says what for. While it restores it says nothing, and
        what a file holds may be read.
        """
        return bool(args)


# A callback that is there to resume, and for nothing else.


@hooks.replace(keras.callbacks.BackupAndRestore, "on_train_begin")
def _on_train_begin(original, self, *args, **kwargs):
    trained = self.model.trainable_variables
    if is_protected(trained) and not _may_be_written(trained):
        _refuse("keras.callbacks.BackupAndRestore")
    original(self, *args, **kwargs)


# What is written all the same is for its owner alone.


def _is_secret(saveable) -> bool:
    return isinstance(saveable, keras.optimizers.Optimizer) and is_protected(
        _trained(saveable)
    )


def _make_private(store):
    """Takes others' permissions from the files behind one of Keras's stores.

    A new file has none; but this may be an old one that is written over.
    """
    paths = [
        getattr(getattr(store, owner, None), "filename", None)
        for owner in ("h5_file", "archive")
    ]
    shards = getattr(store, "base_name", None)
    if shards is not None:
        paths += pathlib.Path(store.path).parent.glob(f"{shards}*.weights.*")
    for path in paths:
        if path is not None:
            files.make_private(path)
