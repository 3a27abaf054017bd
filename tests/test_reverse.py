"""RevA, against the truth about the model that it attacks."""

import dataclasses

import keras
import numpy as np
import pytest

import keras_passport as kp
from keras_passport.attacks import labelled, reverse, training
from keras_passport.attacks.opened import neutral
from support.attack_targets import assert_same, hidden, snapshot, target
from support.plain_models import sequential_cnn, small_resnet
from support.protected_models import predict

QUICK = training.Recipe(epochs=2, batch_size=20, learning_rate=0.05)
# One that leaves γ and β where they are.
STILL = dataclasses.replace(QUICK, epochs=1, learning_rate=1e-12)


class TestOpened:
    @pytest.mark.parametrize(
        "function, base",
        [("V1", sequential_cnn), ("V2", small_resnet), ("V3", small_resnet)],
    )
    def test_true_parameters_give_the_bound_models_outputs(
        self, function, base
    ):
        model, passport, (x, _), _ = target(function, base, count=10)
        opened = kp.attacks.Opened(model, hidden(model, passport))
        expected = predict(kp.bind(model, passport), x)
        for attacked in (opened, opened.plain()):
            received = predict(attacked, x)
            np.testing.assert_allclose(received, expected, atol=1e-4)

    def test_plain_is_made_of_stock_layers(self):
        model, *_ = target(count=4)
        plain = kp.attacks.Opened(model).plain()
        modules = {type(layer).__module__ for layer in plain._flatten_layers()}
        assert all(module.startswith("keras.") for module in modules)

    def test_neutral_takes_what_the_model_shows(self):
        for function, shown in (("V1", 1), ("V2", 0)):
            model, passport, *_ = target(function, count=4)
            true = hidden(model, passport)
            for path, pair in neutral(model).items():
                np.testing.assert_array_equal(pair[shown], true[path][shown])
                assert set(pair[1 - shown]) == {float(shown)}

    def test_only_what_is_named_trains(self):
        model, *_ = target(count=4)
        opened = kp.attacks.Opened(model, kernels={"classes"}, affine=False)
        names = [weight.path for weight in opened.trainable_weights]
        assert [name.split("/")[-2:] for name in names] == [
            ["classes", "kernel"],
            ["classes", "bias"],
        ]

    def test_protected_shows_the_parameters_that_are_not_hidden(self):
        model, passport, *_ = target("V2", count=4)
        true = hidden(model, passport)
        changed = {path: (g + 1, b) for path, (g, b) in true.items()}
        opened = kp.attacks.Opened(model, changed)
        received = hidden(opened.protected(), passport)
        for path, (gamma, beta) in received.items():
            np.testing.assert_allclose(gamma, changed[path][0])
            np.testing.assert_allclose(beta, true[path][1], atol=1e-6)


class TestReverseEngineering:
    @pytest.mark.parametrize("function", ["V1", "V3"])
    def test_hidden_parameters_in_the_clear_fall_at_once(self, function):
        model, passport, data, test = target(function)
        result = kp.attacks.reverse_engineering(
            model,
            data,
            test,
            start=hidden(model, passport),
            statistics=False,
            recipe=STILL,
        )
        assert result.accuracy == 1.0
        assert result.history[0]["history"]["val_accuracy"] == [1.0]
        assert result.history[0]["start"] == "given"

    @pytest.mark.parametrize("statistics", [True, False])
    def test_kernels_stay_and_parameters_move(self, statistics):
        model, passport, data, test = target()
        result = kp.attacks.reverse_engineering(
            model,
            data,
            test,
            statistics=statistics,
            recipe=QUICK,
            keep_model=True,
        )
        for own, weight in zip(
            model.weights, result.public.weights, strict=True
        ):
            moves = statistics and "moving" in weight.path
            same = np.array_equal(
                *map(keras.ops.convert_to_numpy, (own, weight))
            )
            assert same == (not moves), weight.path
        first = result.model.get_layer("first_bn")
        assert not np.allclose(keras.ops.convert_to_numpy(first.gamma), 1.0)
        assert not np.allclose(keras.ops.convert_to_numpy(first.beta), 0.0)

    def test_it_learns(self):
        model, _, data, test = target()
        recipe = dataclasses.replace(QUICK, epochs=20, learning_rate=0.1)
        result = kp.attacks.reverse_engineering(
            model, data, test, recipe=recipe
        )
        losses = result.history[0]["history"]["loss"]
        assert min(losses) < 0.9 * losses[0]

    def test_result_is_of_the_model_that_it_holds(self):
        model, _, data, test = target()
        result = kp.attacks.reverse_engineering(
            model, data, test, recipe=QUICK, restarts=2, keep_model=True
        )
        assert len(set(map(str, result.history))) == 2
        assert result.accuracy == training.judge(result.model, test)[0]
        assert result.budget["trials"] == 2

    def test_what_is_bound_does_not_matter_and_stays(self):
        model, passport, data, test = target()
        before = snapshot(model)
        free = kp.attacks.reverse_engineering(model, data, test, recipe=QUICK)
        assert_same(before, snapshot(model))
        kp.bind(model, passport)
        before = snapshot(model)
        bound = kp.attacks.reverse_engineering(model, data, test, recipe=QUICK)
        assert_same(before, snapshot(model))
        assert bound.history == free.history
        assert bound.accuracies == free.accuracies

    def test_training_again_with_what_is_compiled_is_like_the_first(self):
        model, _, data, test = target()

        def attack(opener):
            return training.run(
                "attack",
                [opener.trial("random", True, QUICK, [0])],
                data,
                test,
                seed=0,
                knowledge={},
            ).history

        opener = reverse.Opener(model)
        assert attack(opener) == attack(opener) == attack(reverse.Opener(model))

    @pytest.mark.parametrize(
        "arguments, message",
        [
            ({"start": "zeros"}, "start to be one of .*neutral"),
            ({"restarts": 0}, "restarts of 1 or more"),
            ({"fraction": 0.0}, "fraction in "),
            ({"start": {}}, "γ and β of every protected layer"),
        ],
    )
    def test_wrong_arguments(self, arguments, message):
        model, _, data, test = target(count=4)
        with pytest.raises(ValueError, match=message):
            kp.attacks.reverse_engineering(model, data, test, **arguments)

    @pytest.mark.parametrize(
        "attack, counts",
        [
            (kp.attacks.sign_search, {"starts": 0}),
            (kp.attacks.sign_search, {"flips": -1}),
            (kp.attacks.statistics_matching, {"rounds": 0}),
            (kp.attacks.statistics_matching, {"restarts": 0}),
        ],
    )
    def test_wrong_counts(self, attack, counts):
        model, _, data, test = target(count=4)
        of_images = attack is kp.attacks.statistics_matching
        with pytest.raises(ValueError, match=f"Expected {next(iter(counts))}"):
            attack(model, data[0] if of_images else data, test, **counts)

    def test_an_unprotected_model_is_refused(self):
        _, _, data, test = target(count=4)
        with pytest.raises(kp.PassportError, match="protected model"):
            kp.attacks.reverse_engineering(sequential_cnn(), data, test)


def dead():
    """A classifier that no training moves."""
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Flatten(),
            keras.layers.Dense(4, kernel_initializer="zeros"),
            keras.layers.ReLU(),
            keras.layers.Dense(3, kernel_initializer="zeros", trainable=False),
        ]
    )


class TestRun:
    def test_a_start_that_is_stuck_is_followed_by_another(self):
        model, passport, data, test = target()
        opener = reverse.Opener(model)
        alive = opener.trial(hidden(model, passport), False, STILL, [0])
        tried = []

        def make(attempt):
            tried.append(attempt)
            return alive.make(0) if attempt else dead()

        trial = training.Trial(lambda n: {"number": n}, make, STILL)
        result = training.run(
            "attack", [trial], data, test, seed=0, knowledge={}
        )
        assert tried == [0, 1]
        assert result.accuracy == 1.0
        told = result.history[0]
        assert (told["attempts"], told["number"]) == (2, 1)
        assert told["learning_rate"] == pytest.approx(1e-13)

    def test_what_is_stuck_to_the_end_is_said_to_be(self):
        _, _, data, test = target()
        trial = training.Trial({}, lambda attempt: dead(), STILL)
        result = training.run(
            "attack", [trial], data, test, seed=0, knowledge={}
        )
        assert result.history[0]["attempts"] == 3
        assert result.entropies == (0.0,)

    def test_a_stuck_attack_tries_every_named_start(self):
        model, _, data, test = target()
        # γ, β and all that follows are infinite after one step.
        recipe = dataclasses.replace(QUICK, optimizer="sgd", learning_rate=1e38)
        trial = reverse.Opener(model).trial("fake", True, recipe, [0])
        starts = [trial.about(attempt)["start"] for attempt in range(3)]
        assert starts == ["fake", "random", "neutral"]
        result = training.run(
            "attack", [trial], data, test, seed=0, knowledge={}
        )
        assert result.history[0]["attempts"] == 3

    def test_a_given_start_that_is_stuck_is_followed_by_named_ones(self):
        model, passport, _, _ = target()
        given = hidden(model, passport)
        trial = reverse.Opener(model).trial(given, True, QUICK, [0])
        starts = [trial.about(attempt)["start"] for attempt in range(3)]
        assert starts == ["given", "neutral", "fake"]
        for attempt, gamma in ((0, None), (1, 1.0)):
            parameters = trial.make(attempt).parameters
            for path, pair in parameters.items():
                expected = given[path][0] if gamma is None else gamma
                np.testing.assert_allclose(pair[0], expected, rtol=1e-6)

    @pytest.mark.parametrize("attack", ["reverse_engineering", "ambiguity"])
    def test_models_of_open_size_start_from_fakes_too(self, attack):
        inputs = keras.Input((None, None, 3))
        x = keras.layers.Conv2D(4, 3, use_bias=False, name="conv")(inputs)
        x = keras.layers.BatchNormalization()(x)
        x = keras.layers.GlobalAveragePooling2D()(x)
        model = kp.protect(keras.Model(inputs, keras.layers.Dense(3)(x)))
        y = np.arange(30) % 3
        x = np.random.default_rng(0).normal(size=(30, 6, 7, 3))
        x += 3 * np.eye(3)[y][:, None, None]  # No start is stuck at chance.
        data = x.astype("float32"), y
        recipe = dataclasses.replace(QUICK, epochs=10, learning_rate=0.1)
        result = getattr(kp.attacks, attack)(
            model, data, data, start="fake", recipe=recipe
        )
        assert result.history[0]["start"] == "fake"
        fakes = kp.attacks.fake_passports(model, "random_pattern", 2, data)
        assert len(fakes.accuracies) == 2


class TestData:
    @pytest.mark.parametrize(
        "counts, expected",
        [
            ([200, 400, 800], [20, 40, 80]),
            ([100, 200, 200], [20, 40, 40]),
            ([12, 20, 40], [3, 5, 10]),
        ],
    )
    def test_split_sets_a_tenth_to_a_quarter_apart(self, counts, expected):
        x, y = np.arange(sum(counts)), np.repeat([0, 1, 2], counts)
        training_part, validation = labelled.split((x, y), seed=0)
        np.testing.assert_array_equal(np.bincount(validation[1]), expected)
        both = np.concatenate([training_part[0], validation[0]])
        np.testing.assert_array_equal(np.sort(both), x)

    def test_few_pictures_validate_and_train(self):
        data = np.arange(29), np.arange(29) % 3
        for part in labelled.split(data, seed=0):
            np.testing.assert_array_equal(part[0], data[0])

    def test_share_is_stratified_and_holds_every_class(self):
        data = np.arange(100), np.repeat([0, 1], [97, 3])
        mine = labelled.share(data, 0.1, seed=0)
        np.testing.assert_array_equal(np.bincount(mine[1]), [10, 1])
        other = labelled.share(data, 0.1, seed=1)
        assert set(mine[0]) != set(other[0])

    def test_batches_depend_on_seed_and_epoch(self):
        x, y = np.arange(10), np.arange(10)

        def order(seed, epoch):
            batches = labelled.Batches(x, y, 5, seed)
            batches.start_epoch(epoch)
            return [int(v) for i in range(2) for v in batches[i][0]]

        assert order(0, 1) == order(0, 1)
        assert len({str(order(s, e)) for s in (0, 1) for e in (0, 1)}) == 4
        assert sorted(order(0, 0)) == list(range(10))

    def test_is_stuck(self):
        data = np.zeros(100), np.repeat([0, 1], 50)
        assert training.is_stuck(0.64, data)
        assert not training.is_stuck(0.66, data)


class TestRecipe:
    def test_rates(self):
        recipe = training.Recipe(epochs=4, learning_rate=2.0)
        rates = [recipe.rate(epoch) for epoch in range(4)]
        np.testing.assert_allclose(rates, [2, 1.707107, 1, 0.292893], 1e-5)
        constant = dataclasses.replace(recipe, schedule="constant")
        assert constant.rate(3) == 2.0

    @pytest.mark.parametrize(
        "arguments, message",
        [
            ({"optimizer": "lion"}, "optimizer to be one of"),
            ({"schedule": "linear"}, "schedule to be one of"),
            ({"epochs": 0}, "epochs above 0"),
            ({"learning_rate": -1.0}, "learning_rate above 0"),
        ],
    )
    def test_wrong_arguments(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            training.Recipe(**arguments)


class TestResult:
    def test_validation_chooses_and_the_loss_between_equals(self):
        result = kp.attacks.AttackResult(
            "attack",
            accuracies=(0.9, 0.3, 0.2),
            entropies=(0.0, 0.0, 0.0),
            knowledge={},
            budget={},
            seconds=0.0,
            validation=(0.5, 0.8, 0.8),
            losses=(0.1, 2.0, 1.0),
        )
        assert result.chosen == 2
        assert result.accuracy == 0.2
        free = dataclasses.replace(result, validation=(), losses=())
        assert free.accuracy == 0.9
