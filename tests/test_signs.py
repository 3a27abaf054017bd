"""A search over the signs of γ."""

import numpy as np

import keras_passport as kp
from keras_passport.attacks import Recipe, signs
from support.attack_targets import assert_same, hidden, snapshot, target


def test_starts_flips_and_what_comes_after_them():
    model, _, data, test = target()
    before = snapshot(model)
    result = kp.attacks.sign_search(
        *(model, data, test),
        starts=2,
        flips=3,
        recipe=Recipe(epochs=1, batch_size=20),
    )
    assert_same(before, snapshot(model))
    assert len(result.accuracies) == len(result.history) == 3
    epochs = sum(about["attempts"] for about in result.history)
    assert result.budget["trials"] == 3
    assert result.budget["epochs"] == epochs
    assert 0 <= result.history[-1]["flipped"] <= 3


def test_small_starts_are_of_both_signs():
    model, *_ = target()
    starts = [signs._small(kp.public(model), [0, n, 0]) for n in range(2)]
    for gamma, beta in starts[0].values():
        np.testing.assert_allclose(gamma, signs.SMALL)
        np.testing.assert_array_equal(beta, 0)
    drawn = np.concatenate([gamma for gamma, _ in starts[1].values()])
    np.testing.assert_allclose(np.abs(drawn), signs.SMALL)
    assert np.ptp(drawn) > 0


def test_signs_are_changed_where_the_loss_says_so():
    model, passport, data, _ = target()
    right = hidden(model, passport)
    gamma, beta = right["first_conv"]
    flipped = np.where(np.arange(len(gamma)) == 1, -gamma, gamma)
    wrong = {**right, "first_conv": (flipped, beta)}
    judge = signs._Judge(kp.public(model), *data)
    found, count = judge.flipped(wrong, 100)
    assert count >= 1 and judge.loss(found) < judge.loss(wrong)
    unchanged, none = judge.flipped(wrong, 0)
    assert unchanged is wrong and none == 0
