"""Binding a passport, asking for one, and keeping it out of every file."""

import copy
import json
import pickle
import zipfile

import h5py
import keras
import numpy as np
import pytest

import keras_passport as kp
from keras_passport.models import function_of, keyed_function
from test_case import (
    multi_input_model,
    nested_model,
    plain_cnn,
    randomize,
    run_in_fresh_process,
    small_resnet,
)

needs_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="TensorFlow's own"
)


def images(count=6, seed=0):
    return np.random.default_rng(seed).random((count, 8, 8, 3), "float32")


def labels(count=6):
    return np.arange(count) % 4


def compiled(model, momentum=0.9):
    model.compile(
        keras.optimizers.SGD(0.05, momentum=momentum),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


def protected(function="V3", base=plain_cnn, bound=True):
    """A protected model with weights as a training leaves them."""
    model = kp.protect(randomize(base()), function)
    passport = kp.Passport.random_pattern(model)
    if bound:
        kp.bind(model, passport)
    return model, passport


def predict(model, x):
    return keras.ops.convert_to_numpy(model(x, training=False))


# Every way to run a model.
CALLS = {
    "call": lambda model: model(images()),
    "predict": lambda model: model.predict(images(), verbose=0),
    "evaluate": lambda model: model.evaluate(images(), labels(), verbose=0),
    "fit": lambda model: model.fit(images(), labels(), verbose=0),
    "train_on_batch": lambda model: model.train_on_batch(images(), labels()),
    "test_on_batch": lambda model: model.test_on_batch(images(), labels()),
    "predict_on_batch": lambda model: model.predict_on_batch(images()),
}


@pytest.mark.parametrize("state", ("loaded", "new", "unbound after use"))
def test_without_a_passport_it_says_so_and_loses_nothing(state, tmp_path):
    model, passport = protected()
    compiled(model)
    expected = predict(kp.bind(model, passport), images())
    if state == "loaded":
        model.save(tmp_path / "model.keras")
        model = keras.saving.load_model(tmp_path / "model.keras")
    elif state == "new":
        kp.unbind(model)
    else:
        weights = model.get_weights()
        for call in CALLS.values():
            call(model)
        model.set_weights(weights)
        kp.unbind(model)
    for call in (*CALLS.values(), *CALLS.values()):
        with pytest.raises(kp.PassportRequiredError, match="no passport"):
            call(model)
    kp.bind(model, passport)
    np.testing.assert_allclose(
        predict(model, images()), expected, rtol=1e-6, atol=1e-6
    )
    for call in CALLS.values():
        call(model)


ON_JAX = """
import sys
sys.modules["tensorflow"] = None
import numpy as np
import keras_passport as kp
from test_models import CALLS, compiled, images, keras, predict, protected

assert keras.backend.backend() == "jax"
for state in ("unbound", "loaded"):
    model, passport = protected()
    compiled(model)
    model.fit(images(), np.arange(6) % 4, verbose=0)
    expected = predict(model, images())
    if state == "loaded":
        model.save("model.keras")
        model = keras.saving.load_model("model.keras")
    else:
        kp.unbind(model)
    for name, call in CALLS.items():
        try:
            call(model)
        except kp.PassportRequiredError as error:
            assert "no passport" in str(error)
        else:
            raise AssertionError(name)
    kp.bind(model, passport)
    assert np.abs(predict(model, images()) - expected).max() < 1e-6
    for call in CALLS.values():
        call(model)
run = kp.models.keyed_function(model)
other = kp.Passport.random_pattern(model)
received = run(other.packed(), images())
kp.bind(model, other)
assert np.abs(received - model.predict(images(), verbose=0)).max() < 1e-5
print("done")
"""


def test_on_jax_without_tensorflow(tmp_path):
    code = f"import os; os.chdir({str(tmp_path)!r})\n" + ON_JAX
    assert run_in_fresh_process(code, backend="jax").endswith("done\n")


def test_a_client_needs_neither_keras_nor_tensorflow(tmp_path):
    model, passport = protected()
    passport.save(tmp_path / "owner.h5")
    keys = {
        f"{path}:{role}": key
        for path, some in passport.keys(model).items()
        for role, key in some.items()
    }
    np.savez(tmp_path / "keys.npz", packed=passport.packed(), **keys)
    run_in_fresh_process(
        f"""
import os, sys
import numpy as np
import keras_passport as kp
os.chdir({str(tmp_path)!r})
passport = kp.Passport.load("owner.h5")
expected = np.load("keys.npz")
for path, some in passport.keys().items():
    for role, key in some.items():
        np.testing.assert_array_equal(key, expected[f"{{path}}:{{role}}"])
np.testing.assert_array_equal(passport.packed(), expected["packed"])
repr(passport), kp.PassportError, kp.PassportRequiredError
heavy = {{"keras", "tensorflow", "jax", "torch", "scipy", "matplotlib"}}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    )


# Binding -------------------------------------------------------------------


@pytest.mark.parametrize("base", (plain_cnn, nested_model))
def test_bind_unbind_and_bind_another(base):
    model, first = protected(base=base)
    second = kp.Passport.random_pattern(model)
    assert all(
        layer.is_bound for layer in kp.protected_layers(model).values()
    )
    results = {}
    for passport in (first, second, first, second):
        assert kp.bind(model, passport) is model
        received = model.predict(images(), verbose=0)
        np.testing.assert_allclose(
            received, predict(model, images()), rtol=1e-5, atol=1e-5
        )
        expected = results.setdefault(passport, received)
        np.testing.assert_array_equal(received, expected)
        assert kp.unbind(model) is model
    assert np.abs(results[first] - results[second]).max() > 0.1


def test_a_wrong_passport_leaves_the_model_as_it_was():
    model, _ = protected("V3")
    expected = predict(model, images())
    for wrong in (protected("V1")[1], protected(base=small_resnet)[1]):
        with pytest.raises(kp.PassportError, match=r"Expected.*Received"):
            kp.bind(model, wrong)
    np.testing.assert_array_equal(predict(model, images()), expected)


@pytest.mark.parametrize("verb", (kp.bind, kp.unbind, function_of))
def test_models_that_are_not_protected(verb):
    arguments = (protected()[1],) if verb is kp.bind else ()
    with pytest.raises(kp.PassportError, match="without any passport layer"):
        verb(plain_cnn(), *arguments)


def test_protected_layers_are_named_by_path_in_the_graphs_order():
    model, passport = protected(base=nested_model)
    expected = [
        "outer_conv",
        "functional/inner_conv",
        "sequential/inner_conv",
    ]
    assert list(kp.protected_layers(model)) == expected
    assert list(passport.layers) == expected


@pytest.mark.parametrize("base", (plain_cnn, nested_model))
def test_presented_and_keyed_function(base):
    model, bound = protected(base=base)
    other = kp.Passport.random_pattern(model)
    x = images()
    expected = {}
    for passport in (other, bound):
        kp.bind(model, passport)
        expected[passport] = predict(model, x)
    with kp.presented(model, other.packed()):
        np.testing.assert_allclose(
            predict(model, x), expected[other], rtol=1e-5, atol=1e-5
        )
    np.testing.assert_array_equal(predict(model, x), expected[bound])
    kp.unbind(model)
    run = keyed_function(model)
    for passport in (other, bound, other):
        received = run(passport.packed(), x)
        np.testing.assert_allclose(
            received, expected[passport], rtol=1e-5, atol=1e-5
        )
    # A row per example, and what is presented is gone afterwards.
    rows = np.concatenate([other.packed(), bound.packed()] * 3)
    received = run(rows, x)
    for i, passport in enumerate((other, bound) * 3):
        np.testing.assert_allclose(
            received[i], expected[passport][i], rtol=1e-4, atol=1e-4
        )
    with pytest.raises(kp.PassportRequiredError):
        model(x)


def test_presented_ends_with_an_error():
    model, passport = protected()
    expected = predict(model, images())
    with (
        pytest.raises(RuntimeError),
        kp.presented(model, kp.Passport.random_pattern(model).packed()),
    ):
        raise RuntimeError
    np.testing.assert_array_equal(predict(model, images()), expected)
    wrong = passport.packed()[:, 1:]
    for packed in (wrong, passport.packed()[0]):
        with (
            pytest.raises(kp.PassportError, match="packed passport"),
            kp.presented(model, packed),
        ):
            pass


@needs_tensorflow
@pytest.mark.parametrize("function", ("V1", "V2", "V3"))
def test_a_function_of_ones_own_is_never_right_after_unbind(function):
    import tensorflow as tf

    model, passport = protected(function)
    own = tf.function(lambda x: model(x, training=False))
    right = own(images()).numpy()
    model.predict(images(), verbose=0)
    held = model.predict_function
    kp.unbind(model)
    for run in (own, lambda x: held([(tf.constant(x),)])):
        try:
            wrong = np.asarray(run(images()))
        except kp.PassportRequiredError:
            continue
        assert np.abs(wrong - right).max() > 0.1 * np.abs(right).max()
    kp.bind(model, passport)
    np.testing.assert_allclose(own(images()), right, rtol=1e-6)


def outer_model(model, model_class=keras.Model):
    inputs = keras.Input((8, 8, 3))
    outputs = keras.layers.Dense(4)(model(inputs * 2))
    return model_class(inputs, outputs)


@pytest.mark.parametrize(
    "model_class", (keras.Model, kp.ProtectedModel), ids=("plain", "protected")
)
def test_inside_a_model_of_ones_own(model_class, tmp_path):
    model, passport = protected()
    outer = compiled(outer_model(model, model_class))
    expected = outer.predict(images(), verbose=0)
    assert list(kp.protected_layers(outer)) == [
        f"plain_cnn/{path}" for path in kp.protected_layers(model)
    ]
    kp.unbind(outer)
    calls = CALLS if model_class is kp.ProtectedModel else ("call", "predict")
    if keras.backend.backend() == "jax" and model_class is keras.Model:
        # Keras loses a plain model's weights by an error inside `predict`.
        calls = ("call",)
    for name in calls:
        with pytest.raises(kp.PassportRequiredError):
            CALLS[name](outer)
    kp.bind(model, passport)
    assert outer.predict(images(), verbose=0).shape == expected.shape
    outer.save(tmp_path / "outer.keras")
    loaded = keras.saving.load_model(tmp_path / "outer.keras")
    kp.bind(loaded.get_layer("plain_cnn"), passport)
    np.testing.assert_allclose(
        predict(loaded, images()), predict(outer, images()), rtol=1e-5
    )


# Secrets -------------------------------------------------------------------


def wide_cnn():
    """Two convolutions with so many filters that chance can't hit a γ."""
    images = keras.Input((8, 8, 3))
    x = images
    for filters in (16, 20):
        x = keras.layers.Conv2D(filters, 3, strides=2)(x)
        x = keras.layers.BatchNormalization()(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(images, keras.layers.Dense(4)(x))


@pytest.fixture(scope="module", params=("fresh", "trained"))
def secretive(request):
    """A bound model, before and after training, and its passport."""
    keras.utils.set_random_seed(1)
    model = kp.protect(wide_cnn())
    passport = kp.Passport.random_pattern(model, seed=bytes(range(16)))
    compiled(kp.bind(model, passport))
    if request.param == "trained":
        model.fit(images(), labels(), epochs=2, verbose=0)
    return model, passport


def secrets_of(model):
    """Every key, γ and β of a bound model."""
    found = {}
    for path, layer in kp.protected_layers(model).items():
        hidden = layer.hidden_parameters()
        for role, value in zip(("gamma", "beta"), hidden, strict=True):
            if value is not None:
                found[f"{path}/{role}"] = value
    return found


def correlates(secret, array, limit=0.99):
    """Whether some slice of an array is nearly a multiple of a secret."""
    secret = np.ravel(secret).astype("float64")
    array = np.asarray(array, "float64")
    if array.size < secret.size:
        return False
    array = np.atleast_1d(array)
    orders = [np.moveaxis(array, i, -1) for i in range(array.ndim)]
    for ordered in orders:
        windows = np.lib.stride_tricks.sliding_window_view(
            np.ravel(ordered), secret.size
        )
        for given, slices in (
            (secret, windows),
            (secret - secret.mean(), windows - windows.mean(1)[:, None]),
        ):
            lengths = np.linalg.norm(slices, axis=1) * np.linalg.norm(given)
            if np.any(np.abs(slices @ given) > limit * lengths + 1e-12):
                return True
    return False


def arrays_of_h5(path):
    found = {}
    with h5py.File(path) as file:

        def visit(name, item):
            if isinstance(item, h5py.Dataset) and item.dtype.kind == "f":
                found[name] = item[()]
            for key, value in item.attrs.items():
                found[f"{name}@{key}"] = np.asarray(value)

        file.visititems(visit)
    return {k: v for k, v in found.items() if v.dtype.kind == "f"}


def keras_file(model, folder):
    model.save(folder / "model.keras")
    with zipfile.ZipFile(folder / "model.keras") as archive:
        archive.extractall(folder / "content")
    (folder / "model.keras").unlink()
    return arrays_of_h5(folder / "content" / "model.weights.h5")


def weights_file(model, folder):
    model.save_weights(folder / "model.weights.h5")
    return arrays_of_h5(folder / "model.weights.h5")


def tf_checkpoint(model, folder):
    import tensorflow as tf

    tf.train.Checkpoint(model).write(str(folder / "checkpoint"))
    reader = tf.train.load_checkpoint(str(folder / "checkpoint"))
    return {
        name: reader.get_tensor(name)
        for name, dtype in reader.get_variable_to_dtype_map().items()
        if dtype.is_floating
    }


def pickled(model, folder):
    (folder / "model.pickle").write_bytes(pickle.dumps(model))
    return {}


def deep_copy(model, folder):
    clone = copy.deepcopy(model)
    assert not any(
        layer.is_bound for layer in kp.protected_layers(clone).values()
    )
    return dict(enumerate(clone.get_weights()))


def state_tree(model, folder):
    tree = model.get_state_tree(value_format="numpy_array")
    tree.pop("optimizer_variables", None)
    return dict(enumerate(keras.tree.flatten(tree)))


def texts(model, folder):
    """What is printed of a model, as a file."""
    objects = [model, *model.layers, *model.weights, *model.variables]
    written = [f"{item!r} {item}" for item in objects]
    written += [repr(vars(layer)) for layer in model.layers]
    written += [json.dumps(model.get_config(), default=str), model.to_json()]
    # Enough digits that no other number begins like one of them.
    numbers = {str(v)[:9] for s in secrets_of(model).values() for v in s}
    assert not [number for number in numbers if number in "".join(written)]
    return {}


ROUTES = {
    "keras": keras_file,
    "weights.h5": weights_file,
    "checkpoint": tf_checkpoint,
    "get_weights": lambda m, f: dict(enumerate(m.get_weights())),
    "state_tree": state_tree,
    "pickle": pickled,
    "deepcopy": deep_copy,
    "text": texts,
}


def test_the_search_for_secrets_finds_some():
    rng = np.random.default_rng(0)
    secret, noise = rng.normal(size=(12,)), rng.normal(size=(3, 40))
    assert not correlates(secret, noise)
    noise[1, 5:17] = -3 * secret + 0.01 * rng.normal(size=12)
    assert correlates(secret, noise)
    columns = rng.normal(size=(12, 5))
    columns[:, 2] = 1e-3 * secret + 7
    assert correlates(secret, columns)


@pytest.mark.parametrize("route", ROUTES)
def test_no_route_out_of_keras_holds_a_secret(route, secretive, tmp_path):
    if route == "checkpoint" and keras.backend.backend() != "tensorflow":
        pytest.skip("TensorFlow's own")
    model, passport = secretive
    secrets = secrets_of(model)
    for path, some in passport.keys().items():
        for role, key in some.items():
            secrets[f"{path}/{role}_key"] = key
    secrets["packed"] = passport.packed()
    stored = ROUTES[route](model, tmp_path)
    stored = {k: v for k, v in stored.items() if "optimizer" not in str(k)}
    leaks = [
        (secret, name)
        for secret, value in secrets.items()
        for name, array in stored.items()
        if correlates(value, array)
    ]
    for file in tmp_path.rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            leaks += [
                (secret, file.name)
                for secret, value in secrets.items()
                if np.asarray(value, "<f4").tobytes() in content
                or passport.seed in content
                or passport.seed.hex().encode() in content
            ]
    assert not leaks


@needs_tensorflow
def test_exports_are_refused(tmp_path):
    import tensorflow as tf

    model, _ = protected()
    outer = outer_model(model)
    signature = [tf.TensorSpec((None, 8, 8, 3))]
    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint("serve", model.call, input_signature=signature)
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    with pytest.raises(kp.PassportError, match="export"):
        model.export(tmp_path / "export", verbose=False)
    for run in (
        lambda: outer.export(tmp_path / "outer", verbose=False),
        lambda: archive.write_out(tmp_path / "archive", verbose=False),
    ):
        with pytest.raises(kp.PassportError, match="without secrets"):
            run()
    for run in (
        lambda: tf.saved_model.save(model, str(tmp_path / "saved_model")),
        converter.convert,
    ):
        with pytest.raises(Exception):  # noqa: B017 - each has its own
            run()
    keys = [
        np.asarray(layer._secret.keys.value).tobytes()
        for layer in kp.protected_layers(model).values()
    ]
    for file in tmp_path.rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            assert not [key for key in keys if key in content], file


@pytest.mark.parametrize("optimizer", ("sgd", "adam"))
@pytest.mark.parametrize("file", ("model.keras", "model.weights.h5"))
def test_files_hold_no_optimizer_state(optimizer, file, tmp_path):
    model, passport = protected()
    compiled(model)
    if optimizer == "adam":
        model.compile("adam", model.loss)
    model.fit(images(), labels(), verbose=0)
    if file == "model.keras":
        keras_file(model, tmp_path)
        path = tmp_path / "content" / "model.weights.h5"
        model.save(tmp_path / file)
        loaded = keras.saving.load_model(tmp_path / file)
    else:
        path = tmp_path / file
        model.save_weights(path)
        loaded = compiled(protected(bound=False)[0])
        loaded.load_weights(path)
    assert not [name for name in arrays_of_h5(path) if "optimizer" in name]
    kp.bind(loaded, passport)
    np.testing.assert_allclose(
        predict(loaded, images()), predict(model, images()), rtol=1e-5
    )
    before = loaded.evaluate(images(), labels(), verbose=0)
    loaded.fit(images(), labels(), epochs=3, verbose=0)
    assert loaded.evaluate(images(), labels(), verbose=0) < before


def test_errors_show_no_values():
    model, passport = protected()
    layer = next(iter(kp.protected_layers(model).values()))
    key = np.full((1, layer.passport_size + 1), 0.7391234, "float32")
    with pytest.raises(kp.PassportError) as raised:
        layer(images(), passport=key)
    assert "0.739" not in str(raised.value)
    with pytest.raises(kp.PassportError) as raised:
        layer.bind_keys(np.full((2, 2), 0.7391234), None)
    assert "0.739" not in str(raised.value)


@pytest.mark.parametrize("base", (nested_model, multi_input_model))
def test_a_saved_model_is_whole_without_its_source(base, tmp_path):
    model, passport = protected(base=base)
    x = images()
    if base is multi_input_model:
        x = {"images": x, "vector": np.ones((6, 5), "float32")}
    model.save(tmp_path / "model.keras")
    passport.save(tmp_path / "owner.h5")
    expected = model.predict(x, verbose=0)
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded) is kp.ProtectedModel
    kp.bind(loaded, kp.Passport.load(tmp_path / "owner.h5"))
    received = loaded.predict(x, verbose=0)
    for one, other in zip(
        keras.tree.flatten(received), keras.tree.flatten(expected), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)
