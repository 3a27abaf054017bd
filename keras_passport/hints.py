"""Names of types for signatures, for modules that do not import Keras.

A client that packs a passport needs NumPy alone, and what the backends call a
tensor has no type in common. So these say to a reader what is meant, and to a
type checker that anything may come.
"""

from typing import Any, TypeAlias

Model: TypeAlias = Any  # A `keras.Model`.
Layer: TypeAlias = Any  # A `keras.Layer`.
Tensor: TypeAlias = Any  # The backend's, or an array that becomes one.
Inputs: TypeAlias = Any  # An array or tensor, or a dict or list of them.
