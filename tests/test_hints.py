"""Public signatures say what they take and give."""

import inspect
import types
import typing

import keras
import pytest

import keras_passport as kp

FOLDERS = ("attacks", "audit", "evaluation", "licensing", "metrics")
FOLDERS += ("ownership", "plots")
# Methods that Keras's own classes have: their signatures are Keras's.
KERAS = {
    "build",
    "call",
    "compile_from_config",
    "compute_mask",
    "compute_output_shape",
    "compute_output_spec",
    "evaluate",
    "export",
    "fit",
    "from_config",
    "get_config",
    "predict",
    "predict_on_batch",
    "quantize",
    "rematerialized_call",
    "save",
    "save_weights",
    "test_on_batch",
    "train_on_batch",
}


def is_ours(value) -> bool:
    module = getattr(value, "__module__", None) or ""
    return module.startswith("keras_passport")


def public_callables():
    """Names and functions, the methods of public classes among them."""
    found = {}
    for folder in (kp, *(getattr(kp, name) for name in FOLDERS)):
        for name in getattr(folder, "__all__", dir(folder)):
            value = getattr(folder, name)
            if name.startswith("_") or isinstance(value, types.ModuleType):
                continue
            if not is_ours(value):
                continue
            if not inspect.isclass(value):
                if inspect.isfunction(inspect.unwrap(value)):
                    found[value.__qualname__] = inspect.unwrap(value)
                continue
            for method, member in vars(value).items():
                if method.startswith("_") and method != "__init__":
                    continue
                if isinstance(member, property):
                    member = member.fget
                member = inspect.unwrap(getattr(member, "__func__", member))
                if getattr(member, "__name__", "") == "<lambda>":
                    continue  # A field's default; the field has a hint.
                is_keras = issubclass(value, keras.Layer) and method in KERAS
                if inspect.isfunction(member) and not is_keras:
                    found[f"{value.__name__}.{method}"] = member
    return found


CALLABLES = public_callables()


@pytest.mark.parametrize("name", CALLABLES)
def test_a_public_signature_has_hints(name):
    function = CALLABLES[name]
    signature = inspect.signature(function)
    missing = [
        parameter.name
        for parameter in signature.parameters.values()
        if parameter.annotation is parameter.empty
        and parameter.name not in ("self", "cls", "args", "kwargs")
    ]
    makes = name.rpartition(".")[2] == "__init__"
    if not makes and signature.return_annotation is signature.empty:
        missing.append("return")
    assert not missing
    if is_ours(function):
        # Each is the name of something.
        typing.get_type_hints(function)
