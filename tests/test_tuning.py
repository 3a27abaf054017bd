"""The search over RevA's settings."""

import dataclasses
import json
import tempfile

import keras
import pytest

import keras_passport as kp
from keras_passport.attacks import training
from support.attack_targets import assert_same, snapshot, target

RECIPE = training.Recipe(epochs=1, batch_size=20)


def tiny_cnn(classes):
    """One layer: a search compiles several times."""
    layers = [
        keras.Input((8, 8, 3)),
        keras.layers.Conv2D(6, 3),
        keras.layers.BatchNormalization(),
        keras.layers.ReLU(),
        keras.layers.GlobalAveragePooling2D(),
        keras.layers.Dense(classes),
    ]
    return keras.Sequential(layers)


@pytest.fixture(scope="module")
def attacked():
    return target(base=tiny_cnn, count=40)


def tune(attacked, **options):
    model, _, data, test = attacked
    options = {"trials": 3, "recipe": RECIPE, **options}
    return kp.attacks.tune_reverse_engineering(model, data, test, **options)


class TestTuneReverseEngineering:
    def test_every_trial_is_in_the_result(
        self, attacked, tmp_path, monkeypatch, capsys
    ):
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        before = snapshot(attacked[0])
        result = tune(attacked, trials=3, keep_model=True)
        assert_same(before, snapshot(attacked[0]))
        assert list(tmp_path.iterdir()) == []
        assert capsys.readouterr().out == ""
        assert result.budget["trials"] == 3
        for name in ("accuracies", "entropies", "validation", "history"):
            assert len(getattr(result, name)) == 3
        rates = {told["learning_rate"] for told in result.history}
        assert len(rates) == 3
        best = max(result.validation)
        assert result.validation[result.chosen] == best
        judged, _ = training.judge(result.model, attacked[3])
        assert result.accuracy == judged
        json.dumps(result.to_dict())

    def test_the_first_trial_is_the_plain_attack(self, attacked, tmp_path):
        model, _, data, test = attacked
        tuned = tune(attacked, trials=1, directory=tmp_path)
        plain = kp.attacks.reverse_engineering(model, data, test, recipe=RECIPE)
        assert tuned.history == plain.history
        assert tuned.accuracies == plain.accuracies
        # Its directory is no other search's.
        with pytest.raises(ValueError, match="directory of this attack"):
            tune(attacked, trials=1, directory=tmp_path, seed=1)
        other = model, attacked[1], (data[0] + 1.0, data[1]), test
        with pytest.raises(ValueError, match="directory of this attack"):
            tune(other, trials=1, directory=tmp_path)

    def test_an_interrupted_search_goes_on(
        self, attacked, tmp_path, monkeypatch
    ):
        whole = tune(attacked, trials=3, directory=tmp_path / "whole")
        run, calls = training.run, []

        def interrupted(*args, **kwargs):
            calls.append(1)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return run(*args, **kwargs)

        monkeypatch.setattr(training, "run", interrupted)
        folder = tmp_path / "parts"
        with pytest.raises(KeyboardInterrupt):
            tune(attacked, trials=3, directory=folder)
        parts = tune(attacked, trials=3, directory=folder)
        # The second trial, the third, and one of them all on another split.
        assert len(calls) == 2 + 3
        assert parts.accuracies == whole.accuracies
        assert parts.history == whole.history
        # All is there: nothing is trained.
        again = tune(attacked, trials=3, directory=folder)
        assert len(calls) == 2 + 3
        assert again.history == whole.history
        # What it took does not depend on how often it was ended.
        assert again.seconds == parts.seconds > 0
        files = [path for path in folder.rglob("*") if path.is_file()]
        assert {path.suffix for path in files} == {".json"}

    def test_who_leads_by_luck_is_found_out(self, attacked, monkeypatch):
        run, again = training.run, []

        def told(name, trials, *args, seed, **kwargs):
            result = run(name, trials, *args, seed=seed, **kwargs)
            if seed:
                again.append(seed)
            lucky = trials[0].recipe == RECIPE
            value = (1.0, 0.25, 0.25)[seed] if lucky else 0.75
            return dataclasses.replace(
                result, validation=(value,), losses=(1.0,)
            )

        monkeypatch.setattr(training, "run", told)
        result = tune(attacked, trials=9)
        # The first trial once more, then another until it led on all three.
        assert again == [1, 1, 2]
        assert result.validation == (0.625, *8 * [0.75])
        assert result.history[0]["validation_on_splits"] == [1.0, 0.25]
        chosen = result.history[result.chosen]
        assert chosen["validation_on_splits"] == [0.75, 0.75, 0.75]

    def test_hidden_statistics_are_not_tried(self):
        model, passport, data, test = target(base=tiny_cnn, count=40)
        kp.hide_statistics(kp.bind(model, passport), [data[0]])
        result = tune((kp.unbind(model), passport, data, test), trials=6)
        tried = {told["statistics"] for told in result.history}
        assert tried == {"re-estimated"}

    def test_hyperband_gives_most_trials_few_epochs(self, attacked):
        recipe = training.Recipe(epochs=3, batch_size=20)
        result = tune(attacked, trials=5, search="hyperband", recipe=recipe)
        epochs = [told["epochs"] for told in result.history]
        assert epochs[0] == 3
        assert epochs[1:4] == [1, 1, 1]
        assert len(epochs) == 5

    @pytest.mark.parametrize(
        "arguments, message",
        [
            ({"search": "grid"}, "search to be one of"),
            ({"trials": 0}, "trials of 1 or more"),
        ],
    )
    def test_wrong_arguments(self, attacked, arguments, message):
        with pytest.raises(ValueError, match=message):
            tune(attacked, **arguments)
