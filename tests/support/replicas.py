"""A training on one or two replicas, also for workers of their own."""

import keras
from keras import layers

import keras_passport as kp
from common import data, training

EPOCHS = 20


INTERRUPTED = 8


# An epoch is one step, so that a history has every step's loss; two replicas
# can't share the test pictures equally.
RECIPE = training.Recipe(
    epochs=EPOCHS,
    batch_size=48,
    learning_rate=0.1,
    weight_decay=5e-4,
    seed=0,
)


TOLERANCE = 1e-4


def pictures():
    whole = data.load("digits")
    return data.Dataset(
        **{
            **vars(whole),
            "x_train": whole.x_train[:48],
            "y_train": whole.y_train[:48],
            "x_test": whole.x_test[:33],
            "y_test": whole.y_test[:33],
        }
    )


def network():
    """A bound network, to be made in a scope; the same one at every call."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 1))
    x = inputs
    for i in range(2):
        x = layers.Conv2D(4, 3, name=f"conv{i}")(x)
        x = layers.BatchNormalization(momentum=0.9, name=f"bn{i}")(x)
        x = layers.ReLU(name=f"relu{i}")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    model = keras.Model(inputs, layers.Dense(10, name="logits")(x))
    model = kp.protect(model)
    kp.bind(model, kp.Passport.random_pattern(model, seed=1))
    return kp.calibrate(model)


class Interruption:
    """A watch that ends the training in an epoch, as far as it gets."""

    def __init__(self, epoch, end):
        self.epoch = epoch
        self.end = end

    def start(self):
        self.epoch -= 1

    def measure(self):
        if self.epoch < 0:
            self.end()
        return {}


def train(spread, checkpoint, watch=None):
    with spread.scope():
        model = network()
    history = training.train(
        model, pictures(), RECIPE, checkpoint, watch, spread
    )
    return model, history


def fakes(model):
    result = kp.attacks.fake_passports(
        model, "random_pattern", 3, pictures().test_examples(33), seed=2
    )
    return [result.accuracies, result.entropies]
