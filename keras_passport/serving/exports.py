"""SavedModel, ONNX and LiteRT files that take the passport as an input.

Names, order and dtypes of inputs and outputs are those that Keras's own
export gives the model without its passport.
"""

import collections.abc
import gc
import json
import os
import pathlib
import tempfile

import keras

from keras_passport import files, graph, sealed
from keras_passport.layers import decoupling
from keras_passport.passports import passport_file
from keras_passport.passports.specs import SPEC_FILE
from keras_passport.serving.passport_input import (
    INPUT,
    PassportInputModel,
    passport_spec,
    require_passport,
)
from keras_passport.texts import shown

LABELS_FILE = "labels.txt"
CLAIM_FILE = "claim.json"


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
    `serving_default` takes the model's inputs by their names, and `passport`,
    and returns the outputs under the names that `model.export` would give
    them: `output_0` and so on, or the keys of a dict. Outputs in lists or
    dicts within each other, which `model.export` refuses, are numbered as they
    come, or named after all keys on the way, joined by "_".

    Vocabularies, tables and other resources go along, whoever holds them: the
    model, or whatever is in front of it.

    TensorFlow's own message about a call that does not fit the signature (a
    misspelt or positional argument, a NumPy array of another shape) shows the
    arguments. What `Passport.pack` returns tells nothing there as long as it
    is handed over as it is, not as a tensor, a list or bytes. So TensorFlow
    casts it, too, if it is an array of another dtype: whole numbers are no
    passport, and give what any wrong one gives.

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
        overwrite: Whether to replace a SavedModel that is at `path`; nothing
            else ever is.

    Raises:
        PassportError: If the model is not protected.
        FileExistsError: If there is something at `path` that may not be
            replaced.
        ValueError: If there are not as many class names as outputs, or inputs
            of `preprocessing` as of the model.
        RuntimeError: On another backend than TensorFlow.

    Example:

    >>> names = ["cat", "dog", "bird"]
    >>> kp.export_saved_model(model, "served", class_names=names)
    """
    _check_backend("a SavedModel")
    import tensorflow as tf

    _check_no_passport(path)
    # First: of a folder that stays anyway, nobody looks through all files.
    files.check_saved_model(path, overwrite)
    # Among a SavedModel's assets, too.
    _check_no_passport(*pathlib.Path(path).rglob("*"))
    served = _requiring(model)
    spec = passport_spec(served)
    expected = _own_inputs(served)
    front = keras.tree.pack_sequence_as(
        expected, _inputs_in_front(served, preprocessing)
    )
    # Named as Keras's own export names them, in the same structure.
    signature = keras.tree.map_structure(
        lambda tensor, first: tf.TensorSpec(
            (None, *first.shape[1:]), input_dtype or first.dtype, tensor.name
        ),
        expected,
        front,
    )
    signature = graph.with_extra(
        signature,
        INPUT,
        tf.TensorSpec((None,), "string", INPUT)
        if passport_as_bytes
        else tf.TensorSpec((None, spec["size"]), "float32", INPUT),
    )
    texts = {SPEC_FILE: json.dumps(spec, indent=2)}
    if class_names is not None:
        texts[LABELS_FILE] = "\n".join(_checked_names(class_names, served))

    if served.claim is not None:
        # As `ownership.Claim.load` reads it.
        claim = sealed.dumps("claim", dict(served.claim))
        texts[CLAIM_FILE] = claim.decode().rstrip("\n")

    def serve(given):
        given, passport = _apart(given)
        if passport_as_bytes:
            passport = tf.io.decode_raw(passport, "float32")
        # A loaded signature takes any shape, and would fail further inside.
        passport = tf.ensure_shape(passport, (None, spec["size"]), INPUT)
        given = keras.tree.map_structure(
            lambda value, first: (
                value
                if value.dtype == tf.string
                else tf.cast(value, first.dtype)
            ),
            given,
            front,
        )
        if preprocessing is not None:
            # Keras's random layers change pictures unless they are told.
            trains = getattr(preprocessing, "_call_has_training_arg", False)
            options = {"training": False} if trains else {}
            given = preprocessing(given, **options)
        return _named(
            served(graph.with_extra(given, INPUT, passport), training=False)
        )

    with (
        files.replacing_folder(path, overwrite, saved_model=True) as folder,
        tempfile.TemporaryDirectory() as assets,
    ):
        function = tf.function(serve, input_signature=[signature])
        with decoupling.values_only():
            concrete = function.get_concrete_function()
        module = tf.Module()
        # Not the model itself: TensorFlow would trace and save more of it.
        module.state = list(concrete.variables)
        module.resources = _resources(concrete)
        module.assets = []
        for name, text in texts.items():
            asset = pathlib.Path(assets, name)
            asset.write_text(text + "\n", encoding="utf-8")
            module.assets.append(tf.saved_model.Asset(str(asset)))
        tf.saved_model.save(
            module, str(folder), signatures={"serving_default": concrete}
        )


def _apart(given):
    """A model's own inputs, and the passport that came with them."""
    if isinstance(given, dict):
        rest = {name: value for name, value in given.items() if name != INPUT}
        return rest, given[INPUT]
    *rest, passport = given
    return rest[0] if len(rest) == 1 else rest, passport


def _named(outputs):
    """Outputs in a structure that TensorFlow has a signature for."""
    if not keras.tree.is_nested(outputs):
        return outputs
    values = outputs.values() if isinstance(outputs, dict) else outputs
    if not any(keras.tree.is_nested(value) for value in values):
        return outputs
    if not isinstance(outputs, dict):
        return keras.tree.flatten(outputs)
    return {
        "_".join(map(str, path)): value
        for path, value in keras.tree.flatten_with_path(outputs)
    }


def _resources(function) -> list:
    """The tables and other resources that a traced function reads.

    TensorFlow saves a resource that it can reach from what is saved, but a
    function knows it by its handle alone: who holds it, be it a layer, a
    module, a variable of another function or a program's own, is nowhere
    written. So it is looked for among all objects that there are.
    """
    from tensorflow.saved_model.experimental import TrackableResource

    known = {id(variable.handle) for variable in function.variables}
    handles = {
        id(tensor)
        for tensor in function.captured_inputs
        if tensor.dtype == "resource"
    } - known
    if not handles:
        return []
    return [
        thing
        for thing in gc.get_objects()
        if issubclass(type(thing), TrackableResource)
        and id(getattr(thing, "_resource_handle", None)) in handles
    ]


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
        RuntimeError: On another backend than TensorFlow, or if tf2onnx
            can't convert the network, such as one of grouped convolutions.

    Example:

    >>> kp.export_onnx(model, "served.onnx")
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

    >>> kp.export_litert(model, "served.tflite")
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
    _check_free(path, overwrite)
    # Without one, Keras wants the model to have been called before.
    signature = graph.inputs_of(served)
    with files.replacing(path) as temporary:
        served.export(
            str(temporary),  # Before Keras 3.15, LiteRT wants text.
            format=kind,
            verbose=False,
            input_signature=[signature],
        )
        if kind == "onnx":
            _check_onnx(temporary)
        # Writing took its time: what came there meanwhile is not ours.
        _check_free(path, overwrite)


def _check_free(path, overwrite):
    if path.exists() and not overwrite:
        raise files.exists_already(path)
    _check_no_passport(path)


def _check_no_passport(*places):
    for place in places:
        if passport_file.is_passport(place):
            raise FileExistsError(
                "Expected to overwrite anything but a passport, which can't be "
                f"made again. Received: '{shown(place)}', which is one"
            )


def _check_onnx(path):
    """Raises `RuntimeError` of a file that no runtime reads."""
    import onnx

    try:
        onnx.checker.check_model(os.fspath(path))
    except onnx.checker.ValidationError as error:
        # As of grouped convolutions, protected or not: Keras compiles a
        # function of its own for them.
        raise RuntimeError(
            "Expected a network that tf2onnx converts as a whole. Received: "
            f"one of which it leaves a part: {str(error).splitlines()[0]}"
        ) from error


def _checked_names(class_names, served) -> list[str]:
    """Class names that are one line each, and as many as there are outputs."""
    if isinstance(class_names, (str, bytes)):
        # It would be a name for each letter.
        raise ValueError(
            "Expected class_names to be a list of names. "
            f"Received: a {type(class_names).__name__}"
        )
    names = [str(name) for name in class_names]
    counts = {tensor.shape[-1] for tensor in served.outputs} - {None}
    if len(counts) == 1 and len(names) not in counts:
        raise ValueError(
            f"Expected class_names for {counts.pop()} outputs. "
            f"Received: {len(names)}"
        )
    broken = [name for name in names if len(name.splitlines()) > 1]
    if broken:
        raise ValueError(
            f"Expected class_names without line breaks. Received: {broken[0]!r}"
        )
    return names


def _requiring(model) -> PassportInputModel:
    if isinstance(model, PassportInputModel):
        return model
    return require_passport(model)


def _own_inputs(served):
    """The structure of a `PassportInputModel`'s inputs but the passport."""
    return _apart(graph.inputs_of(served))[0]


def _inputs_in_front(served, preprocessing) -> list:
    """Shape and dtype of what the signature takes, without the passport."""
    behind = keras.tree.flatten(_own_inputs(served))
    if not graph.is_model(preprocessing):
        return behind
    if len(preprocessing.inputs) != len(behind):
        raise ValueError(
            f"Expected preprocessing with {len(behind)} inputs, as the model "
            f"has. Received: {len(preprocessing.inputs)}"
        )
    return preprocessing.inputs
