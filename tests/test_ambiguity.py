"""Blocks in front of made-up hidden parameters."""

import numpy as np
import pytest

import keras_passport as kp
from attack_case import assert_same, hidden, snapshot, target
from keras_passport.attacks import training
from keras_passport.attacks.ambiguity import BLOCKS, Blocks
from model_case import predict

RECIPE = training.Recipe(epochs=20, batch_size=20)


class TestBlocks:
    @pytest.mark.parametrize("chained", [False, True])
    def test_they_start_from_the_substitutes(self, chained):
        model, passport, (x, _), _ = target(count=10)
        blocks = Blocks(model, hidden(model, passport), chained=chained)
        expected = predict(kp.bind(model, passport), x)
        received = predict(blocks, x)
        np.testing.assert_allclose(received, expected, atol=1e-4)
        assert all(
            "dense" in weight.path for weight in blocks.trainable_weights
        )

    def test_a_chained_block_sees_the_one_before(self):
        """And no block of the network sees a later one."""
        model, passport, *_ = target(count=4)
        for chained in (False, True):
            blocks = Blocks(model, hidden(model, passport), chained=chained)
            rng = np.random.default_rng(0)
            for weight in blocks.trainable_weights:
                weight.assign(rng.normal(size=weight.shape))
            first, second = blocks.parameters
            before = blocks.parameters
            changed = hidden(model, passport)
            changed[first] = tuple(value + 1.0 for value in changed[first])
            blocks.assign(changed)
            after = blocks.parameters
            assert not np.allclose(after[first], before[first])
            same = np.allclose(after[second], before[second], atol=1e-6)
            assert same != chained
            blocks.assign(hidden(model, passport))
            changed = hidden(model, passport)
            changed[second] = tuple(value + 1.0 for value in changed[second])
            blocks.assign(changed)
            np.testing.assert_allclose(blocks.parameters[first], before[first])

    def test_a_block_is_a_shortcut_and_two_layers(self):
        model, passport, *_ = target(count=4)
        true = hidden(model, passport)
        blocks = Blocks(model, true, expansion=3)
        rng = np.random.default_rng(0)
        weights = []
        for weight in blocks.trainable_weights:
            weights.append(rng.normal(size=weight.shape).astype("float32"))
            weight.assign(weights[-1])
        expand, bias, contract, shift = weights[:4]
        path = next(iter(true))
        h = true[path][0]
        assert expand.shape == (len(h), 3 * len(h))
        inner = h @ expand + bias
        inner = np.where(inner > 0, inner, 0.2 * inner)
        expected = h + inner @ contract + shift
        received = blocks.parameters[path][0]
        np.testing.assert_allclose(received, expected, rtol=1e-4, atol=1e-4)

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
            ({"expansion": 0}, "expansion of 1 or more"),
            ({"restarts": 0}, "restarts of 1 or more"),
        ],
    )
    def test_wrong_arguments(self, arguments, message):
        model, _, data, test = target(count=4)
        with pytest.raises(ValueError, match=message):
            kp.attacks.ambiguity(model, data, test, **arguments)
