"""No route by which functions are frozen or exported holds keys, γ or β.

A bound, a presented and an assumed passport are refused by each, be it the
protected model, a plain one around it, or one of its first layers.
"""

import contextlib

import keras
import numpy as np
import pytest

import keras_passport as kp
from support.marks import has_keras
from support.protected_models import (
    compiled,
    images,
    labels,
    outer_model,
    predict,
    protected,
)
from support.stored_secrets import secrets_of

X = images()
BACKEND = keras.backend.backend()

MODELS = {
    "itself": lambda model: model,
    "plain": outer_model,
    "first layers": lambda m: keras.Model(m.input, m.layers[-2].output),
}


def own_function(model):
    def call(x):
        return model(x, training=False)

    if BACKEND == "jax":
        import jax

        return jax.jit(call)
    import tensorflow as tf

    spec = tf.TensorSpec((None, 8, 8, 3), "float32")
    return tf.function(call, input_signature=[spec])


def export(model, folder, format="tf_saved_model", name="exported"):
    model.export(folder / name, format=format, verbose=False)


def archive(model, folder, call=None):
    import tensorflow as tf

    given = keras.export.ExportArchive()
    given.track(model)
    spec = [tf.TensorSpec((None, 8, 8, 3), "float32")]
    if call is None:
        given.add_endpoint("serve", model.call, input_signature=spec)
    else:
        given.add_endpoint("serve", call)
    given.write_out(folder / "archive", verbose=False)


def archive_of_a_function(model, folder):
    function = own_function(model)
    function(X)
    archive(model, folder, function)


def module(model, folder):
    import tensorflow as tf

    holder = tf.Module()
    holder.model, holder.call = model, own_function(model)
    holder.call(X)
    tf.saved_model.save(holder, str(folder / "module"))


def signature(model, folder):
    import tensorflow as tf

    holder = tf.Module()
    holder.model = model
    concrete = own_function(model).get_concrete_function()
    tf.saved_model.save(holder, str(folder / "module"), signatures=concrete)


def constants(model, folder):
    from tensorflow.python.framework import convert_to_constants

    frozen = convert_to_constants.convert_variables_to_constants_v2(
        own_function(model).get_concrete_function()
    )
    text = frozen.graph.as_graph_def().SerializeToString()
    (folder / "frozen.pb").write_bytes(text)


def lite(model, folder):
    import tensorflow as tf

    concrete = own_function(model).get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete])
    (folder / "model.tflite").write_bytes(converter.convert())


def onnx(model, folder):
    tf2onnx = pytest.importorskip("tf2onnx")
    from keras.src.export.tf2onnx_lib import patch_tf2onnx

    patch_tf2onnx()
    function = own_function(model)
    function(X)
    tf2onnx.convert.from_function(
        function,
        function.input_signature,
        output_path=str(folder / "model.onnx"),
    )


def saved_model(model, folder):
    import tensorflow as tf

    tf.saved_model.save(model, str(folder / "saved"))


def jax_export(model, folder):
    import jax
    from jax import export

    shape = jax.ShapeDtypeStruct(X.shape, "float32")
    written = export.export(own_function(model))(shape).serialize()
    (folder / "exported").write_bytes(written)


TENSORFLOW = {
    "export": export,
    "export, ONNX": lambda m, f: export(m, f, "onnx", "model.onnx"),
    "export, LiteRT": lambda m, f: export(m, f, "litert", "model.tflite"),
    "archive": archive,
    "archive of a function": archive_of_a_function,
    "saved_model": saved_model,
    "module": module,
    "signature": signature,
    "constants": constants,
    "lite": lite,
    "onnx": onnx,
}
JAX = {"export": export, "archive": archive, "jax.export": jax_export}
ROUTES = JAX if BACKEND == "jax" else TENSORFLOW


def secrets(model, passport):
    found = {**secrets_of(model), "packed": passport.packed()}
    for path, some in passport.keys(model).items():
        for role, key in some.items():
            found[f"{path}/{role}_key"] = key
    return [np.asarray(value, "<f4").tobytes() for value in found.values()]


def holds_any(folder, texts):
    for file in folder.rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            if any(text in content for text in texts):
                return True
    return False


@pytest.fixture(scope="module")
def network():
    model, passport = protected()
    parameters = {
        path: layer.hidden_parameters()
        for path, layer in kp.protected_layers(model).items()
    }
    return model, passport, parameters


# Every route with a bound passport; every way to give one by some routes.
CASES = [(route, which, "bound") for route in ROUTES for which in MODELS]
CASES += [
    (route, "plain", how)
    for route in ROUTES
    for how in ("presented", "assumed")
    if route in ("export", "archive", "signature", "constants", "jax.export")
]


@pytest.mark.parametrize("route, which, how", CASES)
def test_it_is_refused(network, route, which, how, tmp_path):
    refused = kp.PassportError
    if route == "export, LiteRT" and not has_keras("3.15"):
        # Keras itself calls a converter that swallows errors.
        refused = refused, RuntimeError
    model, passport, parameters = network
    kp.bind(model, passport)
    whole = MODELS[which](model)
    predict(whole, X)
    texts = secrets(model, passport)
    with contextlib.ExitStack() as block:
        if how != "bound":
            kp.unbind(model)
        if how == "presented":
            block.enter_context(kp.presented(model, passport.packed()))
        if how == "assumed":
            block.enter_context(kp.assumed(model, parameters))
        with pytest.raises(refused):
            ROUTES[route](whole, tmp_path)
    assert not holds_any(tmp_path, texts)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="TensorFlow's own")
def test_a_converter_that_swallows_errors_writes_nothing(network):
    import tensorflow as tf

    model, passport, _ = network
    outer = outer_model(kp.bind(model, passport))
    predict(outer, X)
    converter = tf.lite.TFLiteConverter.from_keras_model(outer)
    with pytest.raises(Exception):  # noqa: B017 - one of TensorFlow's own
        converter.convert()


@pytest.mark.skipif(BACKEND != "jax", reason="JAX's own")
def test_the_cache_of_compiled_programs_holds_no_secret(network, tmp_path):
    import jax

    model, passport, _ = network
    kp.bind(model, passport)
    options = {
        "jax_compilation_cache_dir": str(tmp_path),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
        # Else a program is looked at through its compression.
        "jax_compilation_cache_max_size": -1,
    }
    before = {name: getattr(jax.config, name) for name in options}
    try:
        for name, value in options.items():
            jax.config.update(name, value)
        compiled(model)
        model.fit(X, labels(), verbose=0)
        model.predict(X, verbose=0)
        own_function(model)(X)
        kp.models.keyed_function(model)(passport.packed(), X)
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
    names = [file.name for file in tmp_path.rglob("*") if file.is_file()]
    # What calls back is not written; what takes keys as an argument may be.
    assert not [name for name in names if "step" in name or "call" in name]
