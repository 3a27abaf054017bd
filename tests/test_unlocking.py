"""`unlock` against the stock model whose γ and β were overwritten."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_passport as kp
from support.kernel_layers import FUNCTIONS, KERNELS, TAILS, stack
from support.plain_models import (
    functional_of,
    inputs_of,
    multi_input_model,
    nested_model,
    plain_cnn,
    randomize,
    sequential_cnn,
    shared_model,
    small_resnet,
)
from support.processes import run_in_fresh_process
from support.protected_models import Block, lock
from support.truth import (
    flat_layers,
    outputs_of,
    relative_difference,
)

TOLERANCE = 1e-4


MODELS = {
    model.__name__: model
    for model in (
        plain_cnn,
        small_resnet,
        sequential_cnn,
        nested_model,
        multi_input_model,
        shared_model,
    )
}


def assert_equal_outputs(models, truth, tolerance=TOLERANCE):
    x = inputs_of(truth)
    expected = outputs_of(truth, x)
    # Else the outputs' constant part would hide what is wrong.
    assert relative_difference(expected[:1], expected[1:2]) > 1e-2
    for model in models:
        assert relative_difference(outputs_of(model, x), expected) < tolerance


def assert_plain(model):
    """No object of the package anywhere in it, or in its config."""
    assert type(model).__module__.split(".")[0] == "keras"
    for layer in model._flatten_layers():
        assert type(layer).__module__.split(".")[0] == "keras", layer
    assert "passport" not in str(keras.saving.serialize_keras_object(model))


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_every_kernel_layer(kernel, function):
    bound, _, truth = lock(stack(kernel), function)
    folded, unfolded = kp.unlock(bound), kp.unlock(bound, fold=False)
    assert_equal_outputs((bound, folded, unfolded), truth)
    for plain in (folded, unfolded):
        assert_plain(plain)
        assert plain.name == truth.name
    names = [layer.name for layer in truth.layers]
    assert [layer.name for layer in unfolded.layers] == names
    if "activation" not in KERNELS[kernel][1]:
        names.remove("norm")
    assert [layer.name for layer in folded.layers] == names


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("tail", TAILS)
def test_where_folding_is_not_exact(tail, function):
    bound, _, truth = lock(stack("conv2d", TAILS[tail]()), function)
    names = [layer.name for layer in truth.layers]
    assert len(bound.layers) < len(names)
    plain = [kp.unlock(bound, fold=fold) for fold in (True, False)]
    assert_equal_outputs((bound, *plain), truth)
    for model in plain:
        assert_plain(model)
        assert [layer.name for layer in model.layers] == names


@pytest.mark.parametrize("fold", (True, False))
@pytest.mark.parametrize("name", MODELS)
def test_whole_models(name, fold):
    bound, passport, truth = lock(MODELS[name]())
    weights = bound.get_weights()
    plain = kp.unlock(bound, fold=fold)
    assert_plain(plain)
    assert_equal_outputs((bound, plain), truth)
    # The protected model is as it was: weights, report, and still bound.
    for old, new in zip(weights, bound.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert all(w.is_bound for w in kp.protected_layers(bound).values())
    kp.unbind(bound)
    with pytest.raises(kp.PassportRequiredError, match="no passport"):
        kp.unlock(bound, fold=fold)
    given = kp.unlock(bound, passport, fold=fold)
    assert not any(w.is_bound for w in kp.protected_layers(bound).values())
    assert_equal_outputs((given,), truth)
    assert keras.tree.map_structure(
        lambda t: (t.name, t.shape), plain._inputs_struct
    ) == keras.tree.map_structure(
        lambda t: (t.name, t.shape), functional_of(truth)._inputs_struct
    )
    structs = [functional_of(m)._outputs_struct for m in (plain, truth)]
    for struct in structs:
        assert isinstance(struct, type(structs[0]))
    if isinstance(structs[0], dict):
        assert list(structs[0]) == list(structs[1])


def _described(model):
    # A Sequential does not show its input layer; what was made of it does.
    return [
        (type(layer), layer.name)
        for layer in flat_layers(model)
        if not isinstance(layer, layers.InputLayer)
    ]


@pytest.mark.parametrize("name", MODELS)
def test_unfolded_is_the_original_architecture(name, tmp_path):
    bound, _, truth = lock(MODELS[name]())
    plain = kp.unlock(bound, fold=False)
    assert _described(plain) == _described(truth)
    for one, other in zip(plain.weights, truth.weights, strict=True):
        # A Sequential puts its name before its layers' own.
        assert one.path.split("/")[-2:] == other.path.split("/")[-2:]
    # Weights load both ways, in Keras's format and by name.
    original = randomize(MODELS[name](), seed=7)
    back = kp.unlock(bound, fold=False)
    for suffix, options in ((".weights.h5", {}), (".h5", {"by_name": True})):
        for source, target in ((plain, original), (truth, back)):
            path = str(tmp_path / f"{source.name}{suffix}")
            for weight in target.weights:
                weight.assign(weight * 0.0)
            if options:
                source.save(path)
            else:
                source.save_weights(path)
            target.load_weights(path, **options)
            for one, other in zip(target.weights, source.weights, strict=True):
                np.testing.assert_allclose(
                    one, other, rtol=1e-4, atol=1e-5, err_msg=one.path
                )
    # Biases that statistics subtract are part of the means.
    assert_equal_outputs((plain, original, back), truth)


def test_part_of_a_model_takes_weights_by_name(tmp_path):
    """The folded model, too, still knows what it has in common."""
    bound, _, truth = lock(plain_cnn())
    folded = kp.unlock(bound)
    truth.save_weights(tmp_path / "truth.weights.h5")
    folded.layers[-1].kernel.assign(folded.layers[-1].kernel * 0.0)
    folded.load_weights(tmp_path / "truth.weights.h5", skip_mismatch=True)
    np.testing.assert_array_equal(
        folded.layers[-1].kernel, truth.layers[-1].kernel
    )


def test_inserted_layers():
    base = randomize(
        keras.Sequential(
            [
                keras.Input((7, 7, 4)),
                layers.Conv2D(6, 3, activation="relu", name="inside"),
                layers.Conv2D(6, 3, name="outside"),
                layers.ReLU(name="relu"),
                layers.Conv2D(
                    6, 3, activation=layers.LeakyReLU(0.2), name="a_layer"
                ),
                layers.Flatten(name="flatten"),
                layers.Dense(
                    5, activation="tanh", use_bias=False, name="hidden"
                ),
                layers.Dense(3, name="classes"),
            ]
        )
    )
    model = kp.protect(base, insert=True)
    rng = np.random.default_rng(1)
    for path, wrapper in kp.protected_layers(model).items():
        # As files of models that were protected with their biases have it.
        wrapper.layer.set_weights(base.get_layer(path).get_weights())
        # Hidden parameters of about 1, else activations die out.
        kernel = wrapper.layer.get_weights()[0]
        keys = [rng.normal(size=kernel.shape[:-1]) for _ in range(2)]
        wrapper.bind_keys(
            *(k / np.tensordot(k, kernel, k.ndim).std() for k in keys)
        )
    # What was inserted, of stock layers.
    x = inputs = keras.Input(base.input_shape[1:])
    for layer in base.layers:
        wrapper = kp.protected_layers(model).get(layer.name)
        config = layer.get_config()
        if wrapper is None:
            copy = type(layer).from_config(config)
            x = copy(x)
            copy.set_weights(layer.get_weights())
            continue
        config["activation"] = None
        copy = type(layer).from_config(config)
        x = copy(x)
        copy.set_weights(layer.get_weights())
        normal = layers.BatchNormalization()
        x = normal(x)
        statistics = randomize(wrapper.normalization).get_weights()
        normal.set_weights([*wrapper.hidden_parameters(), *statistics])
        x = layer.activation(x)
    truth = keras.Model(inputs, x)
    plain = [kp.unlock(model, fold=fold) for fold in (True, False)]
    assert_equal_outputs((model, *plain), truth)
    names = [layer.name for layer in base.layers]
    assert [layer.name for layer in plain[0].layers[1:]] == names
    for one in plain:
        assert_plain(one)
        assert_plain(type(one).from_config(one.get_config()))


@pytest.mark.parametrize("fold", (True, False))
def test_mixed_precision(fold):
    keras.config.set_dtype_policy("mixed_bfloat16")
    bound, _, truth = lock(plain_cnn())
    plain = kp.unlock(bound, fold=fold)
    assert [w.dtype for w in plain.weights] == ["float32"] * len(plain.weights)
    for layer in plain.layers[1:]:
        assert layer.compute_dtype == "bfloat16"
    assert_equal_outputs((bound, plain), truth, tolerance=0.02)
    # What is computed in float32 is exact.
    keras.config.set_dtype_policy("float32")
    exact = [plain_cnn(), plain_cnn()]
    exact[0].set_weights(truth.get_weights())
    if not fold:
        exact[1].set_weights(plain.get_weights())
        assert_equal_outputs(exact[1:], exact[0], tolerance=1e-5)


@pytest.mark.parametrize("training", (True, False))
def test_the_normalizations_own_mode(training):
    """As in `bn(x, training=False)`, which a call without mode obeys."""
    inputs = keras.Input((6,))
    x = layers.Dense(5, name="dense")(inputs)
    x = layers.BatchNormalization(name="bn")(x, training=training)
    bound, _, truth = lock(keras.Model(inputs, layers.ReLU()(x)))
    plain = kp.unlock(bound, fold=False)
    x = inputs_of(truth)
    for mode in (None, True, False):
        expected = truth(x, training=mode)
        for model in (bound, plain):
            np.testing.assert_allclose(
                model(x, training=mode), expected, rtol=1e-3, atol=1e-4
            )
    # After folding there is no batch to take statistics of: always inference.
    np.testing.assert_allclose(
        kp.unlock(bound)(x), bound(x, training=False), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("fold", (True, False))
def test_trainable_flags(fold):
    base = nested_model()
    base.get_layer("outer_conv").trainable = False
    base.get_layer("functional").get_layer("inner_bn").trainable = False
    base.get_layer("sequential").trainable = False
    bound, _, truth = lock(base)
    plain = kp.unlock(bound, fold=fold)
    flags = {layer.name: layer.trainable for layer in truth.layers}
    received = {layer.name: layer.trainable for layer in plain.layers}
    assert received == {name: flags[name] for name in received}
    if not fold:
        assert [w.path for w in plain.trainable_weights] == [
            w.path for w in truth.trainable_weights
        ]
        inner = plain.get_layer("functional").get_layer("inner_bn")
        assert not inner.trainable
    base.trainable = False
    bound, _, truth = lock(base)
    assert kp.unlock(bound, fold=fold).trainable_weights == []


@pytest.mark.eager
def test_unfolded_trains_like_the_original():
    bound, _, truth = lock(plain_cnn())
    plain = kp.unlock(bound, fold=False)
    x, y = inputs_of(truth), np.arange(4) % 4
    for model in (plain, truth):
        model.compile(
            keras.optimizers.SGD(0.1),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
        model.fit(x, y, batch_size=4, epochs=3, verbose=0)
    assert_equal_outputs((plain,), truth, tolerance=1e-3)


def test_loads_where_the_package_is_not_installed(tmp_path):
    bound, _, truth = lock(nested_model())
    names = {"folded.keras": True, "whole.keras": False}
    for name, fold in names.items():
        kp.unlock(bound, fold=fold).save(tmp_path / name)
    x = inputs_of(truth)
    np.savez(tmp_path / "case.npz", x=x, y=outputs_of(truth, x))
    run_in_fresh_process(
        f"""
import os, sys
sys.modules["keras_passport"] = None
import keras, numpy as np
os.chdir({str(tmp_path)!r})
case = np.load("case.npz")
for name in {tuple(names)!r}:
    y = np.asarray(keras.saving.load_model(name)(case["x"]))
    assert np.abs(y - case["y"]).max() < 1e-4 * np.abs(case["y"]).max()
""",
        # Imported sooner, and it computes the same.
        backend="numpy",
    )


def test_refusals():
    bound, passport, truth = lock(plain_cnn())
    with pytest.raises(kp.PassportError, match="without any passport layer"):
        kp.unlock(truth, passport)
    other, wrong, _ = lock(small_resnet())
    with pytest.raises(kp.PassportError, match="missing"):
        kp.unlock(bound, wrong)
    _, wrong, _ = lock(plain_cnn(), "V1")
    with pytest.raises(kp.PassportError, match="V1"):
        kp.unlock(bound, wrong)
    # Nothing happened to it.
    assert_equal_outputs((bound,), truth)


def test_another_passport_gives_another_model():
    bound, _, truth = lock(plain_cnn())
    other = kp.Passport.random_pattern(bound, seed=3)
    plain = kp.unlock(bound, other)
    x = inputs_of(truth)
    expected = outputs_of(truth, x)
    assert relative_difference(outputs_of(plain, x), expected) > 0.1
    assert_equal_outputs((bound,), truth)
    kp.bind(bound, other)
    assert (
        relative_difference(outputs_of(plain, x), outputs_of(bound, x))
        < TOLERANCE
    )


def test_a_passport_layer_out_of_the_graphs_reach():
    inputs = keras.Input((5,))
    model = keras.Model(inputs, Block(name="block")(inputs))
    for layer in kp.protected_layers(model).values():
        layer.bind_keys(np.ones(5), np.ones(5))
    with pytest.raises(kp.PassportError, match="block"):
        kp.unlock(model)


def test_dropout_and_preprocessing_state_carry_over():
    inputs = keras.Input((5,))
    scale = layers.Normalization(name="scale")
    scale.adapt(np.random.default_rng(0).normal(3, 2, (50, 5)))
    x = layers.Dense(6, name="dense")(scale(inputs))
    x = layers.BatchNormalization(name="bn")(x)
    x = layers.Dropout(0.5, seed=3, name="dropout")(x)
    truth = keras.Model(inputs, x)
    bound, _, truth = lock(truth)
    for fold in (True, False):
        assert_equal_outputs((kp.unlock(bound, fold=fold),), truth)
