"""Protected models, and every way to run them."""

import keras
import numpy as np

import keras_passport as kp
from keras_passport.layers import row_order
from keras_passport.passports import specs
from keras_passport.passports.draws import order_of_rows
from support.plain_models import plain_cnn, randomize
from support.truth import overwrite_affine


def images(count=6, seed=0):
    return np.random.default_rng(seed).random((count, 8, 8, 3), "float32")


def labels(count=6):
    return np.arange(count) % 4


def compiled(model, momentum=0.9):
    model.compile(
        keras.optimizers.SGD(0.05, momentum=momentum),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    if model.built:
        # TensorFlow traces a step twice that makes variables.
        model.optimizer.build(model.trainable_variables)
    return model


def protected(function="V3", base=plain_cnn, bound=True):
    """A protected model with weights as a training leaves them."""
    model = kp.protect(randomize(base()), function)
    passport = kp.Passport.random_pattern(model)
    if bound:
        kp.bind(model, passport)
    return model, passport


def predict(model, x):
    return keras.ops.convert_to_numpy(model(x, training=False))


@keras.saving.register_keras_serializable(package="tests")
class Block(keras.layers.Layer):
    """A layer of the user's own, with a passport layer inside."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.passported = kp.PassportNormalization(keras.layers.Dense(4))

    def build(self, shape):
        self.passported.build(shape)

    def call(self, inputs):
        return self.passported(inputs)

    def compute_output_shape(self, shape):
        return (*shape[:-1], 4)


# Every way to run a model.
CALLS = {
    "call": lambda model: model(images()),
    "predict": lambda model: model.predict(images(), verbose=0),
    "evaluate": lambda model: model.evaluate(images(), labels(), verbose=0),
    "fit": lambda model: model.fit(images(), labels(), verbose=0),
    "train_on_batch": lambda model: model.train_on_batch(images(), labels()),
    "test_on_batch": lambda model: model.test_on_batch(images(), labels()),
    "predict_on_batch": lambda model: model.predict_on_batch(images()),
}


def outer_model(model, model_class=keras.Model):
    inputs = keras.Input((8, 8, 3))
    outputs = keras.layers.Dense(4)(model(inputs * 2))
    return model_class(inputs, outputs)


def lock(base, function="V3"):
    """The protected model, its passport, and the base made its truth."""
    randomize(base)
    model = kp.protect(base, function)
    maps = overwrite_affine(base, function)
    passport = kp.Passport.from_feature_maps(model, maps)
    return kp.bind(model, passport), passport, base


def ones(model):
    """γ = 1 and β = 0: what a fresh batch normalisation has."""
    return {
        path: (
            np.ones(layer.adapter.units(layer.layer), "float32"),
            np.zeros(layer.adapter.units(layer.layer), "float32"),
        )
        for path, layer in kp.protected_layers(model).items()
    }


def version(number, units=400):
    """A protected model, of a megabyte, with weights of its number."""
    inputs = keras.Input((5,), name="inputs")
    x = inputs
    for i, count in enumerate((units, units, 3)):
        x = keras.layers.Dense(count, name=f"dense{i}")(x)
        x = keras.layers.BatchNormalization(name=f"bn{i}")(x)
    model = kp.protect(keras.Model(inputs, x, name="version"))
    rng = np.random.default_rng(number)
    for weight in model.weights:
        weight.assign(rng.uniform(0.5, 1.5, weight.shape) / units**0.5)
    return model


def in_one_order(model, passport):
    """What `hide_rows` was: all filters have an order, which keys follow."""
    copy = kp.public(model)
    fitted = passport.fitted(copy)
    for path, layer in kp.protected_layers(copy).items():
        given = layer.adapter, layer.layer
        rows = tuple((rows, 1) for rows in row_order.counts(*given))
        order = order_of_rows(specs.order_seed(fitted, path), rows)
        row_order.store(*given, order)
        layer.split_keys(layer.key_groups, (1,))
    return kp.bind(copy, passport)
