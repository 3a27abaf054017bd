"""What of a suspect network can be compared: kernels, γ, β, statistics.

A suspect comes in any form: a protected model, an ordinary Keras model, with
normalisations or with all of them folded into kernels, or the bare variables
of a file.
"""

import dataclasses
import hashlib
import re
from collections.abc import Mapping

import keras
import numpy as np
from keras import ops

from keras_passport import graph
from keras_passport.errors import PassportError
from keras_passport.layers import kernels, packing, row_order
from keras_passport.layers.normalization import SUPPORTED
from keras_passport.layers.passport_normalization import PassportNormalization
from keras_passport.layers.protected import protected_layers
from keras_passport.models import sites
from keras_passport.passports.passport import Passport
from keras_passport.secrecy import type_of
from keras_passport.texts import shown

# Between a kernel and its normalisation these keep channels apart: those that
# a protected layer may have there, and those that others put there.
_BETWEEN = (
    *sites.BETWEEN,
    keras.layers.Dropout,
    keras.layers.Identity,
    *(getattr(keras.layers, f"SpatialDropout{n}D") for n in (1, 2, 3)),
)
_PARAMETERS = {
    "gamma": "gamma|scale|weight",
    "beta": "beta|shift|offset",
    "mean": "moving_mean|running_mean|mean",
    "variance": "moving_variance|running_var|variance|var",
}
# By which names of a kernel and of its normalisation differ.
_WORDS = ("conv", "dwconv", "bn", "norm", "batchnorm")


@dataclasses.dataclass(eq=False)
class KernelLayer:
    """One kernel layer of a network, in a form that is alike for all types.

    Args:
        path: Its name.
        kernel: float64 array `(positions, inputs, filters)`: a window's
            positions, input channels (of a filter's group), output channels.
        kind: `"full"`, `"grouped"` or `"depthwise"`: whether a filter sees
            all inputs, some of them, or one.
        gamma: Scale after it, `(filters,)`; `None` if there is none to see.
        beta: Shift, likewise; a bias where nothing normalises.
        mean: Mean of what the normalisation saw; `None` for none.
        variance: Variance of it, ε included; `None` for none.
        others: The same layer in other forms, where it is not known which of
            them it has.
    """

    path: str
    kernel: np.ndarray
    kind: str = "full"
    gamma: np.ndarray | None = None
    beta: np.ndarray | None = None
    mean: np.ndarray | None = None
    variance: np.ndarray | None = None
    others: tuple = ()

    @property
    def forms(self) -> tuple:
        """All forms that it may have, the likeliest first."""
        return (self, *self.others)

    @property
    def filters(self) -> int:
        """Number of output channels."""
        return self.kernel.shape[-1]

    @property
    def shape(self) -> tuple:
        """What must be alike in two layers that may be the same."""
        return (*self.kernel.shape, self.kind)

    @property
    def signs(self) -> np.ndarray:
        """Signs of γ; 1 where nothing normalises, since kernels hold them."""
        if self.gamma is None:
            return np.ones(self.filters)
        return np.where(self.gamma < 0, -1.0, 1.0)


def read(network, orders: dict | None = None) -> list[KernelLayer]:
    """All kernel layers of a network, in the order of its graph.

    Args:
        network: A Keras model, protected or not, whose passport, if one is
            bound, is not used; or a dict from names to arrays, as of a
            SavedModel's variables.
        orders: Dict from the path of a passport layer to the secret order in
            which its kernel's rows are stored, to be read as a call gathers
            them; `None` to read all as they are stored.

    Raises:
        PassportError: If it is neither, has no kernel, or one of numbers that
            are not finite.

    Example:

    >>> [layer.path for layer in kp.ownership.networks.read(model)]
    ['conv1', 'conv2', 'classes']
    """
    if isinstance(network, keras.Model):
        layers = _of_model(network, orders or {})
    elif isinstance(network, Mapping):
        layers = _of_arrays(network)
    else:
        raise PassportError(
            "Expected a suspect that is a Keras model, or a dict from names "
            f"to arrays. Received: a {type_of(network)}"
        )
    if not layers:
        raise PassportError(
            "Expected a network with kernel layers. Received: one without"
        )
    for layer in layers:
        if not np.all(np.isfinite(layer.kernel)):
            raise PassportError(
                "Expected a network of finite numbers. Received: NaN or "
                f"infinity in the kernel of '{shown(layer.path)}'"
            )
    return layers


def orders(model: keras.Model, passport: Passport) -> dict:
    """The secret orders of rows that a passport holds, as `read` takes them.

    Args:
        model: A protected model.
        passport: Its passport.

    Returns:
        Dict from paths of passport layers; empty if all rows are in theirs.
    """
    packed = passport.fitted(model).rows()
    return {
        path: packing.order_in(layer, packed[path])
        for path, layer in protected_layers(model).items()
        if layer.geometry.ordered_rows
    }


def kernels_hash(model: keras.Model, passport: Passport) -> str:
    """SHA-256 of the kernels that a passport is for.

    Of their rows as they belong, so that it is the same before and after
    `hide_rows`, and in whatever network they are a part of.

    Args:
        model: The protected model.
        passport: Its passport.
    """
    given = {own: path for path, own in passport.match(model).items()}
    stored, layers = orders(model, passport), protected_layers(model)
    total = hashlib.sha256()
    for own in passport.layers:
        layer = layers[given[own]]
        if given[own] in stored:
            found = row_order.gathered(
                layer.adapter, layer.layer, stored[given[own]]
            )
        else:
            found = [
                (kernel, kernel.value)
                for kernel in row_order.stored_kernels(
                    layer.adapter, layer.layer
                )
            ]
        for _, value in found:
            # Zeros have no sign.
            values = (_array(value) + 0.0).astype("<f8")
            total.update(f"{own} {values.shape}".encode())
            total.update(np.ascontiguousarray(values).tobytes())
    return total.hexdigest()


def _of_model(model, orders):
    after_layers = normalizations(model)
    layers = []
    for path, layer in graph.walk(model, stop=(PassportNormalization,)):
        if isinstance(layer, PassportNormalization):
            gathered = {}
            if path in orders:
                gathered = {
                    id(variable): value
                    for variable, value in row_order.gathered(
                        layer.adapter, layer.layer, orders[path]
                    )
                }
            read_layer = _kernel(path, layer.layer, gathered)
            if read_layer is None:
                continue  # A normalisation alone has nothing to match.
            _read_normalization(
                read_layer, layer.normalization, layer.gamma, layer.beta
            )
            layers.append(read_layer)
        elif kernels.adapter_for(layer) is not None and layer.built:
            read_layer = _kernel(path, layer)
            if read_layer is None:
                continue
            after = after_layers.get(id(layer))
            if after is None:
                bias = getattr(layer, "bias", None)
                read_layer.beta = None if bias is None else _array(bias)
            else:
                _read_normalization(
                    read_layer,
                    after,
                    getattr(after, "gamma", None),
                    getattr(after, "beta", None),
                )
            layers.append(read_layer)
    return layers


def _kernel(path, layer, gathered=None) -> KernelLayer | None:
    name = type(layer).__name__
    separable = name.startswith("Separable")
    kernel = getattr(layer, "pointwise_kernel" if separable else "kernel", None)
    if kernel is None or len(kernel.shape) < 2:
        return None  # A scale for each channel, such as `ChannelScale`.
    values, kind = _array((gathered or {}).get(id(kernel), kernel)), "full"
    if not separable:
        scale = getattr(layer, "kernel_scale", None)
        if scale is not None:
            # int8, of which the layer divides by a scale for each channel.
            values = values / _array(scale)
    if "Depthwise" in name:
        values = values.reshape(-1, 1, values.shape[-1] * values.shape[-2])
        kind = "depthwise"
    elif "Transpose" in name:
        values = np.moveaxis(values, -1, -2)
    elif name == "EinsumDense":
        values = values.reshape(values.shape[0], -1)
    if getattr(layer, "groups", 1) > 1:
        kind = "grouped"
    values = values.reshape(-1, *values.shape[-2:])
    return KernelLayer(path, values, kind)


def _read_normalization(layer, normalization, gamma, beta):
    mean = getattr(normalization, "moving_mean", None)
    if mean is not None:
        layer.mean = _array(mean)
        layer.variance = (
            _array(normalization.moving_variance) + normalization.epsilon
        )
    layer.gamma = _of_size(gamma, layer.filters)
    layer.beta = _of_size(beta, layer.filters)


def _of_size(values, size):
    if values is None:
        return None
    values = _array(values).reshape(-1)
    return values if values.size == size else None


def normalizations(model) -> dict:
    """The normalisation that reads each kernel layer, by the layer's id."""
    read_by = {}
    models = [model, *(m for _, m in graph.walk(model) if graph.is_model(m))]
    for one in models:
        if not graph.is_model(one):
            continue
        calls = graph.Graph(one)
        for node in calls.nodes:
            if not isinstance(node.operation, SUPPORTED):
                continue
            source = calls.maker(node.input_tensors[0])
            while source is not None and isinstance(source.operation, _BETWEEN):
                source = calls.maker(source.input_tensors[0])
            if source is not None:
                read_by.setdefault(id(source.operation), node.operation)
    return read_by


def _of_arrays(arrays):
    """Kernels of bare variables, in their order, with what belongs to them.

    Names need not tell a layer's type. So it has each form that its kernel may
    have, and whoever knows what to look for takes the one that fits.
    """
    arrays, numbered = _in_order(arrays)
    names = {name for name, _ in arrays}
    # Kernels that follow one another, and then what follows them.
    runs: list = [([], [])]
    for name, values in arrays:
        kernels, groups = runs[-1]
        if values.ndim == 1:
            parameter = None if numbered else _parameter(name)
            if numbered or parameter is not None:
                behind = kernels[-1] if kernels else None
                _put(groups, name, parameter, values, behind)
        elif values.ndim > 1 and min(values.shape[-2:]) > 0:
            folder = _folder(name)
            # A separable layer's filters are those of its pointwise kernel.
            if (
                name.endswith("depthwise_kernel")
                and f"{folder}/pointwise_kernel" in names
            ):
                continue
            if not all(group.is_bias for group in groups):
                runs.append(([], []))
            runs[-1][0].append(_layer(folder, name, values))
    layers = [layer for kernels, _ in runs for layer in kernels]
    for kernels, groups in runs:
        _note_run(kernels, groups, layers)
    return layers


def _in_order(arrays):
    """Pairs of name and numbers, and whether names are numbers alone.

    They are sorted by number where they were sorted as text, and where they
    differ in numbers alone, in whichever order a checkpoint lists them.
    """
    found = []
    for name, values in arrays.items():
        try:
            values = np.asarray(values, "float64")
        except (TypeError, ValueError):
            continue  # Text, such as a checkpoint's graph of objects.
        if values.ndim:
            found.append((str(name).partition(":")[0], values))
    names = [name for name, _ in found]
    alike = {re.sub(r"\d+", "0", name) for name in names}
    numbered = len(alike) == 1 < len(names)
    if numbered or names == sorted(names):
        found.sort(
            key=lambda pair: [
                (part.zfill(20) if part.isdecimal() else part)
                for part in re.split(r"(\d+)", pair[0])
            ]
        )
    return found, numbered


def _folder(name):
    return name.rpartition("/")[0] or name


def _layer(path, name, values) -> KernelLayer:
    """A layer in all forms that a kernel of such a shape may have."""
    *window, inputs, outputs = values.shape
    full = values.reshape(-1, inputs, outputs)
    forms = [KernelLayer(path, full)]
    if window:
        turned = np.moveaxis(full, -1, -2)
        single = values.reshape(-1, 1, inputs * outputs)
        dense = values.reshape(1, values.shape[0], -1)
        forms += [
            KernelLayer(path, full, "grouped"),
            KernelLayer(path, turned),
            KernelLayer(path, single, "depthwise"),
            KernelLayer(path, dense),
        ]
    if "depthwise" in name.lower() or (window and outputs == 1 < inputs):
        forms.sort(key=lambda form: form.kind != "depthwise")
    forms[0].others = tuple(forms[1:])
    return forms[0]


@dataclasses.dataclass
class _Group:
    """Vectors of one layer: a bias, or what a normalisation has.

    Args:
        folder: That of their names.
        size: Of each.
        behind: The `KernelLayer` that they stand behind; `None` for none.
        known: Dict from parameters, or from numbers where names are none, to
            vectors.
    """

    folder: str
    size: int
    behind: KernelLayer | None
    known: dict

    @property
    def is_bias(self) -> bool:
        return set(self.known) <= {"bias"} or set(self.known) == {0}

    def named(self) -> list:
        """Groups with names, which numbers have by the order of Keras."""
        values = list(self.known.values())
        if 0 not in self.known:
            return [self]
        gamma, *others = _PARAMETERS
        ahead = len(values) % 4
        groups = []
        if ahead == 1:
            groups.append(["bias"])
        elif ahead == 2:
            groups.append([gamma, others[0]])
        elif ahead == 3:
            groups.append(others)
        groups += [[gamma, *others]] * (len(values) // 4)
        return [
            dataclasses.replace(
                self,
                folder="",
                known={name: values.pop(0) for name in names},
            )
            for names in groups
        ]


def _put(groups, name, parameter, values, behind):
    """Adds a vector to the group of those that are of one layer."""
    last, folder = groups[-1] if groups else None, _folder(name)
    if (
        last is None
        or last.behind is not behind
        or last.size != values.size
        or parameter in last.known
        or (parameter is not None and last.folder != folder)
    ):
        last = _Group(folder, values.size, behind, {})
        groups.append(last)
    last.known[len(last.known) if parameter is None else parameter] = values


def _parameter(name) -> str | None:
    last = name.rpartition("/")[2].lower()
    for parameter, pattern in _PARAMETERS.items():
        if re.fullmatch(pattern, last):
            return parameter
    return "bias" if "bias" in last else None


def _note_run(kernels, groups, layers):
    """Gives kernels what follows them: by folder, by name, or in order."""
    waiting, rest = list(kernels), []
    for group in [one for several in groups for one in several.named()]:
        near = _near(group, layers)
        if group.is_bias:
            near = near or group.behind
            if near is not None:
                _note(near, group)
        elif near is not None:
            _note(near, group)
            waiting = [layer for layer in waiting if layer is not near]
        else:
            rest.append(group)
    for size in dict.fromkeys(group.size for group in rest):
        equal = [group for group in rest if group.size == size]
        fitting = [layer for layer in waiting if layer.filters == size]
        if len(fitting) < len(equal):
            fitting = [layer for layer in waiting if _fits(layer, size)]
        # Keras lists shortcut and branch, and then what follows them. If there
        # are fewer of those than kernels, it is the last that have one.
        for layer, group in zip(fitting[-len(equal) :], equal, strict=False):
            _note(layer, group)


def _near(group, layers) -> KernelLayer | None:
    """The one layer that a group belongs to by its name."""
    fitting = [layer for layer in layers if _fits(layer, group.size)]
    for name in (str, _stem):
        own = name(group.folder)
        near = [layer for layer in fitting if own and name(layer.path) == own]
        if near:
            return near[0] if len(near) == 1 else None
    return None


def _stem(folder) -> str:
    """What `block1_dwconv` and `block1_bn` have in common."""
    words = folder.rpartition("/")[2].lower().split("_")
    return "_".join(word for word in words if word not in _WORDS)


def _fits(layer, size) -> bool:
    return any(form.filters == size for form in layer.forms)


def _note(layer, group):
    for form in layer.forms:
        if form.filters != group.size:
            continue
        for parameter, values in group.known.items():
            if parameter != "bias":
                setattr(form, parameter, values)
            elif form.beta is None:
                form.beta = values


def _array(values) -> np.ndarray:
    return ops.convert_to_numpy(values).astype("float64")
