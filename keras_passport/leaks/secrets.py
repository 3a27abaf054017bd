"""What of a passport is looked for: keys, what follows from them, and maps."""

import functools
import math

import numpy as np

from keras_passport.leaks import scaled_kernels
from keras_passport.leaks.searches import Map, Secret, key_parts
from keras_passport.passports import remaking, specs
from keras_passport.passports.derivation import image_arrays
from keras_passport.passports.entries import ROLES


def layers_of(models):
    """Path and layer of all protected layers of models."""
    if models:
        from keras_passport.layers.protected import protected_layers

    for model in models:
        yield from protected_layers(model).items()


def secrets_of(passport, models) -> list[Secret]:
    """What files must not hold of a passport, but for its maps and its seed.

    Args:
        passport: `Passport`.
        models: Protected models that it fits, whose kernels tell γ and β.
    """
    secrets = []

    def add(what, *of, parts=None):
        path, role, values = of
        # Of an ordinary type: what hides itself in messages is slower.
        values = np.asarray(values)
        secrets.append(Secret(what, path, role, values, parts))

    # The models may have other paths for the layers, and orders of rows.
    fitted = [passport.fitted(model) for model in models]
    moved = [
        one
        for one in fitted
        if any(
            entry.own_rows or entry.geometry.gathered
            for entry in one.layers.values()
        )
    ]
    if not moved:
        # Where nobody says that rows were hidden, a packed row may be lying
        # about that is for such a network of versions before; of today's it
        # has the passport's own keys.
        for one in remaking.with_hidden_rows(passport):
            for path, keys in one.keys().items():
                for role, key in keys.items():
                    what = "key for hidden rows"
                    add(what, path, role, key, parts=key_parts(key)[0])
            for path, order in specs.orders_of(one).items():
                ones = np.ones(order.size)
                add("order of rows", path, "order", order, parts=ones)
    for one in (passport, *moved):
        keys = one.keys()
        for path, entry in one.layers.items():
            if one is not passport and not entry.own_rows:
                continue  # The same keys, which meet other rows.
            for role, scaled in keys[path].items():
                key, channels = entry.key(role), entry.geometry.channels
                add("key", path, role, scaled, parts=key_parts(scaled)[0])
                if one is passport and not np.array_equal(key, scaled):
                    add("key before scaling", path, role, key)
                if scaled.size > channels:
                    mean = scaled.reshape(-1, channels).mean(0)
                    equal = np.ones(channels - 1)
                    add("key's mean", path, role, mean, parts=equal)
        for path, order in specs.orders_of(one).items():
            ones = np.ones(order.size)
            add("order of rows", path, "order", order, parts=ones)
    given = [key for one in fitted for key in one.keys().values()]
    rows = [row for one in fitted for row in one.rows().values()]
    for (path, layer), keys, row in zip(
        layers_of(models), given, rows, strict=True
    ):
        hidden = dict(zip(ROLES, layer.hidden_parameters(row), strict=True))
        hidden = {r: v for r, v in hidden.items() if v is not None}
        # Others follow from the same kernel, so they are alike.
        others = {
            role: _responses(layer, key_parts(keys[role])[1], row)
            for role in hidden
        }
        for role, value in hidden.items():
            parts = _variances(others[role])
            add("hidden parameter", path, role, value, parts=parts)
        for what, role, value, made in _folded(layer, hidden, others):
            parts = None if made is None else _variances(made)
            add(what, path, role, value, parts=parts)
    return secrets


def maps_of(passport, notes) -> list[Map]:
    """Feature maps, made anew where only their keys are kept, and images.

    Args:
        passport: `Passport`.
        notes: List that is told what can't be looked for.
    """
    maps, missing = [], False
    for path, entry in passport.layers.items():
        for role in passport.function.roles:
            value = getattr(entry, role)
            record = getattr(entry, f"{role}_record")
            if value is not None:
                size, make = value.size, functools.partial(np.asarray, value)
            elif record is not None and passport.kind == "random_pattern":
                size = math.prod(record.shape)
                make = functools.partial(remaking.drawn, passport, path, role)
            else:
                missing |= record is not None
                continue
            maps.append(Map("feature map", path, role, size, make))
    if missing:
        notes.append(
            "the passport's file holds keys and images instead of large "
            "feature maps: those maps themselves were not looked for"
        )
    for image in image_arrays(passport.images):
        make = functools.partial(np.asarray, image, "float32")
        maps.append(Map("identity image", "", "", np.size(image), make))
    return maps


def _responses(layer, keys, row):
    """What a layer's kernel makes of keys, as float64, its rows as in `row`."""
    import keras

    from keras_passport.layers import row_order, scopes

    with scopes.Substitution(row_order.met_by_keys(layer, row)):
        made = layer.adapter.response(layer.layer, keys)
    return keras.ops.convert_to_numpy(made).astype("float64")


def _variances(others):
    """Those of the independent parts of random vectors, greatest first."""
    others = others - others.mean(1, keepdims=True)
    wide = others.shape[0] < others.shape[1]
    gram = others @ others.T if wide else others.T @ others
    return np.maximum(0, np.linalg.eigvalsh(gram)[::-1])


def _folded(layer, hidden, others):
    """What `unlock` folds into a layer's kernel and bias.

    Yields:
        What, role, value, and what it would be with other keys, or None if a
        part of it is public, so that a correlation says nothing.
    """
    deviations = scaled_kernels.deviations_of(layer)
    if (
        deviations is None
        or deviations.shape != next(iter(hidden.values()), np.zeros(0)).shape
    ):
        return
    from keras_passport.layers.folding import scale_and_shift

    scale, shift = scale_and_shift(layer, **hidden)
    if "gamma" in hidden:
        made = others["gamma"] / deviations
        yield "folded scale", "gamma", scale.astype("float32"), made
    made = None
    if len(hidden) == 2:
        # What γ is multiplied by in it.
        _, by_gamma = scale_and_shift(layer, 1.0, 0.0)
        made = np.concatenate([by_gamma * others["gamma"], others["beta"]])
    role = "beta" if "beta" in hidden else "gamma"
    yield "folded bias", role, shift.astype("float32"), made
