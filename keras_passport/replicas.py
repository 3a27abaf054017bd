"""Examples spread over the replicas of a `tf.distribute` strategy."""

import keras
import numpy as np


def current_strategy():
    """The strategy in whose scope this is called; `None` outside of any."""
    if keras.backend.backend() != "tensorflow":
        return None
    import tensorflow as tf

    if not tf.distribute.has_strategy():
        return None
    return tf.distribute.get_strategy()


def spans_machines() -> bool:
    """Whether the current strategy has workers in several processes."""
    strategy = current_strategy()
    return strategy is not None and (
        strategy.num_replicas_in_sync > len(strategy.extended.worker_devices)
    )


def split(strategy, examples):
    """Gives every replica its part of some examples, on its own device.

    Args:
        strategy: A `tf.distribute.Strategy` of one or more machines. On each
            of them this is called with the same examples.
        examples: Array `(n, ...)`, or a structure of such.

    Returns:
        The same structure of per-replica tensors, for `strategy.run`. Parts
        differ by one example at most.
    """
    import tensorflow as tf

    devices = strategy.extended.worker_devices  # Of this machine.

    def split_one(array):
        parts = np.array_split(array, strategy.num_replicas_in_sync)

        def part(context):
            index = context.replica_id_in_sync_group
            with tf.device(devices[index % len(devices)]):
                return tf.convert_to_tensor(parts[index])

        return strategy.experimental_distribute_values_from_function(part)

    return keras.tree.map_structure(split_one, examples)
