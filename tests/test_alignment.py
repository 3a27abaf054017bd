"""Layers are paired by their filters, wherever a suspect has them."""

import numpy as np
import pytest

from keras_passport.ownership.alignment import align, similarity
from keras_passport.ownership.kernel_layer import KernelLayer

WIDTH = 32


def network(seed=0, depth=4):
    """Layers of 3x3 kernels, all but the first and the last of one shape."""
    rng = np.random.default_rng(seed)
    widths = [1, *[WIDTH] * depth]
    layers = [
        KernelLayer(f"c{number}", rng.normal(size=(9, *size)))
        for number, size in enumerate(zip(widths, widths[1:], strict=False))
    ]
    return [*layers, KernelLayer("head", rng.normal(size=(1, WIDTH, 5)))]


def separable(seed=0):
    """Depthwise layers and pointwise ones of equal shapes, in turns."""
    rng = np.random.default_rng(seed)
    layers = [KernelLayer("stem", rng.normal(size=(9, 3, WIDTH)))]
    for number in range(3):
        depthwise = rng.normal(size=(9, 1, WIDTH))
        pointwise = rng.normal(size=(1, WIDTH, WIDTH))
        layers += [
            KernelLayer(f"d{number}", depthwise, "depthwise"),
            KernelLayer(f"p{number}", pointwise),
        ]
    return layers


def rewritten(layers, sizes=0.0, noise=0.0):
    """Filters in other orders, of other signs and sizes, with noise."""
    rng = np.random.default_rng(1)
    order, factors = None, None
    made = []
    for layer in layers:
        kernel, filters = layer.kernel, layer.filters
        if layer.kind == "depthwise":
            kernel = kernel[..., order]
        else:
            if order is not None:
                kernel = kernel[:, order] / factors[None, :, None]
            order = np.arange(filters)
            if layer.path != "head":
                order = rng.permutation(filters)
            kernel = kernel[..., order]
        factors = np.exp(sizes * rng.normal(size=filters))
        kernel = kernel * factors * rng.choice([-1, 1], filters)
        kernel = kernel + noise * kernel.std() * rng.normal(size=kernel.shape)
        made.append(KernelLayer(layer.path, kernel, layer.kind))
    return made


def nothing(positions=9):
    """A layer that hands its inputs on."""
    kernel = np.zeros((positions, WIDTH, WIDTH))
    kernel[positions // 2] = np.eye(WIDTH)
    return KernelLayer("nothing", kernel)


def passes_channels():
    kernel = np.zeros((9, 1, WIDTH))
    kernel[4] = 1.0
    return KernelLayer("nothing", kernel, "depthwise")


def likeness(owners, matches):
    return similarity(matches, sum(layer.filters for layer in owners))


def pairs(matches):
    return [(match.path, match.found.path) for match in matches]


def partners(owners):
    return [(owner.path, owner.path) for owner in owners]


MADE = {
    "as it is": lambda layers: layers,
    "permuted": rewritten,
    "rescaled": lambda layers: rewritten(layers, sizes=1.0),
    "trained on": lambda layers: rewritten(layers, 0.3, 0.4),
}
LISTED = {
    "in order": lambda layers: layers,
    "a layer first": lambda layers: [nothing(), *layers],
    "a layer more": lambda layers: [*layers[:1], nothing(), *layers[1:]],
    "a layer behind": lambda layers: [*layers[:3], nothing(), *layers[3:]],
    "several": lambda layers: (
        [layers[0]]
        + [one for layer in layers[1:] for one in (nothing(), layer)]
    ),
    "two swapped": lambda layers: [
        *layers[:1],
        layers[2],
        layers[1],
        *layers[3:],
    ],
    "backwards": lambda layers: layers[::-1],
    "shuffled": lambda layers: [
        layers[n] for n in np.random.default_rng(2).permutation(len(layers))
    ],
}


@pytest.mark.parametrize("made", MADE)
@pytest.mark.parametrize("listed", LISTED)
def test_layers_are_found_wherever_they_are(listed, made):
    owners = network()
    suspects = LISTED[listed](MADE[made](owners))
    matches = align(owners, suspects)
    assert pairs(matches) == partners(owners)
    least = 0.85 if made == "trained on" else 0.999
    assert likeness(owners, matches) > least


@pytest.mark.parametrize("made", MADE)
@pytest.mark.parametrize("listed", ["in order", "a layer more", "two swapped"])
def test_depthwise_layers_are_found_wherever_they_are(listed, made):
    """Whose filters have nine numbers to be told apart by."""
    owners = separable()
    suspects = MADE[made](owners)
    if listed == "a layer more":
        suspects = [*suspects[:1], passes_channels(), *suspects[1:]]
        suspects = [*suspects[:3], nothing(1), *suspects[3:]]
    elif listed == "two swapped":
        one, other = suspects[1:3], suspects[3:5]
        suspects = [*suspects[:1], *other, *one, *suspects[5:]]
    matches = align(owners, suspects)
    assert pairs(matches) == partners(owners)
    assert likeness(owners, matches) > (0.8 if made == "trained on" else 0.999)


@pytest.mark.parametrize("missing", range(6))
def test_a_layer_that_is_missing_takes_no_others_place(missing):
    owners = network(depth=5)
    suspects = [*owners[:missing], *owners[missing + 1 :]]
    matches = align(owners, suspects)
    assert pairs(matches) == partners(suspects)


def test_equal_layers_stay_where_they_are():
    first, *_, last = network()
    owners = [first, *(nothing() for _ in range(3)), last]
    matches = align(owners, list(owners))
    assert [match.found for match in matches] == owners


@pytest.mark.parametrize("make", [network, separable])
def test_drawn_networks_are_searched_and_stay_unlike(make):
    """As much as where layers are taken in their order alone."""
    owners = make()
    for seed in range(1, 6):
        drawn = make(seed)
        matches = align(owners, drawn)
        assert len(matches) == len(owners)
        in_order = [
            align([owner], [layer])[0]
            for owner, layer in zip(owners, drawn, strict=True)
        ]
        found = likeness(owners, matches)
        assert found > likeness(owners, in_order) - 0.01
        assert found < 0.65
