"""The command as a process of its own: its streams, names, and what is there.

In the tests' process much is imported, open and encoded already.
"""

import json
import os
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest

import keras_passport as kp
from keras_passport import licensing
from keras_passport.cli import parser
from support.processes import python_path, run_in_fresh_process

NAME = "größe_γ"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A network, its passport, and two licences of which one has leaked."""
    folder = tmp_path_factory.mktemp("owner")
    base = keras.Sequential([keras.Input((6,)), keras.layers.Dense(60)])
    base.layers[0].name = NAME
    model, passport = kp.protect_trained(base, order=False)
    model.save(folder / "public.keras")
    passport.save(folder / "owner.h5")
    secret = kp.ownership.new_secret()
    (folder / "secret").write_bytes(secret)
    ledger = licensing.Ledger(folder / "ledger", secret)
    licensor = licensing.Licensor(passport, model, secret)
    for name in ("Ann", "Bob"):
        licensor.issue(name, ledger).save(folder / f"{name}.h5")
    return folder


def start(*words, shell="", folder=None, **variables):
    """What a command gives as a process, started by a shell."""
    line = ["sh", "-c", f'"$@" {shell}', "sh", sys.executable]
    return subprocess.run(
        [*line, "-m", "keras_passport", *words],
        cwd=folder,
        env={
            **os.environ,
            "KERAS_BACKEND": keras.backend.backend(),
            "PYTHONPATH": python_path(),
            **variables,
        },
        capture_output=True,
        encoding=variables.get("PYTHONIOENCODING", "utf-8"),
        timeout=300,
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trace", "public.keras", "owner.h5", "Bob.h5"], "Bob"),
        (
            ["license", "public.keras", "owner.h5", "eve.h5", "--licensee=Eve"],
            "3 licences so far",
        ),
    ],
    ids=lambda words: words[0],
)
def test_what_is_there_already_is_used(words, said, folder):
    """A secret and a ledger: of the second licence on, and in each trace."""
    done = start(
        *words,
        *("--ledger=ledger", "--secret=secret"),
        folder=folder,
        # Which is imported sooner, and computes nothing here; of NumPy 1.26
        # Keras then makes a warning.
        KERAS_BACKEND="numpy",
        PYTHONWARNINGS="ignore::FutureWarning",
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert said in done.stdout


def test_modules_do_not_depend_on_what_ran_before():
    printed = run_in_fresh_process(
        "import keras_passport as kp\n"
        "print(kp.ownership.claim_secret.SECRET_BYTES)\n"
        "print(kp.models.keyed_function.__name__)\n"
        "for package, name in ((kp, 'nothing'), (kp.ownership, '_claims')):\n"
        "    try:\n"
        "        getattr(package, name)\n"
        "    except AttributeError as error:\n"
        "        print(error)\n",
        backend="numpy",
    )
    lines = printed.splitlines()
    assert lines[:2] == ["32", "keyed_function"]
    assert "has no attribute 'nothing'. It offers Kernel" in lines[2]
    assert "has no attribute '_claims'. It offers Claim" in lines[3]


@pytest.mark.parametrize("encoding", ("ascii", "cp1252", "utf-8"))
def test_names_that_a_stream_cant_encode(encoding, folder):
    done = start("show", "owner.h5", folder=folder, PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (0, "")
    # Of what it can't show, escapes; nothing is lost.
    shown = NAME.encode(encoding, "backslashreplace").decode(encoding)
    assert shown in done.stdout
    for command in ("claim", "trace", "license"):
        done = start(command, "--help", PYTHONIOENCODING=encoding)
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("words", "closed", "status"),
    [
        (["show", "owner.h5"], ">&-", 0),
        (["show", "missing.h5"], "2>&-", 2),
        (["spec", "public.keras"], "2>&-", 0),
        (["leaks", "owner.h5", "owner.h5"], "<&- >&- 2>&-", 1),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, list) else None,
)
def test_streams_that_are_closed(words, closed, status, folder):
    done = start(*words, shell=closed, folder=folder)
    assert done.returncode == status
    assert (words[0] == "spec") == ('"layers"' in done.stdout)


def test_no_file_takes_the_number_of_a_closed_stream():
    """What TensorFlow tells from C++ would be written into it."""
    program = (
        "import os\nfrom keras_passport.cli import streams\nstreams.prepare()\n"
        "print(os.open(os.devnull, os.O_RDONLY))"
    )
    done = subprocess.run(
        ["sh", "-c", '"$@" <&- 2>&-', "sh", sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": python_path()},
        capture_output=True,
        text=True,
    )
    assert int(done.stdout) > 2


@pytest.mark.parametrize(
    ("words", "variables", "said"),
    [
        (["inspect", "public.keras"], {"KERAS_BACKEND": "none"}, "none"),
        (["show", "owner.h5", "--verbosity=loud"], {}, "'loud'"),
        (["new", "public.keras", "-"], {}, "one of that name is './-'"),
        (["claim", "public.keras", "owner.h5", "-", "--owner=A"], {}, "'-'"),
    ],
    ids=lambda given: given[0] if isinstance(given, list) else None,
)
def test_mistakes_end_in_one_line(words, variables, said, folder):
    done = start(*words, folder=folder, **variables)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("keras-passport: Expected ")
    assert said in done.stderr.partition("Received: ")[2]
    assert done.stderr.count("\n") == 1
    assert not (folder / "-").exists()


def test_without_docstrings(folder):
    done = start("show", "owner.h5", folder=folder, PYTHONOPTIMIZE="2")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_home_folder_is_known_after_an_equals_sign(folder, tmp_path):
    """Where no shell puts another name in its place."""
    model = keras.saving.load_model(folder / "public.keras")
    (folder / "spec.json").write_text(json.dumps(kp.passport_spec(model)))
    done = start(
        "pack",
        "~/owner.h5",
        "--spec=~/spec.json",
        "--out=~/packed.npy",
        folder=tmp_path,
        HOME=str(folder),
    )
    assert (done.returncode, done.stderr) == (0, "")
    np.testing.assert_array_equal(
        np.load(folder / "packed.npy"),
        kp.Passport.load(folder / "owner.h5").packed(),
    )


def test_an_interrupt_that_has_become_another_error(capsys):
    """TensorFlow makes a `ValueError` of one that comes while it traces."""

    def run(args):
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            raise ValueError("in user code") from None

    args = parser.parse(["keras-passport", "show", "owner.h5"])
    args.run = run
    # A suite in the background of a shell ignores interrupts.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert parser.main(args) == 130
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == "keras-passport: interrupted\n"
