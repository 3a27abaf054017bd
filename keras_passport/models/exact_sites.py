"""Where a trained model can be protected without changing what it computes.

Every kernel layer gets a passport layer. Where what follows is a batch
normalisation that is an affine map of its outputs, the passport layer takes
that one's place too; elsewhere its normalisation is the identity, right behind
the kernel and before its activation. There a filter's sign and size are free,
whatever comes after it.
"""

import keras
import numpy as np
from keras import ops

from keras_passport import graph
from keras_passport.layers import kernels
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

    Args:
        model: Functional or built Sequential model.
        select: Which kernel layers to protect; see `protect_trained`.
    """

    def __init__(self, model: keras.Model, select: Selection = None):
        super().__init__(model, functions.get("V3"), select, insert=True)

    def _take(self, site, layer, prefix):
        if isinstance(site, Site) and site.normalization is not None:
            refusal = _merging_refusal(site)
            if refusal:
                # Its kernel layer is found once more, on its own.
                self._reasons[id(layer)] = refusal
                return
        if isinstance(site, Site):
            refusal = _kernel_refusal(site.kernel)
            if refusal:
                self._reasons[id(layer)] = refusal
                self._reasons[id(site.kernel)] = refusal
                return
        super()._take(site, layer, prefix)
        found = self.sites.get(id(layer))
        if found is not None and found.normalization is None:
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
    stays = "so scale and shift stay as they are, public"
    if not isinstance(site.normalization, keras.layers.BatchNormalization):
        return f"mixes the channels of '{name}', {stays}"
    if site.arguments.get("training"):
        return f"uses the batch's statistics always, {stays}"
    if site.kernel.activity_regularizer is not None:
        return f"the activity of '{name}' is regularised, {stays}"
    if getattr(site.kernel, "activation", None) not in (
        None,
        keras.activations.linear,
    ):
        return f"follows the activation of '{name}', {stays}"
    for part in site.between:
        if not isinstance(part, _LINEAR):
            return f"follows '{part.name}', which is not linear, {stays}"
        if isinstance(part, _PADDING) and _has_bias(site.kernel):
            return f"follows '{part.name}', which pads a bias, {stays}"
    return None


def _has_bias(kernel) -> bool:
    bias = getattr(kernel, "bias", None)
    return bias is not None and bool(np.any(ops.convert_to_numpy(bias)))


def affine(site: Site) -> tuple[np.ndarray, np.ndarray]:
    """What a site makes of the convolution of its inputs: a · u + b.

    Args:
        site: Of a built model.

    Returns:
        Tuple of a and b, float64 `(output channels,)`.
    """
    units = kernels.adapter_for(site.kernel).units(site.kernel)
    scale, shift = np.ones(units), np.zeros(units)
    bias = getattr(site.kernel, "bias", None)
    if bias is not None:
        shift = _exact(bias)
    found = site.normalization
    if found is None:
        return scale, shift
    scale = 1.0 / np.sqrt(_exact(found.moving_variance) + found.epsilon)
    if found.gamma is not None:
        scale = scale * _exact(found.gamma)
    shift = scale * (shift - _exact(found.moving_mean))
    if found.beta is not None:
        shift = shift + _exact(found.beta)
    return scale, shift


def _exact(variable) -> np.ndarray:
    value = ops.convert_to_numpy(ops.cast(variable, "float64"))
    return np.asarray(value, "float64")
