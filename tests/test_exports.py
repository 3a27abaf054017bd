"""SavedModel, ONNX and LiteRT files that take the passport as an input."""

import base64
import importlib
import json
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers

import keras_passport as kp
from keras_passport import files
from support.plain_models import (
    inputs_of,
    multi_input_model,
    nested_model,
    plain_cnn,
    randomize,
    shared_model,
    small_resnet,
)
from support.processes import python_path
from support.protected_models import lock
from support.stored_secrets import correlates, secrets_of
from support.truth import outputs_of, relative_difference

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="TensorFlow's own"
)


class Case:
    """A protected model, its passport, inputs, and the true outputs."""

    def __init__(self, base):
        self.model, self.passport, truth = lock(base)
        self.x = inputs_of(truth)
        self.expected = outputs_of(truth, self.x)
        self.key = self.passport.packed()
        self.wrong = np.random.default_rng(3).normal(size=self.key.shape)
        self.wrong = self.wrong.astype("float32")

    def inputs(self, key, *names):
        """Inputs by name, with a passport if it is one."""
        given = self.x
        if not isinstance(given, dict):
            given = given if isinstance(given, list) else [given]
            given = dict(zip(names, given, strict=True))
        return given if key is None else {**given, "passport": key}


def preprocessing_model():
    """uint8 pictures of any size into what `plain_cnn` takes."""
    pictures = keras.Input((None, None, 3), dtype="uint8", name="pictures")
    x = layers.Resizing(8, 8)(pictures)
    return keras.Model(pictures, layers.Rescaling(1 / 100, offset=-1)(x))


# What a client runs: with TensorFlow alone, in a folder of its own.
CLIENT = """
import json, pathlib, sys
# Where they are installed they can't be imported either.
sys.modules.update(keras=None, keras_passport=None)
for name in ("keras", "keras_passport"):
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    raise SystemExit(f"{name} can be imported")
import numpy as np
import tensorflow as tf
folder, results = pathlib.Path(sys.argv[1]), {}
for case in json.loads((folder / "cases.json").read_text()):
    loaded = tf.saved_model.load(str(folder / case["model"]))
    serve = loaded.signatures["serving_default"]
    _, specs = serve.structured_input_signature
    assert sorted(specs) == sorted(case["inputs"]), specs
    arrays = np.load(folder / case["arrays"])
    given = {name: tf.constant(arrays[name]) for name in arrays.files}
    if case["as_bytes"]:
        given["passport"] = tf.constant(
            [row.tobytes() for row in arrays["passport"]])
    try:
        out = serve(**given)
    except Exception as error:
        results[case["name"]] = f"{type(error).__name__}: {error}"
        continue
    out = [out[name].numpy() for name in sorted(out)]
    np.save(folder / case["name"],
            np.concatenate([y.reshape(len(y), -1) for y in out], axis=1))
assert sys.modules["keras"] is sys.modules["keras_passport"] is None
(folder / "results.json").write_text(json.dumps(results))
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """SavedModels, and what a process of TensorFlow alone makes of them.

    Dict from a case's name to what is expected and received: an array, or
    the text of an error.
    """
    keras.utils.set_random_seed(0)
    folder = tmp_path_factory.mktemp("exported")
    plain, several = Case(plain_cnn()), Case(multi_input_model())
    shared, nested = Case(shared_model()), Case(nested_model())
    rng = np.random.default_rng(2)
    pictures = rng.integers(0, 256, (3, 11, 9, 3)).astype("uint8")
    small = rng.integers(0, 256, (3, 8, 8, 3)).astype("uint8")
    front = preprocessing_model()
    names = ["cat", "dog", "ünïcode", "a bird"]
    kp.export_saved_model(plain.model, folder / "plain", class_names=names)
    kp.export_saved_model(several.model, folder / "several")
    kp.export_saved_model(shared.model, folder / "shared")
    kp.export_saved_model(
        kp.require_passport(nested.model),
        folder / "nested",
        passport_as_bytes=True,
    )
    kp.export_saved_model(plain.model, folder / "model", preprocessing=front)
    kp.export_saved_model(
        plain.model,
        folder / "function",
        preprocessing=lambda images: images / 100 - 1,
        input_dtype="uint8",
    )
    kp.export_saved_model(
        plain.model,
        folder / "unbuilt",
        preprocessing=keras.Sequential([layers.Rescaling(1 / 100, -1)]),
        input_dtype="uint8",
    )
    cases, expected = [], {}

    def add(name, model, given, value, as_bytes=False):
        inputs = sorted({*given, "passport"})
        np.savez(folder / f"{name}_in.npz", **given)
        cases.append(
            {
                "name": name,
                "model": model,
                "inputs": inputs,
                "arrays": f"{name}_in.npz",
                "as_bytes": as_bytes,
            }
        )
        expected[name] = value

    add("one_row", "plain", plain.inputs(plain.key, "images"), plain.expected)
    other = outputs_of(kp.require_passport(plain.model), [plain.x, plain.wrong])
    rows = np.concatenate([plain.key, plain.wrong])[[0, 1, 1, 0]]
    add(
        "mixed_rows",
        "plain",
        plain.inputs(rows, "images"),
        np.where([[True], [False], [False], [True]], plain.expected, other),
    )
    add("without", "plain", plain.inputs(None, "images"), "passport")
    add("short", "plain", plain.inputs(plain.key[:, 1:], "images"), "passport")
    add("several", "several", several.inputs(several.key), several.expected)
    left_right = shared.inputs(shared.key, "left", "right")
    add("shared", "shared", left_right, shared.expected)
    nested_rows = np.repeat(nested.key, 4, 0)
    for name, key in (("bytes", nested.key), ("bytes_rows", nested_rows)):
        given = nested.inputs(key, "images")
        add(name, "nested", given, nested.expected, True)
    given = nested.inputs(nested.key[:, 1:], "images")
    add("bytes_short", "nested", given, "hape", True)
    # Not called: eagerly, Keras rounds what it resizes.
    seen = outputs_of(plain.model, front.predict(pictures, verbose=0))
    given = {"images": pictures, "passport": plain.key}
    add("model", "model", given, seen)
    seen = outputs_of(plain.model, small.astype("float32") / 100 - 1)
    given = {"images": small, "passport": plain.key}
    add("function", "function", given, seen)
    add("unbuilt", "unbuilt", given, seen)
    (folder / "cases.json").write_text(json.dumps(cases))
    finished = run_client(CLIENT, folder)
    assert finished.returncode == 0, finished.stderr[-4000:]
    results = json.loads((folder / "results.json").read_text())
    for name in expected:
        if name not in results:
            results[name] = np.load(folder / f"{name}.npy")
    return folder, plain, expected, results


def run_client(code, folder):
    """Runs code isolated from this repository, its folder and variables."""
    return subprocess.run(
        [sys.executable, "-I", "-c", code, str(folder)],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "TF_CPP_MIN_LOG_LEVEL": "2"},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize(
    "name",
    (
        "one_row",
        "mixed_rows",
        "several",
        "shared",
        "bytes",
        "bytes_rows",
        "model",
        "function",
        "unbuilt",
    ),
)
def test_without_keras_and_the_package(name, exported):
    _, _, expected, results = exported
    assert not isinstance(results[name], str), results[name]
    assert relative_difference(results[name], expected[name]) < 1e-5
    assert relative_difference(*results[name][:2]) > 1e-3


@pytest.mark.parametrize("name", ("without", "short", "bytes_short"))
def test_the_signatures_own_errors(name, exported):
    _, _, expected, results = exported
    assert isinstance(results[name], str)
    assert expected[name] in results[name]


def test_assets(exported):
    folder, plain, _, _ = exported
    assets = folder / "plain" / "assets"
    labels = (assets / "labels.txt").read_text(encoding="utf-8")
    assert labels.splitlines() == ["cat", "dog", "ünïcode", "a bird"]
    spec = json.loads((assets / "passport_spec.json").read_text())
    assert spec == json.loads(json.dumps(kp.passport_spec(plain.model)))
    for place in (folder / "plain", assets / "passport_spec.json", spec):
        np.testing.assert_array_equal(plain.passport.pack(place), plain.key)
    assert not (folder / "model" / "assets" / "labels.txt").exists()
    # Another architecture's.
    with pytest.raises(kp.PassportError):
        plain.passport.pack(folder / "nested")


# TensorFlow's tool, first with a passport, in a fork, then without: to import
# it takes far longer than to run it.
TOOL = """
import os, sys
from tensorflow.python.tools import saved_model_cli
passport = sys.argv.pop()
if pid := os.fork():
    assert os.waitpid(pid, 0)[1] == 0
    print("WITHOUT", file=sys.stderr, flush=True)
else:
    sys.argv[-1] += passport
saved_model_cli.main()
"""


def test_the_command_line_of_tensorflow(exported):
    folder, plain, _, _ = exported
    (folder / "cli").mkdir()
    np.save(folder / "images.npy", plain.x)
    np.save(folder / "passport.npy", plain.key)
    finished = subprocess.run(
        [
            *(sys.executable, "-c", TOOL),
            *("run", "--dir", folder / "plain", "--tag_set", "serve"),
            *("--signature_def", "serving_default", "--overwrite"),
            *("--outdir", folder / "cli"),
            *("--inputs", f"images={folder / 'images.npy'}"),
            f";passport={folder / 'passport.npy'}",
        ],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": python_path()},
        capture_output=True,
        text=True,
        timeout=300,
    )
    _, without, errors = finished.stderr.partition("WITHOUT\n")
    assert without, finished.stderr[-3000:]
    [received] = (folder / "cli").glob("*.npy")
    difference = relative_difference(np.load(received), plain.expected)
    assert difference < 1e-5
    assert finished.returncode != 0
    assert "passport" in errors


def test_no_secret_is_in_the_folder(exported):
    import tensorflow as tf

    folder, plain, _, _ = exported
    secrets = {**secrets_of(plain.model), "packed": plain.key}
    for path, keys in plain.passport.keys().items():
        for role, key in keys.items():
            secrets[f"{path}/{role}_key"] = key
    reader = tf.train.load_checkpoint(
        str(folder / "plain" / "variables" / "variables")
    )
    arrays = {
        name: reader.get_tensor(name)
        for name, dtype in reader.get_variable_to_dtype_map().items()
        if dtype.is_floating
    }
    assert len(arrays) >= len(plain.model.weights)
    for name, secret in secrets.items():
        stored = np.asarray(secret, "<f4").tobytes()
        if np.size(secret) >= 16:  # So few numbers correlate by chance.
            for where, array in arrays.items():
                assert not correlates(secret, array), (name, where)
        for file in (folder / "plain").rglob("*"):
            assert file.is_dir() or stored not in file.read_bytes(), name


def test_json_carries_the_bytes(exported):
    """What README says of Base64 is what the signature decodes."""
    _, plain, _, _ = exported
    text = base64.b64encode(plain.key.astype("<f4").tobytes()).decode()
    decoded = np.frombuffer(base64.b64decode(text), "<f4")
    np.testing.assert_array_equal(decoded[None], plain.key)


# Places to write to, and what goes wrong.


@pytest.fixture
def small():
    inputs = keras.Input((5,), name="inputs")
    x = layers.Dense(6, name="dense")(inputs)
    base = keras.Model(inputs, layers.BatchNormalization(name="bn")(x))
    return kp.protect(randomize(base))


def contents(folder):
    return {
        path.relative_to(folder): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_overwriting(small, tmp_path):
    place = tmp_path / "served"
    kp.export_saved_model(small, place)
    before = contents(place)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        kp.export_saved_model(small, place)
    assert contents(place) == before
    kp.export_saved_model(
        small, str(place), class_names=list("abcdef"), overwrite=True
    )
    assert (place / "assets" / "labels.txt").read_text() == "a\nb\nc\nd\ne\nf\n"
    # What a killed process has left beside it.
    (tmp_path / ".served-01234567").mkdir()
    kp.export_saved_model(small, place, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".served-01234567",
        "served",
    ]


def test_nothing_is_left_of_a_failure(small, tmp_path):
    def broken(inputs):
        raise ZeroDivisionError("in broken")

    kp.export_saved_model(small, tmp_path / "served")
    before = contents(tmp_path)
    for place in ("served", "other"):
        with pytest.raises(Exception, match="in broken"):
            kp.export_saved_model(
                small, tmp_path / place, preprocessing=broken, overwrite=True
            )
    with pytest.raises(FileNotFoundError, match="existing folder"):
        kp.export_saved_model(small, tmp_path / "no" / "place")
    assert contents(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["served"]


def test_mistakes(small, tmp_path):
    place = tmp_path / "served"
    two = keras.Input((2,)), keras.Input((3,))
    for options, expected in (
        ({"class_names": ["one"]}, "6 outputs"),
        ({"class_names": ["a\nb", *"cdefg"]}, "line breaks"),
        (
            {"preprocessing": keras.Model(two, layers.Concatenate()(two))},
            "1 inputs",
        ),
    ):
        with pytest.raises(ValueError, match=expected):
            kp.export_saved_model(small, place, **options)
    stock = keras.Sequential([keras.Input((3,)), layers.Dense(2)])
    for export in (
        kp.export_saved_model,
        kp.export_onnx,
        kp.export_litert,
    ):
        with pytest.raises(kp.PassportError, match="without any passport"):
            export(stock, place)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("has_exchange", (True, False))
def test_a_folder_takes_the_place_of_another(
    has_exchange, tmp_path, monkeypatch
):
    if not has_exchange:
        monkeypatch.setattr(files.ctypes, "CDLL", lambda *a, **k: object())
    place = tmp_path / "place"
    for content in ("one", "two"):
        with files.replacing_folder(place, overwrite=True) as folder:
            (folder / "inside").mkdir()
            (folder / "inside" / "file").write_text(content)
        assert (place / "inside" / "file").read_text() == content
        assert [path.name for path in tmp_path.iterdir()] == ["place"]


@pytest.mark.parametrize("name", ["place", "place.onnx", "place.tflite"])
def test_nobodys_passport_is_overwritten(name, small, tmp_path):
    passport, place = kp.Passport.random_pattern(small), tmp_path / name
    passport.save(place)
    before = place.read_bytes()
    export = {
        "place": kp.export_saved_model,
        "place.onnx": kp.export_onnx,
        "place.tflite": kp.export_litert,
    }[name]
    with pytest.raises(FileExistsError, match="Expected to overwrite"):
        export(small, place, overwrite=True)
    assert place.read_bytes() == before
    assert list(tmp_path.iterdir()) == [place]


def test_what_can_not_take_a_place_leaves_it(tmp_path, monkeypatch):
    monkeypatch.setattr(files.ctypes, "CDLL", lambda *a, **k: object())
    place, rename = tmp_path / "place", files.os.rename
    with files.replacing_folder(place) as folder:
        (folder / "old").write_text("old")

    def failing(one, other):
        if (pathlib.Path(one) / "new").exists():
            raise OSError(5, "Input/output error")
        rename(one, other)

    monkeypatch.setattr(files.os, "rename", failing)
    with (
        pytest.raises(OSError, match="Input/output"),
        files.replacing_folder(place, overwrite=True) as folder,
    ):
        (folder / "new").write_text("new")
    assert [path.name for path in tmp_path.rglob("*")] == ["place", "old"]


def test_keras_own_export_works_too(small, tmp_path):
    import tensorflow as tf

    passport = kp.Passport.random_pattern(small)
    served = kp.require_passport(kp.bind(small, passport))
    served.export(tmp_path / "served", verbose=False)
    loaded = tf.saved_model.load(str(tmp_path / "served"))
    x = np.random.default_rng(0).random((4, 5), "float32")
    received = loaded.serve([x, passport.packed()])
    expected = outputs_of(small, x)
    assert relative_difference(received, expected) < 1e-5


# Other formats.

OTHERS = {
    model.__name__: model
    for model in (small_resnet, nested_model, multi_input_model, shared_model)
}
NAMES = {"shared_model": ("left", "right")}


def both_passports(case, name):
    """One row, and a row per example, with what they must give."""
    names = NAMES.get(name, ("images",))
    served = kp.require_passport(case.model)
    given = case.inputs(case.wrong, *names)
    flat = list(given.values())
    wrong = outputs_of(served, given if isinstance(case.x, dict) else flat)
    yield case.inputs(case.key, *names), case.expected
    rows = np.concatenate([case.key, case.wrong])[[0, 1, 1, 0]]
    chosen = [[True], [False], [False], [True]]
    yield case.inputs(rows, *names), np.where(chosen, case.expected, wrong)


def joined(outputs):
    return np.concatenate([y.reshape(len(y), -1) for y in outputs], axis=1)


@pytest.mark.parametrize("name", OTHERS)
def test_onnx(name, tmp_path):
    pytest.importorskip("tf2onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    case = Case(OTHERS[name]())
    place = tmp_path / "model.onnx"
    kp.export_onnx(case.model, place)
    session = onnxruntime.InferenceSession(str(place))
    for given, expected in both_passports(case, name):
        assert {item.name for item in session.get_inputs()} == set(given)
        received = joined(session.run(None, given))
        assert relative_difference(received, expected) < 1e-5
        with pytest.raises(ValueError, match="passport"):
            session.run(None, {k: v for k, v in given.items() if k[0] != "p"})
    with pytest.raises(FileExistsError):
        kp.export_onnx(case.model, place)
    kp.export_onnx(kp.require_passport(case.model), place, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert case.key[0, :16].tobytes() not in place.read_bytes()


@pytest.mark.parametrize("name", OTHERS)
def test_litert(name, tmp_path):
    litert = pytest.importorskip("ai_edge_litert.interpreter")
    case = Case(OTHERS[name]())
    place = tmp_path / "model.tflite"
    kp.export_litert(case.model, place)
    run = litert.Interpreter(str(place)).get_signature_runner()
    for given, expected in both_passports(case, name):
        assert set(run.get_input_details()) == set(given)
        outputs = run(**given)
        received = joined([outputs[name] for name in sorted(outputs)])
        assert relative_difference(received, expected) < 1e-5
        with pytest.raises(ValueError, match="passport|number of inputs"):
            run(**{k: v for k, v in given.items() if k[0] != "p"})
    with pytest.raises(FileExistsError):
        kp.export_litert(case.model, place)
    assert [path.name for path in tmp_path.iterdir()] == ["model.tflite"]
    assert case.key[0, :16].tobytes() not in place.read_bytes()


def test_rows_in_a_secret_order(tmp_path):
    base = plain_cnn()
    model, passport = kp.protect_trained(base, seed=0)
    x = inputs_of(base)
    expected, key = outputs_of(base, x), passport.packed()
    given = {"images": x, "passport": key}
    mixed = {"images": x[:2], "passport": np.concatenate([key, -key])}

    import tensorflow as tf

    kp.export_saved_model(model, tmp_path / "served")
    loaded = tf.saved_model.load(str(tmp_path / "served"))
    signature = loaded.signatures["serving_default"]
    runs = [lambda **given: list(signature(**given).values())[0].numpy()]
    if importlib.util.find_spec("tf2onnx"):
        onnxruntime = pytest.importorskip("onnxruntime")
        kp.export_onnx(model, tmp_path / "served.onnx")
        session = onnxruntime.InferenceSession(str(tmp_path / "served.onnx"))
        runs.append(lambda **given: session.run(None, given)[0])
    if importlib.util.find_spec("ai_edge_litert"):
        litert = importlib.import_module("ai_edge_litert.interpreter")
        kp.export_litert(model, tmp_path / "served.tflite")
        interpreter = litert.Interpreter(str(tmp_path / "served.tflite"))
        lite = interpreter.get_signature_runner()
        runs.append(lambda **given: list(lite(**given).values())[0])
    for run in runs:
        assert relative_difference(run(**given), expected) < 1e-5
        # One kernel can't serve two passports: nobody gets wrong numbers.
        assert np.all(np.isnan(run(**mixed)))


def test_onnx_of_what_can_not_be_converted(tmp_path):
    """Plain Keras writes a file then that no runtime reads."""
    x = inputs = keras.Input((6, 6, 4))
    x = layers.Conv2D(8, 3, groups=2)(x)
    x = layers.GlobalAveragePooling2D()(layers.BatchNormalization()(x))
    model = kp.protect(keras.Model(inputs, layers.Dense(3)(x)))
    place = tmp_path / "served.onnx"
    place.write_text("precious")
    with pytest.raises(RuntimeError, match="tf2onnx converts as a whole"):
        kp.export_onnx(model, place, overwrite=True)
    assert place.read_text() == "precious"
    assert list(tmp_path.iterdir()) == [place]


def test_onnx_without_its_packages(small, tmp_path, monkeypatch):
    for name in [*sys.modules, "onnx", "tf2onnx"]:
        if name.split(".")[0] in ("onnx", "tf2onnx"):
            monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"keras-passport\[onnx\]"):
        kp.export_onnx(small, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_a_litert_file_of_another_suffix(small, tmp_path):
    with pytest.raises(ValueError, match="tflite"):
        kp.export_litert(small, tmp_path / "model.h5")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_came_there_meanwhile_stays(
    overwrite, small, tmp_path, monkeypatch
):
    """Converting takes minutes; a passport may not be replaced at all."""
    place = tmp_path / "model.tflite"
    passport = kp.Passport.random_pattern(small)

    def export(self, path, **options):
        pathlib.Path(path).write_bytes(b"converted")
        passport.save(place)

    monkeypatch.setattr(kp.PassportInputModel, "export", export)
    with pytest.raises(FileExistsError):
        kp.export_litert(small, place, overwrite=overwrite)
    assert kp.Passport.load(place).fingerprint == passport.fingerprint
    assert list(tmp_path.iterdir()) == [place]
