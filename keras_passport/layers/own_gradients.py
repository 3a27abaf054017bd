"""The identity, with a gradient of its own.

TensorFlow registers what `tf.custom_gradient` makes of a traced function for
ever, and with it the function's graph and all that it refers to: a process
that loads one model after the other would keep them all. Here a graph holds
its gradients, and goes with them.
"""

import itertools
import weakref
from collections.abc import Callable, Sequence

import keras
from keras import ops

# What a graph's gradients are kept under.
_COLLECTION = "keras_passport_gradients"
_numbers = itertools.count()


def attach(gradient: Callable, tensors: Sequence) -> list:
    """The same tensors, with a gradient of one's own.

    Args:
        gradient: Function of these tensors and of the list of the results'
            gradients. It returns the tensors' own, as a list.
        tensors: List of float tensors.

    Returns:
        List of tensors.
    """
    if keras.backend.backend() == "tensorflow":
        return _attach(gradient, tensors)
    if keras.backend.backend() == "jax":
        return _attach_both_ways(gradient, tensors)

    # The tensors are arguments: JAX lets no gradient close over traced values.
    @ops.custom_gradient
    def identity(*tensors):
        def backward(*upstream):
            return tuple(gradient(tensors, keras.tree.flatten(upstream)))

        return tensors, backward

    return list(identity(*tensors))


def _attach_both_ways(gradient, tensors):
    """A gradient is linear, and what it is the transpose of goes forward.

    JAX's `custom_gradient` goes backward alone: `jvp`, `jacfwd`, `linearize`
    and `hessian` fail on it.
    """
    import jax

    @jax.custom_jvp
    def identity(*tensors):
        return tensors

    @identity.defjvp
    def forward(tensors, tangents):
        def backward(*upstream):
            return tuple(gradient(tensors, upstream))

        transposed = jax.linear_transpose(backward, *tensors)
        # Not the tensors themselves: of second derivatives this is the first.
        return identity(*tensors), transposed(tangents)

    return list(identity(*tensors))


def _attach(gradient, tensors):
    import tensorflow as tf
    from tensorflow.python.eager import record

    tensors = [tf.convert_to_tensor(tensor) for tensor in tensors]

    def backward(*upstream):
        return gradient(tensors, upstream)

    with record.stop_recording():
        if tf.executing_eagerly():
            results = [tf.identity(tensor) for tensor in tensors]
        else:
            graph = tf.compat.v1.get_default_graph()
            graph.add_to_collection(_COLLECTION, backward)
            override = {"IdentityN": _registered(weakref.ref(backward))}
            with graph.gradient_override_map(override):
                results = tf.identity_n(tensors)
    record.record_operation("keras_passport", results, tensors, backward)
    return results


def _registered(backward):
    """The name under which TensorFlow finds a graph's gradient."""
    import tensorflow as tf

    name = f"KerasPassport{next(_numbers)}"

    @tf.RegisterGradient(name)
    def found(operation, *upstream):
        return backward()(*upstream)

    return name
