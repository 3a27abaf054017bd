"""How Keras holds a functional graph: the one module that touches it.

Finding (what feeds what), walking (layers by path) and rebuilding are here;
what to replace is `transform.py`'s business.
"""

import collections
import contextlib
import inspect
import tempfile

import keras
import numpy as np
from keras.src.models.functional import Functional
from keras.src.saving.serialization_lib import SafeModeScope

from keras_passport import subclasses


def functional_of(model) -> Functional | None:
    """The functional graph of a model, or `None` if it has none."""
    if isinstance(model, keras.Sequential):
        model = model._functional
    return model if isinstance(model, Functional) else None


def is_model(layer) -> bool:
    """Whether a layer is a nested functional or sequential model."""
    return functional_of(layer) is not None


class Graph:
    """Who reads what in one functional model, its own calls only.

    A layer that is shared with another model has calls there too; they are
    not this model's.

    Args:
        model: Functional or built Sequential model.
    """

    def __init__(self, model):
        functional = functional_of(model)
        self.nodes = [
            node
            for depth in sorted(functional._nodes_by_depth, reverse=True)
            for node in functional._nodes_by_depth[depth]
            if node.operation is not None and not node.is_input
        ]
        self.calls = collections.defaultdict(list)
        self._readers = collections.defaultdict(list)
        self._outputs = {id(tensor) for tensor in functional.outputs}
        self._producer = {}
        for node in self.nodes:
            self.calls[id(node.operation)].append(node)
            for tensor in node.input_tensors:
                self._readers[id(tensor)].append(node)
            for tensor in node.outputs:
                self._producer[id(tensor)] = node

    def producer(self, node):
        """The call that made a call's first input; `None` for an input."""
        return self.maker(node.input_tensors[0])

    def maker(self, tensor):
        """The call that made a tensor of the graph; `None` for an input."""
        return self._producer.get(id(tensor))

    def value(self, tensor, known: dict):
        """The value of a tensor of the graph, run as far as it takes.

        Args:
            tensor: Symbolic tensor of the graph.
            known: Dict from ids of tensors of the graph to their values;
                those computed on the way are added.
        """
        if id(tensor) not in known:
            node = self.maker(tensor)
            args, kwargs = node.arguments.fill_in(
                {id(t): self.value(t, known) for t in node.input_tensors}
            )
            outputs = keras.tree.flatten(node.operation(*args, **kwargs))
            for made, value in zip(node.outputs, outputs, strict=True):
                known[id(made)] = value
        return known[id(tensor)]

    def readers(self, node) -> list | None:
        """The calls that read a call's output; `None` if it leaves the model.

        `None` as well for a call with several outputs.
        """
        if len(node.outputs) != 1 or id(node.outputs[0]) in self._outputs:
            return None
        return self._readers[id(node.outputs[0])]

    def only_reader(self, node):
        """The one call that reads a call's single output, if it is so."""
        readers = self.readers(node)
        return readers[0] if readers and len(readers) == 1 else None

    def leads_to(self, node, condition) -> bool:
        """Whether an operation that satisfies a condition comes after a call.

        Args:
            node: The call.
            condition: Function of an operation.
        """
        pending, seen = [node], set()
        while pending:
            for tensor in pending.pop().outputs:
                for reader in self._readers[id(tensor)]:
                    if condition(reader.operation):
                        return True
                    if id(reader) not in seen:
                        seen.add(id(reader))
                        pending.append(reader)
        return False


def positional(operation, args, kwargs):
    """A call's arguments, with `layer(inputs=x)` written as `layer(x)`.

    Args:
        operation: What was called.
        args: Tuple of positional arguments.
        kwargs: Dict of those by keyword.

    Returns:
        Tuple of both, with the first parameter of `call` among the former.
    """
    if args or not kwargs:
        return args, kwargs
    first = next(iter(inspect.signature(operation.call).parameters.values()))
    if first.name not in kwargs or first.kind is first.KEYWORD_ONLY:
        return args, kwargs
    kwargs = dict(kwargs)
    return (kwargs.pop(first.name),), kwargs


def extra_arguments(node) -> dict | None:
    """A call's arguments besides its one tensor; `None` if there are more."""
    args, kwargs = positional(
        node.operation, node.arguments.args, node.arguments.kwargs
    )
    if len(node.input_tensors) != 1 or len(args) != 1:
        return None
    return dict(kwargs)


def children(layer) -> list:
    """A layer's sublayers: those of a model in topological order."""
    functional = functional_of(layer)
    if functional is not None:
        return [
            child
            for child in functional.layers
            if not isinstance(child, keras.layers.InputLayer)
        ]
    return list(layer._flatten_layers(include_self=False, recursive=False))


def walk(model, stop=()):
    """Yields `(path, layer)` for every layer in a model, each layer once.

    Paths join the names of nested models and layers with "/", as names repeat
    from one nested model to the next.

    Args:
        model: Any Keras model.
        stop: Layer types not to descend into.
    """
    seen = set()

    def visit(parent, prefix):
        for layer in children(parent):
            if id(layer) in seen:
                continue
            seen.add(id(layer))
            yield prefix + layer.name, layer
            if not (stop and isinstance(layer, stop)):
                yield from visit(layer, f"{prefix}{layer.name}/")

    yield from visit(model, "")


def shared_layers(model) -> set[int]:
    """Ids of the layers that several models or layers in a model hold."""
    parents = [model, *(layer for _, layer in walk(model))]
    holders = collections.Counter(
        identity
        for parent in parents
        # A layer may hold another by two of its attributes.
        for identity in {id(child) for child in children(parent)}
    )
    return {identity for identity, count in holders.items() if count > 1}


def rebuild(model, replace, call=None, model_class=None, extra=None, size=None):
    """Builds a functional model anew, with other layers in some places.

    Args:
        model: Functional or built Sequential model; it is not changed.
        replace: Function of an operation of the graph that returns the
            operation to put in its place; called once for each.
        call: Function `(operation, new_operation, args, kwargs)` that makes a
            call and returns its outputs. Defaults to calling the new one. The
            operation's first argument is in `args`, however it was written.
        model_class: Class of this package for the returned model, which is
            then of the user's own class as well. Defaults to the class that
            `keras.models.clone_model` would keep: Keras's weights files name
            a nested model after its class.
        extra: One more input, or none.
        size: Shape of its one input. Defaults to the one that it was built
            for.

    Returns:
        The new model, with new inputs of the same names, shapes and dtypes.

    Raises:
        PassportError: If the model's own way to compute or train would be
            lost, see `subclasses.own_class`.
    """
    kind = subclasses.own_class(model)
    if model_class is not None:
        kind = subclasses.joined(model_class, kind)
    functional = functional_of(model)
    made = {}

    def operation_fn(operation):
        if id(operation) not in made:
            made[id(operation)] = (operation, replace(operation))
        return made[id(operation)]

    def call_fn(pair, *args, **kwargs):
        operation, new = pair
        args, kwargs = positional(operation, args, kwargs)
        if call is None:
            return new(*args, **kwargs)
        return call(operation, new, args, kwargs)

    inputs = keras.tree.map_structure(
        lambda tensor: _new_input(tensor, size or tensor.shape),
        functional._inputs_struct,
    )
    outputs = functional._run_through_graph(
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


def copy(model, model_class=None, made=None):
    """A model of the same layers, made anew, with new weights.

    Args:
        model: Functional or built Sequential model.
        model_class: As for `rebuild`.
        made: Dict that takes each layer's counterpart by the layer's id.
    """
    made = {} if made is None else made

    def replace(operation):
        if id(operation) not in made:
            made[id(operation)] = (
                rebuild(operation, replace)
                if is_model(operation)
                else clone(operation)
            )
        return made[id(operation)]

    return rebuild(model, replace, model_class=model_class)


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
    layer = tensor._keras_history.operation
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
            return type(operation).from_config(operation.get_config())
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


def copy_variable(source, target):
    """Copies the value of a variable or array, not the array itself.

    Handed on as it is, JAX would give the array away with the first training
    step of either.
    """
    target.assign(keras.ops.convert_to_numpy(source))


def copy_states(source, target, made, special=None, stop=()):
    """Copies the state of a model and of all layers in it, and flags.

    Args:
        source: Model.
        target: What it was rebuilt as.
        made: Dict from the id of each layer to its counterpart.
        special: Function `(layer, counterpart)` that returns whether it has
            copied a layer's state itself.
        stop: Layer types not to descend into.
    """
    pairs = [(source, target)]
    pairs += [
        (layer, made[id(layer)])
        for _, layer in walk(source, stop)
        if id(layer) in made
    ]
    for layer, counterpart in pairs:
        if special is not None and special(layer, counterpart):
            continue
        if not is_model(layer):
            copy_state(layer, counterpart)
        elif not isinstance(layer, keras.Sequential):
            subclasses.copy_own_state(layer, counterpart, copy_state)
        copy_trainable(layer, counterpart)


def copy_state(source, target):
    """Copies the state of a layer to a layer of the same structure.

    That is all of its variables, and what Keras's files hold besides: the
    vocabularies, tables and adapted statistics of preprocessing layers, and
    whatever a layer of the user's saves in its own way. Not even Keras's files
    hold the states of a stateful RNN, which go on here as well.

    Args:
        source: Built layer.
        target: Layer made of its config, built for the same inputs.
    """
    pairs = list(zip(source.variables, target.variables, strict=True))
    for old, new in pairs:
        copy_variable(old, new)
    for old, new in zip(_unlisted(source), _unlisted(target), strict=True):
        for one, other in zip(_untracked(old), _untracked(new), strict=True):
            copy_variable(one, other)
        if _saves_itself(old, "load_own_variables"):
            store = {}
            old.save_own_variables(store)
            new.load_own_variables(
                {
                    name: np.array(keras.ops.convert_to_numpy(value))
                    for name, value in store.items()
                }
            )
        if _saves_itself(old, "load_assets"):
            with tempfile.TemporaryDirectory() as folder:
                old.save_assets(folder)
                new.load_assets(folder)


def _unlisted(layer) -> list:
    """The layers in a layer, itself too, that have state besides variables."""
    return [part for part in layer._flatten_layers() if has_more_state(part)]


def has_more_state(layer) -> bool:
    """Whether a layer itself has state besides the variables that it lists."""
    return (
        _saves_itself(layer, "load_own_variables")
        or _saves_itself(layer, "load_assets")
        or bool(_untracked(layer))
    )


def _untracked(layer) -> list:
    """Variables that are a layer's attributes, but not listed as its own."""
    listed = {id(variable) for variable in layer.variables}
    return [
        leaf
        for name, value in vars(layer).items()
        if not name.startswith("_")
        for leaf in keras.tree.flatten(value)
        if isinstance(leaf, keras.Variable) and id(leaf) not in listed
    ]


def _saves_itself(layer, method) -> bool:
    """Whether a layer's way of saving holds more than its variables.

    Keras's kernel layers only sort theirs by the kind of quantisation.
    """
    for owner in type(layer).__mro__:
        if method in vars(owner):
            module = owner.__module__
            return not module.startswith("keras.") or (
                module.startswith("keras.src.layers.preprocessing.")
            )
    return False


def copy_trainable(source, target):
    """Copies `trainable` flags: a layer's, its sublayers', single variables'.

    Args:
        source: Layer, or a model, whose layers have calls of their own.
        target: Its counterpart.
    """
    pairs = [(source, target)]
    if not is_model(source) and not is_model(target):
        parts = source._flatten_layers(), target._flatten_layers()
        if len(parts[0]) == len(parts[1]):
            pairs = list(zip(*parts, strict=True))
    for old, new in pairs:
        # Only where they differ: setting it sets those of all that is inside.
        if new.trainable != old.trainable:
            new.trainable = old.trainable
        own = old._trainable_variables, new._trainable_variables
        if len(own[0]) == len(own[1]):
            for one, other in zip(*own, strict=True):
                if other.trainable != one.trainable:
                    other.trainable = one.trainable
