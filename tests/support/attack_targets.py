"""A protected model that works, and data that it was made to work on."""

import keras
import numpy as np

import keras_passport as kp
from support.plain_models import plain_cnn
from support.protected_models import predict, protected

CLASSES = 3


def target(function="V3", base=plain_cnn, bound=False, count=60):
    """A model, its passport and data on which it is always right.

    Its labels are what the bound model says, so the valid accuracy is 1; the
    biases of its classes make them equally frequent.

    Returns:
        Tuple of the model, its passport, training data and test data.
    """
    model, passport = protected(function, base=lambda: base(classes=CLASSES))
    rng = np.random.default_rng(1)
    x = rng.normal(size=(2 * count, *model.input_shape[1:])).astype("float32")
    x += rng.normal(size=(2 * count, 1, 1, 3)).astype("float32")
    scores = predict(model, x)
    shifted = scores
    for _ in range(200):
        frequency = np.eye(CLASSES)[shifted.argmax(-1)].mean(0)
        shift = 0.1 * shifted.std() * (1 / CLASSES - frequency)
        shifted = shifted + shift
    model.layers[-1].bias.assign_add((shifted - scores)[0])
    y = predict(model, x).argmax(-1)
    if not bound:
        kp.unbind(model)
    return model, passport, (x[:count], y[:count]), (x[count:], y[count:])


def hidden(model, passport) -> dict:
    """The true γ and β of every layer, trained ones too."""
    bound = kp.bind(kp.public(model), passport)
    return {
        path: tuple(
            keras.ops.convert_to_numpy(own) if value is None else value
            for own, value in zip(
                (layer.gamma, layer.beta),
                layer.hidden_parameters(),
                strict=True,
            )
        )
        for path, layer in kp.protected_layers(bound).items()
    }


def snapshot(model):
    """All that an attack must leave as it was."""
    return (
        [keras.ops.convert_to_numpy(value) for value in model.variables],
        [layer.trainable for layer in model._flatten_layers()],
        [layer.is_bound for layer in kp.protected_layers(model).values()],
    )


def assert_same(before, after):
    np.testing.assert_equal(after, before)
