"""How passports are made for a protected model: T1, T2, T3, or of your maps.

`Passport`'s class methods say what each kind is, and call these. Each takes
the class to make, and secrets that are hidden already.
"""

import functools
from collections.abc import Mapping

import numpy as np

from keras_passport import shapes
from keras_passport.errors import PassportError
from keras_passport.layers.protected import function_of, protected_layers
from keras_passport.models import features
from keras_passport.passports.derivation import (
    choices,
    count_images,
    derive,
    images_hash,
    secret_seed,
)
from keras_passport.passports.draws import uniform
from keras_passport.passports.entries import ROLES, PassportEntry
from keras_passport.passports.matching import check_paths
from keras_passport.secrecy import SecretDict, type_of
from keras_passport.texts import shown


def random_pattern(make, model, seed, key_scaling, spatial_size, domain):
    """See `Passport.random_pattern`."""
    seed = secret_seed(seed)
    function = function_of(model)
    sizes = features.input_shapes(model, spatial_size)
    entries = {
        path: PassportEntry(
            layer.geometry,
            **{
                role: uniform(derive(seed, domain, path, role), sizes[path])
                for role in function.roles
            },
        )
        for path, layer in protected_layers(model).items()
    }
    return make("random_pattern", function, entries, seed, key_scaling)


def fixed_image(make, model, images, reference, seed, key_scaling):
    """See `Passport.fixed_image`."""
    function = function_of(model)
    images = features.check_images(model, images)
    count, needed = count_images(images), len(function.roles)
    if count != needed:
        raise PassportError(
            f"Expected {needed} identity image{'s' * (needed > 1)} for a "
            f"fixed_image passport with {function.name}, one each for "
            f"{' and '.join(function.roles)}. Received: {count}"
        )

    def choose(path, roles):
        return {role: roles.index(role) for role in roles}

    entries = _of_images(model, images, reference, choose)
    seed = secret_seed(seed)
    return make("fixed_image", function, entries, seed, key_scaling, images)


def random_image(make, model, images, reference, seed, key_scaling, domain):
    """See `Passport.random_image`."""
    images = features.check_images(model, images)
    count = count_images(images)
    if count < 2:
        raise PassportError(
            "Expected at least 2 identity images for a random_image "
            f"passport. Received: {count}"
        )
    seed = secret_seed(seed)
    choose = functools.partial(
        choices, seed, domain, images_hash(images), count
    )
    function = function_of(model)
    entries = _of_images(model, images, reference, choose)
    return make("random_image", function, entries, seed, key_scaling, images)


def _of_images(model, images, reference, choose) -> dict:
    """Entries whose maps are what a reference's layers see of images.

    Args:
        model: Protected model.
        images: As `features.check_images` returns them.
        reference: Trained network of the same architecture.
        choose: Function of a path and its roles that returns a dict from role
            to the number of its image.
    """
    roles = function_of(model).roles
    layers = protected_layers(model)
    chosen = {path: choose(path, roles) for path in layers}
    maps = features.layer_inputs(
        model,
        reference,
        images,
        {path: set(numbers.values()) for path, numbers in chosen.items()},
    )
    entries = {}
    for path, layer in layers.items():
        parts = {}
        for role, index in chosen[path].items():
            parts[role] = maps[path][index]
            parts[f"{role}_image"] = index
        entries[path] = PassportEntry(layer.geometry, **parts)
    return entries


def from_feature_maps(make, model, maps, seed, key_scaling):
    """See `Passport.from_feature_maps`."""
    function = function_of(model)
    layers = protected_layers(model)
    if not isinstance(maps, Mapping) or isinstance(maps, SecretDict):
        raise PassportError(
            "Expected a dict from path to (gamma, beta), for the model's "
            f"{len(layers)} protected layers. "
            f"Received: a {type_of(maps)}"
            f"{' with other names' * isinstance(maps, dict)}"
        )
    check_paths(layers, maps)
    expected = features.map_shapes(model)
    entries = {}
    for path, layer in layers.items():
        pair = maps[path]
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise PassportError(
                f"Expected a tuple (gamma, beta) for layer "
                f"'{shown(path)}'. Received: a {type_of(pair)}"
            )
        gamma, beta = (
            _feature_map(path, role, expected[path][1:], value)
            for role, value in zip(ROLES, pair, strict=True)
        )
        entries[path] = PassportEntry(layer.geometry, gamma, beta)
    seed = secret_seed(seed)
    return make("feature_maps", function, entries, seed, key_scaling)


def _feature_map(path, role, expected, value) -> np.ndarray | None:
    """The float32 array of a map that somebody brings; `None` stays."""
    if value is None:
        return None
    # NumPy's own message has the values.
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiub":
        raise PassportError(
            f"Expected {role} of layer '{shown(path)}' to be an array of "
            f"numbers. Received: a {type_of(value)}"
        )
    if not shapes.fits(expected, value.shape):
        raise PassportError(
            f"Expected {role} of layer '{shown(path)}' to have the shape of "
            f"the layer's input, {expected}. Received: shape={value.shape}"
        )
    return value.astype("float32")
