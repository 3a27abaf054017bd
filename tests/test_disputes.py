"""Owners, licensees and judges at the command line, with files alone."""

import json
import shutil

import keras
import numpy as np
import pytest

import keras_passport as kp
from keras_passport.cli import parser
from support import programs
from support.owned_networks import Owned, examples, fitted, network


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What an owner has at release, made by the commands themselves."""
    folder = tmp_path_factory.mktemp("owner")
    keras.utils.set_random_seed(1)
    base = fitted(network(), 2)
    owned = Owned("Ada", "V3", "random_pattern", base)
    owned.public.save(folder / "published.keras")
    owned.passport.save(folder / "passport.h5")
    (folder / "secret").write_bytes(owned.secret)
    np.savez(folder / "data.npz", x=examples(200, 5)[0], y=examples(200, 5)[1])
    return folder


def run(*words, status=0):
    args = parser.parse(["keras-passport", *map(str, words)])
    assert parser.main(args) == status


def of_owner(folder):
    return folder / "published.keras", folder / "passport.h5"


def test_a_dispute_from_claim_to_verdict(folder, tmp_path, capsys):
    model, passport = of_owner(folder)
    run(
        "claim",
        model,
        passport,
        tmp_path / "claim.json",
        "--owner=Ada",
        f"--opening={tmp_path / 'opening.json'}",
        f"--secret={folder / 'secret'}",
    )
    run(
        "record",
        model,
        passport,
        tmp_path / "record.json",
        f"--data={folder / 'data.npz'}",
        "--repeats=2",
    )
    for name in ("published.keras", "passport.h5", "data.npz"):
        shutil.copy(folder / name, tmp_path / name)
    owner = kp.Passport.load(passport)
    stolen = kp.unlock(keras.saving.load_model(model), owner, fold=False)
    stolen.save(tmp_path / "suspect.keras")
    capsys.readouterr()
    reports = []
    for name in ("one.json", "two.json"):
        run("verify", tmp_path, f"--out={tmp_path / name}", "--fakes=20")
        reports.append((tmp_path / name).read_bytes())
    assert capsys.readouterr().out.startswith("DERIVED")
    assert reports[0] == reports[1]
    assert json.loads(reports[0])["verdict"] == "derived"
    # Somebody else's network, as bare variables.
    foreign = fitted(network(), 1)
    np.savez(
        tmp_path / "suspect.npz",
        **{v.path: keras.ops.convert_to_numpy(v) for v in foreign.variables},
    )
    run("verify", tmp_path, "--fakes=5", "--json", status=1)
    assert json.loads(capsys.readouterr().out)["verdict"] == "not shown"


def test_a_licence_and_its_leak(folder, tmp_path, capsys):
    model, passport = of_owner(folder)
    files = (
        f"--ledger={tmp_path / 'ledger'}",
        f"--secret={tmp_path / 'licensing.secret'}",
    )
    for name, judged in (
        ("bob", [f"--data={folder / 'data.npz'}", "--points=2"]),
        ("eve", []),
    ):
        run(
            "license",
            model,
            passport,
            tmp_path / f"{name}.h5",
            f"--licensee={name}",
            *files,
            *judged,
        )
    capsys.readouterr()
    licence = kp.Passport.load(tmp_path / "eve.h5")
    np.save(tmp_path / "packed.npy", licence.packed())
    protected = keras.saving.load_model(model)
    kp.unlock(protected, licence).save(tmp_path / "unlocked.keras")
    kp.bind(protected, licence)
    np.savez(
        tmp_path / "parameters.npz",
        **{
            f"{path}/{role}": value
            for path, layer in kp.protected_layers(protected).items()
            for role, value in zip(
                ("gamma", "beta"), layer.hidden_parameters(), strict=True
            )
        },
    )
    for leak in ("eve.h5", "packed.npy", "unlocked.keras", "parameters.npz"):
        run("trace", model, passport, tmp_path / leak, *files)
        assert capsys.readouterr().out.startswith("eve\n")
    run("trace", model, passport, passport, "--json", *files, status=1)
    assert json.loads(capsys.readouterr().out)["verdict"] == "nobody"


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["claim", "{model}", "{passport}", "{new}", "--owner="], "name of 1"),
        (
            ["claim", "{model}", "{passport}", "{model}", "--owner=A"],
            "overwrite",
        ),
        (
            [
                "record",
                "{model}",
                "{passport}",
                "{new}",
                "--data={passport}",
            ],
            "numpy.savez",
        ),
        (["verify", "{empty}"], "claim at"),
        (
            [
                "license",
                "{model}",
                "{passport}",
                "{new}.h5",
                "--licensee=Bob",
                "--ledger={new}.jsonl",
                "--secret={new}.secret",
                "--points=1",
            ],
            "--data",
        ),
        (
            [
                "license",
                "{model}",
                "{new}",
                "{new}.h5",
                "--licensee=Bob",
                "--ledger={new}.jsonl",
                "--secret={new}.secret",
            ],
            "passport",
        ),
        (
            [
                "trace",
                "{model}",
                "{passport}",
                "{passport}",
                "--ledger={new}",
                "--secret={model}",
            ],
            "32 bytes",
        ),
    ],
)
def test_mistakes_end_in_one_line(words, match, folder, tmp_path, capsys):
    model, passport = of_owner(folder)
    names = {
        "model": model,
        "passport": passport,
        "new": tmp_path / "new",
        "empty": tmp_path,
    }
    words = [word.format(**names) for word in words]
    if words[0] == "claim":
        words.append(f"--opening={tmp_path / 'opening.json'}")
    run(*words, status=2)
    told = capsys.readouterr().err
    assert match in told and told.count("\n") == 1
    # No secret was made for what did not come about.
    assert not (tmp_path / "new.secret").exists()


@pytest.mark.parametrize(
    ("example", "given", "said"),
    [
        pytest.param(
            "verify",
            ("--epochs=2", "--fakes=2", "--foreign=0"),
            "CONTESTED: several claims hold; that of Ada Ltd is the earlier",
            marks=pytest.mark.benchmark,
        ),
        (
            "licensing",
            ("--epochs=1", "--licensees=20"),
            "as γ and β:\nlicensee 7",
        ),
    ],
)
def test_the_examples(example, given, said, tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    output, _ = programs.succeed(
        *given, program=programs.EXAMPLES / f"{example}.py"
    )
    assert said in output
