"""Keys of images for a trained model, and what is published to have them.

Keys that are solved for follow from no picture. A passport of pictures, which
says of itself whose it is, gives another F(W', p) than the γ and β of the
trained network; the difference is published, a number for each channel. It is
little worth where F is large: γ is one part in thirty of it.

What an attacker could do is project offsets onto what a kernel's columns have
in common, which no key changes. So there are as many keys to a role as it
takes for F to be large in every direction of the columns; elements have secret
signs, and a part of each key is noise: a picture leaves channels dead, and F
would be nothing there.
"""

import dataclasses
import math

import numpy as np

from keras_passport.errors import PassportError
from keras_passport.layers import filters, offsets
from keras_passport.layers.protected import protected_layers
from keras_passport.models import exact_keys, features
from keras_passport.passports.derivation import (
    PASSPORT,
    count_images,
    derive,
    images_hash,
)
from keras_passport.passports.draws import uniform, words
from keras_passport.passports.entries import ROLES, PassportEntry
from keras_passport.passports.geometry import digest
from keras_passport.secrecy import hidden

# F's root mean square, in that of γ or β.
RATIO = 30.0
# The noise's part in a key, in the root mean square of the picture's.
NOISE = 0.5
# What of its typical size a direction of a kernel's columns has at least.
EVEN = 0.3
# How much larger γ or β may be than they typically are: F is of their size, and
# in float32 nothing would be left of the others.
RANGE = 1e3
# Directions of keys agree up to a reference's last bits.
_AGREEMENT = 1e-2


def checked(model, images):
    """The images as `features.check_images` returns them: two at least."""
    images = features.check_images(model, images)
    if count_images(images) < len(ROLES):
        raise PassportError(
            "Expected at least 2 identity images, as γ and β take different "
            f"ones. Received: {count_images(images)}"
        )
    return images


def unscaled_keys(model, paths, images, reference, seed) -> dict:
    """Keys of pictures, up to their size, and what they have on average.

    Args:
        model: The protected model.
        paths: Dict from its paths to those that the seed knows.
        images: As `features.check_images` returns them: of two, each layer
            takes the first for γ, the second for β (T2); of more, which ones,
            follows from the seed (T3).
        reference: Network whose layers see them.
        seed: The passport's.

    Returns:
        Dict from path to dict from role to a tuple of float64 arrays
        `(groups, *filter_shape)`: keys, and the variances of their elements
        over the secrets.
    """
    layers = protected_layers(model)
    count, hashed = count_images(images), images_hash(images)
    chosen = {}
    for path, known in paths.items():
        groups = layers[path].geometry.key_groups
        labels = (PASSPORT, hashed, known, "images")
        order = np.argsort(words(derive(seed, *labels), count), kind="stable")
        picked = {
            "gamma": [order[g % count] for g in range(groups)],
            "beta": [order[(groups + g) % count] for g in range(groups)],
        }
        if count == len(ROLES):
            picked = {role: [at] * groups for at, role in enumerate(ROLES)}
        chosen[path] = {r: [int(i) for i in some] for r, some in picked.items()}

    def take(path, seen):
        geometry = layers[path].geometry.in_own_order()
        geometry = dataclasses.replace(geometry, key_groups=1)
        return hidden(digest(seen, geometry).astype("float64"))

    maps = features.layer_inputs(
        model,
        reference,
        images,
        {path: {*by["gamma"], *by["beta"]} for path, by in chosen.items()},
        take,
    )
    made = {}
    for path, by_role in chosen.items():
        made[path] = {}
        for role, some in by_role.items():
            keys = [
                _key(maps[path][i], seed, paths[path], role, str(group))
                for group, i in enumerate(some)
            ]
            made[path][role] = tuple(map(np.stack, zip(*keys, strict=True)))
    return made


def _key(seen, seed, *labels):
    """A digest with secret signs, and noise; and its elements' variances."""
    signs, noise = (
        uniform(derive(seed, PASSPORT, what, *labels), seen.shape)
        for what in ("signs", "noise")
    )
    size = NOISE * (np.sqrt(np.mean(seen**2)) or 1.0)
    signed = np.where(signs < 0, -seen, seen)
    # Uniform numbers in [-1, 1] have a variance of a third.
    key = signed + size * np.sqrt(3.0) * noise
    return hidden(key), hidden(seen**2 + size**2)


def entries(model, published, images, reference, seed) -> dict:
    """Keys of pictures, and offsets for what they do not give.

    Args:
        model: The protected model, whose layers have offsets.
        published: Dict from path to what has `wanted` (dict from role to γ or
            β, float64 `(channels,)`), `scales` and `ordered` of it.
        images: As for `unscaled_keys`.
        reference: As for `unscaled_keys`.
        seed: As for `unscaled_keys`.

    Returns:
        Dict from path to a tuple of the `PassportEntry`, 0.0, and the largest
        gap that float32 leaves, in parts of γ's or β's root mean square.

    Raises:
        PassportError: If some β are so far beyond all else that F, which is
            to be larger, would drown the others.
    """
    layers = protected_layers(model)
    for path, layer in layers.items():
        groups = _count_groups(filters.response_matrix(layer))
        layer.split_keys(groups, published[path].row_groups)
    keys = unscaled_keys(
        model, {path: path for path in layers}, images, reference, seed
    )
    made = {}
    for path, layer in layers.items():
        about = published[path]
        sizes = {role: _rms(value) for role, value in about.wanted.items()}
        _check_range(path, about.wanted)
        largest = max(sizes.values()) or 1.0
        matrix = filters.response_matrix(layer)
        parts, error = {}, 0.0
        for role, value in about.wanted.items():
            typical = sizes[role] or largest
            key, variances = keys[path][role]
            # Not as large as F has become: what F is then, is not known.
            squares = filters.responses(matrix**2, variances)
            factors = [
                RATIO * typical / np.sqrt(np.mean(square) or 1.0)
                for square in squares
            ]
            key = key * np.reshape(factors, (-1, *[1] * (key.ndim - 1)))
            key = key.astype("float32")
            response = filters.response(matrix, key)
            offsets.publish(layer, role, value - response)
            gap = value - offsets.of(layer, role) - response
            error = max(error, float(np.max(np.abs(gap)) / typical))
            parts[f"{role}_key"] = key.reshape(layer.geometry.key_shape)
        entry = PassportEntry(layer.geometry, scales=about.scales, **parts)
        made[path] = entry, 0.0, error
    return made


def _check_range(path, wanted):
    values = np.stack(list(wanted.values()), -1)[None]
    typical = exact_keys.typically(values, [role == "beta" for role in wanted])
    beyond = np.sqrt(np.mean(values**2, (0, 1))) / typical
    if np.max(beyond) > RANGE:
        raise PassportError(
            "Expected, for a passport of images, β of about the sizes of all "
            f"others. Received: layer '{path}', where some are more than "
            f"{RANGE:,.0f} times as large, as biases that switch classes off "
            "are. Protect without images, or leave the layer out (select=)"
        )


def _count_groups(matrix) -> int:
    """How many keys a role needs for F to be large in every direction.

    Of the columns of a trained kernel some may nearly cancel: those before a
    softmax add up to nothing, once they have the signs that γ gives them.
    There an offset would be γ itself. It follows from what is published alone.

    Args:
        matrix: The kernel, `(blocks, rows, columns)`.
    """
    _, rows, units = matrix.shape
    groups = min(units, math.ceil(units / rows))
    while groups < units and not all(
        _is_even(matrix[:, :, at::groups]) for at in range(groups)
    ):
        groups = min(units, 2 * groups)
    return groups


def _is_even(columns) -> bool:
    """Whether no direction of the columns is small beside the others."""
    grams = np.matmul(columns.transpose(0, 2, 1), columns)
    energies = np.linalg.eigvalsh(grams)
    return bool(np.all(energies[:, 0] >= EVEN**2 * np.mean(energies, 1)))


def _rms(values):
    return float(np.sqrt(np.mean(values**2)))


def check(passport, model, reference) -> None:
    """Makes a passport's keys anew of its pictures and its seed.

    Args:
        passport: Of kind `"offset_image"`, under the model's paths.
        model: The protected model.
        reference: Network that the pictures went through.

    Raises:
        PassportError: If they are others.
    """
    images = features.check_images(model, passport.images)
    paths = {p: entry.origin or p for p, entry in passport.layers.items()}
    keys = unscaled_keys(model, paths, images, reference, passport.seed)
    for path, entry in passport.layers.items():
        for role, (expected, _) in keys[path].items():
            received = entry.key(role).astype("float64").reshape(expected.shape)
            for one, other in zip(expected, received, strict=True):
                size = np.linalg.norm(one) * np.linalg.norm(other)
                if np.sum(one * other) < (1.0 - _AGREEMENT) * size:
                    raise PassportError(
                        f"Expected the key of {role} of layer '{path}' to be "
                        "made anew. Received: another one"
                    )
