"""Spectral attack: what singular vectors of the kernels say of γ and β."""

import dataclasses
import time
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_passport.attacks import labelled, training
from keras_passport.attacks.opened import Opened
from keras_passport.attacks.options import TrainingOptions, check_counts
from keras_passport.attacks.recipe import Recipe
from keras_passport.attacks.result import AttackResult, plain
from keras_passport.layers import normalization
from keras_passport.layers.filters import response_matrix
from keras_passport.layers.protected import protected_layers
from keras_passport.models import protected_model

RANK = 2
# Labelled pictures that signs are chosen by, at most.
SIGNS = 1000
# How often all layers' signs are gone through.
_SWEEPS = 2


def spectral(
    model: keras.Model,
    data: tuple | None,
    test: tuple,
    options: TrainingOptions | None = None,
    *,
    rank: int = RANK,
    **changes: Any,
) -> AttackResult:
    """Looks for γ and β among the kernels' leading singular vectors.

    By the formula γ = κ·W a kernel is trained along its key: with κ = u₁, the
    first left singular vector, γ = σ₁ v₁. So of each layer's γ and β only
    their coordinates along a few public vectors are unknown, some numbers
    where `reverse_engineering` has hundreds, and few labels tell them: their
    signs layer by layer, as long as one changed sign makes the loss smaller,
    then all of them by training.

    Args:
        model: Protected classifier with one output; what is public of it is
            used alone.
        data: The attacker's inputs and integer labels, as for
            `reverse_engineering`; `None` for an attacker without any, who is
            left with γ along v₁ at its usual size, and β = 0.
        test: The judge's inputs and labels, for the accuracy reported.
        options: As for `reverse_engineering`, but that neither `start` nor
            `statistics` mean anything here. The recipe is 30 epochs at 0.1
            in batches of 32 if none is given; without options there are 3
            restarts. The first trial starts with γ along v₁; the others, and
            further attempts at one that is stuck at chance, with random
            coordinates.
        rank: Singular vectors, as for `spectral_directions`.
        **changes: Fields of `options` by name.

    Returns:
        An `AttackResult`; the attacker's validation chooses the trial. Each
        trial's `history` has `parameters`, a dict that `reverse_engineering`
        takes as its `start`.

    Raises:
        ValueError: If an argument is out of range.
        PassportError: If the model is not protected.

    Example:

    >>> result = kp.attacks.spectral(model, None, test)
    >>> start = result.history[result.chosen]["parameters"]
    >>> trained = kp.attacks.reverse_engineering(
    ...     model, data, test, start=start, recipe=kp.attacks.Recipe(epochs=1)
    ... )
    """
    options = TrainingOptions.of(
        options,
        changes,
        unused=("start", "statistics"),
        recipe=Recipe(epochs=30, batch_size=32, learning_rate=0.1),
        restarts=3,
    )
    public = protected_model.public(model)
    directions = spectral_directions(public, rank)
    if data is None:
        return _blind(public, directions, test, rank, options.keep_model)
    mine = labelled.share(data, options.fraction, options.seed)
    result = along("spectral", public, directions, mine, test, options)
    return dataclasses.replace(
        result, knowledge={**result.knowledge, "rank": rank}
    )


def along(
    name: str,
    public: keras.Model,
    directions: dict,
    data: tuple,
    test: tuple,
    options: TrainingOptions,
    start: dict | None = None,
) -> AttackResult:
    """Looks for γ and β along public vectors; see `spectral`.

    Args:
        name: Of the attack.
        public: What is public of the model.
        directions: Dict from path to an orthonormal basis, as
            `spectral_directions` returns it.
        data: The inputs and labels that the attacker has.
        test: The judge's.
        options: With a recipe.
        start: Dict from path to γ and β. The first trial starts from what of
            them lies along the vectors, with a tenth of the learning rate, and
            with the published statistics where there are some.
    """
    seed = options.seed
    exact = start is not None and any(
        normalization.tells_channels_apart(layer.normalization)
        for layer in protected_layers(public).values()
        if isinstance(layer.normalization, keras.layers.BatchNormalization)
    )
    # Few pictures tell a sign, and all of them at once fill the memory.
    some = labelled.split(data, seed)[0]
    some = labelled.share(some, min(1.0, SIGNS / len(some[1])), seed)

    def trial(number):
        made = {}

        def make(attempt):
            rng = np.random.default_rng([seed, number, attempt])
            first = number == attempt == 0
            made[attempt] = _Spanned(
                *(public, directions),
                None if first else rng,
                start if first else None,
                statistics=not (first and exact),
            )
            made[attempt].choose_signs(some[0], labelled.classes_of(some[1]))
            return made[attempt]

        def about(attempt):
            first = number == attempt == 0
            begun = "first vector" if start is None else "given"
            return _told(made[attempt], begun if first else "random")

        recipe = options.recipe
        if start is not None and number == 0:
            slower = recipe.learning_rate / 10
            recipe = dataclasses.replace(recipe, learning_rate=slower)
        return training.Trial(
            about,
            make,
            recipe,
            # Another start is better than smaller steps.
            slower=1.0,
            keeps_start=start is not None and number == 0,
        )

    return training.run(
        name,
        [trial(number) for number in range(options.restarts)],
        data,
        test,
        seed=seed,
        knowledge={"labels": True, "images": len(data[1])},
        search=options.search,
        keep_model=options.keep_model,
        progress=options.progress,
    )


def _blind(public, directions, test, rank, keep_model):
    """What is left of the attack without data: its first guess."""
    began = time.monotonic()
    opened = _Spanned(public, directions)
    accuracy, entropy = training.judge(opened, test)
    return AttackResult(
        name="spectral",
        accuracies=(accuracy,),
        entropies=(entropy,),
        knowledge={"labels": False, "images": 0, "rank": rank},
        budget={"images": 0, "epochs": 0, "trials": 1},
        seconds=time.monotonic() - began,
        history=(_told(opened, "first vector"),),
        model=opened.plain() if keep_model else None,
    )


def _told(opened, start):
    return {"start": start, "parameters": plain(opened.parameters)}


def spectral_directions(model: keras.Model, rank: int = RANK) -> dict:
    """An orthonormal basis in which a trained kernel shows γ and β.

    It spans the first right singular vectors of the kernel, as a matrix
    (key elements, channels), and of its sum over the window, Σ_ij W: keys of
    images hardly vary over the window.

    Args:
        model: Protected model; what is public of it is used alone.
        rank: How many vectors of each.

    Returns:
        Dict from path to a float64 array `(vectors, channels)`, in order of
        the singular values, the kernel's first. It has no rows where a
        kernel's groups of channels have no number in common (depthwise):
        each then has a key of its own.

    Example:

    >>> basis = kp.attacks.spectral_directions(model)["conv1"]
    >>> gamma = basis[0] * np.sqrt(basis.shape[1])  # With |γ| of 1, or -γ.
    """
    check_counts(1, rank=rank)
    found = {}
    for path, layer in protected_layers(model).items():
        matrix = response_matrix(layer)
        if len(matrix) > 1:
            units = matrix.shape[0] * matrix.shape[2]
            found[path] = np.zeros((0, units))
            continue
        kernel = matrix[0]
        summed = kernel.reshape(
            -1, layer.geometry.key_shape[-1], kernel.shape[1]
        )
        vectors = np.concatenate(
            [
                np.linalg.svd(one, full_matrices=False)[2][:rank]
                for one in (kernel, summed.sum(axis=0))
            ]
        )
        basis = np.zeros((0, kernel.shape[1]))
        for vector in vectors:
            vector = vector - basis.T @ (basis @ vector)
            norm = np.linalg.norm(vector)
            if norm > 1e-3:
                basis = np.concatenate([basis, vector[None] / norm])
        found[path] = basis
    return found


class _Spanned(Opened):
    """An opened model with γ and β in the span of public vectors.

    Args:
        model: Protected model.
        directions: As `spectral_directions` returns them.
        rng: Draws the coordinates' start; `None` for γ along the first
            vector, with the sign by which most of it is positive, and β = 0.
        near: Dict from path to γ and β to start from, as near as they can be.
        statistics: As for `Opened`.
    """

    def __init__(self, model, directions, rng=None, near=None, statistics=True):
        super().__init__(model, statistics=statistics)
        for variable in self._parameters:
            variable.trainable = False
        self._coordinates = {}
        for path, layer in protected_layers(self.public).items():
            if isinstance(layer.normalization, keras.layers.BatchNormalization):
                # Few labels make few steps: averages must keep up.
                layer.normalization.momentum = 0.9
            basis = directions[path]
            # Of vectors whose elements have a mean square of 1.
            basis = (basis * np.sqrt(basis.shape[1])).astype("float32")
            for role in layer.function.roles if len(basis) else ():
                if near is not None:
                    value = near[path][("gamma", "beta").index(role)]
                    start = basis @ np.asarray(value) / basis.shape[1]
                elif rng is not None:
                    start = rng.normal(size=len(basis)) / np.sqrt(len(basis))
                else:
                    start = np.zeros(len(basis))
                    if role == "gamma":
                        start[0] = 1.0 if basis[0].sum() >= 0 else -1.0
                weight = self.add_weight(
                    shape=start.shape,
                    initializer=keras.initializers.Constant(0.0),
                    name=f"{path.replace('/', '_')}_{role}_coordinates",
                )
                weight.assign(start)
                self._coordinates[path, role] = weight, basis

    def choose_signs(self, x, y) -> None:
        """Negates a layer's γ or β wherever that makes the loss smaller.

        Args:
            x: Inputs, or a dict of them.
            y: Integer labels, `(examples,)`.
        """
        measure = keras.losses.SparseCategoricalCrossentropy(
            training.gives_logits(self, x)
        )

        def loss():
            return float(measure(y, self(x, training=True)))

        least = loss()
        for weight, _ in _SWEEPS * [*self._coordinates.values()]:
            weight.assign(-weight)
            now = loss()
            if now < least:
                least = now
            else:
                weight.assign(-weight)

    def _pairs(self):
        pairs = {}
        for path, pair in super()._pairs().items():
            pairs[path] = tuple(
                ops.matmul(*self._coordinates[path, role])
                if (path, role) in self._coordinates
                else own
                for role, own in zip(("gamma", "beta"), pair, strict=True)
            )
        return pairs
