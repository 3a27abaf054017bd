"""Names that programs of earlier versions import go on to be importable."""

import importlib
import sys
import warnings

import pytest

import keras_passport

# Modules of version 0.1.0, with names that it documented in each.
NAMES = {
    "calibration": ["calibrate"],
    "cli": ["main", "parse", "run"],
    "commands": [],
    "contents": [],
    "derivation": [],
    "features": ["input_shapes", "layer_inputs"],
    "functions": ["PassportFunction", "get"],
    "geometry": ["Geometry", "digest"],
    "hiding": ["hide_statistics"],
    "kernels": ["KernelAdapter", "register_kernel_layer"],
    "layers": ["PassportNormalization"],
    "leaks": ["Leak", "LeakReport", "Trace", "find_leaks"],
    "models": [
        "ProtectedModel",
        "assumed",
        "bind",
        "calibrate",
        "check_passport",
        "function_of",
        "keyed_function",
        "presented",
        "protected_layers",
        "public",
        "secret_checkpoint",
        "unbind",
    ],
    "normalization": ["estimate_statistics"],
    "passport_file": ["load", "save"],
    "passports": ["KINDS", "ROLES", "Passport", "PassportEntry"],
    "pictures": [],
    "plain_hdf5": ["PlainHDF5"],
    "report": ["PassportReport"],
    "searches": [],
    "serving": [
        "INPUT",
        "LABELS_FILE",
        "PassportInputModel",
        "export_litert",
        "export_onnx",
        "export_saved_model",
        "passport_spec",
        "require_passport",
        "with_passport",
    ],
    "sites": [],
    "transform": ["inspect", "protect", "reinitialize"],
    "unlocking": ["unlock"],
}


@pytest.mark.parametrize("module", NAMES)
def test_a_module_that_moved_is_found_by_its_old_name(module):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        old = importlib.import_module(f"keras_passport.{module}")
    missing = [name for name in NAMES[module] if not hasattr(old, name)]
    assert not missing


def test_it_is_the_module_itself_and_says_where_it_is():
    with pytest.warns(DeprecationWarning, match="models.protecting now"):
        sys.modules.pop("keras_passport.transform", None)
        old = importlib.import_module("keras_passport.transform")
    assert old.protect is keras_passport.protect
