import math

import numpy as np
import pytest

from keras_passport import metrics


class TestEquation7:
    def test_inconsistency_is_original_minus_protected(self):
        assert metrics.inconsistency(92.72, 92.35) == pytest.approx(0.37)
        assert metrics.inconsistency(58.19, 62.4) == pytest.approx(-4.21)
        assert isinstance(metrics.inconsistency(92, 91), float)

    def test_strength_is_protected_minus_attacked(self):
        assert metrics.protection_strength(93.0, 10.5) == 82.5
        strengths = metrics.protection_strength(93.0, [10.0, 13.0])
        np.testing.assert_array_equal(strengths, [83.0, 80.0])

    def test_the_unit_is_kept(self):
        assert metrics.inconsistency(0.75, 0.5) == 0.25

    def test_several_networks_by_several_attacks(self):
        strengths = metrics.protection_strength(
            np.array([[90.0], [80.0]]), np.array([[10.0, 20.0, 30.0]])
        )
        assert strengths.shape == (2, 3)
        assert strengths[1, 2] == 50.0

    @pytest.mark.parametrize(
        "bad", [math.nan, math.inf, -1.0, 100.1, "high", None, [50.0, -3.0]]
    )
    def test_what_is_no_accuracy_is_refused(self, bad):
        with pytest.raises(ValueError, match=r"Expected original.*Received"):
            metrics.inconsistency(bad, 50.0)
        with pytest.raises(ValueError, match=r"Expected attacked.*Received"):
            metrics.protection_strength(50.0, bad)

    def test_shapes_that_do_not_broadcast_are_refused(self):
        with pytest.raises(ValueError, match=r"broadcast.*\(2,\) and \(3,\)"):
            metrics.inconsistency([1.0, 2.0], [1.0, 2.0, 3.0])


class TestDefinitions:
    def test_definition_1_wants_less_than_its_threshold(self):
        assert metrics.is_functionality_preserving(0.99)
        assert metrics.is_functionality_preserving(-4.2)
        assert not metrics.is_functionality_preserving(1.0)
        assert metrics.is_functionality_preserving(1.5, threshold=2.0)

    def test_definition_2_wants_more_than_its_threshold(self):
        assert metrics.is_well_protected(50.01)
        assert not metrics.is_well_protected(50.0)
        assert metrics.is_well_protected(33.0, threshold=30.0)

    def test_the_answers_are_plain_booleans(self):
        # result.json holds them, and JSON knows no numpy.bool.
        strength = np.float32(82.5)
        assert metrics.is_well_protected(strength) is True
        assert metrics.is_functionality_preserving(strength) is False

    @pytest.mark.parametrize("bad", [math.nan, "high", None, [1.0, 2.0]])
    def test_what_is_no_number_is_refused(self, bad):
        with pytest.raises(ValueError, match=r"Expected strength.*Received"):
            metrics.is_well_protected(bad)
        with pytest.raises(ValueError, match=r"Expected threshold.*Received"):
            metrics.is_functionality_preserving(0.5, threshold=bad)


def wilson(correct, total, z):
    """Wilson's score interval, written out."""
    p = correct / total
    middle = (p + z**2 / (2 * total)) / (1 + z**2 / total)
    half = (
        z
        / (1 + z**2 / total)
        * math.sqrt(p * (1 - p) / total + z**2 / (4 * total**2))
    )
    return middle - half, middle + half


class TestIntervals:
    @pytest.mark.parametrize("correct", [0, 1, 500, 999, 1000])
    @pytest.mark.parametrize(
        "confidence, z", [(0.95, 1.959963985), (0.99, 2.575829304)]
    )
    def test_accuracy_interval_is_wilsons_in_per_cent(
        self, correct, confidence, z
    ):
        expected = [100 * end for end in wilson(correct, 1000, z)]
        received = metrics.accuracy_interval(correct, 1000, confidence)
        np.testing.assert_allclose(received, expected, atol=1e-6)

    def test_the_exact_method_is_wider(self):
        low, high = metrics.accuracy_interval(9272, 10000)
        exact_low, exact_high = metrics.accuracy_interval(
            9272, 10000, method="exact"
        )
        assert exact_low < low < 92.72 < high < exact_high

    def test_strength_interval_is_newcombes(self):
        """His Table II (a): 56 of 70 against 48 of 80."""
        received = metrics.strength_interval(56, 70, 48, 80)
        np.testing.assert_allclose(received, (5.24, 33.39), atol=0.005)

    @pytest.mark.parametrize("trials", [1, 20, 200, 1000])
    def test_no_success_bounds_the_probability(self, trials):
        low, high = metrics.success_interval(0, trials)
        assert low == 0.0
        assert high == pytest.approx(1 - 0.025 ** (1 / trials))
        assert high <= 3.7 / trials

    def test_success_interval_covers_as_often_as_it_says(self):
        """The exact interval covers at least 95 % for every probability."""
        from scipy import stats

        trials = 30
        intervals = [
            metrics.success_interval(k, trials) for k in range(trials + 1)
        ]
        for p in (0.01, 0.1, 0.37, 0.5, 0.9):
            covered = sum(
                stats.binom.pmf(k, trials, p)
                for k, (low, high) in enumerate(intervals)
                if low <= p <= high
            )
            assert covered >= 0.95

    def test_numpy_integers_are_counts_too(self):
        interval = metrics.success_interval(np.int64(3), np.int32(200))
        assert interval == metrics.success_interval(3, 200)
        assert all(type(end) is float for end in interval)

    @pytest.mark.parametrize(
        "successes, trials, name",
        [
            (-1, 10, "successes"),
            (11, 10, "successes"),
            (0, 0, "trials"),
            (0.5, 10, "successes"),
            (1, 10.0, "trials"),
            (1, None, "trials"),
        ],
    )
    def test_what_is_no_count_is_refused(self, successes, trials, name):
        with pytest.raises(ValueError, match=rf"Expected {name}.*Received"):
            metrics.success_interval(successes, trials)

    @pytest.mark.parametrize("confidence", [0, 1, 95, math.nan, "high"])
    def test_what_is_no_confidence_is_refused(self, confidence):
        with pytest.raises(ValueError, match=r"Expected confidence.*Received"):
            metrics.accuracy_interval(5, 10, confidence)

    def test_unknown_methods_are_refused(self):
        with pytest.raises(ValueError, match="method='normal'"):
            metrics.accuracy_interval(5, 10, method="normal")


class TestPredictionEntropy:
    def test_a_collapsed_network_has_none(self):
        entropy = metrics.prediction_entropy(np.full(100, 7), 10)
        assert entropy == 0.0
        assert not np.signbit(entropy)

    def test_all_classes_equally_often_have_the_most(self):
        entropy = metrics.prediction_entropy(np.arange(1000) % 10, 10)
        assert entropy == pytest.approx(math.log2(10))

    def test_it_agrees_with_scipy(self):
        from scipy import stats

        classes = np.random.default_rng(0).integers(0, 10, 137) ** 2 // 10
        expected = stats.entropy(np.bincount(classes), base=2)
        assert metrics.prediction_entropy(classes, 10) == pytest.approx(
            expected
        )

    def test_leading_axes_are_kept(self):
        classes = np.random.default_rng(0).integers(0, 5, (3, 2, 40), "uint8")
        entropies = metrics.prediction_entropy(classes, 5)
        assert entropies.shape == (3, 2)
        assert entropies[2, 1] == metrics.prediction_entropy(classes[2, 1], 5)

    @pytest.mark.parametrize(
        "bad", [[], 3, [0.5, 0.5], [True, False], [-1, 2], [2, 10]]
    )
    def test_what_is_no_class_index_is_refused(self, bad):
        with pytest.raises(
            ValueError, match=r"Expected predicted_classes.*Received"
        ):
            metrics.prediction_entropy(bad, 10)

    @pytest.mark.parametrize("bad", [0, -1, 2.5, None])
    def test_what_is_no_number_of_classes_is_refused(self, bad):
        with pytest.raises(ValueError, match=r"Expected num_classes.*Received"):
            metrics.prediction_entropy([0, 0], bad)
