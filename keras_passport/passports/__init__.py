"""What a passport is, and its file: with NumPy alone, without Keras."""

from keras_passport.lazy import exported

__getattr__, __dir__, __all__ = exported(
    __name__,
    {
        "KINDS": "passport",
        "ROLES": "entries",
        "SPEC_FILE": "specs",
        "SPEC_VERSION": "specs",
        "Passport": "passport",
        "PassportEntry": "entries",
    },
)
