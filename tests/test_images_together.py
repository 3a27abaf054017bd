"""What layers see of images that run together: what they see of each alone."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_passport as kp
from keras_passport.models import features
from support.plain_models import randomize

IMAGES = np.random.default_rng(0).normal(size=(7, 6, 6, 2)).astype("float32")


class Patches(layers.Layer):
    """Several rows of each image."""

    def call(self, inputs):
        return ops.reshape(inputs, (-1, 3, 6, 2))


class Alone(layers.Layer):
    """Takes one image at a time."""

    def call(self, inputs):
        # As 7 images come; JAX tries other numbers when a model is made.
        if inputs.shape[0] in (3, 4):
            raise ValueError("one image, please")
        return inputs


class Runs(layers.Layer):
    """Counts how often it is run."""

    count = 0

    def call(self, inputs):
        self.count += 1
        return inputs


def network(between=layers.ReLU):
    inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(4, 3, padding="same", name="first")(
        Runs(name="runs")(inputs)
    )
    x = layers.ReLU()(layers.BatchNormalization(name="norm")(x))
    x = between()(layers.Conv2D(2, 1, name="thin")(x))
    x = layers.Conv2D(3, 3, name="second")(x)
    x = layers.BatchNormalization(name="last")(x)
    return randomize(keras.Model(inputs, x))


# And how often it is run for 7 images, of which 4 go together at most.
NETWORKS = {"any": (layers.ReLU, 2), "rows": (Patches, 9), "alone": (Alone, 9)}


@pytest.mark.parametrize("name", NETWORKS)
def test_each_image_is_seen_as_if_alone(name, monkeypatch):
    between, expected = NETWORKS[name]
    base, model = network(between), kp.protect(network(between))
    monkeypatch.setattr(features, "_TOGETHER", 4)
    wanted = {"first": {0, 2, 3, 4, 5, 6}, "second": {1, 6}}
    runs = base.get_layer("runs")
    before = runs.count
    seen = features.layer_inputs(model, base, IMAGES, wanted)
    assert runs.count - before == expected
    # The truth: Keras's own model up to the layer, one image at a time.
    for path, indices in wanted.items():
        part = keras.Model(base.inputs, base.get_layer(path).input)
        assert seen[path].keys() == indices
        for index, value in seen[path].items():
            expected = part(IMAGES[index : index + 1], training=False)[0]
            np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)


def test_large_images_run_one_by_one(monkeypatch):
    base = network()
    monkeypatch.setattr(features, "_NUMBERS", 2 * IMAGES[0].size - 1)
    runs = base.get_layer("runs")
    before = runs.count
    wanted = {"first": set(range(7))}
    features.layer_inputs(kp.protect(network()), base, IMAGES, wanted)
    assert runs.count - before == 7
