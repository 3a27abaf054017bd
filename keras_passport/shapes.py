"""Shapes of which some sizes are open."""


def fits(expected: tuple, received: tuple) -> bool:
    """Whether a shape is as another one asks for it.

    Args:
        expected: Sizes, `None` where any will do.
        received: Sizes.

    Example:

    >>> from keras_passport.shapes import fits
    >>> fits((None, 8, 3), (5, 8, 3)), fits((None, 8, 3), (8, 3))
    (True, False)
    """
    return len(expected) == len(received) and all(
        size in (None, other)
        for size, other in zip(expected, received, strict=True)
    )
