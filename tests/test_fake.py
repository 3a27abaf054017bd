"""Fake passports, against binding each one and running the model."""

import json

import keras
import numpy as np
import pytest

import keras_passport as kp
from keras_passport import metrics
from keras_passport.attacks import fake
from keras_passport.passports.derivation import DEFAULT_KEY_SCALING
from support.plain_models import randomize, small_resnet

KINDS = ["random_pattern", "fixed_image", "random_image", "known_images"]
CLASSES = 4


@pytest.fixture
def model():
    return kp.protect(randomize(small_resnet(classes=CLASSES)))


@pytest.fixture
def data(model):
    rng = np.random.default_rng(0)
    shape = model.input_shape[1:]
    x = rng.normal(size=(30, *shape)).astype("float32")
    return x, rng.integers(0, CLASSES, 30)


def attacker(model, kind):
    """What an attacker of a kind has besides the model."""
    if kind == "random_pattern":
        return {}
    rng = np.random.default_rng(1)
    images = rng.normal(size=(6, *model.input_shape[1:])).astype("float32")
    reference = randomize(small_resnet(classes=CLASSES), seed=2)
    return {"images": images, "reference": reference}


def bind_packed(model, packed):
    """Binds keys by hand, in the order in which they are packed."""
    start = 0
    for layer in kp.protected_layers(model).values():
        keys = {}
        for role in layer.function.roles:
            stop = start + layer.geometry.key_size
            keys[role] = packed[0, start:stop].reshape(layer.geometry.key_shape)
            start = stop
        layer.bind_keys(**keys)
    assert start == packed.shape[1]


class TestFakePassports:
    @pytest.mark.parametrize("kind", KINDS)
    def test_each_accuracy_is_that_of_the_bound_model(self, model, data, kind):
        sources = attacker(model, kind)
        result = kp.attacks.fake_passports(
            model, kind, 4, data, seed=3, batch_size=11, **sources
        )
        draw = fake._maker(
            model,
            kind,
            sources.get("images"),
            sources.get("reference"),
            DEFAULT_KEY_SCALING,
            3,
        )
        x, y = data
        for number in range(4):
            bind_packed(model, draw(number))
            # Not `predict`: what JAX compiled keeps the keys of before.
            scores = keras.ops.convert_to_numpy(model(x, training=False))
            predicted = scores.argmax(-1)
            assert result.accuracies[number] == np.mean(predicted == y)
            entropy = metrics.prediction_entropy(predicted, CLASSES)
            assert result.entropies[number] == entropy

    def test_what_is_bound_does_not_matter(self, model, data):
        free = kp.attacks.fake_passports(model, KINDS[0], 3, data, seed=1)
        kp.bind(model, kp.Passport.random_pattern(model))
        bound = kp.attacks.fake_passports(model, KINDS[0], 3, data, seed=1)
        assert free.accuracies == bound.accuracies

    def test_a_series_can_be_gone_on_with(self, model, data):
        whole = kp.attacks.fake_passports(model, KINDS[0], 5, data, seed=1)
        rest = kp.attacks.fake_passports(
            model, KINDS[0], 2, data, seed=1, start=3
        )
        assert rest.accuracies == whole.accuracies[3:]
        assert rest.entropies == whole.entropies[3:]

    def test_no_fake_of_a_passports_seed_is_the_passport(self, model):
        passport = kp.Passport.random_pattern(model, seed=5)
        draw = fake._maker(model, KINDS[0], None, None, DEFAULT_KEY_SCALING, 5)
        for number in range(3):
            correlation = np.corrcoef(passport.packed()[0], draw(number)[0])
            assert abs(correlation[0, 1]) < 0.5

    def test_the_right_keys_are_recognised(self, model, data):
        """A judge that calls everything wrong would make any model safe."""
        passport = kp.Passport.random_pattern(model)
        kp.bind(model, passport)
        x, _ = data
        labels = model.predict(x, verbose=0).argmax(-1)
        accuracy, _ = fake.Judge(model, x, labels)(passport.packed())
        assert accuracy == 1.0

    def test_a_model_that_ignores_its_passport_is_seen(self, data):
        x, y = data
        inputs = keras.Input(x.shape[1:])
        hidden = keras.layers.Conv2D(2, 3)(inputs)
        hidden = keras.layers.BatchNormalization()(hidden)
        hidden = keras.layers.GlobalAveragePooling2D()(hidden)
        side = keras.layers.Dense(CLASSES)(keras.layers.Flatten()(inputs))
        zero = keras.layers.Dense(CLASSES, kernel_initializer="zeros")(hidden)
        model = kp.protect(keras.Model(inputs, side + zero))
        kp.bind(model, kp.Passport.random_pattern(model))
        labels = model.predict(x, verbose=0).argmax(-1)
        result = kp.attacks.fake_passports(model, KINDS[0], 3, (x, labels))
        assert result.mean == 1.0

    def test_a_constant_output_has_no_entropy(self, model, data):
        model.get_layer(model.layers[-1].name).kernel.assign(
            np.zeros(model.layers[-1].kernel.shape)
        )
        result = kp.attacks.fake_passports(model, KINDS[0], 2, data)
        assert result.entropies == (0.0, 0.0)

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_series_in_parts_is_the_whole(self, model, data, kind):
        sources = attacker(model, kind)

        def tried(n, start=0):
            return kp.attacks.fake_passports(
                model, kind, n, data, seed=1, start=start, **sources
            )

        whole, parts = tried(5), tried(2).joined(tried(3, start=2))
        for name in ("accuracies", "entropies", "history"):
            assert getattr(parts, name) == getattr(whole, name)
        assert parts.budget == whole.budget
        read = json.loads(json.dumps(whole.to_dict()))
        assert kp.attacks.AttackResult.from_dict(read) == whole

    @pytest.mark.parametrize("kind", KINDS)
    def test_guesses_at_known_images_are_told(self, model, data, kind):
        result = kp.attacks.fake_passports(
            model, kind, 3, data, seed=1, **attacker(model, kind)
        )
        if kind != "known_images":
            assert result.history == ()
            return
        guesses = np.asarray([fake["images"] for fake in result.history])
        layers = len(kp.protected_layers(model))
        assert guesses.shape == (3, layers, 2)
        assert np.all(guesses[..., 0] != guesses[..., 1])
        assert not np.all(guesses == guesses[:, :1])

    @pytest.mark.parametrize(
        "arguments, message",
        [
            ({"kind": "random"}, "one of .*random_pattern.*Received: kind"),
            ({"n": 0}, "n of 1 or more"),
            ({"kind": "random_image"}, "images and reference"),
            ({"key_scaling": "big"}, "key_scaling to be one of"),
        ],
    )
    def test_wrong_arguments(self, model, data, arguments, message):
        arguments = {"kind": KINDS[0], "n": 1, **arguments}
        with pytest.raises(ValueError, match=message):
            kp.attacks.fake_passports(model, data=data, **arguments)
