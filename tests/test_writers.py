"""No writer that Keras has writes the optimizer state of a protected model."""

import contextlib
import copy
import os
import pathlib
import pickle
import re
import stat
import threading
import warnings
import zipfile

import h5py
import keras
import numpy as np
import pytest

import keras_passport as kp
from support.plain_models import nested_model, plain_cnn
from support.protected_models import (
    images,
    labels,
    outer_model,
    predict,
    protected,
)

pytestmark = pytest.mark.eager

ON_TENSORFLOW = keras.backend.backend() == "tensorflow"
needs_tensorflow = pytest.mark.skipif(
    not ON_TENSORFLOW, reason="TensorFlow's own"
)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def momentum():
    return keras.optimizers.SGD(0.05, momentum=0.9)


# Optimizers, and those that hold others.


class Wrapping(keras.optimizers.Optimizer):
    """A user's own: it holds another, and writes its state in its own way."""

    def __init__(self, **kwargs):
        super().__init__(learning_rate=0.1, **kwargs)
        self.parts = {"inside": momentum()}

    def build(self, variables):
        self.parts["inside"].build(variables)

    @property
    def variables(self):
        return self._variables + self.parts["inside"].variables

    def save_own_variables(self, store):
        for i, variable in enumerate(self.variables):
            store[f"mine{i}"] = variable.numpy()


def multi():
    maker = keras.optimizers.OptimizerMap(momentum())
    maker[".*bias"] = keras.optimizers.Adam()
    return keras.optimizers.MultiOptimizer(maker)


OPTIMIZERS = {
    "sgd": momentum,
    "adam": lambda: keras.optimizers.Adam(0.01, use_ema=True),
    "accumulating": lambda: keras.optimizers.SGD(
        0.05, gradient_accumulation_steps=2
    ),
    # Its slots have other shapes than the kernels.
    "adafactor": keras.optimizers.Adafactor,
    "loss_scale": lambda: keras.optimizers.LossScaleOptimizer(momentum()),
    "wrapping": Wrapping,
}
if hasattr(keras.optimizers, "MultiOptimizer"):
    OPTIMIZERS["multi"] = multi


def used(optimizer, variables, seed=0):
    """Builds an optimizer and fills its slots; a training would as well."""
    optimizer.build(variables)
    rng = np.random.default_rng(seed)
    for variable in optimizer.variables:
        if len(variable.shape):
            variable.assign(rng.normal(size=variable.shape))
    return optimizer


# Models that hold an optimizer.


@keras.saving.register_keras_serializable(package="tests")
class Own(keras.Model):
    """A user's own model, with a protected one and its optimizer inside."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def call(self, inputs, training=False):
        return self.inner(inputs, training=training)

    def get_config(self):
        return {"inner": keras.saving.serialize_keras_object(self.inner)}

    @classmethod
    def from_config(cls, config):
        return cls(keras.saving.deserialize_keras_object(config["inner"]))


def compiled(optimizer):
    model, _ = protected()
    model.compile(optimizer, LOSS)
    used(model.optimizer, model.trainable_variables)
    return model


def assigned(optimizer):
    model = compiled(momentum())
    model.optimizer = used(optimizer, model.trainable_variables, 1)
    return model


def attribute(optimizer):
    model = compiled(momentum())
    model.my_optimizer = used(optimizer, model.trainable_variables, 1)
    return model


def listed(optimizer):
    model = compiled(momentum())
    model.mine = [used(optimizer, model.trainable_variables, 1)]
    return model


def frozen(optimizer):
    model, _ = protected()
    for layer in kp.protected_layers(model).values():
        layer.trainable = False
    model.compile(optimizer, LOSS)
    used(model.optimizer, model.trainable_variables)
    return model


def outer(optimizer):
    model = outer_model(protected()[0])
    model.compile(optimizer, LOSS)
    used(model.optimizer, model.trainable_variables)
    return model


def own(optimizer):
    model = Own(protected()[0])
    model(images())
    model.compile(momentum(), LOSS)
    used(model.optimizer, model.trainable_variables)
    model.my_optimizer = used(optimizer, model.trainable_variables, 1)
    return model


HOLDERS = (compiled, assigned, attribute, listed, frozen, outer, own)


@pytest.fixture(scope="module")
def holders():
    """One of each, which writers leave as it is."""
    return {holder.__name__: holder(momentum()) for holder in HOLDERS}


@pytest.fixture(scope="module")
def model(holders):
    return holders["compiled"]


def optimizers_of(model):
    found = [model.optimizer, getattr(model, "my_optimizer", None)]
    return [one for one in (*found, *getattr(model, "mine", ())) if one]


def slots_of(model):
    """The slots' values by name. A judge knows them, whoever writes them."""
    return {
        f"{i}/{variable.path}": keras.ops.convert_to_numpy(variable)
        for i, optimizer in enumerate(optimizers_of(model))
        for variable in optimizer.variables
        if len(variable.shape)
    }


# Writers. Each returns the arrays that it wrote, where the files' bytes are
# not the arrays' own.


def save(name, **options):
    return lambda model, folder: model.save(folder / name, **options)


def save_sharded(model, folder):
    model.save_weights(folder / "parts.weights.json", max_shard_size=4e-6)


def function_save(model, folder):
    keras.saving.save_model(model, folder / "model.keras")
    keras.saving.save_model(model, folder / "model.h5")
    keras.saving.save_weights(model, folder / "model.weights.h5")
    keras.models.save_model(model, folder / "again.keras")


def pickled(model, folder):
    (folder / "model.pickle").write_bytes(pickle.dumps(model))


def pickled_optimizers(model, folder):
    for i, optimizer in enumerate(optimizers_of(model)):
        content = pickle.dumps(optimizer)
        (folder / f"optimizer{i}.pickle").write_bytes(content)


def own_variables(model, folder):
    store = {}
    for optimizer in optimizers_of(model):
        # What a class of the user's own writes when he calls it is his.
        keras.optimizers.Optimizer.save_own_variables(optimizer, store)
    return list(store.values())


def deep_copied(model, folder):
    copied = copy.deepcopy(model)
    return list(slots_of(copied).values()) if copied.compiled else []


def state_tree(model, folder):
    tree = model.get_state_tree(value_format="numpy_array")
    assert model.get_state_tree().keys() == tree.keys()
    return keras.tree.flatten(tree)


def orbax(model, folder):
    ocp = pytest.importorskip("orbax.checkpoint.experimental.v1")
    callback = keras.callbacks.OrbaxCheckpoint(str(folder / "orbax"))
    callback.set_model(model)
    callback.on_epoch_end(0)
    callback.on_train_end()
    path = str(folder / "orbax" / "0")
    return [
        np.asarray(value)
        for value in keras.tree.flatten(
            ocp.load_checkpointables(path, {"pytree": None})["pytree"]
        )
    ]


def tensorboard(model, folder):
    pytest.importorskip("tensorboard")
    callback = keras.callbacks.TensorBoard(
        folder / "logs", histogram_freq=1, write_images=True
    )
    callback.set_model(model)
    callback.on_train_begin()
    callback.on_epoch_end(0, {"loss": 1.0})
    callback.on_train_end()


def tf_checkpoint(model, folder):
    import tensorflow as tf

    tf.train.Checkpoint(model=model).write(str(folder / "checkpoint"))


def tf_checkpoint_of_optimizer(model, folder):
    import tensorflow as tf

    checkpoint = tf.train.Checkpoint(
        model=model, optimizer=optimizers_of(model)[-1]
    )
    checkpoint.save(str(folder / "checkpoint"))


def epoch_end(make):
    """What a callback writes at an epoch's end."""

    def write(model, folder):
        callback = make(folder)
        callback.set_model(model)
        callback.on_train_begin()
        callback.on_epoch_begin(0)
        callback.on_epoch_end(0, {"loss": 1.0})

    return write


WRITERS = {
    "save": save("model.keras"),
    "save in a folder": save("model", zipped=False),
    "save h5": save("model.h5"),
    "save hdf5": save("model.hdf5", include_optimizer=True),
    "save_weights": lambda model, folder: model.save_weights(
        folder / "model.weights.h5"
    ),
    "save_weights in parts": save_sharded,
    "keras.saving": function_save,
    "pickle": pickled,
    "pickle of the optimizer": pickled_optimizers,
    "save_own_variables": own_variables,
    "deepcopy": deep_copied,
    "get_state_tree": state_tree,
    "ModelCheckpoint": epoch_end(
        lambda folder: keras.callbacks.ModelCheckpoint(folder / "a.keras")
    ),
    "ModelCheckpoint h5": epoch_end(
        lambda folder: keras.callbacks.ModelCheckpoint(str(folder / "a.h5"))
    ),
    "ModelCheckpoint of weights": epoch_end(
        lambda folder: keras.callbacks.ModelCheckpoint(
            folder / "a.weights.h5", save_weights_only=True
        )
    ),
    "BackupAndRestore": epoch_end(
        lambda folder: keras.callbacks.BackupAndRestore(folder / "backup")
    ),
    "OrbaxCheckpoint": orbax,
    "TensorBoard": tensorboard,
    "tf.train.Checkpoint": tf_checkpoint,
    "tf.train.Checkpoint of the optimizer": tf_checkpoint_of_optimizer,
}
# They resume a training and do nothing else: without a state they can't.
REFUSED = ("BackupAndRestore", "tf.train.Checkpoint of the optimizer")
# They write no state inside `kp.secret_checkpoint` either.
STATELESS = ("TensorBoard", "deepcopy")
OF_TENSORFLOW = (
    "TensorBoard",
    "tf.train.Checkpoint",
    "tf.train.Checkpoint of the optimizer",
)


def write(writer, model, folder):
    """Runs a writer; returns the names of slots that it wrote."""
    if writer in OF_TENSORFLOW and not ON_TENSORFLOW:
        pytest.skip("TensorFlow's own")
    slots = slots_of(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        arrays = WRITERS[writer](model, folder) or []
    content = b"".join(
        file.read_bytes() for file in folder.rglob("*") if file.is_file()
    )
    content += b"".join(np.asarray(array).tobytes() for array in arrays)
    assert content or writer in ("save_own_variables", "deepcopy")
    return [name for name, slot in slots.items() if slot.tobytes() in content]


# They go through one of the others.
ALIKE = ("save in a folder", "save hdf5", "keras.saving", "deepcopy")
ALIKE += ("ModelCheckpoint", "ModelCheckpoint h5", "ModelCheckpoint of weights")
ALIKE += ("OrbaxCheckpoint", "TensorBoard", "save_weights in parts")


@pytest.mark.parametrize("writer", WRITERS)
def test_no_writer_writes_a_slot(writer, holders, tmp_path):
    for name, model in holders.items():
        if writer in ALIKE and name not in ("attribute", "outer"):
            continue
        folder = tmp_path / name
        folder.mkdir()
        if writer in REFUSED:
            with pytest.raises(kp.PassportError, match="secret_checkpoint"):
                write(writer, model, folder)
            assert not [f for f in folder.rglob("*") if f.is_file()]
        else:
            assert not write(writer, model, folder), name


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_no_optimizer_is_written(optimizer, tmp_path):
    model = attribute(OPTIMIZERS[optimizer]())
    for i, writer in enumerate(("save", "save h5", "pickle of the optimizer")):
        (tmp_path / f"{i}").mkdir()
        assert not write(writer, model, tmp_path / f"{i}"), writer


def modes(folder):
    return {
        str(path.relative_to(folder)): oct(stat.S_IMODE(path.stat().st_mode))
        for path in folder.rglob("*")
    }


def holds(path, slots):
    content = path.read_bytes()
    return any(slot.tobytes() in content for slot in slots.values())


@pytest.mark.parametrize("writer", WRITERS)
def test_a_secret_checkpoint_is_whole_and_private(writer, model, tmp_path):
    slots = slots_of(model)
    before = os.umask(0o022)
    try:
        with kp.secret_checkpoint(model):
            found = write(writer, model, tmp_path)
            if writer not in STATELESS:
                assert found == list(slots)
        assert set(modes(tmp_path).values()) <= {"0o600", "0o700"}
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)
    # The next files hold no state again.
    (tmp_path / "next").mkdir()
    if writer not in REFUSED:
        assert not write(writer, model, tmp_path / "next")


@pytest.mark.parametrize(
    "writer",
    [
        # Keras itself can't write a folder over a folder.
        *("save", "save h5", "save_weights in parts", "keras.saving"),
        *("BackupAndRestore", "tf.train.Checkpoint"),
    ],
)
def test_a_file_that_others_could_read_is_taken_from_them(
    writer, model, tmp_path
):
    with kp.secret_checkpoint(model):
        for _ in range(2):
            write(writer, model, tmp_path)
            holding = [
                path
                for path in tmp_path.rglob("*")
                if path.is_file() and holds(path, slots_of(model))
            ]
            assert holding
            for path in holding:
                assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
                path.chmod(0o644)


def test_plain_models_write_as_ever(tmp_path):
    """Also one whose optimizer a protected model holds as well."""
    plain = plain_cnn()
    optimizer = momentum()
    plain.compile(optimizer, LOSS)
    used(optimizer, plain.trainable_variables)
    other, _ = protected()
    other.compile(optimizer, LOSS)
    for i, writer in enumerate(("save", "save h5", "save_weights", "pickle")):
        (tmp_path / f"{i}").mkdir()
        (tmp_path / f"other{i}").mkdir()
        assert write(writer, plain, tmp_path / f"{i}") == list(slots_of(plain))
        assert not write(writer, other, tmp_path / f"other{i}")
    with kp.secret_checkpoint(plain):
        plain.save_weights(tmp_path / "a.weights.h5")
    mode = stat.S_IMODE((tmp_path / "a.weights.h5").stat().st_mode)
    assert mode == stat.S_IMODE(
        (tmp_path / "2" / "model.weights.h5").stat().st_mode
    )


def test_an_optimizer_outlives_its_model(tmp_path):
    optimizer = momentum()
    compiled(optimizer)
    plain = plain_cnn()
    plain.compile(optimizer, LOSS)
    assert slots_of(plain)
    assert not write("save", plain, tmp_path)


def test_one_models_block_is_not_anothers(holders, tmp_path):
    one, other = holders["compiled"], holders["attribute"]
    with kp.secret_checkpoint(one):
        assert not write("save_weights", other, tmp_path)
        with kp.secret_checkpoint(other):
            assert write("save_weights", other, tmp_path)
        assert not write("save_weights", other, tmp_path)
        assert write("save_weights", one, tmp_path)
    # Whoever puts a plain model around it opens the block for either.
    outer = holders["outer"]
    with kp.secret_checkpoint(outer):
        assert write("save_weights", outer, tmp_path)
    with kp.secret_checkpoint(outer.layers[-2]):
        assert write("save_weights", outer, tmp_path)


def test_another_threads_block_is_not_this_ones(model, tmp_path):
    opened, done = threading.Event(), threading.Event()

    def keep_open():
        with kp.secret_checkpoint(model):
            opened.set()
            done.wait(60)

    thread = threading.Thread(target=keep_open)
    thread.start()
    opened.wait(60)
    assert not write("save_weights", model, tmp_path)
    with kp.secret_checkpoint(model):
        pass
    done.set()
    thread.join()
    (tmp_path / "new").write_text("")
    assert modes(tmp_path)["new"] != "0o600"


# The same, as an attacker sees it.


def kernels_keys(model, passport):
    """By kernel's shape the keys of the layer that has it, flat."""
    return {
        tuple(layer.layer.kernel.shape): [
            np.ravel(key) for key in passport.keys(model)[path].values()
        ]
        for path, layer in kp.protected_layers(model).items()
    }


def share(array, keys):
    """The largest part of a key in an array's two leading directions."""
    flat = np.asarray(array, "float64").reshape(-1, array.shape[-1])
    leading = np.linalg.svd(flat, full_matrices=False)[0][:, :2]
    return max(np.linalg.norm(leading.T @ k) / np.linalg.norm(k) for k in keys)


def arrays_of(path):
    """All arrays of floats in a file of HDF5."""
    found = []
    with h5py.File(path) as file:
        file.visititems(
            lambda _, item: (
                found.append(item[()])
                if isinstance(item, h5py.Dataset) and item.dtype.kind == "f"
                else None
            )
        )
    return found


@pytest.mark.parametrize("name", ("model.h5", "model.weights.h5"))
def test_no_array_in_a_file_points_at_a_key(name, tmp_path):
    model, _ = protected()
    passport, *unrelated = (
        kp.Passport.random_pattern(model, seed=bytes([i]) * 16)
        for i in range(1, 7)
    )
    model.compile(momentum(), LOSS)
    used(model.optimizer, model.trainable_variables)
    # What gradients through F leave: each key times a row.
    keys = kernels_keys(model, passport)
    rng = np.random.default_rng(0)
    for slot in model.optimizer.variables:
        if tuple(slot.shape) in keys:
            rows = sum(
                np.outer(key, rng.normal(size=slot.shape[-1]))
                for key in keys[tuple(slot.shape)]
            )
            slot.assign(rows.reshape(slot.shape))

    def shares(its_keys):
        write = model.save_weights if "weights" in name else model.save
        write(tmp_path / name)
        return [
            share(array, its_keys[array.shape])
            for array in arrays_of(tmp_path / name)
            if array.shape in its_keys
        ]

    with kp.secret_checkpoint(model):
        assert max(shares(keys)) > 0.999
        # In so small a kernel any key lies near some direction.
        chance = max(
            max(shares(kernels_keys(model, other))) for other in unrelated
        )
    assert chance < 0.99
    published = shares(keys)
    assert len(published) == len(keys)
    assert max(published) < chance


@needs_tensorflow
def test_what_tensorflow_saves_of_a_model_with_a_passport_input(tmp_path):
    import tensorflow as tf

    model = kp.require_passport(protected()[0])
    model.compile(momentum(), LOSS)
    used(model.optimizer, model.trainable_variables)
    slots = slots_of(model)
    model.export(tmp_path / "export", verbose=False)
    tf.saved_model.save(model, str(tmp_path / "saved"))
    for path in tmp_path.rglob("*"):
        assert not (path.is_file() and holds(path, slots)), path


@needs_tensorflow
def test_a_loop_that_knows_tensorflows_variables(tmp_path):
    model, _ = protected()
    model.mine = [
        used(momentum(), [variable.value for variable in model.weights])
    ]
    model.compile("sgd", LOSS)
    assert slots_of(model)
    assert not write("save", model, tmp_path)
    with kp.secret_checkpoint(model):
        assert write("save", model, tmp_path) == list(slots_of(model))


# What is written is read again.


@pytest.mark.parametrize(
    "name", ("model.keras", "model.h5", "model.weights.h5")
)
def test_a_state_that_a_file_holds_is_loaded(name, model, tmp_path):
    """By Keras, inside the block or not: to read it gives nothing away."""
    with kp.secret_checkpoint(model):
        if "weights" in name:
            model.save_weights(tmp_path / name)
        else:
            model.save(tmp_path / name)
    if "weights" in name:
        loaded = compiled(momentum())
        used(loaded.optimizer, loaded.trainable_variables, 5)
        loaded.load_weights(tmp_path / name)
    else:
        loaded = keras.saving.load_model(tmp_path / name)
    if name == "model.h5":
        # Keras builds this optimizer for no variable at all.
        return
    for slot, expected in zip(
        slots_of(loaded).values(), slots_of(model).values(), strict=True
    ):
        np.testing.assert_array_equal(slot, expected)


@needs_tensorflow
@pytest.mark.parametrize("secret", (True, False))
def test_tensorflows_checkpoints_are_restored(secret, model, tmp_path):
    import tensorflow as tf

    def checkpoint(model):
        return tf.train.Checkpoint(model=model, optimizer=model.optimizer)

    with kp.secret_checkpoint(model):
        checkpoint(model).write(str(tmp_path / "checkpoint"))
    restored = compiled(momentum())
    used(restored.optimizer, restored.trainable_variables, 5)
    block = kp.secret_checkpoint(restored)
    with block if secret else contextlib.nullcontext():
        status = checkpoint(restored).read(str(tmp_path / "checkpoint"))
        if secret:
            status.assert_consumed()
    for one, other in zip(
        slots_of(restored).values(), slots_of(model).values(), strict=True
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", ("model.keras", "model.weights.h5"))
@pytest.mark.parametrize("built", (True, False))
def test_files_without_a_state_load_without_a_word(name, built, tmp_path):
    model, _ = protected()
    model.compile(momentum(), LOSS)
    if built:
        used(model.optimizer, model.trainable_variables)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Skipping variable")
        if name == "model.keras":
            model.save(tmp_path / name)
            keras.saving.load_model(tmp_path / name)
        else:
            model.save_weights(tmp_path / name)
            model.load_weights(tmp_path / name)
            compiled(momentum()).load_weights(tmp_path / name)


H5_MODELS = {
    "V1": lambda: protected("V1")[0],
    "V2": lambda: protected("V2")[0],
    "V3": lambda: protected("V3")[0],
    "nested": lambda: protected(base=nested_model)[0],
    "in a plain model": lambda: _inside(keras.Model),
    "in a protected model": lambda: _inside(kp.ProtectedModel),
}


def _inside(model_class):
    inner, _ = protected()
    inputs = keras.Input((8, 8, 3))
    return model_class(inputs, keras.layers.Dense(4)(inner(inputs)))


@pytest.mark.parametrize("kind", H5_MODELS)
@pytest.mark.parametrize("is_compiled", (True, False))
def test_an_h5_loads_without_custom_objects(kind, is_compiled, tmp_path):
    model = H5_MODELS[kind]()
    if is_compiled:
        model.compile(momentum(), LOSS)
        used(model.optimizer, model.trainable_variables)
    model.save(tmp_path / "model.h5")
    with h5py.File(tmp_path / "model.h5") as file:
        assert "optimizer_weights" not in file
    loaded = keras.saving.load_model(tmp_path / "model.h5")
    assert type(loaded) is type(model)
    assert loaded.compiled == is_compiled
    # Whoever named the class himself goes on doing so.
    keras.models.load_model(
        tmp_path / "model.h5",
        custom_objects={"ProtectedModel": kp.ProtectedModel},
    )
    passport = kp.Passport.random_pattern(model)
    expected = predict(kp.bind(model, passport), images())
    received = predict(kp.bind(loaded, passport), images())
    np.testing.assert_allclose(received, expected, rtol=1e-5, atol=1e-6)


# An interrupted training goes on exactly.


def _stop(epoch, logs=None):
    if epoch == 1:
        raise KeyboardInterrupt


def trained(make, optimizer, callbacks=(), secret=False):
    """The weights after a training, interrupted or not."""
    keras.utils.set_random_seed(0)
    model = make()
    model.compile(OPTIMIZERS[optimizer](), LOSS, run_eagerly=True)
    block = kp.secret_checkpoint(model) if secret else contextlib.nullcontext()
    with contextlib.suppress(KeyboardInterrupt), block:
        model.fit(
            images(),
            labels(),
            batch_size=3,
            epochs=3,
            shuffle=False,
            verbose=0,
            callbacks=list(callbacks),
        )
    return [keras.ops.convert_to_numpy(weight) for weight in model.weights]


def plain():
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Flatten(),
            # A passport's maps follow from its seed and the layer's name.
            keras.layers.Dense(5, name="hidden"),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(4),
        ]
    )


def protected_alike():
    model = kp.protect(plain())
    return kp.bind(model, kp.Passport.random_pattern(model, seed=b"s" * 16))


@pytest.mark.parametrize(
    "make, optimizer",
    [
        (plain, "adam"),
        (protected_alike, "adam"),
        (protected_alike, "loss_scale"),
    ],
)
def test_backup_and_restore(make, optimizer, tmp_path):
    backup = keras.callbacks.BackupAndRestore
    stop = keras.callbacks.LambdaCallback(on_epoch_begin=_stop)
    secret = make is protected_alike
    expected = trained(make, optimizer)
    trained(make, optimizer, [backup(tmp_path / "b"), stop], secret)
    assert (tmp_path / "b" / "latest.weights.h5").exists()
    if secret:
        assert set(modes(tmp_path).values()) == {"0o600", "0o700"}
        with pytest.raises(kp.PassportError, match="secret_checkpoint"):
            trained(make, optimizer, [backup(tmp_path / "b")])
    received = trained(make, optimizer, [backup(tmp_path / "b")], secret)
    for one, other in zip(received, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_model_whose_backup_was_refused_goes_on(tmp_path):
    model = protected_alike()
    model.compile("sgd", LOSS)
    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
    with pytest.raises(kp.PassportError, match="BackupAndRestore"):
        model.fit(images(), labels(), verbose=0, callbacks=[backup])
    model.fit(images(), labels(), verbose=0)


# A new Keras may bring a new writer: then these lists say so.

WRITES = re.compile(
    "sav|writ|export|checkpoint|state_tree|backup|pickle|upload|dump", re.I
)
# Keras's own marks, and what TensorFlow asks objects for: it is among what
# `tf.train.Checkpoint` and `tf.saved_model.save` use.
TRACKING = ("_api_export", "_checkpoint_", "_unconditional_checkpoint_")
TRACKING += ("_export_to_saved_model_graph", "_gather_saveables_for_check")
TRACKING += ("_default_save_signature", "_get_save_spec", "_saved_model_")
TRACKING += ("_set_save_spec",)
PUBLIC = {
    "keras.Model": {
        # Closed: `optimizer_state` withholds the state.
        *("save", "save_weights", "save_own_variables", "get_state_tree"),
        "_unpickle_model",
        # They read.
        "set_state_tree",
        # Refused for bound models, and there is no optimizer in its files.
        "export",
    },
    "keras.optimizers.Optimizer": {
        "save_own_variables",
        "_unpickle_model",
        # They assign.
        "_overwrite_model_variables_with_average_value",
        "_overwrite_variable_with_gradient",
        "_overwrite_variables_directly_with_gradients",
    },
    "keras.saving": {"save_model", "save_weights"},
    "keras.models": {"save_model"},
    "keras.utils": {"save_img"},
    "keras.export": {"ExportArchive"},
    "keras": {"export", "saving"},
}
CALLBACKS = {
    # Closed: they write through the model.
    *("ModelCheckpoint", "OrbaxCheckpoint", "TensorBoard"),
    # Refused: it is there to resume.
    "BackupAndRestore",
    # They write logs, or nothing.
    *("CSVLogger", "RemoteMonitor", "ProgbarLogger", "History"),
    *("Callback", "CallbackList", "LambdaCallback", "EarlyStopping"),
    *("LearningRateScheduler", "ReduceLROnPlateau", "TerminateOnNaN"),
    # It exchanges the model's weights with their averages, and writes nothing.
    "SwapEMAWeights",
}
# The files of Keras's source that read what an optimizer holds.
READS = re.compile(
    r"optimizer\w*\.\w*variables|optimizer_variables\b|_trackable_children"
    r"|_save_state\(|_save_model_to_fileobj\(|get_state_tree\("
)
SOURCES = {
    # Closed.
    "legacy/saving/legacy_h5_format.py",
    "models/model.py",
    "saving/saving_lib.py",
    "saving/keras_saveable.py",
    "callbacks/orbax_checkpoint.py",
    "backend/tensorflow/layer.py",
    "optimizers/base_optimizer.py",
    # They train, load or count.
    "backend/jax/trainer.py",
    "backend/tensorflow/optimizer.py",
    "backend/torch/trainer.py",
    "callbacks/swap_ema_weights.py",
    "optimizers/loss_scale_optimizer.py",
    "optimizers/multi_optimizer.py",
    "saving/orbax_util.py",
    "saving/saving_api.py",
    "utils/summary_utils.py",
    # They write what the user hands to them himself, who has it already.
    "export/saved_model.py",
    "export/saved_model_export_archive.py",
}


@pytest.mark.parametrize("owner", PUBLIC)
def test_every_public_writer_is_known(owner):
    value = keras
    for name in owner.split(".")[1:]:
        value = getattr(value, name)
    found = {
        name
        for name in dir(value)
        if WRITES.search(name) and not name.startswith(("__", *TRACKING))
    }
    assert found <= PUBLIC[owner], "Does it write an optimizer's state?"


def test_every_callback_is_known():
    found = {name for name in dir(keras.callbacks) if name[0].isupper()}
    assert found <= CALLBACKS, "Does it write an optimizer's state?"


def test_everything_that_reads_an_optimizer_is_known():
    source = pathlib.Path(keras.__file__).parent / "src"
    found = {
        path.relative_to(source).as_posix()
        for path in source.rglob("*.py")
        if not path.name.endswith("_test.py") and READS.search(path.read_text())
    }
    # Optimizers make their slots by `add_optimizer_variables`.
    found -= {name for name in found if re.match(r"optimizers/\w+\.py", name)}
    assert found <= SOURCES | {
        name for name in SOURCES if name.startswith("optimizers/")
    }, "Does it write an optimizer's state?"


def test_zip_members_are_whole(model, tmp_path):
    """Keras's archive is as it was but for the optimizer."""
    model.save(tmp_path / "model.keras")
    with zipfile.ZipFile(tmp_path / "model.keras") as archive:
        assert sorted(archive.namelist()) == [
            "config.json",
            "metadata.json",
            "model.weights.h5",
        ]
