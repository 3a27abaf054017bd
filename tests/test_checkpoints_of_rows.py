"""TensorFlow's checkpoints of rows in a secret order, and in their own.

One passport fits both, so nothing else would say that weights are of the
other. What is legitimate is compared with the same lines on a plain model.
"""

import keras
import numpy as np
import pytest

import keras_passport as kp
from keras_passport.layers import loading, row_order
from support.plain_models import nested_model, plain_cnn, randomize
from support.protected_models import images, outer_model

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="tf.train.Checkpoint"
)
EXACT = {
    ordered: lambda base, ordered=ordered: kp.protect_trained(
        base, order=ordered, seed=0
    )
    for ordered in (False, True)
}


def trained(base, hidden):
    """A model trained under its passport, its rows hidden or not."""
    model = kp.protect(base)
    passport = kp.Passport.random_pattern(model, seed=0)
    kp.bind(model, passport)
    return kp.hide_rows(model, passport) if hidden else model, passport


HIDDEN = {
    ordered: lambda base, ordered=ordered: trained(base, ordered)
    for ordered in (False, True)
}


def checkpoint(**objects):
    import tensorflow as tf

    return tf.train.Checkpoint(**objects)


def whole(model):
    return model


def inside(model):
    return outer_model(model)


def write(model, place):
    return checkpoint(model=model).write(str(place / "checkpoint"))


def managed(model, place):
    import tensorflow as tf

    manager = tf.train.CheckpointManager(
        checkpoint(model=model), str(place), max_to_keep=1
    )
    return manager.save()


def values(model):
    return [keras.ops.convert_to_numpy(v) for v in model.variables]


def assert_equal(some, others):
    for one, other in zip(some, others, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("base", "around", "save"),
    [(plain_cnn, whole, managed), (nested_model, inside, write)],
    ids=["whole", "inside"],
)
@pytest.mark.parametrize("make", [EXACT, HIDDEN], ids=["exact", "hidden"])
def test_the_other_order_is_refused(make, base, around, save, tmp_path):
    for ordered in (False, True):
        base_model = randomize(base())
        saved, _ = make[ordered](base_model)
        path = save(around(saved), tmp_path)
        other = around(make[not ordered](base_model)[0])
        before = values(other)
        for restore in ("restore", "read"):
            with pytest.raises(kp.PassportError, match="Expected.*Received"):
                getattr(checkpoint(model=other), restore)(path)
        inner = next(
            (m for m in other._flatten_layers() if m.name == saved.name), other
        )
        # A plain layer around it may have been read before.
        count = len(inner.variables)
        assert_equal(values(inner)[:count], before[:count])
        kept = kp.protected_layers(other).values()
        assert {layer.ordered for layer in kept} == {not ordered}


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("make", [EXACT, HIDDEN], ids=["exact", "hidden"])
def test_the_same_order_is_restored(make, ordered, tmp_path):
    """Also into a model that is built afterwards, as with a plain one."""
    base = randomize(plain_cnn())
    saved, passport = make[ordered](base)
    kp.bind(saved, passport)
    expected = saved(images(), training=False)
    path = write(saved, tmp_path)
    again = keras.models.clone_model(saved)
    status = checkpoint(model=again).read(path)
    status.assert_consumed()
    status.assert_existing_objects_matched()
    kp.bind(again, passport)
    np.testing.assert_array_equal(again(images(), training=False), expected)


@pytest.mark.parametrize("saved_as", [False, True])
def test_deferred_restoration(saved_as, tmp_path):
    """A layer that is there and not built, and one that comes later."""

    def layer(ordered):
        return kp.PassportNormalization(
            keras.layers.Dense(4, use_bias=False), ordered=ordered
        )

    saved = layer(saved_as)
    saved.build((None, 3))
    randomize(saved)
    path = checkpoint(layer=saved).write(str(tmp_path / "checkpoint"))
    # There already: as Keras's own layers, it is restored once it is built.
    there = layer(saved_as)
    checkpoint(layer=there).restore(path).assert_nontrivial_match()
    there.build((None, 3))
    assert_equal(values(there), values(saved))
    # It comes later.
    later = checkpoint()
    later.restore(path)
    later.layer = layer(saved_as)
    later.layer.build((None, 3))
    assert_equal(values(later.layer), values(saved))
    # And both with the other order.
    with pytest.raises(kp.PassportError, match="Expected.*Received"):
        checkpoint(layer=layer(not saved_as)).restore(path)
    later = checkpoint()
    later.restore(path)
    with pytest.raises(kp.PassportError, match="Expected.*Received"):
        later.layer = layer(not saved_as)


def test_older_checkpoints_are_read_as_they_were(tmp_path, monkeypatch):
    """Those without the note: rows are taken for the layer's own."""
    base = randomize(plain_cnn())
    saved, passport = EXACT[True](base)
    with monkeypatch.context() as patch:
        patch.delattr(loading.Noted, "_serialize_to_tensors")
        patch.delattr(loading.Noted, "_restore_from_tensors")
        path = write(saved, tmp_path)
    again = keras.models.clone_model(saved)
    checkpoint(model=again).read(path).assert_consumed()
    kp.bind(again, passport)
    np.testing.assert_array_equal(again(images()), saved(images()))


def test_asynchronous_checkpoints_have_the_note(tmp_path, caplog):
    """And TensorFlow warns of nothing that it has skipped."""
    import tensorflow as tf

    base = randomize(plain_cnn())
    options = tf.train.CheckpointOptions(experimental_enable_async_checkpoint=1)
    writer = checkpoint(model=EXACT[True](base)[0])
    path = writer.save(str(tmp_path / "checkpoint"), options=options)
    writer.sync()
    assert "skipped" not in caplog.text
    with pytest.raises(kp.PassportError, match="Expected.*Received"):
        checkpoint(model=EXACT[False](base)[0]).read(path)


@pytest.mark.parametrize("name", ["w.weights.h5", "w.keras", "w.h5", "ck"])
def test_one_order_is_not_one_of_each_group(name, tmp_path, monkeypatch):
    """As versions before this one stored rows, under passports of theirs."""
    base = keras.Sequential([keras.Input((5,)), keras.layers.Dense(6)])
    groups, _ = kp.protect_trained(base, seed=0)
    monkeypatch.setattr(row_order, "groups", lambda *args: (1,))
    one, _ = kp.protect_trained(base, seed=0)
    path = str(tmp_path / name)
    for saved, other, received in (
        (one, groups, "a secret order"),
        (groups, one, "6 secret orders"),
    ):
        before = values(other)
        if name == "ck":
            checkpoint(model=saved).write(path)
        elif name == "w.weights.h5":
            saved.save_weights(path, overwrite=True)
        else:
            saved.save(path, overwrite=True)
        message = (
            f"has one of its own. Received: weights with rows in {received}"
        )
        with pytest.raises((kp.PassportError, ValueError), match=message):
            if name == "ck":
                checkpoint(model=other).read(path)
            else:
                other.load_weights(path)
        assert_equal(values(other), before)


def test_a_training_is_taken_up(tmp_path):
    """With the optimizer's state, step for step as without a pause."""
    x, y = images(), np.arange(6) % 4
    found = []
    for pause in (False, True):
        keras.utils.set_random_seed(0)
        model, _ = HIDDEN[False](randomize(plain_cnn()))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.05, momentum=0.9), loss)
        model.train_on_batch(x, y)
        if pause:
            everything = checkpoint(model=model, optimizer=model.optimizer)
            with kp.secret_checkpoint(model):
                path = everything.write(str(tmp_path / "checkpoint"))
                model.train_on_batch(x, y)
                everything.read(path).assert_existing_objects_matched()
        # Older versions of Keras say the mean of all steps so far.
        model.reset_metrics()
        found.append([model.train_on_batch(x, y) for _ in range(2)])
    np.testing.assert_allclose(*found, rtol=1e-5)


def test_tensorflows_saved_models_are_as_ever(tmp_path):
    """Those of TensorFlow's own writer, which makes functions of such notes."""
    import tensorflow as tf

    model, passport = EXACT[True](randomize(plain_cnn()))
    served = kp.require_passport(model)
    given = [images(), passport.pack(kp.passport_spec(served))]
    expected = served(given)
    tf.saved_model.save(served, str(tmp_path / "saved"))
    served.export(tmp_path / "exported", verbose=False)
    tf.saved_model.load(str(tmp_path / "saved"))
    exported = tf.saved_model.load(str(tmp_path / "exported"))
    received = exported.serve([tf.constant(part) for part in given])
    np.testing.assert_allclose(received, expected, rtol=1e-4, atol=1e-5)
