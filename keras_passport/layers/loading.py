"""Weights whose rows are in the other order, refused whole.

Keras asks the passport layer, which has the note of files, and goes on to the
kernel layer in it whatever the answer was. So it is asked here, before either.
TensorFlow's checkpoints have the note too. State trees have none: they are
arrays, of which each is a variable's.
"""

import json
from typing import Any

import numpy as np
from keras.src.legacy.saving import legacy_h5_format
from keras.src.saving import saving_lib

from keras_passport.errors import PassportError
from keras_passport.layers import hooks
from keras_passport.layers.bindings import is_symbolic
from keras_passport.lazy import above

# Beside a layer's variables in files: whether rows have a secret order.
NOTE = "ordered"


def _check(layer, store) -> None:
    """Raises `PassportError` if weights are of rows that are stored otherwise.

    The same passport may fit both.

    Args:
        layer: The passport layer.
        store: What files hold of its own variables: `NOTE` is among them, but
            in older files, whose rows are taken for the layer's.
    """
    if NOTE not in list(store.keys()):
        return
    expected, received = _named(note(layer)), _named(store[NOTE])
    if received != expected:
        raise PassportError(
            f"Expected weights with {expected} for layer '{layer.name}': "
            "keras_passport.hide_rows makes another network of one passport, "
            "and each of protect_trained's has one of its own. Received: "
            f"weights with {received}"
        )


def note(layer):
    """What is written of the order of a passport layer's rows.

    Returns:
        `False` or `True`; where groups of filters have an order each, the bits
        of their number for each kernel: what versions before this one wrote
        into checkpoints was a bool, and none of another kind would be read.
    """
    return _bits(layer.row_groups) if layer.row_groups else layer.ordered


def _bits(groups) -> list[list[bool]]:
    return [[bool(n >> place & 1) for place in range(32)] for n in groups]


def _named(noted) -> str:
    noted = np.asarray(noted, bool)
    if noted.ndim < 2:
        return f"rows in {'a secret' if noted.all() else 'their own'} order"
    groups = noted @ 2 ** np.arange(noted.shape[1])
    return f"rows in {' and '.join(map(str, groups))} secret orders"


class Noted:
    """What a passport layer writes of the order of its rows, and reads."""

    def save_own_variables(self, store: Any) -> None:
        super().save_own_variables(store)
        store[NOTE] = note(self)

    def load_own_variables(self, store: Any) -> None:
        _check(self, store)
        names = [name for name in list(store.keys()) if name != NOTE]
        super().load_own_variables({name: store[name] for name in names})

    # For `tf.train.Checkpoint`, which hands over what there is of it: nothing
    # of older checkpoints, and a tensor without a value in graphs.

    def _serialize_to_tensors(self):
        import tensorflow as tf

        return {NOTE: tf.constant(note(self))}

    def _restore_from_tensors(self, tensors):
        import tensorflow as tf

        if not is_symbolic(tensors[NOTE]):
            _check(self, tensors)
        return tf.no_op()  # what a SavedModel's own function is made of

    def _copy_trackable_to_cpu(self, object_map):
        """Asynchronous checkpoints ask for it: no device has the note."""


@hooks.replace(saving_lib, "_load_state")
def _load_state(
    original, saveable, weights_store, assets_store, inner_path, **kwargs
):
    failed = kwargs.get("failed_saveables")
    visited = kwargs.get("visited_saveables") or ()
    asked = weights_store is not None and id(saveable) not in visited
    if asked and _is_protected(saveable):
        try:
            _check(saveable, weights_store.get(inner_path))
        except PassportError as error:
            if failed is None:
                raise
            # As Keras notes it, which raises the error or warns at the end.
            failed.add(id(saveable))
            kwargs["error_msgs"][id(saveable)] = saveable, error
            return
    original(saveable, weights_store, assets_store, inner_path, **kwargs)


def _is_protected(saveable) -> bool:
    kind = above("layers.passport_normalization").PassportNormalization
    return isinstance(saveable, kind)


# The legacy `.h5` has no note of weights, but the model's whole config.


def _refuse_other_rows(original, group, model, *args, **kwargs):
    noted = list(_noted(json.loads(group.file.attrs.get("model_config", "{}"))))
    for layer in model._flatten_layers():
        if _is_protected(layer):
            orders = [ordered for name, ordered in noted if name == layer.name]
            if orders and all(one == orders[0] for one in orders):
                _check(layer, {NOTE: orders[0]})
    original(group, model, *args, **kwargs)


def _noted(config):
    """Names of a config's passport layers, each with its note."""
    if isinstance(config, dict):
        if str(config.get("class_name")).endswith("PassportNormalization"):
            options = config["config"]
            groups = options.get("row_groups")
            noted = _bits(groups) if groups else options.get(NOTE, False)
            yield options["name"], noted
        config = list(config.values())
    if isinstance(config, list):
        for part in config:
            yield from _noted(part)


for _name in (
    "load_weights_from_hdf5_group",
    "load_weights_from_hdf5_group_by_name",
):
    hooks.replace(legacy_h5_format, _name)(_refuse_other_rows)
