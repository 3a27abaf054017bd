"""The errors that this package raises on purpose."""


class PassportError(ValueError):
    """A passport that is missing, damaged, or made for another model."""

    # TensorFlow re-creates an error that leaves a traced function only if its
    # constructor is this one; another's becomes a StagingError.
    __init__ = Exception.__init__


class PassportRequiredError(PassportError):
    """A protected model was called without its passport.

    It takes one string, as Keras and TensorFlow need to re-create an error
    with the layer's name, or where a traced function raised it, added.
    """
