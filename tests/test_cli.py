"""The command `keras-passport`: in this process, and as a user runs it."""

import base64
import io
import json
import os
import pathlib
import re
import shutil
import stat
import subprocess
import sys

import keras
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from PIL import Image

import keras_passport as kp
from keras_passport.cli import parser
from support.plain_models import plain_cnn, randomize, small_resnet
from support.processes import python_path, run_in_fresh_process

ON_TENSORFLOW = keras.backend.backend() == "tensorflow"


@pytest.fixture(autouse=True)
def clean_flags():
    with flagsaver.flagsaver():
        yield


def command(*words):
    """Exit status of a command line, run in this process."""
    try:
        return parser.main(parser.parse(["keras-passport", *map(str, words)]))
    except SystemExit as end:
        return end.code


def mistake(capsys, *words):
    """The one line that a command line with a mistake in it is told."""
    capsys.readouterr()
    assert command(*words) == 2
    errors = capsys.readouterr().err
    assert re.fullmatch(
        r"keras-passport: Expected .+[.?] Received: .+\n", errors
    ), errors
    return errors


def mode(path):
    return stat.S_IMODE(os.stat(path).st_mode)


def rng():
    return np.random.default_rng(0)


def images(count=20):
    return rng().random((count, 8, 8, 3), "float32")


def load(path):
    return keras.saving.load_model(path, compile=False)


def outputs(model, x=None):
    x = images() if x is None else x
    return keras.ops.convert_to_numpy(model(x, training=False))


class Own(keras.layers.Layer):
    def call(self, inputs):
        return inputs


def dense_only():
    return keras.Sequential(
        [keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(4)]
    )


class Files:
    """A model's files, and those of another model, made without the command."""

    def __init__(self, folder):
        self.folder = folder
        for prefix, base in (("", plain_cnn), ("other_", small_resnet)):
            model = randomize(base())
            model.save(self[f"{prefix}original.keras"])
            protected = kp.protect(model)
            protected.save(self[f"{prefix}protected.keras"])
            passport = kp.Passport.random_pattern(protected)
            passport.save(self[f"{prefix}owner.h5"])
            self[f"{prefix}passport_spec.json"].write_text(
                json.dumps(kp.passport_spec(protected))
            )
        dense_only().save(self["plain.keras"])
        self["text"].write_text("neither a model nor a passport")
        for name in ("owner.h5", "protected.keras"):
            content = self[name].read_bytes()
            self[f"truncated_{name}"].write_bytes(content[: len(content) // 2])

    def __getitem__(self, name):
        return self.folder / name

    @property
    def passport(self):
        return kp.Passport.load(self["owner.h5"])

    @property
    def bound(self):
        return kp.bind(load(self["protected.keras"]), self.passport)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return Files(tmp_path_factory.mktemp("models"))


# Help and mistakes ----------------------------------------------------------

COMMANDS = ("inspect", "protect", "new", "show", "pack", "spec", "export")
COMMANDS += ("unlock", "evaluate", "leaks")
COMMANDS += ("claim", "record", "verify", "license", "trace")


@pytest.mark.parametrize("words", (["--help"], ["-h"], ["help"]))
def test_the_overview(words, capsys):
    assert command(*words) == 0
    shown = capsys.readouterr()
    assert not shown.err
    assert re.findall(r"^    (\w+)  ", shown.out, re.M) == [*COMMANDS]
    assert command() == 2
    assert capsys.readouterr() == ("", shown.out)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command(name, capsys):
    assert command(name, "--help") == 0
    shown = capsys.readouterr().out
    assert f"example:\n  keras-passport {name} " in shown
    assert "seed " not in shown.replace("a seed is a secret", "")
    assert command("help", name) == 0
    assert capsys.readouterr().out == shown


def test_an_unknown_command(capsys):
    assert "did you mean unlock?" in mistake(capsys, "unlok", "a", "b", "c")
    assert "one of inspect, protect" in mistake(capsys, "xyzzy")


@pytest.mark.parametrize(
    "words, said",
    [
        ("show", "required: PASSPORT"),
        ("show a b", "Received: b"),
        ("inspect a --jsno", "did you mean --json?"),
        ("inspect a --function=V4", "'V4'"),
        ("inspect a --ins", "--ins"),
        ("new a b --seed=7", "--seed=7"),
        ("new a b --kind=feature_maps", "'feature_maps'"),
        ("new a b --key_scaling=x", "'x'"),
        ("new a b --preprocessing=tf", "--preprocessing"),
        ("new a b --images=c.png", "no --images"),
        ("new a b --kind=fixed_image --images=c.png", "Expected --reference"),
        ("pack a --out=b", "required: --spec"),
        ("pack a --spec=b", "required: --out"),
        ("export a b --format=onnx --input_dtype=uint8", "--input_dtype"),
        ("export a b --format=litert --class_names=x", "--class_names"),
        ("evaluate a --data=b --batch_size=0", "--batch_size"),
        ("evaluate a --data=b --batch_size=x", "'x'"),
        ("leaks a", "required: FILE"),
        ("inspect a --import=none_such", "no module of this name"),
        ("inspect a --import=none_such.py", "no such file"),
        ("new a b --kind=random_image --images=c.png", "feature maps"),
        ("new a b --kind=random_image --reference=c", "your pictures"),
    ],
)
def test_wrong_flags(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert said in mistake(capsys, *words.split())


# What each takes, with a placeholder for the file that is wrong.
READS_PASSPORT = {
    "show": ["show", "{}"],
    "pack": ["pack", "{}", "--spec=passport_spec.json", "--out=new"],
    "unlock": ["unlock", "protected.keras", "{}", "new.keras"],
    "evaluate": ["evaluate", "protected.keras", "--passport={}", "--data=d"],
    "leaks": ["leaks", "{}", "text"],
}
READS_MODEL = {
    "inspect": ["inspect", "{}"],
    "protect": ["protect", "{}", "new.keras"],
    "new": ["new", "{}", "new.h5"],
    "spec": ["spec", "{}"],
    "export": ["export", "{}", "new"],
    "unlock": ["unlock", "{}", "owner.h5", "new.keras"],
    "evaluate": ["evaluate", "{}", "--data=data.npz"],
}


def filled(words, name):
    return [word.format(name) for word in words]


@pytest.mark.parametrize("name", READS_PASSPORT)
def test_no_passport(name, made, capsys, monkeypatch):
    monkeypatch.chdir(made.folder)
    before = os.listdir()
    for file, said in (
        ("missing.h5", "No such file"),
        ("truncated_owner.h5", "truncated"),
        ("text", "another kind"),
        ("protected.keras", "another kind"),
    ):
        words = filled(READS_PASSPORT[name], file)
        assert said in mistake(capsys, *words)
    assert os.listdir() == before


@pytest.mark.parametrize("name", READS_MODEL)
def test_no_model(name, made, capsys, monkeypatch):
    monkeypatch.chdir(made.folder)
    np.savez("data.npz", x=images(), y=np.zeros(20))
    before = os.listdir()
    for file, said in (
        ("missing.keras", "no such file"),
        ("truncated_protected.keras", "a damaged one"),
        ("owner.h5", "model that Keras can load"),
        (".", "model that Keras can load"),
    ):
        words = filled(READS_MODEL[name], file)
        assert said in mistake(capsys, *words)
    assert os.listdir() == before


@pytest.mark.parametrize("name", ("unlock", "evaluate", "pack"))
def test_the_passport_of_another_model(name, made, capsys, monkeypatch):
    monkeypatch.chdir(made.folder)
    np.savez("d", x=images(), y=np.zeros(20))
    words = filled(READS_PASSPORT[name], "other_owner.h5")
    words = [word.replace("--data=d", "--data=d.npz") for word in words]
    assert "protected layers" in mistake(capsys, *words)
    assert not os.path.exists("new.keras")


@pytest.mark.parametrize("name", ("new", "spec", "export", "unlock"))
def test_a_model_that_is_not_protected(name, made, capsys, monkeypatch):
    monkeypatch.chdir(made.folder)
    if name == "export" and not ON_TENSORFLOW:
        pytest.skip("A SavedModel is of TensorFlow.")
    words = filled(READS_MODEL[name], "original.keras")
    assert "a protected model" in mistake(capsys, *words)


def test_a_model_with_code_of_its_own(tmp_path, capsys):
    path = tmp_path / "own.keras"
    keras.Sequential([keras.Input((4,)), Own()]).save(path)
    line = mistake(capsys, "inspect", path)
    assert "class 'Own', whose code" in line and "--import" in line


OWN_LAYERS = """
import keras

class {prefix}Scaled(keras.layers.Layer):
    def __init__(self, by=1.0, **kwargs):
        super().__init__(**kwargs)
        self.by = by

    def call(self, inputs):
        return self.by * inputs

    def get_config(self):
        return {{**super().get_config(), "by": self.by}}

@keras.saving.register_keras_serializable(package="theirs")
def {prefix}doubled(x):
    return 2 * x
"""


@pytest.fixture
def own_layers(tmp_path, monkeypatch):
    """Function of a prefix: a module of own layers, and files that need it."""
    known = dict(keras.saving.get_custom_objects())
    paths, modules = list(sys.path), set(sys.modules)
    monkeypatch.chdir(tmp_path)

    def write(prefix):
        source = OWN_LAYERS.format(prefix=prefix)
        pathlib.Path(f"{prefix}layers.py").write_text(source)
        names = {"__name__": f"{prefix}layers"}
        exec(source, names)
        base = keras.Sequential(
            [
                keras.Input((8, 8, 3)),
                keras.layers.Conv2D(4, 3, name="conv"),
                keras.layers.BatchNormalization(),
                names[f"{prefix}Scaled"](2.0),
                keras.layers.Activation(names[f"{prefix}doubled"]),
                keras.layers.Flatten(),
                keras.layers.Dense(4),
            ]
        )
        base.save("own.keras")
        kp.protect(base).save("own_protected.keras")
        keras.saving.get_custom_objects().clear()
        keras.saving.get_custom_objects().update(known)

    yield write
    keras.saving.get_custom_objects().clear()
    keras.saving.get_custom_objects().update(known)
    sys.path[:] = paths
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(
            str(tmp_path)
        ):
            del sys.modules[name]


@pytest.mark.parametrize("given", ("{}layers", "{}layers.py"))
def test_own_layers(given, own_layers, capsys):
    prefix = "By_" + given.rpartition(".")[2]
    prefix = prefix.replace("{}", "")
    own_layers(prefix)
    flag = f"--import={given.format(prefix)}"
    np.savez("data.npz", x=images(), y=np.zeros(20, int))
    assert "--import" in mistake(capsys, "inspect", "own.keras")
    for words in (
        ["inspect", "own.keras"],
        ["protect", "own.keras", "out.keras"],
        ["new", "own_protected.keras", "owner.h5"],
        ["spec", "own_protected.keras"],
        ["unlock", "own_protected.keras", "owner.h5", "unlocked.keras"],
        ["evaluate", "own.keras", "--data=data.npz"],
    ):
        assert command(*words, flag) == 0, words
    assert load("unlocked.keras").count_params() > 0


def test_modules_that_cant_be_imported(tmp_path, capsys, monkeypatch, made):
    monkeypatch.chdir(tmp_path)
    modules = {
        "raises_it": ("raise RuntimeError('broken')", "RuntimeError: broken"),
        "ends_it": ("raise SystemExit(3)", "SystemExit"),
        "is_no_python": ("def (", "SyntaxError"),
        "lacks_it": ("import none_such_at_all", "'none_such_at_all'"),
    }
    for name, (source, said) in modules.items():
        pathlib.Path(f"{name}.py").write_text(source)
        line = mistake(
            capsys, "inspect", made["original.keras"], f"--import={name}.py"
        )
        assert said in line
        assert name not in sys.modules


@pytest.mark.parametrize(
    "select, expected",
    [
        ("second_conv", ["second_conv"]),
        ("first_conv, second_conv", ["first_conv", "second_conv"]),
        ("^f.*conv$", ["first_conv"]),
        ("conv", ["first_conv", "second_conv"]),
    ],
)
def test_select(select, expected, made, tmp_path, capsys):
    words = ("inspect", made["original.keras"], "--json")
    assert command(*words, f"--select={select}") == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    chosen = [r["path"] for r in rows if r["protected"]]
    assert [path for path in chosen if "conv" in path] == expected
    out = tmp_path / "out.keras"
    words = ("protect", made["original.keras"], out)
    assert command(*words, f"--select={select}") == 0
    assert list(kp.protected_layers(load(out))) == expected


@pytest.mark.parametrize(
    "select, said",
    [
        ("first_conv,secnd_conv", "did you mean 'second_conv'?"),
        ("nothing_like_it", "it has first_conv, second_conv"),
        ("conv(", "regular expression"),
        ("", "regular expression"),
    ],
)
def test_what_selects_nothing(select, said, made, tmp_path, capsys):
    out = tmp_path / "out.keras"
    for words in (["inspect"], ["protect", out]):
        words.insert(1, made["original.keras"])
        assert said in mistake(capsys, *words, f"--select={select}")
    assert not out.exists()


EVIL = "evil\nfingerprint  00\x1b[2J\u202e"


def test_nothing_of_a_name_goes_raw_to_the_terminal(made, tmp_path, capsys):
    base = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Conv2D(4, 3, name=EVIL),
            keras.layers.BatchNormalization(),
        ]
    )
    model = tmp_path / f"{EVIL}.keras"
    base.save(model)
    protected, owner = tmp_path / f"{EVIL}p.keras", tmp_path / f"{EVIL}.h5"
    for words in (
        ["inspect", model],
        ["protect", model, protected, f"--select={EVIL}"],
        ["new", protected, owner],
        ["show", owner],
        ["spec", protected, f"--out={tmp_path / EVIL}"],
        ["leaks", owner, tmp_path],
        # Mistakes.
        ["protect", model, protected],
        ["show", model],
        ["show", f"missing{EVIL}"],
        ["inspect", f"missing{EVIL}"],
        ["inspect", model, f"--select=x{EVIL}"],
        ["inspect", model, f"--import=x{EVIL}"],
        ["inspect", model, f"--{EVIL}"],
        ["inspect", model, f"--function={EVIL}"],
        [f"x{EVIL}"],
        ["new", protected, owner, f"--images={EVIL}"],
        ["evaluate", model, f"--data={EVIL}"],
        ["pack", owner, f"--spec={EVIL}", f"--out={EVIL}"],
        ["export", protected, f"{EVIL}/{EVIL}"],
    ):
        command(*words)
        shown = capsys.readouterr()
        for text in (shown.out, shown.err):
            assert text.replace("\n", "").isprintable(), (words, text)
        found = re.findall("^fingerprint.*", shown.out + shown.err, re.M)
        assert len(found) == (words == ["show", owner])


OUTPUTS = {
    "protect": ["protect", "original.keras", "out.keras"],
    "new": ["new", "protected.keras", "out.h5"],
    "pack": ["pack", "owner.h5", "--spec=passport_spec.json", "--out=out"],
    "spec": ["spec", "protected.keras", "--out=out"],
    "unlock": ["unlock", "protected.keras", "owner.h5", "out.keras"],
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_overwriting(name, made, capsys, monkeypatch):
    monkeypatch.chdir(made.folder)
    words = OUTPUTS[name]
    out = [w.removeprefix("--out=") for w in words if "out" in w][-1]
    with open(out, "w") as file:
        file.write("old")
    os.chmod(out, 0o644)
    try:
        assert "--overwrite" in mistake(capsys, *words)
        with open(out) as file:
            assert file.read() == "old"
        assert command(*words, "--overwrite") == 0
        with open(out, "rb") as file:
            assert file.read() != b"old"
        secret = name in ("new", "pack", "unlock")
        assert mode(out) == (0o600 if secret else 0o644)
    finally:
        os.remove(out)
    # Not what it reads from, nor a folder, nor where there is none.
    source = words[1]
    for wrong in (source, "folder", "none/out.keras"):
        os.makedirs("folder", exist_ok=True)
        before = os.stat(source).st_mtime_ns
        line = [word.replace(out, wrong) for word in words]
        mistake(capsys, *line, "--overwrite")
        assert os.stat(source).st_mtime_ns == before


def test_a_passport_is_never_overwritten_by_something_else(
    made, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(made.folder)
    kept = tmp_path / "kept.h5"
    shutil.copy("other_owner.h5", kept)
    for words in (
        ["pack", "owner.h5", "--spec=passport_spec.json", f"--out={kept}"],
        ["spec", "protected.keras", f"--out={kept}"],
        ["export", "protected.keras", kept, "--format=onnx"],
    ):
        assert "which is one" in mistake(capsys, *words, "--overwrite")
    assert kept.read_bytes() == made["other_owner.h5"].read_bytes()
    if ON_TENSORFLOW:
        served = tmp_path / "served"
        served.mkdir()
        (served / "saved_model.pb").write_bytes(b"")
        shutil.copy("owner.h5", served)
        words = ("export", "protected.keras", served, "--overwrite")
        assert "holds 'owner.h5' too" in mistake(capsys, *words)
        assert (served / "owner.h5").exists()


def test_a_traceback_only_when_asked_for(capsys):
    words = ("show", "missing.h5")
    mistake(capsys, *words)
    assert command(*words, "--verbosity=1") == 2
    errors = capsys.readouterr().err
    assert "Traceback" in errors
    assert errors.splitlines()[-1].startswith("keras-passport: Expected")
    with flagsaver.flagsaver():
        assert command("--verbosity=1", *words) == 2
        assert "Traceback" in capsys.readouterr().err


def test_interrupted(made, capsys, monkeypatch):
    def interrupt(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(kp.Passport, "load", interrupt)
    assert command("show", made["owner.h5"]) == 130
    assert capsys.readouterr().err == "keras-passport: interrupted\n"


def test_a_bug_is_no_answer(made, capsys, monkeypatch):
    def fail(path):
        raise TypeError("oops")

    monkeypatch.setattr(kp.Passport, "load", fail)
    assert command("leaks", made["owner.h5"], made["text"]) == 3
    assert "TypeError: oops" in capsys.readouterr().err


# The commands ---------------------------------------------------------------


def test_inspect(made, capsys):
    model = load(made["original.keras"])
    assert command("inspect", made["original.keras"]) == 0
    assert capsys.readouterr().out == f"{kp.inspect(model)}\n"
    assert command("inspect", made["original.keras"], "--json") == 0
    received = json.loads(capsys.readouterr().out)
    assert received == kp.inspect(model).to_dict()
    assert command("inspect", made["protected.keras"], "--function=V1") == 0
    assert "2 of 3 kernel layers protected" in capsys.readouterr().out


def test_nothing_to_inspect(made, capsys, tmp_path):
    assert command("inspect", made["plain.keras"]) == 1
    assert "0 of 1" in capsys.readouterr().out
    words = ("protect", made["plain.keras"], tmp_path / "out.keras")
    assert "a layer to protect" in mistake(capsys, *words)
    assert not os.listdir(tmp_path)


def test_insert(made, capsys, tmp_path):
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Conv2D(4, 3, name="conv"),
            keras.layers.Flatten(),
            keras.layers.Dense(4),
        ]
    )
    path = tmp_path / "vgg.keras"
    model.save(path)
    assert command("inspect", path) == 1
    assert command("inspect", path, "--insert") == 0
    out = tmp_path / "out.keras"
    assert "--insert may help" in mistake(capsys, "protect", path, out)
    assert command("protect", path, out, "--insert", "--function=V2") == 0
    assert list(kp.protected_layers(load(out))) == ["conv"]


def test_protect(made, tmp_path, capsys):
    out = tmp_path / "out.keras"
    assert command("protect", made["original.keras"], out) == 0
    assert "train it" in capsys.readouterr().out
    model = load(out)
    original = load(made["original.keras"])
    layers = kp.protected_layers(model)
    assert list(layers) == ["first_conv", "second_conv"]
    for name, layer in layers.items():
        assert layer.function.name == "V3"
        np.testing.assert_array_equal(
            layer.layer.kernel, original.get_layer(name).kernel
        )
    assert "ends in .keras" in mistake(
        capsys, "protect", made["original.keras"], tmp_path / "out.h5"
    )


def test_new_random_pattern(made, tmp_path, capsys):
    passports = []
    for index, scaling in enumerate((None, "unit")):
        out = tmp_path / f"{index}.h5"
        options = [f"--key_scaling={scaling}"] if scaling else []
        words = ("new", made["protected.keras"], out, *options)
        assert command(*words) == 0
        assert mode(out) == 0o600
        passports.append(kp.Passport.load(out))
        assert passports[-1].kind == "random_pattern"
        assert passports[-1].fingerprint in capsys.readouterr().out
        kp.bind(load(made["protected.keras"]), passports[-1])
    assert passports[0].key_scaling == "signed"
    assert passports[1].key_scaling == "unit"
    assert passports[0].seed != passports[1].seed


def test_new_for_an_open_input_size(tmp_path, capsys):
    kp.protect(plain_cnn(size=None)).save(tmp_path / "open.keras")
    words = ("new", tmp_path / "open.keras", tmp_path / "owner.h5")
    assert "--image_size" in mistake(capsys, *words)
    assert command(*words, "--image_size=10") == 0
    entry = kp.Passport.load(tmp_path / "owner.h5").layers["first_conv"]
    assert entry.gamma.shape == (10, 10, 3)


def picture_files(folder, count=2, mode="RGB", size=(8, 8)):
    """Pictures of the size, and their content."""
    pixels = rng().integers(0, 256, (count, *size, len(mode)), "uint8")
    names = []
    for index, one in enumerate(pixels):
        names.append(str(folder / f"{index}.png"))
        Image.fromarray(one.squeeze(), mode).save(names[-1])
    return ",".join(names), pixels


IMAGENET = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
PREPROCESSED = {
    None: lambda x: x,
    "none": lambda x: x,
    "unit": lambda x: x / 255,
    "tf": lambda x: x / 127.5 - 1,
    "torch": lambda x: (x / 255 - IMAGENET[0]) / IMAGENET[1],
    "caffe": lambda x: x[..., ::-1] - np.array([103.939, 116.779, 123.68]),
}


@pytest.mark.parametrize("preprocessing", PREPROCESSED)
def test_new_of_pictures(preprocessing, made, tmp_path, capsys):
    names, pixels = picture_files(tmp_path)
    out = tmp_path / "owner.h5"
    options = [f"--preprocessing={preprocessing}"] if preprocessing else []
    words = [
        "new",
        made["protected.keras"],
        out,
        "--kind=fixed_image",
        f"--images={names}",
        f"--reference={made['original.keras']}",
        *options,
    ]
    assert command(*words) == 0
    assert mode(out) == 0o600
    passport = kp.Passport.load(out)
    expected = PREPROCESSED[preprocessing](pixels.astype("float64"))
    np.testing.assert_allclose(passport.images, expected, atol=1e-4)
    # The first layer of the reference sees the picture itself.
    entry = passport.layers["first_conv"]
    np.testing.assert_allclose(entry.gamma, expected[0], atol=1e-4)
    np.testing.assert_allclose(entry.beta, expected[1], atol=1e-4)


def test_new_of_pictures_of_any_sort(made, tmp_path):
    names, _ = picture_files(tmp_path, 3, "RGBA", (13, 17))
    clear = Image.new("RGBA", (5, 5), (0, 0, 0, 0))
    clear.save(tmp_path / "clear.png")
    out = tmp_path / "owner.h5"
    assert not command(
        "new",
        made["protected.keras"],
        out,
        "--kind=random_image",
        f"--images={names},{tmp_path / 'clear.png'}",
        f"--reference={made['original.keras']}",
    )
    passport = kp.Passport.load(out)
    assert passport.kind == "random_image"
    assert passport.images.shape == (4, 8, 8, 3)
    assert passport.images.min() >= 0 and passport.images.max() <= 255
    assert np.all(passport.images[3] == 255)


def test_new_of_a_folder_of_pictures(made, tmp_path, capsys):
    folder = tmp_path / "pictures"
    folder.mkdir()
    _, pixels = picture_files(folder, 3)
    (folder / "notes.txt").write_text("no picture")
    out = tmp_path / "owner.h5"
    words = (
        "new",
        made["protected.keras"],
        out,
        "--kind=random_image",
        f"--reference={made['original.keras']}",
    )
    assert command(*words, f"--images={folder}") == 0
    np.testing.assert_allclose(kp.Passport.load(out).images, pixels, atol=1e-4)
    capsys.readouterr()
    line = mistake(capsys, *words, f"--images={tmp_path}", "--overwrite")
    assert "a folder with pictures" in line


def test_new_of_arrays(made, tmp_path):
    np.save(tmp_path / "a.npy", images(2))
    np.save(tmp_path / "b.npy", images(3))
    out = tmp_path / "owner.h5"
    assert not command(
        "new",
        made["protected.keras"],
        out,
        "--kind=random_image",
        f"--images={tmp_path / 'a.npy'},{tmp_path / 'b.npy'}",
        f"--reference={made['original.keras']}",
    )
    passport = kp.Passport.load(out)
    expected = np.concatenate([images(2), images(3)])
    np.testing.assert_array_equal(passport.images, expected)


def test_new_of_pictures_for_other_inputs(tmp_path):
    for shape in ((3, 6, 7), (6, 7, 1)):
        first = shape[0] == 3
        data_format = "channels_first" if first else "channels_last"
        made_ = keras.Sequential(
            [
                keras.Input(shape),
                keras.layers.Conv2D(4, 3, data_format=data_format, name="conv"),
                keras.layers.BatchNormalization(axis=1 if first else -1),
            ]
        )
        names, pixels = picture_files(
            tmp_path, 2, "RGB" if first else "L", (6, 7)
        )
        from keras_passport.cli import pictures

        received = pictures.read_images(names.split(","), made_.input_shape)
        expected = np.moveaxis(pixels, -1, 1) if first else pixels
        np.testing.assert_array_equal(received, expected)
        assert received.dtype == np.float32


@pytest.mark.parametrize(
    "files, options, said",
    [
        ("missing.png", [], "No such file"),
        ("text", [], "to be a picture"),
        ("missing.npy", [], "No such file"),
        ("text.npy", [], "numpy.save"),
        ("object.npy", [], "numpy.save"),
        ("a.npy,b.npy", [], "of one shape"),
        ("b.npy", [], "images of shape"),
        ("a.npy,0.png", [], "either pictures or"),
        ("a.npy", ["--preprocessing=tf"], "for pictures alone"),
        ("0.png", [], "Expected 2 identity images"),
    ],
)
def test_wrong_images(files, options, said, made, tmp_path, capsys):
    picture_files(tmp_path)
    for name in ("text", "text.npy"):
        (tmp_path / name).write_text("no picture")
    np.save(tmp_path / "a.npy", images(2))
    np.save(tmp_path / "b.npy", images(2)[:, 1:])
    np.save(tmp_path / "object.npy", np.array([{}], object))
    line = mistake(
        capsys,
        "new",
        made["protected.keras"],
        tmp_path / "owner.h5",
        "--kind=fixed_image",
        f"--images={','.join(str(tmp_path / f) for f in files.split(','))}",
        f"--reference={made['original.keras']}",
        *options,
    )
    assert said in line
    assert not (tmp_path / "owner.h5").exists()


def test_show(made, capsys):
    assert command("show", made["owner.h5"]) == 0
    shown = capsys.readouterr().out
    passport = made.passport
    for expected in (
        "random_pattern",
        "V3",
        "signed",
        passport.fingerprint,
        f"{passport.packed().size} numbers in 2 layers",
        "first_conv   gamma beta  3x3x3",
        "second_conv  gamma beta  3x3x8",
    ):
        assert expected in shown
    assert passport.seed.hex() not in shown
    assert not re.search(r"\d\.\d", shown)  # no value of it


def test_pack(made, tmp_path, capsysbinary):
    expected = made.passport.packed()
    spec = made["passport_spec.json"]
    served = tmp_path / "served" / "assets"
    served.mkdir(parents=True)
    (served / "passport_spec.json").write_text(spec.read_text())

    def from_npy(content):
        return np.load(io.BytesIO(content))

    def from_json(content):
        return np.asarray(json.loads(content), "float32")

    def from_base64(content):
        return np.frombuffer(base64.b64decode(content), "<f4")[None]

    for name, read in (
        ("npy", from_npy),
        ("json", from_json),
        ("base64", from_base64),
    ):
        words = ("pack", made["owner.h5"], f"--format={name}")
        out = tmp_path / name
        for where in (spec, tmp_path / "served"):
            assert (
                command(
                    *words, f"--spec={where}", f"--out={out}", "--overwrite"
                )
                == 0
            )
            assert mode(out) == 0o600
            received = read(out.read_bytes())
            assert received.dtype == np.float32
            np.testing.assert_array_equal(received, expected)
        capsysbinary.readouterr()
        assert command(*words, f"--spec={spec}", "--out=-") == 0
        assert capsysbinary.readouterr() == (out.read_bytes(), b"")


def test_pack_with_a_wrong_spec(made, capsys, tmp_path):
    words = ("pack", made["owner.h5"], f"--out={tmp_path / 'out'}")
    for name in ("missing.json", "text", ""):
        line = mistake(capsys, *words, f"--spec={made[name]}")
        assert "passport spec at" in line
    assert not os.listdir(tmp_path)


def test_spec(made, tmp_path, capsys):
    assert command("spec", made["protected.keras"]) == 0
    expected = kp.passport_spec(load(made["protected.keras"]))
    assert json.loads(capsys.readouterr().out) == expected
    out = tmp_path / "spec.json"
    assert command("spec", made["protected.keras"], f"--out={out}") == 0
    assert json.loads(out.read_text()) == expected


@pytest.mark.skipif(not ON_TENSORFLOW, reason="A SavedModel is TensorFlow's.")
def test_export(made, tmp_path, capsys):
    import tensorflow as tf

    out = tmp_path / "served"
    (tmp_path / "names").write_text("a\nb\nc\nd\n")
    words = ("export", made["protected.keras"], out)
    options = ["--input_dtype=uint8", f"--class_names=@{tmp_path / 'names'}"]
    assert command(*words, *options) == 0
    assert (out / "assets/labels.txt").read_text().split() == list("abcd")
    x = rng().integers(0, 9, (5, 8, 8, 3), "uint8")
    packed = tmp_path / "packed.npy"
    assert not command(
        "pack", made["owner.h5"], f"--spec={out}", f"--out={packed}"
    )
    served = tf.saved_model.load(str(out)).signatures["serving_default"]
    [received] = served(images=x, passport=np.load(packed)).values()
    expected = outputs(made.bound, x.astype("float32"))
    np.testing.assert_allclose(received, expected, rtol=1e-4, atol=1e-4)
    # It is not replaced unless asked for, and nothing else ever is.
    assert "--overwrite" in mistake(capsys, *words)
    assert command(*words, "--overwrite", "--class_names=a,b,c,d") == 0
    assert "Expected 4" in mistake(
        capsys, *words, "--overwrite", "--class_names=a"
    )
    words = ("export", made["protected.keras"], tmp_path, "--overwrite")
    assert "a SavedModel to overwrite" in mistake(capsys, *words)
    assert packed.exists()


@pytest.mark.skipif(ON_TENSORFLOW, reason="Of the other backends.")
def test_export_on_another_backend(made, tmp_path, capsys):
    words = ("export", made["protected.keras"], tmp_path / "served")
    assert "KERAS_BACKEND=tensorflow" in mistake(capsys, *words)


@pytest.mark.parametrize("kind", ("onnx", "litert"))
def test_export_to_a_file(kind, made, tmp_path, monkeypatch):
    given = []

    def write(model, path, overwrite):
        given.append((list(kp.protected_layers(model)), path, overwrite))

    monkeypatch.setattr(kp, f"export_{kind}", write, raising=False)
    out = tmp_path / "out"
    words = ("export", made["protected.keras"], out, f"--format={kind}")
    assert command(*words) == 0
    assert given == [(["first_conv", "second_conv"], out, False)]


def test_a_package_that_is_missing(made, tmp_path, capsys, monkeypatch):
    def fail(*args, **options):
        raise ModuleNotFoundError("No module named 'tf2onnx'", name="tf2onnx")

    monkeypatch.setattr(kp, "export_onnx", fail, raising=False)
    words = ("export", made["protected.keras"], tmp_path / "out")
    assert "'tf2onnx'" in mistake(capsys, *words, "--format=onnx")


@pytest.mark.parametrize("options", ([], ["--nofold"]))
def test_unlock(options, made, tmp_path):
    out = tmp_path / "trusted.keras"
    words = ("unlock", made["protected.keras"], made["owner.h5"], out)
    assert command(*words, *options) == 0
    assert mode(out) == 0o600
    model = load(out)
    assert not kp.protected_layers(model)
    names = [layer.name for layer in model.layers]
    assert ("first_bn" in names) == bool(options)
    np.testing.assert_allclose(
        outputs(model), outputs(made.bound), rtol=1e-4, atol=1e-4
    )


@pytest.fixture
def data(made, tmp_path):
    """A file of examples; the bound model is right on 13 of 20."""
    best = outputs(made.bound).argmax(-1)
    y = np.where(np.arange(20) < 13, best, (best + 1) % 4)
    np.savez(tmp_path / "data.npz", x=images(), y=y)
    return tmp_path / "data.npz"


def test_evaluate(made, data, tmp_path, capsys):
    flag = f"--passport={made['owner.h5']}"
    words = ("evaluate", made["protected.keras"], f"--data={data}")
    assert command(*words, flag, "--batch_size=3") == 0
    assert capsys.readouterr().out == "accuracy 0.6500 (13 of 20)\n"
    assert "Expected --passport" in mistake(capsys, *words)
    # The original, and labels in other shapes.
    x, y = (np.load(data)[name] for name in "xy")
    right = np.mean(outputs(load(made["original.keras"])).argmax(-1) == y)
    for labels in (y, y[:, None], np.eye(4)[y]):
        np.savez(tmp_path / "other.npz", x=x, y=labels)
        words = (
            "evaluate",
            made["original.keras"],
            f"--data={tmp_path / 'other.npz'}",
        )
        assert command(*words) == 0
        assert f"accuracy {right:.4f} " in capsys.readouterr().out
    assert "a protected model" in mistake(capsys, *words, flag)


def test_wrong_data(made, data, tmp_path, capsys):
    def said(path):
        return mistake(
            capsys, "evaluate", made["original.keras"], f"--data={path}"
        )

    def said_of(**arrays):
        np.savez(tmp_path / "wrong.npz", **arrays)
        return said(tmp_path / "wrong.npz")

    assert "No such file" in said(tmp_path / "missing.npz")
    assert "numpy.savez" in said(made["text"])
    np.save(tmp_path / "one.npy", images())
    assert "numpy.savez" in said(tmp_path / "one.npy")
    content = data.read_bytes()
    (tmp_path / "cut.npz").write_bytes(content[: len(content) // 2])
    assert "numpy.savez" in said(tmp_path / "cut.npz")
    x, y = images(), np.zeros(20, int)
    assert "without one of them" in said_of(x=x)
    assert "input shape" in said_of(x=x[:, 1:], y=y)
    assert "y of shape" in said_of(x=x, y=y[1:])
    assert "x of shape" in said_of(x=x[:0], y=y[:0])


@pytest.mark.parametrize(
    "labels, said",
    [
        (np.where(np.arange(20) == 3, -1, 0), "[0, 4)"),
        (np.where(np.arange(20) == 3, 4, 0), "Received: 4, and 0 more"),
        (np.full(20, 0.5), "with 0.5 in it"),
        (np.full(20, np.nan), "whole numbers"),
        (np.full(20, "cat"), "dtype <U3"),
        (np.zeros((20, 2)), "y of shape (20, 2)"),
        (np.zeros((20, 4)), "one-hot"),
        (np.full((20, 4), 0.25), "one-hot"),
        (np.zeros(21), "y of shape (21,)"),
    ],
)
def test_labels_that_no_class_has(labels, said, made, tmp_path, capsys):
    np.savez(tmp_path / "data.npz", x=images(), y=labels)
    words = ("evaluate", made["original.keras"])
    assert said in mistake(capsys, *words, f"--data={tmp_path / 'data.npz'}")


def test_labels_in_other_forms(made, tmp_path, capsys):
    best = outputs(load(made["original.keras"])).argmax(-1)
    for labels in (best.astype("uint8"), best.astype("float64")):
        np.savez(tmp_path / "data.npz", x=images(), y=labels)
        words = ("evaluate", made["original.keras"])
        assert command(*words, f"--data={tmp_path / 'data.npz'}") == 0
        assert "accuracy 1.0000 (20 of 20)" in capsys.readouterr().out


@pytest.mark.parametrize("value", (np.nan, np.inf))
def test_scores_that_are_not_finite(value, made, tmp_path, capsys):
    x = images()
    x[7] = value
    np.savez(tmp_path / "data.npz", x=x, y=np.zeros(20, int))
    for name, flag in (
        ("original.keras", ()),
        ("protected.keras", (f"--passport={made['owner.h5']}",)),
    ):
        words = ("evaluate", made[name], *flag)
        line = mistake(capsys, *words, f"--data={tmp_path / 'data.npz'}")
        assert "1 of 20 examples, the first for number 7" in line
        assert "x in --data is not finite itself" in line


def test_leaks(made, capsys, monkeypatch):
    class Report:
        def __init__(self, clean):
            self.clean = clean

        def to_dict(self):
            return {"clean": self.clean}

        def __str__(self):
            return "clean" if self.clean else "leaks"

    given = []
    for clean in (True, False):

        def find(passport, paths, verbose, clean=clean):
            given.append((passport.fingerprint, paths))
            return Report(clean)

        monkeypatch.setattr(kp, "find_leaks", find, raising=False)
        words = ("leaks", made["owner.h5"], "a", "b")
        assert command(*words) == (0 if clean else 1)
        assert capsys.readouterr().out == f"{Report(clean)}\n"
        assert command(*words, "--json") == (0 if clean else 1)
        assert json.loads(capsys.readouterr().out) == {"clean": clean}
    assert given == [(made.passport.fingerprint, ["a", "b"])] * 4


def test_leaks_in_files(made, tmp_path, capsys):
    words = ("leaks", made["owner.h5"])
    assert command(*words, made["protected.keras"]) == 0
    packed = tmp_path / "packed.npy"
    np.save(packed, made.passport.packed())
    assert command(*words, made["protected.keras"], packed) == 1
    assert "missing" in mistake(capsys, *words, tmp_path / "missing")


# In a process of its own ----------------------------------------------------


def start(*words):
    return subprocess.run(
        [sys.executable, "-m", "keras_passport", *map(str, words)],
        env={
            **{k: v for k, v in os.environ.items() if "TF_CPP" not in k},
            "KERAS_BACKEND": keras.backend.backend(),
            "PYTHONPATH": python_path(),
        },
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_as_a_user_runs_it(made):
    done = start("inspect", made["protected.keras"])
    assert (done.returncode, done.stderr) == (0, "")
    assert "2 of 3 kernel layers protected" in done.stdout


def test_tracebacks_in_a_process(made):
    words = ("show", made["truncated_owner.h5"])
    done = start(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    done = start(*words, "--verbosity=1")
    assert done.returncode == 2
    assert "Traceback" in done.stderr


def test_passports_alone_need_no_keras(made, tmp_path):
    out = tmp_path / "packed.npy"
    spec = made["passport_spec.json"]
    for words in (
        ["show", str(made["owner.h5"])],
        ["pack", str(made["owner.h5"]), f"--spec={spec}", f"--out={out}"],
        ["unlock", "missing.keras", "missing.h5", str(tmp_path / "x.keras")],
    ):
        printed = run_in_fresh_process(
            "import sys\n"
            "from keras_passport import cli\n"
            f"sys.argv = ['keras-passport', *{words!r}]\n"
            "try:\n"
            "    cli.run()\n"
            "except SystemExit as end:\n"
            "    print('status', end.code)\n"
            "print({'keras', 'tensorflow', 'jax', 'PIL'} & set(sys.modules))"
        )
        status = 2 if words[0] == "unlock" else 0
        assert printed.endswith(f"status {status}\nset()\n")
    np.testing.assert_array_equal(np.load(out), made.passport.packed())


def test_a_reader_that_has_seen_enough(made):
    done = subprocess.run(
        f"{sys.executable} -m keras_passport show {made['owner.h5']} | true",
        shell=True,
        env={**os.environ, "PYTHONPATH": python_path()},
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr) == ("", "")


def test_flags_of_other_modules_are_not_in_the_way(made, monkeypatch):
    # Keras's own, and the examples', are defined once per process.
    values = flags.FlagValues()
    for name in ("select", "function", "overwrite"):
        flags.DEFINE_string(name, None, "Another's.", flag_values=values)
    flags.FLAGS.append_flag_values(values)
    try:
        assert command("inspect", made["original.keras"], "--function=V1") == 0
    finally:
        flags.FLAGS.remove_flag_values(values)


def test_an_empty_name_is_not_the_current_folder(made, capsys, monkeypatch):
    monkeypatch.chdir(made.folder)
    words = ("new", "protected.keras", "of_pictures.h5", "--kind=fixed_image")
    for images in (",", "a.png,"):
        told = mistake(
            capsys, *words, "--reference=original.keras", f"--images={images}"
        )
        assert "a comma too many" in told


def test_names_of_classes_that_are_no_text(made, tmp_path, capsys):
    names = tmp_path / "names.txt"
    names.write_bytes("Füchse\nBären\n".encode("latin-1"))
    told = mistake(
        *(capsys, "export", made["protected.keras"], tmp_path / "served"),
        f"--class_names=@{names}",
    )
    assert "UTF-8" in told
