"""README's quickstart, its script and its notebook run as they stand."""

import contextlib
import io
import json
import re

import keras
import pytest

from support.processes import REPOSITORY, run_in_fresh_process

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="nothing in them depends on the backend; once is enough",
)


def readme():
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    [block] = re.findall(
        r"<!-- quickstart -->\n```python\n(.*?)```", text, re.S
    )
    return block


def script():
    path = REPOSITORY / "examples" / "quickstart.py"
    return path.read_text(encoding="utf-8")


def notebook():
    path = REPOSITORY / "examples" / "quickstart.ipynb"
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    codes = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    # A notebook shows the last line's value. Installing is not tried here.
    shown = [
        re.sub(r"^(accuracy\(.*)$", r"print(\1)", code, flags=re.M)
        for code in codes
        if not code.startswith("%")
    ]
    assert len(shown) == len(codes) - 1
    return "\n".join(shown)


def accuracies(printed):
    return [float(n) for n in re.findall(r"(\d+\.\d) %", printed)]


def run_here(code):
    """What a program prints; with a namespace of its own, in this process."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, {"__name__": "__main__"})
    return printed.getvalue()


@pytest.mark.parametrize(
    "program, run",
    # Nothing but the script is tried with what a process of its own has.
    [(script, run_in_fresh_process), (notebook, run_here)],
    ids=["script", "notebook"],
)
def test_right_and_wrong_passports(program, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    printed = run(program())
    original, valid, fake, served = accuracies(printed)
    # Ten classes. Every run draws a passport of its own: 360 pictures, and
    # several standard deviations of room.
    assert min(original, valid) > 75
    assert fake < 45
    assert served == valid
    assert "has no passport" in printed


def test_readme(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    printed = run_here(readme())
    assert "has no passport" in printed
    # In relation to probabilities of a thousand classes.
    assert float(printed.split()[-1]) < 1e-5
    assert (tmp_path / "owner.h5").stat().st_mode & 0o777 == 0o600
