"""Fake passports of the paper's types T1, T2 and T3 (Section 4.2)."""

import collections.abc
import secrets
import time

import keras
import numpy as np

from keras_passport import metrics, replicas, scores
from keras_passport.attacks.result import AttackResult
from keras_passport.errors import PassportError
from keras_passport.hints import Inputs, Model, Tensor
from keras_passport.layers.protected import function_of, protected_layers
from keras_passport.models import binding, features
from keras_passport.passports.derivation import (
    DEFAULT_KEY_SCALING,
    FAKE,
    MADE_KINDS,
    check_key_scaling,
    derive,
    fake_seed,
    scale_keys,
)
from keras_passport.passports.draws import order_of_rows
from keras_passport.passports.geometry import digest
from keras_passport.passports.passport import Passport

ATTACK_KINDS = (
    "random_pattern",
    "fixed_image",
    "random_image",
    "known_images",
)
# Between the paper's keys of patterns and the default's, of the latter's size.
_LARGE = 0.25


def fake_passports(
    model: keras.Model,
    kind: str,
    n: int,
    data: tuple,
    *,
    images: Inputs = None,
    reference: keras.Model | None = None,
    key_scaling: str = DEFAULT_KEY_SCALING,
    order_seeds: collections.abc.Mapping[str, bytes] | None = None,
    seed: int | None = None,
    start: int = 0,
    batch_size: int = 500,
    progress: bool = False,
) -> AttackResult:
    """Tries fake passports of a kind and measures what each one reaches.

    One compiled function takes the keys as an input, so nothing is traced
    again from one fake to the next. In the scope of the `tf.distribute`
    strategy that the model was built in, its replicas share the examples;
    machines must be given the same data and the same seed.

    Args:
        model: Protected classifier with one output of class scores. Keys that
            are bound to it are not used.
        kind: `"random_pattern"` (T1: fresh patterns each time),
            `"fixed_image"` (T2: the feature maps of other images),
            `"random_image"` (T3: other images, one drawn per layer and role)
            or `"known_images"` (T3 by one who knows the owner's images, and
            has but to guess which layer and role takes which).
        n: How many fakes.
        data: Tuple of inputs, float array `(examples, ...)` (or a dict for
            several inputs), and integer labels `(examples,)`. A fake under
            which scores are not finite, as when they overflow, is wrong.
        images: For image kinds, the attacker's images, in the model's input
            domain, 2 or more; the owner's for `"known_images"`.
        reference: For image kinds, the attacker's network of the same
            architecture.
        key_scaling: The scaling of keys that the model was trained with: it
            is not a secret.
        order_seeds: Dict from path to the 32 bytes that the secret order of a
            layer's rows follows from, where they have one: fakes of somebody
            who knows the order, and whose keys meet the kernels as they were
            trained. Without, each fake brings an order of its own, under
            which any network is paralysed.
        seed: Seed of the fakes; fake number i depends on seed and i alone.
            They draw from a domain of their own, so no seed hits a passport.
        start: Number of the first fake, to go on with an interrupted series.
        batch_size: Examples per call.
        progress: Whether to show a progress bar with the current maximum.

    Returns:
        An `AttackResult` with the accuracy under each fake. For
        `"known_images"` its history has the guesses, per fake `"images"`: per
        layer, in the graph's order, the number of the image for each role.

    Raises:
        ValueError: If an argument is out of range, or a label no class.
        PassportError: If images or reference don't fit the model.

    Example:

    >>> result = kp.attacks.fake_passports(model, "random_pattern", 10, test)
    >>> len(result.accuracies)
    10
    >>> result.mean <= result.accuracy
    True

    Reference:

    - Fan, Ng, Chan: Digital Passport, Sections 2.4 and 4.2, Table 2.
    """
    began = time.monotonic()
    if kind not in ATTACK_KINDS:
        raise ValueError(
            f"Expected kind to be one of {ATTACK_KINDS}. Received: kind={kind}"
        )
    if n < 1 or start < 0:
        raise ValueError(
            "Expected n of 1 or more and start of 0 or more. "
            f"Received: n={n}, start={start}"
        )
    x, y = scores.pair(data)
    if seed is None and replicas.spans_machines():
        raise ValueError(
            "Expected the same seed on every machine of the strategy. "
            "Received: seed=None"
        )
    seed = secrets.randbits(64) if seed is None else seed
    draw = _maker(
        model, kind, images, reference, key_scaling, seed, x, order_seeds
    )
    guesses = ()
    if kind == "known_images":
        guess = _guesser(model, kind, images, seed)
        guesses = [guess(number) for number in range(start, start + n)]
    judge = Judge(model, x, y, batch_size)
    bar = None
    if progress:
        bar = keras.utils.Progbar(n, stateful_metrics=["best"])
    accuracies, entropies = [], []
    for i in range(n):
        accuracy, entropy = judge(draw(start + i))
        accuracies.append(accuracy)
        entropies.append(entropy)
        if bar:
            bar.update(
                i + 1, [("accuracy", accuracy), ("best", max(accuracies))]
            )
    return AttackResult(
        name=f"fake passports, {kind}",
        accuracies=tuple(accuracies),
        entropies=tuple(entropies),
        knowledge={
            "kind": kind,
            "key_scaling": key_scaling,
            "images": 0 if images is None else len(_first(images)),
        },
        budget={"fakes": n, "examples": len(y), "start": start, "seed": seed},
        seconds=time.monotonic() - began,
        history=tuple({"images": guess.tolist()} for guess in guesses),
    )


class Judge:
    """Accuracy and variety of a model's predictions under any keys.

    The data is kept on the device; each call runs the model over all of it.
    In the scope of a `tf.distribute` strategy, every replica keeps a part.

    Args:
        model: Protected classifier.
        x: Inputs, or a dict of them.
        y: Integer labels, `(examples,)` or `(examples, 1)`.
        batch_size: Examples per call.

    Raises:
        ValueError: If a label is no class of the model's, there are no
            examples, or one is not finite: compiled functions may make finite
            scores of it.
    """

    def __init__(
        self, model: Model, x: Inputs, y: Tensor, batch_size: int = 500
    ):
        scores.check_batch_size(batch_size)
        self._function = binding.keyed_function(model)
        self._strategy = replicas.current_strategy()
        self._classes = model.outputs[0].shape[-1]
        check_finite(x)
        # A column of labels would be compared with every prediction.
        self._labels = scores.labels_of(y, len(_first(x)), self._classes)
        self._batches = [
            self._place(
                keras.tree.map_structure(
                    lambda a, at=at: a[at : at + batch_size], x
                )
            )
            for at in range(0, len(self._labels), batch_size)
        ]

    def __len__(self) -> int:
        """How many examples a passport is judged on."""
        return len(self._labels)

    def __call__(
        self, packed: np.ndarray, is_valid: bool = False
    ) -> tuple[float, float]:
        """Accuracy (a fraction) and entropy (bits) under packed keys.

        Args:
            packed: The keys, `(1, K)`.
            is_valid: Whether they are the valid passport's, whose scores must
                be finite. Under others such a row is wrong, and in the
                entropy an answer of its own.

        Raises:
            ValueError: If `is_valid` and a score is not finite.
        """
        packed = keras.ops.convert_to_tensor(packed, "float32")
        found = [self._scores(packed, batch) for batch in self._batches]
        found = np.concatenate([keras.ops.convert_to_numpy(s) for s in found])
        if is_valid:
            predicted = scores.finite_classes_of(found, "the valid passport")
        else:
            predicted = scores.classes_of(found)
        return (
            float(np.mean(predicted == self._labels)),
            metrics.prediction_entropy(predicted + 1, self._classes + 1),
        )

    def _place(self, batch):
        if self._strategy:
            return replicas.split(self._strategy, batch)
        return keras.tree.map_structure(keras.ops.convert_to_tensor, batch)

    def _scores(self, packed, batch):
        if not self._strategy:
            return scores.only(self._function(packed, batch))
        found = self._strategy.run(self._function, args=(packed, batch))
        # On every machine those of all of them, in the examples' order.
        return self._strategy.gather(scores.only(found), axis=0)


def scaling_of(passport: Passport) -> str:
    """The size of keys that fakes of a passport are to have.

    Keys that were solved for, licences' among them, have sizes of their own,
    near the default's; fakes of the paper's size, which is a twentieth, would
    all answer one class.

    Args:
        passport: What they are fakes of.

    Returns:
        A `key_scaling`: the passport's own where it says how its keys were
        scaled, or else what is nearest to the size that they have.
    """
    if passport.kind in MADE_KINDS or passport.key_scaling != "paper":
        return passport.key_scaling
    sizes = [
        np.linalg.norm(key) / np.sqrt(key.size / 2)
        for keys in passport.keys().values()
        for key in keys.values()
    ]
    return DEFAULT_KEY_SCALING if np.median(sizes) > _LARGE else "paper"


def check_finite(x) -> None:
    """Raises `ValueError` unless inputs are examples of finite numbers."""
    for array in keras.tree.flatten(x):
        count = np.shape(array)[:1]
        if not count or not count[0]:
            raise ValueError(
                f"Expected examples. Received: x of shape {np.shape(array)}"
            )
        values = np.asarray(array)
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise ValueError(
                "Expected x of finite numbers. Received: NaN or infinity"
            )


def _maker(
    model,
    kind,
    images,
    reference,
    key_scaling,
    seed,
    x=None,
    order_seeds=None,
) -> collections.abc.Callable[[int], np.ndarray]:
    """A function from a fake's number to its packed keys `(1, K)`."""
    check_key_scaling(key_scaling)
    layers = protected_layers(model)
    orders = {
        path: order_of_rows(order_seeds[path], layer.geometry.orders)
        for path, layer in layers.items()
        if path in (order_seeds or {}) and layer.geometry.ordered_rows
    }

    def packed(keys, secret):
        """A fake's keys in one row, each layer's order after them."""
        rows = []
        for path, layer in layers.items():
            geometry, order = layer.geometry, orders.get(path)
            for key in keys[path].values():
                if order is not None and geometry.moves_keys:
                    key = geometry.moved(key, order)
                rows.append(key.ravel())
            if geometry.ordered_rows:
                if order is None:
                    own = derive(secret, "order", path)
                    order = order_of_rows(own, geometry.orders)
                rows.append(order)
        return np.concatenate(rows)[None]

    if kind == "random_pattern":
        size = None if x is None else features.open_sizes(model, x)

        def pattern(number):
            secret = fake_seed(seed, str(number))
            fake = Passport.random_pattern(
                model,
                seed=secret,
                key_scaling=key_scaling,
                spatial_size=size,
                domain=FAKE,
            )
            return packed(fake.keys(), secret)

        return pattern

    pool = image_keys(model, images, reference)
    guess = _guesser(model, kind, images, seed)
    roles = function_of(model).roles

    def of_images(number):
        made, secret = {}, fake_seed(seed, str(number))
        for (path, keys), chosen in zip(
            pool.items(), guess(number), strict=True
        ):
            drawn = dict(zip(roles, keys[chosen], strict=True))
            salt = derive(secret, "key", path)
            made[path] = scale_keys(drawn, key_scaling, salt)
        return packed(made, secret)

    return of_images


def _guesser(
    model, kind, images, seed
) -> collections.abc.Callable[[int], np.ndarray] | None:
    """A function from a fake's number to its images, `(layers, roles)`."""
    if kind == "random_pattern":
        return None
    layers = len(protected_layers(model))
    roles = len(function_of(model).roles)
    count = len(_first(images))

    def guess(number):
        rng = np.random.default_rng(list(fake_seed(seed, str(number))))
        # No two roles take the same one, as in a passport.
        draws = [
            rng.choice(count, roles, replace=False)
            for _ in range(1 if kind == "fixed_image" else layers)
        ]
        return np.broadcast_to(draws, (layers, roles))

    return guess


def image_keys(model, images, reference) -> dict:
    """Keys of every image at every layer: dict from path to `(n, *key)`."""
    if images is None or reference is None:
        raise PassportError(
            "Expected images and reference for fake passports of an image "
            f"kind. Received: images={'some' if images is not None else None},"
            f" reference={reference}"
        )
    images = features.check_images(model, images)
    layers = protected_layers(model)
    count = len(_first(images))
    if count < 2:
        raise PassportError(f"Expected at least 2 images. Received: {count}")
    keys = features.layer_inputs(
        model,
        reference,
        images,
        {path: set(range(count)) for path in layers},
        take=lambda path, value: digest(value, layers[path].geometry),
    )
    return {
        path: np.stack([some[i] for i in range(count)])
        for path, some in keys.items()
    }


def _first(images):
    return keras.tree.flatten(images)[0]
