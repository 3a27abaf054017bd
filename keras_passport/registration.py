"""Makes Keras know this package's classes, without importing Keras for it.

`keras.saving.load_model` finds a custom class only once its module has been
imported; a client that handles passports alone should not import Keras at all.
So the layers are imported along with Keras: now, or when it is.
"""

import importlib.abc
import importlib.util
import sys

_MODULE = "keras_passport.serving.passport_input"


class _AfterKeras(importlib.abc.MetaPathFinder):
    """Finds Keras as others do, and imports our layers after it."""

    def find_spec(self, name, path=None, target=None):
        if name != "keras":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_register(module):
            execute(module)
            if not _is_importing():
                importlib.import_module(_MODULE)

        spec.loader.exec_module = execute_and_register
        return spec


def _is_importing() -> bool:
    """Whether a module of this package, half imported, asked for Keras."""
    return any(
        getattr(module.__spec__, "_initializing", False)
        for name, module in list(sys.modules.items())
        if name.startswith("keras_passport.")
    )


def named_in_hdf5(model_class):
    """Decorates a model class so that legacy `.h5` files of it load.

    For the outermost model Keras writes the class's name there, not the name
    that it is registered under. A user's own class of that name stays.
    """
    import keras

    names = keras.saving.get_custom_objects()
    names.setdefault(model_class.__name__, model_class)
    return model_class


def register() -> None:
    """Imports the layers now if Keras is imported, else after it."""
    if "keras" in sys.modules:
        importlib.import_module(_MODULE)
    elif not any(isinstance(f, _AfterKeras) for f in sys.meta_path):
        sys.meta_path.insert(0, _AfterKeras())
