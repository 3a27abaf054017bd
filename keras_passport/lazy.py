"""Packages whose names are imported when they are first used.

A client that loads a passport and packs it needs NumPy, not Keras: so neither
this package nor a folder of it imports what nobody has asked for.
"""

import importlib
import pathlib
import sys


def exported(package: str, where: dict, then=lambda: None) -> tuple:
    """What a package's `__init__` needs to offer names lazily.

    Args:
        package: Its `__name__`.
        where: Dict from name to the module, inside of the package, that has
            it, or `.folder.module` beside the package; `None` for a module of
            that name.
        then: Called after each import.

    Returns:
        Tuple of `__getattr__`, `__dir__` and `__all__` for the package.

    Example:

    >>> from keras_passport import lazy
    >>> get, directory, names = lazy.exported(
    ...     "keras_passport", {"bind": "models.binding"}
    ... )
    >>> get("bind") is kp.bind
    True
    """
    names = sorted(where)

    def get(name):
        if name not in where:
            # A module is an attribute once anything has imported it: so what
            # ran before must not decide whether there is one.
            if _is_module(package, name):
                return importlib.import_module(f".{name}", package)
            raise AttributeError(
                f"module '{package}' has no attribute '{name}'. "
                f"It offers {', '.join(names)}"
            )
        module = importlib.import_module(f".{where[name] or name}", package)
        then()
        return getattr(module, name) if where[name] else module

    def directory():
        return sorted([*vars(sys.modules[package]), *names])

    return get, directory, names


def _is_module(package, name) -> bool:
    """Whether a package has a module, or a folder of modules, of a name."""
    if name.startswith("_"):
        return False
    folders = map(pathlib.Path, sys.modules[package].__path__)
    return any(
        (folder / f"{name}.py").is_file()
        or (folder / name / "__init__.py").is_file()
        for folder in folders
    )


def above(module: str):
    """A module of a floor above, looked up when it is called.

    What a passport is needs NumPy alone, what it is made for needs Keras: its
    methods that take a model reach up, and nothing is imported before they do.

    Args:
        module: Its name, inside of this package.
    """
    return importlib.import_module(f"{__package__}.{module}")
