"""`protect_trained`: a trained model under a passport, without training.

For filter c of a layer, the network computes a_c u_c + b_c, where u is the
kernel's output and a, b are what the normalisation does at inference, with its
statistics. For any sign f_c and size r_c > 0, the filter f_c r_c W_c with
a_c f_c / r_c and the same b_c is the same function. So W' = f r W is what is
published, normalised by the identity; a' and b come from the passport, whose
keys are solved for: W'ᵀ κ = a' and W'ᵀ κ = b.
"""

import dataclasses
import math
from collections.abc import Callable

import keras
import numpy as np

from keras_passport import graph
from keras_passport.errors import PassportError
from keras_passport.hints import Inputs, Model
from keras_passport.layers import filters, kernels, offsets, row_order
from keras_passport.layers.channel_scale import ChannelScale
from keras_passport.layers.kernel_adapter import numpy_of
from keras_passport.layers.protected import protected_layers
from keras_passport.models import (
    compiling,
    exact_images,
    exact_keys,
    exact_sites,
    forgetting,
    protecting,
)
from keras_passport.models.binding import bind
from keras_passport.models.hiding import publish_statistics
from keras_passport.models.protected_model import ProtectedModel
from keras_passport.models.sites import Selection
from keras_passport.passports import draws, functions
from keras_passport.passports.derivation import (
    PASSPORT,
    checked_signs,
    derive,
    generator,
    secret_seed,
)
from keras_passport.passports.entries import PassportEntry
from keras_passport.passports.passport import Passport
from keras_passport.secrecy import hidden

# Norm of every published filter: He's initialisation has it, whatever the
# fan-in.
_NORM = np.sqrt(2.0)
# A filter of a smaller one is dead.
_DEAD = 1e-30
# Elements of a kernel that are taken in float64 at a time.
_PIECE = 2**17
# How many last digits of a number in float64 are blurred.
_DIGITS = 64.0


@dataclasses.dataclass(frozen=True)
class SolvedLayer:
    """How exactly one layer's keys give what the original has.

    Args:
        path: The layer's path.
        groups: Number of keys that γ and β have each; see `key_groups`.
        dead: Number of filters that were zero, and are random now, with γ = 0.
        residual: Largest gap between F(W', p) and the γ or β that is wanted,
            as solved in float64, in parts of the layer's typical value.
        error: The same once keys are rounded to float32.
    """

    path: str
    groups: int
    dead: int
    residual: float
    error: float


def protect_trained(
    model: keras.Model,
    select: Selection = None,
    sizes: bool = True,
    seed: bytes | int | None = None,
    signs: Callable[[str, int], np.ndarray] | None = None,
    order: bool = True,
    images: Inputs = None,
    reference: Model = None,
) -> tuple[ProtectedModel, Passport]:
    """Protects a trained model: no training, no data, the same outputs.

    Filters are negated at random and made equal in size, what normalisations
    do moves into γ and β, and a passport is solved for that gives these.
    Kernel layers without a normalisation get a passport layer too, whose
    normalisation is the identity. Outputs are the same, the loss need not be:
    penalties on kernels (`kernel_regularizer`) stay and see the published
    ones, of other sizes; those on γ and β, which are no variables any more,
    are gone, and biases are zero.

    What this hides is which sign and size each filter has, its shape, and all
    of its scale and shift. Who fine-tunes the published kernels is left with
    little more than who trains from scratch, unless it was trained shortly
    from weights that they can draw (see `reinitialize`). Without an order,
    the signs of a classifier stay visible, whose filters add up to nothing
    before a softmax. Normalisations that do not directly follow a kernel, and
    those that mix channels, get a passport layer of their own, which hides
    their scale and shift.

    Args:
        model: Functional or built Sequential model, trained, with nested ones
            or without. It is left as it is.
        select: Which kernel layers to protect; see `protect`. Defaults to
            all.
        sizes: Whether filters are made equal in size. With `False` signs
            alone change, and `unlock(fold=False)` gives kernels back bit for
            bit; but sizes tell of scales, and keys are more.
        seed: Secret from which signs and keys are drawn; see
            `Passport.random_pattern`.
        signs: Function from a layer's path and number of channels to 1 and
            -1, `(channels,)`: the signs that γ is to have, such as an
            `ownership.Signature`. Defaults to ones that follow from the seed.
        order: Whether the rows of each kernel, what each element of its
            window does with each input channel, are stored in a secret order
            and with secret signs, too: an order of their own for every few
            filters, of which first weights hardly tell where they are. That
            hides the filters' shape, which otherwise tells most signs
            (`attacks.orientation`), and which channel meets which; each call
            gathers the rows, which nearly doubles the time of single
            examples on CPUs, and one passport must serve all examples of a
            call. With `False` each example may come with its own.
        images: Identity images in the model's own input domain, float `(n,
            height, width, channels)`, or a dict for several inputs: keys are
            made of them then, as a proof of whose they are, and γ and β are
            F(W, p) and a public offset. Of two, each layer takes the first
            for γ and the second for β (T2); of more, the seed says which
            (T3). Whoever trains a copy on changes F, which is thirty times γ:
            under such a passport it is lost sooner.
        reference: Trained network whose layers see the images. Defaults to
            the model itself.

    Returns:
        Tuple of the `ProtectedModel` and its `Passport`, which is bound to
        it. The model's `report` says what was done with each layer, and its
        `solution`, a tuple of `SolvedLayer`, how exactly. Its statistics are
        frozen. If the source was compiled, so is it.

    Raises:
        PassportError: If the model is protected already, or not finite, has no
            graph, nothing in it can be protected, or `select` names a layer
            that can't be.
        ValueError: If it is no built model of Keras 3, or `signs` are none.

    Example:

    >>> protected, passport = kp.protect_trained(base)
    >>> np.allclose(protected(images), base(images), atol=1e-5)
    True
    >>> protected.save("protected.keras")
    >>> passport.save("owner_of_protected.h5")
    """
    seed = secret_seed(hidden(seed))
    protecting.check_source(model)
    if protected_layers(model):
        raise PassportError(
            "Expected a model without passport layers: what is protected "
            "already has no scale and shift to solve for. Received: model "
            f"'{model.name}', protected"
        )
    plan = exact_sites.ExactPlan(model, select)
    if not plan.report.protected:
        raise PassportError(
            "Expected a model with kernel layers (Dense, or a convolution of "
            f"any kind). Received: model '{model.name}' with nothing to "
            f"protect\n{plan.report}"
        )
    images, reference = hidden(images), hidden(reference)
    rewrite = _Solving(plan, images is not None)
    protected = graph.rebuild(model, rewrite, ProtectedModel)
    if images is not None:
        images = exact_images.checked(protected, images)
    sites = {id(rewrite.made[key][1]): site for key, site in plan.sites.items()}
    published = {
        path: _publish(path, sites[id(layer)], layer, seed, sizes, signs, order)
        for path, layer in protected_layers(protected).items()
    }
    if images is None:
        kind, solved = "solved", _solved(protected, published, seed)
    else:
        kind = "offset_image"
        source = model if reference is None else reference
        solved = exact_images.entries(
            protected, published, images, source, seed
        )
    protected.report = plan.report
    protected.solution = tuple(
        SolvedLayer(
            path,
            entry.geometry.key_groups,
            int(published[path].dead.sum()),
            residual,
            error,
        )
        for path, (entry, residual, error) in solved.items()
    )
    passport = Passport(
        kind,
        "V3",
        {path: entry for path, (entry, *_) in solved.items()},
        seed,
        images=images,
    )
    if order:
        forgetting.forget_seeds(protected)
    compiling.compile_like(model, protected)
    return bind(protected, passport), passport


class _Solving(protecting.Protecting):
    """Leaves a normalisation's scale, shift and statistics to the keys.

    Args:
        plan: `ExactPlan` of the model.
        have_offsets: Whether all layers do, not only those in float64.
    """

    def __init__(self, plan, have_offsets):
        super().__init__(plan, functions.get("V3"))
        self._have_offsets = have_offsets

    def options(self, kernel):
        return {"offsets": self._have_offsets or _is_double(kernel)}

    def take_over(self, site, wrapper):
        pass


@dataclasses.dataclass(frozen=True, repr=False)
class _Published:
    """A layer whose kernel is published, and what its keys are to give.

    Args:
        wanted: Dict from role to γ or β, float64 `(channels,)`.
        scales: What filters were multiplied by, float32 `(channels,)`; `None`
            where there are none.
        dead: Which of them were dead, bool `(channels,)`.
        row_groups: Orders that each kernel's rows have now; see `row_order`.
    """

    wanted: dict
    scales: np.ndarray | None
    dead: np.ndarray
    row_groups: tuple[int, ...]


def _publish(path, site, target, seed, sizes, signs, order) -> _Published:
    """Publishes a layer's kernel."""
    adapter, layer = target.adapter, target.layer
    scale, shift = map(hidden, exact_sites.affine(site, adapter.units(layer)))
    if not (np.all(np.isfinite(scale)) and np.all(np.isfinite(shift))):
        raise PassportError(
            f"Expected a model of finite numbers. Received: layer '{path}' "
            "with NaN or infinity"
        )
    if site.normalization is None:
        target.identity = True
    width = 1.0
    if isinstance(target.normalization, keras.layers.BatchNormalization):
        publish_statistics(target)
        width = np.sqrt(1.0 + target.normalization.epsilon)
    if getattr(layer, "bias", None) is not None:
        layer.bias.assign(np.zeros(layer.bias.shape))
    dead = np.zeros(scale.shape, bool)
    if isinstance(layer, ChannelScale):
        scales, layer.trainable = None, width > 1.0 and layer.trainable
    else:
        flips = draws.signs(derive(seed, PASSPORT, path, "signs"), scale.size)
        if signs is not None:
            flips = checked_signs(signs, path, scale.size)
            flips = np.where(scale < 0, -flips, flips)
        noise = generator(derive(seed, PASSPORT, path, "noise"))
        scales, dead = _publish_kernel(target, flips, sizes, noise)
        row_order.release(layer)
        scale = np.where(dead, 0.0, scale / scales)
    row_groups = ()
    if order:
        secret = derive(seed, "order", path)
        row_groups = _store_in_order(target, secret)
    wanted = {"gamma": scale * width, "beta": shift}
    return _Published(wanted, scales, dead, row_groups)


def _solved(model, published, seed) -> dict:
    """Solves for keys: per path an entry, the residual and the error."""
    solved = {}
    for path, layer in protected_layers(model).items():
        about, adapter = published[path], layer.adapter
        matrix = adapter.matrix(layer.layer)
        solution = exact_keys.solve(
            matrix,
            {
                role: value.reshape(len(matrix), -1)
                for role, value in about.wanted.items()
            },
            generator(derive(seed, PASSPORT, path, "keys")),
            np.random.default_rng(0),
        )
        layer.split_keys(solution.groups, about.row_groups)
        keys = {
            f"{role}_key": adapter.keys_of(layer.layer, rows).reshape(
                layer.geometry.key_shape
            )
            for role, rows in solution.keys.items()
        }
        if layer.offsets:
            _publish_rest(layer, about.wanted, keys)
        entry = PassportEntry(layer.geometry, scales=about.scales, **keys)
        solved[path] = entry, solution.residual, solution.error
    return solved


def _publish_rest(layer, wanted, keys):
    """Publishes what keys in float32 lack of γ and β in float64."""
    matrix = filters.response_matrix(layer)
    for role, value in wanted.items():
        key = keys[f"{role}_key"].reshape(-1, *layer.geometry.filter_shape)
        offsets.publish(layer, role, value - filters.response(matrix, key))


def _publish_kernel(target, flips, sizes, noise):
    """Gives a layer's kernel other signs and sizes.

    Args:
        target: The passport layer.
        flips: What filters are multiplied by for their signs, `(channels,)`.
        sizes: Whether filters are made equal in size.
        noise: Generator that follows from the secret: of what is lost when
            numbers are rounded, and of filters that were dead.

    Returns:
        Tuple of what filters were multiplied by, float32 `(channels,)`, and
        which of them were dead, bool likewise.
    """
    adapter, layer = target.adapter, target.layer
    norms = _norms(adapter.matrix(layer))
    if not np.all(np.isfinite(norms)):
        raise PassportError(
            f"Expected finite numbers in the kernel of layer '{layer.name}'. "
            "Received: NaN or infinity"
        )
    dead = norms < _DEAD
    wanted = np.ones(norms.size)
    stored = keras.backend.standardize_dtype(layer.variable_dtype)
    if sizes:
        np.divide(_NORM, norms, out=wanted, where=~dead)
        if stored not in ("float32", "float64"):
            # What has fewer digits takes them over bit for bit.
            wanted = 2.0 ** np.round(np.log2(wanted))
    scales = hidden((flips * wanted).astype("float32"))
    # Factors of what has fewer digits are powers of two.
    blur = noise if sizes and stored in ("float32", "float64") else None
    for name, value in _multiplied(adapter, layer, scales, blur).items():
        getattr(layer, name).assign(value)
    if np.any(dead):
        _revive(target, dead, noise)
    return scales, dead


def _multiplied(adapter, layer, scales, blur) -> dict:
    """A layer's kernels with filters multiplied, as `folded` returns them.

    Args:
        adapter: The layer's `KernelAdapter`.
        layer: The kernel layer.
        scales: float32 `(channels,)`.
        blur: `None`, or the generator of what is added before products are
            rounded: up to half of the last digit. Not every number is the
            product of a given factor and a number of as many digits; so of
            all 2²³ factors one alone makes what is published, otherwise.
    """
    arrays = {
        id(kernel): numpy_of(kernel)
        for kernel in row_order.stored_kernels(adapter, layer)
    }
    count, pieces = 1, 1
    if kernels.is_stock(layer):  # whose first axis is not that of filters
        count = max(len(values) for values in arrays.values())
        largest = max(values.size for values in arrays.values())
        pieces = min(count, math.ceil(largest / _PIECE))
    factors, made = scales.astype("float64"), {}
    for part in np.array_split(np.arange(count), pieces):
        some = slice(part[0], part[-1] + 1) if pieces > 1 else slice(None)

        def read(kernel, some=some):
            return _blurred(arrays[id(kernel)][some], blur)

        for name, value in adapter.folded(layer, factors, read=read).items():
            whole = arrays[id(getattr(layer, name))]
            if name not in made:
                made[name] = np.empty_like(whole)
            made[name][some] = value
    return made


def _blurred(values, blur):
    """Numbers in float64, with what rounding them might have taken off."""
    exact = values.astype("float64", order="C")
    if blur is None:
        return exact
    # float64 has no digits behind its last one: more of those that it has.
    width = _DIGITS if values.dtype == "float64" else 1.0
    values, blurred = np.ravel(values), exact.reshape(-1)
    for start in range(0, values.size, _PIECE):
        some = values[start : start + _PIECE]
        noise = blur.random(some.shape, "float32") - 0.5
        noise *= width * np.spacing(np.abs(some))
        blurred[start : start + _PIECE] += np.where(some == 0.0, 0.0, noise)
    return exact


def _is_double(layer) -> bool:
    return keras.backend.standardize_dtype(layer.variable_dtype) == "float64"


def _store_in_order(target, seed) -> tuple:
    """Stores a kernel's rows in secret orders, and returns how many.

    Of a depthwise kernel that is nearly all zeros, a column might be left
    that no key reaches.
    """
    adapter, layer = target.adapter, target.layer
    groups = row_order.groups(adapter, layer, target.inputs_shape)
    if not groups:
        return ()
    orders = tuple(zip(row_order.counts(adapter, layer), groups, strict=True))
    order = draws.order_of_rows(seed, orders)
    before = row_order.penalties(layer)
    row_order.store(adapter, layer, order, groups)
    if np.all(_norms(adapter.matrix(layer)) >= _DEAD):
        row_order.release_penalties(layer, before)
        return groups
    for kernel, value in row_order.gathered(adapter, layer, order, groups):
        kernel.assign(value)
    return ()


def _norms(matrix):
    total = sum(
        np.sum(piece**2, axis=1) for _, piece in exact_keys.pieces(matrix)
    )
    return np.sqrt(total).ravel()


def _float64(variable):
    return numpy_of(variable).astype("float64")


def _revive(target, dead, noise):
    """Makes filters that are zero random ones: a key reaches nothing of zero.

    What they compute is multiplied by γ = 0. They are the secret's: where
    others can draw them, too, one of them tells the order of all rows.
    """
    adapter, layer = target.adapter, target.layer

    def read(variable):
        return noise.standard_normal(variable.shape)

    channels = adapter.folded(
        layer, np.arange(dead.size, dtype="float64"), lambda v: np.ones(v.shape)
    )
    for name, value in adapter.folded(
        layer, dead.astype("float64"), read
    ).items():
        # Of two kernels in a row one has no output channels: only where all
        # filters are dead can it be what is zero.
        if np.ptp(channels[name]) > 0 or np.all(dead):
            variable = getattr(layer, name)
            variable.assign(_float64(variable) + value)
    norms = _norms(adapter.matrix(layer))
    factors = np.where(dead, _NORM / np.maximum(norms, _DEAD), 1.0)
    for name, value in adapter.folded(layer, factors, read=_float64).items():
        getattr(layer, name).assign(value)
