"""Building models anew: the one place where graphs are rewritten."""

import contextlib
import inspect

import keras
from keras.src.saving.serialization_lib import SafeModeScope

from keras_passport import subclasses
from keras_passport.graph import states
from keras_passport.graph.structure import (
    functional_of,
    inputs_of,
    is_model,
    operation_of,
    positional,
)


class Rewrite:
    """What becomes of the operations of a model, and of those nested in it.

    This one copies them. A subclass says what it wants otherwise; an instance
    serves one `rebuild`.

    Attributes:
        made: Dict from the id of an operation to a tuple of the operation and
            what took its place.
    """

    def __init__(self):
        self.made = {}

    def make(self, operation):
        """What takes an operation's place; asked once for each.

        Returns:
            A new operation; a functional model, which is rebuilt in its place;
            or `None` to leave it out, so that what it is given goes on.
        """
        return operation if is_model(operation) else clone(operation)

    def call(self, operation, new, args, kwargs, extra):
        """Makes a call and returns its outputs.

        Args:
            operation: What was called.
            new: What took its place.
            args: Tuple of positional arguments; the first one is among them,
                however it was written.
            kwargs: Dict of those by keyword.
            extra: What `extra_input` returned for this graph.
        """
        return new(*args, **kwargs)

    def copy_state(self, layer, new):
        """Copies weights, other state and flags to what took a layer's place.

        Of models, those inside come later: a model's flag sets theirs.
        """
        if not is_model(new):
            states.copy_state(layer, new)
        elif is_model(layer) and not isinstance(layer, keras.Sequential):
            subclasses.copy_own_state(layer, new, states.copy_state)
        states.copy_trainable(layer, new)

    def model_class(self, model) -> type | None:
        """As `rebuild` takes it, for a nested model."""

    def extra_input(self, model):
        """One more input for a graph, or `None`."""

    def size(self, model) -> tuple | None:
        """Shape of a graph's one input; `None` for that it was built for."""


def rebuild(
    model,
    rewrite: Rewrite | None = None,
    model_class: type | None = None,
    state: bool = True,
):
    """Builds a functional model anew, with other operations in some places.

    Args:
        model: Functional or built Sequential model; it is not changed.
        rewrite: What becomes of its operations. Defaults to copies of them.
        model_class: Class of this package for the returned model, which is
            then of the user's own class as well. Defaults to the class that
            `keras.models.clone_model` would keep: Keras's weights files name
            a nested model after its class.
        state: Whether to copy weights, other state and flags.

    Returns:
        The new model, with new inputs of the same names, shapes and dtypes.

    Raises:
        PassportError: If the model's own way to compute or train would be
            lost, see `subclasses.own_class`.
    """
    rewrite = rewrite or Rewrite()
    rebuilt = _rebuilt(model, rewrite, model_class)
    rewrite.made[id(model)] = model, rebuilt
    if state:
        # Whatever holds others was made after them.
        for operation, new in reversed(rewrite.made.values()):
            if new is not None and isinstance(operation, keras.layers.Layer):
                rewrite.copy_state(operation, new)
    return rebuilt


def _rebuilt(model, rewrite, model_class):
    """Rebuilds one graph, and those nested in it."""
    extra = rewrite.extra_input(model)
    kind = subclasses.own_class(model)
    if model_class is not None:
        kind = subclasses.joined(model_class, kind)

    def operation_fn(operation):
        if id(operation) not in rewrite.made:
            new = rewrite.make(operation)
            if is_model(new):
                nested_class = rewrite.model_class(operation)
                new = _rebuilt(new, rewrite, nested_class)
            rewrite.made[id(operation)] = operation, new
        return rewrite.made[id(operation)]

    def call_fn(pair, *args, **kwargs):
        operation, new = pair
        args, kwargs = positional(operation, args, kwargs)
        if new is None:
            return args[0]
        return rewrite.call(operation, new, args, kwargs, extra)

    inputs = keras.tree.map_structure(
        lambda tensor: _new_input(tensor, rewrite.size(model) or tensor.shape),
        inputs_of(model),
    )
    outputs = functional_of(model)._run_through_graph(
        inputs, operation_fn=operation_fn, call_fn=call_fn
    )
    if extra is not None:
        inputs = with_extra(inputs, extra.name, extra)
    sequential = kind is keras.Sequential
    if sequential:
        kind = keras.Model
    rebuilt = subclasses.make(kind, model, inputs, outputs)
    # Keras scales the loss of a float16 model by the model's own policy.
    rebuilt.dtype_policy = model.dtype_policy
    if sequential and extra is None:
        return _sequential(rebuilt)
    return rebuilt


def with_extra(inputs, name, extra):
    """A model's inputs and one more, in the structure that it is fed in.

    Args:
        inputs: One input, a list or a dict.
        name: Of the one more, where they are a dict.
        extra: The one more.
    """
    if isinstance(inputs, dict):
        return {**inputs, name: extra}
    if isinstance(inputs, (list, tuple)):
        return [*inputs, extra]
    return [inputs, extra]


def _sequential(functional):
    """A Sequential of a functional model that is a chain of layers.

    Made as `Sequential.build` makes it, but of the calls that there are.
    """
    sequential = keras.Sequential(name=functional.name)
    sequential.dtype_policy = functional.dtype_policy
    sequential._layers = list(functional.layers)
    sequential._functional = functional
    sequential.built = True
    return sequential


def _new_input(tensor, shape):
    layer = operation_of(tensor)
    made = keras.layers.InputLayer(
        batch_shape=shape,
        dtype=tensor.dtype,
        sparse=getattr(tensor, "sparse", None) or None,
        ragged=getattr(tensor, "ragged", None) or None,
        optional=getattr(layer, "optional", False),
        name=layer.name,
    ).output
    # An unnamed input's differs from its layer's: inputs are fed by this one.
    made.name = tensor.name
    return made


@contextlib.contextmanager
def _trusted_code(operation):
    """Lets an object that is here already be made again from its config.

    Keras guards against code hidden in files; a Lambda or an unregistered
    layer in memory is the caller's own.
    """
    scope = {type(operation).__name__: type(operation)}
    if isinstance(operation, keras.layers.Layer):
        for layer in operation._flatten_layers():
            scope.setdefault(type(layer).__name__, type(layer))
    with SafeModeScope(False), keras.saving.custom_object_scope(scope):
        yield


def clone(operation):
    """A new, unbuilt copy of a layer or operation, without its weights."""
    with _trusted_code(operation):
        try:
            copy = type(operation).from_config(operation.get_config())
            _keep_functions(operation, copy)
            return copy
        except Exception as error:
            if _has_only_common_arguments(operation):
                return type(operation)(
                    name=operation.name,
                    trainable=operation.trainable,
                    dtype=operation.dtype_policy.name,
                )
            raise ValueError(
                f"Expected layer '{operation.name}' of type "
                f"{type(operation).__name__} to be clonable through "
                "get_config() and from_config(), as saving it needs too. "
                f"Received: {type(error).__name__}: {error}"
            ) from error


def _keep_functions(operation, copy):
    """Lets copies of `Lambda` layers call the very functions of these.

    Keras writes a lambda's code down without what it reads of its module, so
    that one which names `keras` or a constant would fail wherever it is called.
    """
    pairs = [
        [layer for layer in one._flatten_layers() if _is_lambda(layer)]
        for one in (operation, copy)
        if isinstance(one, keras.layers.Layer)
    ]
    if len({len(layers) for layers in pairs}) == 1:
        for old, new in zip(*pairs, strict=True):
            new.function, new.mask = old.function, old.mask
            new._output_shape = old._output_shape


def _is_lambda(layer):
    return isinstance(layer, keras.layers.Lambda)


def is_clonable(operation) -> bool:
    """Whether a layer can be made anew from its configuration."""
    try:
        clone(operation)
    except ValueError:
        return False
    return True


def _has_only_common_arguments(operation) -> bool:
    """Whether a layer of Keras's takes nothing but what all layers take.

    Keras can't describe an `Identity` that was given a dtype policy.
    """
    kind = type(operation)
    return (
        kind.__module__.startswith("keras.")
        and isinstance(operation, keras.layers.Layer)
        and list(inspect.signature(kind.__init__).parameters)
        == ["self", "kwargs"]
    )
