"""The programs that attack a run's network, as users run them."""

import html.parser
import json
import re
import shutil
import stat

import numpy as np
import pytest

import keras_passport as kp
from common.errors import UserError
from common.finished import FinishedRun
from support.planted_runs import linear_classifier, planted
from support.programs import (
    EXAMPLES,
    SMALL,
    finished_run,
    run_here,
    succeed,
)

ATTACK = EXAMPLES / "attack.py"
EVALUATE = EXAMPLES / "evaluate_protection.py"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return finished_run(tmp_path_factory)[0]


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


def test_augmented_pictures_stay_in_their_domain(tmp_path):
    given = planted(tmp_path / "run", linear_classifier()).given
    x = given["test"][0][:20]
    shown = given["augment"](x, np.random.default_rng(0))
    assert shown.shape == x.shape
    assert shown.min() >= x.min() - 1e-5
    assert shown.max() <= x.max() + 1e-5
    assert np.any(shown != x)


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
                FinishedRun(folder)

    def test_other_data_than_ours(self, tmp_path):
        (tmp_path / "config.json").write_text('{"dataset": "my pictures"}')
        with pytest.raises(UserError, match="Received: my pictures"):
            FinishedRun(tmp_path)
