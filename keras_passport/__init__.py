"""Digital passports for Keras models.

A network's scale and shift after normalisation are not stored but computed
from its kernels and a secret passport: the right passport gives the accuracy,
any other paralyses the network.

Names are imported when they are first used: a client that loads a passport
and digests it needs NumPy, not Keras.
"""

import importlib

from keras_passport import registration

__version__ = "0.2.0"

_WHERE = {
    "attacks": None,
    "audit": None,
    "metrics": None,
    "plots": None,
    "PassportError": "errors",
    "PassportRequiredError": "errors",
    "PassportFunction": "functions",
    "KernelAdapter": "kernels",
    "register_kernel_layer": "kernels",
    "PassportNormalization": "layers",
    "hide_statistics": "hiding",
    "LeakReport": "leaks",
    "find_leaks": "leaks",
    "ProtectedModel": "models",
    "assumed": "models",
    "bind": "models",
    "calibrate": "calibration",
    "presented": "models",
    "protected_layers": "models",
    "public": "models",
    "secret_checkpoint": "models",
    "unbind": "models",
    "estimate_statistics": "normalization",
    "Passport": "passports",
    "PassportEntry": "passports",
    "PassportReport": "report",
    "PassportInputModel": "serving",
    "export_litert": "exports",
    "export_onnx": "exports",
    "export_saved_model": "exports",
    "passport_spec": "serving",
    "require_passport": "serving",
    "with_passport": "serving",
    "inspect": "transform",
    "protect": "transform",
    "reinitialize": "transform",
    "unlock": "unlocking",
}

__all__ = sorted(_WHERE)


def __getattr__(name):
    if name not in _WHERE:
        raise AttributeError(
            f"module '{__name__}' has no attribute '{name}'. "
            f"It offers {', '.join(__all__)}"
        )
    module = importlib.import_module(f"{__name__}.{_WHERE[name] or name}")
    # What was asked for may have been the first to import Keras.
    registration.register()
    return getattr(module, name) if _WHERE[name] else module


def __dir__():
    return sorted([*globals(), *__all__])


registration.register()
