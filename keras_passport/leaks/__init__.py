"""`find_leaks`: searches what is published for what a passport keeps secret."""

from keras_passport.lazy import exported

__getattr__, __dir__, __all__ = exported(
    __name__,
    {
        "Leak": "report",
        "LeakReport": "report",
        "Trace": "report",
        "find_leaks": "search",
    },
)
