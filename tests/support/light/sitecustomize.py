"""What Python starts with in tests' processes: Keras takes less to import.

More than a third of what Keras and TensorFlow take to import is for wrappers
of scikit-learn's, a gallery of matplotlib's and a converter of JAX's that no
test calls. They do without what is not found; later all is found as ever.
"""

import functools
import os
import sys
import typing

# What is not found, and while which package is imported.
UNUSED = {"matplotlib": "keras", "pandas": "keras", "sklearn": "keras"}
BACKEND = os.environ.get("KERAS_BACKEND", "tensorflow")
if BACKEND == "tensorflow":
    UNUSED["jax"] = "tensorflow"
elif BACKEND == "numpy":
    # Keras looks for its types whenever it writes or reads a configuration.
    sys.modules["tensorflow"] = None


class Unused:
    """A finder that comes before all others."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        importing = sys.modules.get(UNUSED.get(name))
        spec = getattr(importing, "__spec__", None)
        if getattr(spec, "_initializing", False):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None


sys.meta_path.insert(0, Unused)

# TensorFlow asks of most values whether they follow a protocol. Since 3.12,
# Python looks a protocol's attributes up once.
if sys.version_info < (3, 12):
    typing._get_protocol_attrs = functools.cache(typing._get_protocol_attrs)
