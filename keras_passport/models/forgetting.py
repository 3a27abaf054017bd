"""What a published network says of the numbers that it was trained from.

Trained kernels are still like those that they began as, and Keras draws those
from a seed of 30 bits for each layer: who has it draws them again, and puts
rows in a secret order back (`attacks.with_rows_of`).
"""

import secrets

import keras
import numpy as np
from keras import ops

from keras_passport import graph
from keras_passport.passports.derivation import derive, generator

# Whose numbers are independent of each other: in any order they are as likely.
_INDEPENDENT = (
    keras.initializers.RandomNormal,
    keras.initializers.RandomUniform,
    keras.initializers.TruncatedNormal,
    keras.initializers.VarianceScaling,
)


def forget_seeds(model: keras.Model) -> None:
    """Takes seeds out of a model's configuration and state.

    Those of initialisers and, since a script's seed gives all of them, those
    of dropout and of augmentation, too.

    Args:
        model: A model that shares no layer with others.
    """
    for layer in model._flatten_layers():
        for name, value in list(vars(layer).items()):
            if isinstance(value, keras.initializers.Initializer):
                if getattr(value, "_init_seed", None) is not None:
                    config = {**value.get_config(), "seed": None}
                    setattr(layer, name, type(value).from_config(config))
            elif isinstance(value, keras.random.SeedGenerator):
                # Not of Keras, which draws it of the same script's seed.
                drawn = secrets.randbelow(10**9) + 1
                value.state.assign(np.array([drawn, 0], value.state.dtype))
                value._initial_seed = None
        if isinstance(getattr(layer, "seed", None), int):
            layer.seed = None


def shuffle_kernels(model: keras.Model, seed: bytes) -> None:
    """Gives the numbers of untrained kernels an order that a secret says.

    Args:
        model: An untrained model. Kernels whose numbers are not independent
            (`Orthogonal`) stay as they are.
        seed: 16 bytes or more.
    """
    for path, layer in graph.walk(model):
        for variable in getattr(layer, "_trainable_variables", ()):
            made = getattr(layer, f"{variable.name}_initializer", None)
            if isinstance(made, _INDEPENDENT):
                values = ops.convert_to_numpy(variable)
                drawn = generator(derive(seed, "initial", path, variable.name))
                order = drawn.permutation(values.size)
                variable.assign(np.reshape(values.ravel()[order], values.shape))
