"""Guessing images layer by layer: what each layer's statistics give away."""

import itertools
import time

import keras
import numpy as np
from keras import ops

from keras_passport.attacks import fitting, training
from keras_passport.attacks.fake import image_keys
from keras_passport.attacks.moments import Block, Flow
from keras_passport.attacks.opened import Opened, neutral
from keras_passport.attacks.result import AttackResult, packed, plain
from keras_passport.hints import Inputs
from keras_passport.layers import normalization, offsets
from keras_passport.layers.protected import function_of
from keras_passport.models import protected_model
from keras_passport.passports.derivation import (
    DEFAULT_KEY_SCALING,
    check_key_scaling,
    fake_seed,
    scale_keys,
)

# Pictures that all guesses are tried on; of how many the rest is tried.
FEW, KEPT = 32, 20
# Layers that meet in one addition are guessed in turn, so often.
SWEEPS = 3


def guess_images(
    model: keras.Model,
    images: Inputs,
    pictures: Inputs,
    test: tuple,
    *,
    reference: keras.Model,
    key_scaling: str = DEFAULT_KEY_SCALING,
    seed: int = 0,
    keep_model: bool = False,
    progress: bool = False,
) -> AttackResult:
    """Finds which of the owner's images each layer takes, one layer at a time.

    With N images and L layers there are (N(N - 1))^L passports, too many to
    try. But a published value that depends on one layer's secret alone can be
    tried by itself, N(N - 1) guesses a layer: run pictures up to that layer
    under each guess of its γ and β, and look at how well what is published
    comes out.

    * Published statistics: the mean and the variance of what the next layer's
      kernel makes of it.
    * Hidden ones (`hide_statistics`): γ' = γ σ / σ_n and β' = β - γ μ_n / σ_n
      do the normalisation's work, so that γ' u + β' has means near 0 and like
      variances for the right guess alone.

    No label is used. It needs the images, and the reference that the feature
    maps came from; neither is a secret by nature.

    Args:
        model: Protected functional classifier with one output; what is public
            of it is used alone.
        images: The owner's images, in the model's input domain, 2 or more.
        pictures: The attacker's unlabelled pictures, float array
            `(examples, ...)`, augmented as for the training.
        test: The judge's inputs and labels, for the accuracy reported.
        reference: Network that the passport's feature maps came from.
        key_scaling: The passport's; what of a key follows from its seed, the
            attacker makes up.
        seed: Of what is made up.
        keep_model: Whether the result holds the attacked model.
        progress: Whether to show a progress bar over the layers.

    Returns:
        An `AttackResult` with one trial. Its history has `"images"`: per
        layer, in the graph's order, the number of the image for each role;
        `"margins"`: per layer, by how many standard deviations of all guesses
        the best one is ahead of the second; and `"parameters"`, which
        `reverse_engineering` takes as its `start`.

    Raises:
        PassportError: If the model is not protected, has nested models, or
            calls a protected layer more than once, or images or reference
            don't fit it.

    Example:

    >>> found = kp.attacks.guess_images(
    ...     model, images[:3], images, test, reference=base
    ... )
    >>> len(found.history[0]["images"])
    2
    """
    began = time.monotonic()
    check_key_scaling(key_scaling)
    public = protected_model.public(model)
    roles = function_of(public).roles
    pool = image_keys(public, images, reference)
    flow = Flow(public)
    known = flow.inputs(pictures)
    few = {name: array[:FEW] for name, array in known.items()}
    parameters, chosen, margins = neutral(public), {}, {}
    bar = None
    if progress:
        bar = keras.utils.Progbar(len(flow.layers), unit_name="layer")
    for group, readers in flow.blocks():
        blocks = [_Guessed(flow, group, readers, some) for some in (few, known)]
        choices = {
            path: _guesses(
                flow.layers[path],
                pool[path],
                roles,
                key_scaling,
                fake_seed(seed, path),
                parameters[path],
            )
            for path in group
        }
        for path, best, margin in _ahead(blocks, choices, parameters):
            chosen[path], margins[path] = best, margin
        known.update(blocks[1].outputs(parameters))
        few = {name: array[:FEW] for name, array in known.items()}
        if bar:
            bar.add(len(group))
    opened = Opened(public, parameters)
    right, entropy = training.answers(opened, test)
    return AttackResult(
        name="guessed images",
        accuracies=(float(np.mean(right)),),
        entropies=(entropy,),
        knowledge={
            "labels": False,
            "images": len(keras.tree.flatten(pictures)[0]),
            "identity images": len(keras.tree.flatten(images)[0]),
            "key_scaling": key_scaling,
        },
        budget={
            "images": len(keras.tree.flatten(pictures)[0]),
            "epochs": 0,
            "trials": 1,
            "seed": seed,
        },
        seconds=time.monotonic() - began,
        history=(
            {
                "images": [chosen[path] for path in flow.layers],
                "margins": [margins[path] for path in flow.layers],
                "parameters": plain(parameters),
            },
        ),
        right=packed(right),
        model=opened.plain() if keep_model else None,
    )


def _guesses(layer, pool, roles, key_scaling, salt, own):
    """Pairs of images, with the γ and β that each would give a layer."""
    made = []
    for images in itertools.permutations(range(len(pool)), len(roles)):
        keys = dict(zip(roles, pool[list(images)], strict=True))
        keys = scale_keys(keys, key_scaling, salt)
        response = ops.convert_to_numpy(
            layer.adapter.response(layer.layer, np.stack([*keys.values()]))
        )
        found = {
            role: value + offsets.of(layer, role)
            for role, value in zip(roles, response, strict=True)
        }
        pair = (found.get("gamma", own[0]), found.get("beta", own[1]))
        made.append((list(images), pair))
    return made


def _ahead(blocks, choices, parameters):
    """The best guess of each layer of a group, into `parameters`.

    Yields path, images and by how much they are ahead. Layers that meet in
    one addition are judged together, so they are guessed in turn.
    """
    few, many = blocks
    found = {}
    for sweep in range(SWEEPS if len(choices) > 1 else 1):
        before = {path: images for path, (images, _) in found.items()}
        for path, guesses in choices.items():

            def cost(block, pair, path=path):
                return block.cost({**parameters, path: pair})

            costs = np.array([cost(few, pair) for _, pair in guesses])
            order = np.argsort(costs)
            leaders = sorted(
                (cost(many, guesses[number][1]), number)
                for number in order[:KEPT]
            )
            images, pair = guesses[leaders[0][1]]
            parameters[path] = pair
            ahead = leaders[1][0] - leaders[0][0] if len(leaders) > 1 else 0.0
            found[path] = images, float(ahead / max(np.std(costs), 1e-9))
        if sweep and all(before[path] == found[path][0] for path in choices):
            break
    for path, (images, margin) in found.items():
        yield path, images, margin


class _Guessed(Block):
    """Layers whose γ and β are guessed, judged by what is published.

    Args:
        flow: The model's `Flow`.
        group: Their paths.
        readers: Paths of layers that read what they, and known ones, make.
        known: Dict from tensors' ids to arrays over all pictures.
    """

    def __init__(self, flow, group, readers, known):
        super().__init__(flow, group, readers, known)
        self._own = [path for path in group if not _tells(flow.layers[path])]
        self._variances = {
            path: float(np.mean(_variance(flow.layers[path])))
            for path in self._own
            if _variance(flow.layers[path]) is not None
        }

    def _normalize(self, path):
        """By the published statistics: γ and β are meant for those."""
        layer = self._flow.layers[path]
        if _variance(layer) is None:
            return super()._normalize(path)
        output = layer.layer(self._flow.entering(path, self._known))
        for part in layer.between:
            output = part(output)
        output = layer.normalization(output, training=False)
        return ops.convert_to_numpy(ops.cast(output, "float32"))

    def cost(self, parameters) -> float:
        """How badly what is published comes out under γ and β."""
        total = 0.0
        known = {**self._known, **self.outputs(parameters)}
        for reader in self.readers:
            layer = self._flow.layers[reader.path]
            output = layer.layer(self._flow.entering(reader.path, known))
            mean, square = _moments(layer, output, reader.live)
            bias = getattr(layer.layer, "bias", None)
            if bias is not None:
                shift = ops.convert_to_numpy(bias)[reader.live]
                square = square - 2 * shift * mean + shift**2
                mean = mean - shift
            for error in fitting.misfit(reader, mean, square):
                total += np.mean(np.minimum(error**2, 1e4))
        for path in self._own:
            total += self._implausible(path, *parameters[path])
        return float(total)

    def _implausible(self, path, gamma, beta):
        """How unlike normalised ones a layer's own outputs are.

        Where statistics are hidden, means other than 0 and variances of all
        sizes say that γ and β are not those that make up for them.
        """
        values = self._normalized[path]
        axis = normalization.channel_axis(
            self._flow.layers[path].normalization, values.ndim
        )
        axes = tuple(i for i in range(values.ndim) if i != axis)
        size = np.abs(gamma) * np.std(values, axis=axes) + 1e-9
        mean = gamma * np.mean(values, axis=axes) + beta
        usual = np.sqrt(np.mean(size**2))
        spread = np.log(size)
        return float(
            np.mean((mean / usual) ** 2) / fitting.SPREAD[1] ** 2
            + np.var(spread) / fitting.SPREAD[0] ** 2
        )


def _variance(layer):
    """The published variances; `None` of what has none."""
    if not isinstance(layer.normalization, keras.layers.BatchNormalization):
        return None
    return ops.convert_to_numpy(layer.normalization.moving_variance)


def _tells(layer) -> bool:
    """Whether published statistics tell channels apart."""
    return _variance(layer) is not None and normalization.tells_channels_apart(
        layer.normalization
    )


def _moments(layer, output, live):
    """Mean and mean square of some channels of a kernel layer's outputs."""
    value = ops.convert_to_numpy(ops.cast(output, "float32"))
    axis = layer.adapter.channel_axis(layer.layer) % value.ndim
    value = np.moveaxis(value, axis, -1).reshape(-1, value.shape[axis])
    value = value[:, live].astype("float64")
    return value.mean(axis=0), np.square(value).mean(axis=0)
