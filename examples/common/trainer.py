"""The trainers of CIFAR and the digits: flags and original of their own."""

import functools
from collections.abc import Callable
from typing import Any

import keras
from absl import flags

from common import data, run
from common.original import Trainer
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

    def job(spread):
        given = flags.FLAGS
        source = data.SOURCES[given.dataset]
        return Trainer(
            spread,
            f"{name}-{given.dataset}",
            functools.partial(build, **options),
            {**settings(__name__, source.defaults), **options},
            data.load(given.dataset, given.data_dir),
            reference=given.reference,
            run_dir=given.run_dir,
            identity_images=given.identity_images,
        )

    run.main(job)
