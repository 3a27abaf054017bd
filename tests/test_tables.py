"""The program of Tables 2 and 4, as it runs on a GPU, but small."""

import json

import pytest
from absl import flags as absl_flags
from absl.testing import flagsaver

import tables
from common.rundir import RunDirectory, write_json
from keras_passport.attacks import AttackResult
from support.programs import EXAMPLES, SMALL, run, run_here, succeed

PROGRAM = EXAMPLES / "tables.py"
# What hides statistics is tried in `test_hiding`, on JAX too.
QUICK = ("--nohide_statistics", "--epochs=1")
GPU = ("--mixed_precision=bfloat16", "--steps_per_execution=2")


@pytest.mark.benchmark
def test_tables_on_jax(tmp_path):
    pytest.importorskip("jax")
    flags = (
        f"--dir={tmp_path}",
        "--functions=V3",
        "--kinds=random_pattern",
        "--reva_epochs=1",
    )
    options = {"program": PROGRAM, "backend": "jax", "runs": run}
    output, _ = succeed(*flags, "--", *SMALL, *GPU, *QUICK, **options)
    assert "RevA (Table 4)" in output
    for name in ("fakes.png", "reva.png"):
        assert (tmp_path / name).stat().st_size > 10_000
    (row,) = json.loads((tmp_path / "tables.json").read_text()).values()
    assert row["reva_strength"] == pytest.approx(row["valid"] - row["reva"])
    result = json.loads((tmp_path / "V3-T1" / "result.json").read_text())
    assert row["strength"] == result["protection_strength"]
    assert result["versions"]["backend"] == "jax"


def test_all_runs_share_the_first_ones_original(tmp_path, monkeypatch):
    calls = []

    def run_program(program, *arguments):
        given = dict(a.lstrip("-").split("=", 1) for a in arguments)
        calls.append((program, "reference" in given))
        folder = RunDirectory(given["run_dir"])
        if program == "cifar_resnet.py":
            folder.open({"reference": given.get("reference")})
            folder.original.write_bytes(b"the original")
            names = (
                *("original_accuracy", "valid_accuracy", "inconsistency"),
                *("fake_mean", "fake_deviation", "fake_maximum"),
                "protection_strength",
            )
            numbers = dict.fromkeys(names, 50.0)
            write_json(folder.result, {"network": "net", **numbers})
        else:
            folder.attacks.mkdir(exist_ok=True)
            result = AttackResult("RevA", (0.3,), (1.0,), {}, {}, 1.0)
            record = {
                "budget": {"fraction": 1.0, "epochs": 20},
                "result": result.to_dict(),
            }
            name = "reverse_engineering-0.json"
            write_json(folder.attacks / name, record)

    monkeypatch.setattr(tables, "run", run_program)
    absl_flags.FLAGS.mark_as_parsed()
    with flagsaver.flagsaver(dir=str(tmp_path), reva_epochs=20):
        for function in ("V1", "V2", "V1", "V2"):
            row = tables.measure(function, "random_pattern", tmp_path, [])
            assert row["reva_strength"] == pytest.approx(20.0)
    trainings = [call for call in calls if call[0] == "cifar_resnet.py"]
    assert [given for _, given in trainings] == [False, True, False, True]
    assert len(calls) == 8


def test_mistakes_are_named_in_one_line(tmp_path):
    for flags, expected in (
        (("--kinds=T1",), "--kinds of random_pattern"),
        (("--", "--dataset=mnist"), "ended with status"),
    ):
        status, output, errors = run_here(
            f"--dir={tmp_path}", *flags, program=PROGRAM
        )
        assert status != 0
        assert expected in errors
        assert "Traceback" not in errors.splitlines()[-1]
