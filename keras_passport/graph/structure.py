"""What a model's graph is: who reads what, and layers by their paths."""

import collections
import inspect

import keras
from keras.src.models.functional import Functional


def functional_of(model) -> Functional | None:
    """The functional graph of a model, or `None` if it has none."""
    if isinstance(model, keras.Sequential):
        model = model._functional
    return model if isinstance(model, Functional) else None


def is_model(layer) -> bool:
    """Whether a layer is a nested functional or sequential model."""
    return functional_of(layer) is not None


def is_only_graph(model) -> bool:
    """Whether a model does what its graph says, by no `call` of its own."""
    calls = (Functional.call, keras.Sequential.call)
    return is_model(model) and type(model).call in calls


def inputs_of(model):
    """The symbolic inputs of a model with a graph, as they were written."""
    return functional_of(model).input


def outputs_of(model):
    """The symbolic outputs of a model with a graph, as they were written."""
    return functional_of(model).output


def operation_of(tensor: keras.KerasTensor):
    """The operation that made a symbolic tensor: an input's is a layer too."""
    return tensor._keras_history.operation


class Graph:
    """Who reads what in one functional model, its own calls only.

    A layer that is shared with another model has calls there too; they are
    not this model's.

    Args:
        model: Functional or built Sequential model.
    """

    def __init__(self, model):
        functional = functional_of(model)
        self.inputs = functional.inputs
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
