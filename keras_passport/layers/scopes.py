"""A layer's call with other values in place of some of its variables."""

import contextlib
import contextvars
import copy

import keras
from keras import ops
from keras.src.backend.common import global_state

from keras_passport.layers import bindings


class Substitution(keras.StatelessScope):
    """Inside it, some variables have other values; all else is as outside.

    Keras's own scope stops every update, and hides the scope around it. In
    this one, what is not substituted is read where it would be without it;
    what is assigned, and losses that are added, are kept and can be handed
    on: a layer may have random seeds, counters, metrics or penalties.

    Args:
        values: List of tuples of a variable and its value inside.

    Example:

    >>> from keras_passport.layers import scopes
    >>> layer = keras.layers.Dense(2)
    >>> layer.build((None, 3))
    >>> with scopes.Substitution([(layer.kernel, np.ones((3, 2)))]) as scope:
    ...     outputs = layer(np.ones((1, 3), "float32"))
    >>> scope.hand_on(layer)
    """

    def __init__(self, values):
        super().__init__(values, collect_losses=True)
        self._updates = {}
        self.original_scope = None

    def get_current_value(self, variable):
        value = super().get_current_value(variable)
        if value is None and self.original_scope is not None:
            value = self.original_scope.get_current_value(variable)
        return value

    def add_update(self, update):
        super().add_update(update)
        self._updates[id(update[0])] = update

    @property
    def updates(self) -> list:
        """Tuples of a variable and the last value assigned to it inside."""
        return list(self._updates.values())

    def hand_on(self, layer, updates=None, losses=None) -> None:
        """Assigns and adds outside what was assigned and added inside.

        Args:
            layer: The layer that was called; losses become its own.
            updates: Instead of those that were noted: the same from outside
                of a function that was traced.
            losses: Instead of those that were noted, as for `updates`.
        """
        noted = {id(loss) for loss in self.losses}
        for part in layer._flatten_layers():
            # Else Keras would count what both claim twice.
            part._loss_ids.difference_update(noted)
        for loss in self.losses if losses is None else losses:
            layer.add_loss(loss)
        for variable, value in self.updates if updates is None else updates:
            variable.assign(value)


def call_with(layer, inputs, values):
    """A layer's outputs, with other values of some of its variables.

    Args:
        layer: The layer.
        inputs: Tensor that it is called with.
        values: As for `Substitution`; empty for an ordinary call.
    """
    if not values:
        return layer(inputs)
    with Substitution(values) as scope:
        outputs = layer(inputs)
    scope.hand_on(layer)
    return outputs


def without_remat(layer):
    """Leaves it to the wrapper to compute a layer's values again.

    The layer's own second run would read its kernel where the first one saw
    other tensors in its place, and lose their gradient.
    """
    for part in layer._flatten_layers():
        part._remat_mode = None


class Rematerialized:
    """A layer whose call is computed again under a `keras.RematScope`."""

    def rematerialized_call(self, layer_call, *args, **kwargs):
        # Whether Keras would, is Keras's to say.
        chosen = super().rematerialized_call(layer_call, *args, **kwargs)
        mode = self._remat_mode
        if chosen is layer_call or mode is None or mode.mode == "activations":
            return chosen
        return lambda *args, **kwargs: rematerialized(
            self, layer_call, args, kwargs
        )


def rematerialized(layer, call, args, kwargs):
    """A layer's call whose inner values are computed again for gradients.

    As `keras.remat`, which hands flags such as `training` to the function as
    tensors (JAX) or refuses them in graphs (TensorFlow), applies updates
    twice or leaks them, and runs the second time under whatever scopes and
    context there are then. Here both runs see the same values.

    Args:
        layer: The layer.
        call: Its `call`.
        args: Positional arguments of the call.
        kwargs: The others.

    Returns:
        The call's outputs.
    """
    context = contextvars.copy_context()
    context.run(bindings.hold)
    calls = copy.copy(bindings.call_context())
    structure = (args, kwargs)
    flat = keras.tree.flatten(structure)
    variables = layer.variables
    values = [ops.copy(variable.value) for variable in variables]
    everything = [*flat, *values]
    places = [i for i, value in enumerate(everything) if _has_gradient(value)]
    returns_updates = keras.backend.backend() == "jax"
    noted = []

    def pure(*given):
        now = list(everything)
        for place, value in zip(places, given, strict=True):
            now[place] = value
        arguments, now = now[: len(flat)], now[len(flat) :]
        inner_args, inner_kwargs = keras.tree.pack_sequence_as(
            structure, arguments
        )
        with (
            _called_within(calls),
            Substitution(list(zip(variables, now, strict=True))) as scope,
        ):
            outputs = context.copy().run(call, *inner_args, **inner_kwargs)
        noted.append(scope)
        # A traced function's values must not leave it but as its outputs;
        # TensorFlow's second run asks for the gradient of each output, so
        # that integers must not be among them.
        updates = [value for _, value in scope.updates]
        return outputs, scope.losses, updates if returns_updates else []

    outputs, losses, updates = keras.remat(pure)(
        *(everything[place] for place in places)
    )
    scope = noted[0]
    if returns_updates:
        updates = [
            (variable, value)
            for (variable, _), value in zip(scope.updates, updates, strict=True)
        ]
    else:
        updates = scope.updates
    scope.hand_on(layer, updates, losses)
    return outputs


@contextlib.contextmanager
def _called_within(calls):
    """Lets layers see the flags of a call that is over."""
    before = bindings.call_context()
    global_state.set_global_attribute(bindings.CALLS, calls)
    try:
        yield
    finally:
        global_state.set_global_attribute(bindings.CALLS, before)


def _has_gradient(value) -> bool:
    return ops.is_tensor(value) and keras.backend.is_float_dtype(
        keras.backend.standardize_dtype(value.dtype)
    )


def mask_after(part, outputs, mask):
    """The mask that Keras would hand on from this layer's output."""
    if mask is None or not part.supports_masking:
        return None
    return part.compute_mask(outputs, mask)


def unbuilt(config: dict, custom_objects: dict | None = None):
    """A layer of a config that does not build it, wherever it is from.

    Who calls the layer builds it then, in a scope of its own: built alone, its
    variables would have other paths than the original's, by which state trees
    are read.

    Args:
        config: What `keras.saving.serialize_keras_object` made of a layer.
        custom_objects: As Keras takes them.
    """
    config = {**config}
    config.pop("build_config", None)
    return keras.saving.deserialize_keras_object(
        config, custom_objects=custom_objects
    )
