"""The errors that this package raises on purpose."""


class PassportError(ValueError):
    """A passport that is missing, damaged, or made for another model."""


class PassportRequiredError(PassportError):
    """A protected model was called without its passport.

    It takes one string, as Keras needs to re-create an error with the
    layer's name and call arguments added.
    """
