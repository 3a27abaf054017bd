"""What `protect` leaves alone and says so, what it refuses, and its report."""

import json
import re

import keras
import numpy as np
import pytest
from keras import layers

import keras_passport as kp
from support.graphs import (
    Block,
    assert_near,
    conv_bn,
    image_model,
    random_inputs,
)
from support.marks import marked, needs_keras
from support.plain_models import (
    nested_model,
    plain_cnn,
    randomize,
    small_resnet,
)
from support.truth import NORMALIZATIONS, plain_response


def shared_kernel(x):
    conv = layers.Conv2D(6, 3, name="conv")
    return [
        layers.BatchNormalization(name=name)(conv(y))
        for name, y in (("bn", x), ("bn_2", x * 2))
    ]


def shared_normalization(x):
    bn = layers.BatchNormalization(name="bn")
    return [
        bn(layers.Conv2D(6, 3, name=name)(x)) for name in ("conv", "conv_2")
    ]


def read_twice(x):
    y = layers.Conv2D(6, 3, name="conv")(x)
    return [layers.BatchNormalization(name="bn")(y), layers.ReLU()(y)]


def kernel_is_output(x):
    y = layers.Conv2D(6, 3, name="conv")(x)
    return [layers.BatchNormalization(name="bn")(y), y]


def in_two_models(x):
    inner = keras.Input((8, 8, 3))
    y = layers.Conv2D(6, 3, name="conv")(inner)
    z = layers.BatchNormalization(name="bn")(y)
    whole = keras.Model(inner, z, name="whole")
    return [whole(x), keras.Model(inner, y, name="half")(x)]


def exactly(model):
    return kp.protect_trained(model)[0]


def then(*parts, before=()):
    """Layers, and a batch normalisation behind them."""

    def graph(x):
        for make in (*before, *parts):
            x = make()(x)
        return layers.BatchNormalization(name="bn")(x)

    graph.__name__ = "then"
    return graph


def conv():
    return layers.Conv2D(6, 3, name="conv")


REFUSED = {
    "shared kernel": (shared_kernel, "bn", "called 2 times"),
    "shared normalization": (shared_normalization, "bn", "called 2 times"),
    "read twice": (read_twice, "bn", "'conv' is used elsewhere"),
    "is output": (kernel_is_output, "bn", "'conv' is used elsewhere"),
    "two models": (in_two_models, "whole/bn", "part of another model"),
    "activation": (then(conv, layers.ReLU), "bn", "no kernel layer"),
    "dropout": (
        then(conv, lambda: layers.Dropout(0.1)),
        "bn",
        "no kernel layer",
    ),
    "input": (then(), "bn", "follows the model's input"),
    "no kernel for it": (
        then(conv, lambda: layers.Conv2D(6, 3), layers.ReLU),
        "conv",
        "no normalisation",
    ),
    "axis": (
        lambda x: layers.BatchNormalization(axis=1, name="bn")(conv()(x)),
        "bn",
        "axis 1",
    ),
    "axes": (
        lambda x: layers.LayerNormalization(axis=[2, 3], name="bn")(conv()(x)),
        "bn",
        "several axes",
    ),
    "renorm": (
        lambda x: layers.BatchNormalization(renorm=True, name="bn")(conv()(x)),
        "bn",
        "renorm",
    ),
    "einsum": (
        then(
            lambda: layers.EinsumDense(
                "abcd,cde->abe", output_shape=(8, 5), name="einsum"
            )
        ),
        "bn",
        "equation",
    ),
    "inside": (
        lambda x: Block(name="block")(x),
        "block/inner_bn",
        "inside layer 'block'",
    ),
}


LATER = {"renorm": needs_keras("3.14", "no batch renormalisation")}


@pytest.mark.parametrize("name", marked(REFUSED, LATER))
def test_what_cannot_be_protected_says_why_and_stays(name):
    graph, path, reason = REFUSED[name]
    base = randomize(image_model(lambda x: [graph(x), conv_bn(x, "good")]))
    before = base.get_weights()
    model = kp.protect(base)
    assert model.report.protected == ["good_conv"]
    rows = {row.path: row for row in model.report.rows}
    assert not rows[path].protected and re.search(reason, rows[path].reason)
    assert len(rows) == sum(
        isinstance(layer, NORMALIZATIONS) or hasattr(layer, "kernel")
        for layer in base._flatten_layers()
    )
    passport = kp.Passport.random_pattern(model, key_scaling="paper", seed=0)
    entry = passport.layers["good_conv"]
    for role in ("gamma", "beta"):
        value = plain_response(
            base.get_layer("good_conv"), getattr(entry, role)
        )
        getattr(base.get_layer("good_bn"), role).assign(value)
    x = random_inputs(base)
    assert_near(kp.bind(model, passport)(x), base(x), 1e-5)
    base.set_weights(before)


def subclassed():
    class Own(keras.Model):
        def call(self, inputs):
            return inputs

    return Own()


@pytest.mark.parametrize(
    "make, options, message",
    [
        (subclassed, {}, "subclassed.*PassportNormalization"),
        (lambda: keras.Sequential([conv()]), {}, "built.*Sequential"),
        (lambda: "model.keras", {}, "keras.Model.*model.keras"),
        (lambda: layers.Dense(3), {}, "keras.Model"),
        (
            lambda: image_model(lambda x: layers.ReLU()(conv()(x))),
            {},
            "nothing to protect",
        ),
        (plain_cnn, {"function": "V4"}, "V1, V2, V3.*V4"),
        (plain_cnn, {"select": "first"}, "'first': no kernel layer"),
        (
            plain_cnn,
            {"select": ["first_conv", "classes"]},
            "'classes': no normalisation",
        ),
        (plain_cnn, {"select": "first_bn"}, "'first_bn'"),
        (plain_cnn, {"select": re.compile("x{9}")}, "nothing to protect"),
        (plain_cnn, {"select": []}, "nothing to protect"),
        (plain_cnn, {"select": lambda path, layer: False}, "nothing to"),
    ],
)
def test_refusals(make, options, message):
    with pytest.raises(ValueError, match=re.compile(message, re.DOTALL)) as e:
        kp.protect(make(), **options)
    assert "Expected" in str(e.value) and "Received" in str(e.value)


@pytest.mark.parametrize(
    "select, expected",
    [
        ("outer_conv", ["outer_conv"]),
        (("functional/inner_conv",), ["functional/inner_conv"]),
        (
            iter(["sequential/inner_conv", "outer_conv"]),
            ["outer_conv", "sequential/inner_conv"],
        ),
        (
            re.compile("inner"),
            ["functional/inner_conv", "sequential/inner_conv"],
        ),
        (
            lambda path, layer: layer.strides == (2, 2),
            ["sequential/inner_conv"],
        ),
    ],
)
def test_select(select, expected):
    model = kp.protect(nested_model(), select=select)
    assert model.report.protected == expected
    assert list(kp.protected_layers(model)) == expected
    left = [row.reason for row in model.report.rows if not row.protected]
    assert left.count("not selected") == 2 * (3 - len(expected))


def test_protecting_in_two_steps():
    base = randomize(small_resnet())
    first = kp.protect(base, "V2", select="stem_conv")
    second = kp.protect(first, "V2")
    whole = kp.protect(base, "V2")
    assert second.report.protected == whole.report.protected
    passport = kp.Passport.random_pattern(whole, seed=0)
    x = random_inputs(base)
    assert_near(kp.bind(second, passport)(x), kp.bind(whole, passport)(x))


# The report ----------------------------------------------------------------


def test_the_report_has_a_row_for_each_layer_that_matters():
    report = kp.protect(nested_model(), "V2").report
    rows = [(r.path, r.layer_type, r.role, r.protected) for r in report.rows]
    expected = []
    for prefix in ("outer", "functional/inner", "sequential/inner"):
        expected += [
            (f"{prefix}_conv", "Conv2D", "kernel", True),
            (f"{prefix}_bn", "BatchNormalization", "normalization", True),
        ]
    assert rows == [*expected, ("classes", "Dense", "kernel", False)]
    assert all(row.reason for row in report.rows)
    content = json.loads(json.dumps(report.to_dict()))
    assert content["function"] == "V2" and content["protected"] == 3
    assert [row["path"] for row in content["rows"]] == [r[0] for r in rows]


@pytest.mark.parametrize("columns", (80, 120))
def test_the_report_fits_in_a_terminal(columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(columns))
    model = keras.applications.MobileNetV2(
        weights=None, input_shape=(32, 32, 3), alpha=0.35
    )
    report = kp.inspect(model)
    print(report)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= columns
    assert lines[-1] == "52 of 53 kernel layers protected"


NO_MODELS = {
    "bind": lambda one: kp.bind(one, None),
    "unbind": kp.unbind,
    "calibrate": kp.calibrate,
    "reinitialize": kp.reinitialize,
    "unlock": lambda one: kp.unlock(one, None),
    "public": kp.public,
    "require_passport": kp.require_passport,
    "protected_layers": kp.protected_layers,
    "random_pattern": kp.Passport.random_pattern,
    "secret_checkpoint": lambda one: kp.secret_checkpoint(one).__enter__(),
    "export_saved_model": lambda one: kp.export_saved_model(one, "served"),
}


@pytest.mark.parametrize("verb", NO_MODELS)
@pytest.mark.parametrize("given", ("model.keras", None))
def test_the_path_of_a_model_is_no_model(verb, given):
    name = type(given).__name__
    with pytest.raises(kp.PassportError, match=f"Received: a {name}"):
        NO_MODELS[verb](given)


class Standardized(layers.Conv2D):
    """A convolution of kernels without a mean, as BiT and NFNets have it."""

    def convolution_op(self, inputs, kernel):
        kernel -= keras.ops.mean(kernel, axis=(0, 1, 2), keepdims=True)
        return super().convolution_op(inputs, kernel)


@pytest.mark.parametrize("protect", [kp.protect, exactly])
def test_kernel_layers_that_nobody_registered_are_in_the_report(protect):
    """Their kernels are published as they are: that must not go unsaid."""
    inputs = keras.Input((8, 8, 3))
    x = Standardized(4, 3, name="standardized")(inputs)
    x = layers.Conv2D(4, 3, name="plain")(layers.ReLU()(x))
    base = keras.Model(inputs, layers.BatchNormalization()(x))
    model = protect(base)
    row = {row.path: row for row in model.report.rows}["standardized"]
    assert (row.role, row.protected) == ("kernel", False)
    assert "'convolution_op'" in row.reason
    assert "register_kernel_layer" in row.reason
    assert str(model.report).endswith("1 of 2 kernel layers protected")
    kept = [model.get_layer(row.path), base.get_layer(row.path)]
    np.testing.assert_array_equal(*(layer.get_weights()[0] for layer in kept))
    if protect is exactly:
        images = random_inputs(base)
        assert_near(model(images), base(images))
