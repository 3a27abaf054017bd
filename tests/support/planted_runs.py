"""Networks that were planted, not trained, and run directories around them."""

import json

import keras
import numpy as np

import keras_passport as kp
from common import data
from common.finished import FinishedRun
from common.rundir import RunDirectory


def linear_classifier(scale=1.0):
    """Classifies digits by their pixels; a convolution's part is `0`."""
    digits = data.load("digits")
    x = digits.normalize(digits.x_train).reshape(len(digits.x_train), -1)
    x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    weights = np.linalg.lstsq(x, np.eye(10)[digits.y_train], rcond=None)[0]
    inputs = keras.Input((8, 8, 1))
    hidden = keras.layers.Conv2D(4, 3, use_bias=False)(inputs)
    hidden = keras.layers.BatchNormalization()(hidden)
    hidden = keras.layers.GlobalAveragePooling2D()(hidden)
    side = keras.layers.Dense(10, name="pixels")(keras.layers.Flatten()(inputs))
    rest = keras.layers.Dense(
        10, use_bias=False, kernel_initializer="zeros", name="rest"
    )(hidden)
    model = keras.Model(inputs, keras.layers.Add()([side, rest]))
    model.get_layer("pixels").set_weights(
        [scale * weights[:-1], scale * weights[-1]]
    )
    # Statistics that tell channels apart, as after a training.
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.moving_mean.assign([0.1, 0.2, 0.3, 0.4])
    return model


def given(base, count=None):
    """What `kp.evaluation.evaluate` takes, as keywords.

    Args:
        base: classifies digits.
        count: of training and of test pictures.
    """
    digits = data.load("digits")
    model = kp.protect(base)
    images = np.random.default_rng(0).normal(size=(5, 8, 8, 1))
    passport = kp.Passport.random_image(
        model, images.astype("float32"), reference=base
    )
    return {
        "model": model,
        "passport": passport,
        "train": (
            digits.normalize(digits.x_train[:count]),
            digits.y_train[:count],
        ),
        "test": (
            digits.normalize(digits.x_test[:count]),
            digits.y_test[:count],
        ),
        "reference": base,
    }


def planted(folder, base):
    """A run's directory around a network that was never trained here."""
    directory = RunDirectory(folder)
    directory.public.mkdir(parents=True)
    directory.owner.mkdir()
    parts = given(base)
    parts["passport"].save(directory.passport)
    base.save(directory.original)
    parts["model"].save(directory.protected)
    directory.config.write_text(json.dumps({"dataset": "digits"}))
    return FinishedRun(folder)
