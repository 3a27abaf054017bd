"""The trainers of CIFAR and the digits: flags and original of their own."""

from collections.abc import Callable
from typing import Any

import keras
from absl import flags

from common import data, run, training
from common.distribution import Distribution
from common.errors import UserError
from common.rundir import load_model
from common.settings import settings

flags.DEFINE_enum(
    "dataset",
    "cifar10",
    sorted(data.SOURCES),
    "What to classify. The digits come with scikit-learn.",
)
flags.DEFINE_string(
    "data_dir",
    None,
    "TensorFlow Datasets' folder, or one that holds cifar10.npz or "
    "cifar100.npz (arrays x_train, y_train, x_test, y_test).",
)
flags.DEFINE_string(
    "reference",
    None,
    "A .keras file: an original of this very network that is trained already.",
)
flags.DEFINE_enum(
    "mixed_precision",
    "none",
    ["none", "float16", "bfloat16"],
    "Type that the networks compute in.",
)
flags.DEFINE_integer(
    "steps_per_execution",
    1,
    "Training steps in one call of the device; more pay on a GPU.",
    lower_bound=1,
)


def main(name: str, build: Callable[..., keras.Model], **options: Any) -> None:
    """Runs the main job, or what is left of it.

    Args:
        name: of the network, for the directory of its runs.
        build: `(input_shape, num_classes, **options)` -> the network.
        options: the network's own flags.
    """
    run.main(lambda spread: Trainer(spread, name, build, options))


class Trainer(run.Job):
    """Trains an original and, from scratch, its protected network.

    Args:
        spread: over what the trainings are spread.
        name: as for `main`.
        build: as for `main`.
        options: as for `main`.
    """

    def __init__(
        self,
        spread: Distribution,
        name: str,
        build: Callable[..., keras.Model],
        options: dict,
    ):
        dataset = flags.FLAGS.dataset
        config = settings(__name__, data.SOURCES[dataset].defaults)
        super().__init__(
            spread,
            f"{name}-{dataset}",
            {**config, **options},
            data.load(dataset, flags.FLAGS.data_dir),
        )
        self._build = lambda: build(
            self.dataset.input_shape, self.dataset.num_classes, **options
        )
        self._reference: keras.Model | None = None

    def prepare(self) -> None:
        path = flags.FLAGS.reference
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
        print(f"Training the original, {model.count_params():,} parameters")
        self.train(model, "original")
        return model

    def _new_network(self) -> keras.Model:
        keras.utils.set_random_seed(self.recipe.seed)
        with (
            self.spread.scope(),
            training.precision(self.config["mixed_precision"]),
        ):
            return self._build()


def _weight_shapes(model: keras.Model) -> list[tuple]:
    return [tuple(weight.shape) for weight in model.weights]
