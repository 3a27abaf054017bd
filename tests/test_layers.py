"""`PassportNormalization` against ordinary Keras layers in its place."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_passport as kp
from keras_passport.layers import folding, kernels
from keras_passport.layers import normalization as normalization_module
from support.kernel_layers import FUNCTIONS, IMAGE, KERNELS, KINDS
from support.marks import needs_keras
from support.passport_layers import (
    affine,
    assert_near,
    assert_same_statistics,
    build,
    copy_of,
    keys_of,
    packed,
    random,
    stock,
)
from support.truth import (
    largest_difference,
    plain_response,
    relative_difference,
)

# Ways through the normalisation: arguments of the batch normalisation, and
# whether the fused kernel is out of reach, the batch masked, and the passport
# given as one row per example.
PATHS = {
    "fused": ({}, False, False, False),
    "composed": ({}, True, False, False),
    "small_epsilon": ({"epsilon": 1e-6}, False, False, False),
    "momentum": ({"momentum": 0.3, "epsilon": 0.1}, False, False, False),
    "synchronized": ({"synchronized": True}, False, False, False),
    "masked": ({}, False, True, False),
    "rows": ({}, False, False, True),
    "masked_rows": ({}, False, True, True),
}


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("kernel", KINDS)
def test_equals_kernel_and_batch_normalization(kernel, function):
    layer, maps = build(kernel, function)
    for role, value in zip(
        ("gamma", "beta"), layer.hidden_parameters(), strict=True
    ):
        assert (value is None) == (role not in maps)
        if value is not None:
            expected = plain_response(layer.layer, maps[role])
            assert value.dtype == np.float32
            assert relative_difference(value, expected) < 1e-5
    expected, normal = stock(layer, maps)
    x = random((5, *layer.inputs_shape[1:]), 3)
    for training in (False, True, None):
        assert_near(layer(x, training=training), expected(x, training), 1e-4)
    assert_same_statistics(layer, normal)
    assert tuple(layer(x).shape) == tuple(layer.compute_output_shape(x.shape))


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("path", PATHS)
def test_statistics_and_outputs_over_training_steps(
    path, function, monkeypatch
):
    options, forbid_fusing, masked, rows = PATHS[path]
    if path == "synchronized" and keras.backend.backend() != "tensorflow":
        pytest.skip("TensorFlow's own")
    if forbid_fusing:
        monkeypatch.setattr(
            normalization_module, "_can_fuse", lambda *args: False
        )
    layer, maps = build(
        "dense_rank3", function, keras.layers.BatchNormalization(**options)
    )
    expected, normal = stock(layer, maps)
    passport = np.tile(packed(layer, maps), (4, 1)) if rows else None
    for step in range(5):
        x = random((4, 7, 4), step) * (step + 1)
        mask = np.arange(28).reshape(4, 7) % 3 > 0 if masked else None
        arguments = {"training": step < 4, "mask": mask}
        assert_near(
            layer(x, passport=passport, **arguments),
            expected(x, **arguments),
            1e-4,
        )
        assert_same_statistics(layer, normal)


@pytest.mark.parametrize("data_format", ("channels_first", "channels_last"))
@pytest.mark.parametrize(
    "normalization", ("BatchNormalization", "GroupNormalization")
)
def test_data_formats_agree(data_format, normalization):
    last, maps = build("conv2d")
    weights = last.layer.get_weights()
    axis = 1 if data_format == "channels_first" else -1
    options = {"groups": 2} if normalization == "GroupNormalization" else {}
    make = getattr(keras.layers, normalization)
    layers = {}
    for name, its_axis in (("channels_last", -1), (data_format, axis)):
        config = {**last.layer.get_config(), "data_format": name}
        layer = kp.PassportNormalization(
            keras.layers.Conv2D.from_config(config),
            make(axis=its_axis, **options),
        )
        shape = (None, 4, 6, 6) if its_axis == 1 else (None, *IMAGE)
        layer.build(shape)
        layer.layer.set_weights(weights)
        layers[name] = layer
    x = random((3, *IMAGE), 5)
    expected = layers["channels_last"]
    expected.bind_keys(**keys_of(expected, maps))
    expected = ops.convert_to_numpy(expected(x, training=True))
    layer = layers[data_format]
    if data_format == "channels_first":
        maps = {role: np.moveaxis(p, -1, 0) for role, p in maps.items()}
        x, expected = np.moveaxis(x, -1, 1), np.moveaxis(expected, -1, 1)
    layer.bind_keys(**keys_of(layer, maps))
    assert_near(layer(x, training=True), expected, 1e-4)


@pytest.mark.parametrize(
    "normalization",
    (
        keras.layers.LayerNormalization(epsilon=1e-2),
        keras.layers.GroupNormalization(groups=3),
        keras.layers.GroupNormalization(groups=-1),
    ),
    ids=("layer", "group", "instance"),
)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_other_normalizations(normalization, function):
    layer, maps = build("conv2d", function, normalization)
    expected, _ = stock(layer, maps)
    x = random((4, *IMAGE), 3)
    for training in (False, True):
        assert_near(layer(x, training=training), expected(x), 1e-4)


@pytest.mark.parametrize(
    "between",
    (
        [keras.layers.ZeroPadding2D(1)],
        [keras.layers.MaxPooling2D(2)],
        [keras.layers.AveragePooling2D(2), keras.layers.Cropping2D(0)],
    ),
    ids=("padding", "max", "average_cropping"),
)
def test_layers_between_and_activation(between):
    layer, maps = build("conv2d", between=between, activation="relu")
    expected, normal = stock(layer, maps)
    x = random((5, *IMAGE), 3)
    for training in (True, False):
        assert_near(layer(x, training=training), expected(x, training), 1e-4)
    assert_same_statistics(layer, normal)
    assert tuple(layer(x).shape) == tuple(layer.compute_output_shape(x.shape))
    assert np.min(layer(x)) >= 0


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("off", ("scale", "center"))
def test_scale_or_center_switched_off(function, off):
    normalization = keras.layers.BatchNormalization(**{off: False})
    layer, maps = build("conv2d", function, normalization)
    role = "gamma" if off == "scale" else "beta"
    # A passport's parameter is there all the same; a trainable one is not.
    assert getattr(layer, role) is None
    gamma, beta = affine(layer, maps)
    assert (gamma is None, beta is None) == (
        role == "gamma" and function == "V2",
        role == "beta" and function == "V1",
    )
    x = random((5, *IMAGE), 3)
    layer.normalization.moving_mean.assign(random((6,), 4))
    plain = layer.layer(x) - layer.normalization.moving_mean
    expected = plain / np.sqrt(1 + 1e-3) * (1 if gamma is None else gamma)
    assert_near(layer(x), expected + (0 if beta is None else beta), 1e-4)


def test_what_is_trainable_starts_and_is_treated_as_the_original():
    normalization = keras.layers.BatchNormalization(
        beta_initializer=keras.initializers.Constant(0.25),
        gamma_initializer=keras.initializers.Constant(3.0),
        beta_regularizer=keras.regularizers.L2(0.5),
        gamma_constraint="non_neg",
    )
    layer = kp.PassportNormalization(keras.layers.Dense(4), normalization, "V1")
    layer.build((None, 3))
    np.testing.assert_array_equal(layer.beta, np.full(4, 0.25, "float32"))
    np.testing.assert_allclose(sum(layer.losses), 0.5 * 4 * 0.25**2)
    layer = kp.PassportNormalization(keras.layers.Dense(4), normalization, "V2")
    layer.build((None, 3))
    np.testing.assert_array_equal(layer.gamma, np.full(4, 3, "float32"))
    assert layer.gamma.constraint is not None and not layer.losses


def test_frozen_normalization_uses_and_keeps_its_statistics():
    layer, maps = build("conv2d", "V1")
    layer.normalization.moving_mean.assign(random((6,), 4))
    expected, normal = stock(layer, maps)
    normal.moving_mean.assign(layer.normalization.moving_mean)
    layer.trainable = normal.trainable = False
    assert layer.trainable_variables == []
    x = random((5, *IMAGE), 3)
    assert_near(layer(x, training=True), expected(x, True), 1e-4)
    assert_same_statistics(layer, normal)


@pytest.mark.parametrize("policy", ("mixed_bfloat16", "mixed_float16"))
@pytest.mark.parametrize("globally", (True, False))
def test_hidden_parameters_are_exact_under_mixed_precision(
    policy, globally, monkeypatch
):
    layer, maps = build("conv2d")
    if globally:
        keras.config.set_dtype_policy(policy)
    arguments = KERNELS["conv2d"][1]
    options = {} if globally else {"dtype": policy}
    mixed = kp.PassportNormalization(
        keras.layers.Conv2D(**arguments, **options),
        keras.layers.BatchNormalization(**options),
    )
    images = keras.Input(IMAGE)
    model = keras.Model(images, mixed(images))
    mixed.set_weights(layer.get_weights())
    mixed.bind_keys(**keys_of(mixed, maps))
    seen = []
    normalize = normalization_module.normalize

    def spy(part, inputs, gamma, beta, *args):
        seen.append((gamma, beta))
        return normalize(part, inputs, gamma, beta, *args)

    monkeypatch.setattr(normalization_module, "normalize", spy)
    x = random((4, *IMAGE), 3)
    outputs = model(x, training=True)
    expected = layer.hidden_parameters()
    for received in (mixed.hidden_parameters(), [v[0] for v in seen[0]]):
        for one, other in zip(received, expected, strict=True):
            np.testing.assert_array_equal(one, other)
    compute = policy.removeprefix("mixed_")
    assert keras.backend.standardize_dtype(outputs.dtype) == compute
    assert model.output.dtype == compute
    assert {w.dtype for w in mixed.weights} == {"float32"}
    error = 0.1 if compute == "bfloat16" else 0.02
    assert (
        relative_difference(
            ops.cast(outputs, "float32"), layer(x, training=True)
        )
        < error
    )


@pytest.mark.parametrize("kernel", ("conv2d", "depthwise", "transpose"))
def test_folding_rounds_no_more_in_bfloat16(kernel, monkeypatch):
    if keras.backend.backend() != "tensorflow":
        pytest.skip("XLA, of JAX, does what folding does")
    layer, maps = build(kernel)
    layer_class, arguments, shape = KERNELS[kernel]
    policy = {"dtype": "mixed_bfloat16"}
    mixed = kp.PassportNormalization(
        layer_class(**arguments, **policy),
        keras.layers.BatchNormalization(**policy),
    )
    mixed.build((None, *shape))
    mixed.set_weights(layer.get_weights())
    mixed.bind_keys(**keys_of(mixed, maps))
    x = random((64, *shape), 3)
    expected = layer(x, training=False)

    def error():
        outputs = mixed(x, training=False)
        assert keras.backend.standardize_dtype(outputs.dtype) == "bfloat16"
        gaps = ops.cast(outputs, "float32") - expected
        return float(ops.sqrt(ops.mean(gaps * gaps)))

    calls, fold = [], folding.call
    monkeypatch.setattr(
        folding, "call", lambda *args: calls.append(args) or fold(*args)
    )
    folded = error()
    assert calls
    monkeypatch.setattr(folding, "pays", lambda *args: False)
    assert folded < 1.2 * error()


def test_float64_layers():
    if keras.backend.backend() == "jax":
        pytest.skip("JAX has no float64 unless it is told to")
    layer = kp.PassportNormalization(keras.layers.Dense(4, dtype="float64"))
    layer.build((None, 3))
    layer.bind_keys(np.ones(3), np.ones(3))
    for training in (True, False):
        outputs = layer(np.ones((5, 3), "float64"), training=training)
        assert keras.backend.standardize_dtype(outputs.dtype) == "float64"


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(
    "normalization",
    (None, keras.layers.GroupNormalization(groups=2)),
    ids=("batch", "group"),
)
def test_one_passport_per_example(function, normalization):
    layer, _ = build("conv2d", function, normalization)
    x = random((3, *IMAGE), 3)
    passports = random((3, layer.passport_size), 4)
    together = layer(x, passport=passports, training=False)
    for i in range(3):
        one = layer(x[i : i + 1], passport=passports[i : i + 1])
        assert_near(together[i : i + 1], one, 1e-4)
    # One row serves all examples, and what is bound stays bound.
    bound = ops.convert_to_numpy(layer(x))
    assert_near(layer(x, passport=passports[:1])[0], together[0], 1e-4)
    np.testing.assert_array_equal(layer(x), bound)


@pytest.mark.parametrize("kernel", ("dense", "conv1d"))
@pytest.mark.parametrize("as_input", (True, False))
def test_masks_reach_the_normalization_as_in_keras(kernel, as_input):
    layer_class, arguments, _ = KERNELS[kernel]
    tokens = np.array([[1, 2, 3, 0, 0], [4, 0, 0, 0, 0], [2, 3, 1, 4, 1]])
    layer = kp.PassportNormalization(layer_class(**arguments))
    indices = keras.Input((5,), dtype="int32")
    embedding = keras.layers.Embedding(5, 4, mask_zero=True)
    embedded = embedding(indices)
    layer.build(embedded.shape)
    maps = {"gamma": random((5, 4), 1), "beta": random((5, 4), 2)}
    inputs = {"indices": indices}
    values = {"indices": tokens}
    if as_input:
        inputs["passport"] = keras.Input((layer.passport_size,))
        values["passport"] = np.tile(packed(layer, maps), (3, 1))
        outputs = layer(embedded, passport=inputs["passport"])
    else:
        outputs = layer(embedded)
        layer.bind_keys(**keys_of(layer, maps))
    model = keras.Model(inputs, outputs)
    kernel_copy, weights = copy_of(layer.layer)
    normal = keras.layers.BatchNormalization()
    plain = keras.Model(indices, normal(kernel_copy(embedded)))
    kernel_copy.set_weights(weights)
    for weight, value in zip(
        (normal.gamma, normal.beta), affine(layer, maps), strict=True
    ):
        weight.assign(value)
    received = model(values, training=True)
    expected = plain(tokens, training=True)
    assert_near(received, expected, 1e-4)
    assert_same_statistics(layer, normal)
    masks = [getattr(y, "_keras_mask", None) for y in (received, expected)]
    assert (masks[0] is None) == (masks[1] is None)
    if masks[0] is not None:
        np.testing.assert_array_equal(*masks)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.protected = kp.PassportNormalization(keras.layers.Dense(6))
        self.classes = keras.layers.Dense(3)

    def call(self, inputs):
        return self.classes(ops.relu(self.protected(inputs)))


def test_a_subclassed_model_that_is_not_built():
    model = Subclassed()
    with pytest.raises(
        kp.PassportError, match=r"model\(keras.Input\(shape\)\)"
    ):
        kp.Passport.random_pattern(model)
    # As the message says; without a passport.
    model(keras.Input((5,)))
    kp.bind(model, kp.Passport.random_pattern(model))
    assert model(random((8, 5), 1)).shape == (8, 3)


def test_inside_a_subclassed_model():
    model = Subclassed()
    x, y = random((8, 5), 1), random((8, 3), 2)
    with pytest.raises(kp.PassportRequiredError, match="no passport"):
        model(x)
    model.protected.build((None, 5))
    passport = kp.Passport.from_feature_maps(
        model, {"dense": (random((5,), 3), random((5,), 4))}
    )
    kp.bind(model, passport)
    model.compile("sgd", "mse")
    before = model.evaluate(x, y, verbose=0)
    model.fit(x, y, epochs=3, verbose=0)
    assert model.evaluate(x, y, verbose=0) < before
    assert_near(model.predict(x, verbose=0), model(x, training=False))


def test_in_tf_function():
    if keras.backend.backend() != "tensorflow":
        pytest.skip("tf.function")
    import tensorflow as tf

    layer, _ = build("conv2d")
    function = tf.function(layer)
    x = random((3, *IMAGE), 3)
    for training in (False, True):
        statistics = layer.normalization.get_weights()
        compiled = function(x, training=training)
        layer.normalization.set_weights(statistics)
        assert_near(compiled, layer(x, training=training))
    passport = random((1, layer.passport_size), 2)
    assert_near(function(x, passport=passport), layer(x, passport=passport))


@pytest.mark.parametrize(
    "kernel, function, options",
    [
        ("conv2d", "V1", {"activation": "relu"}),
        ("separable", "V2", {"between": [keras.layers.MaxPooling2D(2)]}),
        (
            "dense_rank3",
            "V3",
            {"normalization": keras.layers.LayerNormalization(epsilon=0.1)},
        ),
        (
            "conv2d",
            "V2",
            {"normalization": keras.layers.GroupNormalization(groups=2)},
        ),
    ],
)
def test_round_trips(kernel, function, options, tmp_path):
    layer, maps = build(kernel, function, **options)
    copy = type(layer).from_config(layer.get_config())
    assert copy.get_config() == layer.get_config()
    assert not copy.is_bound
    inputs = keras.Input(layer.inputs_shape[1:])
    model = keras.Model(inputs, layer(inputs))
    path = tmp_path / "model.keras"
    model.save(path)
    loaded = keras.saving.load_model(path)
    copy = loaded.layers[-1]
    assert copy.function == layer.function and not copy.is_bound
    for one, other in zip(loaded.weights, model.weights, strict=True):
        assert one.name == other.name
        np.testing.assert_array_equal(one, other)
    copy.bind_keys(**keys_of(copy, maps))
    x = random((3, *layer.inputs_shape[1:]), 3)
    np.testing.assert_array_equal(loaded(x), model(x))


def test_keys_are_checked():
    layer, _ = build("conv2d", "V1")
    good = np.ones(layer.geometry.key_shape)
    bad = [
        ({}, r"gamma.*\(3, 3, 4\).*None"),
        ({"gamma": good, "beta": good}, "hides no beta"),
        ({"gamma": good[0]}, r"\(3, 3, 4\).*\(3, 4\)"),
        ({"gamma": good.ravel()}, r"\(3, 3, 4\).*\(36,\)"),
        ({"gamma": good * np.nan}, "NaN"),
        ({"gamma": good * np.inf}, "infinity"),
    ]
    before = layer.hidden_parameters()[0]
    for keys, message in bad:
        with pytest.raises(kp.PassportError, match=message) as raised:
            layer.bind_keys(**keys)
        assert "conv2d" in str(raised.value)
    np.testing.assert_array_equal(layer.hidden_parameters()[0], before)
    for passport in (np.ones((1, 35)), np.ones(36), np.ones((1, 3, 12))):
        with pytest.raises(kp.PassportError, match=r"\(1 or batch, 36\)"):
            layer(random((2, *IMAGE)), passport=passport)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: (keras.layers.ReLU(),), "kernel layer"),
        (
            lambda: (keras.layers.Dense(2), keras.layers.UnitNormalization()),
            "BatchNormalization",
        ),
        pytest.param(
            lambda: (
                keras.layers.Dense(2),
                keras.layers.BatchNormalization(renorm=True),
            ),
            "renorm",
            marks=needs_keras("3.14", "no batch renormalisation"),
        ),
        (
            lambda: (
                keras.layers.Dense(2),
                keras.layers.LayerNormalization(axis=[1, 2]),
            ),
            "several axes",
        ),
        (
            lambda: (
                keras.layers.Dense(2),
                keras.layers.LayerNormalization(rms_scaling=True),
            ),
            "rms_scaling",
        ),
        (
            lambda: (keras.layers.EinsumDense("abc,cde->abde", (None, 2, 3)),),
            "equation",
        ),
        (lambda: (keras.layers.Dense(2), None, "V4"), "V1, V2, V3"),
    ],
)
def test_wrong_arguments(make, message):
    with pytest.raises(ValueError, match=message) as raised:
        kp.PassportNormalization(*make())
    assert "Received" in str(raised.value)


def test_normalization_along_another_axis():
    layer = kp.PassportNormalization(
        keras.layers.Conv2D(2, 3), keras.layers.BatchNormalization(axis=1)
    )
    with pytest.raises(ValueError, match=r"channel axis.*Received: axis=1"):
        layer.build((None, 6, 6, 3))


class Doubled(keras.layers.Dense):
    """A layer of the user's own that does more after adding its bias."""

    def call(self, inputs, training=None):
        return 2.0 * super().call(inputs)


def test_layers_of_the_users_own_are_not_folded(monkeypatch):
    """What they do with their bias is not known: only stock layers' is."""
    monkeypatch.setattr(kernels, "_REGISTRY", dict(kernels._REGISTRY))

    class Adapter(type(kernels.adapter_for(keras.layers.Dense))):
        def apply(self, layer, keys):
            return 2.0 * super().apply(layer, keys)

    kp.register_kernel_layer(Doubled, Adapter())
    inputs = keras.Input((5,))
    x = Doubled(4, name="doubled", bias_initializer="ones")(inputs)
    base = keras.Model(inputs, keras.layers.BatchNormalization()(x))
    model = kp.protect(base)
    kp.bind(model, kp.Passport.random_pattern(model))
    [layer] = kp.protected_layers(model).values()
    gamma, beta = layer.hidden_parameters()
    base.layers[-1].gamma.assign(gamma)
    base.layers[-1].beta.assign(beta)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 5)).astype("float32")
    expected = keras.ops.convert_to_numpy(base(x, training=False))
    for received in (model(x, training=False), kp.unlock(model)(x)):
        np.testing.assert_allclose(received, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "policy",
    [
        pytest.param("float64", marks=pytest.mark.eager),
        "bfloat16",
        pytest.param("float16", marks=pytest.mark.eager),
    ],
)
def test_all_of_it_under_one_type(policy):
    """As `keras.config.set_dtype_policy` gives it, without any float32."""
    if keras.backend.backend() == "jax" and policy == "float64":
        pytest.skip("JAX has it where it is told to alone")
    keras.config.set_dtype_policy(policy)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(16, 8, 8, 3)).astype("float32")
    y = np.arange(16) % 3

    def trained(model):
        model.compile(
            keras.optimizers.SGD(1e-3), "sparse_categorical_crossentropy"
        )
        model.fit(x, y, batch_size=16, verbose=0)
        return model

    inputs = keras.Input((8, 8, 3))
    outputs = inputs
    for layer in (
        keras.layers.Conv2D(6, 3),
        keras.layers.SeparableConv2D(5, 3),
    ):
        outputs = keras.layers.BatchNormalization()(layer(outputs))
        outputs = keras.layers.ReLU()(outputs)
    outputs = keras.layers.GlobalAveragePooling2D()(outputs)
    outputs = keras.layers.Dense(3, activation="softmax")(outputs)
    base = trained(keras.Model(inputs, outputs))
    tolerance = 1e-4 if policy == "float64" else 0.05
    for function in ("V1", "V3"):
        model = kp.protect(base, function)
        passport = kp.Passport.random_pattern(model, seed=0)
        trained(kp.calibrate(kp.bind(model, passport)))
        if function == "V3":
            kp.hide_statistics(model, [x])
        hidden = trained(kp.hide_rows(model, passport))
        expected = hidden.predict(x, verbose=0)
        found = kp.unlock(hidden, passport).predict(x, verbose=0)
        assert largest_difference(found, expected) < tolerance
        kp.attacks.reverse_engineering(
            kp.public(model),
            *((x, y), (x, y)),
            recipe=kp.attacks.Recipe(epochs=1, batch_size=16),
        )
    exact, passport = kp.protect_trained(base)
    expected = base.predict(x, verbose=0)
    found = exact.predict(x, verbose=0)
    assert largest_difference(found, expected) < tolerance
    trained(exact)
    licence = kp.licensing.Licensor(passport, exact, bytes(32)).issue("Bob")
    assert np.all(np.isfinite(kp.bind(exact, licence).predict(x, verbose=0)))
