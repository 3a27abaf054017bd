"""Opening composite layers: layers of a user's that hold other layers.

KerasHub, kimm and many projects write a block of a network as one layer, whose
`call` runs the layers that it holds. Where that is exactly a graph of Keras
layers and operations, in training as in inference, the graph can stand in its
place, and `protect` finds the kernels and normalisations in it.
"""

import inspect

import keras
import numpy as np
from keras.src.utils.python_utils import is_default

from keras_passport import graph
from keras_passport.layers import kernels
from keras_passport.layers.passport_normalization import PassportNormalization

# Size of axes that a layer leaves open, and the examples, in a trial run.
_OPEN_SIZE = 32
_EXAMPLES = 2


class _Closed(Exception):
    """A layer can't be opened; the argument says why, after "which"."""


def is_composite(layer) -> bool:
    """Whether a layer of the graph holds kernel layers, but is no model."""
    if not isinstance(layer, keras.layers.Layer) or graph.is_model(layer):
        return False
    if isinstance(layer, PassportNormalization):
        return False
    if kernels.adapter_for(layer) is not None:
        return False
    return any(
        kernels.adapter_for(part) is not None for part in _parts(layer)
    ) and not any(isinstance(p, PassportNormalization) for p in _parts(layer))


def opened(layer: keras.layers.Layer, calls: list) -> keras.Model | str:
    """The graph that a composite layer computes, or why there is none.

    Args:
        layer: Built composite layer; it is left as it was.
        calls: The nodes of the model's graph that call it.

    Returns:
        A functional model of the layer's own sublayers, to be rebuilt and not
        to be kept, or words that follow "which".
    """
    try:
        _check(layer, calls)
        graphs = [_trace(layer, calls[0], t) for t in (None, True, False)]
        held = {id(part) for part in _parts(layer)}
        forms = [
            _form(functional, training, held)
            for functional, training in zip(
                graphs, (None, True, False), strict=True
            )
        ]
        if forms[0] != forms[1] or forms[0] != forms[2]:
            raise _Closed("computes something else in training")
        _check_complete(layer, graphs[0])
        _check_outputs(layer, graphs[0], calls[0])
    except _Closed as reason:
        return str(reason)
    return graphs[0]


def tensors(args, kwargs) -> list:
    """The symbolic tensors among a call's arguments: an opened one's inputs."""
    return [
        leaf
        for leaf in keras.tree.flatten((args, kwargs))
        if isinstance(leaf, keras.KerasTensor)
    ]


def _parts(layer) -> list:
    """All layers inside a layer."""
    return layer._flatten_layers(include_self=False)


def _check(layer, calls):
    """Raises `_Closed` for what a graph could not do as the layer does it."""
    kind = type(layer)
    if kind.__module__.partition(".")[0] == "keras":
        raise _Closed("runs it in its own way")
    if kind.__call__ is not keras.layers.Layer.__call__:
        raise _Closed("has its own `__call__`")
    weights = layer._trainable_variables + layer._non_trainable_variables
    if weights:
        names = ", ".join(f"'{variable.name}'" for variable in weights[:3])
        raise _Closed(f"has weights of its own ({names})")
    if layer._seed_generators:
        raise _Closed("draws random numbers of its own")
    if graph.has_more_state(layer):
        raise _Closed("has state of its own")
    if layer.activity_regularizer is not None:
        raise _Closed("regularises its activity")
    if any(getattr(part, "stateful", False) for part in _parts(layer)):
        raise _Closed("holds a layer with states")
    masked = any(
        getattr(tensor, "_keras_mask", None) is not None
        for node in calls
        for tensor in node.input_tensors
    )
    if masked or not is_default(layer.compute_mask):
        raise _Closed("handles masks")
    forms = {
        repr(_mapped(node, lambda t: (t.shape, t.dtype))) for node in calls
    }
    if len(forms) != 1:
        raise _Closed("is called in several ways")


def _mapped(node, replace):
    """A call's arguments with something else in place of its tensors."""
    return keras.tree.map_structure(
        lambda leaf: (
            replace(leaf) if isinstance(leaf, keras.KerasTensor) else leaf
        ),
        (node.arguments.args, node.arguments.kwargs),
    )


def _new_inputs(layer, node) -> list:
    """New inputs for the tensors of a call, as the layer's `call` sees them."""
    made = []
    for i, tensor in enumerate(node.input_tensors):
        dtype = tensor.dtype
        if layer._convert_input_args and layer.autocast:
            floating = keras.backend.is_float_dtype(dtype)
            dtype = layer.input_dtype if floating else dtype
        made.append(
            keras.Input(
                batch_shape=tensor.shape,
                dtype=dtype,
                name=f"{layer.name}_input" + (f"_{i}" if i else ""),
            )
        )
    return made


def _arguments(layer, node, values, training):
    """A call's arguments with other values in place of its tensors."""
    values = iter(values)
    args, kwargs = _mapped(node, lambda _: next(values))
    kwargs = {k: v for k, v in kwargs.items() if k != "training"}
    if "training" in inspect.signature(layer.call).parameters:
        kwargs["training"] = training
    return args, kwargs


def _trace(layer, node, training) -> keras.Model:
    """The graph of one call, of the layer's own sublayers."""
    inputs = _new_inputs(layer, node)
    args, kwargs = _arguments(layer, node, inputs, training)
    with graph.left_alone(layer):
        if training is not None:
            # What its sublayers see that are called without `training`.
            layer._get_call_context().set_value("training", training)
        try:
            outputs = layer.call(*args, **kwargs)
            return keras.Model(
                inputs[0] if len(inputs) == 1 else inputs,
                outputs,
                name=layer.name,
            )
        except Exception as error:
            said = str(error).strip().partition("\n")[0][:80]
            raise _Closed(
                "is no graph of Keras layers and operations "
                f"({type(error).__name__}: {said})"
            ) from None


def _form(functional, training, held) -> list:
    """What a graph computes, in a form that can be compared.

    Layers that the composite holds are named by their identity, all else,
    which its code makes anew with each call, by its configuration.

    Args:
        functional: The graph.
        training: What it was traced with.
        held: Ids of the layers that the composite holds.
    """
    numbers = {id(t): i for i, t in enumerate(functional.inputs)}
    rows = []

    def leaf(value):
        if isinstance(value, keras.KerasTensor):
            return ("tensor", numbers[id(value)])
        if isinstance(
            value, (keras.Variable, np.ndarray)
        ) or keras.ops.is_tensor(value):
            raise _Closed("computes with tensors that its code makes")
        return value

    for node in graph.Graph(functional).nodes:
        operation = node.operation
        kwargs = dict(node.arguments.kwargs)
        if isinstance(operation, keras.layers.Layer):
            given = kwargs.pop("training", None)
            if training is not None and given not in (None, training):
                raise _Closed("calls a layer with a `training` of its own")
        name = id(operation) if id(operation) in held else _name(operation)
        arguments = keras.tree.map_structure(
            leaf, (node.arguments.args, kwargs)
        )
        rows.append((name, repr(arguments)))
        for tensor in node.outputs:
            numbers[id(tensor)] = len(numbers)
    outputs = keras.tree.map_structure(leaf, graph.outputs_of(functional))
    return [*rows, repr(outputs)]


def _name(operation):
    """What an operation does, to be compared."""
    if getattr(operation, "variables", ()):
        raise _Closed("calls layers that it does not hold")
    try:
        config = operation.get_config()
    except Exception:
        raise _Closed(
            f"uses {type(operation).__name__}, which can't be saved"
        ) from None
    config = {k: v for k, v in config.items() if k != "name"}
    return type(operation), repr(config)


def _check_complete(layer, functional):
    """Checks that the graph holds all weights that the layer holds."""
    reached = graph.children(functional)
    weights = {id(weight) for part in reached for weight in part.weights}
    if any(id(weight) not in weights for weight in layer.weights):
        raise _Closed("holds weights that its call does not use")


def _check_outputs(layer, functional, node):
    """Checks on random numbers that both compute the same."""
    rng = np.random.default_rng(0)
    values = []
    for tensor in functional.inputs:
        shape = [_OPEN_SIZE if n is None else n for n in tensor.shape]
        if tensor.shape[0] is None:
            shape[0] = _EXAMPLES
        drawn = rng.uniform(-1, 1, shape)
        if not keras.backend.is_float_dtype(tensor.dtype):
            drawn = np.abs(drawn) > 0.5
        values.append(
            keras.ops.cast(keras.ops.convert_to_tensor(drawn), tensor.dtype)
        )
    args, kwargs = _arguments(layer, node, values, False)
    try:
        # Whatever a layer assigns to a variable meanwhile is forgotten.
        with graph.left_alone(layer), keras.StatelessScope():
            expected = keras.tree.flatten(layer(*args, **kwargs))
            received = keras.tree.flatten(
                functional(
                    values[0] if len(values) == 1 else values, training=False
                )
            )
    except Exception as error:
        raise _Closed(
            "is a graph that can't be run on its own, such as one for a fixed "
            f"number of examples ({type(error).__name__})"
        ) from None
    if len(expected) != len(received):
        raise _Closed("has other outputs than its graph")
    for one, other in zip(expected, received, strict=True):
        one, other = (
            keras.ops.convert_to_numpy(keras.ops.cast(y, "float32"))
            for y in (one, other)
        )
        scale = np.max(np.abs(one), initial=1.0)
        if one.shape != other.shape or not np.allclose(
            one, other, rtol=0.0, atol=1e-5 * scale, equal_nan=True
        ):
            raise _Closed("computes something else than its graph")
