"""Forged keys, against plain convolution and least squares by hand."""

import keras
import numpy as np
import pytest

import keras_passport as kp
from keras_passport.layers.filters import response_matrix
from support.kernel_layers import KINDS
from support.passport_layers import assert_near, build
from support.plain_models import randomize, small_resnet

CLASSES = 4


def disclosed(model):
    """What a holder of the passport can read out."""
    return {
        path: layer.hidden_parameters()
        for path, layer in kp.protected_layers(model).items()
    }


def bound(function="V3"):
    model = kp.protect(randomize(small_resnet(classes=CLASSES)), function)
    return kp.bind(model, kp.Passport.random_pattern(model))


@pytest.fixture
def data():
    x = np.random.default_rng(0).random((40, 8, 8, 3), "float32")
    return x, np.arange(40) % CLASSES


class TestResponseMatrix:
    @pytest.mark.parametrize("kernel", KINDS)
    def test_it_makes_hidden_parameters_of_any_key(self, kernel):
        layer, _ = build(kernel)
        matrix = response_matrix(layer)
        rng = np.random.default_rng(3)
        key = rng.normal(size=layer.geometry.key_shape).astype("float32")
        parts = key.reshape(-1, len(matrix), key.shape[-1] // len(matrix))
        parts = parts.transpose(1, 0, 2).reshape(len(matrix), -1)
        expected = layer.adapter.response(layer.layer, key[None])[0]
        received = np.einsum("br,bru->bu", parts, matrix).ravel()
        assert_near(received.astype("float32"), expected)

    def test_groups_are_systems_of_their_own(self):
        assert len(response_matrix(build("grouped")[0])) == 2
        assert len(response_matrix(build("depthwise")[0])) == 4
        assert len(response_matrix(build("separable")[0])) == 1


class TestForgePassport:
    @pytest.mark.parametrize("kernel", KINDS)
    def test_every_kind_of_kernel_gives_what_was_disclosed(self, kernel):
        layer, _ = build(kernel)
        model = keras.Sequential(
            [keras.Input(layer.inputs_shape[1:]), layer], name="one"
        )
        wanted = {layer.name: layer.hidden_parameters()}
        passport, systems = kp.attacks.forge_passport(model, wanted)
        row = passport.rows()[layer.name]
        for received, expected in zip(
            layer.hidden_parameters(row), wanted[layer.name], strict=True
        ):
            assert_near(received, expected, 1e-4)
        assert all(system["residual"] < 1e-5 for system in systems)

    def test_it_is_the_shortest_key(self):
        model = bound()
        wanted = disclosed(model)
        passport, _ = kp.attacks.forge_passport(model, wanted)
        for path, layer in kp.protected_layers(model).items():
            kernel = keras.ops.convert_to_numpy(layer.layer.kernel)
            kernel = kernel.reshape(-1, kernel.shape[-1]).astype("float64")
            for role, values in zip(
                ("gamma", "beta"), wanted[path], strict=True
            ):
                expected = np.linalg.lstsq(kernel.T, values, rcond=1e-6)[0]
                received = passport.keys()[path][role].ravel()
                np.testing.assert_allclose(received, expected, atol=1e-4)

    def test_a_dead_filter_asks_for_no_key(self):
        model = bound()
        path, layer = list(kp.protected_layers(model).items())[1]
        kernel = keras.ops.convert_to_numpy(layer.layer.kernel).copy()
        kernel[..., 2] = 1e-12
        layer.layer.kernel.assign(kernel)
        wanted = disclosed(model)
        passport, systems = kp.attacks.forge_passport(model, wanted)
        system = next(s for s in systems if s["layer"] == path)
        assert system["rank"] == system["columns"] - 1
        assert system["residual"] < 1e-5
        assert system["norm"] < 100
        # What no key gives is said, and the rest still reached.
        wanted[path] = tuple(np.ones(8, "float32") for _ in range(2))
        _, systems = kp.attacks.forge_passport(model, wanted)
        system = next(s for s in systems if s["layer"] == path)
        assert system["residual"] == pytest.approx(np.sqrt(1 / 8), rel=1e-3)

    def test_too_many_columns_leave_a_residual(self):
        inputs = keras.Input((6, 6, 2))
        x = keras.layers.Conv2D(8, 1, name="wide")(inputs)
        model = keras.Model(inputs, keras.layers.BatchNormalization()(x))
        model = kp.protect(model)
        rng = np.random.default_rng(0)
        wanted = {"wide": tuple(rng.normal(size=(2, 8)))}
        _, systems = kp.attacks.forge_passport(model, wanted)
        assert all(s["rank"] == 2 and s["residual"] > 0.3 for s in systems)

    def test_groups_of_channels_have_keys_of_their_own(self):
        inputs = keras.Input((6, 6, 2))
        x = keras.layers.SeparableConv2D(8, 1, name="apart")(inputs)
        x = keras.layers.BatchNormalization()(x)
        x = keras.layers.Conv2D(12, 1, groups=2, name="grouped")(x)
        model, passport = kp.protect_trained(keras.Model(inputs, x))
        groups = {
            path: layer.geometry.key_groups
            for path, layer in kp.protected_layers(model).items()
        }
        assert min(groups.values()) > 1
        wanted = disclosed(model)
        forged, systems = kp.attacks.forge_passport(model, wanted)
        assert all(system["residual"] < 1e-5 for system in systems)
        kp.bind(model, forged)
        for path, values in disclosed(model).items():
            assert_near(np.stack(values), np.stack(wanted[path]), 1e-4)

    @pytest.mark.parametrize("function", ["V1", "V2"])
    def test_what_is_public_is_not_asked_for(self, function):
        model = bound(function)
        passport, systems = kp.attacks.forge_passport(model, disclosed(model))
        assert {s["role"] for s in systems} == set(passport.function.roles)

    def test_the_forged_passport_is_kept_like_any(self, tmp_path):
        model = bound()
        passport, _ = kp.attacks.forge_passport(model, disclosed(model))
        passport.save(tmp_path / "forged.h5")
        loaded = kp.Passport.load(tmp_path / "forged.h5")
        np.testing.assert_array_equal(loaded.packed(), passport.packed())

    def test_wrong_parameters(self):
        model = bound()
        wanted = disclosed(model)
        path = next(iter(wanted))
        with pytest.raises(kp.PassportError, match="for the protected layers"):
            kp.attacks.forge_passport(model, {path: wanted[path]})
        wanted[path] = (np.ones(3), np.ones(3))
        with pytest.raises(kp.PassportError, match=r"shape \(8,\)"):
            kp.attacks.forge_passport(model, wanted)


class TestKeyForgery:
    @pytest.mark.parametrize("function", ["V1", "V2", "V3"])
    def test_it_reaches_the_valid_accuracy(self, data, function):
        model = bound(function)
        x, _ = data
        scores = keras.ops.convert_to_numpy(model(x, training=False))
        result = kp.attacks.key_forgery(
            model,
            (x, scores.argmax(-1)),
            parameters=disclosed(model),
            keep_model=True,
        )
        assert result.accuracy == 1.0
        received = result.model.predict(x, verbose=0)
        np.testing.assert_allclose(received, scores, rtol=1e-3, atol=1e-3)
        assert result.knowledge["images"] == 0
