"""`find_leaks`: it finds what is planted, and nothing where nothing is."""

import gzip
import io
import json
import pathlib
import zipfile

import h5py
import keras
import numpy as np
import pytest
from scipy import stats

import keras_passport as kp
from keras_passport.leaks import correlations, searches
from support.marks import needs_tensorflow
from support.plain_models import wide_cnn
from support.protected_models import compiled, images, labels
from support.stored_secrets import found, zipped

LAYER = "conv2d_1"


def trained(seed=1, decouple=True, key_scaling="fan_in"):
    keras.utils.set_random_seed(1)
    keras.backend.clear_session()
    model = kp.protect(wide_cnn())
    for layer in kp.protected_layers(model).values():
        layer.decouple = decouple
    passport = kp.Passport.random_pattern(
        model, seed=seed, key_scaling=key_scaling
    )
    compiled(kp.bind(model, passport))
    model.fit(images(), labels(), epochs=2, verbose=0)
    return model, passport


@pytest.fixture(scope="module")
def owned():
    return trained()


@pytest.fixture
def noise():
    return np.random.default_rng(0)


def publish(model, folder):
    """What an owner may publish of a model."""
    model.save(folder / "model.keras")
    model.save_weights(folder / "model.weights.h5")
    (folder / "model.json").write_text(model.to_json())
    (folder / "log.txt").write_text(
        f"{model.layers} {model.evaluate(images(), labels(), verbose=0)}"
    )
    np.savez(folder / "images.npz", images(100), labels(100))


def key_of(passport):
    return passport.keys()[LAYER]["gamma"]


def test_a_published_model_is_clean(owned, tmp_path):
    model, passport = owned
    publish(model, tmp_path)
    report = kp.find_leaks(passport, tmp_path)
    assert report.clean, report
    assert report.examined["files"] == 5
    # In both files, and in both layers.
    assert report.examined["kernels"] == 4
    paths = list(kp.protected_layers(model))
    kernels = [(path, role) for path in paths for role in ("gamma", "beta")]
    signs = [(path, "gamma") for path in paths]
    assert [(t.layer, t.role) for t in report.traces] == kernels + signs
    assert report.notes == ()
    # Three channels are too few, and it says so.
    assert "key's mean of conv2d gamma" in report.untold
    assert json.loads(json.dumps(report.to_dict()))["clean"]


def test_signs_that_follow_the_filters_sums_are_a_trace(owned, tmp_path):
    """Each filter gets the other sign's mean, along which γ does not change."""
    model, passport = owned
    model = kp.bind(kp.public(model), passport)
    for path, layer in kp.protected_layers(model).items():
        key = np.ravel(passport.keys()[path]["gamma"])
        along = np.ones(key.size) - key * np.sum(key) / np.sum(key**2)
        kernel = keras.ops.convert_to_numpy(layer.layer.kernel)
        signs = np.sign(layer.hidden_parameters()[0])
        change = np.outer(along, -signs).reshape(kernel.shape)
        layer.layer.kernel.assign(kernel + 2 * kernel.std() * change)
    report = kp.find_leaks(passport, [], model=model)
    for trace in report.traces:
        assert trace.place == "signs, by the filters"
        assert trace.cosine > 0.9 > trace.chance
    assert len(report.traces) == 2 and "signs, by" in str(report)


@needs_tensorflow
def test_a_checkpoint_and_a_saved_model_without_secrets_are_clean(
    owned, tmp_path
):
    import tensorflow as tf

    model, passport = owned
    module = tf.Module()
    weights = model.get_weights()
    module.weights = [tf.Variable(weight) for weight in weights]
    module.constant = tf.function(
        lambda: tf.constant(weights[0]), input_signature=[]
    )
    tf.train.Checkpoint(module).write(str(tmp_path / "checkpoint"))
    tf.saved_model.save(module, str(tmp_path / "saved_model"))
    report = kp.find_leaks(passport, tmp_path, model=model)
    assert report.clean, report
    assert report.examined["kernels"] == 5


def save_h5(path, array):
    with h5py.File(path, "w") as file:
        file.create_dataset("some/array", data=array, compression="gzip")


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def packed(key):
    vector = np.random.default_rng(2).normal(size=5000)
    vector[1717 : 1717 + key.size] = 1e-3 * key.ravel() + 3
    return vector


def among_columns(key):
    columns = np.random.default_rng(3).normal(size=(*key.shape, 7))
    columns[..., 4] = -2 * key
    return columns


PLANTED = {
    "npz": lambda path, key: np.savez(path / "a.npz", some=key),
    "scaled": lambda path, key: np.savez(path / "a.npz", 0.37 * key),
    "tiny": lambda path, key: np.savez(path / "a.npz", 1e-30 * key),
    "large": lambda path, key: np.savez(path / "a.npz", 1e8 * key),
    "transposed": lambda path, key: np.save(path / "a.npy", key.T),
    "scaled_transposed": lambda path, key: np.savez_compressed(
        path / "a.npz", 0.37 * key.transpose(2, 0, 1)
    ),
    "float16": lambda path, key: np.save(path / "a.npy", key.astype("f2")),
    "scaled_float16": lambda path, key: np.save(
        path / "a.npy", (0.37 * key).astype("f2")
    ),
    "h5": lambda path, key: save_h5(path / "a.h5", 0.37 * key),
    "packed": lambda path, key: np.save(path / "a.npy", packed(key)),
    "columns": lambda path, key: np.save(path / "a.npy", among_columns(key)),
    "channels": lambda path, key: np.save(
        path / "a.npy", 0.37 * key.mean((0, 1))
    ),
    "zip_in_zip": lambda path, key: (path / "a.zip").write_bytes(
        zipped(zipped(npy(0.37 * key)), "inside.zip")
    ),
    "gzip": lambda path, key: (path / "a.gz").write_bytes(
        gzip.compress(npy(0.37 * key))
    ),
    "unknown": lambda path, key: (path / "a.bin").write_bytes(
        b"\0\1\2\3\4"
        + np.full(9, 1e8, "f4").tobytes()
        + (0.37 * key).astype("f4").tobytes()
        + b"end"
    ),
    "onnx": lambda path, key: (path / "a.onnx").write_bytes(
        b"\0\1\2" + (0.37 * key).astype("f4").tobytes()
    ),
    "a_part": lambda path, key: (path / "a.bin").write_bytes(
        b"odd" + key.tobytes()[40:60] + b"\0" * 50
    ),
    "printed": lambda path, key: (path / "a.txt").write_text(
        f"key: {np.asarray(key)}"
    ),
    "printed_part": lambda path, key: (path / "a.log").write_text(
        f"step 1.5, loss 0.25 {np.asarray(key).ravel()[5:9]} 7.25"
    ),
    "json": lambda path, key: (path / "a.json").write_text(
        json.dumps({"values": key.tolist()})
    ),
    "scaled_json": lambda path, key: (path / "a.json").write_text(
        json.dumps({"values": (0.37 * key).tolist()})
    ),
}


@pytest.mark.parametrize("planted", PLANTED)
def test_a_key_is_found(planted, owned, tmp_path):
    model, passport = owned
    model.save_weights(tmp_path / "model.weights.h5")
    PLANTED[planted](tmp_path, key_of(passport))
    report = kp.find_leaks(passport, tmp_path, model=model)
    assert found(report) == {(LAYER, "gamma")}, report
    assert {leak.path for leak in report.leaks} == {
        str(path) for path in tmp_path.glob("a.*")
    }
    assert all(leak.measure > leak.bound for leak in report.leaks)
    assert not report.clean
    # What is said of a leak leaks nothing.
    texts = f"{report} {report!r} {json.dumps(report.to_dict())}"
    digits = {f"{abs(value):.9g}"[:8] for value in key_of(passport).ravel()}
    assert not [number for number in digits if number in texts]
    assert max(map(len, str(report).splitlines())) <= 80


KINDS = {
    "conv1d": ((12, 8), lambda: keras.layers.Conv1D(16, 3)),
    "grouped": ((8, 8, 8), lambda: keras.layers.Conv2D(16, 3, groups=2)),
    "depthwise": ((8, 8, 12), lambda: keras.layers.DepthwiseConv2D(3)),
    "separable": ((8, 8, 8), lambda: keras.layers.SeparableConv2D(16, 3)),
    "transpose": ((8, 8, 8), lambda: keras.layers.Conv2DTranspose(8, 3)),
    "dense": ((40,), lambda: keras.layers.Dense(16)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_layer(kind, noise, tmp_path):
    shape, layer = KINDS[kind]
    model = keras.Sequential(
        [keras.Input(shape), layer(), keras.layers.BatchNormalization()]
    )
    model = kp.protect(model)
    passport = kp.Passport.random_pattern(model, seed=1)
    kp.bind(model, passport)
    model.save(tmp_path / "model.keras")
    with h5py.File(tmp_path / "strings.h5", "w") as file:
        file["text"], file["empty"] = "text", h5py.Empty("f4")
    report = kp.find_leaks(passport, tmp_path)
    assert report.clean, report
    assert report.notes == ()
    ((_, keys),) = passport.keys().items()
    np.savez(tmp_path / "a.npz", 0.37 * keys["beta"] + 1)
    assert {role for _, role in found(kp.find_leaks(passport, tmp_path))} == {
        "beta"
    }


@pytest.mark.parametrize("role", (0, 1))
def test_hidden_parameters_are_found(role, owned, tmp_path):
    model, passport = owned
    hidden = kp.protected_layers(model)[LAYER].hidden_parameters()[role]
    save_h5(tmp_path / "a.h5", -0.1 * hidden + 3)
    expected = {(LAYER, ("gamma", "beta")[role])}
    assert found(kp.find_leaks(passport, tmp_path, model=model)) == expected
    # Without a model it can't know them; one among the files will do.
    report = kp.find_leaks(passport, [tmp_path / "a.h5"])
    assert report.clean
    assert "hidden parameters" in report.notes[0]
    model.save(tmp_path / "model.keras")
    assert found(kp.find_leaks(passport, tmp_path)) == expected


def test_the_momentum_of_the_plain_formula_is_found(tmp_path):
    model, passport = trained(decouple=False, key_scaling="paper")
    with kp.secret_checkpoint(model):
        model.save_weights(tmp_path / "checkpoint.weights.h5")
    report = kp.find_leaks(passport, tmp_path, model=model)
    assert report.leaks, report
    for leak in report.leaks:
        assert leak.place.startswith("optimizer/vars"), report
    assert (LAYER, "gamma") in found(report) or (LAYER, "beta") in found(report)


def test_the_state_that_gradients_leave_is_found(owned, noise, tmp_path):
    model, passport = owned
    keys = passport.keys()[LAYER]
    slot = sum(
        np.multiply.outer(key, noise.normal(size=20)) for key in keys.values()
    )
    save_h5(tmp_path / "a.h5", slot + noise.normal(size=slot.shape))
    report = kp.find_leaks(passport, tmp_path / "a.h5")
    assert found(report) <= {(LAYER, "gamma"), (LAYER, "beta")}
    forms = {leak.what for leak in report.leaks}
    assert "key, in a singular vector" in forms


@needs_tensorflow
def test_keys_in_tensorflows_files_are_found(owned, tmp_path):
    import tensorflow as tf

    model, passport = owned
    key = 0.37 * key_of(passport)
    module = tf.Module()
    module.variable = tf.Variable(key)
    folders = {name: tmp_path / name for name in ("saved", "constant", "lite")}
    tf.saved_model.save(module, str(folders["saved"]))
    signature = [tf.TensorSpec(key.shape)]
    module = tf.Module()
    module.call = tf.function(lambda x: x * key, input_signature=signature)
    tf.saved_model.save(module, str(folders["constant"]))
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [module.call.get_concrete_function()], module
    )
    folders["lite"].mkdir()
    (folders["lite"] / "model.tflite").write_bytes(converter.convert())
    with tf.summary.create_file_writer(str(tmp_path / "events")).as_default():
        tf.summary.write("tensor", tf.constant(key), step=0)
    folders["events"] = tmp_path / "events"
    for name, folder in folders.items():
        report = kp.find_leaks(passport, folder, model=model)
        assert found(report) == {(LAYER, "gamma")}, (name, report)
        assert report.notes == (), name


def test_seeds_and_passport_files_are_found(tmp_path):
    model, passport = trained(seed=bytes(range(40, 60)))
    for name, content in {
        "raw": b"seed:" + passport.seed,
        "hexadecimal": passport.seed.hex().encode(),
        "capitals": passport.seed.hex().upper().encode(),
    }.items():
        (tmp_path / name).write_bytes(content)
        leaks = kp.find_leaks(passport, tmp_path / name).leaks
        assert leaks and all(leak.what.startswith("seed") for leak in leaks)
    passport.save(tmp_path / "passport.h5")
    report = kp.find_leaks(passport, tmp_path / "passport.h5", model=model)
    forms = {leak.what for leak in report.leaks}
    assert {"feature map as float32", "seed in hexadecimal"} <= forms


def test_a_wrong_passport_is_no_leak(owned, tmp_path):
    model, passport = owned
    publish(model, tmp_path)
    for seed in range(20):
        wrong = kp.Passport.random_pattern(model, seed=1000 + seed)
        keys = wrong.keys()
        np.savez(
            tmp_path / f"{seed}.npz",
            wrong.packed(),
            *[key for some in keys.values() for key in some.values()],
        )
        text = json.dumps(wrong.packed().tolist())
        (tmp_path / f"{seed}.json").write_text(text)
    wrong.save(tmp_path / "wrong.h5")
    report = kp.find_leaks(passport, tmp_path)
    assert report.clean, report
    assert report.examined["comparisons"] > 1e6


def test_little_information_is_no_leak(owned, noise, tmp_path):
    model, passport = owned
    np.savez(
        tmp_path / "a.npz",
        np.zeros(5000),
        np.ones(5000) + 1e-16 * noise.normal(size=5000),
        np.tile([0.0, 1.0], 2000),
        np.full(1000, np.nan),
        # A value that stands out, in every window.
        1e6 * np.eye(70),
        noise.standard_cauchy(20000),
        np.arange(300),
        np.array(["text"]),
    )
    (tmp_path / "empty").write_bytes(b"")
    report = kp.find_leaks(passport, tmp_path, model=model)
    assert report.clean, report


def test_what_is_damaged_is_searched_as_bytes(owned, tmp_path):
    model, passport = owned
    content = npy(key_of(passport))
    stored = io.BytesIO()
    with zipfile.ZipFile(stored, "w") as archive:
        archive.writestr("inside.npy", content)
    (tmp_path / "broken.zip").write_bytes(stored.getvalue()[:-30])
    (tmp_path / "broken.keras").write_bytes(b"PK\3\4 no model")
    report = kp.find_leaks(passport, tmp_path)
    assert found(report) == {(LAYER, "gamma")}
    reasons = {
        pathlib.Path(left.path).name: left.reason
        for left in report.not_examined
    }
    assert reasons.keys() == {"broken.zip", "broken.keras"}
    assert all("not readable" in reason for reason in reasons.values())


def test_refusals(owned, tmp_path):
    model, passport = owned
    with pytest.raises(FileNotFoundError, match="Expected an existing file"):
        kp.find_leaks(passport, [tmp_path, tmp_path / "missing"])
    # Of nothing it does not say that it is clean.
    for nothing in ([], tmp_path):
        report = kp.find_leaks(passport, nothing)
        assert not report.clean and "no file" in str(report)
    with pytest.raises(kp.PassportError, match="Expected passport to be"):
        kp.find_leaks(key_of(passport), tmp_path)
    other = kp.protect(wide_cnn(), "V1")
    with pytest.raises(kp.PassportError, match="function"):
        kp.find_leaks(passport, tmp_path, model=other)


@pytest.mark.parametrize("size", (16, 64, 300))
def test_the_bound_is_that_of_the_beta_distribution(size, noise):
    values = noise.normal(size=size).astype("float32")
    secret = searches.Secret("", "", "", values, np.ones(size - 1))
    for chance in (1e-4, 1e-12):
        exact = np.sqrt(stats.beta.isf(chance, 0.5, (size - 2) / 2))
        assert exact <= secret.bound(chance) < exact + 0.1


def test_the_bound_holds_for_keys_that_are_alike_over_their_window(noise):
    fixed = np.tile(noise.normal(size=8), 9)
    fixed -= fixed.mean()
    above = 0
    for _ in range(2000):
        key = np.tile(noise.normal(size=8), (9, 1))
        key = key + 0.1 * noise.normal(size=key.shape)
        parts, _ = searches.key_parts(key)
        secret = searches.Secret("", "", "", key, parts)
        correlation = np.corrcoef(fixed, key.ravel())[0, 1]
        above += abs(correlation) > secret.bound(0.01)
    assert above <= 30


@pytest.mark.parametrize("size", (2, 7, 33, 300))
def test_products_and_sums_of_windows(size, noise):
    values = noise.normal(size=9000)
    windows = np.lib.stride_tricks.sliding_window_view(values, size)
    np.testing.assert_allclose(
        correlations._window_sums(values, size), windows.sum(1), atol=1e-10
    )
    units = noise.normal(size=(3, size))
    np.testing.assert_allclose(
        correlations._products(values, units), units @ windows.T, atol=1e-9
    )


@pytest.mark.parametrize("shape", ((60, 90), (90, 60), (7, 3), (2, 1), (1, 9)))
@pytest.mark.parametrize("count", (1, 2))
def test_leading_singular_vectors(shape, count, noise):
    matrix = noise.normal(size=shape)
    expected = np.linalg.svd(matrix, full_matrices=False)[0][:, :count].T
    vectors = correlations._leading(matrix, count)
    cosines = np.abs(np.sum(vectors * expected, axis=1))
    np.testing.assert_allclose(cosines, 1, rtol=1e-6)
    assert len(correlations._leading(0 * matrix, count)) == 0


def test_a_key_of_one_channel_is_too_small_to_tell(tmp_path):
    """Pictures in grey: the first layer's key has nine numbers, all alike."""
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(16, 3, name="stem")(inputs)
    x = keras.layers.BatchNormalization()(x)
    model = kp.protect(keras.Model(inputs, x))
    passport = kp.Passport.random_pattern(model, seed=bytes(range(16)))
    model.save(tmp_path / "model.keras")
    report = kp.find_leaks(passport, [tmp_path / "model.keras"])
    assert report.clean
    assert any("stem" in line for line in report.untold)


def hidden_statistics(model, passport):
    return kp.hide_statistics(model, [images(100)])


def hidden_rows_of_both(model, passport):
    model = hidden_statistics(model, passport)
    return kp.hide_rows(model, passport)


def trained_anew(model, passport):
    compiled(kp.bind(kp.reinitialize(model, 5), passport))
    model.fit(images(), labels(), epochs=2, verbose=0)
    return model


@pytest.mark.parametrize(
    "change, tells",
    [
        (hidden_statistics, True),
        (hidden_rows_of_both, True),
        (trained_anew, False),
        (lambda model, passport: model, False),
    ],
    ids=["statistics", "rows", "anew", "nothing"],
)
def test_two_versions_tell_the_keys_that_they_differ_along(
    change, tells, tmp_path
):
    model, passport = trained()
    before = kp.public(model)
    if change is hidden_rows_of_both:
        before = kp.hide_rows(before, passport)
    before.save(tmp_path / "before.keras")
    after = kp.public(change(model, passport))
    # What is not published may be another version.
    report = kp.find_leaks(passport, tmp_path, after)
    assert not any("versions" in leak.what for leak in report.leaks)
    after.save(tmp_path / "after.keras")
    report = kp.find_leaks(passport, tmp_path)
    versions = [leak for leak in report.leaks if "versions" in leak.what]
    told = {(leak.layer, leak.role) for leak in versions}
    assert told == ({(LAYER, "gamma"), (LAYER, "beta")} if tells else set())
    for leak in versions:
        assert leak.measure > 0.999 > leak.bound
        assert "new passport" in leak.advice
        assert leak.path.endswith(".keras") and ".keras" in leak.place
