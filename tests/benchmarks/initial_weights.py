"""What the seed of a network's first weights tells of a secret order.

    python tests/benchmarks/initial_weights.py --original=original.keras

Keras draws each kernel's first numbers from a seed of 30 bits, and all seeds
from that of `keras.utils.set_random_seed`. Trained kernels are still like what
they began as, so who knows the seed, from a program or by trying, matches the
rows of an exactly protected network with those (`attacks.with_rows_of`). For
each layer:

* how like the trained kernel is to its first one (cosine),
* how many rows are put back at their places, with their signs, and whether
  the attacker is told so,
* by how many standard deviations the right seed stands out of others, from
  angles between filters alone, which no order of rows changes (of the filters
  that have it): beyond six, the 10⁹ seeds of a layer can be tried without
  knowing anything else.

With `--hide_rows` it is published as what is trained under a passport is, not
by `protect_trained`. With `--fraction=0.04`, also what RevA from the signs that
were found, and new normalisations on the rows that were put back, reach with so
many labels.

With `--ancestor_fraction=0.04` the attacker first trains the first weights on
so many labels, and takes the mixture of both that each kernel is most like,
which is given to the attacker, as the ancestor. Of each layer: how like the
original's kernel is to the trained one and to the mixture, how like what both
trainings added is (`drift`), and how many rows are put back by first weights
and by the mixture if even filters' signs are given.
"""

import functools
import json
import pathlib
import random
import sys

import keras
import numpy as np
from absl import app, flags
from scipy.optimize import linear_sum_assignment

import keras_passport as kp
from keras_passport.attacks import labelled, training

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "examples"))

from common import data as datasets  # noqa: E402

_ORIGINAL = flags.DEFINE_string("original", None, "A .keras file.")
_SEED = flags.DEFINE_integer("seed", 0, "Of its first weights.")
_HIDE_ROWS = flags.DEFINE_bool("hide_rows", False, "Of a copy by `protect`.")
_OTHERS = flags.DEFINE_integer("others", 300, "Seeds to compare with.", 10)
_FRACTION = flags.DEFINE_float("fraction", None, "Of the training set.", 0, 1)
_EPOCHS = flags.DEFINE_integer("epochs", 100, "Of each attack.", 1)
_ANCESTOR = flags.DEFINE_float("ancestor_fraction", None, "Likewise.", 0, 1)
_ANCESTOR_EPOCHS = flags.DEFINE_integer("ancestor_epochs", 10, "Of it.", 1)
_DATASET = flags.DEFINE_string("dataset", "cifar10", "As the trainers' flag.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Likewise.")
flags.mark_flag_as_required("original")

# Of how many seeds that Keras draws, one is each layer's.
_DRAWS = 300
# Pictures by which the ancestor's epoch is chosen.
_VALIDATED = 500


def main(_):
    model = keras.saving.load_model(_ORIGINAL.value, compile=False)
    first = keras.models.clone_model(model)
    first.set_weights(model.get_weights())
    likeness = draw_again(first, model)
    if _HIDE_ROWS.value:
        protected = kp.protect(model)
        passport = kp.Passport.random_pattern(protected)
        protected = kp.hide_rows(protected, passport)
    else:
        protected, _ = kp.protect_trained(model)
    if _ANCESTOR.value:
        groups = {
            path: layer.geometry.orders[0][1]
            for path, layer in kp.protected_layers(protected).items()
        }
        train_on(first, model, {path: groups[path] for path in likeness})
    aligned, told = kp.attacks.with_rows_of(protected, first)
    layers = kp.protected_layers(aligned)
    right = total = 0
    for path, fits in told.items():
        kernel = rows(model.get_layer(path).kernel)
        layer = kp.protected_layers(protected)[path]
        stored = rows(layer.layer.kernel)
        [(_, groups)] = layer.geometry.orders
        found = rows_right(rows(layers[path].layer.kernel), kernel, groups)
        right += found * len(kernel) * groups
        total += len(kernel) * groups
        stands_out = standing(model.get_layer(path), first, stored, groups)
        numbers = {
            "like its first": likeness[path],
            "rows put back": found,
            "seed stands out": stands_out,
        }
        told_so = "told" if fits else ""
        print(path, kernel.shape, groups, told_so, rounded(numbers))
    print(f"{total} rows, {right / total:.4f} of them put back", flush=True)
    if _FRACTION.value:
        attack(protected, aligned, first)


def attack(protected, aligned, first):
    """With labels, from what was found; the recipe of all such tables."""
    train, test, recipe = pictures(_EPOCHS.value)
    found = kp.attacks.known_ancestor(kp.public(protected), first, test)
    start = found.history[0]["parameters"]
    for run in (
        functools.partial(kp.attacks.reverse_engineering, start=start),
        kp.attacks.fresh_normalization,
    ):
        result = run(
            aligned, train, test, fraction=_FRACTION.value, recipe=recipe
        )
        print(result.name, rounded({"accuracy": result.accuracy}), flush=True)


def pictures(epochs):
    """What attackers train on, and the judge's, and their recipe."""
    data = datasets.load(_DATASET.value, _DATA_DIR.value)
    train = data.normalize(data.x_train), data.y_train
    test = data.normalize(data.x_test), data.y_test
    recipe = kp.attacks.Recipe(
        epochs=epochs,
        batch_size=60,
        optimizer="sgd",
        learning_rate=0.05,
        warmup=0.1,
        augment=lambda x, rng: datasets.augment(x, rng, data.pad, data.flip),
    )
    return train, test, recipe


def train_on(first, model, layers):
    """Makes of first weights what they are with what a training of ours adds.

    Args:
        first: With the first weights.
        model: The original.
        layers: Dict from a layer's name to its groups of filters.
    """
    trained = keras.models.clone_model(model)  # Fresh normalisations.
    for name in layers:
        trained.get_layer(name).kernel.assign(first.get_layer(name).kernel)
    data, test, recipe = pictures(_ANCESTOR_EPOCHS.value)
    few = labelled.share(data, _ANCESTOR.value, _SEED.value + 1)
    some = tuple(part[:_VALIDATED] for part in few)
    training.train(trained, few, some, recipe, _SEED.value + 1, True)
    accuracy, _ = training.judge(trained, test)
    print("ancestor", rounded({"accuracy": accuracy}), flush=True)
    told = []
    for name, groups in layers.items():
        began, ours, theirs = (
            rows(one.get_layer(name).kernel) for one in (first, trained, model)
        )
        both = np.stack([began.ravel(), ours.ravel()], axis=1)
        parts = np.linalg.lstsq(both, theirs.ravel(), rcond=None)[0]
        mixed = (both @ parts).reshape(ours.shape)
        numbers = {
            "like ours": cosine(ours, theirs),
            "like both": cosine(mixed, theirs),
            "drift": cosine(without(ours, began), without(theirs, began)),
            "by first": put_back(began, theirs, groups),
            "by both": put_back(mixed, theirs, groups),
        }
        print(name, rounded(numbers), flush=True)
        told.append((len(ours) * groups, *list(numbers.values())[-2:]))
        kernel = first.get_layer(name).kernel
        kernel.assign(mixed.reshape(kernel.shape))
    count, *found = np.transpose(told)
    found = [round(np.average(one, weights=count), 4) for one in found]
    print("signs given, by first and by both", *found, flush=True)


def put_back(ours, theirs, groups):
    """Share of rows that the best order puts back, filters' signs given."""
    right = []
    for one, other in zip(
        np.split(ours, groups, axis=1),
        np.split(theirs, groups, axis=1),
        strict=True,
    ):
        one, other = (
            part / np.linalg.norm(part, axis=0) for part in (one, other)
        )
        places, found = linear_sum_assignment(-np.abs(one @ other.T))
        right.append(np.mean(places == found))
    return np.mean(right)


def without(values, start):
    """What of each filter is not along its first numbers."""
    along = np.sum(values * start, axis=0) / np.sum(start**2, axis=0)
    return values - along * start


def cosine(ours, theirs):
    return np.sum(ours * theirs) / (
        np.linalg.norm(ours) * np.linalg.norm(theirs)
    )


def draw_again(first, model, names=None):
    """Gives a network its first weights, of the draw that each is most like.

    Which draw is which layer's, the program says that made it: here, the
    trained kernels. All layers', if no names are given.
    """
    random.seed(_SEED.value)
    draws = [random.randint(1, int(1e9)) for _ in range(_DRAWS)]
    likeness = {}
    for layer in first.layers:
        made = getattr(layer, "kernel_initializer", None)
        if made is None or not hasattr(made, "seed"):
            continue
        if names and layer.name not in names:
            continue
        trained = rows(model.get_layer(layer.name).kernel)
        tried = [drawn(layer, draw) for draw in draws]
        cosines = [cosine(one, trained) for one in tried]
        best = int(np.argmax(cosines))
        layer.kernel.assign(tried[best].reshape(layer.kernel.shape))
        likeness[layer.name] = cosines[best]
    return likeness


def drawn(layer, seed):
    made = layer.kernel_initializer
    made = type(made).from_config({**made.get_config(), "seed": seed})
    return rows(made(layer.kernel.shape))


def rows(kernel):
    values = keras.ops.convert_to_numpy(kernel).astype("float64")
    return values.reshape(-1, values.shape[-1])


def rows_right(ours, theirs, groups):
    """How many rows are at their places, up to filters' signs and sizes.

    A row of one group may be right where that of another is not.
    """
    ours, theirs = (one / np.linalg.norm(one, axis=0) for one in (ours, theirs))
    signs = np.sign(np.sum(ours * theirs, axis=0))
    gaps = np.abs(ours * signs - theirs).reshape(len(theirs), groups, -1)
    return np.mean(gaps.max(2) < 1e-4 * np.abs(theirs).max())


def standing(layer, first, stored, groups):
    """Standard deviations by which the right seed's angles fit better."""
    if groups == stored.shape[1]:
        return float("nan")  # One filter has no angle.
    ours = angles(stored, groups)
    kernel = rows(first.get_layer(layer.name).kernel)
    right = ours @ angles(kernel, groups)
    rng = np.random.default_rng(0)
    others = [
        ours @ angles(drawn(layer, int(seed)), groups)
        for seed in rng.integers(1, 10**9, _OTHERS.value)
    ]
    return (right - np.mean(others)) / np.std(others)


def angles(kernel, groups):
    """Sizes of the filters' cosines, of mean 0 and deviation 1.

    Of filters of one group each, whose rows have the same order.
    """
    kernel = kernel / np.linalg.norm(kernel, axis=0)
    values = []
    for part in np.split(kernel, groups, axis=1):
        pairs = np.triu_indices(part.shape[1], 1)
        values.append(np.abs((part.T @ part)[pairs]))
    values = np.concatenate(values)
    return (values - values.mean()) / values.std()


def rounded(numbers):
    return json.dumps({k: round(float(v), 4) for k, v in numbers.items()})


if __name__ == "__main__":
    app.run(main)
