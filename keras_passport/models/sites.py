"""Finding the places in a model where a passport layer can stand."""

import dataclasses
import re
from collections.abc import Callable, Iterable

import keras

from keras_passport import graph
from keras_passport.errors import PassportError
from keras_passport.layers import kernels, normalization
from keras_passport.layers.passport_normalization import PassportNormalization
from keras_passport.models import composites
from keras_passport.models.report import PassportReport, ReportRow
from keras_passport.passports import functions

# Which kernel layers to protect; see `protect`.
Selection = str | re.Pattern | Iterable[str] | Callable | None

# What may stand between a kernel layer and its normalisation: the wrapper
# then owns it. None of these mixes channels or holds weights.
BETWEEN = tuple(
    getattr(keras.layers, name + rank)
    for name in ("ZeroPadding", "AveragePooling", "MaxPooling", "Cropping")
    for rank in ("1D", "2D", "3D")
)


@dataclasses.dataclass(eq=False)
class Site:
    """One kernel layer and the normalisation whose place a passport takes.

    Args:
        kernel: The kernel layer.
        between: Layers between it and the normalisation, in order.
        normalization: The normalisation; `None` where one is to be inserted.
        arguments: Of the normalisation's call, such as `training=False`.
    """

    kernel: keras.layers.Layer
    between: list = dataclasses.field(default_factory=list)
    normalization: keras.layers.Layer | None = None
    arguments: dict = dataclasses.field(default_factory=dict)


class Plan:
    """What is to be done with each layer of a model and of those nested in it.

    Args:
        model: Functional or built Sequential model.
        function: Passport function.
        select: Which kernel layers to protect; see `protect`.
        insert: Whether to protect kernel layers that have no normalisation.

    Attributes:
        sites: Dict from the id of a kernel layer to its `Site`.
        merged: Ids of the layers that become part of a passport layer.
        opened: Dict from the id of a composite layer with sites in it to the
            graph that takes its place, see `composites.opened`.
        sizes: Dict from the id of a Sequential to the shape that it is called
            with, where it was built for another one.
        report: `PassportReport` of the plan.
    """

    def __init__(
        self,
        model: keras.Model,
        function: functions.PassportFunction,
        select: Selection = None,
        insert: bool = False,
    ):
        self.sites: dict[int, Site] = {}
        self.opened: dict[int, keras.Model] = {}
        self.sizes: dict[int, tuple] = {}
        self._reasons: dict[int, str] = {}
        self._insert = insert
        self._named = _names(select)
        self._selected = _selector(select, self._named)
        self._shared = graph.shared_layers(model)
        self._find(model, "")
        self.merged = {
            id(layer)
            for site in self.sites.values()
            for layer in (*site.between, site.normalization)
        }
        self.report = self._report(model, function)
        self._check_selection()

    def _find(self, model, prefix, leads_on=False):
        """Finds the sites of a model, which may be nested in others.

        Args:
            model: The model.
            prefix: Of its layers' paths.
            leads_on: Whether, where it is nested, kernel layers follow it.
        """
        model_graph = graph.Graph(model)
        layers = graph.children(model)
        for layer in layers:
            if graph.is_model(layer):
                # Once, wherever else it is called.
                if id(layer) not in self._reasons:
                    self._reasons[id(layer)] = ""
                    self._note_size(layer, model_graph)
                    self._find(
                        layer,
                        f"{prefix}{layer.name}/",
                        leads_on or _leads_to_kernel(layer, model_graph),
                    )
            elif type(layer) in normalization.SUPPORTED:
                self._take(_site(layer, model_graph), layer, prefix)
            elif composites.is_composite(layer):
                self._open(layer, model_graph, prefix, leads_on)
        if not self._insert:
            return
        for layer in layers:
            unused = id(layer) not in self.sites
            if unused and kernels.adapter_for(layer) is not None:
                last = not leads_on and not _leads_to_kernel(layer, model_graph)
                self._take(
                    self._insertion(layer, model_graph, prefix, last),
                    layer,
                    prefix,
                )

    def _open(self, layer, model_graph, prefix, leads_on):
        """Finds the sites in a composite layer, if it is a graph itself."""
        inside = composites.opened(layer, model_graph.calls[id(layer)])
        if isinstance(inside, str):
            reason = (
                f"is inside layer '{layer.name}' ({type(layer).__name__}), "
                f"which {inside}"
            )
            for _, part in graph.walk(layer):
                self._reasons[id(part)] = reason
            return
        before = len(self.sites)
        self._find(
            inside,
            f"{prefix}{layer.name}/",
            leads_on or _leads_to_kernel(layer, model_graph),
        )
        # Without any, it stays the layer that it is, if there is a way.
        if len(self.sites) > before or not graph.is_clonable(layer):
            self.opened[id(layer)] = inside

    def _note_size(self, layer, model_graph):
        """Notes the size that a Sequential is called with, if not its own."""
        built_for = layer.inputs[0].shape
        sizes = [
            node.input_tensors[0].shape for node in model_graph.calls[id(layer)]
        ]
        if isinstance(layer, keras.Sequential) and any(
            None not in (ours, given) and ours != given
            for size in sizes
            for ours, given in zip(built_for, size, strict=True)
        ):
            self.sizes[id(layer)] = tuple(
                given[0] if len(set(given)) == 1 else None
                for given in zip(*sizes, strict=True)
            )

    def _take(self, site, layer, prefix):
        """Notes a site, or why a layer has none."""
        if isinstance(site, Site):
            for part in (site.kernel, *site.between, site.normalization):
                if id(part) in self._shared:
                    site = f"'{part.name}' is part of another model too"
                    break
        if isinstance(site, str):
            self._reasons[id(layer)] = site
            return
        path = prefix + site.kernel.name
        if not self._selected(path, site.kernel):
            self._reasons[id(layer)] = "not selected"
            self._reasons[id(site.kernel)] = "not selected"
            return
        self.sites[id(site.kernel)] = site
        if site.normalization is None:
            self._reasons[id(site.kernel)] = "with a new batch normalisation"
        else:
            self._reasons[id(layer)] = f"becomes one with '{site.kernel.name}'"
            self._reasons[id(site.kernel)] = f"with '{layer.name}'"

    def _insertion(self, kernel, model_graph, prefix, last) -> Site | str:
        refusal = _kernel_refusal(kernel, model_graph)
        if refusal:
            return refusal
        if last and prefix + kernel.name not in self._named:
            return "is the last kernel layer; select it by name to protect it"
        return Site(kernel)

    def _report(self, model, function) -> PassportReport:
        rows = []

        def add(path, layer, role, protected, reason):
            rows.append(
                ReportRow(path, type(layer).__name__, role, protected, reason)
            )

        for path, layer in graph.walk(model, stop=(PassportNormalization,)):
            prefix = path[: len(path) - len(layer.name)]
            if isinstance(layer, PassportNormalization):
                normal = prefix + layer.normalization.name
                add(path, layer.layer, "kernel", True, f"with '{normal}'")
                add(
                    normal,
                    layer.normalization,
                    "normalization",
                    True,
                    f"is one with '{path}'",
                )
                continue
            reason = self._reasons.get(id(layer))
            if kernels.adapter_for(layer) is not None:
                reason = reason or "no normalisation of its own follows it"
                add(path, layer, "kernel", id(layer) in self.sites, reason)
            elif (own := kernels.unregistered(layer)) is not None:
                # Its kernel is published as it is: never without a word.
                add(path, layer, "kernel", False, reason or own)
            elif type(layer) in normalization.SUPPORTED:
                reason = reason or "is inside a layer, not in the graph"
                merged = id(layer) in self.merged
                add(path, layer, "normalization", merged, reason)
        return PassportReport(function.name, tuple(rows))

    def _check_selection(self):
        why = {row.path: row.reason for row in self.report.rows}
        missing = [
            f"'{name}': {why.get(name, 'no kernel layer of this path')}"
            for name in sorted(self._named - set(self.report.protected))
        ]
        if missing:
            raise PassportError(
                "Expected select to name kernel layers that can be protected. "
                f"Received: {'; '.join(missing)}"
            )


def _leads_to_kernel(layer, model_graph) -> bool:
    """Whether a kernel layer, or a layer that holds one, comes after it."""
    return any(
        model_graph.leads_to(call, _holds_kernel)
        for call in model_graph.calls[id(layer)]
    )


def _holds_kernel(operation) -> bool:
    if not isinstance(operation, keras.layers.Layer):
        return False
    inside = (layer for _, layer in graph.walk(operation))
    return any(
        kernels.adapter_for(layer) is not None for layer in (operation, *inside)
    )


def _names(select) -> set[str]:
    if isinstance(select, str):
        return {select}
    if select is None or isinstance(select, re.Pattern) or callable(select):
        return set()
    return set(select)


def _selector(select, names):
    if select is None:
        return lambda path, layer: True
    if isinstance(select, re.Pattern):
        return lambda path, layer: select.search(path) is not None
    if callable(select):
        return select
    return lambda path, layer: path in names


def _site(layer, model_graph) -> Site | str:
    """The site of a normalisation, or why there is none."""
    refusal = normalization.refusal(layer)
    if refusal:
        return refusal
    calls = model_graph.calls[id(layer)]
    if len(calls) != 1:
        return f"is called {len(calls)} times"
    arguments = graph.extra_arguments(calls[0])
    if arguments is None or arguments.pop("mask", None) is not None:
        return "is called with a mask"
    between = []
    node = calls[0]
    while True:
        node = model_graph.maker(node.input_tensors[0])
        if node is None:
            return "follows the model's input"
        reader = model_graph.only_reader(node)
        name = getattr(node.operation, "name", type(node.operation).__name__)
        if kernels.adapter_for(node.operation) is not None:
            break
        if not isinstance(node.operation, BETWEEN):
            return f"follows '{name}', which is no kernel layer"
        if reader is None or len(model_graph.calls[id(node.operation)]) != 1:
            return f"the output of '{name}' is used elsewhere too"
        between.insert(0, node.operation)
    kernel = node.operation
    refusal = _kernel_refusal(kernel, model_graph)
    if refusal:
        return refusal
    if reader is None:
        return f"the output of '{kernel.name}' is used elsewhere too"
    rank = len(node.outputs[0].shape)
    axis = normalization.channel_axis(layer, rank)
    if axis != kernels.adapter_for(kernel).channel_axis(kernel) % rank:
        return (
            f"normalises along axis {axis}, which is not the channel axis of "
            f"'{kernel.name}'"
        )
    return Site(kernel, between, layer, arguments)


def _kernel_refusal(kernel, model_graph) -> str | None:
    """Why a kernel layer can't be protected where it stands, or `None`."""
    refusal = kernels.adapter_for(kernel).refusal(kernel)
    if refusal:
        return f"kernel layer '{kernel.name}': {refusal}"
    calls = model_graph.calls[id(kernel)]
    if len(calls) != 1:
        return f"kernel layer '{kernel.name}' is called {len(calls)} times"
    if graph.extra_arguments(calls[0]) is None:
        return f"kernel layer '{kernel.name}' is called with several tensors"
    return None
