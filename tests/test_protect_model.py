"""examples/protect_model.py: a model and pictures of the user's own."""

import json

import keras
import numpy as np
import pytest

import keras_passport as kp
from common import pictures
from common.errors import UserError
from support import programs
from support.programs import EXAMPLES

PROGRAM = EXAMPLES / "protect_model.py"
SHAPE = (8, 8, 3)
CLASSES = ("blue", "green", "red")


def run_here(*words, program):
    """A program; this one by the method that trains."""
    method = ["--method=fine_tune"] * (program == PROGRAM)
    return programs.run_here(*words, *method, program=program)


def succeed(*words, program):
    method = ["--method=fine_tune"] * (program == PROGRAM)
    return programs.succeed(*words, *method, program=program)


def write_pictures(folder, count=20, classes=CLASSES):
    """Noisy pictures of one colour a class."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for index in range(count):
            pixels = rng.integers(0, 80, (9, 10, 3))
            channel = 2 - CLASSES.index(name)
            pixels[..., channel] += 150
            Image.fromarray(pixels.astype("uint8")).save(
                folder / name / f"{index}.png"
            )
    return folder


def user_model(softmax=True, normalize=True):
    inputs = keras.Input(SHAPE)
    x = keras.layers.Rescaling(1 / 255)(inputs)
    for _ in range(2):
        x = keras.layers.Conv2D(8, 3, padding="same")(x)
        if normalize:
            x = keras.layers.BatchNormalization(momentum=0.9)(x)
        x = keras.layers.ReLU()(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    outputs = keras.layers.Dense(3, activation="softmax" if softmax else None)
    return keras.Model(inputs, outputs(x), name="mine")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures") / "colours")


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory):
    """A run: its directory, its flags, the user's model, what was printed."""
    place = tmp_path_factory.mktemp("run")
    (x, y, *_), _ = pictures.read_folder(folder, SHAPE)
    # The seed of `clean_keras` is set only once a module's fixtures are made.
    keras.utils.set_random_seed(0)
    model = user_model()
    model.compile(
        keras.optimizers.Adam(0.02),
        keras.losses.SparseCategoricalCrossentropy(),
    )
    model.fit(x.astype("float32"), y, epochs=20, batch_size=16, verbose=0)
    model.save(place / "mine.keras")
    flags = (
        f"--model={place / 'mine.keras'}",
        f"--images={folder}",
        "--passport=fixed_image",
        f"--identity_images={folder / 'red/0.png'},{folder / 'blue/0.png'}",
        "--epochs=6",
        "--batch_size=16",
        "--num_fakes=3",
        f"--run_dir={place / 'run'}",
    )
    output, _ = succeed(*flags, program=PROGRAM)
    return place / "run", flags, model, output


class TestRun:
    def test_reports_and_evaluates(self, finished):
        directory, _, _, output = finished
        assert "2 of 3 kernel layers protected" in output
        assert "preprocessing none" in output
        result = json.loads((directory / "result.json").read_text())
        assert result["original_accuracy"] > 90
        assert result["valid_accuracy"] > 90
        assert len(result["fake_accuracies"]) == 3
        for name in ("fakes.png", "training.png", "config.json"):
            assert (directory / name).stat().st_size > 0

    def test_the_users_model_is_kept_as_it_is(self, finished):
        directory, _, model, _ = finished
        kept = keras.saving.load_model(directory / "owner" / "original.keras")
        for one, other in zip(model.weights, kept.weights, strict=True):
            np.testing.assert_array_equal(one, other)

    def test_the_published_model_works_with_the_passport(self, finished):
        directory, _, _, _ = finished
        model = keras.saving.load_model(
            directory / "public" / "protected.keras"
        )
        x = np.zeros((1, *SHAPE), "float32")
        with pytest.raises(kp.PassportRequiredError):
            model.predict(x, verbose=0)
        kp.bind(model, kp.Passport.load(directory / "owner" / "passport.h5"))
        np.testing.assert_allclose(
            model.predict(x, verbose=0).sum(), 1, atol=1e-5
        )

    def test_can_be_attacked(self, finished, folder):
        directory, _, _, _ = finished
        given = (f"--run_dir={directory}", f"--images={folder}")
        output, _ = succeed(
            *given,
            "--only=fake_random_pattern,fake_fixed_image",
            program=EXAMPLES / "evaluate_protection.py",
        )
        assert "Fakes, fixed images (T2)" in output
        found = json.loads((directory / "protection.json").read_text())
        assert found["network"]["Data"] == folder.name
        # As `result.json` has it of all test pictures.
        assert found["numbers"]["valid"] > 0.9 * found["numbers"]["total"]
        output, _ = succeed(
            *given,
            "--attack=spectral_blind",
            program=EXAMPLES / "attack.py",
        )
        assert "Spectral, without data" in output
        [row] = json.loads((directory / "result.json").read_text())[
            "attacks"
        ].values()
        # The pictures are twelve of each class.
        assert row["examples"] == found["numbers"]["total"] == 6
        status, _, errors = run_here(
            given[0],
            f"--images={folder / 'red'}",
            program=EXAMPLES / "evaluate_protection.py",
        )
        assert status == 2 and errors.count("\n") == 1
        assert "sub-folder of pictures" in errors

    def test_is_not_done_again(self, finished):
        directory, flags, _, _ = finished
        path = directory / "public" / "protected.keras"
        before = path.stat().st_mtime_ns
        succeed(*flags, program=PROGRAM)
        assert path.stat().st_mtime_ns == before


class TestMistakes:
    @pytest.mark.parametrize(
        "change, expected",
        [
            ("--model=missing.keras", "missing.keras"),
            ("--images=./missing", "not a folder"),
            ("--image_size=32", "8x8"),
        ],
    )
    def test_one_clear_message(self, finished, tmp_path, change, expected):
        _, flags, _, _ = finished
        new = tmp_path / "run"
        status, output, errors = run_here(
            *flags, f"--run_dir={new}", change, program=PROGRAM
        )
        assert status != 0
        assert expected in output + errors
        assert "Traceback" not in errors
        assert not new.exists()

    def test_nothing_to_protect(self, finished, tmp_path):
        _, flags, _, _ = finished
        user_model(normalize=False).save(tmp_path / "plain.keras")
        flags = (
            *flags,
            f"--model={tmp_path / 'plain.keras'}",
            f"--run_dir={tmp_path / 'run'}",
        )
        status, _, errors = run_here(*flags, program=PROGRAM)
        assert status != 0
        assert "--insert" in errors
        assert "Traceback" not in errors
        flags = *flags, "--insert", "--derived_from_public"
        output, _ = succeed(*flags, program=PROGRAM)
        assert "with a new batch normalisation" in output
        assert "no passport hides what was public" in output


class TestChoices:
    """What `--select` and `--import` choose, said before anything is done."""

    @pytest.mark.parametrize(
        "flag, expected",
        [
            ("--select=conv2d_9", "which it has not"),
            ("--select=(", "regular expression"),
            ("--import=missing.py", "no such file"),
            ("--import=no_such_module", "no module of this name"),
        ],
    )
    def test_wrong_ones(self, finished, tmp_path, flag, expected):
        _, flags, _, _ = finished
        new = tmp_path / "run"
        status, _, errors = run_here(
            *flags, f"--run_dir={new}", flag, program=PROGRAM
        )
        assert (status, errors.count("\n")) == (2, 1)
        assert expected in errors
        assert not new.exists()

    def test_one_layer_of_a_model_with_own_code(self, finished, tmp_path):
        _, flags, model, _ = finished
        source = (
            "import keras\n"
            "class Mine(keras.layers.Layer):\n"
            "    def call(self, inputs):\n"
            "        return inputs\n"
        )
        (tmp_path / "mine_layers.py").write_text(source)
        names = {"__name__": "mine_layers"}
        exec(source, names)
        inputs = keras.Input(SHAPE)
        mine = names["Mine"](name="own")(model(inputs))
        keras.Model([inputs], [mine]).save(tmp_path / "own.keras")
        known = dict(keras.saving.get_custom_objects())
        flags = (
            *flags,
            f"--model={tmp_path / 'own.keras'}",
            f"--run_dir={tmp_path / 'run'}",
            "--epochs=1",
        )
        status, _, errors = run_here(*flags, program=PROGRAM)
        assert (status, "--import" in errors) == (2, True)
        first = [
            layer.name
            for layer in model.layers
            if isinstance(layer, keras.layers.Conv2D)
        ][0]
        try:
            output, _ = succeed(
                *flags,
                f"--import={tmp_path / 'mine_layers.py'}",
                f"--select=mine/{first}$",
                program=PROGRAM,
            )
            path = tmp_path / "run" / "public" / "protected.keras"
            protected = keras.saving.load_model(path)
        finally:
            keras.saving.get_custom_objects().clear()
            keras.saving.get_custom_objects().update(known)
        assert list(kp.protected_layers(protected)) == [f"mine/{first}"]
        assert "1 of 3 kernel layers protected" in output


class TestDiverging:
    def test_nothing_is_published(self, finished, tmp_path):
        _, flags, _, _ = finished
        place = tmp_path / "run"
        status, output, errors = run_here(
            *flags,
            f"--run_dir={place}",
            "--learning_rate=1e30",
            program=PROGRAM,
        )
        assert (status, errors.count("\n")) == (2, 1)
        assert "protected network diverged in epoch 1 of 6" in errors
        assert list((place / "public").iterdir()) == []
        assert "fake passports" not in output
        history = json.loads((place / "owner" / "history.json").read_text())
        assert len(history["protected"]["loss"]) == 1

    def test_a_model_of_nan(self, finished, tmp_path):
        _, flags, model, _ = finished
        broken = keras.models.clone_model(model)
        weights = model.get_weights()
        broken.set_weights([np.full_like(w, np.nan) for w in weights])
        broken.save(tmp_path / "nan.keras")
        status, _, errors = run_here(
            *flags,
            f"--run_dir={tmp_path / 'run'}",
            f"--model={tmp_path / 'nan.keras'}",
            program=PROGRAM,
        )
        assert (status, errors.count("\n")) == (2, 1)
        assert "finite scores of the given network" in errors


class TestPictures:
    def test_folder(self, folder):
        (x_train, y_train, x_test, y_test), names = pictures.read_folder(
            folder, SHAPE, test_fraction=0.25
        )
        assert names == list(CLASSES)
        assert x_train.shape == (45, *SHAPE)
        assert x_test.shape == (15, *SHAPE)
        assert x_train.dtype == np.uint8
        np.testing.assert_array_equal(np.bincount(y_test), [5, 5, 5])
        brightest = x_train.mean(axis=(1, 2)).argmax(axis=-1)
        np.testing.assert_array_equal(2 - brightest, y_train)

    def test_the_split_is_the_seeds(self, folder):
        one, again, other = (
            pictures.read_folder(folder, SHAPE, seed=seed)[0]
            for seed in (0, 0, 1)
        )
        np.testing.assert_array_equal(one[0], again[0])
        assert np.any(one[0] != other[0])

    def test_order_of_classes(self, folder):
        (_, y, _, _), names = pictures.read_folder(
            folder, SHAPE, names=["red", "green", "blue"]
        )
        assert names == ["red", "green", "blue"]
        assert y.max() == 2
        with pytest.raises(UserError, match="--class_names"):
            pictures.read_folder(folder, SHAPE, names=["red", "green", "gold"])

    def test_train_and_test_folders(self, tmp_path):
        write_pictures(tmp_path / "train", 3)
        write_pictures(tmp_path / "val", 2)
        (x_train, _, x_test, _), names = pictures.read_folder(tmp_path, SHAPE)
        assert (len(x_train), len(x_test)) == (9, 6)
        assert names == list(CLASSES)

    def test_grey(self, folder):
        (x, *_), _ = pictures.read_folder(folder, (8, 8, 1))
        assert x.shape[1:] == (8, 8, 1)

    def test_what_is_not_a_picture(self, folder, tmp_path):
        write_pictures(tmp_path, 5)
        (tmp_path / "red" / "notes.txt").write_text("not a picture")
        (tmp_path / "red" / ".hidden.png").write_bytes(b"")
        pictures.read_folder(tmp_path, SHAPE)
        (tmp_path / "red" / "broken.png").write_bytes(b"not a picture")
        with pytest.raises(UserError, match="broken.png"):
            pictures.read_folder(tmp_path, SHAPE)

    def test_folders_that_are_not_classes(self, tmp_path):
        with pytest.raises(UserError, match="sub-folder"):
            pictures.read_folder(tmp_path, SHAPE)
        write_pictures(tmp_path, 3)
        (tmp_path / "empty").mkdir()
        with pytest.raises(UserError, match="empty"):
            pictures.read_folder(tmp_path, SHAPE)

    def test_too_few_to_split(self, tmp_path):
        write_pictures(tmp_path, 1)
        with pytest.raises(UserError, match="split"):
            pictures.read_folder(tmp_path, SHAPE)


class TestExactly:
    def test_needs_a_model_and_nothing_else(self, finished, tmp_path):
        _, _, model, _ = finished
        model.save(tmp_path / "mine.keras")
        flags = (
            f"--model={tmp_path / 'mine.keras'}",
            f"--run_dir={tmp_path / 'run'}",
        )
        output, _ = programs.succeed(*flags, program=PROGRAM)
        assert "3 of 3 kernel layers protected" in output
        owner = tmp_path / "run" / "owner" / "passport.h5"
        assert owner.stat().st_mode & 0o777 == 0o600
        protected = keras.saving.load_model(
            tmp_path / "run" / "public" / "protected.keras"
        )
        kp.bind(protected, kp.Passport.load(owner))
        x = np.random.default_rng(0).uniform(0, 255, (4, *SHAPE))
        np.testing.assert_allclose(
            protected(x, training=False), model(x, training=False), atol=1e-5
        )
        status, _, errors = programs.run_here(*flags, program=PROGRAM)
        assert status and "give another --run_dir" in errors
        status, _, errors = programs.run_here(
            flags[1],
            "--attack=spectral_blind",
            program=EXAMPLES / "attack.py",
        )
        assert status and "that were given --images" in errors

    def test_is_judged_by_pictures(self, finished, folder, tmp_path):
        _, flags, _, _ = finished
        output, _ = programs.succeed(
            flags[0],
            f"--images={folder}",
            "--num_fakes=3",
            f"--identity_images={folder / 'blue'}",
            f"--run_dir={tmp_path}",
            program=PROGRAM,
        )
        owner = kp.Passport.load(tmp_path / "owner" / "passport.h5")
        assert owner.kind == "offset_image" and len(owner.images) == 20
        result = json.loads((tmp_path / "result.json").read_text())
        assert result["original_accuracy"] == result["valid_accuracy"] > 90
        assert len(result["fake_accuracies"]) == 3
        assert "with the passport" in output
        config = json.loads((tmp_path / "config.json").read_text())
        assert config["dataset"] == folder.name and config["order"]
        assert config["preprocessing"] == "none"
        programs.succeed(
            f"--run_dir={tmp_path}",
            f"--images={folder}",
            "--attack=fake_random_pattern",
            "--num_fakes=2",
            program=EXAMPLES / "attack.py",
        )
        [row] = json.loads((tmp_path / "result.json").read_text())[
            "attacks"
        ].values()
        assert row["examples"] == 6
