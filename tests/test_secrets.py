"""No key, γ or β is in anything that Keras or TensorFlow writes or prints."""

import copy
import json
import pickle

import keras
import numpy as np
import pytest

import keras_passport as kp
from support.marks import needs_tensorflow
from support.plain_models import wide_cnn
from support.protected_models import (
    compiled,
    images,
    labels,
    outer_model,
    predict,
    protected,
)
from support.stored_secrets import (
    arrays_of_h5,
    correlates,
    keras_file,
    leaks_in,
    secrets_of,
)

pytestmark = pytest.mark.eager


@pytest.fixture(scope="module", params=("fresh", "trained"))
def secretive(request):
    """A bound model, before and after training, and its passport."""
    keras.utils.set_random_seed(1)
    model = kp.protect(wide_cnn())
    passport = kp.Passport.random_pattern(model, seed=bytes(range(16)))
    compiled(kp.bind(model, passport))
    if request.param == "trained":
        model.fit(images(), labels(), epochs=2, verbose=0)
    return model, passport


def weights_file(model, folder):
    model.save_weights(folder / "model.weights.h5")
    return arrays_of_h5(folder / "model.weights.h5")


def tf_checkpoint(model, folder):
    import tensorflow as tf

    tf.train.Checkpoint(model).write(str(folder / "checkpoint"))
    reader = tf.train.load_checkpoint(str(folder / "checkpoint"))
    return {
        name: reader.get_tensor(name)
        for name, dtype in reader.get_variable_to_dtype_map().items()
        if dtype.is_floating
    }


def pickled(model, folder):
    (folder / "model.pickle").write_bytes(pickle.dumps(model))
    return {}


def deep_copy(model, folder):
    clone = copy.deepcopy(model)
    assert not any(
        layer.is_bound for layer in kp.protected_layers(clone).values()
    )
    return dict(enumerate(clone.get_weights()))


def state_tree(model, folder):
    tree = model.get_state_tree(value_format="numpy_array")
    tree.pop("optimizer_variables", None)
    return dict(enumerate(keras.tree.flatten(tree)))


def texts(model, folder):
    """What is printed of a model, as a file."""
    objects = [model, *model.layers, *model.weights, *model.variables]
    written = [f"{item!r} {item}" for item in objects]
    written += [repr(vars(layer)) for layer in model.layers]
    written += [json.dumps(model.get_config(), default=str), model.to_json()]
    # Enough digits that no other number begins like one of them.
    numbers = {str(v)[:9] for s in secrets_of(model).values() for v in s}
    assert not [number for number in numbers if number in "".join(written)]
    return {}


ROUTES = {
    "keras": keras_file,
    "weights.h5": weights_file,
    "checkpoint": tf_checkpoint,
    "get_weights": lambda m, f: dict(enumerate(m.get_weights())),
    "state_tree": state_tree,
    "pickle": pickled,
    "deepcopy": deep_copy,
    "text": texts,
}


def test_the_search_for_secrets_finds_some():
    rng = np.random.default_rng(0)
    secret, noise = rng.normal(size=(12,)), rng.normal(size=(3, 40))
    assert not correlates(secret, noise)
    noise[1, 5:17] = -3 * secret + 0.01 * rng.normal(size=12)
    assert correlates(secret, noise)
    columns = rng.normal(size=(12, 5))
    columns[:, 2] = 1e-3 * secret + 7
    assert correlates(secret, columns)


@pytest.mark.parametrize("route", ROUTES)
def test_no_route_out_of_keras_holds_a_secret(route, secretive, tmp_path):
    if route == "checkpoint" and keras.backend.backend() != "tensorflow":
        pytest.skip("TensorFlow's own")
    model, passport = secretive
    secrets = secrets_of(model)
    for path, some in passport.keys().items():
        for role, key in some.items():
            secrets[f"{path}/{role}_key"] = key
    secrets["packed"] = passport.packed()
    stored = ROUTES[route](model, tmp_path)
    stored = {k: v for k, v in stored.items() if "optimizer" not in str(k)}
    seeds = (passport.seed, passport.seed.hex().encode())
    assert not leaks_in(secrets, stored, tmp_path, seeds)


@needs_tensorflow
def test_exports_are_refused(tmp_path):
    import tensorflow as tf

    model, _ = protected()
    outer = outer_model(model)
    signature = [tf.TensorSpec((None, 8, 8, 3))]
    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint("serve", model.call, input_signature=signature)
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    with pytest.raises(kp.PassportError, match="export"):
        model.export(tmp_path / "export", verbose=False)
    for run in (
        lambda: outer.export(tmp_path / "outer", verbose=False),
        lambda: archive.write_out(tmp_path / "archive", verbose=False),
    ):
        with pytest.raises(kp.PassportError, match="without secrets"):
            run()
    for run in (
        lambda: tf.saved_model.save(model, str(tmp_path / "saved_model")),
        converter.convert,
    ):
        with pytest.raises(Exception):  # noqa: B017 - each has its own
            run()
    keys = [
        np.asarray(layer._secret.bound.array).tobytes()
        for layer in kp.protected_layers(model).values()
    ]
    for file in tmp_path.rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            assert not [key for key in keys if key in content], file


# Optimizers with a state, and the dtype policies to train with them.
OPTIMIZERS = {
    "sgd": lambda: keras.optimizers.SGD(0.05, momentum=0.9),
    "adam": lambda: keras.optimizers.Adam(0.01, use_ema=True),
    "loss_scale": lambda: keras.optimizers.LossScaleOptimizer(
        keras.optimizers.SGD(0.05, momentum=0.9)
    ),
}


def trained(optimizer):
    model, passport = protected()
    model.compile(OPTIMIZERS[optimizer](), compiled(model).loss)
    model.fit(images(), labels(), verbose=0)
    return model, passport


def slots(path):
    return [name for name in arrays_of_h5(path) if "optimizer" in name]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_files_hold_no_optimizer_state(optimizer, tmp_path):
    model, passport = trained(optimizer)
    assert not [
        name for name in keras_file(model, tmp_path) if "optimizer" in name
    ]
    model.save(tmp_path / "model.keras")
    loaded = [keras.saving.load_model(tmp_path / "model.keras")]
    if optimizer == "sgd":
        path = tmp_path / "model.weights.h5"
        model.save_weights(path)
        assert not slots(path)
        loaded.append(compiled(protected(bound=False)[0]))
        loaded[1].load_weights(path)
    for copy_of_it in loaded:
        kp.bind(copy_of_it, passport)
        np.testing.assert_allclose(
            predict(copy_of_it, images()), predict(model, images()), rtol=1e-5
        )
        before = copy_of_it.evaluate(images(), labels(), verbose=0)
        copy_of_it.fit(images(), labels(), epochs=4, verbose=0)
        assert copy_of_it.evaluate(images(), labels(), verbose=0) != before


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_owners_checkpoint_holds_optimizer_state(optimizer, tmp_path):
    model, passport = trained(optimizer)
    path = tmp_path / "checkpoint.weights.h5"
    with pytest.raises(ZeroDivisionError), kp.models.secret_checkpoint(model):
        model.save_weights(path)
        1 / 0  # noqa: B018
    assert slots(path)
    state = [keras.ops.convert_to_numpy(v) for v in model.optimizer.variables]
    resumed, _ = trained(optimizer)
    with kp.models.secret_checkpoint(resumed):
        resumed.load_weights(path)
    for one, other in zip(resumed.optimizer.variables, state, strict=True):
        np.testing.assert_array_equal(one, other)
    # Keys are not in a checkpoint, and the next file has no state again.
    secrets = {**secrets_of(model), "packed": passport.packed()}
    content = path.read_bytes()
    for value in secrets.values():
        assert np.asarray(value, "<f4").tobytes() not in content
    model.save_weights(path)
    assert not slots(path)


def test_errors_show_no_values():
    model, passport = protected()
    layer = next(iter(kp.protected_layers(model).values()))
    key = np.full((1, layer.passport_size + 1), 0.7391234, "float32")
    with pytest.raises(kp.PassportError) as raised:
        layer(images(), passport=key)
    assert "0.739" not in str(raised.value)
    with pytest.raises(kp.PassportError) as raised:
        layer.bind_keys(np.full((2, 2), 0.7391234), None)
    assert "0.739" not in str(raised.value)
