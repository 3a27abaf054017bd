"""Blocks in front of made-up hidden parameters: the ambiguity attack."""

import keras
from keras import ops

from keras_passport.attacks import reverse, training
from keras_passport.attacks.opened import Opened
from keras_passport.attacks.result import AttackResult

BLOCKS = ("IERB", "CERB")


def ambiguity(
    model: keras.Model,
    data: tuple,
    test: tuple,
    *,
    block: str = "IERB",
    expansion: int = 2,
    fraction: float = 1.0,
    start: str | dict = "fake",
    statistics: bool = True,
    recipe: training.Recipe | None = None,
    restarts: int = 1,
    seed: int = 0,
    keep_model: bool = False,
    progress: bool = False,
) -> AttackResult:
    """Trains blocks that turn substitute hidden parameters into working ones.

    A fake passport's γ and β stay as they are. Each goes through an expanded
    residual block of its own, h + fc(leaky_relu(fc(h))), and the blocks train
    while kernels stay as published: where γ and β alone are a few hundred
    variables, blocks have many more to train them by.

    Args:
        model: As for `reverse_engineering`.
        data: Likewise.
        test: Likewise.
        block: `"IERB"` (individual: each block sees its own h) or `"CERB"`
            (collective: it also sees what the block of the layer before made,
            at unit size).
        expansion: How many times wider a block is inside than the layer.
        fraction: As for `reverse_engineering`.
        start: Likewise, where h comes from.
        statistics: Likewise.
        recipe: Likewise; `Recipe(learning_rate=0.01)` if not given.
        restarts: Likewise.
        seed: Likewise.
        keep_model: Likewise.
        progress: Likewise.

    Returns:
        An `AttackResult`; the attacker's validation chooses the trial.

    Raises:
        ValueError: If an argument is out of range.
        PassportError: If the model is not protected.

    Example:

    >>> result = ambiguity(model, data, test, block="CERB", fraction=0.1)

    Reference:

    - Chen, Tian, Chen, Liu, Sun: Effective Ambiguity Attack Against
      Passport-based DNN Intellectual Property Protection Schemes through
      Fully Connected Layer Substitution, CVPR 2023, arXiv:2303.11595.
    """
    if block not in BLOCKS:
        raise ValueError(
            f"Expected block to be one of {BLOCKS}. Received: block={block!r}"
        )
    if expansion < 1:
        raise ValueError(
            f"Expected expansion of 1 or more. Received: expansion={expansion}"
        )
    opener = reverse.Opener(
        model,
        Blocks,
        inputs=data[0],
        chained=block == "CERB",
        expansion=expansion,
        seed=seed,
    )
    return reverse.restarted(
        f"ambiguity, {block}",
        opener,
        data,
        test,
        fraction=fraction,
        start=start,
        statistics=statistics,
        recipe=recipe or training.Recipe(learning_rate=0.01),
        restarts=restarts,
        seed=seed,
        keep_model=keep_model,
        progress=progress,
    )


class Blocks(Opened):
    """An `Opened` whose γ and β come out of trained blocks.

    Args:
        model: As for `Opened`.
        parameters: Likewise: what the blocks start from, and give at first.
        statistics: Likewise.
        chained: Whether a block also sees what the one before it made.
        expansion: Width inside of a block, in widths of the layer.
        seed: Of the blocks' first weights.
    """

    def __init__(
        self,
        model: keras.Model,
        parameters: dict | None = None,
        statistics: bool = False,
        chained: bool = False,
        expansion: int = 2,
        seed: int = 0,
    ):
        super().__init__(model, parameters, statistics=statistics, affine=False)
        self._chained = chained
        draws = keras.initializers.HeNormal(keras.random.SeedGenerator(seed))
        self._blocks = []
        before = [0, 0]
        for pair in super()._pairs().values():
            sizes = [value.shape[0] for value in pair]
            for size, more in zip(sizes, before, strict=True):
                expand = keras.layers.Dense(
                    expansion * size, "leaky_relu", kernel_initializer=draws
                )
                # So that it starts as h + 0.
                contract = keras.layers.Dense(size, kernel_initializer="zeros")
                expand.build((1, size + more))
                contract.build((1, expansion * size))
                self._blocks.append([expand, contract])
            before = sizes if chained else before

    def reset(self, model, parameters):
        super().reset(model, parameters)
        for dense in keras.tree.flatten(self._blocks):
            dense.kernel.assign(dense.kernel_initializer(dense.kernel.shape))
            dense.bias.assign(ops.zeros(dense.bias.shape))

    def _pairs(self):
        blocks = iter(self._blocks)
        pairs, before = {}, None
        for path, pair in super()._pairs().items():
            made = []
            for role, substitute in enumerate(pair):
                expand, contract = next(blocks)
                seen = ops.expand_dims(ops.convert_to_tensor(substitute), 0)
                inputs = seen
                if before is not None:
                    inputs = ops.concatenate([seen, before[role]], axis=1)
                made.append(seen + contract(expand(inputs)))
            pairs[path] = tuple(value[0] for value in made)
            if self._chained:
                before = [_at_unit_size(value) for value in made]
        return pairs


def _at_unit_size(values):
    return values * ops.rsqrt(ops.mean(ops.square(values)) + 1e-6)
