"""What is known of a finished run to those who attack it, and judge that."""

import functools
import hashlib
from typing import Any

import numpy as np

import keras_passport as kp
from common.data import Dataset, augment
from common.rundir import RunDirectory, load_model


def given(directory: RunDirectory, dataset: Dataset) -> dict[str, Any]:
    """All that `kp.evaluation.evaluate` needs of a run, as keywords.

    Args:
        directory: of the finished run.
        dataset: what it was trained on.
    """
    model = load_model(directory.protected)
    passport = kp.Passport.load(directory.passport).fitted(model)
    reference = None
    if directory.original.exists():
        reference = load_model(directory.original)
    digest = hashlib.sha256(directory.protected.read_bytes())
    digest.update(passport.fingerprint.encode())
    return {
        "model": model,
        "passport": passport,
        "train": (dataset.normalize(dataset.x_train), dataset.y_train),
        "test": (dataset.normalize(dataset.x_test), dataset.y_test),
        "reference": reference,
        "augment": functools.partial(_augment, dataset),
        "fingerprint": digest.hexdigest(),
        "title": dataset.name,
    }


def _augment(
    dataset: Dataset, x: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Normalised pictures as the defender's training shows them."""
    black = dataset.normalize(np.zeros((1, *x.shape[1:]), "uint8"))
    return augment(x - black, rng, dataset.pad, dataset.flip) + black
