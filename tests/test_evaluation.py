"""`kp.evaluation`: planted networks, records, verdicts, pages."""

import dataclasses
import json
import stat

import keras
import numpy as np
import pytest

import keras_passport as kp
from keras_passport.attacks import AttackResult, training
from keras_passport.evaluation import (
    ATTACKS,
    LEVELS,
    Budget,
    Case,
    Level,
    Records,
    advantages,
    battery,
    evaluate,
    owner,
    page,
    running,
    verdict,
)
from support.planted_runs import given, linear_classifier
from support.trained_models import MODELS, look_trained

FAKES = [name for name in ATTACKS if name.startswith("fake_")]
FEW = Level(Budget(num_fakes=4, examples=60, epochs=1), (1.0,))


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setitem(battery.LEVELS, "quick", FEW)


def by_record(rows):
    """Rows without the times that they took."""
    return [{**row, "seconds": 0} for row in json.loads(json.dumps(rows))]


class TestPlanted:
    def test_a_network_that_ignores_its_passport(self, tmp_path):
        told = []
        found = evaluate(
            **given(linear_classifier()), attacks=FAKES, tell=told.append
        )
        assert found.complete and len(told) == 4
        assert [row["attack"] for row in found.rows] == FAKES
        assert {row["status"] for row in found.rows} == {"falls"}
        for row in found.rows:
            assert row["successes"] == row["trials"] == 4
            assert not row["paralysed"]
        assert found.worst in found.rows
        assert "not well-protected (S > 50)" in str(found)
        assert ": well-protected" not in str(found)
        found.save_page(tmp_path / "page.html")
        assert "not well-protected" in (tmp_path / "page.html").read_text()

    def test_a_network_that_always_says_the_same(self, tmp_path):
        found = evaluate(
            **given(linear_classifier(scale=0.0)), attacks=FAKES[:1]
        )
        assert {row["status"] for row in found.rows} == {"void"}
        assert all(row["paralysed"] for row in found.rows)
        assert {row["entropy"] for row in found.rows} == {0.0}
        assert found.worst is None
        text = "\n".join(found.verdict)
        assert "No verdict" in text
        assert "paralysed for its owner too" in text
        assert "well-protected" not in text
        found.save_page(tmp_path / "page.html")
        page_of_it = (tmp_path / "page.html").read_text()
        assert '<div class="verdict ">' in page_of_it

    def test_nothing_is_written_where_nobody_asked(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        evaluate(**given(linear_classifier()), attacks=FAKES[:1])
        assert not list(tmp_path.iterdir())

    def test_what_was_found_is_written_as_it_is(self, tmp_path):
        found = evaluate(
            **given(linear_classifier()), attacks=FAKES[:1], title="digits"
        )
        found.save(tmp_path / "found.json")
        written = json.loads((tmp_path / "found.json").read_text())
        assert written == json.loads(json.dumps(found.to_dict()))
        assert written["network"]["Data"] == "digits"
        assert written["network"]["Battery"] == "quick"

    def test_an_attack_with_a_budget_of_its_own(self):
        budget = Budget(num_fakes=2, examples=30)
        found = evaluate(
            **given(linear_classifier()),
            attacks={"fake_random_pattern": budget},
        )
        [row] = found.rows
        assert row["budget"] == {"num_fakes": 2, "examples": 30, "seed": 0}
        assert row["trials"] == 2
        assert found.noise == found.changes == {}
        assert not any("Left out" in line for line in found.verdict)

    @pytest.mark.parametrize(
        "arguments, message",
        [
            ({"budget": "huge"}, "budget to be one of quick.*'huge'"),
            ({"attacks": ["magic"]}, "attacks of fake_random.*magic"),
            ({"attacks": ["spectral_reva"]}, "the budget quick has"),
            ({"fractions": [0.1, 2.0]}, r"in \(0, 1\].*2.0"),
            ({"fractions": np.array([0.1, 2.0])}, r"in \(0, 1\].*2.0"),
            ({"attacks": "magic"}, "attacks of fake_random.*: magic"),
            ({"attacks": 5}, "names, or a dict.*attacks=5"),
            ({"attacks": {"key_forgery": "quick"}}, "a Budget for each"),
        ],
    )
    def test_wrong_arguments(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            evaluate(None, None, None, None, **arguments)

    def test_numbers_of_numpy_make_the_same_records(self):
        """NumPy's are no JSON: each attack was "broken" by its budget."""
        plain = Budget(num_fakes=2, fraction=0.5, seed=3, tuned=True)
        numpy = Budget(
            num_fakes=np.int64(2),
            fraction=np.float64(0.5),
            seed=np.int32(3),
            tuned=np.bool_(True),
        )
        assert json.dumps(dataclasses.asdict(numpy)) == json.dumps(
            dataclasses.asdict(plain)
        )

    def test_a_label_that_is_no_class(self):
        some = given(linear_classifier(), 50)
        x, y = some["test"]
        with pytest.raises(ValueError, match="labels of test"):
            evaluate(**{**some, "test": (x, y + 1)}, attacks=FAKES)

    def test_a_model_that_is_not_protected(self):
        some = given(linear_classifier(), 50)
        with pytest.raises(kp.PassportError):
            evaluate(**{**some, "model": some["reference"]}, attacks=FAKES)

    def test_too_few_examples_to_judge_by(self):
        some = given(linear_classifier(), 50)
        x, y = some["test"]
        with pytest.raises(ValueError, match="several examples per class"):
            evaluate(**{**some, "test": (x[:1], y[:1])}, attacks=FAKES)


class TestPage:
    def test_all_trials_of_a_search_are_figure_7(self, tmp_path):
        result = AttackResult(
            *("RevA", (0.3, 0.6), (1.0, 1.0), {}, {"trials": 2}, 1.0),
            validation=(0.3, 0.6),
        )
        searched = {
            **record(0.6, title="RevA, tuned"),
            "attack": "reverse_engineering_tuned",
            "budget": {"fraction": 0.1, "trials": 1},
            "result": result.to_dict(),
        }
        row = verdict.row(searched, NUMBERS, LABELS)
        assert "2 trainings" in verdict.spent(row)
        figures = page.figures([searched], [row], NUMBERS, {})
        captions = [caption for *_, caption in figures]
        assert "the paper's Figure 7" in captions[0]
        for draw, numbers, _ in figures:
            draw(numbers, tmp_path / "figure.png")


NUMBERS = {"valid": 285, "total": 300, "chance": 10.0}
LABELS = np.arange(300) % 10


def record(accuracy, validation=(), control=False, title="An attack"):
    result = AttackResult(
        name="attack",
        accuracies=(accuracy,),
        entropies=(1.0,),
        knowledge={},
        budget={},
        seconds=1.0,
        validation=validation,
    )
    return {
        "attack": "attack",
        "title": title,
        "knowledge": "nothing",
        "control": control,
        "budget": {},
        "examples": 300,
        "result": result.to_dict(),
    }


def judged(*records, missing=()):
    rows = [verdict.row(some, NUMBERS, LABELS) for some in records]
    return rows, verdict.verdict(rows, NUMBERS, list(missing))


class TestVerdict:
    def test_a_failed_training_is_no_strength(self):
        rows, lines = judged(record(0.11, validation=(0.1,)))
        assert rows[0]["status"] == "failed"
        assert lines[0] == "No verdict: no attack came to a result."
        assert "Failed attacks" in lines[1]

    def test_the_worst_case_comes_first(self):
        rows, lines = judged(
            record(0.1, title="Weak"),
            record(0.8, validation=(0.8,), title="Strong"),
            record(0.9, validation=(0.9,), control=True, title="Scratch"),
        )
        statuses = [row["status"] for row in rows]
        assert statuses == ["holds", "falls", "control"]
        assert lines[0].startswith("Worst case: Strong reaches 80.0 %")
        assert "not well-protected" in lines[0]
        assert rows[1]["strength"] == pytest.approx(15.0)

    def test_what_holds_is_said_of_what_was_tried(self):
        _, lines = judged(record(0.1), missing=["RevA (error: no memory)"])
        assert "well-protected (S > 50) against the attacks tried" in lines[0]
        assert "Not tried: RevA (error: no memory)." in lines

    def test_a_close_call_is_said(self):
        _, lines = judged(record(0.44))
        assert "The interval of S has 50 in it" in lines[1]


class TestBattery:
    @pytest.fixture
    def some(self):
        return given(linear_classifier(), 300)

    @pytest.fixture
    def case(self, some):
        return Case.of(**some)

    @pytest.fixture
    def records(self, case, tmp_path):
        return Records(case, tmp_path / "attacks")

    def test_a_killed_battery_goes_on(self, some, tmp_path, monkeypatch):
        calls = []
        tried = kp.attacks.fake_passports

        def stopped(model, kind, *args, **options):
            calls.append(kind)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return tried(model, kind, *args, **options)

        monkeypatch.setattr(kp.attacks, "fake_passports", stopped)
        names = ["fake_random_pattern", "fake_known_images"]
        options = {**some, "attacks": names, "directory": tmp_path / "kept"}
        with pytest.raises(KeyboardInterrupt):
            evaluate(**options)
        before = evaluate(**options)
        assert calls == [
            "random_pattern",
            "known_images",
            "known_images",
        ]
        # What tells secrets is the owner's alone.
        mode = (tmp_path / "kept" / "owner").stat().st_mode
        assert stat.S_IMODE(mode) == 0o700
        for name in ("hits.json", "noise.json"):
            mode = (tmp_path / "kept" / "owner" / name).stat().st_mode
            assert stat.S_IMODE(mode) == 0o600
        for path in (tmp_path / "kept" / "attacks").iterdir():
            path.unlink()
        again = evaluate(**options)
        assert by_record(before.rows) == by_record(again.rows)

    def test_a_long_series_goes_on(self, records, monkeypatch):
        budget = Budget(num_fakes=7, examples=60)
        name = "fake_random_pattern"
        whole = records.perform(name, budget)
        records.path(name, budget).unlink()
        monkeypatch.setattr(running, "_BETWEEN", 3 * 60)
        tried, calls = kp.attacks.fake_passports, []

        def stopped(*args, start, **options):
            calls.append(start)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return tried(*args, start=start, **options)

        monkeypatch.setattr(kp.attacks, "fake_passports", stopped)
        with pytest.raises(KeyboardInterrupt):
            records.perform(name, budget)
        parts = records.perform(name, budget)
        assert calls == [0, 3, 3, 6]
        for key in ("accuracies", "entropies", "history", "budget"):
            assert parts["result"][key] == whole["result"][key]
        assert len(list(records.folder.iterdir())) == 1

    def test_a_killed_search_goes_on(self, records, monkeypatch):
        budget = Budget(epochs=1)
        name = "reverse_engineering_tuned"
        monkeypatch.setattr(running, "_TUNED", 2)
        trained, calls = training.run, []

        def stopped(*args, **options):
            calls.append(1)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return trained(*args, **options)

        monkeypatch.setattr(training, "run", stopped)
        with pytest.raises(KeyboardInterrupt):
            records.perform(name, budget)
        [part] = records.folder.iterdir()
        assert part.suffix == ".part"
        record = records.perform(name, budget)
        assert len(record["result"]["accuracies"]) == 2
        # Two trials, the one that was stopped, and the leader once more.
        assert len(calls) == 4
        assert [path.suffix for path in records.folder.iterdir()] == [".json"]

    def test_what_an_attack_found_is_kept_for_the_next(
        self, records, monkeypatch
    ):
        calls, starts = [], []
        found = kp.attacks.statistics_matching

        def counted(*args, **options):
            calls.append("statistics")
            return found(*args, restarts=1, rounds=1, **options)

        def started(*args, start, **options):
            starts.append(start)
            return AttackResult("RevA", (0.5,), (1.0,), {}, {}, 1.0)

        monkeypatch.setattr(kp.attacks, "statistics_matching", counted)
        monkeypatch.setattr(kp.attacks, "reverse_engineering", started)
        for fraction in (0.5, 1.0):
            budget = Budget(fraction=fraction, epochs=1)
            record = records.perform("statistics_reva", budget)
        assert record["result"]["name"].startswith("statistics matching, then")
        # Unlabelled pictures are the same whatever part of the labels is had.
        assert len(calls) == 1
        [path] = records.folder.glob("statistics-*.json")
        history = json.loads(path.read_text())["result"]["history"]
        assert "parameters" not in history[0]
        written = json.loads(path.with_suffix(".found").read_text())
        assert starts == [written, written]
        # Without it, the first attack is tried again.
        path.with_suffix(".found").unlink()
        budget = Budget(fraction=0.2, epochs=1)
        records.perform("statistics_reva", budget)
        assert len(calls) == 2 and starts[2] == written

    def test_data_and_epochs_are_those_of_the_budget(self, records):
        few, all_of_them = (
            records.perform(
                "reverse_engineering",
                Budget(source="disjoint", fraction=fraction, epochs=2),
            )
            for fraction in (0.5, 1.0)
        )
        mine = len(records.case.examples("disjoint")[1])
        assert all_of_them["result"]["budget"]["images"] == mine
        assert few["result"]["budget"]["images"] == pytest.approx(mine / 2, 0.1)
        [history] = few["result"]["history"]
        assert len(history["history"]["val_accuracy"]) == 2
        # The pixels' part alone is as good as that.
        assert few["result"]["accuracies"][0] > 0.8

    def test_as_many_pictures_are_trained_on_for_as_long(self, case):
        """Wherever they are from: all of few make few steps."""
        mine = len(case.examples("disjoint")[1])
        part = mine / len(case.train[1])
        assert part < 1
        of_others, of_the_defender = (
            running.training_options(case, Budget(tuned=True, epochs=1, **of))
            for of in (
                {"source": "disjoint", "fraction": 1.0},
                {"source": "defender", "fraction": part},
            )
        )
        assert of_others.recipe == of_the_defender.recipe
        assert of_others.recipe.epochs > 15  # what all of the training set has

    def test_an_attack_that_breaks_costs_no_other(
        self, some, tmp_path, monkeypatch
    ):
        def broken(case, budget, progress):
            raise RuntimeError("out of memory\nand more")

        attack = ATTACKS["fake_fixed_image"]
        worse = dataclasses.replace(attack, title="Broken", run=broken)
        monkeypatch.setitem(ATTACKS, "fake_fixed_image", worse)
        options = {**some, "attacks": FAKES[:2], "directory": tmp_path}
        found = evaluate(**options)
        assert not found.complete
        assert len(found.rows) == 1
        assert found.errors == [
            "Broken (error: RuntimeError: out of memory)",
        ]
        assert found.errors[0] in found.verdict[-2]
        monkeypatch.setitem(ATTACKS, "fake_fixed_image", attack)
        found = evaluate(**options)
        assert found.complete
        assert len(found.rows) == 2

    def test_what_can_not_be_tried_says_why(self, some, tmp_path):
        case = Case.of(**{**some, "reference": None})
        records = Records(case, tmp_path)
        with pytest.raises(kp.PassportError, match="there is no original"):
            records.perform("fake_fixed_image", Budget())
        assert not list(tmp_path.iterdir())

    def test_a_damaged_record_is_named(self, records):
        records.folder.mkdir()
        path = records.path("spectral_blind", Budget())
        path.write_text("{")
        with pytest.raises(kp.PassportError, match="JSON file.*spectral_bl"):
            records.perform("spectral_blind", Budget())

    def test_a_record_of_forged_keys_tells_no_norm(self, records):
        record = records.perform("key_forgery", Budget())
        [about] = record["result"]["history"]
        assert about["systems"]
        for system in about["systems"]:
            assert {"rank", "residual"} <= system.keys()
            assert "norm" not in system

    def test_who_held_a_passport_knows_the_order_of_rows(self, tmp_path):
        base = look_trained(MODELS["residual"]())
        model, passport = kp.protect_trained(base, seed=0)
        x = np.random.default_rng(0).normal(size=(60, 8, 8, 3))
        data = x, base.predict(x, verbose=0).argmax(-1)
        case = Case.of(model, passport, data, data)
        record = Records(case, tmp_path).perform("key_forgery", Budget())
        assert min(record["result"]["accuracies"]) > 0.99

    def test_the_spectral_attack_spends_its_epochs(self, some, tmp_path):
        case = Case.of(**some, augment=lambda x, rng: x + rng.random(x.shape))
        record = Records(case, tmp_path).perform(
            "spectral", Budget(source="disjoint", fraction=0.5, epochs=2)
        )
        [told] = record["result"]["history"]
        assert told["epochs"] == len(told["history"]["val_accuracy"]) == 2
        assert told["augment"]

    def test_an_ancestor_that_attackers_have_too(self, some, tmp_path):
        """Taken as it is, it is what was protected without training."""
        budget = Budget(epochs=1)
        names = ("known_ancestor", "ancestor", "ancestor_fine_tuned")
        attacks = {name: budget for name in names}
        found = evaluate(**some, attacks=attacks)
        assert not found.rows and found.complete
        assert "(no ancestor is known)" in found.verdict[-1]
        base = some["reference"]
        found = evaluate(
            **some, attacks=attacks, ancestor=base, directory=tmp_path
        )
        accuracies = [row["accuracy"] for row in found.rows]
        assert accuracies[:2] == [pytest.approx(accuracies[0])] * 2
        assert found.rows[0]["advantage"] == pytest.approx(0.0)
        assert found.rows[0]["over"] == "Ancestor as it is"
        # Another ancestor has other records.
        other = keras.models.clone_model(base)
        paths = {
            Records(Case.of(**some, ancestor=one), tmp_path).path(name, budget)
            for one in (base, other)
            for name in ("known_ancestor", "spectral_blind")
        }
        assert len(paths) == 3

    def test_a_network_that_was_never_trained_gives_no_advantage(self):
        base = keras.models.clone_model(linear_classifier())
        never = given(base, 300)
        budget = Budget(epochs=12)
        names = ("from_scratch", "reverse_engineering", "fine_tuning_ftal")
        found = evaluate(**never, attacks=dict.fromkeys(names, budget))
        assert found.complete
        for row in found.rows[1:]:
            assert row["advantage_interval"][0] <= 0.0, row["attack"]

    def test_a_service_answers_for_the_labels(self, case, records):
        """Answers of the valid passport's, of pictures without labels."""
        x, labels = case.answered("disjoint", "labels")
        _, said = case.answered("disjoint", "probabilities")
        np.testing.assert_array_equal(x, case.examples("disjoint")[0])
        np.testing.assert_allclose(said.sum(-1), 1.0, atol=1e-5)
        assert labels.shape == (len(said),)
        # The pixels' part alone says most of it.
        assert np.mean(labels == case.examples("disjoint")[1]) > 0.8
        budget = Budget(source="disjoint", epochs=2)
        for name in ("queried_probabilities_reva", "distilled_probabilities"):
            record = records.perform(name, budget)
            assert record["result"]["budget"]["images"] == len(said)
        assert record["control"]
        assert ATTACKS["queried_labels_cerb"].over == "distilled_labels"

    def test_hidden_statistics_are_nothing_to_match(self, some):
        for layer in kp.protected_layers(some["model"]).values():
            layer.normalization.moving_mean.assign(np.zeros(4))
        names = ["statistics", "statistics_reva", "spectral_blind"]
        found = evaluate(**some, budget="standard", attacks=names)
        assert found.complete
        assert {row["attack"] for row in found.rows} == {"spectral_blind"}
        assert (
            "Statistics matching; Statistics matching, then RevA "
            "(the statistics are hidden)" in found.verdict[-2]
        )

    def test_what_a_battery_leaves_out_is_said(self, some):
        line = evaluate(**some, attacks=FAKES[:1]).verdict[-1]
        assert line.startswith("Left out of this battery: Fakes, fixed images")
        assert "Fakes, random patterns" not in line

    def test_changes_go_on_where_they_were_ended(
        self, some, case, tmp_path, monkeypatch
    ):
        def never(*args, **options):
            raise AssertionError("no training here")

        monkeypatch.setattr(owner, "fine_tuned", never)
        monkeypatch.setattr(owner, "_PRUNED", (0.5,))
        prune, calls = kp.attacks.prune, []

        def pruned(*args):
            calls.append(args)
            return prune(*args)

        monkeypatch.setattr(kp.attacks, "prune", pruned)
        for _ in range(2):
            errors = []
            changes = owner.Owner(case, some["passport"], tmp_path).changes(
                "quick", 0, errors
            )
            assert list(changes)[:2] == ["none", "50 % of the weights pruned"]
            assert len(changes) == 5
            # What broke is told, and tried again.
            assert len(errors) == 1 and "no training here" in errors[0]
            assert len(calls) == 1

    def test_another_network_has_other_records(self, some, tmp_path):
        x, y = some["test"]
        kinds = (
            some,
            given(linear_classifier(scale=2.0)),
            {**some, "test": (x[:200], y[:200])},
            {**some, "reference": None},
        )
        paths = {
            Records(Case.of(**kind), tmp_path).path("fake_fixed_image", budget)
            for kind in (*kinds, some)
            for budget in (Budget(), Budget(seed=1), Budget(epochs=3))
        }
        # Epochs are nothing to fakes.
        assert len(paths) == 8

    def test_every_attack_names_what_it_uses(self):
        fields = set(Budget.__dataclass_fields__)
        for name, attack in ATTACKS.items():
            assert set(attack.uses) <= fields, name
            assert ("seed" in attack.uses) == bool(attack.uses), name
            assert ATTACKS[attack.over].control, name
        for level in LEVELS:
            names = {name for name, _ in battery.plan(level)}
            assert names >= {*FAKES, "reverse_engineering", "from_scratch"}
        assert {name for name, _ in battery.plan("full")} == set(ATTACKS)

    def test_a_battery_on_other_parts_of_the_data(self):
        budgets = dict(battery.plan("quick", fractions=[0.25]))
        assert budgets["fine_tuning_ftal"].fraction == 0.25
        level = LEVELS["quick"].budget
        assert budgets["fine_tuning_ftal"].epochs == 4 * level.epochs
        assert budgets["fake_random_image"].fraction == Budget.fraction

    def test_attackers_and_judge_share_no_picture(self, case):
        mine, _ = case.examples("disjoint")
        judges, labels = case.judges()
        assert len(mine) + len(judges) == len(case.test[1])
        assert len(case.judges(60)[1]) == 60
        assert set(labels) == set(range(10))
        rows = {row.tobytes() for row in mine}
        # A few digits are in the data twice.
        assert sum(row.tobytes() in rows for row in judges) <= 2

    def test_some_pictures_of_a_folder_are_of_every_class(self, some):
        """Folders are read class by class."""
        x, y = some["train"]
        order = np.argsort(y, kind="stable")
        for chosen, expected in (
            (slice(None), x[:20]),
            (order, x[order][:: len(y) // 20][:20]),
        ):
            data = x[chosen], y[chosen]
            found = Case.of(**{**some, "train": data})
            np.testing.assert_array_equal(
                found.unlabelled("defender", 20, 0), expected
            )

    def test_a_model_of_several_inputs(self, tmp_path):
        inputs = {name: keras.Input((6,), name=name) for name in "ab"}
        hidden = keras.layers.Concatenate()(list(inputs.values()))
        hidden = keras.layers.Dense(8, use_bias=False)(hidden)
        hidden = keras.layers.BatchNormalization()(hidden)
        base = keras.Model(inputs, keras.layers.Dense(4)(hidden))
        model = kp.protect(base)
        rng = np.random.default_rng(0)
        x = {name: rng.normal(size=(40, 6)).astype("float32") for name in "ab"}
        data = x, np.arange(40) % 4
        passport = kp.Passport.random_pattern(model)
        case = Case.of(model, passport, data, data, reference=base)
        for name in ("fake_random_pattern", "reverse_engineering"):
            budget = Budget(num_fakes=1, epochs=1)
            record = Records(case, tmp_path).perform(name, budget)
            assert record["examples"] == 24


class TestAdvantage:
    """A, beside S: what an attack gains over training from scratch."""

    def given(self, name, accuracy, source="defender", fraction=0.1, **more):
        made = record(accuracy, validation=(accuracy,), **more)
        return {
            **made,
            "attack": name,
            "budget": {"source": source, "fraction": fraction},
        }

    def rows(self, *records):
        rows = [verdict.row(some, NUMBERS, LABELS) for some in records]
        advantages.add_advantages(rows, records, NUMBERS)
        return rows, verdict.verdict(rows, NUMBERS, [])

    def test_it_is_over_the_control_on_the_same_data(self):
        rows, lines = self.rows(
            self.given("fine_tuning_ftal", 0.6, title="FTAL"),
            self.given("fine_tuning_ftal", 0.7, fraction=1.0, title="FTAL"),
            self.given("from_scratch", 0.5, control=True),
            self.given("from_scratch", 0.8, control=True, fraction=1.0),
        )
        found = [row["advantage"] for row in rows]
        assert found[:2] == [pytest.approx(10), pytest.approx(-10)]
        assert found[2:] == [None, None]
        low, high = rows[0]["advantage_interval"]
        assert low < 10 < high
        assert lines[0].startswith("What an attacker gains: A = 10.0 (")
        assert "reaches 50.0 %" in lines[0]
        assert "FTAL on 10 % of the training data" in lines[0]
        assert lines[1].startswith("Worst case: FTAL on 100 %")
        assert verdict.table(rows, NUMBERS)[2].count("10.0 (") == 1

    def test_without_labels_it_is_over_saying_one_class(self):
        rows, lines = self.rows(record(0.3))
        assert rows[0]["advantage"] == pytest.approx(20.0)
        assert "always saying one class" in lines[0]

    def test_each_attack_is_measured_over_its_own_control(self):
        over = {"over": "ancestor_fine_tuned"}
        rows, lines = self.rows(
            {**self.given("difference", 0.9), **over},
            {**self.given("known_ancestor", 0.9), "over": "ancestor"},
            self.given("from_scratch", 0.5, control=True),
            self.given("ancestor_fine_tuned", 0.8, control=True, title="Tuned"),
        )
        found = [row["advantage"] for row in rows]
        assert found == [pytest.approx(10), None, None, None]
        assert "A = 10.0 (" in lines[0]
        assert "over Tuned on the same data, which reaches 80.0 %" in lines[0]

    @pytest.mark.parametrize("other", [{"seed": 1}, {"tuned": True}])
    def test_what_was_trained_otherwise_is_no_control(self, other):
        """Another seed draws other pictures; who tunes reaches more."""
        alike = {"seed": 0}
        made = [
            self.given("reverse_engineering", 0.6),
            self.given("from_scratch", 0.5, control=True),
        ]
        for one, more in zip(made, (alike, alike | other), strict=True):
            one["budget"].update(more)
        rows, lines = self.rows(*made)
        assert rows[0]["advantage"] is None
        made[1]["budget"] = dict(made[0]["budget"])
        rows, lines = self.rows(*made)
        assert rows[0]["advantage"] == pytest.approx(10)

    @pytest.mark.parametrize("tuned", [False, True])
    def test_a_search_is_over_a_control_that_is_tuned(self, tuned):
        """Also where the budget asks for no tuning."""
        made = [
            self.given("reverse_engineering_tuned", 0.6),
            self.given("from_scratch", 0.5, control=True),
        ]
        made[1]["budget"]["tuned"] = tuned
        rows, _ = self.rows(*made)
        assert rows[0]["advantage"] == (pytest.approx(10) if tuned else None)

    def test_without_a_control_nobody_knows(self):
        rows, lines = self.rows(self.given("reverse_engineering", 0.6))
        assert rows[0]["advantage"] is None
        assert lines[0].startswith("Worst case")
        assert "A = " not in "".join(verdict.table(rows, NUMBERS))
