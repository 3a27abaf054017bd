"""Where a bound model's training starts: γ and β by the smallest changes."""

import dataclasses
import warnings
from collections.abc import Callable, Iterable

import keras
import numpy as np
from keras import ops

from keras_passport import graph
from keras_passport.errors import PassportError
from keras_passport.hints import Inputs
from keras_passport.layers import estimating
from keras_passport.layers.passport_normalization import PassportNormalization
from keras_passport.layers.protected import layers_or_error
from keras_passport.models import features
from keras_passport.passports.derivation import checked_signs
from keras_passport.texts import table

# A kernel that changes by more of its norm than this is another kernel.
LARGE = 0.5

# How much larger kernels are made at most, so that they change by less than
# this: what a batch normalisation divides by grows with them, while their
# training slows down with the square.
_SIZES = np.linspace(1.0, 8.0, 29)
_SMALL = 0.25


@dataclasses.dataclass(frozen=True)
class CalibrationRow:
    """What `calibrate` did with one passport layer.

    Args:
        path: The layer's path.
        change: Norm of the kernel's change in relation to the kernel's.
        size: The factor by which the kernel was made larger.
        left: Why the layer was left as it was; `None` if it was not.
    """

    path: str
    change: float | None
    size: float = 1.0
    left: str | None = None


@dataclasses.dataclass(frozen=True)
class CalibrationReport:
    """How much `calibrate` changed each layer's kernel.

    `print(report)` shows a table.

    Args:
        rows: A `CalibrationRow` for each passport layer, in the graph's order.
    """

    rows: tuple[CalibrationRow, ...]

    @property
    def large(self) -> list[str]:
        """Paths of the layers that changed by more than half their norm."""
        return [
            row.path
            for row in self.rows
            if row.left is None and row.change > LARGE
        ]

    @property
    def left(self) -> list[str]:
        """Paths of the layers that are as they were."""
        return [row.path for row in self.rows if row.left is not None]

    def __str__(self):
        return table(
            [
                (
                    row.path,
                    f"changed by {row.change:.3f} of its norm"
                    + f", made {row.size:.2f} times as large" * (row.size > 1)
                    if row.left is None
                    else f"left as it was: {row.left}",
                )
                for row in self.rows
            ]
        )


def calibrate(
    model: keras.Model,
    like: keras.Model | None = None,
    batches: Iterable[Inputs] | None = None,
    max_change: float | None = None,
    signs: Callable[[str, int], np.ndarray] | None = None,
) -> keras.Model:
    """Starts a bound model's hidden parameters where training starts well.

    An untrained kernel makes hidden parameters of any size, and a trained one
    knows nothing of the passport. This changes kernels as little as possible
    so that every hidden γ is 1 or -1, with the sign that it has, and every
    hidden β is 0: as a batch normalisation starts, but for signs. They follow
    from kernels and passport together; half of them, without any pattern, are
    negative. With `like`, hidden parameters become those of a trained
    original, for fine-tuning. Layers with a frozen kernel, or LoRA, stay as
    they are; of a separable layer, the pointwise kernel changes.

    Without further training, the difference to `like` tells the keys: where
    the original is public, so are γ and β (`attacks.known_ancestor`).

    The model's `calibration` attribute, a `CalibrationReport`, then says how
    much each kernel changed. With `like`, a warning names those that changed
    by more than half their norm: the smaller a layer's keys, the larger the
    change.

    Args:
        model: Bound protected model, about to be trained.
        like: The original that it was made of, to start fine-tuning from its
            γ and β; 1 and 0 where it had none. Without `batches`, the
            statistics are those from before the change, so train before you
            evaluate.
        batches: Iterable of inputs as the original takes them, each with as
            many examples as in training. Normalisations that `insert=True`
            added then start from the σ and μ that the original has there, so
            that the network goes on to compute what it did; kernels before
            batch normalisations are made up to 8 times as large where the
            change is small in relation then; and statistics are estimated
            anew. For `like` only.
        max_change: Layers whose kernels would change by more than this part
            of their norm stay as they are; the report names them. What they
            compute follows from their passport alone then. For `like` only.
        signs: Function from a layer's path and number of channels to 1 and
            -1, `(channels,)`, such as an `ownership.Signature`: the signs that
            γ starts with. Not with `like`, whose γ has signs of its own.

    Returns:
        The model itself.

    Raises:
        PassportRequiredError: If no passport is bound.
        PassportError: If `like` is another network than the model's original,
            or a number is not finite.
        ValueError: If `batches` or `max_change` come without `like`, or there
            are no batches, or one is not what the model takes, or makes NaN
            or infinity of a statistic; if `signs` come with `like`, or are not
            what they must be.

    Example:

    >>> model = kp.reinitialize(kp.protect(base))
    >>> model = kp.calibrate(kp.bind(model, passport))
    >>> tuned = kp.calibrate(kp.bind(kp.protect(base), passport), like=base)
    >>> print(tuned.calibration)
    conv1  changed by ... of its norm
    conv2  changed by ... of its norm

    Reference:

    - Fan, Ng, Chan: Digital Passport, Section 2.3, Figure 3.
    """
    layers = layers_or_error(model)
    if like is None and not (batches is None and max_change is None):
        raise ValueError(
            "Expected like, the original, along with batches or max_change. "
            "Received: like=None"
        )
    if signs is not None and like is not None:
        raise ValueError(
            "Expected signs or like, whose γ has signs of its own. Received: "
            "both"
        )
    if batches is not None:
        batches = list(estimating.checked_batches(model, batches))
    wanted = _wanted(layers, like, batches, signs)
    planned = [
        _plan(path, layer, wanted[path], batches is not None, max_change)
        for path, layer in layers.items()
    ]
    for (layer, targets), (row, kernel, change) in zip(
        ((layer, wanted[path]) for path, layer in layers.items()),
        planned,
        strict=True,
    ):
        if row.left is None:
            changed = row.size * ops.convert_to_tensor(kernel)
            kernel.assign(changed + ops.cast(change, changed.dtype))
            _start_trainable(layer, targets)
    model.calibration = CalibrationReport(tuple(row for row, *_ in planned))
    if like is not None:
        _warn(model.calibration, max_change)
    if batches is not None:
        estimating.estimate_statistics(model, batches)
    return model


def _wanted(layers, like, batches, signs) -> dict:
    """γ and β that each layer is to have; `None` for one that can't be set."""
    wanted, inserted = {}, {}
    originals = None
    if like is not None:
        originals = dict(graph.walk(like, stop=(PassportNormalization,)))
    for path, layer in layers.items():
        hidden = layer.hidden_parameters()
        wanted[path] = None
        if layer.adapter.solvable(layer.layer) is None:
            continue
        if originals is None:
            gamma, beta = hidden
            wanted[path] = (
                _start_of_gamma(path, layer, gamma, signs),
                None if beta is None else np.zeros_like(beta),
            )
            continue
        wanted[path] = _affine_of(path, layer, originals)
        if _normalization_of(path, layer, originals) is None:
            inserted[path] = layer
    if inserted and batches is not None:
        wanted.update(_outputs_of(like, originals, inserted, batches))
    elif inserted:
        warnings.warn(
            f"{len(inserted)} normalisations that the original does not have "
            f"({_first_of(inserted)}) start from γ = 1 and β = 0, which is not "
            "what the original computes: give `batches`, to start from what "
            "its layers give out.",
            stacklevel=3,
        )
    return wanted


def _start_of_gamma(path, layer, gamma, signs):
    """γ of size 1: by the signs that it has, or is to have.

    Where γ is not hidden (V2), it starts so only if signs are given.
    """
    if gamma is None and (signs is None or layer.gamma is None):
        return None
    if signs is None:
        return np.where(gamma < 0, -1.0, 1.0)
    if gamma is None:
        gamma = ops.convert_to_numpy(layer.gamma)
    return checked_signs(signs, path, gamma.size)


def _plan(path, layer, targets, may_grow, max_change):
    """A report's row, the variable to change, and its change."""
    if targets is None:
        return CalibrationRow(path, None, left="no kernel to solve for"), 0, 0
    targets = {
        role: value
        for role, value in zip(("gamma", "beta"), targets, strict=True)
        if role in layer.function.roles
    }
    grows = may_grow and isinstance(
        layer.normalization, keras.layers.BatchNormalization
    )
    kernel, start = layer.change_of_kernel(**targets)
    # Linear in the size: one at any other follows from two.
    slope = layer.change_of_kernel(**targets, size=2.0)[1] - start
    norm = _norm(kernel) or 1.0
    tried = []
    for size in _SIZES if grows else (1.0,):
        change = start + (size - 1.0) * slope
        tried.append((_norm(change) / (size * norm), float(size), change))
    if not np.all(np.isfinite([part for part, *_ in tried])):
        raise PassportError(
            f"Expected finite numbers in the kernel of layer '{path}', and in "
            "the γ and β that it is to have. Received: NaN or infinity"
        )
    # The smallest size that is about as good as any can be.
    enough = max(_SMALL, 1.05 * min(part for part, *_ in tried))
    part, size, change = next(one for one in tried if one[0] <= enough)
    left = None
    if max_change is not None and part > max_change:
        left = f"it would change by {part:.3f} of its norm"
    return CalibrationRow(path, part, size, left), kernel, change


def _norm(values) -> float:
    # In float64: squares of what float32 holds may be larger than it does.
    return float(np.linalg.norm(ops.convert_to_numpy(values).astype("float64")))


def _start_trainable(layer, targets):
    """What the passport function leaves trainable starts there too."""
    for role, value in zip(("gamma", "beta"), targets, strict=True):
        variable = getattr(layer, role)
        if variable is not None and value is not None:
            variable.assign(value)


def _warn(report, max_change):
    if report.large and max_change is None:
        sizes = {row.path: row.change for row in report.rows}
        named = [f"{path}: {sizes[path]:.2f}" for path in report.large]
        warnings.warn(
            "Kernels changed by more than half their norm, since their keys "
            f"are small ({_first_of(named)}): expect the network to need more "
            "training. `batches` lets kernels grow instead, `max_change` "
            "leaves such layers as they are; larger keys help.",
            stacklevel=3,
        )


def _first_of(names) -> str:
    names = list(names)
    return ", ".join(names[:3]) + (" and others" if len(names) > 3 else "")


def _normalization_of(path, layer, originals):
    """The normalisation whose place a passport layer took, if there is one."""
    parent = path.rpartition("/")[0]
    name = layer.normalization.name
    return originals.get(f"{parent}/{name}" if parent else name)


def _affine_of(path, layer, originals):
    """γ and β of the normalisation whose place a passport layer took."""
    replaced = _normalization_of(path, layer, originals)
    kernel = originals.get(path)
    units = layer.adapter.units(layer.layer)
    values = []
    for role, neutral in (("gamma", np.ones), ("beta", np.zeros)):
        variable = getattr(replaced, role, None)
        if variable is None:
            values.append(neutral(units))
        else:
            values.append(ops.convert_to_numpy(variable).astype("float64"))
    if kernel is None or any(value.shape != (units,) for value in values):
        raise PassportError(
            "Expected like to be the network that the model was made of, with "
            f"a layer '{path}' of {units} channels. Received: "
            f"{type(kernel).__name__ if kernel is not None else 'none'} and "
            f"scales of shape {values[0].shape}"
        )
    return values


def _outputs_of(like, originals, layers, batches) -> dict:
    """Standard deviation and mean of layers' outputs before activation."""
    sums = {path: np.zeros(3, object) for path in layers}

    def note(path, inputs):
        layer = originals[path]
        outputs = ops.cast(_linear_part(layer, inputs), "float32")
        outputs = ops.convert_to_numpy(outputs).astype("float64")
        axis = layers[path].adapter.channel_axis(layer)
        outputs = np.moveaxis(outputs, axis, -1).reshape(
            -1, outputs.shape[axis]
        )
        sums[path] += np.array(
            [len(outputs), outputs.sum(0), (outputs**2).sum(0)], object
        )

    with features.watching({p: originals[p] for p in layers}, "call", note):
        for inputs in batches:
            like(inputs, training=False)
    outputs = {}
    for path, (count, total, squares) in sums.items():
        mean = total / count
        variance = np.maximum(squares / count - mean**2, 0.0)
        epsilon = layers[path].normalization.epsilon
        outputs[path] = np.sqrt(variance + epsilon), mean
    return outputs


def _linear_part(layer, inputs):
    activation = getattr(layer, "activation", None)
    if activation is None:
        return type(layer).call(layer, inputs)
    layer.activation = keras.activations.linear
    try:
        return type(layer).call(layer, inputs)
    finally:
        layer.activation = activation
