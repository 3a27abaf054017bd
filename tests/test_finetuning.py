"""Fine-tuning and its controls: what changes, and what does not."""

import keras
import numpy as np
import pytest

import keras_passport as kp
from keras_passport import graph
from keras_passport.attacks import finetuning, training
from keras_passport.attacks.finetuning import METHODS
from keras_passport.attacks.opened import neutral
from support.attack_targets import assert_same, snapshot, target

RECIPE = training.Recipe(epochs=2, batch_size=20)
KERNELS = ("first_conv", "second_conv", "classes")
# A training that changes nothing shows what was there before it.
STILL = training.Recipe(epochs=1, learning_rate=1e-12)


def kernels(model):
    """Each layer's kernel, whatever else a passport layer holds."""
    return {
        name: next(
            keras.ops.convert_to_numpy(weight).copy()
            for weight in model.get_layer(name).weights
            if weight.name == "kernel"
        )
        for name in KERNELS
    }


def changed(before, after):
    return [n for n in KERNELS if not np.array_equal(before[n], after[n])]


class TestFineTuning:
    @pytest.mark.parametrize("method", METHODS)
    def test_what_trains(self, method, monkeypatch):
        # A start that is stuck would be followed by another.
        monkeypatch.setattr(training, "is_stuck", lambda *args: False)
        model, passport, data, test = target(bound=True)
        before, mine = snapshot(model), kernels(model)
        result = kp.attacks.fine_tuning(
            model,
            data,
            test,
            method=method,
            start=neutral(model),
            statistics=False,
            recipe=RECIPE,
            keep_model=True,
        )
        assert_same(before, snapshot(model))
        trained = list(KERNELS) if method.endswith("AL") else ["classes"]
        for attacked in (result.model, result.public):
            assert changed(mine, kernels(attacked)) == trained
        affine = result.model.get_layer("first_bn").gamma
        moves = not np.allclose(keras.ops.convert_to_numpy(affine), 1.0)
        assert moves == method.endswith("AL")
        assert result.accuracy == training.judge(result.model, test)[0]
        # Its owner can try the passport.
        kp.bind(result.public, passport)
        assert 0 <= training.judge(result.public, test)[0] <= 1

    @pytest.mark.parametrize("method", ["FTLL", "RTLL"])
    def test_what_it_starts_from(self, method):
        model, _, data, test = target()
        mine = model.get_layer("classes").get_weights()[0]
        result = kp.attacks.fine_tuning(
            model, data, test, method=method, recipe=STILL, keep_model=True
        )
        received = result.model.get_layer("classes").get_weights()[0]
        kept = np.allclose(received, mine, atol=1e-6)
        assert kept == method.startswith("FT")

    def test_public_runs_as_the_bound_model_if_nothing_changed(self):
        model, passport, data, test = target()
        result = kp.attacks.fine_tuning(
            model, data, test, statistics=False, recipe=STILL, keep_model=True
        )
        kp.bind(result.public, passport)
        assert training.judge(result.public, test)[0] == 1.0

    def test_wrong_method(self):
        model, _, data, test = target(count=4)
        with pytest.raises(ValueError, match="method to be one of"):
            kp.attacks.fine_tuning(model, data, test, method="FT")


class TestControls:
    def test_they_are_stock_networks(self):
        model, _, data, test = target("V1")
        mine, before = kernels(model), snapshot(model)
        for attack in (
            kp.attacks.from_scratch,
            kp.attacks.fresh_normalization,
        ):
            result = attack(model, data, test, recipe=STILL, keep_model=True)
            assert result.public is None
            assert not kp.protected_layers(result.model)
            layers = result.model._flatten_layers()
            modules = {type(layer).__module__ for layer in layers}
            assert all(module.startswith("keras.") for module in modules)
            stays = attack is kp.attacks.fresh_normalization
            for name, kernel in kernels(result.model).items():
                assert np.allclose(kernel, mine[name], atol=1e-6) == stays
            for name in ("first_bn", "second_bn"):
                gamma, beta, *_ = result.model.get_layer(name).get_weights()
                np.testing.assert_allclose(gamma, 1.0, atol=1e-6)
                np.testing.assert_allclose(beta, 0.0, atol=1e-6)
        assert_same(before, snapshot(model))

    def test_all_of_them_trains(self):
        model, _, data, test = target()
        mine = kernels(model)
        result = kp.attacks.fresh_normalization(
            model, data, test, recipe=RECIPE, keep_model=True
        )
        assert changed(mine, kernels(result.model)) == list(KERNELS)
        assert result.model.trainable_weights and all(
            layer.trainable for layer in result.model._flatten_layers()
        )

    def test_frozen_normalizations_train(self):
        """Those of an exactly protected network are published as frozen."""
        model, passport, data, test = target()
        plain = kp.unlock(kp.bind(model, passport), fold=False)
        exact, _ = kp.protect_trained(plain, seed=0)
        for attack in (
            kp.attacks.from_scratch,
            kp.attacks.fresh_normalization,
        ):
            result = attack(exact, data, test, recipe=STILL, keep_model=True)
            assert len(result.model.trainable_weights) == len(
                plain.trainable_weights
            )
        # Where the model's own flag says so already.
        result.model.get_layer("first_bn").trainable = False
        graph.thaw(result.model)
        assert result.model.get_layer("first_bn").trainable

    def test_seeds_decide_what_is_untrained(self):
        model, *_ = target(count=4)
        first, second, other = (
            kernels(finetuning._untrained(model, *seed))
            for seed in ((0, 1), (0, 1), (0, 0))
        )
        assert changed(first, second) == []
        assert changed(first, other) == list(KERNELS)
        # Nor are they the model's own, which seed 0 of Keras gave.
        assert changed(first, kernels(model)) == list(KERNELS)
        assert changed(other, kernels(model)) == list(KERNELS)

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_without_normalizations_it_has_what_attackers_have(
        self, monkeypatch, dtype
    ):
        """A scale and shift of each filter, and filters of their lengths."""
        # A start that is stuck would be followed by another.
        monkeypatch.setattr(training, "is_stuck", lambda *args: False)
        keras.utils.set_random_seed(0)
        keras.config.set_dtype_policy(dtype)
        network = keras.Sequential(
            [
                keras.Input((6, 6, 3)),
                keras.layers.SeparableConv2D(4, 3, activation="relu"),
                keras.layers.Conv2D(8, 3, name="last_conv"),
                keras.layers.LayerNormalization(),
                keras.layers.GlobalAveragePooling2D(),
                keras.layers.Dense(3, activation="softmax"),
            ]
        )
        exact, _ = kp.protect_trained(network)
        rng = np.random.default_rng(0)
        data = rng.random((60, 6, 6, 3), "float32"), np.arange(60) % 3
        given = {"recipe": STILL, "keep_model": True, "restarts": 2}
        result = kp.attacks.from_scratch(exact, data, data, **given)
        starts = [trial["start"] for trial in result.history]
        assert starts == ["neutral", "neutral"]
        assert not kp.protected_layers(result.model)
        again = kp.attacks.from_scratch(exact, data, data, **given)
        assert again.accuracies == result.accuracies

        drawn, again, other = (
            finetuning._of_its_sizes(exact, *seed).get_layer("last_conv")
            for seed in ((0, 1), (0, 1), (0, 0))
        )
        published = kp.public(exact).get_layer("last_conv")
        kernels = [
            keras.ops.convert_to_numpy(one.layer.kernel).reshape(-1, 8)
            for one in (published, drawn, again, other)
        ]
        np.testing.assert_array_equal(kernels[1], kernels[2])
        for kernel in kernels[1:]:
            np.testing.assert_allclose(
                *(np.linalg.norm(one, axis=0) for one in (kernel, kernels[0])),
                rtol=1e-5,
            )
        for one, two in ((0, 1), (0, 3), (1, 3)):
            cosines = np.sum(kernels[one] * kernels[two], axis=0) / 2
            assert np.abs(cosines).max() < 0.9
