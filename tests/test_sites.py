"""Where passport layers can stand: `inspect`, `insert=True`, and reports."""

import json

import keras
import numpy as np
import pytest
from keras import layers

import keras_passport as kp
from support.marks import marked, needs_keras
from support.plain_models import (
    multi_input_model,
    nested_model,
    plain_cnn,
    randomize,
    sequential_cnn,
    small_resnet,
)
from support.truth import relative_difference

MODELS = (
    plain_cnn,
    small_resnet,
    sequential_cnn,
    nested_model,
    multi_input_model,
)


def conv(name, filters=4, **options):
    return layers.Conv2D(filters, 3, padding="same", name=name, **options)


def bn(name, **options):
    return layers.BatchNormalization(name=name, **options)


def functional(graph, shape=(8, 8, 4)):
    inputs = keras.Input(shape, name="images")
    return keras.Model(inputs, graph(inputs), name="made")


def rows(report):
    """Rows by path, without the words about those that are protected."""
    return {
        row.path: (
            row.layer_type,
            row.role,
            row.protected,
            "" if row.protected else row.reason,
        )
        for row in report.rows
    }


def reason_of(model, path, **options):
    row = {row.path: row for row in kp.inspect(model, **options).rows}[path]
    assert not row.protected
    return row.reason


# inspect ----------------------------------------------------------------------


@pytest.mark.parametrize("make", MODELS)
def test_inspect_says_what_protect_does(make):
    base = randomize(make())
    weights = base.get_weights()
    report = kp.inspect(base, "V1")
    assert report.protected
    for old, new in zip(weights, base.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    model = kp.protect(base, "V1")
    assert report == model.report
    assert report.function == "V1"
    again = kp.inspect(model)
    assert rows(again) == rows(report)
    assert sorted(again.protected) == sorted(report.protected)
    assert again.function == "V1"
    # `to_dict` is what JSON gives back.
    assert json.loads(json.dumps(report.to_dict())) == report.to_dict()


def test_inspect_of_a_protected_part():
    """What else could be protected is not reported as protected."""
    base = small_resnet()
    model = kp.protect(base, select="stem_conv")
    assert kp.inspect(model).protected == ["stem_conv"]
    assert rows(kp.inspect(model)) == rows(model.report)
    # Unless one asks what a second `protect` would do.
    more = kp.inspect(model, select=lambda path, layer: True)
    assert len(more.protected) == 6


def test_inspect_survives_saving(tmp_path):
    model = kp.protect(nested_model(), "V2")
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert rows(kp.inspect(loaded)) == rows(model.report)
    assert kp.inspect(loaded).function == "V2"


def test_inspect_with_layers_between():
    def graph(x):
        x = layers.ZeroPadding2D(1, name="pad")(conv("a")(x))
        return bn("a_bn")(layers.MaxPooling2D(2, name="pool")(x))

    model = kp.protect(functional(graph))
    assert kp.inspect(model).protected == model.report.protected == ["a"]
    assert rows(kp.inspect(model)) == rows(model.report)
    assert [layer.name for layer in model.layers] == ["images", "a"]


def test_one_function_per_model():
    first = kp.protect(small_resnet(), "V1", select="stem_conv")
    with pytest.raises(kp.PassportError, match="V1.*V3"):
        kp.protect(first, "V3")


# insert=True ------------------------------------------------------------------


def vgg():
    """Activations inside the convolutions, as keras.applications has them."""
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            conv("block1_conv1", activation="relu"),
            conv("block1_conv2", activation="relu"),
            layers.MaxPooling2D(2, name="block1_pool"),
            conv("block2_conv1", activation="relu"),
            layers.Flatten(name="flatten"),
            layers.Dense(6, activation="relu", name="fc1"),
            layers.Dense(3, activation="softmax", name="predictions"),
        ],
        name="vgg",
    )


def alexnet():
    """Separate activations, dropout between the dense layers."""
    images = keras.Input((8, 8, 3))
    x = layers.ReLU(name="relu1")(conv("conv1", strides=2)(images))
    x = layers.MaxPooling2D(2, name="pool")(x)
    x = layers.ReLU(name="relu2")(conv("conv2", groups=2)(x))
    x = layers.Flatten(name="flatten")(x)
    x = layers.Dropout(0.5, name="dropout")(x)
    x = layers.ReLU(name="relu3")(layers.Dense(6, name="fc1")(x))
    outputs = layers.Dense(3, name="predictions")(x)
    return keras.Model(images, outputs, name="alexnet")


@pytest.mark.parametrize("make", (vgg, alexnet))
@pytest.mark.parametrize("function", ("V1", "V2", "V3"))
def test_insertion(make, function):
    base = randomize(make())
    with pytest.raises(kp.PassportError, match="insert=True") as error:
        kp.protect(base, function)
    kernels = [layer for layer in base.layers if layer.weights]
    assert f"after {len(kernels) - 1} kernel layers" in str(error.value)
    report = kp.inspect(base, function, insert=True)
    expected = [layer.name for layer in kernels[:-1]]
    assert report.protected == expected
    model = kp.protect(base, function, insert=True)
    assert report == model.report
    assert list(kp.protected_layers(model)) == expected
    assert kp.inspect(model).protected == expected
    last = {row.path: row for row in report.rows}["predictions"]
    assert not last.protected and "select it by name" in last.reason
    # The source keeps its activations; those of the copies come last.
    for name, layer in kp.protected_layers(model).items():
        own = base.get_layer(name)
        assert layer.activation is own.activation
        assert layer.layer.activation is keras.activations.linear
        np.testing.assert_array_equal(layer.layer.kernel, own.kernel)
        # What a normalisation takes off again may lie in its mean.
        shift = np.asarray(layer.layer.bias)
        shift = shift - np.asarray(layer.normalization.moving_mean)
        np.testing.assert_array_equal(shift, own.bias)
    kp.bind(model, kp.Passport.random_pattern(model))
    x = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype("float32")
    assert np.isfinite(np.asarray(model(x))).all()


def test_what_is_inserted_stands_before_the_activation():
    base = randomize(vgg())
    model = kp.protect(base, insert=True, select="block1_conv1")
    kp.bind(model, kp.Passport.random_pattern(model))
    layer = kp.protected_layers(model)["block1_conv1"]
    gamma, beta = layer.hidden_parameters()
    x = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype("float32")
    kernel, bias = base.layers[0].get_weights()
    y = keras.ops.conv(x, kernel, padding="same") + bias
    y = np.maximum(gamma * np.asarray(y) / np.sqrt(1 + 1e-3) + beta, 0)
    assert relative_difference(layer(x), y) < 1e-5
    rest = y
    for other in base.layers[1:]:
        rest = other(rest)
    assert relative_difference(model(x), rest) < 1e-4


@pytest.mark.parametrize("select", ("predictions", ["fc1", "predictions"]))
def test_the_classifier_is_protected_by_name(select):
    model = kp.protect(vgg(), insert=True, select=select)
    names = [select] if isinstance(select, str) else select
    assert model.report.protected == names
    assert model.layers[-1].name == "predictions"
    assert model.layers[-1].activation is keras.activations.softmax
    everything = kp.protect(vgg(), insert=True, select=lambda path, layer: True)
    assert "predictions" not in everything.report.protected


def test_all_heads_are_left_alone():
    def graph(x):
        x = layers.Flatten()(conv("trunk", activation="relu")(x))
        hidden = layers.Dense(5, activation="relu", name="hidden")(x)
        return {
            "a": layers.Dense(3, name="a")(x),
            "b": layers.Softmax()(layers.Dense(3, name="b")(hidden)),
        }

    report = kp.inspect(functional(graph), insert=True)
    assert report.protected == ["trunk", "hidden"]


def test_the_last_layer_of_a_backbone_is_no_classifier():
    backbone = functional(lambda x: conv("b")(conv("a", activation="relu")(x)))
    backbone.name = "backbone"
    end = keras.Sequential([keras.Input((3,)), layers.Softmax()], name="end")
    model = functional(
        lambda x: end(
            layers.Dense(3, name="head")(layers.Flatten()(backbone(x)))
        )
    )
    report = kp.inspect(model, insert=True)
    assert report.protected == ["backbone/a", "backbone/b"]
    # The same backbone alone ends in one.
    assert kp.inspect(backbone, insert=True).protected == ["a"]


def test_insertion_beside_normalizations():
    def graph(x):
        x = layers.ReLU()(bn("a_bn")(conv("a")(x)))
        return conv("c", activation="relu")(conv("b", activation="relu")(x))

    report = kp.inspect(functional(graph), insert=True)
    assert report.protected == ["a", "b"]
    assert kp.inspect(functional(graph)).protected == ["a"]


def test_insertion_with_an_activation_layer_inside(tmp_path):
    base = functional(
        lambda x: conv("b")(conv("a", activation=layers.LeakyReLU(0.2))(x))
    )
    model = kp.protect(base, insert=True)
    kp.bind(model, kp.Passport.random_pattern(model, seed=0))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    kp.bind(loaded, kp.Passport.random_pattern(model, seed=0))
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 4)).astype("float32")
    assert relative_difference(loaded(x), model(x)) < 1e-6
    assert isinstance(loaded.get_layer("a").activation, layers.LeakyReLU)


# What can and can't be protected ----------------------------------------------


def test_convnext_block():
    """LayerNormalization after a depthwise convolution, Dense without."""

    def graph(x):
        y = layers.DepthwiseConv2D(7, padding="same", name="depthwise")(x)
        y = layers.LayerNormalization(epsilon=1e-6, name="norm")(y)
        y = layers.Dense(16, name="wide")(y)
        y = layers.Activation("gelu", name="gelu")(y)
        y = layers.Dense(4, name="narrow")(y)
        return layers.Add(name="add")([x, y])

    base = functional(graph)
    assert kp.inspect(base).protected == ["depthwise"]
    assert kp.inspect(base, insert=True).protected == ["depthwise", "wide"]
    model = kp.protect(base)
    assert isinstance(
        kp.protected_layers(model)["depthwise"].normalization,
        layers.LayerNormalization,
    )


def sequence_model(layer):
    """Frames of a film, a convolution on each, then something else."""
    frames = keras.Input((3, 8, 8, 4))
    x = layers.TimeDistributed(conv("frame_conv"), name="convs")(frames)
    x = layer(x)
    x = bn("last_bn")(layers.Conv3D(4, 1, name="last_conv")(x))
    return keras.Model(frames, x)


def test_inside_time_distributed_is_reported():
    base = sequence_model(layers.TimeDistributed(bn("frame_bn"), name="bns"))
    assert "is inside a layer" in reason_of(base, "bns/frame_bn")
    assert "is inside layer 'convs'" in reason_of(base, "convs/frame_conv")
    model = kp.protect(base)
    assert model.report.protected == ["last_conv"]
    # Directly behind such a layer it is in the graph, but has no kernel layer.
    base = sequence_model(bn("frame_bn"))
    assert "'convs', which is no kernel layer" in reason_of(base, "frame_bn")


def test_a_normalization_of_two_convolutions():
    shared = bn("shared_bn")
    base = functional(
        lambda x: layers.Add()([shared(conv("a")(x)), shared(conv("b")(x))])
    )
    assert "called 2 times" in reason_of(base, "shared_bn")
    with pytest.raises(kp.PassportError, match="called 2 times"):
        kp.protect(base)
    # Alone it is an error, in company a row.
    assert not kp.inspect(base).protected


def test_a_convolution_called_twice():
    one = conv("one")
    base = functional(
        lambda x: layers.Add()([bn("a")(one(x)), bn("b")(one(x * 2.0))])
    )
    for name in ("a", "b"):
        assert "'one' is called 2 times" in reason_of(base, name)


GRAPHS = {
    "concatenate": (
        lambda x: bn("n")(
            layers.Concatenate(name="both")([conv("a")(x), conv("b")(x)])
        ),
        "follows 'both'",
    ),
    "pre_activation": (
        lambda x: conv("a")(layers.ReLU()(bn("n")(x))),
        "follows the model's input",
    ),
    "pre_activation_after_add": (
        lambda x: conv("b")(
            layers.ReLU()(bn("n")(layers.Add(name="add")([conv("a")(x), x])))
        ),
        "follows 'add'",
    ),
    "read_twice": (
        lambda x: (lambda y: layers.Add()([bn("n")(y), y]))(conv("a")(x)),
        "'a' is used elsewhere",
    ),
    "an_output": (
        lambda x: (lambda y: [y, bn("n")(y)])(conv("a")(x)),
        "'a' is used elsewhere",
    ),
    "pooling_read_twice": (
        lambda x: (lambda y: [y, bn("n")(y)])(
            layers.MaxPooling2D(2, name="pool")(conv("a")(x))
        ),
        "'pool' is used elsewhere",
    ),
    "activation_in_between": (
        lambda x: bn("n")(layers.ReLU(name="relu")(conv("a")(x))),
        "follows 'relu'",
    ),
    "operation_in_between": (
        lambda x: bn("n")(conv("a")(x) + 1.0),
        "no kernel layer",
    ),
    "axis": (
        lambda x: bn("n", axis=1)(conv("a")(x)),
        "axis 1, which is not the channel axis of 'a'",
    ),
    "layer_norm_axis": (
        lambda x: layers.LayerNormalization(axis=2, name="n")(conv("a")(x)),
        "axis 2, which is not the channel axis",
    ),
    "layer_norm_axes": (
        lambda x: layers.LayerNormalization(axis=[1, 2, 3], name="n")(
            conv("a")(x)
        ),
        "several axes",
    ),
    "renorm": (
        lambda x: bn("n", renorm=True)(conv("a")(x)),
        "renorm=True",
    ),
}


# What Keras has only since some version.
LATER = {"renorm": needs_keras("3.14", "no batch renormalisation")}


@pytest.mark.parametrize("name", marked(GRAPHS, LATER))
def test_refused(name):
    graph, reason = GRAPHS[name]
    base = functional(graph)
    assert reason in reason_of(base, "n")
    with pytest.raises(kp.PassportError) as error:
        kp.protect(base)
    assert "Received: model 'made' with nothing to protect" in str(error.value)
    assert reason.split(",")[0].split("'")[0] in str(error.value)


def test_quantized_kernel_layers():
    def graph(x):
        x = layers.ReLU()(bn("a_bn")(layers.Dense(6, name="a")(x)))
        return bn("b_bn")(layers.Dense(6, name="b")(x))

    base = functional(graph, (5,))
    base.get_layer("a").quantize("int8")
    assert "it is quantized (int8)" in reason_of(base, "a_bn")
    model = kp.protect(base)
    assert model.report.protected == ["b"]
    with pytest.raises(kp.PassportError, match="a"):
        kp.protect(base, select="a")
    assert "quantized" in reason_of(base, "a", insert=True)


def test_nothing_is_half_built():
    """A refused `select` leaves source and names as they are."""
    base = small_resnet()
    weights = base.get_weights()
    names = [layer.name for layer in base.layers]
    calls = [len(layer._inbound_nodes) for layer in base.layers]
    for select in ("stem_bn", "classes", "nothing", ["stem_conv", "stem_relu"]):
        with pytest.raises(kp.PassportError, match="select"):
            kp.protect(base, select=select)
    kp.protect(base)
    assert [layer.name for layer in base.layers] == names
    assert [len(layer._inbound_nodes) for layer in base.layers] == calls
    for old, new in zip(weights, base.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
