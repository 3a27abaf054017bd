"""Functions of Keras's that are replaced by ones that ask us first."""

import functools


def replace(owner, name: str):
    """Decorates what takes the place of a function; it gets the old one.

    Args:
        owner: Module or class that has the function.
        name: Of the function.
    """

    def decorator(function):
        original = getattr(owner, name)

        @functools.wraps(original)
        def replacement(*args, **kwargs):
            return function(original, *args, **kwargs)

        setattr(owner, name, replacement)
        return replacement

    return decorator
