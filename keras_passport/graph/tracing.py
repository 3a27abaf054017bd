"""Symbolic calls of layers and models that leave no trace in them."""

import contextlib
import functools

import keras

from keras_passport.graph.structure import functional_of, walk


@contextlib.contextmanager
def left_alone(layer):
    """Takes back what a symbolic call notes in a layer and its sublayers."""
    attributes = dict(vars(layer))
    parts = layer._flatten_layers(include_self=False)
    counts = [
        (part, len(part._inbound_nodes), len(part._outbound_nodes))
        for part in parts
    ]
    chains = [
        part
        for part in parts
        if isinstance(part, keras.Sequential) and functional_of(part)
    ]
    for part in chains:
        vars(part)["compute_output_spec"] = functools.partial(_spec, part)
    try:
        yield
    finally:
        layer._maybe_reset_call_context()
        for part in chains:
            del vars(part)["compute_output_spec"]
        vars(layer).clear()
        vars(layer).update(attributes)
        for part, inbound, outbound in counts:
            del part._inbound_nodes[inbound:]
            del part._outbound_nodes[outbound:]


def _spec(sequential, inputs, training=None, mask=None):
    """The outputs of a Sequential that was built for another size.

    Called by the code of another layer, Keras runs it all the same.
    """
    return functional_of(sequential)._run_through_graph(
        inputs, operation_fn=lambda operation: operation.compute_output_spec
    )


@contextlib.contextmanager
def any_sizes(model):
    """Lets shapes go through Sequentials that were built for others."""
    inside = [
        functional_of(layer)
        for _, layer in walk(model)
        if isinstance(layer, keras.Sequential) and functional_of(layer)
    ]
    specs = [vars(one).get("_manual_input_spec", one) for one in inside]
    for one in inside:
        one.input_spec = None
    try:
        yield
    finally:
        for one, spec in zip(inside, specs, strict=True):
            if spec is one:
                del one._manual_input_spec
            else:
                one.input_spec = spec
