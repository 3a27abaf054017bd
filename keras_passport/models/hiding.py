"""Published statistics that say nothing: their part moves into γ and β."""

import warnings
from collections.abc import Iterable

import keras
import numpy as np

from keras_passport.errors import PassportError
from keras_passport.hints import Inputs
from keras_passport.layers import estimating, folding, normalization
from keras_passport.layers.protected import protected_layers
from keras_passport.models import binding

# A kernel that changes has other statistics, which ask for another change: how
# often, up to which change, and by what part of the gap at least and at most.
_ROUNDS = 20
_SETTLED = 1e-3
_PACE = (0.3, 3.0)


def hide_statistics(
    model: keras.Model, batches: Iterable[Inputs]
) -> keras.Model:
    """Takes what moving statistics tell of γ and β out of a trained model.

    The mean μ_n and variance σ²_n that a layer publishes are functions of γ
    and β of the layers before it; `attacks.statistics_matching` solves for
    them. Afterwards every layer publishes mean 0 and one variance σ² for all
    its channels, and its hidden parameters do the rest:

        γ' = γ σ / σ_n,  β' = β - γ μ_n / σ_n

    They follow from kernel and passport as before: kernels change as little
    as possible, along the keys. What the network computes is the same but for
    that change, whose own effect on the statistics is made up for.

    The change tells the keys to whoever has both versions
    (`attacks.difference`): never publish the model of before.

    Call it when the training is done: from now on statistics are frozen, and
    without those of the batch a training diverges with a learning rate that
    was fine before; a thirtieth of it was. Leave the model's `trainable` as it
    is, and compile models around this one again: they have traced what it was.
    Whoever estimates the statistics of a published network anew makes the
    valid passport fail; its owner can set them back.

    Args:
        model: Bound protected model whose training is done, with function V3
            or V2 (V1 publishes β, and a mean can't hide there). Passport
            layers with layer or group normalisation have no statistics and
            stay as they are; so do normalisations that are not protected.
        batches: Iterable of inputs as the model was trained on, augmented
            likewise, each with as many examples; 2,000 pictures together were
            as good as 6,000.

    Returns:
        The model itself.

    Raises:
        PassportRequiredError: If no passport is bound.
        PassportError: If a layer's function is V1, its rows are in a secret
            order (its statistics are hidden), or a layer with statistics
            has no kernel that can be changed (frozen, or with LoRA). The
            model is then left as it was.
        ValueError: If there are no batches, or one is not what the model
            takes, or makes NaN or infinity of a statistic. The model then
            computes what it did.

    Example:

    >>> model = kp.calibrate(kp.bind(model, passport))
    >>> model = kp.hide_statistics(model, np.array_split(images, 4))
    >>> model.save("protected.keras")
    """
    layers = {
        path: layer
        for path, layer in protected_layers(model).items()
        if isinstance(layer.normalization, keras.layers.BatchNormalization)
    }
    for path, layer in layers.items():
        if not layer.function.hides_beta:
            raise PassportError(
                "Expected a function that hides β, as V2 and V3 do: the means "
                f"go there. Received: layer '{path}' with function "
                f"{layer.function.name}"
            )
        if layer.ordered:
            raise PassportError(
                "Expected kernels whose rows are in their own order. Received: "
                f"layer '{path}' of `protect_trained`, which hid "
                "its statistics"
            )
        if layer.adapter.solvable(layer.layer) is None:
            raise PassportError(
                "Expected layers with one trainable kernel. Received: layer "
                f"'{path}', {type(layer.layer).__name__}, "
                f"trainable={layer.layer.trainable}. With "
                "keras_passport.protect(model, select=...) a layer is left out"
            )
    before = {
        path: folding.gamma_and_beta(
            layer, *layer.hidden_parameters(), neutral=True
        )
        for path, layer in protected_layers(model).items()
    }
    batches = list(estimating.checked_batches(model, batches))
    for layer in layers.values():
        layer.fold_bias()
    steps = {path: _Step(layer) for path, layer in layers.items()}
    estimator = estimating.Estimator(model)
    for _ in range(_ROUNDS):
        with binding.assumed(model, before):
            estimator.estimate(batches)
        hidden = {
            path: _absorbed(layer, *before[path])
            for path, layer in layers.items()
        }
        gaps = [steps[path].towards(*hidden[path][:2]) for path in layers]
        if max(gaps, default=0.0) < _SETTLED:
            break
    else:
        warnings.warn(
            f"After {_ROUNDS} rounds γ and β still miss what they should be "
            f"by up to {max(gaps):.2g}: train the model on, or give it more "
            "pictures.",
            stacklevel=2,
        )
    for path, layer in layers.items():
        gamma, _, variance = hidden[path]
        if layer.gamma is not None:
            layer.gamma.assign(gamma)
        publish_statistics(layer, variance)
    binding.forget_compiled(model)
    return model


class _Step:
    """Changes a layer's kernel until its γ and β are what they should be.

    What they should be depends on the kernel: by the secant through its last
    two gaps, each channel goes as far as closes the gap.
    """

    def __init__(self, layer):
        self._layer = layer
        self._gap = None

    def towards(self, gamma, beta):
        """One change; returns the largest gap that there was."""
        roles = self._layer.function.roles
        wanted = {"gamma": gamma, "beta": beta}
        hidden = self._layer.hidden_parameters()
        hidden = np.stack([value for value in hidden if value is not None])
        gap = np.stack([wanted[role] for role in roles]) - hidden
        pace = np.ones(gap.shape)
        if self._gap is not None:
            closed = self._gap - gap
            moving = np.abs(closed) > 1e-6
            np.divide(self._pace * self._gap, closed, out=pace, where=moving)
            pace = np.clip(pace, *_PACE)
        self._gap, self._pace = gap, pace
        values = dict(zip(roles, hidden + pace * gap, strict=True))
        self._layer.set_hidden_parameters(**values)
        return float(np.max(np.abs(gap)))


def publish_statistics(layer, variance=1.0):
    """Gives a layer's statistics values that stay, also once it is loaded.

    Args:
        layer: `PassportNormalization` with a batch normalisation.
        variance: Of all its channels; their mean is 0.
    """
    statistics = layer.normalization
    mean = statistics.moving_mean
    mean.assign(np.zeros(mean.shape))
    statistics.moving_variance.assign(np.full(mean.shape, variance))
    statistics.trainable = False


def _absorbed(layer, gamma, beta):
    """γ and β that do a normalisation's work too, and the variance left."""
    mean, deviation = normalization.statistics_of(layer.normalization)
    left = np.exp(np.mean(np.log(deviation)))
    return (
        gamma * left / deviation,
        beta - gamma * mean / deviation,
        left**2 - layer.normalization.epsilon,
    )
