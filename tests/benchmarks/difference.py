"""What two versions of a network tell of its keys, and what helps.

    python tests/benchmarks/difference.py

A small network is trained on digits and protected in several ways. For each:
the valid accuracy; how much of γ and β lies in the plane of two (four)
directions that the difference of both versions shows, by the median layer; and
what `difference` reaches with `--fraction` of the labels, then RevA from there,
`known_ancestor` without labels, and RevA alone.

  calibrated       smallest changes of the kernels, nothing else
  random N         the same, and random directions orthogonal to both keys
                   added, N times as large as the change
  trained on       the same, then trained for some epochs with gradients
                   decoupled
  coupled          likewise, by the formula's gradient
  hidden           another release: of after `hide_statistics`
  hidden rows      the same two, rows hidden in both: in the same orders,
                   which follow from the passport
  new passport     another release: the same network, another passport
  exact            `protect_trained(order=False)`
  order            `protect_trained` as it is by default
  releases         two of these, with a passport each

With `--noattacks` nothing is trained but the networks, which takes a minute.
`found` are the layers of which both lie in two directions by nine tenths,
`rows` how many rows of groups of filters are put into the first group's order
by those directions alone: what is left is one order for all filters. With
`--original=original.keras --dataset=cifar10` it is a trained network of yours:
`--only="calibrated,exact,order,releases"` then trains none.
"""

import pathlib
import sys

import keras
import numpy as np
from absl import app, flags

import keras_passport as kp
from keras_passport import attacks
from keras_passport.attacks import training
from keras_passport.layers import packing, row_order
from keras_passport.layers.bindings import KEYS

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "examples"))

from common import data as datasets  # noqa: E402

_EPOCHS = flags.DEFINE_integer("epochs", 15, "Of the base's training.", 1)
_MORE = flags.DEFINE_integer("more", 8, "Of training on.", 1)
_FRACTION = flags.DEFINE_float("fraction", 0.02, "Of the labels.", 0, 1)
_ORIGINAL = flags.DEFINE_string("original", None, "A trained network's file.")
_DATASET = flags.DEFINE_string("dataset", "digits", "As the trainers' flag.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Likewise.")
_ATTACKS = flags.DEFINE_bool("attacks", True, "Else no attack is tried.")
_ONLY = flags.DEFINE_list("only", None, "Rows to measure; all by default.")
_WIDTHS = (32, 32, 32)
_LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
_RECIPE = attacks.Recipe(epochs=20, batch_size=32, learning_rate=0.05)


def plain():
    inputs = x = keras.Input((8, 8, 1))
    for number, width in enumerate(_WIDTHS):
        x = keras.layers.Conv2D(
            width,
            5 - 2 * bool(number),
            padding="same",
            use_bias=False,
            name=f"conv{number}",
        )(x)
        x = keras.layers.BatchNormalization(name=f"bn{number}")(x)
        x = keras.layers.ReLU()(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(10, name="last")(x))


def fitted(model, train, epochs, rate):
    model.compile(keras.optimizers.Adam(rate), _LOSS)
    model.fit(*train, batch_size=32, epochs=epochs, verbose=0)
    return model


def calibrated(base, seed, train):
    """A protected copy that computes what the base does, and its passport."""
    model = kp.protect(base)
    passport = kp.Passport.random_pattern(model, seed=seed)
    kp.calibrate(kp.bind(model, passport), base, [train[0][:2000]])
    return model, passport


def spread(model, base, size):
    """Adds random directions that no key meets, by the size of the change."""
    rng = np.random.default_rng(0)
    for path, layer in kp.protected_layers(model).items():
        kernel = keras.ops.convert_to_numpy(layer.layer.kernel)
        change = kernel - np.asarray(base.get_layer(path).kernel)
        keys = np.asarray(layer._secret.bound.eager(KEYS)).reshape(2, -1)
        basis = np.linalg.qr(keys.T)[0]
        noise = rng.normal(size=(keys.shape[1], kernel.shape[-1]))
        noise -= basis @ (basis.T @ noise)
        noise *= size * np.linalg.norm(change) / np.linalg.norm(noise)
        layer.layer.kernel.assign(kernel + noise.reshape(kernel.shape))


def versions(base, train):
    """Yields names and functions to model, passport and the other version."""

    def changed(change):
        model, passport = calibrated(base, 1, train)
        change(model)
        return model, passport, base

    def noisy(size):
        def change(model):
            spread(model, base, size)
            kp.estimate_statistics(model, [train[0][:2000]])

        return lambda: changed(change)

    def trained(decouple):
        def change(model):
            for layer in kp.protected_layers(model).values():
                layer.decouple = decouple
            fitted(model, train, _MORE.value, 1e-3)

        return lambda: changed(change)

    def hidden():
        model, passport = calibrated(base, 1, train)
        fitted(model, train, _MORE.value, 1e-3)
        before = kp.public(model)
        kp.hide_statistics(model, [train[0][:2000]])
        return model, passport, before

    def hidden_rows():
        model, passport, before = hidden()
        before, model = (kp.hide_rows(m, passport) for m in (before, model))
        return model, passport, kp.public(before)

    def renewed():
        before, _ = calibrated(base, 2, train)
        return *calibrated(base, 1, train), kp.public(before)

    def exact():
        return *kp.protect_trained(base, order=False), base

    def ordered():
        return *kp.protect_trained(base), base

    def releases():
        before, _ = kp.protect_trained(base)
        return *kp.protect_trained(base), kp.public(before)

    yield "calibrated", lambda: changed(lambda model: None)
    for size in (0.3, 1.0, 3.0):
        yield f"random {size:g}", noisy(size)
    yield "trained on", trained(True)
    yield "coupled", trained(False)
    yield "hidden", hidden
    yield "hidden rows", hidden_rows
    yield "new passport", renewed
    yield "exact", exact
    yield "order", ordered
    yield "releases", releases


def shares(model, other, rank):
    """How much of each layer's γ and β lies in the directions."""
    found = attacks.difference_directions(kp.public(model), other, rank)
    return np.array(
        [
            [
                np.sum((found[path] @ value) ** 2) / np.sum(value**2)
                for value in layer.hidden_parameters()
            ]
            for path, layer in kp.protected_layers(model).items()
        ]
    )


def rows_matched(model, other):
    """Part of the rows that one group's plane says are another group's.

    Keys are the same in all orders, so a row of a plane is as long in each.
    """
    right, others = [], kp.protected_layers(other)
    for path, layer in kp.protected_layers(model).items():
        if not layer.geometry.ordered_rows or path not in others:
            continue
        ours, theirs = (
            row_order.rows_of(one.adapter, one.layer)[0].astype("float64")
            for one in (layer, others[path])
        )
        [groups] = layer.row_groups
        if ours.shape[1] < 2 * groups:
            continue  # A difference of one filter has no plane.
        packed = layer._secret.bound.eager(KEYS)
        order = np.asarray(packing.order_in(layer, packed))
        order = np.abs(order.reshape(len(ours), groups)).argsort(axis=0)
        found = []
        for number, change in enumerate(
            np.split(ours - theirs, groups, axis=1)
        ):
            plane = np.linalg.svd(change, full_matrices=False)[0][:, :2]
            by_length = np.linalg.norm(plane, axis=1).argsort()
            found.append(order[by_length, number])
        right.append(np.mean(np.equal(found[1:], found[0])))
    return f"{100 * np.mean(right):.1f} %" if right else ""


def row(model, passport, other, train, test):
    kp.bind(model, passport)
    cells = [training.judge(model, test)[0]]
    two, four = (shares(model, other, rank) for rank in (2, 4))
    seen = [f"{np.median(two):.2f}", f"{np.median(four):.2f}"]
    seen.append(f"{np.sum(two.min(-1) > 0.9)} of {len(two)}")
    seen.append(rows_matched(model, other))
    if not _ATTACKS.value:
        return [f"{100 * cells[0]:.1f}", *seen]
    options = {"fraction": _FRACTION.value, "recipe": _RECIPE}
    public = kp.public(model)
    found = attacks.difference(
        public, other, train, test, restarts=2, **options
    )
    start = found.history[found.chosen]["parameters"]
    cells += [
        found.accuracy,
        attacks.reverse_engineering(
            public, train, test, start=start, **options
        ).accuracy,
        attacks.known_ancestor(public, other, test).accuracy,
        attacks.reverse_engineering(public, train, test, **options).accuracy,
    ]
    accuracies = [f"{100 * value:.1f}" for value in cells]
    return [accuracies[0], *seen, *accuracies[1:]]


def main(_):
    keras.utils.set_random_seed(0)
    data = datasets.load(_DATASET.value, _DATA_DIR.value)
    train = data.normalize(data.x_train), data.y_train
    test = data.normalize(data.x_test), data.y_test
    if _ORIGINAL.value:
        base = keras.saving.load_model(_ORIGINAL.value, compile=False)
    else:
        base = fitted(plain(), train, _EPOCHS.value, 3e-3)
    print(f"base {100 * training.judge(base, test)[0]:.1f} %")
    head = (
        "version valid 2-share 4-share found rows difference then-RevA "
        "ancestor RevA"
    )
    print("|", " | ".join(head.split()), "|")
    for name, make in versions(base, train):
        if _ONLY.value is None or name in _ONLY.value:
            cells = row(*make(), train, test)
            print("|", " | ".join([name, *cells]), "|", flush=True)


if __name__ == "__main__":
    app.run(main)
