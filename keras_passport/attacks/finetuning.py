"""Training more than γ and β: fine-tuning, and what it is measured against."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_passport import graph
from keras_passport.attacks import labelled, opened, reverse, training
from keras_passport.attacks.options import TrainingOptions
from keras_passport.attacks.recipe import Recipe
from keras_passport.attacks.result import AttackResult
from keras_passport.layers import normalization, row_order
from keras_passport.layers.passport_normalization import PassportNormalization
from keras_passport.layers.protected import protected_layers
from keras_passport.models import protected_model, protecting, unlocking

METHODS = ("FTLL", "FTAL", "RTLL", "RTAL")
# Options that say nothing to who brings γ, β and statistics of their own.
UNUSED = ("start", "statistics")


def fine_tuning(
    model: keras.Model,
    data: tuple,
    test: tuple,
    options: TrainingOptions | None = None,
    *,
    method: str = "FTAL",
    **changes: Any,
) -> AttackResult:
    """Trains the last layer or all layers, with γ and β that are made up.

    Args:
        model: As for `reverse_engineering`.
        data: The attacker's inputs and integer labels.
        test: The judge's inputs and labels, for the accuracy reported.
        options: As for `reverse_engineering`; the recipe is `Recipe()` if
            none is given. With `keep_model` the result also holds, as
            `public`, the protected model with the kernels of after the
            attack, for its owner to bind a passport to.
        method: Of the four that watermarks are tried by: `"FTLL"` trains the
            last layer alone (γ and β stay at the start), `"FTAL"` all layers,
            γ and β too; `"RTLL"` and `"RTAL"` give the last layer the weights
            of an untrained one first.
        **changes: Fields of `options` by name.

    Returns:
        An `AttackResult`; the attacker's validation chooses the trial.

    Raises:
        ValueError: If an argument is out of range.
        PassportError: If the model is not protected.

    Example:

    >>> result = kp.attacks.fine_tuning(
    ...     *(model, data, test),
    ...     recipe=kp.attacks.Recipe(epochs=1),
    ...     keep_model=True,
    ... )
    >>> tuned = kp.bind(result.public, passport)

    Reference:

    - Adi, Baum, Cisse, Pinkas, Keshet: Turning Your Weakness Into a Strength,
      USENIX Security 2018, arXiv:1802.04633.
    """
    if method not in METHODS:
        raise ValueError(
            f"Expected method to be one of {METHODS}. "
            f"Received: method={method!r}"
        )
    options = TrainingOptions.of(options, changes, recipe=Recipe())
    public = protected_model.public(model)
    path = _last(public)
    if method.startswith("RT"):
        fresh = _untrained(model, options.seed)
        graph.copy_state(_layer(fresh, path), _layer(public, path))
    every = method.endswith("AL")
    return reverse.restarted(
        f"fine-tuning, {method}",
        reverse.Opener(
            public,
            data=data,
            kernels=True if every else {path},
            affine=every,
        ),
        data,
        test,
        options,
    )


def from_scratch(
    model: keras.Model,
    data: tuple,
    test: tuple,
    options: TrainingOptions | None = None,
    **changes: Any,
) -> AttackResult:
    """Trains the architecture alone: what the data is worth without a theft.

    A stock Keras network, none of whose weights are the model's. Where kernel
    layers have no normalisation, though, attackers have a scale and shift for
    each of their filters, which is worth points by itself: there it is the
    published network, with kernels drawn anew in its filters' lengths, that
    trains as `fine_tuning`'s FTAL does.

    Args:
        model: Protected classifier, of which the architecture is used.
        data: The attacker's inputs and integer labels.
        test: The judge's inputs and labels, for the accuracy reported.
        options: As for `reverse_engineering`, but that neither `start` nor
            `statistics` mean anything here; the recipe is `Recipe()` if none
            is given.
        **changes: Fields of `options` by name.

    Returns:
        An `AttackResult`.

    Example:

    >>> recipe = kp.attacks.Recipe(epochs=1)
    >>> control = kp.attacks.from_scratch(
    ...     model, data, test, fraction=0.5, recipe=recipe
    ... )
    """
    options = TrainingOptions.of(
        options, changes, unused=UNUSED, recipe=Recipe()
    )
    if _has_bare(model):
        trials = _scaled(model, data, options)
    else:
        trials = _stock(
            "untrained", lambda *seed: _untrained(model, *seed), options
        )
    return _run("from scratch", trials, data, test, options)


def fresh_normalization(
    model: keras.Model,
    data: tuple,
    test: tuple,
    options: TrainingOptions | None = None,
    **changes: Any,
) -> AttackResult:
    """Fine-tunes the published kernels, with new batch normalisations.

    A stock Keras network of the public kernels, all of which trains: what the
    kernels are worth as a start, whatever they were protected by.

    Args:
        model: Protected classifier, of which the kernels are used.
        data: The attacker's inputs and integer labels.
        test: The judge's inputs and labels, for the accuracy reported.
        options: As for `from_scratch`.
        **changes: Fields of `options` by name.

    Returns:
        An `AttackResult`.

    Example:

    >>> recipe = kp.attacks.Recipe(epochs=1)
    >>> control = kp.attacks.fresh_normalization(
    ...     model, data, test, fraction=0.5, recipe=recipe
    ... )
    """
    options = TrainingOptions.of(
        options, changes, unused=UNUSED, recipe=Recipe()
    )
    public = protected_model.public(model)
    trials = _stock("published kernels", lambda *seed: public, options)
    return _run("fresh normalization", trials, data, test, options)


def _stock(start, source, options):
    """Trainings of stock networks of the kernels of `source(*seed)`."""
    made = []

    def make(number, attempt):
        public = source(options.seed, number, attempt)
        model = unlocking.with_parameters(
            public, opened.neutral(public), fold=False
        )
        for layer in model._flatten_layers():
            if isinstance(layer, normalization.SUPPORTED):
                for variable in layer.weights:
                    ones = variable.name in ("gamma", "moving_variance")
                    variable.assign(
                        (ops.ones if ones else ops.zeros)(variable.shape)
                    )
        graph.thaw(model)
        # The first one is trained again and again, so it is compiled once.
        if not made:
            made.append(model)
        made[0].set_weights(model.get_weights())
        return made[0]

    return [
        training.Trial(
            {"start": start},
            lambda attempt, number=number: make(number, attempt),
            options.recipe,
        )
        for number in range(options.restarts)
    ]


def _scaled(model, data, options):
    """FTAL of the published network with kernels of nobody's."""
    return [
        reverse.Opener(
            _of_its_sizes(model, options.seed, number), data=data, kernels=True
        ).trial(options.start, True, options.recipe, [options.seed, number])
        for number in range(options.restarts)
    ]


def _run(name, trials, data, test, options):
    mine = labelled.share(data, options.fraction, options.seed)
    return training.run(
        name,
        trials,
        mine,
        test,
        seed=options.seed,
        knowledge={"labels": True, "images": len(mine[1])},
        search=options.search,
        keep_model=options.keep_model,
        progress=options.progress,
    )


def _untrained(model, *seed):
    """The public model with weights that nobody else's seed gives."""
    own = int(np.random.default_rng([*seed, 0xF4E5]).integers(2**31))
    return protecting.reinitialize(protected_model.public(model), own)


def _of_its_sizes(model, *seed):
    """The same, but with filters as long as the published ones."""
    drawn = _untrained(model, *seed)
    theirs = protected_layers(protected_model.public(model))
    for path, layer in protected_layers(drawn).items():
        adapter = layer.adapter
        for kernel, published in zip(
            row_order.stored_kernels(adapter, layer.layer),
            row_order.stored_kernels(adapter, theirs[path].layer),
            strict=True,
        ):
            wanted, given = (
                _lengths(one, adapter.columns_axis)
                for one in (published, kernel)
            )
            factor = wanted / ops.maximum(given, 1e-12)
            kernel.assign(ops.multiply(kernel.value, factor))
    return drawn


def _lengths(kernel, columns_axis):
    axes = list(range(len(kernel.shape)))
    del axes[columns_axis]
    value = ops.cast(kernel.value, "float32")
    return ops.sqrt(ops.sum(value * value, axis=axes, keepdims=True))


def _has_bare(model) -> bool:
    """Whether it has kernels, but for the last, without a normalisation."""
    public = protected_model.public(model)
    last = _last(public)
    return any(
        layer.identity and path != last
        for path, layer in protected_layers(public).items()
    )


def _layers(model):
    """A model's layers by path, where a passport layer is one."""
    return dict(graph.walk(model, stop=(PassportNormalization,)))


def _layer(model, path):
    return _layers(model)[path]


def _last(model) -> str:
    """Path of the last layer with weights that are not a normalisation's."""
    return [
        path
        for path, layer in _layers(model).items()
        if layer.weights
        and not graph.is_model(layer)
        and not isinstance(layer, normalization.SUPPORTED)
    ][-1]
