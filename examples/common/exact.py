"""Protects a trained model exactly: what `protect_model.py` does by default."""

from collections.abc import Callable, Sequence

import keras
import numpy as np

import keras_passport as kp
from common import data, training
from common.errors import UserError, users_mistakes
from common.rundir import PRIVATE, RunDirectory, save_model
from keras_passport.cli import given
from keras_passport.cli.pictures import read_images
from keras_passport.files import replacing, write_json
from keras_passport.passports import specs
from keras_passport.scores import only_shape

# Of the program's flags, those that have an effect here. `attack.py` reads
# the pictures again by them.
SETTINGS = (
    "method",
    "model",
    "images",
    "class_names",
    "test_fraction",
    "image_size",
    "preprocessing",
    "select",
    "order",
    "identity_images",
    "flip",
    "shift",
    "num_fakes",
    "fake_examples",
    "seed",
)
# Of the fakes: what an attacker makes who knows nothing.
_KIND = "random_pattern"


def run(
    model: keras.Model,
    config: dict,
    directory: RunDirectory,
    read: Callable[[], tuple[data.Dataset, str]] | None,
    identity_images: Sequence[str] | None = None,
) -> None:
    """Protects a model, writes it and its passport, and judges both.

    Args:
        model: the trained model.
        config: what all that follows depends on: `SETTINGS`.
        directory: where results go; what is there must not be a run.
        read: reads the pictures to judge it by, if there are any, and finds
            out which preprocessing the model expects.
        identity_images: the owner's picture files, or folders of them, of
            which the passport is made.
    """
    config = {name: config[name] for name in SETTINGS}
    with directory.locked():
        for path in (directory.passport, directory.protected):
            if path.exists():
                raise UserError(
                    f"{path} is there already, of another run: give another "
                    "--run_dir."
                )
        dataset = None
        if read is not None:
            dataset, mode = read()
            config |= {"preprocessing": mode, "dataset": config["images"]}
        with users_mistakes():
            report = kp.inspect(model, insert=True)
            selects = given.selection(
                config["select"],
                [row.path for row in report.rows if row.role == "kernel"],
            )
            protected, passport = kp.protect_trained(
                model,
                selects,
                order=config["order"],
                images=_read(identity_images, model, config),
            )
        print(protected.report)
        directory.open(config)
        save_model(model, directory.original, PRIVATE)
        # A model whose passport was lost would be of no use.
        with replacing(directory.passport, PRIVATE) as temporary:
            passport.save(temporary)
        protected.save(directory.protected)
        print(f"Wrote {directory.protected} and {directory.passport}, a secret")
        warning = given.first_seed_warning(model) if config["order"] else None
        if warning:
            print(warning)
        if dataset is not None:
            result = _judged(model, protected, passport, dataset, config)
            write_json(directory.result, result)


def _read(files, model, config) -> np.ndarray | None:
    """The owner's pictures, as the model takes pictures; None for none."""
    if not files:
        return None
    mode = config["preprocessing"]
    return read_images(
        files,
        only_shape(model.input_shape),
        # Without pictures to judge by, nobody knows better.
        None if mode == "auto" else mode,
        config["image_size"],
    )


def _judged(model, protected, passport, dataset, config) -> dict:
    """Accuracies in per cent, of the original, the copy, and under fakes."""
    x, y = dataset.normalize(dataset.x_test), dataset.y_test
    right = {
        name: 100 * float(np.mean(training.predict_labels(one, x) == y))
        for name, one in (("original", model), ("valid", protected))
    }
    fakes = kp.attacks.fake_passports(
        protected,
        _KIND,
        config["num_fakes"],
        dataset.test_examples(config["fake_examples"]),
        order_seeds=specs.order_seeds(passport),
        seed=config["seed"],
    )
    accuracies = [100 * value for value in fakes.accuracies]
    print(
        f"Original {right['original']:.2f} %, with the passport "
        f"{right['valid']:.2f} %, {len(accuracies)} fakes "
        f"{np.mean(accuracies):.2f} % on average, {max(accuracies):.2f} % at "
        "most"
    )
    return {
        "original_accuracy": right["original"],
        "valid_accuracy": right["valid"],
        "fake_accuracies": accuracies,
    }
