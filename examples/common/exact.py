"""Protects a trained model exactly: what `protect_model.py` does by default."""

from collections.abc import Callable

import keras
import numpy as np

import keras_passport as kp
from common import data, training
from common.errors import UserError, users_mistakes
from common.rundir import PRIVATE, RunDirectory
from keras_passport.cli import given
from keras_passport.files import replacing, write_json

# Of the fakes: what an attacker makes who knows nothing.
_KIND = "random_pattern"


def run(
    model: keras.Model,
    config: dict,
    directory: RunDirectory,
    read: Callable[[], data.Dataset] | None,
) -> None:
    """Protects a model, writes it and its passport, and judges both.

    Args:
        model: the trained model.
        config: `select`, `order`, `num_fakes`, `fake_examples` and `seed`.
        directory: where results go; what is there must not be a run.
        read: reads the pictures to judge it by, if there are any.
    """
    with directory.locked():
        for path in (directory.passport, directory.protected):
            if path.exists():
                raise UserError(
                    f"{path} is there already, of another run: give another "
                    "--run_dir."
                )
        dataset = None if read is None else read()
        with users_mistakes():
            report = kp.inspect(model, insert=True)
            selects = given.selection(
                config["select"],
                [row.path for row in report.rows if row.role == "kernel"],
            )
            protected, passport = kp.protect_trained(
                model, selects, order=config["order"]
            )
        print(protected.report)
        for path in (directory.public, directory.owner):
            path.mkdir(parents=True, exist_ok=True)
        directory.owner.chmod(0o700)
        # A model whose passport was lost would be of no use.
        with replacing(directory.passport, PRIVATE) as temporary:
            passport.save(temporary)
        protected.save(directory.protected)
        print(f"Wrote {directory.protected} and {directory.passport}, a secret")
        if dataset is not None:
            result = _judged(model, protected, dataset, config)
            write_json(directory.result, result)


def _judged(model, protected, dataset, config) -> dict:
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
