"""Statistics matching, on nets whose hidden parameters the test has set."""

import keras
import numpy as np
import pytest

import keras_passport as kp
from keras_passport.attacks import (
    annealing,
    fitting,
    moments,
    reverse,
    statistics,
)
from support.known_statistics import pictures, trained
from support.plain_models import (
    nested_model,
    plain_cnn,
    sequential_cnn,
    small_resnet,
)


def agreement(found, truth):
    """Share of γ's signs that were found, and γ's correlation.

    With the passport at hand: an attacker can't compute it.
    """
    signs = np.mean(np.sign(found[0]) == np.sign(truth[0]))
    return signs, np.corrcoef(found[0], truth[0])[0, 1]


class TestMatchStatistics:
    @pytest.mark.parametrize("function", ["V1", "V2", "V3"])
    def test_it_finds_hidden_parameters_without_labels(self, function):
        model, truth = trained(plain_cnn, function)
        kp.unbind(model)
        found, blocks = kp.attacks.match_statistics(
            model, pictures(128), restarts=6, rounds=2
        )
        assert [b["layers"] for b in blocks] == [
            ["first_conv"],
            ["second_conv"],
        ]
        assert blocks[0]["readers"] == ["second_conv"]
        assert blocks[0]["equations"] == 2 * 12
        signs, correlation = agreement(found["first_conv"], truth["first_conv"])
        assert signs == 1.0 and correlation > 0.9
        beta = found["first_conv"][1], truth["first_conv"][1]
        assert np.corrcoef(*beta)[0, 1] > 0.5
        # Behind the last layer there are no statistics: it is as it started.
        assert blocks[1]["readers"] == [] and blocks[1]["cost"] is None
        start = kp.attacks.opened.neutral(kp.models.public(model))
        for received, expected in zip(
            found["second_conv"], start["second_conv"], strict=True
        ):
            np.testing.assert_array_equal(received, expected)

    @pytest.mark.parametrize("size", [0.3, 3.0])
    def test_hidden_parameters_may_be_small_or_large(self, size):
        """Weight decay leaves a third of what a training starts with."""
        model, truth = trained(plain_cnn, size=size)
        kp.unbind(model)
        found, _ = kp.attacks.match_statistics(
            model, pictures(128), restarts=6, rounds=2
        )
        signs, correlation = agreement(found["first_conv"], truth["first_conv"])
        assert signs == 1.0 and correlation > 0.9
        sizes = np.abs(found["first_conv"][0]) / np.abs(truth["first_conv"][0])
        assert 0.8 < np.median(sizes) < 1.25

    @pytest.mark.parametrize("function", ["V1", "V3"])
    def test_attackers_who_keep_statistics_start_from_that_size(self, function):
        model, truth = trained(small_resnet, function, size=0.2)
        opener = reverse.Opener(model, data=(pictures(32), None))
        recipe = kp.attacks.Recipe(epochs=1)
        for start in ("neutral", "random"):
            trial = opener.trial(start, False, recipe, [0])
            started = trial.make(0).parameters
            for path, (gamma, beta) in started.items():
                size = np.mean(np.abs(truth[path][0]))
                assert 0.5 < np.mean(np.abs(gamma)) / size < 2.0
                if function == "V1":
                    np.testing.assert_allclose(beta, truth[path][1], 1e-5)
        again = opener.trial("neutral", True, recipe, [0]).make(0).parameters
        assert {float(v) for g, _ in again.values() for v in g} == {1.0}

    def test_of_wide_layers_some_outputs_are_taken(self, monkeypatch):
        """Of 2,048 channels, all pairs would fill any memory."""
        model, _ = trained(plain_cnn)
        public = kp.models.public(model)
        flow = moments.Flow(public)
        (group, readers), *_ = flow.blocks()
        known = flow.inputs(pictures(8))
        units = moments.Block(flow, group, readers, known).units
        monkeypatch.setattr(moments, "PAIRS", 5 * (2 * units) ** 2)
        block = moments.Block(flow, group, readers, known)
        [reader] = block.readers
        assert len(reader.mean) == len(set(reader.live)) == 5
        own = {"first_conv": (np.ones(units), np.zeros(units))}
        [(first, second)] = block.moments([own, own])
        assert first.shape == (2 * units, 5)
        assert second.shape == (5, 2 * units, 2 * units)

    def test_a_search_that_was_ended_goes_on(self, tmp_path, monkeypatch):
        model, _ = trained(small_resnet)
        images = pictures(16)
        # It need not find anything.
        monkeypatch.setattr(annealing, "HEATS", (1000.0, 2.0, 40))

        def matched(folder, **options):
            return kp.attacks.match_statistics(
                model,
                images,
                restarts=1,
                rounds=1,
                directory=folder,
                **options,
            )

        whole = matched(None)
        solved, calls = statistics._solved, []

        def stopped(block, *args):
            calls.append(block.group)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return solved(block, *args)

        monkeypatch.setattr(statistics, "_solved", stopped)
        with pytest.raises(KeyboardInterrupt):
            matched(tmp_path)
        took = set()
        for _ in range(2):
            found, blocks = matched(tmp_path)
            took.add(sum(block.pop("seconds") for block in blocks))
            for block in whole[1]:
                block.pop("seconds", None)
            assert blocks == whole[1]
            for path, pair in whole[0].items():
                np.testing.assert_array_equal(found[path], pair)
        assert len(took) == 1
        # The second layer was tried twice, and none after all were there.
        assert len(calls) == 5 and calls[1] == calls[2]
        with pytest.raises(ValueError, match="directory of this attack"):
            matched(tmp_path, seed=1)

    @pytest.mark.parametrize(
        ("costs", "tries"),
        [
            ([0.30, 0.32, 0.10], 2),
            ([1.23, 0.27, 0.26, 0.10], 3),
            ([4.0, 3.0, 2.0, 1.0, 0.10], 4),
        ],
    )
    def test_a_layer_is_tried_until_two_tries_agree(
        self, costs, tries, monkeypatch
    ):
        given = iter(costs)
        monkeypatch.setattr(
            statistics, "_tried", lambda *args: ({}, next(given))
        )
        found = statistics._solved(None, {}, 1, 1, statistics.TRIES, None)
        assert found == ({}, min(costs[:tries]))
        assert list(given) == costs[tries:]

    def test_other_statistics_are_not_explained(self):
        """The cost tells an attacker whether what was found is true."""
        model, _ = trained(plain_cnn)
        options = {"restarts": 2, "rounds": 1}
        _, right = kp.attacks.match_statistics(model, pictures(), **options)
        layer = kp.protected_layers(model)["second_conv"].normalization
        mean = keras.ops.convert_to_numpy(layer.moving_mean)
        layer.moving_mean.assign(mean + 3.0)
        _, wrong = kp.attacks.match_statistics(model, pictures(), **options)
        assert wrong[0]["cost"] > 5 * right[0]["cost"]

    def test_a_start_is_kept_where_it_is_right(self, capsys):
        model, truth = trained(plain_cnn)
        found, _ = kp.attacks.match_statistics(
            model,
            pictures(),
            start=truth,
            restarts=1,
            rounds=1,
            progress=True,
        )
        shown = capsys.readouterr().out
        assert "2/2" in shown and "cost" in shown
        signs, correlation = agreement(found["first_conv"], truth["first_conv"])
        assert signs == 1.0 and correlation > 0.95

    def test_layers_that_meet_are_solved_together(self):
        model, _ = trained(small_resnet)
        flow = moments.Flow(kp.models.public(model))
        assert list(flow.blocks()) == [
            (["stem_conv"], ["block0_1_conv"]),
            (["block0_1_conv"], ["block0_2_conv"]),
            (["block0_2_conv"], ["block1_1_conv", "block1_0_conv"]),
            (["block1_1_conv"], ["block1_2_conv"]),
            (["block1_0_conv", "block1_2_conv"], []),
        ]

    def test_it_wants_a_graph_that_it_can_follow(self):
        model = kp.protect(nested_model())
        with pytest.raises(kp.PassportError, match="without nested models"):
            kp.attacks.match_statistics(model, pictures())
        shared = keras.layers.Dense(4)
        inputs = keras.Input((4,))
        twice = keras.Model(inputs, shared(shared(inputs)))
        model, _ = kp.protect_trained(twice, seed=0)
        with pytest.raises(kp.PassportError, match="each protected layer"):
            kp.attacks.match_statistics(model, np.ones((3, 4)))
        assert statistics.usual_sizes(model, np.ones((3, 4))) == {}


class TestMoments:
    @pytest.mark.parametrize(
        ("base", "policy", "error"),
        [
            (plain_cnn, "float32", 1e-3),
            (sequential_cnn, "float32", 1e-3),
            (plain_cnn, "mixed_bfloat16", 2e-2),
        ],
    )
    def test_they_add_up_to_the_networks_own(self, base, policy, error):
        """Against the statistics that Keras itself takes of a batch."""
        keras.config.set_dtype_policy(policy)
        model, truth = trained(base)
        x = pictures(16, seed=4)
        kp.estimate_statistics(model, [x])
        flow = moments.Flow(kp.models.public(model))
        group, readers = next(flow.blocks())
        block = moments.Block(flow, group, readers, flow.inputs(x))
        other = {group[0]: tuple(-value for value in truth[group[0]])}
        first, second = block.moments([other, truth])[0]
        chosen = np.arange(block.units) + block.units
        mean = first[chosen].sum(axis=0)
        square = second[:, chosen][:, :, chosen].sum(axis=(1, 2))
        reader = block.readers[0]
        np.testing.assert_allclose(
            mean, reader.mean, rtol=error, atol=0.1 * error
        )
        np.testing.assert_allclose(
            square - mean**2, reader.variance, rtol=error, atol=0.1 * error
        )

    @pytest.mark.parametrize(
        "options",
        [
            {"padding": "same"},
            {"padding": "valid", "dilation_rate": 2},
            {"padding": "same", "strides": 2, "kernel_size": (3, 2)},
        ],
        ids=str,
    )
    def test_windows_are_those_of_the_convolution(self, options, monkeypatch):
        conv = keras.layers.Conv2D(
            **{"filters": 5, "kernel_size": 3, "use_bias": False, **options}
        )
        x = np.random.default_rng(0).normal(size=(6, 9, 8, 4))
        x = x.astype("float32")
        alone = np.stack([x * row for row in np.eye(4, dtype="float32")])
        expected = np.stack(
            [keras.ops.convert_to_numpy(conv(some)) for some in alone]
        )
        live = np.array([0, 2, 3])
        windows = moments.Windows(conv, x.shape[1:], len(x), live)
        part = slice(2, 5)
        received = windows.added(x[part], part)
        wanted = np.moveaxis(expected[:, part], -1, 0)[live]
        wanted = wanted.reshape(3, 4, -1)
        # The places of a picture come in any order.
        np.testing.assert_allclose(
            received.reshape(3, 4, 3, -1).sum(axis=-1),
            wanted.reshape(3, 4, 3, -1).sum(axis=-1),
            rtol=1e-4,
            atol=1e-4,
        )
        np.testing.assert_allclose(
            received @ received.transpose(0, 2, 1),
            wanted @ wanted.transpose(0, 2, 1),
            rtol=1e-4,
            atol=1e-4,
        )
        # Some places of each picture, each with all that it had.
        monkeypatch.setattr(moments, "PLACES", 24)
        windows = moments.Windows(conv, x.shape[1:], len(x), live)
        some = windows.added(x, slice(0, 6)).reshape(3, 4, 6, 4)
        every = np.moveaxis(expected, -1, 0)[live].reshape(3, 4, 6, -1)
        for picture in range(6):
            gaps = some[:, :, picture, :, None] - every[:, :, picture, None]
            found = np.abs(gaps).max(axis=(0, 1)) < 1e-4
            assert found.any(axis=1).all() and found.any(axis=0).sum() == 4

    def test_a_search_counts_what_the_moments_say(self):
        model, truth = trained(plain_cnn)
        flow = moments.Flow(kp.models.public(model))
        block = moments.Block(
            flow, *next(flow.blocks()), flow.inputs(pictures(8))
        )
        own = {path: truth[path] for path in block.group}
        candidates, mirrored = annealing._candidates(block, own, 1.0)
        search = annealing._Search(
            block,
            block.moments(candidates),
            np.zeros((len(candidates), block.units)),
        )
        rng = np.random.default_rng(0)
        choice = rng.integers(0, len(candidates), block.units)
        # Come to by changes, as in a search.
        before = rng.integers(0, len(candidates), block.units)
        sums = search.sums(before)
        for channel, (old, new) in enumerate(zip(before, choice, strict=True)):
            sums[0].change(channel, old, new)
        costs = search._costs(choice, sums)
        np.testing.assert_allclose(
            costs, search._costs(choice, search.sums(choice)), rtol=1e-3
        )
        choice[3] = 5
        (path,) = block.group
        mixed = {
            path: tuple(
                np.array(
                    [candidates[k][path][i][c] for c, k in enumerate(choice)]
                )
                for i in (0, 1)
            )
        }
        ((first, second),) = block.moments([mixed], products=False)
        misfit = fitting.misfit(
            block.readers[0], first.sum(axis=0), second.sum(axis=1)
        )
        assert costs[5, 3] == pytest.approx(np.sum(np.square(misfit)), rel=1e-3)
        for number, candidate in enumerate(candidates):
            negated = candidates[mirrored[number]]
            np.testing.assert_allclose(negated[path][0], -candidate[path][0])
            np.testing.assert_allclose(negated[path][1], candidate[path][1])


def test_what_is_found_starts_reverse_engineering():
    model, truth = trained(plain_cnn)
    x = pictures(40, seed=2)
    labels = keras.ops.convert_to_numpy(model(x)).argmax(-1)
    kp.unbind(model)
    result = kp.attacks.statistics_matching(
        model, pictures(), (x, labels), restarts=4, rounds=1
    )
    assert result.knowledge["labels"] is False
    assert 0 <= result.accuracy <= 1
    # Given what no statistics say, too, it computes what the owner's does.
    start = {
        **result.history[0]["parameters"],
        "second_conv": truth["second_conv"],
    }
    opened = kp.attacks.Opened(model, start)
    received = keras.ops.convert_to_numpy(opened(x)).argmax(-1)
    assert np.mean(received == labels) > 0.85
    result.to_dict()
