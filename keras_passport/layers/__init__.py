"""The layer that takes γ and β from a passport, and what it is made of."""

from keras_passport.lazy import exported

__getattr__, __dir__, __all__ = exported(
    __name__,
    {
        "PassportNormalization": "passport_normalization",
        "function_of": "protected",
        "protected_layers": "protected",
    },
)
