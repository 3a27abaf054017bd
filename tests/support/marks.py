"""Marks of tests that need a certain backend, or version of Keras."""

import keras
import pytest

needs_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="TensorFlow's own"
)


def has_keras(version: str) -> bool:
    """Whether Keras is of a version, such as "3.15", or of a later one."""
    have, need = (
        [int(part) for part in text.split(".")[:2]]
        for text in (keras.__version__, version)
    )
    return have >= need


def needs_keras(version: str, reason: str):
    """For what older versions, which the package runs with, don't have."""
    return pytest.mark.skipif(not has_keras(version), reason=reason)


def marked(names, marks: dict) -> list:
    """Parameters of those names, some of which have a mark."""
    return [pytest.param(name, marks=marks.get(name, ())) for name in names]
