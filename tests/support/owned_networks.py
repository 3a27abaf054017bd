"""Small networks that were claimed, trained and recorded by their owners."""

import keras
import numpy as np
from keras import layers, ops

import keras_passport as kp
from keras_passport import ownership

OWNER = "Ada Ltd"
CLASSES = 6
VERIFY = {"fakes": 20, "nulls": 200}


def network(width=12):
    inputs = keras.Input((8, 8, 2))
    x = inputs
    for number, strides in enumerate([1, 2, 1]):
        x = layers.Conv2D(
            width * (1 + number),
            3,
            strides,
            padding="same",
            use_bias=False,
            name=f"conv{number}",
        )(x)
        x = layers.BatchNormalization(momentum=0.8, name=f"norm{number}")(x)
        x = layers.ReLU(name=f"relu{number}")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    outputs = layers.Dense(CLASSES, name="head")(x)
    return keras.Model(inputs, outputs)


def examples(count, seed):
    """Noisy patterns, one for each class."""
    patterns = np.random.default_rng(7).normal(size=(CLASSES, 8, 8, 2))
    rng = np.random.default_rng(seed)
    y = rng.integers(0, CLASSES, count)
    x = patterns[y] + 0.8 * rng.normal(size=(count, 8, 8, 2))
    return x.astype("float32"), y


def fitted(model, epochs=4):
    model.compile(
        keras.optimizers.Adam(0.003),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.fit(*examples(600, 1), batch_size=60, epochs=epochs, verbose=0)
    return model


def accuracy(model, data):
    return model.evaluate(*data, verbose=0)[1]


class Owned:
    """An owner's network, trained under a passport, and claimed."""

    def __init__(self, owner, function, kind, base, epochs=4):
        model = kp.reinitialize(kp.protect(base, function=function))
        self.secret = ownership.new_secret()
        seed = ownership.passport_seed(self.secret)
        if kind == "random_pattern":
            self.passport = kp.Passport.random_pattern(model, seed=seed)
        else:
            self.passport = kp.Passport.random_image(
                model, examples(6, 9)[0], reference=base, seed=seed
            )
        kp.bind(model, self.passport)
        signature = ownership.Signature(self.secret, owner)
        kp.calibrate(model, signs=signature)
        self.model = fitted(model, epochs)
        self.claim, self.opening = ownership.claim(
            self.passport,
            owner=owner,
            model=model,
            reference=base,
            secret=self.secret,
        )
        self.test = examples(300, 2)
        self.accuracy = accuracy(self.model, self.test)
        self.record = ownership.record(
            self.model, self.passport, self.test, (0.0, 0.5, 1.0), repeats=2
        )
        self.base = base
        self.parameters = {
            path: layer.hidden_parameters()
            for path, layer in kp.protected_layers(self.model).items()
        }
        self.public = kp.public(self.model)

    def evidence(self, dated="2026-01-02", **changed):
        given = {
            "claim": self.claim,
            "opening": self.opening,
            "passport": self.passport,
            "published": self.public,
            "reference": self.base,
            "record": self.record,
            "dated": dated,
        }
        return ownership.Evidence(**{**given, **changed})

    def verify(self, suspect, **options):
        return ownership.verify(
            suspect, self.evidence(), self.test, **{**VERIFY, **options}
        )


def arrays_of(model):
    return {
        variable.path: ops.convert_to_numpy(variable)
        for variable in model.variables
    }
