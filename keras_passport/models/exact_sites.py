"""Where a trained model can be protected without changing what it computes.

Every kernel layer gets a passport layer. Where what follows is a batch
normalisation that is an affine map of its outputs, the passport layer takes
that one's place too; elsewhere its normalisation is the identity, right behind
the kernel and before its activation. There a filter's sign and size are free,
whatever comes after it. Other normalisations get a passport layer of their
own: from public statistics, or a public scale and shift, an attacker with
unlabelled pictures could tell the signs of the kernels before them.
"""

import keras
import numpy as np
from keras import ops

from keras_passport import graph
from keras_passport.layers import folding, kernels, normalization
from keras_passport.layers.channel_scale import ChannelScale
from keras_passport.models.sites import Plan, Selection, Site
from keras_passport.passports import functions

# Layers that do the same to a channel, its negative and its multiples.
_LINEAR = tuple(
    getattr(keras.layers, name + rank)
    for name in ("ZeroPadding", "AveragePooling", "Cropping")
    for rank in ("1D", "2D", "3D")
)
_PADDING = tuple(
    getattr(keras.layers, f"ZeroPadding{rank}") for rank in ("1D", "2D", "3D")
)


class ExactPlan(Plan):
    """The plan of `protect_trained`; see `Plan` for its attributes.

    A normalisation without a kernel layer is a site by its own id, whose
    kernel is a new `ChannelScale`.

    Args:
        model: Functional or built Sequential model.
        select: Which kernel layers to protect; see `protect_trained`.
    """

    def __init__(self, model: keras.Model, select: Selection = None):
        super().__init__(model, functions.get("V3"), select, insert=True)
        self.merged -= self.sites.keys()

    def _find(self, model, prefix, leads_on=False):
        super()._find(model, prefix, leads_on)
        model_graph = graph.Graph(model)
        joined = {id(site.normalization) for site in self.sites.values()}
        for layer in graph.children(model):
            if type(layer) in normalization.SUPPORTED and (
                id(layer) not in joined and id(layer) not in self._shared
            ):
                self._stand_alone(layer, model_graph, prefix)

    def _stand_alone(self, layer, model_graph, prefix):
        """Notes the site of a normalisation without a kernel layer."""
        why = self._reasons.get(id(layer), "")
        calls = model_graph.calls[id(layer)]
        arguments = [graph.extra_arguments(call) for call in calls]
        refusal = _own_refusal(layer, arguments, calls)
        if not self._selected(prefix + layer.name, layer):
            refusal = "not selected"
        if refusal is not None:
            self._reasons[id(layer)] = f"{why}; {refusal}"
            return
        kernel = ChannelScale(name=layer.name, dtype=layer.dtype_policy)
        self.sites[id(layer)] = Site(kernel, [], layer)
        self._reasons[id(layer)] = f"on its own: {why}"

    def _take(self, site, layer, prefix):
        if isinstance(site, Site) and site.normalization is not None:
            refusal = _merging_refusal(site)
            if refusal:
                # Both are found once more, each on its own.
                self._reasons[id(layer)] = refusal
                return
        if isinstance(site, Site):
            refusal = _kernel_refusal(site.kernel)
            if refusal:
                self._reasons[id(layer)] = refusal
                self._reasons[id(site.kernel)] = refusal
                return
        super()._take(site, layer, prefix)
        taken = self.sites.get(id(layer))
        if taken is not None and taken.normalization is None:
            self._reasons[id(layer)] = "with the identity as normalisation"

    def _insertion(self, kernel, model_graph, prefix, last) -> Site | str:
        refusal = kernels.adapter_for(kernel).refusal(kernel)
        if refusal:
            return f"kernel layer '{kernel.name}': {refusal}"
        calls = model_graph.calls[id(kernel)]
        if any(graph.extra_arguments(call) is None for call in calls):
            return (
                f"kernel layer '{kernel.name}' is called with several tensors"
            )
        return Site(kernel)


def _kernel_refusal(kernel) -> str | None:
    """Why what a layer computes does not follow from its scaled filters."""
    adapter = kernels.adapter_for(kernel)
    if getattr(kernel, "lora_enabled", False):
        return "has LoRA weights beside its kernel, which scale with it no more"
    scaled = adapter.folded(kernel, np.ones(adapter.units(kernel)))
    more = {variable.name for variable in kernel.variables} - {*scaled, "bias"}
    if more:
        return (
            f"has weights besides kernel and bias ({', '.join(sorted(more))})"
        )
    bias = getattr(kernel, "bias", None)
    if bias is None:
        return None
    if not kernels.is_stock(kernel):
        return (
            f"has a bias, and what {type(kernel).__name__} does with it, only "
            "its author knows"
        )
    if tuple(bias.shape) != (adapter.units(kernel),):
        return f"has a bias of shape {tuple(bias.shape)}, not one per channel"
    return None


def _merging_refusal(site) -> str | None:
    """Why a normalisation is no affine map of its kernel layer's outputs."""
    name = site.kernel.name
    if not isinstance(site.normalization, keras.layers.BatchNormalization):
        return f"mixes the channels of '{name}'"
    if site.arguments.get("training"):
        return "uses the batch's statistics always"
    if site.kernel.activity_regularizer is not None:
        return f"the activity of '{name}' is regularised"
    if not folding.is_linear(site.kernel):
        return f"follows the activation of '{name}'"
    for part in site.between:
        if not isinstance(part, _LINEAR):
            return f"follows '{part.name}', which is not linear"
        if isinstance(part, _PADDING) and _has_bias(site.kernel):
            return f"follows '{part.name}', which pads a bias"
    return None


def _own_refusal(layer, arguments, calls) -> str | None:
    """Why a normalisation can't have a passport layer of its own."""
    refusal = normalization.refusal(layer)
    if refusal:
        return refusal
    if None in arguments or any(given.get("mask") for given in arguments):
        return "it is called with a mask"
    if any(given.get("training") for given in arguments):
        return "it uses the batch's statistics always"
    for call in calls:
        rank = len(call.outputs[0].shape)
        axis = normalization.channel_axis(layer, rank)
        if axis != rank - 1:
            return f"it normalises along axis {axis}, not the last one"
    return None


def _has_bias(kernel) -> bool:
    bias = getattr(kernel, "bias", None)
    return bias is not None and bool(np.any(ops.convert_to_numpy(bias)))


def affine(site: Site, units: int) -> tuple[np.ndarray, np.ndarray]:
    """What a site makes of its kernel's outputs u at inference: a · u + b.

    Of a layer or group normalisation, what it makes of what it normalised.

    Args:
        site: Of a built model.
        units: Number of output channels.

    Returns:
        Tuple of a and b, float64 `(output channels,)`.
    """
    normal = site.normalization
    scale, shift = np.ones(units), np.zeros(units)
    bias = getattr(site.kernel, "bias", None)
    if bias is not None:
        shift = ops.convert_to_numpy(bias).astype("float64")
    if normal is None:
        return scale, shift
    if isinstance(normal, keras.layers.BatchNormalization):
        mean, deviation = normalization.statistics_of(normal)
        scale, shift = 1.0 / deviation, (shift - mean) / deviation
    gamma, beta = folding.gamma_and_beta(normal)
    gamma = 1.0 if gamma is None else gamma
    return gamma * scale, gamma * shift + (0.0 if beta is None else beta)
