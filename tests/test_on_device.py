"""Epochs that are single calls of a JAX device, against the plain trainer."""

import collections
import dataclasses

import keras
import numpy as np
import pytest

import keras_passport as kp
from common import data, training
from common.distribution import Distribution

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="It is JAX's."
)
RECIPE = training.Recipe(
    epochs=2, batch_size=32, learning_rate=0.1, weight_decay=5e-4, seed=0
)


@pytest.fixture(scope="module")
def digits():
    """Few steps, pictures that are mirrored, a test set of a batch and more."""
    whole = data.load("digits")
    return dataclasses.replace(
        whole,
        x_train=whole.x_train[:160],
        y_train=whole.y_train[:160],
        x_test=np.resize(whole.x_test, (510, 8, 8, 1)),
        y_test=np.resize(whole.y_test, 510),
        flip=True,
    )


def network(seed):
    """Bound to a passport of its own, its weights always the same."""
    keras.utils.set_random_seed(0)
    inputs = x = keras.Input((8, 8, 1), name="picture")
    for index in range(2):
        x = keras.layers.Conv2D(6, 3, use_bias=False, name=f"conv{index}")(x)
        x = keras.layers.BatchNormalization(name=f"normal{index}")(x)
        x = keras.layers.ReLU(name=f"relu{index}")(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    outputs = keras.layers.Dense(10, name="logits")(x)
    model = kp.protect(keras.Model(inputs, outputs, name="net"))
    return kp.bind(model, kp.Passport.random_pattern(model, seed=seed))


def test_epochs_on_the_device_are_those_of_the_plain_trainer(digits, tmp_path):
    from common.on_device import OnDevice

    spread = OnDevice()

    def trained(seed, name, way):
        model, path = network(seed), tmp_path / f"{name}.h5"
        history = training.train(model, digits, RECIPE, path, distribution=way)
        history.pop("seconds")
        return history, model.get_weights()

    expected, weights = trained(1, "plain", Distribution())
    history, found = trained(1, "device", spread)
    assert history.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(history[name], values, atol=1e-5)
    for value, wanted in zip(found, weights, strict=True):
        np.testing.assert_allclose(value, wanted, atol=1e-5)
    _, others = trained(2, "another", spread)
    assert not np.allclose(others[0], weights[0], atol=1e-3)
    # Another passport is another argument of the same compiled function.
    [(train, test)] = spread._compiled.values()
    assert train._cache_size() == test._cache_size() == 1
    assert [name for name, *_ in spread.calls] == ["train", "test"] * 4
    counted = collections.Counter(name for name, _ in spread.sent)
    assert counted == {
        "pictures and labels": 1,
        "keys": 2,
        "plan of an epoch": 4,
    }
