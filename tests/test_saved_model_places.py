"""Where a SavedModel may be written: one rule for all who write one.

What was there before is compared byte for byte; whether it may be replaced is
written down here for each kind of thing, not taken from the package.
"""

import os
import pathlib
import shutil
import sys

import keras
import pytest

import keras_passport as kp
from keras_passport import files
from keras_passport.cli import parser
from keras_passport.passports import passport_file
from support.plain_models import plain_cnn, randomize
from support.programs import run_here

SERVE = pathlib.Path(__file__).parents[1] / "examples" / "serve.py"

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="SavedModels"
)


def nothing(place, made):
    pass


def empty(place, made):
    place.mkdir()


def saved_model(place, made):
    shutil.copytree(made / "served", place)


def plain_saved_model(place, made):
    place.mkdir()
    (place / "saved_model.pb").write_bytes(b"somebody's")
    (place / "variables").mkdir()


def link_to_nothing(place, made):
    place.symlink_to(place.with_name("elsewhere"))


def link_to_one(place, made):
    saved_model(place.with_name("elsewhere"), made)
    link_to_nothing(place, made)


def file(place, made):
    place.write_text("mine")


def passport(place, made):
    shutil.copy(made / "owner.h5", place)


def fifo(place, made):
    os.mkfifo(place)


def folder(place, made):
    place.mkdir()
    (place / "notes.txt").write_text("mine")


def assets_alone(place, made):
    (place / "assets").mkdir(parents=True)
    (place / "assets" / "passport_spec.json").write_text("{}")


def passport_beside(place, made):
    saved_model(place, made)
    shutil.copy(made / "owner.h5", place)


def hidden_file_beside(place, made):
    saved_model(place, made)
    (place / ".git").mkdir()


def passport_among_assets(place, made):
    saved_model(place, made)
    shutil.copy(made / "owner.h5", place / "assets")


def no_parent(place, made):
    place.parent.rmdir()


# Whether it may be written there: at once, or only if that is asked for.
FREE = (nothing, link_to_nothing)
ASKED = (empty, saved_model, plain_saved_model, link_to_one)
NEVER = (
    file,
    passport,
    fifo,
    folder,
    assets_alone,
    passport_beside,
    hidden_file_beside,
    passport_among_assets,
    no_parent,
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    model = kp.protect(randomize(plain_cnn()))
    model.save(folder / "protected.keras")
    kp.Passport.random_pattern(model).save(folder / "owner.h5")
    kp.export_saved_model(model, folder / "served")
    return folder


def library(made, place, overwrite):
    model = keras.saving.load_model(made / "protected.keras")
    kp.export_saved_model(model, place, overwrite=overwrite)


def context(made, place, overwrite):
    with files.replacing_folder(place, overwrite, True) as folder:
        (folder / "saved_model.pb").write_bytes(b"new")


def command(made, place, overwrite):
    words = ["export", str(made / "protected.keras"), str(place)]
    words += ["--overwrite"] * overwrite
    status = parser.main(parser.parse(["keras-passport", *words]))
    if status:
        assert status == 2
        raise FileExistsError


def example(made, place, overwrite):
    """Up to where it has looked: what it makes is tried in test_examples.py."""
    status, _, errors = run_here(
        f"--model={made / 'protected.keras'}",
        f"--passport={made / 'owner.h5'}",
        f"--saved_model={place}",
        "--dataset=digits",
        *["--overwrite"] * overwrite,
        program=SERVE,
    )
    assert status == 2
    print(errors, file=sys.stderr)
    if errors.startswith("serve.py: --saved_model: Expected"):
        raise FileExistsError
    # Which it says only once it may write there.
    assert "The network takes pictures" in errors
    context(made, place, overwrite)


WRITERS = (library, command, context, example)


def everything(top):
    return {
        path: path.read_bytes() if path.is_file() else path.lstat().st_mode
        for path in top.rglob("*")
    }


# What is never replaced, by any: asked or not, the same line says so.
CASES = [
    (kind, writer, overwrite)
    for kind in FREE + ASKED + NEVER
    for writer in WRITERS
    for overwrite in (False, True)
    if writer is context or kind in ASKED or overwrite == (kind in NEVER)
]


@pytest.mark.parametrize(("kind", "writer", "overwrite"), CASES)
def test_what_is_there_is_replaced_or_stays(
    kind, writer, overwrite, made, tmp_path, capsys
):
    # What is among assets only those see who know what a passport is.
    if kind is passport_among_assets and writer in (context, example):
        return
    (tmp_path / "top").mkdir()
    place = tmp_path / "top" / "place"
    kind(place, made)
    before = everything(tmp_path)
    if kind in FREE or (kind in ASKED and overwrite):
        writer(made, place, overwrite)
        after = everything(tmp_path)
        assert after != before
        assert (place / "saved_model.pb").read_bytes() != b"somebody's"
        assert place.is_symlink() == (kind in (link_to_nothing, link_to_one))
    else:
        with pytest.raises(OSError):
            writer(made, place, overwrite)
        assert everything(tmp_path) == before
        if writer in (command, example):
            said = capsys.readouterr().err
            assert "Expected" in said and "Received: " in said
            if kind is not passport_among_assets:
                assert ("--overwrite" in said) == (kind in ASKED)


@pytest.mark.parametrize("overwrite", [False, True])
def test_of_a_folder_that_stays_no_file_is_opened(
    overwrite, made, tmp_path, monkeypatch
):
    """It may be somebody's whole disk."""
    folder(tmp_path / "place", made)
    opened = []
    monkeypatch.setattr(passport_file, "is_passport", opened.append)
    with pytest.raises(FileExistsError):
        library(made, tmp_path / "place", overwrite)
    assert opened == [tmp_path / "place"]
