"""Orientation: what public filters tell of the signs of γ, without data."""

import dataclasses
import time
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_passport.attacks import finetuning, training
from keras_passport.attacks.opened import Opened, neutral
from keras_passport.attacks.options import TrainingOptions
from keras_passport.attacks.result import AttackResult, packed, plain
from keras_passport.errors import PassportError
from keras_passport.layers import kernels
from keras_passport.layers.filters import SignRegression, odd_statistics
from keras_passport.layers.protected import function_of, protected_layers
from keras_passport.models import protected_model, sites
from keras_passport.passports import functions


class Orientation:
    """Predicts signs of γ from filters; see `filters.SignRegression`.

    Args:
        regression: One that has learned from networks whose γ are known.
    """

    def __init__(self, regression: SignRegression):
        self.regression = regression

    @classmethod
    def fit(cls, networks: Iterable[keras.Model]) -> "Orientation":
        """Learns from networks whose γ are known.

        Args:
            networks: Plain Keras models with batch normalisations after
                kernel layers: trained by the attacker, or public ones.

        Raises:
            PassportError: If they have no normalisation with a scale.
        """
        rows = [
            statistics * np.sign(gamma)[:, None]
            for network in networks
            for statistics, gamma in _known(network)
        ]
        if not rows:
            raise PassportError(
                "Expected networks with normalisations that scale, after "
                "kernel layers. Received: none"
            )
        return cls(SignRegression.fit(np.concatenate(rows)))

    def chances(self, model: keras.Model) -> dict[str, np.ndarray]:
        """The chance that each γ is positive.

        Args:
            model: Protected model, of which the kernels are used.

        Returns:
            Dict from path to float64 array `(channels,)`, in (0, 1).
        """
        return {
            path: self.regression.chances(
                odd_statistics(layer.adapter, layer.layer)
            )
            for path, layer in protected_layers(model).items()
        }

    def parameters(self, model: keras.Model) -> dict:
        """γ of size 1 with the likelier signs, and β = 0, to start from.

        What the model shows of γ and β, under V1 and V2, is as it shows it.

        Args:
            model: Protected model, of which what is public is used.

        Returns:
            Dict from path to γ and β, float arrays `(channels,)`.
        """
        hides = function_of(model).hides_gamma
        parameters = neutral(model)
        for path, chance in self.chances(model).items():
            if hides:
                signs = np.where(chance < 0.5, -1.0, 1.0).astype("float32")
                parameters[path] = signs, parameters[path][1]
        return parameters


def _known(network):
    """Odd statistics and γ of each kernel with a normalisation behind it."""
    plan = sites.Plan(network, functions.get("V3"), None, False)
    for site in plan.sites.values():
        gamma = getattr(site.normalization, "gamma", None)
        adapter = kernels.adapter_for(site.kernel)
        if gamma is not None and kernels.is_stock(site.kernel):
            yield (
                odd_statistics(adapter, site.kernel),
                ops.convert_to_numpy(gamma),
            )


def orientation(
    model: keras.Model,
    data: tuple | None,
    test: tuple,
    options: TrainingOptions | None = None,
    *,
    networks: Iterable[keras.Model] = (),
    **changes: Any,
) -> AttackResult:
    """Predicts the signs of γ from the public kernels alone.

    Without a label of the owner's, and without running the network. It is a
    start for `reverse_engineering`, `ambiguity` and `fine_tuning` rather than
    an attack of its own: γ have their likelier signs and size 1, β are 0. On
    a ResNet-20, 73 % of 784 signs were found, 90 % in single layers.

    Args:
        model: Protected classifier with one output; what is public of it is
            used alone.
        data: The attacker's inputs and integer labels, which a network of
            their own is trained on if none is given.
        test: The judge's inputs and labels, for the accuracy reported.
        options: For that training, as for `from_scratch`.
        networks: Plain Keras networks to learn from instead.
        **changes: Fields of `options` by name.

    Returns:
        An `AttackResult` with one trial. `history[0]["parameters"]` is a dict
        that other attacks take as their `start`; `history[0]["chances"]` has
        the chance that each γ is positive, by path.

    Raises:
        PassportError: If the model is not protected, or its function does
            not hide γ, or the networks have none.

    Example:

    >>> found = kp.attacks.orientation(model, None, test, networks=[base])
    >>> start = found.history[0]["parameters"]
    >>> result = kp.attacks.reverse_engineering(
    ...     model, data, test, start=start, recipe=kp.attacks.Recipe(epochs=1)
    ... )
    """
    began = time.monotonic()
    public = protected_model.public(model)
    if not function_of(public).hides_gamma:
        raise PassportError(
            "Expected a function that hides γ, as V1 and V3 do. "
            f"Received: {function_of(public).name}"
        )
    networks = list(networks)
    budget = {"images": 0, "epochs": 0, "steps": 0, "seen": 0, "trials": 1}
    if not networks:
        options = TrainingOptions.of(options, changes)
        options = dataclasses.replace(options, keep_model=True)
        own = finetuning.from_scratch(public, data, test, options)
        networks, budget = [own.model], {**own.budget, "trials": 1}
    found = Orientation.fit(networks)
    parameters = found.parameters(public)
    right, entropy = training.answers(Opened(public, parameters), test)
    return AttackResult(
        name="orientation",
        accuracies=(float(np.mean(right)),),
        entropies=(entropy,),
        knowledge={
            "labels": budget["images"] > 0,
            "images": budget["images"],
            "networks": len(networks),
        },
        budget=budget,
        seconds=time.monotonic() - began,
        history=(
            {
                "start": "orientation",
                "parameters": plain(parameters),
                "chances": {
                    path: chance.tolist()
                    for path, chance in found.chances(public).items()
                },
            },
        ),
        right=packed(right),
    )
