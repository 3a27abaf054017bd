"""Owners, licensees and judges at the command line, with files alone."""

import json
import os
import shutil

import keras
import numpy as np
import pytest

import keras_passport as kp
from keras_passport.cli import disputes, parser
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


def damaged(folder):
    """Files of data that `record`, `license` and `verify` are to refuse."""
    x, y = examples(20, 5)
    whole = folder / "whole.npz"
    np.savez(whole, x=x, y=y)
    (folder / "cut.npz").write_bytes(whole.read_bytes()[:-200])
    (folder / "empty.npz").write_bytes(b"")
    np.save(folder / "lone.npy", x)
    np.savez(folder / "none.npz", x=x[:0], y=y[:0])
    np.savez(folder / "scalar.npz", x=np.float32(1), y=y)
    np.savez(folder / "grey.npz", x=x[..., :1], y=y)
    np.savez(folder / "text.npz", x=x.astype(str), y=y)
    np.savez(folder / "complex.npz", x=x.astype("complex64"), y=y)
    np.savez(folder / "nan.npz", x=x * np.nan, y=y)
    return sorted(p for p in folder.iterdir() if p != whole)


def test_damaged_data_is_a_mistake(folder, tmp_path, capsys):
    model, passport = of_owner(folder)
    dispute = tmp_path / "dispute"
    dispute.mkdir()
    for name in ("published.keras", "passport.h5"):
        shutil.copy(folder / name, dispute / name)
    shutil.copy(model, dispute / "suspect.keras")
    run(
        *("claim", model, passport, dispute / "claim.json", "--owner=Ada"),
        f"--opening={dispute / 'opening.json'}",
        f"--secret={folder / 'secret'}",
    )
    data = tmp_path / "data"
    data.mkdir()
    secret = tmp_path / "new.secret"
    for number, path in enumerate(damaged(data)):
        shutil.copy(path, dispute / "data.npz")
        for words in (
            ["record", model, passport, tmp_path / "r", f"--data={path}"],
            [
                *("license", model, passport, tmp_path / "l", "--licensee=A"),
                *(f"--ledger={tmp_path / 'new.ledger'}", f"--secret={secret}"),
                f"--data={path}",
            ],
            ["verify", dispute, "--nulls=2", "--fakes=2"],
        )[: 1 if number else 3]:
            capsys.readouterr()
            run(*words, status=2)
            told = capsys.readouterr().err
            assert "Expected" in told and told.count("\n") == 1, (path, told)
    assert not secret.exists() and not (tmp_path / "new.ledger").exists()
    # One-hot rows are labels, as for `evaluate`.
    x, y = examples(40, 5)
    np.savez(data / "hot.npz", x=x, y=np.eye(y.max() + 1)[y])
    run(
        *("record", model, passport, tmp_path / "r", "--repeats=2"),
        f"--data={data / 'hot.npz'}",
    )


def test_nothing_is_lost_by_a_name(folder, tmp_path, capsys):
    """Neither what is read, nor a passport, nor one of two outputs."""
    for name in ("published.keras", "passport.h5", "data.npz"):
        shutil.copy(folder / name, tmp_path / name)
    model, passport = tmp_path / "published.keras", tmp_path / "passport.h5"
    before = {p: p.read_bytes() for p in tmp_path.iterdir()}
    ledger = [f"--ledger={tmp_path / 'ledger'}", f"--secret={tmp_path / 's'}"]
    judged = f"--data={tmp_path / 'data.npz'}"
    claim = ("claim", model, passport)
    license = ("license", model, passport)
    for words in (
        [*claim, passport, "--owner=A", f"--opening={tmp_path / 'o'}"],
        [*claim, tmp_path / "c", "--owner=A", f"--opening={model}"],
        [*claim, tmp_path / "o", "--owner=A", f"--opening={tmp_path / 'o'}"],
        [*claim, tmp_path / "no/c", "--owner=A", f"--opening={tmp_path / 'o'}"],
        ["record", model, passport, passport, judged],
        ["record", model, passport, tmp_path / "data.npz", judged],
        [*license, passport, "--licensee=A", *ledger],
        [*license, tmp_path / "no/l", "--licensee=A", *ledger],
        [*license, tmp_path, "--licensee=A", *ledger],
        [*license, tmp_path / "ledger", "--licensee=A", *ledger],
        [*license, tmp_path / "s", "--licensee=A", *ledger],
        ["verify", tmp_path, f"--page={passport}"],
        ["verify", tmp_path, f"--out={tmp_path / 'no/report.json'}"],
    ):
        capsys.readouterr()
        run(*words, "--overwrite", status=2)
        assert capsys.readouterr().err.count("\n") == 1, words
        assert {p: p.read_bytes() for p in tmp_path.iterdir()} == before, words
    if os.path.exists("/dev/full"):
        opening = f"--opening={tmp_path / 'o'}"
        run(*claim, "/dev/full", "--owner=A", opening, "--overwrite", status=2)
        assert not (tmp_path / "o").exists()
    (tmp_path / "report.json").write_text("precious")
    run("verify", tmp_path, f"--out={tmp_path / 'report.json'}", status=2)
    assert (tmp_path / "report.json").read_text() == "precious"
    # A ledger has one secret, which a mistyped name must not replace.
    run(*license, tmp_path / "bob.h5", "--licensee=Bob", *ledger)
    typo = [ledger[0], f"--secret={tmp_path / 'typo'}"]
    run(*license, tmp_path / "al.h5", "--licensee=Al", *typo, status=2)
    assert not (tmp_path / "typo").exists()


def test_a_lost_licence_is_made_again(folder, tmp_path, capsys):
    """Also one of which nothing but the ledger's line was written."""
    model, passport = of_owner(folder)
    ledger = [f"--ledger={tmp_path / 'l'}", f"--secret={tmp_path / 's'}"]
    license = ("license", model, passport)
    first, again = tmp_path / "bob.h5", tmp_path / "again.h5"
    run(*license, first, "--licensee=Bob", *ledger)
    lines = (tmp_path / "l").read_bytes()
    run(*license, again, "--licensee=Bob", *ledger, status=2)
    run(*license, again, "--licensee=Bob", "--again", *ledger)
    assert again.read_bytes() == first.read_bytes()
    assert (tmp_path / "l").read_bytes() == lines
    data = f"--data={tmp_path / 'data.npz'}"
    for words in (
        [*license, tmp_path / "e", "--licensee=Eve", "--again"],
        [*license, tmp_path / "e", "--licensee=Bob", "--again", data],
        ["license", model, first, tmp_path / "e", "--licensee=Bob", "--again"],
    ):
        capsys.readouterr()
        run(*words, *ledger, status=2)
        assert capsys.readouterr().err.count("\n") == 1, words
        assert not (tmp_path / "e").exists()


def test_a_secret_is_made_once(tmp_path, monkeypatch):
    """Of two commands that see none, the second takes the first one's."""
    exists = os.path.exists
    monkeypatch.setattr(disputes.os.path, "exists", lambda path: False)
    first = disputes._secret(tmp_path / "s", create=True)
    assert disputes._secret(tmp_path / "s", create=True) == first
    assert exists(tmp_path / "s") and len(list(tmp_path.iterdir())) == 1


def test_leaks_and_dates_that_are_none(folder, tmp_path, capsys):
    model, passport = of_owner(folder)
    ledger = [f"--ledger={tmp_path / 'ledger'}", f"--secret={tmp_path / 's'}"]
    run(
        *("license", model, passport, tmp_path / "bob.h5", "--licensee=Bob"),
        *ledger,
    )
    for name in ("text.npy", "cut.npz"):
        (tmp_path / name).write_text("no array")
    np.save(tmp_path / "words.npy", np.array(["a"]))
    for name in ("text.npy", "cut.npz", "words.npy"):
        capsys.readouterr()
        run("trace", model, passport, tmp_path / name, *ledger, status=2)
        assert capsys.readouterr().err.count("\n") == 1
    claim, opening = kp.ownership.claim(
        kp.Passport.load(passport),
        owner="Ada",
        model=keras.saving.load_model(model),
    )
    given = claim, opening, kp.Passport.load(passport)
    published = keras.saving.load_model(model)
    for wrong in ("yesterday", "31.1.2026", ""):
        with pytest.raises(kp.PassportError, match="ISO date"):
            kp.ownership.Evidence(*given, published, dated=wrong)
    evidence = kp.ownership.Evidence(*given, published, dated="2026-01-31")
    with pytest.raises(kp.PassportError, match="suspect_dated"):
        kp.ownership.verify(
            published, evidence, examples(20, 5), suspect_dated="soon"
        )
