"""Models that take a passport with every call, and their exports."""

import collections.abc
import json
import os
import pathlib
import tempfile

import keras
import numpy as np
from keras import ops

from keras_passport import files, graph, registration, subclasses
from keras_passport.errors import PassportError
from keras_passport.layers import PassportNormalization
from keras_passport.models import (
    ProtectedModel,
    function_of,
    protected_layers,
)
from keras_passport.specs import SPEC_FILE, SPEC_VERSION

INPUT = "passport"
LABELS_FILE = "labels.txt"


@registration.named_in_hdf5
@keras.saving.register_keras_serializable(package="keras_passport")
class PassportInputModel(ProtectedModel):
    """A protected model with the passport as an input; see `require_passport`.

    It needs no bound passport, so nothing is asked for before a call, and
    `export` is as safe as `export_saved_model`: none of its variables holds a
    key.
    """

    export = keras.Model.export

    def _require_bound(self):
        pass


def require_passport(model: keras.Model) -> PassportInputModel:
    """A copy of a protected model with one more input, `passport`.

    The product leaves the house without its passport: whoever runs it
    presents one with every call. No variable of the copy holds a key or a
    hidden parameter, whether or not a passport is bound to the model.

    Args:
        model: Protected functional model, bound or not.

    Returns:
        A `PassportInputModel`, uncompiled. Its inputs are the model's, and
        `passport`, float32 of shape `(1 or batch, K)`, last in a list or by
        name in a dict: one row, `Passport.pack`'s, serves the whole batch,
        one row per example gives each its own. `fit`, `evaluate` and
        `predict` want as many rows as examples: see `with_passport`.

    Raises:
        PassportError: If the model is not protected or no functional model,
            or has an input named passport already.

    Example:

    >>> served = require_passport(model)
    >>> scores = served([images, passport.pack(passport_spec(served))])

    Reference:

    - Fan, Ng, Chan: Digital Passport, Section 2.3, eqs. 3 to 5.
    """
    spec = passport_spec(model)
    if not graph.is_model(model):
        raise PassportError(
            "Expected a Functional or Sequential model. "
            f"Received: {type(model).__name__} '{model.name}'"
        )
    _check_name_is_free(model)
    bounds = {}
    for layer, about in zip(
        protected_layers(model).values(), spec["layers"], strict=True
    ):
        bounds[id(layer)] = (about["offset"], about["offset"] + about["size"])
    made = {}
    served = _rebuild(model, bounds, spec["size"], made, PassportInputModel)
    for path, layer in protected_layers(model).items():
        if id(layer) not in made:
            raise PassportError(
                "Expected passport layers in the model's graph. Received: "
                f"'{path}' inside another layer, which can't hand an "
                "input on to it"
            )
    graph.copy_states(model, served, made, stop=(PassportNormalization,))
    return served


def _holds_passports(operation) -> bool:
    return graph.is_model(operation) and bool(protected_layers(operation))


def _check_name_is_free(model):
    """The name of the new input must be new, in nested models as well."""
    inputs = graph.functional_of(model)._inputs_struct
    names = {
        *_input_names(model),
        *(inputs if isinstance(inputs, dict) else ()),
    }
    for layer in graph.children(model):
        names.add(layer.name)
        if _holds_passports(layer):
            _check_name_is_free(layer)
    if INPUT in names:
        raise PassportError(
            f"Expected a model without an input or layer named '{INPUT}'. "
            f"Received: '{model.name}' with inputs {_input_names(model)}"
        )


def _rebuild(model, bounds, size, made, model_class):
    """Rebuilds one graph with the passport as an input, and those in it."""
    own = set(subclasses.overridden(model)) & {"call", "__call__"}
    if own:
        raise PassportError(
            "Expected a model that takes its inputs as its graph does. "
            f"Received: '{model.name}' ({type(model).__name__}) with its own "
            f"{', '.join(sorted(own))}, which knows nothing of a passport as "
            "an input. Put what it does into the graph, as a layer"
        )
    passport = keras.Input((size,), name=INPUT, dtype="float32")
    inside = [
        bounds[id(operation)]
        for operation in graph.children(model)
        if id(operation) in bounds
    ]
    # One operation takes the whole passport apart: at every bound.
    cuts = sorted({cut for some in inside for cut in some} - {0, size})
    parts = {0: passport}
    if cuts:
        split = ops.split(passport, cuts, axis=1)
        # The name that Keras gives it may be one of the model's own.
        split[0]._keras_history.operation.name = f"{INPUT}_parts"
        parts = dict(zip([0, *cuts], split, strict=True))

    def replace(operation):
        if id(operation) not in made:
            made[id(operation)] = make(operation)
        return made[id(operation)]

    def make(operation):
        if _holds_passports(operation):
            return _rebuild(operation, bounds, size, made, None)
        if graph.is_model(operation):
            return graph.rebuild(operation, replace)
        return graph.clone(operation)

    def call(operation, new, args, kwargs):
        if id(operation) in bounds:
            kwargs = {**kwargs, INPUT: parts[bounds[id(operation)][0]]}
        elif _holds_passports(operation):
            args = (graph.with_extra(args[0], INPUT, passport), *args[1:])
        return new(*args, **kwargs)

    return graph.rebuild(model, replace, call, model_class, extra=passport)


def passport_spec(model: keras.Model) -> dict:
    """How a passport is packed for a model. It holds no secret.

    Args:
        model: Protected model, with or without the passport as an input.

    Returns:
        Dict for JSON: `size`, K, and in the order of packing for each layer
        its `path`, `offset`, `size`, `roles` (γ's key comes before β's),
        `key_shape` (C order) and `geometry`, with which `Passport.pack`
        checks that a passport was made for this architecture.

    Raises:
        PassportError: If the model is not protected.

    Example:

    >>> json.dumps(passport_spec(model))
    """
    function = function_of(model)
    layers, offset = [], 0
    for path, layer in protected_layers(model).items():
        layers.append(
            {
                "path": path,
                "offset": offset,
                "size": layer.passport_size,
                "roles": list(function.roles),
                "key_shape": list(layer.geometry.key_shape),
                "geometry": layer.geometry.to_dict(),
            }
        )
        offset += layer.passport_size
    return {
        "version": SPEC_VERSION,
        "function": function.name,
        "size": offset,
        "layers": layers,
    }


def with_passport(inputs, packed):
    """Inputs for `fit`, `evaluate` and `predict` of a `PassportInputModel`.

    Keras checks that all inputs have equally many rows, so one row is
    repeated, without being copied.

    Args:
        inputs: Array, or list or dict of arrays, as the model without the
            passport takes them.
        packed: float32 array `(1, K)`, of `Passport.pack`, or with one row
            per example.

    Returns:
        The inputs in the structure that the model takes.

    Example:

    >>> scores = served.predict(with_passport(images, packed))
    """
    rows = len(keras.tree.flatten(inputs)[0])
    packed = np.asarray(packed, "float32")
    if packed.ndim != 2 or packed.shape[0] not in (1, rows):
        raise PassportError(
            f"Expected a packed passport of shape (1 or {rows}, K). "
            f"Received: shape={packed.shape}"
        )
    return graph.with_extra(
        inputs, INPUT, np.broadcast_to(packed, (rows, packed.shape[1]))
    )


def export_saved_model(
    model: keras.Model,
    path: str | os.PathLike,
    *,
    preprocessing: collections.abc.Callable | None = None,
    input_dtype: str | None = None,
    class_names: collections.abc.Sequence[str] | None = None,
    passport_as_bytes: bool = False,
    overwrite: bool = False,
) -> None:
    """Writes a SavedModel whose signature requires a passport.

    It runs where neither Keras nor this package is installed. Its signature
    `serving_default` takes the model's inputs by their names, and `passport`.

    Args:
        model: Protected model, or one of `require_passport`.
        path: Folder to write. It is there, whole, or not at all.
        preprocessing: What comes in front of the model: a Keras model or
            layer, or a function of TensorFlow operations, of the inputs as
            the model takes them (one, a list or a dict).
        input_dtype: Dtype of the model's own inputs in the signature, such as
            `"uint8"`; they are cast to what follows. Defaults to the model's,
            or to that of a preprocessing model's inputs.
        class_names: Labels, in the order of the outputs; they travel as the
            asset `labels.txt`.
        passport_as_bytes: Whether the signature takes each row of the
            passport as a string of its little-endian float32 bytes,
            `row.astype("<f4").tobytes()`, which JSON can carry in Base64:
            the input `passport` is then a vector of strings.
        overwrite: Whether to replace what is at `path`.

    Raises:
        PassportError: If the model is not protected.
        FileExistsError: If there is something at `path` already.
        ValueError: If there are not as many class names as outputs, or inputs
            of `preprocessing` as of the model.
        RuntimeError: On another backend than TensorFlow.

    Example:

    >>> export_saved_model(model, "served", class_names=["cat", "dog"])
    """
    _check_backend("a SavedModel")
    import tensorflow as tf

    served = _requiring(model)
    names = [name for name in _input_names(served) if name != INPUT]
    front = _inputs_in_front(served, preprocessing)
    signature = {
        name: tf.TensorSpec(
            tensor.shape, input_dtype or tensor.dtype, name=name
        )
        for name, tensor in zip(names, front, strict=True)
    }
    spec = passport_spec(served)
    signature[INPUT] = (
        tf.TensorSpec((None,), "string", name=INPUT)
        if passport_as_bytes
        else tf.TensorSpec((None, spec["size"]), "float32", name=INPUT)
    )
    structure = _own_inputs(served)
    texts = {SPEC_FILE: json.dumps(spec, indent=2)}
    if class_names is not None:
        texts[LABELS_FILE] = "\n".join(_checked_names(class_names, served))

    def serve(**given):
        passport = given.pop(INPUT)
        if passport_as_bytes:
            passport = tf.io.decode_raw(passport, "float32")
        # A loaded signature takes any shape, and would fail further inside.
        passport = tf.ensure_shape(passport, (None, spec["size"]), INPUT)
        inputs = keras.tree.pack_sequence_as(
            structure,
            [
                tf.cast(given[name], tensor.dtype)
                for name, tensor in zip(names, front, strict=True)
            ],
        )
        if preprocessing is not None:
            inputs = preprocessing(inputs)
        outputs = served(
            graph.with_extra(inputs, INPUT, passport), training=False
        )
        flat = keras.tree.flatten(outputs)
        return dict(zip(served.output_names, flat, strict=True))

    with (
        files.replacing_folder(path, overwrite, files.SAVED_MODEL) as folder,
        tempfile.TemporaryDirectory() as assets,
    ):
        function = tf.function(serve).get_concrete_function(**signature)
        module = tf.Module()
        # Not the model itself: TensorFlow would trace and save more of it.
        module.state = [
            variable.value
            for some in (served, preprocessing)
            for variable in getattr(some, "variables", ())
        ]
        module.assets = []
        for name, text in texts.items():
            asset = pathlib.Path(assets, name)
            asset.write_text(text + "\n", encoding="utf-8")
            module.assets.append(tf.saved_model.Asset(str(asset)))
        tf.saved_model.save(
            module, str(folder), signatures={"serving_default": function}
        )


def export_onnx(
    model: keras.Model, path: str | os.PathLike, overwrite: bool = False
) -> None:
    """Writes an ONNX file with the passport as an input.

    Needs the extra `onnx`. Inputs have the names that the model's have, and
    the passport one row, or one per example.

    Args:
        model: Protected model, or one of `require_passport`.
        path: File to write.
        overwrite: Whether to replace what is at `path`.

    Raises:
        PassportError: If the model is not protected.
        FileExistsError: If there is something at `path` already.
        ImportError: If what the extra installs is not there.
        RuntimeError: On another backend than TensorFlow.

    Example:

    >>> export_onnx(model, "served.onnx")
    """
    served = _requiring(model)
    try:
        import tf2onnx  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "Expected the packages onnx and tf2onnx: "
            'pip install "keras-passport[onnx]". '
            f"Received: {error}"
        ) from error
    _export(served, path, "onnx", overwrite)


def export_litert(
    model: keras.Model, path: str | os.PathLike, overwrite: bool = False
) -> None:
    """Writes a LiteRT file with the passport as an input.

    TensorFlow itself converts; what the extra `litert` installs runs it.

    Args:
        model: Protected model, or one of `require_passport`.
        path: File to write, of the suffix `.tflite`.
        overwrite: Whether to replace what is at `path`.

    Raises:
        PassportError: If the model is not protected.
        FileExistsError: If there is something at `path` already.
        ValueError: If the suffix is another one.
        RuntimeError: On another backend than TensorFlow.

    Example:

    >>> export_litert(model, "served.tflite")
    """
    _export(model, path, "litert", overwrite)


def _check_backend(what):
    if keras.backend.backend() != "tensorflow":
        raise RuntimeError(
            f"Expected KERAS_BACKEND=tensorflow for {what}. "
            f"Received: {keras.backend.backend()}"
        )


def _export(model, path, kind, overwrite):
    _check_backend("a file of another format")
    served = _requiring(model)
    path = pathlib.Path(path)
    if path.exists() and not overwrite:
        raise files.exists_already(path)
    # Without one, Keras wants the model to have been called before.
    signature = keras.tree.map_structure(
        lambda tensor: keras.InputSpec(
            shape=tensor.shape, dtype=tensor.dtype, name=tensor.name
        ),
        graph.functional_of(served)._inputs_struct,
    )
    with files.replacing(path) as temporary:
        served.export(
            temporary, format=kind, verbose=False, input_signature=[signature]
        )


def _checked_names(class_names, served) -> list[str]:
    """Class names that are one line each, and as many as there are outputs."""
    names = [str(name) for name in class_names]
    counts = {tensor.shape[-1] for tensor in served.outputs} - {None}
    if len(counts) == 1 and len(names) not in counts:
        raise ValueError(
            f"Expected class_names for {counts.pop()} outputs. "
            f"Received: {len(names)}"
        )
    if any(len(name.splitlines()) > 1 for name in names):
        raise ValueError("Expected class_names without line breaks")
    return names


def _requiring(model) -> PassportInputModel:
    if isinstance(model, PassportInputModel):
        return model
    return require_passport(model)


def _input_names(model) -> list[str]:
    """Names of a model's inputs, in the order of their structure."""
    structure = graph.functional_of(model)._inputs_struct
    return [
        tensor._keras_history.operation.name
        for tensor in keras.tree.flatten(structure)
    ]


def _own_inputs(served):
    """The structure of a `PassportInputModel`'s inputs but the passport."""
    structure = graph.functional_of(served)._inputs_struct
    if isinstance(structure, dict):
        return {k: v for k, v in structure.items() if k != INPUT}
    own = list(structure[:-1])
    return own[0] if len(own) == 1 else own


def _inputs_in_front(served, preprocessing) -> list:
    """Shape and dtype of what the signature takes, without the passport."""
    own = keras.tree.flatten(_own_inputs(served))
    if isinstance(preprocessing, keras.Model) and graph.is_model(preprocessing):
        first = keras.tree.flatten(
            graph.functional_of(preprocessing)._inputs_struct
        )
        if len(first) != len(own):
            raise ValueError(
                f"Expected preprocessing with {len(own)} inputs, as the model "
                f"has. Received: {len(first)}"
            )
        return first
    return own
