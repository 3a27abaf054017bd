"""Kernel layers that a passport needs as they are: they are not quantised."""

from keras_passport.errors import PassportError


class QuantizationRefused(PassportError, NotImplementedError):
    """A protected layer was to be quantised.

    `model.quantize` takes a layer that does not implement it with a warning,
    and goes on with the others: so it does with protected ones.
    """


def refused(layer) -> QuantizationRefused:
    """The error that says why this layer can't be quantised."""
    return QuantizationRefused(
        f"Layer '{layer.name}' is protected and stays as it is: its hidden "
        "parameters are computed from its kernel, in full precision. Quantize "
        "what keras_passport.unlock(model, passport) returns, or an export "
        "(TensorFlow Lite's post-training quantization)"
    )


def refuse(layer) -> None:
    """Lets a kernel layer, and those in it, refuse `quantize`."""
    for part in layer._flatten_layers():
        part.quantize = _refusal_of(part)


def _refusal_of(layer):
    def quantize(*args, **kwargs):
        raise refused(layer)

    return quantize


def check_mode(mode, layers) -> None:
    """Raises before a quantisation that can't leave out single layers.

    Args:
        mode: As for `keras.Model.quantize`.
        layers: The passport layers of the model.

    Raises:
        PassportError: For GPTQ and AWQ, which quantise whole blocks.
    """
    if mode in ("gptq", "awq") and layers:
        raise refused(layers[0].layer)
