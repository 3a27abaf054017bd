"""Pruning: which weights go, and who judges what is left."""

import keras
import numpy as np
import pytest

import keras_passport as kp
from keras_passport.attacks import training
from support.attack_targets import assert_same, snapshot, target


class TestPrune:
    @pytest.mark.parametrize("fraction", [0.0, 0.25, 0.9, 1.0])
    def test_the_smallest_of_each_kernel_go(self, fraction):
        model, *_ = target("V2", count=4)
        pruned = kp.attacks.prune(model, fraction)
        pairs = zip(model.weights, pruned.weights, strict=True)
        for own, weight in pairs:
            own, weight = map(keras.ops.convert_to_numpy, (own, weight))
            if own.ndim < 2:
                np.testing.assert_array_equal(weight, own)
                continue
            gone = weight != own
            assert gone.sum() == round(fraction * own.size)
            assert not weight[gone].any()
            if 0 < gone.sum() < own.size:
                assert np.abs(own[gone]).max() <= np.abs(own[~gone]).min()

    def test_the_model_and_its_passport_stay(self):
        model, *_ = target(bound=True, count=4)
        before = snapshot(model)
        pruned = kp.attacks.prune(model, 0.5)
        assert_same(before, snapshot(model))
        layers = kp.protected_layers(pruned).values()
        assert not any(layer.is_bound for layer in layers)

    def test_wrong_fraction(self):
        model, *_ = target(count=4)
        with pytest.raises(ValueError, match="fraction in"):
            kp.attacks.prune(model, 1.1)


class TestPruning:
    def test_its_owner_judges(self):
        model, passport, _, test = target()

        def judge(pruned):
            return {"valid": training.judge(kp.bind(pruned, passport), test)[0]}

        rows = kp.attacks.pruning(model, judge, (0.0, 0.5, 1.0))
        assert [row["fraction"] for row in rows] == [0.0, 0.5, 1.0]
        valid = [row["valid"] for row in rows]
        assert valid[0] == 1.0
        assert valid[2] < 0.6

    def test_from_none_to_nine_tenths(self):
        model, *_ = target(count=4)
        rows = kp.attacks.pruning(model, lambda pruned: {})
        assert [row["fraction"] for row in rows] == [
            *(0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
        ]
