"""The job of the trainers: an original of their own, and its protected copy."""

import os
import secrets
from collections.abc import Callable
from typing import Any

import keras

import keras_passport as kp
from common import data, run, training
from common.distribution import Distribution
from common.errors import UserError
from common.rundir import PRIVATE, load_model, replacing

_SECRET_BYTES = 32


class Trainer(run.Job):
    """Trains an original and, from scratch, its protected network.

    Args:
        spread: over what the trainings and the fakes are spread.
        name: as for `Job`.
        build: `(input_shape, num_classes)` -> the network.
        config: as for `Job`.
        dataset: as for `Job`.
        reference: path of an original that is trained already.
        **options: as for `Job`.
    """

    def __init__(
        self,
        spread: Distribution,
        name: str,
        build: Callable[..., keras.Model],
        config: dict[str, Any],
        dataset: data.Dataset,
        reference: str | os.PathLike | None = None,
        **options: Any,
    ):
        super().__init__(spread, name, config, dataset, **options)
        self._build = lambda: build(dataset.input_shape, dataset.num_classes)
        self._reference_path = reference
        self._reference: keras.Model | None = None

    def prepare(self) -> None:
        path = self._reference_path
        if not path or self.spread.agree(self.directory.original.exists()):
            return
        found, model = load_model(path), self._new_network()
        if _weight_shapes(found) != _weight_shapes(model):
            raise UserError(
                f"--reference={path} is another network than these flags "
                f"build ({model.name}, {model.count_params():,} parameters). "
                f"Received: {found.name}, {found.count_params():,} parameters"
            )
        # The network that the flags build, so its names, and the types that
        # it computes in, are the flags', too.
        model.set_weights(found.get_weights())
        self.check_scores(model, "--reference")
        self._reference = model

    def make_original(self) -> keras.Model:
        if self._reference is not None:
            return self._reference
        model = self._new_network()
        # Whoever draws them again, from --seed, undoes a secret order of rows.
        with self.spread.scope():
            kp.reinitialize(model, seed=self._first_weights())
        print(f"Training the original, {model.count_params():,} parameters")
        self.train(model, "original")
        return model

    def _first_weights(self) -> bytes:
        """The secret that they follow from: a run that is repeated needs it."""
        place = self.directory.first_weights
        if self.spread.is_chief and not place.exists():
            with replacing(place, PRIVATE) as temporary:
                temporary.write_bytes(secrets.token_bytes(_SECRET_BYTES))
        self.spread.agree()
        return place.read_bytes()

    def _new_network(self) -> keras.Model:
        keras.utils.set_random_seed(self.recipe.seed)
        with (
            self.spread.scope(),
            training.precision(self.config["mixed_precision"]),
        ):
            return self._build()


def _weight_shapes(model: keras.Model) -> list[tuple]:
    return [tuple(weight.shape) for weight in model.weights]
