"""The errors that this package raises on purpose, and which one where.

* `PassportError`, a `ValueError`: what concerns passports and protection. A
  passport, key, seed, function or passport file that is none, or not this
  model's; a model, layer or call that is not, or can't be, protected. The same
  check raises it wherever it is made.
* `ValueError`: any other argument that is out of range, of another shape, or
  does not fit the others: batches, labels, fractions, names.
* `TypeError`: an argument for which nothing of its kind would do, such as an
  object where a class is expected.
* `OSError` and those derived from it: files, as Python raises them. A passport
  file that can't be read is a `PassportError`.

A message says what was expected, then "Received: ...", and shows no value of a
secret.
"""


class PassportError(ValueError):
    """A passport or a protection that is missing, damaged, or another's."""

    # TensorFlow re-creates an error that leaves a traced function only if its
    # constructor is this one; another's becomes a StagingError.
    __init__ = Exception.__init__


class PassportRequiredError(PassportError):
    """A protected model was called without its passport.

    It takes one string, as Keras and TensorFlow need to re-create an error
    with the layer's name, or where a traced function raised it, added.
    """
