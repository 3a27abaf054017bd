"""`ProtectedModel`: a Keras model that asks for its passport first."""

import functools
import os
import pathlib
import stat

import keras
from keras.src.utils import io_utils

from keras_passport import files, graph, registration, subclasses
from keras_passport.errors import PassportError, PassportRequiredError
from keras_passport.layers import access, optimizer_state, quantization
from keras_passport.layers.protected import layers_or_error, protected_layers
from keras_passport.models import checks, compiling


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

    >>> kp.public(model).save("public.keras")
    """
    layers_or_error(model)
    checks.check_graph(model)
    copy = graph.rebuild(model, model_class=ProtectedModel)
    copy.claim = getattr(model, "claim", None)
    return copy


def _asks_first(name):
    """A method of `keras.Model` that asks for the passport before tracing.

    Raised from inside a traced function, the error would reach the user as
    one about tracing; on JAX the model would lose its weights by it.
    """
    original = getattr(keras.Model, name)

    def method(self, *args, **kwargs):
        args, kwargs = self._checked_call(*args, **kwargs)
        if hasattr(self, "jax_state_sync"):
            # A callback of `fit`: JAX's trainer has the weights.
            self.jax_state_sync()
        if name in ("fit", "train_on_batch"):
            compiling.build_ahead_of(original, self, args, kwargs)
        return getattr(super(ProtectedModel, self), name)(*args, **kwargs)

    return functools.wraps(original)(method)


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

    def _checked_call(self, *args, **kwargs):
        """The arguments of one of these methods, once all is there."""
        for path, layer in protected_layers(self).items():
            if not access.is_available(layer._secret):
                raise PassportRequiredError(
                    f"Model '{self.name}' is protected and layer '{path}' has "
                    "no passport. Bind one with "
                    "keras_passport.bind(model, passport); files never hold "
                    "it, so a loaded model must be bound anew."
                )
        return args, kwargs

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
        kind = self.protected_class
        if kind is not keras.Model:
            config["protected_class"] = subclasses.describe(kind)
        if self.claim is not None:
            config["claim"] = dict(self.claim)
        return config

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        claim = config.pop("claim", None)
        if claim is not None:
            model = cls.from_config(config, custom_objects)
            model.claim = claim
            return model
        users = config.pop("protected_class", None)
        if users is not None and cls.protected_class is keras.Model:
            kind = subclasses.find(users, custom_objects)
            cls = subclasses.joined(cls, kind)
            return cls.from_config(config, custom_objects=custom_objects)
        # A user's own may take no custom objects.
        custom = (
            {} if custom_objects is None else {"custom_objects": custom_objects}
        )
        return super().from_config(config, **custom)

    def __reduce__(self):
        # By a class that can be imported, as one joined to a user's can't.
        _, given = super().__reduce__()
        return ProtectedModel._unpickle_model, given

    # Of a class that is a user's as well, the user's.
    protected_class = keras.Model

    # An owner's commitment, see `ownership.attach`: it says nothing.
    claim = None

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
