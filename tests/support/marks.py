"""Marks of tests that need a certain backend."""

import keras
import pytest

needs_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="TensorFlow's own"
)
