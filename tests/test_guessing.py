"""Guessing a passport's images layer by layer, and what keeps it out."""

import functools

import numpy as np
import pytest

import keras_passport as kp
from support.known_statistics import pictures
from support.plain_models import plain_cnn, small_resnet
from support.protected_models import predict

COUNT = 5


def he(model, seed):
    """Weights that follow from the seed alone, on every backend."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        if len(weight.shape) > 1:
            scale = np.sqrt(2 / np.prod(weight.shape[:-1]))
            weight.assign(rng.normal(0.0, scale, weight.shape))
    return model


@functools.cache
def network(base, key_scaling, hides):
    """A public net with a T3 passport, its choices, images and reference."""
    reference = he(base(), seed=1)
    model = he(kp.protect(base()), seed=2)
    images = pictures(COUNT, seed=3)
    passport = kp.Passport.random_image(
        model, images, reference=reference, seed=4, key_scaling=key_scaling
    )
    kp.bind(model, passport)
    rng = np.random.default_rng(5)
    for layer in kp.protected_layers(model).values():
        units = layer.adapter.units(layer.layer)
        layer.set_hidden_parameters(
            gamma=rng.uniform(0.5, 1.2, units) * rng.choice([-1, 1], units),
            beta=rng.normal(0.0, 0.2, units),
        )
    batches = [pictures(256, seed=9)]
    kp.estimate_statistics(model, batches)
    if hides:
        kp.hide_statistics(model, batches)
    choices = [
        [entry.gamma_image, entry.beta_image]
        for entry in passport.layers.values()
    ]
    x = pictures(60, seed=6)
    labels = predict(model, x).argmax(-1)
    return kp.public(model), choices, images, reference, (x, labels)


def guess(base, made, hides, assumed=None, **options):
    """The attack on keys of the scaling `made`, and which layers it found."""
    model, choices, images, reference, test = network(base, made, hides)
    options.setdefault("reference", reference)
    options["key_scaling"] = assumed or made
    result = kp.attacks.guess_images(
        model, images, pictures(64, seed=7), test, **options
    )
    guessed = result.history[0]["images"]
    return result, [a == b for a, b in zip(guessed, choices, strict=True)]


@pytest.mark.parametrize("base", [plain_cnn, small_resnet])
def test_images_alone_are_found_by_what_hidden_statistics_leave(base):
    result, right = guess(base, "orthogonal", hides=True)
    assert all(right)
    assert result.accuracy > 0.9


def test_images_alone_are_found_by_published_statistics():
    result, right = guess(small_resnet, "orthogonal", hides=False)
    # Behind the layers that meet before the classifier nothing is published.
    assert right[:3] == [True, True, True]
    assert result.history[0]["margins"][0] > 0.1


@pytest.mark.parametrize("hides", [False, True])
def test_signs_from_the_seed_keep_it_out(hides):
    model, choices, *_ = network(small_resnet, "signed", hides)
    result, right = guess(small_resnet, "signed", hides)
    # By chance a pair of 20.
    assert sum(right) <= 2
    # Nor does it help to leave the signs alone.
    _, right = guess(small_resnet, "signed", hides, assumed="orthogonal")
    assert sum(right) <= 2


def test_another_reference_finds_nothing():
    result, right = guess(
        small_resnet, "orthogonal", hides=True, reference=he(small_resnet(), 8)
    )
    assert sum(right) <= 2


def test_what_it_returns_starts_reverse_engineering():
    result, _ = guess(plain_cnn, "orthogonal", hides=True, keep_model=True)
    model, *_, test = network(plain_cnn, "orthogonal", True)
    opened = kp.attacks.Opened(model, result.history[0]["parameters"])
    np.testing.assert_allclose(
        predict(result.model, test[0]), predict(opened, test[0]), atol=1e-4
    )
    assert not result.knowledge["labels"]
