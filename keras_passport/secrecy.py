"""Values that compute as ever and show nothing of themselves.

A message shows what is formatted into it; a traceback with local variables
(`pytest -l`, IPython's `%xmode Verbose`, services that collect errors) shows
the `repr` of all that a function had at hand, whoever raised. So what is
secret is held in a type whose `repr` says no more than its size.
"""

from collections.abc import Mapping

import numpy as np


class SecretArray(np.ndarray):
    """An array like any other; only `repr`, `str` and `format` tell nothing.

    What is computed of it, or cut from it, is one too. `numpy.asarray` gives
    an ordinary array of the same memory.

    Example:

    >>> from keras_passport.secrecy import hidden
    >>> hidden(np.array([0.25, -1.5]))
    <secret array of shape (2,), float64>
    """

    # Above an ordinary array's, so that both joined are secret.
    __array_priority__ = 1

    def __array_wrap__(self, array, context=None, return_scalar=False):
        # A sum is a number, as of any other array.
        wrapped = super().__array_wrap__(array, context)
        return wrapped[()] if wrapped.ndim == 0 else wrapped

    def __repr__(self):
        return f"<secret array of shape {self.shape}, {self.dtype}>"

    __str__ = __repr__

    def __format__(self, spec):
        return repr(self)


class SecretBytes(bytes):
    """Bytes, such as a seed, whose `repr` tells their number alone."""

    def __repr__(self):
        return f"<secret of {len(self)} bytes>"

    __str__ = __repr__


class SecretText(str):
    """A text, such as a seed in hexadecimal, whose `repr` tells nothing."""

    def __repr__(self):
        return f"<secret text of {len(self)} characters>"

    def __str__(self):
        return repr(self)

    def __format__(self, spec):
        return repr(self)


class SecretInt(int):
    """A number, such as a seed or a choice, whose `repr` tells nothing."""

    def __repr__(self):
        return "<secret number>"

    __str__ = __repr__

    def __format__(self, spec):
        return repr(self)


class SecretFloat(float):
    """A number with a fraction, whose `repr` tells nothing."""

    __repr__ = __str__ = SecretInt.__repr__
    __format__ = SecretInt.__format__


class SecretDict(dict):
    """A dict whose names may be anything, numbers of a key too."""

    def __repr__(self):
        return f"<secret dict of {len(self)}>"

    __str__ = __repr__


_SECRET = (
    SecretArray,
    SecretBytes,
    SecretText,
    SecretInt,
    SecretFloat,
    SecretDict,
)


def hidden(value):
    """The same value, in a type whose `repr` tells nothing of it.

    It never raises, so that a function can begin with it: nothing has its
    arguments for local variables then.

    Args:
        value: Array or tensor, bytes, text or int, or a dict, list or tuple
            of such, whose names stay as they are. Lists of numbers become
            arrays.

    Returns:
        The value, without a copy of an array; one of another type as it is.
    """
    if isinstance(value, _SECRET):
        return value
    if isinstance(value, np.ndarray):
        return value.view(SecretArray)
    if isinstance(value, bytes | bytearray | memoryview):
        return SecretBytes(value)
    if isinstance(value, str):
        return SecretText(value)
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return SecretInt(value)
    if isinstance(value, float):
        return SecretFloat(value)
    if isinstance(value, Mapping):
        named = all(isinstance(name, str) for name in value)
        return (dict if named else SecretDict)(
            (name, hidden(inner)) for name, inner in value.items()
        )
    if isinstance(value, list | tuple):
        if _are_numbers(value):
            try:
                return np.asarray(value).view(SecretArray)
            except ValueError:  # rows of different lengths
                return np.zeros(0).view(SecretArray)
        return type(value)(map(hidden, value)) if _is_plain(value) else value
    if hasattr(value, "__array__") and not isinstance(value, type):
        try:
            return np.asarray(value).view(SecretArray)
        # A symbolic tensor has no values; who has none raises what he likes.
        except Exception:
            return value
    return value


def _are_numbers(values) -> bool:
    """Whether a list holds numbers, or lists of them, at any depth."""
    while isinstance(values, list | tuple) and values:
        values = values[0]
    return isinstance(values, float | int) and not isinstance(values, bool)


def _is_plain(values) -> bool:
    return type(values) in (list, tuple)


def type_of(value: object) -> str:
    """The name of a value's type, as it was before `hidden`."""
    kind = type(value)
    if kind.__module__ == __name__:
        kind = kind.__base__
    return kind.__name__
