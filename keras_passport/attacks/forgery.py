"""Forged keys: F is linear, so keys to known γ and β are solved for."""

import time
from collections.abc import Mapping

import keras
import numpy as np

from keras_passport.attacks import training
from keras_passport.attacks.result import AttackResult
from keras_passport.errors import PassportError
from keras_passport.layers import offsets, spaces
from keras_passport.layers.protected import function_of, protected_layers
from keras_passport.models import binding, protected_model, unlocking
from keras_passport.passports.derivation import derive
from keras_passport.passports.draws import order_of_rows
from keras_passport.passports.entries import ROLES, PassportEntry
from keras_passport.passports.passport import Passport


def key_forgery(
    model: keras.Model,
    test: tuple,
    *,
    parameters: dict,
    order_seeds: Mapping[str, bytes] | None = None,
    keep_model: bool = False,
) -> AttackResult:
    """Forges a passport for disclosed γ and β, and measures what it reaches.

    Whoever held a passport, or found γ and β otherwise, makes keys for them
    that no identity image was ever needed for: that a model works under a
    presented passport proves nothing.

    Args:
        model: Protected classifier with one output; what is public of it is
            used alone.
        test: The judge's inputs and labels, for the accuracy reported.
        parameters: As for `forge_passport`.
        order_seeds: As for `forge_passport`.
        keep_model: Whether the result holds the attacked model.

    Returns:
        An `AttackResult` with one trial. Its history is what `forge_passport`
        says of each linear system, by `layer` and `role`.

    Raises:
        PassportError: If the parameters don't fit the model.

    Example:

    >>> bound = kp.bind(model, passport)
    >>> disclosed = {
    ...     path: layer.hidden_parameters()
    ...     for path, layer in kp.protected_layers(bound).items()
    ... }
    >>> result = kp.attacks.key_forgery(bound, test, parameters=disclosed)
    """
    began = time.monotonic()
    public = protected_model.public(model)
    passport, systems = forge_passport(public, parameters, order_seeds)
    binding.bind(public, passport)
    accuracy, entropy = training.judge(public, test)
    return AttackResult(
        name="key forgery",
        accuracies=(accuracy,),
        entropies=(entropy,),
        knowledge={"labels": False, "images": 0, "parameters": "disclosed"},
        budget={"images": 0, "epochs": 0, "trials": 1},
        seconds=time.monotonic() - began,
        history=({"systems": systems},),
        model=unlocking.unlock(public, fold=False) if keep_model else None,
    )


def forge_passport(
    model: keras.Model,
    parameters: dict,
    order_seeds: Mapping[str, bytes] | None = None,
) -> tuple[Passport, tuple[dict, ...]]:
    """Solves Wᵀ κ' = γ for keys, and the same for β, layer by layer.

    Of all keys the shortest that comes closest, in float64. Where a kernel
    has as many rows as columns and no filter is dead, any γ is reached; where
    it has not, those that come from a passport still are, since one key
    solves them, and others as closely as there is.

    Args:
        model: Protected model; what is public of it is used alone.
        parameters: Dict from the path of every protected layer to a tuple of
            γ and β, float arrays `(channels,)`. What the passport function
            does not hide may be `None`, and is not used.
        order_seeds: Dict from path to the 32 bytes that the secret order of a
            layer's rows follows from, where they have one, as every passport
            of the network has them. Without, kernels are read in a wrong
            order, and γ and β are worth nothing.

    Returns:
        Tuple of the forged `Passport`, whose entries hold keys and no maps,
        and a tuple of dicts, one per linear system: `layer`, `role`, `rows`
        (numbers of a key), `columns`, `rank`, the `residual`
        |F(W, κ') - γ| / |γ| and the `norm` of the key.

    Raises:
        PassportError: If the parameters don't fit the model.

    Example:

    >>> bound = kp.bind(model, passport)
    >>> disclosed = {
    ...     path: layer.hidden_parameters()
    ...     for path, layer in kp.protected_layers(bound).items()
    ... }
    >>> forged, systems = kp.attacks.forge_passport(model, disclosed)
    >>> model = kp.bind(model, forged)
    >>> packed = forged.packed()  # (1, K), for a served model.

    Reference:

    - Fan, Ng, Chan: Digital Passport, Table 1: Avg(W * p) is linear in p, and
      so Wᵀ κ(p), κ being the mean patch that the kernel meets.
    """
    function = function_of(model)
    layers = protected_layers(model)
    if parameters.keys() != layers.keys():
        raise PassportError(
            f"Expected parameters for the protected layers {list(layers)}. "
            f"Received: {list(parameters)}"
        )
    entries, systems = {}, []
    for path, layer in layers.items():
        seed = (order_seeds or {}).get(path)
        order = None
        if layer.gathered:
            own = seed or derive(bytes(16), "order", path)
            order = order_of_rows(own, layer.geometry.orders)
        space = spaces.of_layer(layer, order)
        keys = {}
        for role in function.roles:
            wanted = parameters[path][ROLES.index(role)]
            if np.shape(wanted) != (space.units,):
                raise PassportError(
                    f"Expected {role} of layer '{path}' to have shape "
                    f"({space.units},). Received: shape={np.shape(wanted)}"
                )
            wanted = np.asarray(wanted, "float64") - offsets.of(layer, role)
            key = space.solve(wanted)
            gap = np.linalg.norm(space.response(key) - wanted)
            size = max(np.linalg.norm(wanted), np.finfo("float32").tiny)
            keys[f"{role}_key"] = key.astype("float32")
            systems.append(
                {
                    "layer": path,
                    "role": role,
                    "rows": key.size,
                    "columns": space.units,
                    "rank": space.rank,
                    "residual": float(gap / size),
                    "norm": float(np.linalg.norm(key)),
                }
            )
        entries[path] = PassportEntry(layer.geometry, order_seed=seed, **keys)
    passport = Passport("feature_maps", function, entries, bytes(16))
    return passport, tuple(systems)
