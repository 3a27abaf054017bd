"""The spectral attack, on kernels in which a key was planted."""

import importlib
import json

import keras
import numpy as np
import pytest

import keras_passport as kp
from support.passport_layers import build
from support.plain_models import plain_cnn, randomize

CLASSES = 3


def dense_model():
    inputs = keras.Input((6,))
    x = inputs
    for number in range(2):
        x = keras.layers.Dense(24, use_bias=False, name=f"dense{number}")(x)
        x = keras.layers.BatchNormalization(name=f"bn{number}")(x)
        x = keras.layers.ReLU(name=f"relu{number}")(x)
    return keras.Model(inputs, keras.layers.Dense(CLASSES)(x))


def plant(model, energy=3.0, seed=0):
    """Trains, as it were, κ γᵀ into each kernel; returns γ and β."""
    rng = np.random.default_rng(seed)
    truth = {}
    for path, layer in kp.protected_layers(model).items():
        units = layer.adapter.units(layer.layer)
        kernel = keras.ops.convert_to_numpy(layer.layer.kernel)
        flat = kernel.reshape(-1, units)
        key = rng.normal(size=len(flat))
        gamma = rng.normal(size=units)
        added = np.outer(key, gamma)
        added *= energy * np.linalg.norm(flat, 2) / np.linalg.norm(added)
        layer.layer.kernel.assign((flat + added).reshape(kernel.shape))
        truth[path] = gamma, np.zeros(units)
    return truth


def share(basis, vector):
    """How much of a vector lies in a basis' span."""
    return np.sum((basis @ vector) ** 2) / np.sum(vector**2)


class TestDirections:
    def test_the_first_is_a_trained_gamma(self):
        model = kp.protect(randomize(plain_cnn()))
        truth = plant(model)
        found = kp.attacks.spectral_directions(model)
        for path, (gamma, _) in truth.items():
            basis = found[path]
            assert share(basis[:1], gamma) > 0.9
            np.testing.assert_allclose(
                basis @ basis.T, np.eye(len(basis)), atol=1e-6
            )

    def test_a_key_that_is_constant_over_the_window_is_summed_up(self):
        """Weak in the kernel, but all of it adds up; noise does not."""
        inputs = keras.Input((9, 9, 12))
        x = keras.layers.Conv2D(16, 5, name="conv")(inputs)
        model = kp.protect(
            keras.Model(inputs, keras.layers.BatchNormalization()(x))
        )
        layer = kp.protected_layers(model)["conv"]
        rng = np.random.default_rng(0)
        gamma = rng.normal(size=16)
        noise = rng.normal(size=(25, 12, 16))
        constant = np.outer(rng.normal(size=12), gamma)
        layer.layer.kernel.assign(
            (noise + 0.3 * constant).reshape(5, 5, 12, 16)
        )
        by_kernel = np.linalg.svd(noise.reshape(300, 16))[2][:1]
        basis = kp.attacks.spectral_directions(model, rank=1)["conv"]
        assert share(basis, gamma) > 0.8 > share(by_kernel, gamma)

    def test_an_untrained_kernel_says_nothing(self):
        model = kp.protect(dense_model())
        gammas = np.random.default_rng(0).normal(size=(5000, 24))
        basis = kp.attacks.spectral_directions(model)["dense1"]
        mean = np.mean([share(basis, gamma) for gamma in gammas])
        assert mean == pytest.approx(len(basis) / 24, rel=0.1)

    def test_channels_with_keys_of_their_own_have_no_direction(self):
        layer, _ = build("depthwise")
        model = keras.Sequential([keras.Input(layer.inputs_shape[1:]), layer])
        (basis,) = kp.attacks.spectral_directions(model).values()
        assert basis.shape == (0, 8)


class TestSpectral:
    def test_few_labels_tell_the_coordinates(self):
        model = kp.protect(dense_model())
        directions = kp.attacks.spectral_directions(model)
        truth = {
            path: tuple(np.sqrt(24) * basis[:2] * [[-0.9], [0.5]])
            for path, basis in directions.items()
        }
        rng = np.random.default_rng(1)
        x = rng.normal(size=(400, 6)).astype("float32")
        # The owner's net, with the statistics of all pictures.
        owned = kp.attacks.Opened(model, truth, statistics=True)
        for layer in kp.protected_layers(owned.public).values():
            layer.normalization.momentum = 0.0
        scores = keras.ops.convert_to_numpy(owned(x, training=True))
        model.set_weights(owned.public.get_weights())
        # A bias makes its classes about equally many.
        scores = scores - np.median(scores, axis=0)
        model.layers[-1].bias.assign(
            -np.median(keras.ops.convert_to_numpy(owned(x)), axis=0)
        )
        result = kp.attacks.spectral(
            model,
            (x, scores.argmax(-1)),
            (x, scores.argmax(-1)),
            fraction=0.3,
            restarts=2,
            recipe=kp.attacks.Recipe(
                epochs=15, batch_size=24, learning_rate=0.1
            ),
            keep_model=True,
        )
        assert result.accuracy > 0.6
        assert result.budget["trials"] == 2
        assert result.model.predict(x[:2], verbose=0).shape == (2, CLASSES)
        for about in result.history:
            for path, (gamma, beta) in about["parameters"].items():
                for value in map(np.array, (gamma, beta)):
                    inside = share(directions[path], value)
                    assert inside == pytest.approx(1.0, abs=1e-4)

    def test_without_data_the_first_vector_is_left(self):
        model = kp.protect(dense_model())
        truth = plant(model, energy=30.0)
        # Of each γ, the sign by which most of it is positive.
        known = {
            path: (gamma * np.sqrt(24) / np.linalg.norm(gamma), beta)
            for path, (gamma, beta) in truth.items()
        }
        known = {
            path: (gamma if gamma.sum() > 0 else -gamma, beta)
            for path, (gamma, beta) in known.items()
        }
        x = np.random.default_rng(0).normal(size=(200, 6)).astype("float32")
        owned = kp.attacks.Opened(model, known)
        y = keras.ops.convert_to_numpy(owned(x)).argmax(-1)
        result = kp.attacks.spectral(model, None, (x, y), keep_model=True)
        assert result.accuracy > 0.9
        assert result.knowledge["images"] == result.budget["epochs"] == 0
        json.dumps(result.to_dict())
        reached = result.model.predict(x, verbose=0).argmax(-1)
        assert np.mean(reached == y) == result.accuracy

    def test_a_stuck_start_is_followed_by_random_ones(self):
        model = kp.protect(dense_model())
        # Whatever γ and β are, it says the same of everything.
        model.layers[-1].kernel.assign(np.zeros((24, CLASSES)))
        x = np.random.default_rng(0).normal(size=(60, 6)).astype("float32")
        data = x, np.arange(60) % CLASSES
        recipe = kp.attacks.Recipe(epochs=1)
        result = kp.attacks.spectral(
            model, data, data, restarts=1, recipe=recipe
        )
        told = result.history[0]
        assert told["attempts"] == 3
        assert told["learning_rate"] == recipe.learning_rate
        assert told["parameters"].keys() == kp.protected_layers(model).keys()

    def test_signs_are_chosen_by_some_pictures(self, monkeypatch):
        model = kp.protect(dense_model())
        x = np.random.default_rng(0).normal(size=(300, 6)).astype("float32")
        data = x, np.arange(300) % CLASSES
        module = importlib.import_module("keras_passport.attacks.spectral")
        monkeypatch.setattr(module, "SIGNS", 30)
        seen, choose = [], module._Spanned.choose_signs

        def chosen(self, x, y):
            seen.append(np.bincount(y).tolist())
            choose(self, x, y)

        monkeypatch.setattr(module._Spanned, "choose_signs", chosen)
        recipe = kp.attacks.Recipe(epochs=1)
        kp.attacks.spectral(model, data, data, restarts=2, recipe=recipe)
        assert seen[:2] == 2 * [[10, 10, 10]]

    @pytest.mark.parametrize("arguments", [{"rank": 0}, {"restarts": 0}])
    def test_wrong_arguments(self, arguments):
        model = kp.protect(dense_model())
        data = np.zeros((4, 6), "float32"), np.arange(4) % 2
        with pytest.raises(ValueError, match="of 1 or more"):
            kp.attacks.spectral(model, data, data, **arguments)
