"""Digital passports for Keras models.

A network's scale and shift after normalisation are not stored but computed
from its kernels and a secret passport: the right passport gives the accuracy,
any other paralyses the network.

Names are imported when they are first used: a client that loads a passport
and digests it needs NumPy, not Keras.
"""

from keras_passport import moved, registration
from keras_passport.lazy import exported

__version__ = "0.2.0"

_WHERE = {
    "attacks": None,
    "audit": None,
    "evaluation": None,
    "licensing": None,
    "metrics": None,
    "ownership": None,
    "plots": None,
    "PassportError": "errors",
    "PassportRequiredError": "errors",
    "KernelAdapter": "layers.kernels",
    "PassportNormalization": "layers.passport_normalization",
    "estimate_statistics": "layers.estimating",
    "protected_layers": "layers.protected",
    "register_kernel_layer": "layers.kernels",
    "LeakReport": "leaks.report",
    "find_leaks": "leaks.search",
    "PassportReport": "models.report",
    "ProtectedModel": "models.protected_model",
    "assumed": "models.binding",
    "bind": "models.binding",
    "calibrate": "models.calibration",
    "hide_rows": "models.hiding_rows",
    "hide_statistics": "models.hiding",
    "inspect": "models.protecting",
    "presented": "models.binding",
    "protect": "models.protecting",
    "protect_trained": "models.exact",
    "public": "models.protected_model",
    "reinitialize": "models.protecting",
    "restore_statistics": "models.restoring",
    "secret_checkpoint": "models.binding",
    "unbind": "models.binding",
    "unlock": "models.unlocking",
    "Passport": "passports.passport",
    "PassportEntry": "passports.entries",
    "PassportFunction": "passports.functions",
    "PassportInputModel": "serving.passport_input",
    "export_litert": "serving.exports",
    "export_onnx": "serving.exports",
    "export_saved_model": "serving.exports",
    "passport_spec": "serving.passport_input",
    "require_passport": "serving.passport_input",
    "with_passport": "serving.passport_input",
}

# What is asked for may be the first to import Keras.
__getattr__, __dir__, __all__ = exported(
    __name__, _WHERE, then=registration.register
)

moved.register()
registration.register()
