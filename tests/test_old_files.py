"""Files that version 0.1.0 wrote load, bind, serve and go on."""

import json
import shutil

import keras
import numpy as np
import pytest

import keras_passport as kp
from common.finished import FinishedRun
from support import programs
from support.marks import needs_keras
from support.processes import REPOSITORY

OLD = REPOSITORY / "tests" / "data" / "version_0_1_0"
NAMES = (
    "V1_random_pattern",
    "V2_fixed_image",
    "V3_random_image",
    "V3_feature_maps",
)
MORE = OLD / "V3_random_image"

pytestmark = needs_keras("3.15", "Keras reads no files of later versions")
needs_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="TensorFlow's own format"
)


def old_inputs():
    return np.load(OLD / "inputs.npz")["x"]


def written(name):
    """What the old version computed: outputs, packed keys, fingerprint."""
    return np.load(OLD / f"{name}.npz")


def assert_same_outputs(outputs, name="V3_random_image"):
    np.testing.assert_allclose(
        outputs, written(name)["outputs"], rtol=1e-4, atol=1e-4
    )


def bound(path, name="V3_random_image"):
    model = keras.saving.load_model(path)
    passport = kp.Passport.load(OLD / f"{name}.passport.h5")
    return kp.bind(model, passport)


@pytest.mark.parametrize("name", NAMES)
def test_a_published_network_and_its_passport(name):
    model = bound(OLD / f"{name}.keras", name)
    assert_same_outputs(model.predict(old_inputs(), verbose=0), name)


@pytest.mark.parametrize("name", NAMES)
def test_a_passport_says_what_it_said(name, tmp_path):
    passport = kp.Passport.load(OLD / f"{name}.passport.h5")
    model = keras.saving.load_model(OLD / f"{name}.keras")
    spec = kp.passport_spec(model)
    passport.save(tmp_path / "again.h5")
    for one in (passport, kp.Passport.load(tmp_path / "again.h5")):
        assert one.fingerprint == str(written(name)["fingerprint"])
        np.testing.assert_array_equal(one.pack(spec), written(name)["packed"])


def test_weights_and_the_owners_checkpoint():
    model = bound(OLD / "V3_random_image.keras")
    model.set_weights([np.zeros(w.shape) for w in model.get_weights()])
    model.load_weights(f"{MORE}.weights.h5")
    assert_same_outputs(model.predict(old_inputs(), verbose=0))
    with kp.secret_checkpoint(model):
        resumed = bound(f"{MORE}.checkpoint.keras")
    assert_same_outputs(resumed.predict(old_inputs(), verbose=0))
    resumed.fit(old_inputs(), np.zeros(16), verbose=0)


def test_a_model_that_takes_its_passport():
    served = keras.saving.load_model(f"{MORE}.served.keras")
    inputs = kp.with_passport(
        old_inputs(), written("V3_random_image")["packed"]
    )
    assert_same_outputs(served.predict(inputs, verbose=0))


@needs_tensorflow
def test_a_saved_model():
    import tensorflow as tf

    folder = f"{MORE}.saved_model"
    passport = kp.Passport.load(f"{MORE}.passport.h5")
    serve = tf.saved_model.load(folder).signatures["serving_default"]
    (outputs,) = serve(
        images=tf.constant(old_inputs()),
        passport=tf.constant(passport.pack(folder)),
    ).values()
    assert_same_outputs(outputs)


@pytest.fixture
def old_run(tmp_path):
    shutil.copytree(OLD / "run", tmp_path / "run")
    return tmp_path / "run"


def test_records_of_attacks_are_read_not_made_again(old_run):
    before = {p.name: p.read_bytes() for p in (old_run / "attacks").iterdir()}
    found = kp.evaluation.evaluate(
        **FinishedRun(old_run).given,
        attacks=["fake_random_pattern", "spectral_blind"],
        directory=old_run,
    )
    after = {p.name: p.read_bytes() for p in (old_run / "attacks").iterdir()}
    assert after == before
    old = json.loads((old_run / "protection.json").read_text())
    for now, then in zip(found.rows, old["rows"], strict=True):
        assert now["attack"] == then["attack"]
        assert now["accuracy"] == then["accuracy"]
        assert now["budget"] == then["budget"]
    assert found.to_dict().keys() == old.keys()
    assert found.network.keys() == old["network"].keys()
    assert found.numbers["valid"] == pytest.approx(old["numbers"]["valid"], 3)


@needs_tensorflow
def test_an_interrupted_run_goes_on(tmp_path):
    run = tmp_path / "run"
    shutil.copytree(OLD / "interrupted", run)
    config = json.loads((run / "config.json").read_text())
    names = ("depth", "width", "epochs", "num_fakes", "fake_examples")
    # Those whose default is another one by now.
    names += ("key_scaling",)
    flags = [f"--{name}={config[name]}" for name in names]
    before = (run / "owner" / "passport.h5").read_bytes()
    programs.succeed("--dataset=digits", f"--run_dir={run}", *flags)
    assert (run / "owner" / "passport.h5").read_bytes() == before
    assert json.loads((run / "config.json").read_text()) == config
    history = json.loads((run / "owner" / "history.json").read_text())
    old = json.loads(
        (OLD / "interrupted" / "owner" / "history.json").read_text()
    )
    assert history["original"] == old["original"]
    assert json.loads((run / "result.json").read_text())["fake_accuracies"]
