"""IERB and CERB: perceptrons in front of made-up γ, the ambiguity attack."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_passport.attacks import reverse
from keras_passport.attacks.opened import Opened
from keras_passport.attacks.options import TrainingOptions
from keras_passport.attacks.recipe import Recipe
from keras_passport.attacks.result import AttackResult

BLOCKS = ("IERB", "CERB")
# What one scalar's perceptron is wide inside, and by how much a layer's
# perceptron is narrower inside than the layer.
INSIDE, NARROWER = 10, 8
SLOPE = 0.01


def ambiguity(
    model: keras.Model,
    data: tuple,
    test: tuple,
    options: TrainingOptions | None = None,
    *,
    block: str = "CERB",
    **changes: Any,
) -> AttackResult:
    """Trains γ through perceptrons, and β as it is, with kernels as published.

    γ goes through a block with a shortcut before it scales,

        γ' = γ + W₂ leaky_relu(W₁ γ + b₁) + b₂,

    and γ, β and the block are trained. By the paper, two layers are best
    (three to five are 5 to 8 points worse) and the activation hardly matters.
    It reports, for a ResNet-18 with 18 passport layers and a tenth of
    CIFAR-10, 92.11 % with CERB and 83.92 % with IERB, of 94.81 %; for an
    AlexNet with 5, on 10 to 2 %, 88.2 to 84.2 % with CERB where training γ
    and β alone reaches 83.6 to 64.8 %, of 90.2 %.

    Args:
        model: As for `reverse_engineering`.
        data: The attacker's inputs and integer labels.
        test: The judge's inputs and labels, for the accuracy reported.
        options: As for `reverse_engineering`; the recipe is
            `Recipe(learning_rate=0.01)` if none is given.
        block: `"CERB"` (collective: one perceptron C -> C/8 -> C per layer,
            over all of its γ) or `"IERB"` (individual: a perceptron
            1 -> 10 -> 1 for each scalar).
        **changes: Fields of `options` by name.

    Returns:
        An `AttackResult`; the attacker's validation chooses the trial.

    Raises:
        ValueError: If an argument is out of range.
        PassportError: If the model is not protected.

    Example:

    >>> recipe = kp.attacks.Recipe(epochs=1)
    >>> result = kp.attacks.ambiguity(
    ...     model, data, test, block="CERB", fraction=0.5, recipe=recipe
    ... )
    >>> 0 <= result.accuracy <= 1
    True

    Reference:

    - Chen, Tian, Chen, Zhou: Effective Ambiguity Attack Against
      Passport-based DNN Intellectual Property Protection Schemes through
      Fully Connected Layer Substitution, CVPR 2023, arXiv:2303.11595.
    """
    if block not in BLOCKS:
        raise ValueError(
            f"Expected block to be one of {BLOCKS}. Received: block={block!r}"
        )
    options = TrainingOptions.of(
        options, changes, recipe=Recipe(learning_rate=0.01)
    )
    return reverse.restarted(
        f"ambiguity, {block}",
        reverse.Opener(
            model,
            Blocks,
            data=data,
            block=block,
            seed=options.seed,
        ),
        data,
        test,
        options,
    )


class Blocks(Opened):
    """An `Opened` whose γ come out of trained blocks.

    The blocks' last layers start at 0, so that it starts from `parameters`.

    Args:
        model: As for `Opened`.
        parameters: What γ and β start from, as for `Opened`.
        statistics: As for `Opened`.
        block: One of `BLOCKS`.
        seed: Of the blocks' first weights.
    """

    def __init__(
        self,
        model: keras.Model,
        parameters: dict | None = None,
        statistics: bool = False,
        block: str = "CERB",
        seed: int = 0,
    ):
        super().__init__(model, parameters, statistics=statistics)
        self._seed = seed
        self._block = {}
        for path, (gamma, _) in super()._pairs().items():
            channels = gamma.shape[0]
            if block == "IERB":
                inside = (channels, INSIDE)
                shapes = inside, inside, inside, (channels,)
            else:
                width = max(1, channels // NARROWER)
                shapes = (
                    (channels, width),
                    (width,),
                    (width, channels),
                    (channels,),
                )
            self._block[path] = [
                self.add_weight(
                    shape=shape,
                    initializer="zeros",
                    name=f"{path.replace('/', '_')}_block_{number}",
                )
                for number, shape in enumerate(shapes)
            ]
        self._apply = _individual if block == "IERB" else _collective
        self._fan_in = 1 if block == "IERB" else None
        self._start_blocks()

    def reset(self, model, parameters):
        super().reset(model, parameters)
        self._start_blocks()

    def _start_blocks(self):
        """He's weights in the first layers, zeros everywhere else."""
        rng = np.random.default_rng(self._seed)
        for first, *rest in self._block.values():
            fan_in = self._fan_in or first.shape[0]
            scale = np.sqrt(2 / fan_in)
            first.assign(rng.normal(scale=scale, size=first.shape))
            for weight in rest:
                weight.assign(np.zeros(weight.shape))

    def _pairs(self):
        return {
            path: (gamma + self._apply(gamma, *self._block[path]), beta)
            for path, (gamma, beta) in super()._pairs().items()
        }


def _individual(gamma, expand, bias, contract, shift):
    inner = ops.expand_dims(gamma, 1) * expand + bias
    inner = ops.leaky_relu(inner, SLOPE)
    return ops.sum(inner * contract, axis=1) + shift


def _collective(gamma, contract, bias, expand, shift):
    inner = ops.matmul(ops.expand_dims(gamma, 0), contract) + bias
    inner = ops.leaky_relu(inner, SLOPE)
    return ops.matmul(inner, expand)[0] + shift
