"""What of a suspect's bare variables can be compared: see `networks`."""

import dataclasses
import re
from collections.abc import Mapping

import numpy as np

from keras_passport.ownership.kernel_layer import KernelLayer

_PARAMETERS = {
    "gamma": "gamma|scale|weight",
    "beta": "beta|shift|offset",
    "mean": "moving_mean|running_mean|mean",
    "variance": "moving_variance|running_var|variance|var",
}
# By which names of a kernel and of its normalisation differ.
_WORDS = ("conv", "dwconv", "bn", "norm", "batchnorm")


def layers_of(arrays: Mapping) -> list[KernelLayer]:
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
    for layer in layers:
        _settle(layer)
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
            # Beside a scale or statistics, it is the normalisation's shift.
            is_shift = parameter == "bias" and not group.is_bias
            setattr(form, "beta" if is_shift else parameter, values)


def _settle(layer):
    """Adds a kernel's bias to what it is a part of: a mean, or the shift."""
    for form in layer.forms:
        if form.bias is None:
            continue
        if form.mean is not None:
            form.mean = form.mean - form.bias
        elif form.gamma is None and form.beta is None:
            form.beta = form.bias
