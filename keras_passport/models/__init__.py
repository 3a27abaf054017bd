"""Models under a passport: protecting, binding, calibrating, unlocking them."""

from keras_passport.lazy import exported

__getattr__, __dir__, __all__ = exported(
    __name__,
    {
        "ProtectedModel": "protected_model",
        "assumed": "binding",
        "bind": "binding",
        "forget_compiled": "binding",
        "function_of": ".layers.protected",
        "calibrate": "calibration",
        "check_passport": ".passports.passport",
        "hide_rows": "hiding_rows",
        "hide_statistics": "hiding",
        "inspect": "protecting",
        "keyed_function": "binding",
        "presented": "binding",
        "protect": "protecting",
        "protect_trained": "exact",
        "protected_layers": ".layers.protected",
        "public": "protected_model",
        "reinitialize": "protecting",
        "secret_checkpoint": "binding",
        "unbind": "binding",
        "unlock": "unlocking",
    },
)
