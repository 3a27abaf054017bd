"""Models that take their passport with every call, and their files."""

from keras_passport.lazy import exported

__getattr__, __dir__, __all__ = exported(
    __name__,
    {
        "INPUT": "passport_input",
        "LABELS_FILE": "exports",
        "PassportInputModel": "passport_input",
        "export_litert": "exports",
        "export_onnx": "exports",
        "export_saved_model": "exports",
        "passport_spec": "passport_input",
        "require_passport": "passport_input",
        "with_passport": "passport_input",
    },
)
