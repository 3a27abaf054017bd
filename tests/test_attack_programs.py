"""Attacks on a run's network: planted cases, and the programs as users run."""

import html.parser
import json
import re
import shutil
import stat

import numpy as np
import pytest

import keras_passport as kp
from common import attacks, battery, evaluation, page, verdict
from common.attacks import Budget
from common.battery import Level
from common.case import Owner
from common.errors import UserError
from keras_passport.attacks import AttackResult, training
from support.planted_runs import linear_classifier, planted
from support.programs import EXAMPLES, SMALL, run_here, succeed

FAKES = [name for name in attacks.ATTACKS if name.startswith("fake_")]
ATTACK = EXAMPLES / "attack.py"
EVALUATE = EXAMPLES / "evaluate_protection.py"
FEW = Level(Budget(num_fakes=4, examples=60, epochs=1), (1.0,))


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setitem(battery.LEVELS, "quick", FEW)


def rows_of(owner):
    return json.loads(owner.directory.protection.read_text())["rows"]


class TestPlanted:
    def test_a_network_that_ignores_its_passport(self, tmp_path):
        owner = planted(tmp_path / "run", linear_classifier())
        lines, complete = evaluation.evaluate(owner, "quick", FAKES)
        assert complete
        rows = rows_of(owner)
        assert [row["attack"] for row in rows] == FAKES
        assert {row["status"] for row in rows} == {"falls"}
        for row in rows:
            assert row["successes"] == row["trials"] == 4
            assert not row["paralysed"]
        text = "\n".join(lines)
        assert "not well-protected (S > 50)" in text
        assert ": well-protected" not in text
        report = owner.directory.report.read_text()
        assert "not well-protected" in report

    def test_a_network_that_always_says_the_same(self, tmp_path):
        owner = planted(tmp_path / "run", linear_classifier(scale=0.0))
        lines, _ = evaluation.evaluate(owner, "quick", FAKES)
        rows = rows_of(owner)
        assert {row["status"] for row in rows} == {"void"}
        assert all(row["paralysed"] for row in rows)
        assert {row["entropy"] for row in rows} == {0.0}
        text = "\n".join(lines)
        assert "No verdict" in text
        assert "paralysed for its owner too" in text
        assert "well-protected" not in text
        assert '<div class="verdict ">' in owner.directory.report.read_text()


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
    def owner(self, tmp_path):
        return planted(tmp_path / "run", linear_classifier())

    def test_a_killed_battery_goes_on(self, owner, monkeypatch):
        calls = []
        tried = kp.attacks.fake_passports

        def stopped(model, kind, *args, **options):
            calls.append(kind)
            if len(calls) == 3:
                raise KeyboardInterrupt
            return tried(model, kind, *args, **options)

        monkeypatch.setattr(kp.attacks, "fake_passports", stopped)
        with pytest.raises(KeyboardInterrupt):
            evaluation.evaluate(owner, "quick", FAKES)
        assert not owner.directory.report.exists()
        evaluation.evaluate(owner, "quick", FAKES)
        assert calls == [
            "random_pattern",
            "fixed_image",
            "random_image",
            "random_image",
            "known_images",
        ]
        before = rows_of(owner)
        for path in owner.directory.attacks.iterdir():
            path.unlink()
        evaluation.evaluate(owner, "quick", FAKES)
        for one, other in zip(before, rows_of(owner), strict=True):
            assert {**one, "seconds": 0} == {**other, "seconds": 0}

    def test_a_long_series_goes_on(self, owner, monkeypatch):
        budget = Budget(num_fakes=7, examples=60)
        name, folder = "fake_random_image", owner.directory.attacks
        whole = battery.perform(owner.case, name, budget, folder)
        battery.record_path(folder, owner.case, name, budget).unlink()
        monkeypatch.setattr(attacks, "_BETWEEN", 3 * 60)
        tried, calls = kp.attacks.fake_passports, []

        def stopped(*args, start, **options):
            calls.append(start)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return tried(*args, start=start, **options)

        monkeypatch.setattr(kp.attacks, "fake_passports", stopped)
        with pytest.raises(KeyboardInterrupt):
            battery.perform(owner.case, name, budget, folder)
        parts = battery.perform(owner.case, name, budget, folder)
        assert calls == [0, 3, 3, 6]
        for key in ("accuracies", "entropies", "history", "budget"):
            assert parts["result"][key] == whole["result"][key]
        assert len(list(folder.iterdir())) == 1

    def test_a_killed_search_goes_on(self, owner, monkeypatch):
        budget = Budget(fraction=0.2, epochs=1)
        name, folder = "reverse_engineering_tuned", owner.directory.attacks
        monkeypatch.setattr(attacks, "_TUNED", 2)
        trained, calls = training.run, []

        def stopped(*args, **options):
            calls.append(1)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return trained(*args, **options)

        monkeypatch.setattr(training, "run", stopped)
        with pytest.raises(KeyboardInterrupt):
            battery.perform(owner.case, name, budget, folder)
        [part] = folder.iterdir()
        assert part.suffix == ".part"
        record = battery.perform(owner.case, name, budget, folder)
        assert len(record["result"]["accuracies"]) == 2
        # Two trials, the one that was stopped, and the leader once more.
        assert len(calls) == 4
        assert [path.suffix for path in folder.iterdir()] == [".json"]

    def test_what_an_attack_found_is_kept_for_the_next(
        self, owner, monkeypatch
    ):
        folder, calls, starts = owner.directory.attacks, [], []
        found = kp.attacks.statistics_matching
        reva = kp.attacks.reverse_engineering

        def counted(*args, **options):
            calls.append("statistics")
            return found(*args, restarts=1, rounds=1, **options)

        def started(*args, start, **options):
            starts.append(start)
            return reva(*args, start=start, **options)

        monkeypatch.setattr(kp.attacks, "statistics_matching", counted)
        monkeypatch.setattr(kp.attacks, "reverse_engineering", started)
        for fraction in (0.5, 1.0):
            budget = Budget(fraction=fraction, epochs=1)
            record = battery.perform(
                owner.case, "statistics_reva", budget, folder
            )
        assert record["result"]["name"].startswith("statistics matching, then")
        # Unlabelled pictures are the same whatever part of the labels is had.
        assert len(calls) == 1
        [path] = folder.glob("statistics-*.json")
        history = json.loads(path.read_text())["result"]["history"]
        assert "parameters" not in history[0]
        written = json.loads(path.with_suffix(".found").read_text())
        assert starts == [written, written]
        # Without it, the first attack is tried again.
        path.with_suffix(".found").unlink()
        budget = Budget(fraction=0.2, epochs=1)
        battery.perform(owner.case, "statistics_reva", budget, folder)
        assert len(calls) == 2 and starts[2] == written

    def test_data_and_epochs_are_those_of_the_budget(self, owner):
        few, all_of_them = (
            battery.perform(
                owner.case,
                "reverse_engineering",
                Budget(source="disjoint", fraction=fraction, epochs=2),
                owner.directory.attacks,
            )
            for fraction in (0.5, 1.0)
        )
        mine = len(owner.case.examples("disjoint")[1])
        assert all_of_them["result"]["budget"]["images"] == mine
        assert few["result"]["budget"]["images"] == pytest.approx(mine / 2, 0.1)
        [history] = few["result"]["history"]
        assert len(history["history"]["val_accuracy"]) == 2
        # The pixels' part alone is as good as that.
        assert few["result"]["accuracies"][0] > 0.8

    def test_an_attack_that_breaks_costs_no_other(self, owner, monkeypatch):
        def broken(case, budget, start):
            raise RuntimeError("out of memory\nand more")

        attack = attacks.ATTACKS["fake_fixed_image"]
        monkeypatch.setitem(
            attacks.ATTACKS,
            "fake_fixed_image",
            attacks.Attack(
                "Broken", "nothing", attack.uses, broken, True, True
            ),
        )
        lines, complete = evaluation.evaluate(owner, "quick", FAKES)
        assert not complete
        assert len(rows_of(owner)) == 3
        assert "Broken (error: RuntimeError: out of memory)" in lines[-2]
        monkeypatch.setitem(attacks.ATTACKS, "fake_fixed_image", attack)
        _, complete = evaluation.evaluate(owner, "quick", FAKES)
        assert complete
        assert len(rows_of(owner)) == 4

    def test_a_record_of_forged_keys_tells_no_norm(self, owner):
        path = owner.directory.attacks
        record = battery.perform(owner.case, "key_forgery", Budget(), path)
        [about] = record["result"]["history"]
        assert about["systems"]
        for system in about["systems"]:
            assert {"rank", "residual"} <= system.keys()
            assert "norm" not in system

    def test_the_spectral_attack_spends_its_epochs(self, owner):
        record = battery.perform(
            owner.case,
            "spectral",
            Budget(source="disjoint", fraction=0.5, epochs=2),
            owner.directory.attacks,
        )
        [told] = record["result"]["history"]
        assert told["epochs"] == len(told["history"]["val_accuracy"]) == 2
        assert told["augment"]

    def test_hidden_statistics_are_nothing_to_match(self, owner):
        for layer in kp.protected_layers(owner.case.model).values():
            layer.normalization.moving_mean.assign(np.zeros(4))
        names = ["statistics", "statistics_reva", "fake_random_pattern"]
        lines, complete = evaluation.evaluate(owner, "standard", names)
        assert complete
        assert {r["attack"] for r in rows_of(owner)} == {"fake_random_pattern"}
        assert "Statistics matching (the statistics are hidden)" in lines[-2]

    def test_what_a_battery_leaves_out_is_said(self, owner):
        lines, _ = evaluation.evaluate(owner, "quick", FAKES)
        assert lines[-1].startswith("Left out of this battery: RevA; RevA, tu")
        assert "Fakes" not in lines[-1]
        with pytest.raises(UserError, match="--budget=quick has"):
            evaluation.evaluate(owner, "quick", ["spectral_reva"])

    def test_changes_go_on_where_they_were_ended(self, owner, monkeypatch):
        def never(*args, **options):
            raise AssertionError("no training here")

        monkeypatch.setattr(attacks, "fine_tuned", never)
        monkeypatch.setattr(evaluation, "_PRUNED", (0.5,))
        prune, calls = kp.attacks.prune, []

        def pruned(*args):
            calls.append(args)
            return prune(*args)

        monkeypatch.setattr(kp.attacks, "prune", pruned)
        for _ in range(2):
            errors = []
            changes = evaluation._changes(owner, "quick", 0, errors)
            assert list(changes)[:2] == ["none", "50 % of the weights pruned"]
            assert len(changes) == 5
            # What broke is told, and tried again.
            assert len(errors) == 1 and "no training here" in errors[0]
            assert len(calls) == 1

    def test_another_network_has_other_records(self, owner, tmp_path):
        other = planted(tmp_path / "other", linear_classifier())
        paths = {
            battery.record_path(tmp_path, one.case, "fake_fixed_image", budget)
            for one in (owner, other)
            for budget in (Budget(), Budget(seed=1), Budget(epochs=3))
        }
        # Epochs are nothing to fakes.
        assert len(paths) == 4

    def test_every_attack_names_what_it_uses(self):
        fields = set(Budget.__dataclass_fields__)
        for name, attack in attacks.ATTACKS.items():
            assert set(attack.uses) <= fields, name
            spends = name not in ("key_forgery", "spectral_blind")
            assert ("seed" in attack.uses) == spends, name
        for level in battery.LEVELS:
            names = {name for name, _ in battery.plan(level)}
            assert names >= {*FAKES, "reverse_engineering", "from_scratch"}
        assert {name for name, _ in battery.plan("full")} == set(
            attacks.ATTACKS
        )

    def test_a_battery_on_other_parts_of_the_data(self):
        budgets = dict(battery.plan("quick", fractions=[0.25]))
        assert budgets["fine_tuning_ftal"].fraction == 0.25
        level = battery.LEVELS["quick"].budget
        assert budgets["fine_tuning_ftal"].epochs == 4 * level.epochs
        assert budgets["fake_random_image"].fraction == Budget.fraction

    def test_attackers_and_judge_share_no_picture(self, owner):
        case = owner.case
        mine, _ = case.examples("disjoint")
        judges, labels = case.judges()
        assert len(mine) + len(judges) == len(case.dataset.x_test)
        assert len(case.judges(60)[1]) == 60
        assert set(labels) == set(range(10))
        rows = {row.tobytes() for row in mine}
        # A few digits are in the data twice.
        assert sum(row.tobytes() in rows for row in judges) <= 2

    def test_augmented_pictures_stay_in_their_domain(self, owner):
        x, _ = owner.case.judges(20)
        rng = np.random.default_rng(0)
        shown = owner.case.augment(x, rng)
        assert shown.shape == x.shape
        assert shown.min() >= x.min() - 1e-5
        assert shown.max() <= x.max() + 1e-5
        assert np.any(shown != x)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "digits"
    succeed(*SMALL, f"--run_dir={folder}")
    return folder


class Page(html.parser.HTMLParser):
    """Tags that are open, and what the page would load."""

    def __init__(self, text):
        super().__init__()
        self.open, self.loads = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "img"):
            self.open.append(tag)
        self.loads += [v for k, v in attrs if k in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


class TestPrograms:
    def test_one_attack(self, finished):
        output, _ = succeed(
            f"--run_dir={finished}",
            "--attack=fake_fixed_image",
            "--num_fakes=3",
            "--examples=50",
            program=ATTACK,
        )
        assert "Fakes, fixed images (T2)" in output
        [path] = (finished / "attacks").glob("fake_fixed_image-*.json")
        found = json.loads(path.read_text())
        assert found["budget"]["num_fakes"] == 3
        assert len(found["result"]["accuracies"]) == 3
        assert str(path) in output

        # The run's own result has it, too, and keeps it.
        def rows():
            result = json.loads((finished / "result.json").read_text())
            assert "valid_accuracy" in result
            return result["attacks"]

        row = rows()[path.stem]
        best = 100 * max(found["result"]["accuracies"])
        assert row["accuracy"] == pytest.approx(best)
        assert row["budget"] == found["budget"]
        succeed(*SMALL, f"--run_dir={finished}")
        assert rows()[path.stem] == row

    def test_the_battery(self, finished):
        flags = (
            f"--run_dir={finished}",
            "--budget=quick",
            "--only=fake_random_pattern,fake_known_images",
        )
        output, _ = succeed(*flags, program=EVALUATE)
        assert "report.html" in output
        text = (finished / "report.html").read_text()
        parsed = Page(text)
        assert parsed.open == []
        assert len(parsed.loads) == 3
        for address in parsed.loads:
            assert address.startswith("data:image/png;base64,")
        assert 'name="viewport"' in text
        assert "<script" not in text and "http" not in text

        # What tells secrets is the owner's alone.
        for name in ("hits.json", "noise.json"):
            mode = (finished / "owner" / name).stat().st_mode
            assert stat.S_IMODE(mode) == 0o600
        hits = json.loads((finished / "owner" / "hits.json").read_text())
        assert len(hits["right"]) == 100
        passport = kp.Passport.load(finished / "owner" / "passport.h5")
        words = re.sub(r"base64,[^\"]*", "", text) + "".join(
            path.read_text()
            for path in (
                finished / "protection.json",
                *(finished / "attacks").iterdir(),
            )
        )
        assert passport.seed.hex() not in words
        assert "right" not in json.loads(
            (finished / "protection.json").read_text()
        )
        for entry in passport.layers.values():
            for value in entry.key("gamma").ravel()[:20]:
                digits = repr(float(value))
                assert len(digits) < 10 or digits not in words

    @pytest.mark.parametrize(
        "program, flags, expected",
        [
            (ATTACK, ("--attack=magic",), "fake_random_pattern"),
            (
                ATTACK,
                ("--attack=fake_random_pattern", "--fraction=0.5"),
                "takes --num_fakes",
            ),
            (EVALUATE, ("--only=magic",), "magic"),
            (EVALUATE, ("--fractions=0.1,none",), "Received: 0.1,none"),
        ],
    )
    def test_wrong_flags(self, finished, program, flags, expected):
        status, output, errors = run_here(
            f"--run_dir={finished}", *flags, program=program
        )
        assert status != 0
        assert expected in output + errors
        assert "Traceback" not in errors

    def test_no_run_is_named_in_one_line(self, tmp_path):
        status, _, errors = run_here(f"--run_dir={tmp_path}", program=EVALUATE)
        assert status != 0
        assert errors.strip().splitlines()[-1].endswith("holds no run.")
        assert "Traceback" not in errors


class TestRunsThatAreNotFinished:
    def test_what_is_missing_is_named(self, finished, tmp_path):
        for name, expected in (
            ("owner/passport.h5", "passport.h5"),
            ("public/protected.keras", "protected.keras is missing"),
            ("config.json", "holds no run"),
        ):
            folder = tmp_path / "run"
            shutil.copytree(finished, folder, dirs_exist_ok=True)
            (folder / name).unlink()
            with pytest.raises((UserError, kp.PassportError), match=expected):
                Owner(folder)

    def test_other_data_than_ours(self, tmp_path):
        (tmp_path / "config.json").write_text('{"dataset": "my pictures"}')
        with pytest.raises(UserError, match="Received: my pictures"):
            Owner(tmp_path)
