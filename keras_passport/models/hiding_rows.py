"""`hide_rows`: a trained network's kernels in an order that only keys tell.

Trained filters are not symmetric: their shape tells four of five signs of γ
(`attacks.orientation`), and which channel meets which. Stored in a secret
order and with secret signs, rows tell neither. `protect_trained` stores them
so; here is the same for a network that was trained under its passport, whose
keys stay what they are: they meet rows as a call gathers them.
"""

import numbers

from keras_passport.errors import PassportError
from keras_passport.layers import row_order
from keras_passport.layers.protected import protected_layers
from keras_passport.models import compiling, forgetting
from keras_passport.models.binding import bind
from keras_passport.models.protected_model import ProtectedModel, public
from keras_passport.passports.draws import order_of_rows
from keras_passport.passports.passport import Passport, check_passport
from keras_passport.passports.specs import order_seed
from keras_passport.secrecy import hidden
from keras_passport.texts import shown


def hide_rows(
    model: ProtectedModel, passport: Passport, filters: int | None = None
) -> ProtectedModel:
    """Stores the rows of each kernel in a secret order, with secret signs.

    A row is what one element of a kernel's window does with one input
    channel, for a few filters. The order follows from the passport's seed, so
    the passport stays as it is: it fits the network before and after, and its
    feature maps still say whose it is. Outputs are the same. Each call gathers
    the rows, which costs a copy of all kernels, and one passport must serve
    all examples of a call. Trainings go on as they would have, but for what
    looks at a kernel's rows and columns together, as Adafactor does.

    Call it last: `hide_statistics` wants rows in their own order. Whoever has
    the network of before undoes it (`attacks.known_ancestor`): never publish
    that, nor two versions under one passport, whose difference tells most of
    the orders. Nor, after a short training, the weights that it began with, or
    their seed: see `reinitialize`.

    Args:
        model: Protected functional model, bound or not, whose rows are in
            their own order, such as `protect` returns, or `protect_trained`
            with `order=False`. It is left as it is.
        passport: Its `Passport`.
        filters: Most filters that have an order in common, where it would be
            four. One leaves of a filter nothing but its numbers, neither its
            angles with others nor, of two versions, a plane of the keys; then
            a packed passport has as many numbers as the kernels, which a call
            gathers one by one.

    Returns:
        A new model that is bound to the passport. Kernels with LoRA keep
        their rows.

    Raises:
        PassportError: If the model is not protected, the passport does not fit
            it, no layer has rows that could be hidden, or `filters` is no
            positive integer.

    Example:

    >>> hidden = kp.hide_rows(model, passport)
    >>> hidden.save("protected.keras")
    >>> passport.save("owner.h5")
    """
    passport = hidden(passport)
    check_passport(passport)
    whole = isinstance(filters, numbers.Integral) and filters is not True
    if filters is not None and not (whole and filters > 0):
        raise PassportError(
            "Expected filters to be a positive integer, or None. "
            f"Received: {shown(filters)}"
        )
    if getattr(model, "takes_passport", False):
        raise PassportError(
            "Expected the model that require_passport was given. "
            f"Received: '{model.name}' with the passport as an input"
        )
    copy = public(model)
    fitted = passport.fitted(copy)
    stored = []
    for path, layer in protected_layers(copy).items():
        if layer.ordered:
            raise PassportError(
                "Expected rows in their own order. Received: layer "
                f"'{path}', whose rows are in a secret one"
            )
        seed = order_seed(fitted, path)
        if _store(layer, seed, filters):
            stored.append(path)
    if not stored:
        raise PassportError(
            "Expected kernels without LoRA. Received: model "
            f"'{model.name}' without any"
        )
    for name in ("report", "solution", "calibration"):
        if hasattr(model, name):
            setattr(copy, name, getattr(model, name))
    forgetting.forget_seeds(copy)
    compiling.compile_like(model, copy)
    return bind(copy, passport)


def _store(layer, seed, filters) -> bool:
    """Stores a layer's rows in the orders of a seed, if it has any."""
    adapter, kernel_layer = layer.adapter, layer.layer
    groups = row_order.groups(
        adapter, kernel_layer, layer.inputs_shape, filters
    )
    # A geometry describes one kernel or two.
    if len(groups) not in (1, 2):
        return False
    if getattr(kernel_layer, "lora_enabled", False):
        return False
    rows = row_order.counts(adapter, kernel_layer)
    order = order_of_rows(seed, tuple(zip(rows, groups, strict=True)))
    before = row_order.penalties(kernel_layer)
    row_order.store(adapter, kernel_layer, order, groups)
    row_order.release(kernel_layer)
    row_order.release_penalties(kernel_layer, before)
    layer.split_keys(layer.key_groups, groups, gathered=True)
    return True
