"""How a function that TensorFlow has traced fetches keys when it runs.

They are a *deferred capture*: an input of the function that TensorFlow fills
in the calling thread, at each call, with what a closure of ours returns. No
variable and no constant of the graph holds them, so freezing the function
leaves an input that nothing is given to.
"""

import keras
import tensorflow as tf
from tensorflow.python.saved_model import save_context

from keras_passport.errors import PassportError
from keras_passport.layers import bindings, writers
from keras_passport.layers.readers import Reader

# How far away, in calls, is who asks what a function has captured.
_DEPTH = 8


def is_tracing() -> bool:
    if tf.executing_eagerly():
        return False
    if tf.inside_function():
        return True
    raise PassportError(
        "Expected a call outside of graphs or inside a tf.function. "
        "Received: a tf.Graph of TensorFlow 1, which would hold the keys"
    )


def is_constant(tensor) -> bool:
    """Whether the function being traced would hold a tensor's values."""
    if tf.is_symbolic_tensor(tensor):
        return tensor.op.type == "Const"
    return not isinstance(tensor, tf.Variable)


def current():
    """The function that is being traced, not a branch or a loop of it.

    TensorFlow passes captures into those by value.
    """
    graph = tf.compat.v1.get_default_graph()
    while getattr(graph, "is_control_flow_graph", False):
        graph = graph.outer_graph
    return graph


def _is_inside(graph) -> bool:
    """Whether a function is being traced, or one in it."""
    if graph is None:
        return False
    inner = tf.compat.v1.get_default_graph()
    while inner is not None and inner is not graph:
        inner = getattr(inner, "outer_graph", None)
    return inner is not None


def read(secret, kind, frame):
    """See `access.read`; called while a function is being traced.

    Whether there is a passport is asked at each call, the first one included:
    a trace that fails leaves Keras's functions unusable.
    """
    fixed, live = None, ()
    if frame is not None:
        if frame.graph is not None:
            fixed, live = frame, _live(frame.values[secret])
        if live and all(part is not None for part in live):
            return live if frame.assumes else live[0]
        if kind == bindings.KEYS and not frame.values[secret].is_one:
            kind = bindings.ROWS
    graph = current()
    captures = graph.function_captures.by_ref_internal
    for reader in captures:
        if isinstance(reader, Reader) and reader.serves(secret, kind, fixed):
            break
    else:
        writers.refuse_writers()
        reader = Reader(_together(secret, fixed), kind, fixed)
        _capture(graph, reader)
    part = reader.part(captures[reader], secret)
    if kind != bindings.PARAMETERS or not live:
        return part
    return tuple(
        fetched if shown is None else shown
        for shown, fetched in zip(live, part, strict=True)
    )


def _live(value):
    """What a block inside the function shows, `None` for its constants."""
    if isinstance(value, bindings.Keys):
        return (value.tensor,)
    return tuple(
        tf.convert_to_tensor(part, "float32")
        if isinstance(part, (keras.Variable, tf.Variable))
        or tf.is_symbolic_tensor(part)
        else None
        for part in value
    )


def _together(secret, frame):
    if frame is not None:
        return tuple(frame.values)
    context = bindings.call_context()
    if context is None:
        return (secret,)
    return bindings.reached_by(context.entry_layer, secret)


def is_replica() -> bool:
    """Whether this is a thread of a strategy's, which sees no context."""
    return (
        tf.distribute.has_strategy()
        and not tf.distribute.in_cross_replica_context()
    )


def _capture(graph, reader):
    """An input of the graph that the reader fills at each call."""
    rows = None if reader.kind == bindings.ROWS else 1
    spec = tf.TensorSpec((rows, reader.size), "float32")
    last = [(None, None)]

    def fetch():
        # One reference, since other threads exchange it meanwhile.
        packed, (known, tensor) = reader.collect(), last[0]
        if packed is not known:
            tensor = bindings.tensor_of(packed)
            last[0] = packed, tensor
        return tensor

    def supply():
        if save_context.in_save_context():
            raise writers.unexportable()
        writers.refuse_writers(depth=_DEPTH)
        if tf.executing_eagerly():
            return fetch()
        # Another function that is being traced calls this one.
        frame = reader.frame()
        if frame is not None and _is_inside(frame.graph):
            return reader.symbolic(read)
        outer = current()
        if not outer.building_function:
            raise writers.unexportable()
        with outer.as_default():
            return _add(outer, reader, spec, supply)

    _add(graph, reader, spec, supply)


def _add(graph, reader, spec, supply):
    tensor = graph.capture_call_time_value(supply, spec, key=reader)
    # TensorFlow's own closure knows no way out of branches and loops.
    graph.function_captures.add_or_replace(
        reader, supply, tensor, spec, is_by_ref=True
    )
    return tensor
