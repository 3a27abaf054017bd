"""Compiling a copy of a model as the model was compiled itself.

What is compiled with may be a user's own, registered for saving or not, so
it is reused as the objects that it is. Only what belongs to one model, an
optimizer and metrics, is made anew from its configuration.
"""

import contextlib
import inspect
import types
import warnings
from typing import Any

import keras
from absl import logging
from keras.src import backend
from keras.src.saving import object_registration
from keras.src.saving.serialization_lib import SafeModeScope
from keras.src.trainers.trainer import Trainer

from keras_passport import graph, subclasses
from keras_passport.errors import PassportError


def compile_like(source: keras.Model, target: keras.Model) -> None:
    """Compiles a model with its source's losses, metrics and settings.

    What can't be made anew is left out, and a warning of one line says so:
    a metric alone; with an optimizer the whole compilation.

    Args:
        source: Compiled model, or one that is not: then nothing is done.
        target: Its copy. Its optimizer is new, without the source's state.
    """
    if not source.compiled:
        return
    try:
        kind = subclasses.class_of(source)
        if kind.compile_from_config is not Trainer.compile_from_config:
            target.compile_from_config(source.get_compile_config())
            return
        if kind.compile is not Trainer.compile:
            raise PassportError(
                f"{kind.__name__} has a `compile` of its own, but no "
                "`compile_from_config`"
            )
        target.compile(**_options(source))
    except Exception as error:
        logging.warning(
            "Model '%s' is not compiled as its source was, so compile it "
            "before training: %s: %s",
            target.name,
            type(error).__name__,
            str(error).partition("\n")[0],
        )
        return
    if target.optimizer is not None and target.built:
        target.optimizer.build(target.trainable_variables)


def build_ahead(model: keras.Model, x: Any, y: Any = None) -> None:
    """Makes what a model's first training step would make of variables.

    TensorFlow traces a function twice whose first trace makes variables, and
    without a strategy Keras leaves those of optimizer and metrics to it: made
    before, a training begins sooner. A `train_step` of the
    user's own, which alone knows what it needs, is left alone.

    Args:
        model: Compiled model. Which of its variables are trainable must not
            change any more before its first step.
        x: Its inputs, of any number of examples, or a dataset of TensorFlow's
            with labels. Of anything else nothing is known before it is asked.
        y: Its labels.
    """
    if keras.backend.backend() != "tensorflow":
        return
    import tensorflow as tf

    step = getattr(model.train_step, "__func__", None)
    if (
        not (model.built and model.compiled)
        or model.run_eagerly
        or tf.config.functions_run_eagerly()
        or model._distribute_strategy is not None
        or step is not keras.Model.train_step
    ):
        return
    batch = getattr(x, "element_spec", (x, y))
    if x is None or not all(
        hasattr(leaf, "shape") and hasattr(leaf, "dtype")
        for leaf in keras.tree.flatten(batch)
        if leaf is not None
    ):
        return
    # What goes wrong here goes wrong in the step as well, which tells of it.
    with contextlib.suppress(Exception):
        if _build_by_shapes(model, batch):
            return
    with contextlib.suppress(Exception):
        model._symbolic_build(data_batch=batch)


def _build_by_shapes(model, batch) -> bool:
    """As Keras's `_symbolic_build`, without a trace of the whole network.

    Returns:
        Whether the model knows its outputs' shapes; if not, nothing is made.
    """
    is_graph = graph.is_only_graph(model)
    own = type(model).compute_output_spec is not keras.Layer.compute_output_spec
    # A graph's does not ask a user's own `call`, which may return another.
    if not is_graph and (graph.is_model(model) or not own):
        return False
    batch = keras.tree.map_structure(_spec, batch)
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(batch)
    given = x
    if is_graph:
        # Of as many examples as its own inputs a graph knows its outputs.
        leaves = keras.tree.flatten(x)
        given = keras.tree.pack_sequence_as(
            x,
            [
                keras.KerasTensor((its.shape[0], *leaf.shape[1:]), leaf.dtype)
                for its, leaf in zip(model.inputs, leaves, strict=True)
            ],
        )
    predicted = keras.tree.map_structure(
        _spec, model.compute_output_spec(given)
    )
    for built, method, options in (
        (model._compile_metrics, model.compute_metrics, {}),
        (model._compile_loss, model._compute_loss, {"training": False}),
    ):
        if built is not None and not built.built:
            options["sample_weight"] = sample_weight
            backend.compute_output_spec(method, x, y, predicted, **options)
    model.optimizer.build(model.trainable_variables)
    return True


def _spec(leaf):
    """Of any number of examples."""
    if leaf is None:
        return None
    return keras.KerasTensor(
        (None, *leaf.shape[1:]), keras.backend.standardize_dtype(leaf.dtype)
    )


def build_ahead_of(method: Any, model: keras.Model, args, kwargs) -> None:
    """`build_ahead` with the arguments of a call of `fit` or `train_on_batch`.

    Args:
        method: Keras's, for its signature.
        model: Compiled model, the first argument.
        args: The others.
        kwargs: Likewise.
    """
    if model.train_function is not None:
        return  # Not the first step: of a loop of thousands, this is one.
    try:
        given = inspect.signature(method).bind(model, *args, **kwargs).arguments
    except TypeError:
        return  # Keras, or a user's own method, says what it expected.
    # A callback may yet say what trains.
    if not given.get("callbacks"):
        build_ahead(model, given.get("x"), given.get("y"))


def _options(source) -> dict:
    """Arguments of `compile` for a copy of a model."""
    options = dict(source._compile_config.config)
    # It is not among them, but can be seen from the optimizer that there is.
    options["auto_scale_loss"] = isinstance(
        source.optimizer, keras.optimizers.LossScaleOptimizer
    )
    options["optimizer"] = _new_optimizer(options["optimizer"])
    for name in ("metrics", "weighted_metrics"):
        options[name] = _new_metrics(options[name])
    return options


def _new_optimizer(optimizer):
    """An optimizer of the same configuration, with the same schedule."""
    if optimizer is None:
        return None
    # What stands in an optimizer is put into the new one as it is, or made
    # anew by itself: it need not be one that a configuration can name.
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        inner = _new_optimizer(optimizer.inner_optimizer)
        with _instead(optimizer, "inner_optimizer", keras.optimizers.SGD()):
            made = _remade(optimizer)
        made.inner_optimizer = inner
        return made
    rate = getattr(optimizer, "_learning_rate", None)
    if not callable(rate):
        return _remade(optimizer)
    constant = keras.ops.convert_to_tensor(1.0)
    with _instead(optimizer, "_learning_rate", constant):
        made = _remade(optimizer)
    made.learning_rate = rate
    return made


@contextlib.contextmanager
def _instead(thing, name, value):
    """Lets an object have another attribute while its config is read."""
    attributes = vars(thing)
    before = attributes[name]
    attributes[name] = value
    try:
        yield
    finally:
        attributes[name] = before


def _new_metrics(metrics, inside=False):
    """The same metrics without the values that they have counted so far.

    Args:
        metrics: As `compile` takes them.
        inside: Whether they are an output's own list.
    """
    if isinstance(metrics, dict):
        made = {name: _new_metrics(m, True) for name, m in metrics.items()}
        return {name: new for name, new in made.items() if new is not None}
    if isinstance(metrics, (list, tuple)):
        made = [_new_metrics(metric, True) for metric in metrics]
        if inside:
            return [new for new in made if new is not None]
        # What was left out keeps its place: it may stand for an output.
        return [[] if new is None else new for new in made]
    if not isinstance(metrics, keras.Metric):
        return metrics
    try:
        return _remade(metrics)
    except Exception as error:
        logging.warning(
            "Metric '%s' (%s) is left out, since it can't be made anew from "
            "its get_config() (%s): compile the model with it again",
            metrics.name,
            type(metrics).__name__,
            type(error).__name__,
        )
        return None


def _remade(thing):
    """An object made anew from its configuration, known to Keras or not."""
    functions = {
        name: value
        for name, value in vars(thing).items()
        if isinstance(value, types.FunctionType)
    }
    scope = {
        object_registration.get_registered_name(kind): kind
        for kind in (type(thing), *functions.values())
    }
    with (
        warnings.catch_warnings(),
        SafeModeScope(False),
        keras.saving.custom_object_scope(scope),
    ):
        # A lambda's code is unsafe in a file, but this one is the caller's.
        warnings.simplefilter("ignore")
        made = type(thing).from_config(thing.get_config())
    # Read back, it would have lost the names that it refers to.
    vars(made).update(functions)
    return made
