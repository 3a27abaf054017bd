"""`Case`: a protected model as an attacker has it, and as its judge does."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_passport import scores
from keras_passport.attacks import aligning, fake, kept, labelled, training
from keras_passport.layers.protected import protected_layers
from keras_passport.models import binding, protected_model
from keras_passport.passports import specs
from keras_passport.passports.passport import Passport, check_passport

# Part of the test set that an attacker may have: the judge uses the rest.
_DISJOINT = 0.4
# Images that an attacker makes fakes of.
_IMAGES = 100


@dataclasses.dataclass(frozen=True)
class Case:
    """All that attacks may be given, and what they are judged by.

    Args:
        model: What is published; no passport is bound to it.
        train: The defender's inputs, float array `(examples, ...)` or a
            structure of them as the model takes it, and integer labels
            `(examples,)`.
        test: The same, of data that the model was not trained on. The judge
            has 60 % of each class; an attacker may have the rest.
        fingerprint: Of all that a record of an attack is made of, but for the
            attack's own budget.
        key_scaling: Of the passport; no secret.
        disclosed: Returns what a holder may give away, as keyword arguments
            of `key_forgery`: γ and β of the valid passport, and
            `order_seeds`.
        order_seeds: What the order of kernels' rows follows from, by path:
            fakes get it, as one of their own would flatter the keys.
        service: Function of inputs that returns what a service with the valid
            passport says of them: probabilities `(examples, classes)`.
        reference: A network of the same architecture: the original itself,
            which is more than a real attacker has. `None` if there is none.
        known_images: The owner's identity images, for the attacker who knows
            them; `None` if the passport has none to guess.
        augment: Function `(x, rng)` of a batch of inputs and a NumPy
            generator that returns them as the defender's training shows them;
            `None` for as they are.
        ancestor: A network that this one was made of, or another version of
            it, for the attacker who has that; `None` if there is none.
    """

    model: keras.Model
    train: tuple
    test: tuple
    fingerprint: str
    key_scaling: str
    disclosed: Callable[[], dict] = dataclasses.field(repr=False)
    order_seeds: dict[str, bytes] = dataclasses.field(repr=False)
    service: Callable[[Any], np.ndarray] = dataclasses.field(repr=False)
    reference: keras.Model | None = None
    known_images: Any = None
    augment: Callable[[Any, np.random.Generator], Any] | None = None
    ancestor: keras.Model | None = None

    @classmethod
    def of(
        cls,
        model: keras.Model,
        passport: Passport,
        train: tuple,
        test: tuple,
        *,
        reference: keras.Model | None = None,
        augment: Callable[[Any, np.random.Generator], Any] | None = None,
        ancestor: keras.Model | None = None,
        fingerprint: str | None = None,
    ) -> "Case":
        """The case of somebody's protected model.

        Args:
            model: Protected classifier with one output. Keys that are bound
                to it are not used.
            passport: Its valid passport.
            train: As for `Case`.
            test: As for `Case`.
            reference: As for `Case`.
            augment: As for `Case`.
            ancestor: As for `Case`.
            fingerprint: As for `Case`; of the model's weights, the passport,
                the reference and all data if not given.

        Raises:
            PassportError: If the model is not protected, or the passport does
                not fit it.
            ValueError: If a label is no class.
        """
        check_passport(passport)
        passport = passport.fitted(model)
        public = protected_model.public(model)
        classes = scores.only_shape(model.output_shape)[-1]
        train, test = (
            _checked(*scores.pair(data, name), classes, name)
            for data, name in ((train, "train"), (test, "test"))
        )
        if fingerprint is None:
            weights = [] if reference is None else reference.get_weights()
            fingerprint = kept.fingerprint(
                [
                    np.frombuffer(passport.fingerprint.encode(), "uint8"),
                    *public.get_weights(),
                    *weights,
                    *keras.tree.flatten([train, test]),
                ]
            )
        is_guessed = passport.kind == "random_image"
        order_seeds = specs.order_seeds(passport)
        return cls(
            model=public,
            train=train,
            test=test,
            fingerprint=fingerprint,
            key_scaling=fake.scaling_of(passport),
            disclosed=lambda: {
                "parameters": hidden_parameters(public, passport),
                "order_seeds": order_seeds,
            },
            order_seeds=order_seeds,
            service=lambda inputs: _served(public, passport, inputs),
            reference=reference,
            known_images=passport.images if is_guessed else None,
            augment=augment,
            ancestor=ancestor,
        )

    @functools.cached_property
    def _parts(self) -> tuple:
        """The judge's part of the test set, and the attacker's."""
        parts = labelled.divide(self.test, 1 - _DISJOINT, seed=0)
        if len(parts[1][1]) < 2:
            raise ValueError(
                "Expected test data of several examples per class, which judge "
                f"and attackers share. Received: {len(self.test[1])} examples"
            )
        return parts

    @functools.cached_property
    def aligned(self) -> keras.Model:
        """The model, its rows where the ancestor's are, as far as they fit."""
        model, _ = aligning.with_rows_of(self.model, self.ancestor)
        return model

    @functools.cached_property
    def ancestor_digest(self) -> str | None:
        """Of the ancestor's weights; `None` without one."""
        if self.ancestor is None:
            return None
        return kept.fingerprint(self.ancestor.get_weights())

    def examples(self, source: str) -> tuple:
        """An attacker's labelled data: inputs and labels.

        Args:
            source: `"defender"`, the very training set, or `"disjoint"`, a
                part of the test set that the judge leaves alone.
        """
        return self._parts[1] if source == "disjoint" else self.train

    @functools.cached_property
    def _asked(self) -> dict:
        """What the service has said of each source's inputs."""
        return {}

    def answered(self, source: str, answers: str) -> tuple:
        """An attacker's inputs, and what the service said of them.

        Args:
            source: As for `examples`, whose labels are not used.
            answers: `"labels"` or `"probabilities"`.
        """
        x, _ = self.examples(source)
        if source not in self._asked:
            self._asked[source] = self.service(x)
        said = self._asked[source]
        return x, said if answers == "probabilities" else np.argmax(said, -1)

    def judges(self, count: int | None = None) -> tuple:
        """The judge's inputs and labels: `count` of them, or all."""
        x, y = self._parts[0]
        if count is None or count >= len(y):
            return x, y
        return labelled.share((x, y), count / len(y), seed=0)

    @property
    def images(self) -> Any:
        """The attacker's own images for fakes."""
        return first(self._parts[1], _IMAGES)

    def unlabelled(self, source: str, count: int, seed: int) -> Any:
        """An attacker's inputs without labels, as training shows them.

        Args:
            source: As for `examples`.
            count: How many.
            seed: Of what `augment` draws.
        """
        x = first(self.examples(source), count)
        if self.augment is None:
            return x
        return self.augment(x, np.random.default_rng(seed))


def first(data: tuple, count: int) -> Any:
    """The first inputs; spread over all where those come class by class.

    Args:
        data: Inputs and labels.
        count: How many, at most.
    """
    x, y = data
    step = 1
    if np.count_nonzero(np.diff(y)) < len(np.unique(y)):
        step = max(1, len(y) // count)
    return labelled.take(x, slice(0, count * step, step))


def hidden_parameters(model: keras.Model, passport: Passport) -> dict:
    """γ and β of a passport by path; None for what is not hidden."""
    rows = passport.rows()
    return {
        path: layer.hidden_parameters(rows[path])
        for path, layer in protected_layers(model).items()
    }


def _served(model, passport, inputs) -> np.ndarray:
    """Probabilities of all classes under a passport."""
    bound = binding.bind(protected_model.public(model), passport)
    found = scores.predict(bound, inputs)
    if training.gives_logits(bound, inputs):
        found = np.exp(found - found.max(axis=-1, keepdims=True))
    return found / found.sum(axis=-1, keepdims=True)


def chance(labels: np.ndarray) -> float:
    """Accuracy in per cent of always saying the most frequent class."""
    return 100 * float(np.bincount(labels).max() / len(labels))


def _checked(x, y, classes, name) -> tuple:
    """Inputs as arrays, and labels `(examples,)` that are classes."""
    x = keras.tree.map_structure(np.asarray, x)
    examples = len(keras.tree.flatten(x)[0])
    return x, scores.labels_of(y, examples, classes, f"labels of {name}")
