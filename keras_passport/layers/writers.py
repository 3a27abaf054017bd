"""Who traces or freezes a function in order to write it into a file."""

import sys

from keras_passport.errors import PassportError

# Modules that trace or freeze a function in order to write it into a file.
_WRITERS = (
    "keras.src.export.",
    "keras.src.backend.tensorflow.export",
    "keras.src.backend.jax.export",
    "tensorflow.python.framework.convert_to_constants",
    "tensorflow.python.saved_model.save",
    "tensorflow.lite.",
    "tf2onnx.",
    "jax._src.export.",
    "jax.experimental.jax2tf.",
    "jax2onnx.",
)


def refuse_writers(depth: int = sys.maxsize) -> None:
    """Raises `PassportError` if a function is traced or frozen for a file.

    Args:
        depth: How many of the calls under way are looked at.
    """
    frame = sys._getframe(1)
    while frame is not None and depth > 0:
        if f"{frame.f_globals.get('__name__', '')}.".startswith(_WRITERS):
            raise unexportable()
        frame, depth = frame.f_back, depth - 1


def unexportable():
    """The error of an export of layers that are not given their passport."""
    return PassportError(
        "Expected an export without secrets. Received: a protected layer "
        "without a passport as an input, so that the file would hold the "
        "keys. Use keras_passport.export_saved_model, export_onnx or "
        "export_litert, whose files take the passport as an input, or "
        "`model.save(...)`, and keep the passport file apart"
    )
