"""Signs of γ, predicted from kernels alone."""

import keras
import numpy as np
import pytest

import keras_passport as kp
from keras_passport.attacks import Orientation, orientation
from keras_passport.attacks.recipe import Recipe
from keras_passport.attacks.result import unpacked
from keras_passport.layers import filters, kernels
from support.attack_targets import target
from support.known_statistics import pictures
from support.plain_models import plain_cnn, small_resnet
from support.protected_models import predict

RECIPE = Recipe(epochs=1, batch_size=20)


def lopsided(model, signs=False, seed=0):
    """Gives kernels filters with a negative sum and a long positive tail.

    Args:
        model: Plain or protected.
        signs: Whether filters are negated at random.

    Returns:
        The signs, by the kernel layer's name.
    """
    rng = np.random.default_rng(seed)
    drawn = {}
    for layer in model._flatten_layers():
        if not isinstance(layer, keras.layers.Conv2D):
            continue
        shape = layer.kernel.shape
        values = rng.gamma(1.0, size=shape) - 1.0
        values -= 0.15 + 0.5 * rng.normal(size=(1, 1, 1, shape[-1])) * 0.1
        drawn[layer.name] = np.ones(shape[-1])
        if signs:
            drawn[layer.name] = rng.choice([-1.0, 1.0], shape[-1])
        layer.kernel.assign(values * drawn[layer.name])
    return drawn


class TestOddStatistics:
    @pytest.mark.parametrize(
        "layer, shape",
        [
            (keras.layers.Conv2D(6, 3), (8, 8, 4)),
            (keras.layers.Conv2D(6, 1, groups=2), (8, 8, 4)),
            (keras.layers.DepthwiseConv2D(3), (8, 8, 4)),
            (keras.layers.Dense(6), (7,)),
            (keras.layers.SeparableConv2D(6, 3), (8, 8, 4)),
        ],
    )
    def test_they_are_odd_and_know_no_size(self, layer, shape):
        layer.build((None, *shape))
        adapter = kernels.adapter_for(layer)
        found = filters.odd_statistics(adapter, layer)
        assert len(found) == adapter.units(layer)
        variable = layer.weights[-2] if layer.use_bias else layer.weights[-1]
        variable.assign(-3.0 * keras.ops.convert_to_numpy(variable))
        changed = filters.odd_statistics(adapter, layer)
        np.testing.assert_allclose(changed, -found, rtol=1e-3, atol=1e-4)

    def test_sum_and_skewness_are_those_of_the_filter(self):
        layer = keras.layers.Conv2D(5, 3)
        layer.build((None, 8, 8, 4))
        found = filters.odd_statistics(kernels.adapter_for(layer), layer)
        kernel = keras.ops.convert_to_numpy(layer.kernel).reshape(-1, 5)
        unit = kernel / np.sqrt(np.mean(kernel**2, axis=0))
        np.testing.assert_allclose(found[:, 0], unit.mean(0), atol=1e-5)
        np.testing.assert_allclose(found[:, 1], (unit**3).mean(0), atol=1e-4)
        ends = unit.max(0) + unit.min(0)
        np.testing.assert_allclose(found[:, 3], ends, atol=1e-4)


class TestOrientation:
    def test_signs_that_follow_the_filters_fall(self):
        networks = [small_resnet() for _ in range(4)]
        for number, network in enumerate(networks):
            lopsided(network, seed=number)
        model = kp.protect(small_resnet())
        signs = lopsided(model, signs=True, seed=9)
        parameters = Orientation.fit(networks).parameters(model)
        right = np.concatenate(
            [
                np.sign(gamma) == signs[path.split("/")[-1]]
                for path, (gamma, _) in parameters.items()
            ]
        )
        assert right.mean() > 0.9

    def test_a_network_whose_signs_follow_the_filters_falls(self):
        networks = [small_resnet() for _ in range(4)]
        for number, network in enumerate(networks):
            lopsided(network, seed=number)
        model = kp.protect(small_resnet())
        lopsided(model, seed=9)
        kp.bind(model, kp.Passport.random_pattern(model, seed=1))
        rng = np.random.default_rng(3)
        for layer in kp.protected_layers(model).values():
            kernel = keras.ops.convert_to_numpy(layer.layer.kernel)
            signs = rng.choice([-1.0, 1.0], kernel.shape[-1])
            layer.layer.kernel.assign(kernel * signs)
            layer.set_hidden_parameters(gamma=signs, beta=0.0 * signs)
        kp.estimate_statistics(model, [pictures(256, seed=9)])
        last = model.layers[-1].kernel
        last.assign(rng.normal(size=last.shape))
        # Classes that are equally frequent, as far as scores go.
        x = pictures(300, seed=6)
        scores = predict(model, x)
        model.layers[-1].bias.assign(-scores.mean(0))
        scores = scores - scores.mean(0)
        test = x, scores.argmax(-1)
        result = orientation(kp.public(model), None, test, networks=networks)
        neutral = kp.attacks.Opened(kp.public(model))
        without = np.mean(predict(neutral, x).argmax(-1) == test[1])
        assert result.accuracy > without + 0.1

    def test_symmetric_filters_tell_nothing(self):
        networks = [plain_cnn() for _ in range(4)]
        for number, network in enumerate(networks):
            lopsided(network, seed=number)
        model = kp.protect(plain_cnn())
        rng = np.random.default_rng(3)
        for layer in kp.protected_layers(model).values():
            layer.layer.kernel.assign(rng.normal(size=layer.layer.kernel.shape))
        signs = rng.choice([-1, 1], 20)
        parameters = Orientation.fit(networks).parameters(model)
        found = np.concatenate([np.sign(g) for g, _ in parameters.values()])
        assert 4 <= np.sum(found == signs) <= 16

    def test_filter_and_gamma_are_negated_together(self):
        network = plain_cnn()
        lopsided(network)
        expected = Orientation.fit([network])
        for name in ("first", "second"):
            kernel = network.get_layer(f"{name}_conv").kernel
            gamma = network.get_layer(f"{name}_bn").gamma
            kernel.assign(-keras.ops.convert_to_numpy(kernel))
            gamma.assign(-keras.ops.convert_to_numpy(gamma))
        found = Orientation.fit([network])
        np.testing.assert_allclose(
            found.regression.weights, expected.regression.weights, rtol=1e-3
        )

    def test_networks_without_a_scale_are_refused(self):
        dense = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
        with pytest.raises(kp.PassportError, match="normalisations that scale"):
            Orientation.fit([dense])

    def test_a_network_of_ones_own_is_trained_if_none_is_given(self):
        model, _, data, test = target()
        result = orientation(model, data, test, recipe=RECIPE, fraction=0.5)
        # By which it is compared with the control, picture by picture.
        assert result.right
        right = unpacked(result.right, len(test[1]))
        assert np.mean(right) == pytest.approx(result.accuracy)
        assert result.budget["steps"] > 0 and result.knowledge["labels"]
        start = result.history[0]["parameters"]
        assert {abs(v) for g, _ in start.values() for v in g} == {1.0}
        free = orientation(model, None, test, networks=[plain_cnn()])
        assert not free.knowledge["labels"]

    def test_what_hides_no_gamma_is_refused(self):
        model, _, data, test = target("V2")
        with pytest.raises(kp.PassportError, match="hides γ"):
            orientation(model, data, test)
