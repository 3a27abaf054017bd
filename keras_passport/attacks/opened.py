"""`Opened`: a public model whose hidden parameters an attacker makes up."""

from collections.abc import Container

import keras
import numpy as np
from keras import ops

from keras_passport import graph
from keras_passport.layers import folding
from keras_passport.layers.passport_normalization import PassportNormalization
from keras_passport.layers.protected import protected_layers
from keras_passport.models import binding, protected_model, unlocking


class Opened(keras.Model):
    """A public model with γ and β as variables of its own.

    It computes as fast as the protected model, through the same layers, and
    trains with `fit` on every backend.

    Args:
        model: Protected model; a copy of what is public of it is used.
        parameters: Dict from the path of every protected layer to a tuple of
            γ and β to start from, float arrays `(channels,)`. Defaults to
            those of `neutral`.
        kernels: Whether kernels, and all else that is public, train too; or
            the paths of the layers whose kernels do.
        statistics: Whether batch normalisations use, and re-estimate, the
            batch's own statistics in training; otherwise they stay as
            published.
        affine: Whether γ and β train.

    Example:

    >>> opened = kp.attacks.Opened(model)
    >>> opened.compile("adam", "sparse_categorical_crossentropy")
    """

    def __init__(
        self,
        model: keras.Model,
        parameters: dict | None = None,
        kernels: bool | Container[str] = False,
        statistics: bool = False,
        affine: bool = True,
    ):
        super().__init__(name="opened")
        self.public = protected_model.public(model)
        if parameters is None:
            parameters = neutral(self.public)
        self._paths = list(protected_layers(self.public))
        self._parameters = [
            self.add_weight(
                shape=np.shape(value),
                # As passport layers compute them, whatever the policy.
                dtype="float32",
                initializer=keras.initializers.Constant(0.0),
                trainable=affine,
                name=f"{path.replace('/', '_')}_{role}",
            )
            for path in self._paths
            for role, value in zip(
                ("gamma", "beta"), parameters[path], strict=True
            )
        ]
        self.assign(parameters)
        self._set_trainable(kernels, statistics)

    def _set_trainable(self, kernels, statistics):
        found = graph.walk(self.public, stop=(PassportNormalization,))
        for path, layer in found:
            trains = kernels if isinstance(kernels, bool) else path in kernels
            if isinstance(layer, PassportNormalization):
                layer.trainable = True
                for part in (layer.layer, *layer.between):
                    _set(part, trains)
                layer.normalization.trainable = statistics
                for own in (layer.gamma, layer.beta):
                    # Its place is taken by the attacker's.
                    if own is not None:
                        own.trainable = False
            elif isinstance(layer, keras.layers.BatchNormalization):
                layer.trainable = statistics
            elif not graph.children(layer):
                _set(layer, trains)

    def assign(self, parameters: dict) -> None:
        """Sets γ and β of all layers; as for the constructor."""
        values = [value for path in self._paths for value in parameters[path]]
        for variable, value in zip(self._parameters, values, strict=True):
            variable.assign(np.asarray(value, "float32"))

    def reset(self, model: keras.Model, parameters: dict) -> None:
        """Starts anew, for another training of what is compiled already.

        Args:
            model: As for the constructor: what is public is copied from it.
            parameters: As for the constructor.
        """
        graph.copy_state(model, self.public)
        self.assign(parameters)

    @property
    def parameters(self) -> dict:
        """Dict from path to γ and β as they are now, float32 arrays."""
        return {
            path: tuple(map(ops.convert_to_numpy, pair))
            for path, pair in self._pairs().items()
        }

    def _pairs(self):
        """Dict from path to the variables of γ and β."""
        pairs = zip(self._parameters[::2], self._parameters[1::2], strict=True)
        return dict(zip(self._paths, pairs, strict=True))

    def call(self, inputs, training=None):
        with binding.assumed(self.public, self._pairs()):
            return self.public(inputs, training=training)

    def compute_output_spec(self, inputs, training=None):
        return self.public.compute_output_spec(inputs)

    def plain(self) -> keras.Model:
        """The attacked model as an ordinary Keras model."""
        return unlocking.with_parameters(
            self.public, self.parameters, fold=False
        )

    def protected(self) -> protected_model.ProtectedModel:
        """The protected model as it is now: its owner can bind a passport.

        Kernels, statistics, V1's β and V2's γ are the attacker's.
        """
        parameters = self.parameters
        for path, layer in protected_layers(self.public).items():
            for own, value in zip(
                (layer.gamma, layer.beta), parameters[path], strict=True
            ):
                if own is not None:
                    own.assign(value)
        return protected_model.public(self.public)


def _set(layer, trains):
    """An attacker trains what the owner froze, too."""
    layer.trainable = False
    if trains:
        graph.thaw(layer)


def neutral(model: keras.Model) -> dict:
    """γ = 1 and β = 0, but for what the model shows of them (V1, V2).

    Args:
        model: Protected model.

    Returns:
        Dict from path to γ and β, float32 arrays `(channels,)`.
    """
    parameters = {}
    for path, layer in protected_layers(model).items():
        gamma, beta = folding.gamma_and_beta(layer, neutral=True)
        parameters[path] = gamma.astype("float32"), beta.astype("float32")
    return parameters
