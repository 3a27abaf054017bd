"""IERB and CERB, against the equations of the paper that has them."""

import keras
import numpy as np
import pytest

import keras_passport as kp
from keras_passport.attacks import training
from keras_passport.attacks.ambiguity import BLOCKS, Blocks
from support.attack_targets import assert_same, hidden, snapshot, target
from support.protected_models import predict


def wide_cnn(classes):
    """Layers whose channels are a multiple of 8, and are not."""
    layers = [keras.Input((8, 8, 3))]
    for channels in (32, 12):
        layers += [
            keras.layers.Conv2D(channels, 3, use_bias=False),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
        ]
    layers += [
        keras.layers.GlobalAveragePooling2D(),
        keras.layers.Dense(classes),
    ]
    return keras.Sequential(layers)


RECIPE = training.Recipe(epochs=20, batch_size=20)


def shapes_of(block, channels):
    """The paper's perceptrons, as variables: weights, then biases."""
    if block == "IERB":  # 1 -> 10 -> 1 for every scalar.
        return [(channels, 10), (channels, 10), (channels, 10), (channels,)]
    narrow = max(1, channels // 8)
    return [(channels, narrow), (narrow,), (narrow, channels), (channels,)]


class TestBlocks:
    @pytest.mark.parametrize("block", BLOCKS)
    def test_they_start_from_the_parameters(self, block):
        model, passport, (x, _), _ = target(count=10)
        blocks = Blocks(model, hidden(model, passport), block=block)
        expected = predict(kp.bind(model, passport), x)
        received = predict(blocks, x)
        np.testing.assert_allclose(received, expected, atol=1e-4)
        for gamma, beta in Blocks(model, block=block).parameters.values():
            np.testing.assert_array_equal(gamma, 1.0)
            np.testing.assert_array_equal(beta, 0.0)

    @pytest.mark.parametrize("block", BLOCKS)
    def test_what_trains_are_gamma_beta_and_the_papers_perceptrons(self, block):
        model, *_ = target(base=wide_cnn, count=4)
        expected = []
        for channels in (32, 12):
            expected += [(channels,), (channels,)]  # γ and β.
        for channels in (32, 12):
            expected += shapes_of(block, channels)
        trained = Blocks(model, block=block).trainable_weights
        assert [tuple(weight.shape) for weight in trained] == expected
        count = sum(int(np.prod(weight.shape)) for weight in trained)
        if block == "IERB":
            assert count == sum(33 * channels for channels in (32, 12))
        else:
            assert count == sum(
                2 * c + c * (c // 8) + c // 8 + (c // 8) * c + c
                for c in (32, 12)
            )

    @pytest.mark.parametrize("block", BLOCKS)
    def test_a_block_is_a_shortcut_and_two_layers_for_gamma(self, block):
        model, *_ = target(base=wide_cnn, count=4)
        blocks = Blocks(model, block=block)
        rng = np.random.default_rng(0)
        weights = []
        for weight in blocks.trainable_weights:
            weights.append(rng.normal(size=weight.shape).astype("float32"))
            weight.assign(weights[-1])
        gamma, beta = weights[:2]
        first, bias, second, shift = weights[4:8]

        def leaky(values):
            return np.where(values > 0, values, 0.01 * values)

        if block == "IERB":
            expected = [
                gamma[c]
                + second[c] @ leaky(first[c] * gamma[c] + bias[c])
                + shift[c]
                for c in range(len(gamma))
            ]
        else:
            expected = gamma + leaky(gamma @ first + bias) @ second + shift
        path = next(iter(blocks.parameters))
        received = blocks.parameters[path]
        np.testing.assert_allclose(received[0], expected, rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(received[1], beta)

    def test_reset_starts_anew(self):
        model, passport, *_ = target(count=4)
        true = hidden(model, passport)
        blocks = Blocks(model, true)
        for weight in blocks.trainable_weights:
            weight.assign(np.ones(weight.shape))
        blocks.reset(model, true)
        for path, pair in blocks.parameters.items():
            np.testing.assert_allclose(pair, true[path], atol=1e-6)


class TestAmbiguity:
    @pytest.mark.parametrize("block", BLOCKS)
    def test_it_learns_and_leaves_kernels_alone(self, block):
        model, _, data, test = target()
        before = snapshot(model)
        result = kp.attacks.ambiguity(
            model, data, test, block=block, recipe=RECIPE, keep_model=True
        )
        assert_same(before, snapshot(model))
        losses = result.history[0]["history"]["loss"]
        assert losses[-1] < losses[0]
        assert result.accuracy == training.judge(result.model, test)[0]
        for name in ("first_conv", "second_conv", "classes"):
            np.testing.assert_array_equal(
                model.get_layer(name).get_weights()[0],
                result.model.get_layer(name).get_weights()[0],
            )

    @pytest.mark.parametrize(
        "arguments, message",
        [
            ({"block": "ERB"}, "block to be one of"),
            ({"restarts": 0}, "restarts of 1 or more"),
        ],
    )
    def test_wrong_arguments(self, arguments, message):
        model, _, data, test = target(count=4)
        with pytest.raises(ValueError, match=message):
            kp.attacks.ambiguity(model, data, test, **arguments)
