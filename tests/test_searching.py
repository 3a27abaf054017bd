"""Recipes tried alike, and what an attack gains over a tuned control."""

import dataclasses

import keras
import numpy as np
import pytest

import keras_passport as kp
from keras_passport import metrics
from keras_passport.attacks.recipe import Recipe
from keras_passport.attacks.result import advantage, packed, unpacked
from keras_passport.attacks.searching import (
    Search,
    enough_epochs,
    is_converged,
    kept_epoch,
)
from keras_passport.attacks.training import train
from support.attack_targets import target

RECIPE = Recipe(epochs=4, batch_size=20)


def went(search, worth, converged=lambda recipe: True):
    """The recipes that a search trained, and the one it chose."""
    trained = []

    def reach(recipe, short):
        trained.append((recipe.optimizer, recipe.learning_rate, recipe.epochs))
        stands = worth(recipe)
        return {"standing": stands, "converged": converged(recipe)}

    return trained, search.go(RECIPE, reach)


class TestSearch:
    search = Search(
        tried=(("sgd", 0.1), ("sgd", 0.2), ("adam", 0.3)),
        short=0.5,
        doublings=2,
    )

    def test_the_best_few_are_trained_to_the_end(self):
        trained, best = went(self.search, lambda recipe: recipe.learning_rate)
        assert trained == [
            ("sgd", 0.1, 2),
            ("sgd", 0.2, 2),
            ("adam", 0.3, 2),
            ("adam", 0.3, 4),
            ("sgd", 0.2, 4),
        ]
        expected = dataclasses.replace(
            RECIPE, optimizer="adam", learning_rate=0.3
        )
        assert best == expected

    def test_what_has_not_converged_is_trained_longer(self):
        trained, best = went(
            dataclasses.replace(self.search, finalists=1),
            lambda recipe: -abs(recipe.epochs - 8),
            lambda recipe: False,
        )
        assert [epochs for _, _, epochs in trained] == [2, 2, 2, 4, 8, 16]
        assert best.epochs == 8

    @pytest.mark.parametrize(
        "arguments, message",
        [
            ({"tried": ()}, "recipes to try"),
            ({"finalists": 0}, "1 finalist or more"),
            ({"short": 0.0}, "short in "),
        ],
    )
    def test_wrong_arguments(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            Search(**arguments)


def test_converged_is_what_gets_no_better_in_its_last_quarter():
    assert is_converged([0.1, 0.4, 0.5, 0.5], 100)
    assert is_converged([0.1, 0.4, 0.5, 0.54], 100)
    assert not is_converged([0.1, 0.4, 0.5, 0.56], 100)
    assert not is_converged([0.1, 0.4, 0.5, 0.54], 10_000)
    assert not is_converged([0.5], 100)


# Of 100 examples at 50 % a standard error is 5 points.
@pytest.mark.parametrize(
    "accuracies, losses, examples, kept",
    [
        ([0.1, 0.5, 0.47, 0.41], [2, 1, 1, 1], 100, 3),
        ([0.1, 0.5, 0.47, 0.39], [2, 1, 1, 1], 100, 2),
        ([0.1, 0.5, 0.48, 0.41], [2, 1, 1, 1], 10_000, 1),
        # What is perfect has no error, and the latest such is kept.
        ([1.0, 1.0, 0.99], [1, 2, 1], 100, 1),
        # Scores that are not finite count as class 0, which may be right.
        ([0.1, 0.5, 0.9], [2, 1, np.nan], 100, 1),
        ([0.1, 0.5, 0.5], [np.inf, np.nan, 1], 100, 2),
        ([0.1, 0.5, 0.5], [np.nan] * 3, 100, 0),
        ([0.3], [1], 1, 0),
    ],
)
def test_the_latest_of_the_best_epochs_is_kept(
    accuracies, losses, examples, kept
):
    assert kept_epoch(accuracies, losses, examples) == kept


@pytest.mark.parametrize("rate", [0.01, 30.0])
def test_a_training_ends_with_the_weights_of_the_epoch_it_kept(rate):
    """Large steps: the last epochs may be worse."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(120, 6)).astype("float32")
    y = np.argmax(x @ rng.normal(size=(6, 3)), axis=-1)
    model = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(3, kernel_initializer="zeros"),
        ]
    )
    seen = []
    history = train(
        model,
        (x[:80], y[:80]),
        (x[80:], y[80:]),
        Recipe(12, 20, "sgd", rate, schedule="constant"),
        seed=0,
        from_logits=True,
        callbacks=(
            keras.callbacks.LambdaCallback(
                on_epoch_end=lambda *_: seen.append(model.get_weights())
            ),
        ),
    )
    kept = kept_epoch(history["val_accuracy"], history["val_loss"], 40)
    assert rate < 1 or kept < 11  # Both are tried.
    for now, then in zip(model.get_weights(), seen[kept], strict=True):
        np.testing.assert_array_equal(now, then)


@pytest.mark.parametrize(
    "fraction, epochs",
    [(0.01, 100), (0.05, 100), (0.1, 68), (0.25, 40), (1.0, 15)],
)
def test_few_pictures_are_passed_over_more_often(fraction, epochs):
    assert enough_epochs(fraction) == epochs


@pytest.mark.parametrize(
    "pictures, fraction, epochs",
    [
        (500, 1.0, 100),
        (50_000, 0.05, 100),
        (12_500, 1.0, 40),
        (60_000, 1.0, 15),
    ],
)
def test_tuned_attackers_have_enough_epochs(pictures, fraction, epochs):
    """Whether they have a part of many pictures, or all of few."""
    data = np.zeros((pictures, 1), "float32"), np.zeros(pictures, int)
    asked = []

    def attack(model, data, test, options):
        asked.append(options.recipe.epochs)

    kp.attacks.tuned(attack, None, data, data, fraction=fraction)
    assert asked == [epochs]


@pytest.mark.parametrize("attack", ["from_scratch", "ambiguity"])
def test_every_attack_can_be_tuned(attack):
    model, _, data, test = target(count=60)
    search = Search(
        tried=(("sgd", 1e-9), ("adam", 0.01)), short=0.5, finalists=1
    )
    search = dataclasses.replace(search, doublings=0)
    own = {"block": "IERB"} if attack == "ambiguity" else {}
    result = kp.attacks.tuned(
        getattr(kp.attacks, attack),
        model,
        data,
        test,
        recipe=RECIPE,
        search=search,
        restarts=2,
        keep_model=True,
        **own,
    )
    told = [(t["optimizer"], t["epochs"]) for t in result.history]
    # The first trial's search, and the second one by the best recipe.
    [leader] = {name for name, epochs in told if epochs == 4}
    assert told == [("sgd", 2), ("adam", 2), (leader, 4), (leader, 4)]
    # 45 pictures to train on, 8 a step, of which some make no full step.
    tries = [t["attempts"] for t in result.history]
    epochs = 2 + 2 + 4 * tries[2] + 4 * tries[3]
    assert result.budget["steps"] == 5 * epochs
    assert result.budget["seen"] == 40 * epochs
    right = unpacked(result.right, len(test[1]))
    scores = keras.ops.convert_to_numpy(result.model(test[0]))
    np.testing.assert_array_equal(right, scores.argmax(-1) == test[1])
    assert result.accuracy == pytest.approx(right.mean())


def result_of(right):
    return kp.attacks.AttackResult(
        "attack",
        accuracies=(float(np.mean(right)),),
        entropies=(0.0,),
        knowledge={},
        budget={},
        seconds=0.0,
        right=packed(right),
    )


class TestAdvantage:
    def test_it_is_the_difference_to_the_control(self):
        rng = np.random.default_rng(0)
        control = rng.random(1003) < 0.5
        attack = control | (rng.random(1003) < 0.1)
        found = advantage(result_of(attack), result_of(control), 1003)
        expected = 100 * (attack.mean() - control.mean())
        assert found.value == pytest.approx(expected)
        assert 0 < found.low < found.value < found.high
        # Where nobody knows which were right, less is certain.
        bare = dataclasses.replace(result_of(attack), right="")
        wide = advantage(bare, result_of(control), 1003)
        assert wide.value == found.value
        assert wide.low < found.low and wide.high > found.high

    def test_the_interval_covers_as_often_as_it_says(self):
        rng = np.random.default_rng(0)
        covered = 0
        for _ in range(300):
            hard = rng.random(400) < 0.4
            first = np.where(hard, rng.random(400) < 0.2, rng.random(400) < 0.9)
            second = np.where(
                hard, rng.random(400) < 0.1, rng.random(400) < 0.85
            )
            low, high = metrics.advantage_interval(
                int(first.sum()),
                int(second.sum()),
                400,
                both=int((first & second).sum()),
            )
            # 0.4 * 0.2 + 0.6 * 0.9 - 0.4 * 0.1 - 0.6 * 0.85
            covered += low <= 7.0 <= high
        assert 0.92 <= covered / 300 <= 0.99

    def test_alike_answers_leave_little_doubt(self):
        low, high = metrics.advantage_interval(50, 50, 100, both=50)
        assert low == pytest.approx(0, abs=2) and high == pytest.approx(
            0, abs=2
        )
        for both in (51, -1):
            with pytest.raises(ValueError, match="both"):
                metrics.advantage_interval(50, 50, 100, both=both)

    def test_results_keep_it_in_json(self):
        result = result_of(np.arange(9) % 3 == 0)
        again = kp.attacks.AttackResult.from_dict(result.to_dict())
        assert again == result
