"""The command `keras-passport`: passports and models without a program."""

from keras_passport.lazy import exported

__getattr__, __dir__, __all__ = exported(
    __name__, {"main": "parser", "parse": "parser", "run": "parser"}
)
