"""Modules that have moved, under the names that programs know them by."""

import importlib
import importlib.abc
import importlib.util
import sys
import warnings

_WHERE = {
    "calibration": "models.calibration",
    "commands": "cli.commands",
    "contents": "leaks.contents",
    "derivation": "passports.derivation",
    "features": "models.features",
    "functions": "passports.functions",
    "geometry": "passports.geometry",
    "hiding": "models.hiding",
    "kernels": "layers.kernels",
    "normalization": "layers.normalization",
    "passport_file": "passports.passport_file",
    "pictures": "cli.pictures",
    "plain_hdf5": "passports.plain_hdf5",
    "report": "models.report",
    "searches": "leaks.searches",
    "sites": "models.sites",
    "transform": "models.protecting",
    "unlocking": "models.unlocking",
}


class _Moved(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        package, _, module = name.rpartition(".")
        if package != __package__ or module not in _WHERE:
            return None
        return importlib.util.spec_from_loader(name, self)

    def exec_module(self, module):
        old = module.__spec__.name
        new = f"{__package__}.{_WHERE[old.rpartition('.')[2]]}"
        warnings.warn(f"{old} is {new} now", DeprecationWarning, stacklevel=2)
        # The import system takes what stands here now.
        sys.modules[old] = importlib.import_module(new)


def register() -> None:
    """Lets the modules be imported by their old names, with a warning."""
    if not any(isinstance(finder, _Moved) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Moved())
