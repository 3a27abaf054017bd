"""The pictures that a passport of an image kind is made of."""

import secrets
from collections.abc import Sequence

import numpy as np

from common.data import Dataset
from common.errors import UserError

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
        files: the owner's picture files.
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
        if len(files) < least or (most and len(files) > most):
            raise UserError(
                f"--passport={kind} with --function={function} takes "
                f"{'' if most else 'at least '}{least} --identity_images. "
                f"Received: {len(files)}"
            )
        return np.stack([read_picture(f, dataset.input_shape) for f in files])
    # Which pictures these are is part of the secret, so no seed decides it.
    chosen = secrets.SystemRandom().sample(
        range(len(dataset.x_train)), most or num_images or NUM_IMAGES
    )
    return dataset.x_train[chosen]


def read_picture(path: str, shape: tuple[int, int, int]) -> np.ndarray:
    """Any picture file as uint8 of `shape`, transparency put on white."""
    from PIL import Image, ImageOps

    height, width, channels = shape
    try:
        with Image.open(path) as file:
            picture = ImageOps.exif_transpose(file)
            if picture.mode[0] in "IF":
                # More than 8 bits: Pillow would clip them, not scale them.
                values = np.asarray(picture, "float64")
                values -= values.min()
                values *= 255 / (values.max() or 1)
                picture = Image.fromarray(values.round().astype("uint8"))
            if picture.has_transparency_data:
                picture = picture.convert("RGBA")
                white = Image.new("RGBA", picture.size, "white")
                picture = Image.alpha_composite(white, picture)
            picture = picture.convert("L" if channels == 1 else "RGB")
            picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    # Pillow's decoders raise each what they like.
    except Exception as error:
        raise UserError(
            f"--identity_images: {path} cannot be read as a picture ({error})."
        ) from error
    return np.asarray(picture, "uint8").reshape(shape)
