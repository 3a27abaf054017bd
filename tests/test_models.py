"""Binding a passport, and asking for one."""

import keras
import numpy as np
import pytest

import keras_passport as kp
from keras_passport.layers import estimating
from keras_passport.layers.protected import function_of
from keras_passport.models.binding import keyed_function
from support.plain_models import (
    multi_input_model,
    nested_model,
    plain_cnn,
    small_resnet,
)
from support.processes import run_in_fresh_process
from support.protected_models import (
    CALLS,
    compiled,
    images,
    outer_model,
    predict,
    protected,
)

needs_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="TensorFlow's own"
)


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
import keras
from support.protected_models import CALLS, compiled, images, predict, protected

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
    CALLS["fit"](model)
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


def test_files_alone_give_the_same_outputs_elsewhere(tmp_path):
    """The published model and the passport, in a process of their own."""
    model, passport = protected()
    compiled(model)
    model.fit(images(), np.arange(6) % 4, verbose=0)
    model.save(tmp_path / "protected.keras")
    passport.save(tmp_path / "owner.h5")
    np.savez(
        tmp_path / "data.npz",
        images=images(),
        outputs=model.predict(images(), verbose=0),
    )
    run_in_fresh_process(
        f"""
import os
import keras
import numpy as np
import keras_passport as kp
os.chdir({str(tmp_path)!r})
data = np.load("data.npz")
model = keras.saving.load_model("protected.keras")
kp.bind(model, kp.Passport.load("owner.h5"))
received = model.predict(data["images"], verbose=0)
assert np.abs(received - data["outputs"]).max() < 1e-6
"""
    )


@pytest.mark.parametrize(
    "imports",
    [
        "import keras_passport\nimport keras",
        "from keras_passport import PassportNormalization\nimport keras",
    ],
)
def test_keras_loads_protected_models_after_any_imports(tmp_path, imports):
    model, _ = protected()
    model.save(tmp_path / "protected.keras")
    run_in_fresh_process(
        f"{imports}\n"
        f"keras.saving.load_model({str(tmp_path / 'protected.keras')!r})",
        # Which is imported sooner; what it registers does not depend on it.
        backend="numpy",
    )


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
    assert all(layer.is_bound for layer in kp.protected_layers(model).values())
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
    for packed in (wrong, passport.packed()[0], passport, None):
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
        assert np.abs(wrong - right).max() > np.ptp(right, axis=0).max()
    kp.bind(model, passport)
    np.testing.assert_allclose(own(images()), right, rtol=1e-6)


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


@pytest.mark.parametrize("protects", (False, True))
@pytest.mark.parametrize("number", [3, 9])
def test_estimated_statistics(protects, number):
    """Those of the batches, the last layer's seen through the first's."""
    base = plain_cnn()
    model = base
    if protects:
        model = kp.protect(base)
        kp.bind(model, kp.Passport.random_pattern(model, seed=3))
    normalizations = [
        layer
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    before = [layer.momentum for layer in normalizations]
    # Of unlike sizes; calls are compiled from the fifth on.
    batches = np.array_split(images(4 * number - 1), number)
    kernels = [np.array(v) for v in model.trainable_variables]
    assert kp.estimate_statistics(model, batches) is model
    assert [layer.momentum for layer in normalizations] == before
    for old, new in zip(kernels, model.trainable_variables, strict=True):
        np.testing.assert_array_equal(old, new)
    first = next(
        layer
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.Conv2D)
    )
    maps = [np.array(first(batch)) for batch in batches]
    np.testing.assert_allclose(
        normalizations[0].moving_mean,
        np.mean([m.mean(axis=(0, 1, 2)) for m in maps], axis=0),
        atol=1e-5,
    )
    np.testing.assert_allclose(
        normalizations[0].moving_variance,
        np.mean([m.var(axis=(0, 1, 2)) for m in maps], axis=0),
        rtol=1e-4,
    )
    with pytest.raises(ValueError, match="at least one batch"):
        kp.estimate_statistics(model, [])


class OfThisMoment(keras.layers.Layer):
    """One that no backend can compile: it looks at numbers."""

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, x.dtype)

    def call(self, x):
        return x * np.asarray(x).max()


@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param({"dtype": "float64"}, marks=needs_tensorflow),
        {"axis": 1},
    ],
)
@pytest.mark.parametrize("layer", [keras.layers.ReLU, OfThisMoment])
def test_statistics_of_layers_that_can_and_cannot_be_compiled(layer, options):
    """Estimated in two rounds, as `hide_statistics` does it."""
    x = np.random.default_rng(0).normal(size=(14, 3, 3))
    normalization = keras.layers.BatchNormalization(**options)
    model = keras.Sequential(
        [keras.layers.Input((3, 3)), layer(), normalization]
    )
    estimator = estimating.Estimator(model)
    for scale in (1.0, 2.0):
        batches = np.array_split(scale * x, 7)
        estimator.estimate(batches)
        seen = [
            np.maximum(b, 0) if layer is keras.layers.ReLU else b * b.max()
            for b in batches
        ]
        axes = (0, 2) if "axis" in options else (0, 1)
        np.testing.assert_allclose(
            normalization.moving_mean,
            np.mean([s.mean(axes) for s in seen], axis=0),
            rtol=1e-5,
        )
        np.testing.assert_allclose(
            normalization.moving_variance,
            np.mean([s.var(axes) for s in seen], axis=0),
            rtol=1e-5,
        )
    assert normalization.momentum == 0.99


@needs_tensorflow
def test_statistics_in_float64_stay_so_where_calls_are_compiled():
    x = np.random.default_rng(0).normal(1.0, size=(14, 3))
    normalization = keras.layers.BatchNormalization(dtype="float64")
    model = keras.Sequential(
        [keras.layers.Input((3,), dtype="float64"), normalization]
    )
    batches = np.array_split(x, 7)
    kp.estimate_statistics(model, batches)
    np.testing.assert_allclose(
        normalization.moving_mean,
        np.mean([batch.mean(0) for batch in batches], axis=0),
        rtol=1e-12,
    )
