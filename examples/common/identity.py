"""The pictures that a passport of an image kind is made of."""

import secrets
from collections.abc import Sequence

import numpy as np

from common.data import Dataset
from common.errors import UserError, users_mistakes
from keras_passport.cli.pictures import listed, read_picture

NUM_IMAGES = 20


def identity_images(
    dataset: Dataset,
    kind: str,
    function: str,
    files: Sequence[str] | None = None,
    num_images: int | None = None,
) -> np.ndarray | None:
    """The owner's pictures: the files given, or some of the training set.

    Args:
        dataset: gives the pictures' shape.
        kind: of the passport.
        function: of the passport: V3 takes two pictures of a fixed image.
        files: the owner's picture files, or folders of them.
        num_images: how many to draw for a random image without `files`.

    Returns:
        uint8, `(n, height, width, channels)`; None for a random pattern.
    """
    if kind == "random_pattern":
        if files:
            raise UserError(
                "--passport=random_pattern is made of no --identity_images."
            )
        return None
    if kind == "fixed_image":
        least = most = 2 if function == "V3" else 1
    else:
        least, most = 2, None
    if files:
        with users_mistakes():
            files = listed(files)
            if len(files) < least or (most and len(files) > most):
                raise ValueError(
                    f"--passport={kind} with --function={function} takes "
                    f"{'' if most else 'at least '}{least} --identity_images. "
                    f"Received: {len(files)}"
                )
            return np.stack(
                [read_picture(file, dataset.input_shape) for file in files]
            )
    # Which pictures these are is part of the secret, so no seed decides it.
    chosen = secrets.SystemRandom().sample(
        range(len(dataset.x_train)), most or num_images or NUM_IMAGES
    )
    return dataset.x_train[chosen]
