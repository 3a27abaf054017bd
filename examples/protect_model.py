"""Protects a model of your own with a passport, by fine-tuning it.

    python examples/protect_model.py --model=my.keras --images=folder \
        --passport=fixed_image --identity_images=logo.png,portrait.png

`--model` is a classifier that Keras saved. `--images` is a folder with one
sub-folder of pictures per class (or with two such folders, `train` and
`test`), or a dataset of TensorFlow Datasets:

    python examples/protect_model.py --model=my.keras --images=cifar10

A model without normalisations (VGG, AlexNet) gets some with `--insert`, and
`--select` chooses among its layers. Layers of your own, registered or not, are
found if the module that defines them is imported: `--import=my_layers.py`.
Interrupted runs go on when they are started again with the same flags.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
from absl import app, flags

import keras_passport as kp
from common import data, pictures, run, training
from common.distribution import Distribution
from common.errors import UserError
from common.rundir import load_model
from common.settings import settings
from keras_passport import scores
from keras_passport.cli import given
from keras_passport.cli.pictures import PREPROCESSING

if TYPE_CHECKING:  # Without TensorFlow's greeting, `common` imports it.
    import keras

_MODEL = flags.DEFINE_string(
    "model", None, "The trained model: a .keras or .h5 file.", required=True
)
_IMAGES = flags.DEFINE_string(
    "images",
    None,
    "A folder of class-named folders, or the name of a tfds dataset.",
    required=True,
)
_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "TensorFlow Datasets' folder, if not its own choice."
)
_CLASS_NAMES = flags.DEFINE_list(
    "class_names",
    None,
    "The folders in the order of the model's outputs; sorted by name if not "
    "given, as Keras's own loader sorts them.",
)
_TEST_FRACTION = flags.DEFINE_float(
    "test_fraction",
    0.2,
    "Part of every class kept for testing, where there is no test folder.",
    lower_bound=0.01,
    upper_bound=0.9,
)
_IMAGE_SIZE = flags.DEFINE_integer(
    "image_size", None, "Pixels a side, where the model leaves it open.", 1
)
flags.DEFINE_enum(
    "preprocessing",
    "auto",
    ["auto", *PREPROCESSING],
    "What the model expects: 0..255, 0..1, -1..1, or as the ImageNet nets of "
    "torch and caffe. auto tries all of them on training pictures.",
)
flags.DEFINE_bool(
    "insert", False, "Protect layers without a normalisation, too."
)
flags.DEFINE_string(
    "select",
    None,
    "Layers to protect, of those that can be: names with commas between them, "
    "or a regular expression found in them.",
)
_OWN = flags.DEFINE_multi_string(
    "import", None, "A module, or a .py file, that defines layers of --model."
)
flags.DEFINE_bool("flip", False, "Mirror half of the training pictures.")
flags.DEFINE_integer(
    "shift", 0, "Pixels that training pictures are shifted by, at most.", 0
)

_DEFAULTS = dict(
    epochs=10,
    batch_size=32,
    learning_rate=0.01,
    num_fakes=100,
    fake_examples=500,
)
# Training pictures that the preprocessing is found with.
_TRIED = 500


class ProtectModel(run.Job):
    """Protects the user's model and fine-tunes it."""

    fine_tunes = True

    def __init__(self, spread: Distribution):
        config = settings(__name__, _DEFAULTS)
        self.inserts = config["insert"]
        try:
            given.import_modules(_OWN.value or [])
        except ValueError as error:
            raise UserError(str(error)) from error
        self._model = load_model(_MODEL.value)
        shape = _picture_shape(self._model)
        arrays, names = _read(shape, config["seed"])
        classes = scores.only_shape(self._model.output_shape)[-1]
        if len(names) != classes:
            raise UserError(
                f"--model has {classes} outputs. Received: {len(names)} "
                f"classes in --images ({', '.join(names[:10])})"
            )
        dataset, accuracy, mode = _preprocessed(
            self._model, arrays, config["preprocessing"]
        )
        print(
            f"{self._model.name} on {len(dataset.x_train):,} training and "
            f"{len(dataset.x_test):,} test pictures of {classes} classes, "
            f"preprocessing {mode}: it classifies {100 * accuracy:.1f} % of "
            "the training pictures."
        )
        if accuracy < 2 / classes:
            print(
                "That is hardly better than chance: are the folders in the "
                "order of the outputs (--class_names), and is it trained?"
            )
        super().__init__(
            spread,
            f"{self._model.name}-{config['images']}",
            {**config, "dataset": config["images"], "preprocessing": mode},
            dataset,
            from_logits=not _gives_probabilities(self._model, dataset),
        )

    def prepare(self) -> None:
        try:
            everything = kp.inspect(self._model, self.function, insert=True)
            self.selects = given.selection(
                self.config["select"],
                [row.path for row in everything.rows if row.role == "kernel"],
            )
            report = kp.inspect(
                self._model, self.function, self.selects, insert=self.inserts
            )
        except ValueError as error:
            raise UserError(str(error)) from error
        print(report)
        if not report.protected:
            raise UserError(
                "Nothing in --model can be protected; the table says why. "
                "--insert protects layers without a normalisation."
            )

    def make_original(self) -> keras.Model:
        with self.spread.scope():
            return load_model(_MODEL.value)


def _picture_shape(model: keras.Model) -> tuple[int, int, int]:
    """The one input's shape; the user's word where it is open."""
    shape = scores.only_shape(getattr(model, "input_shape", None))
    gives = scores.only_shape(getattr(model, "output_shape", None))
    size = _IMAGE_SIZE.value
    if (
        not isinstance(shape, tuple)
        or len(shape) != 4
        or shape[-1] not in (1, 3)
        or not isinstance(gives, tuple)
        or len(gives) != 2
        or gives[-1] < 2
    ):
        raise UserError(
            "--model should be a classifier with one input of pictures "
            "(height, width, 1 or 3 channels) and one output per class. "
            f"Received: inputs {shape}, outputs {gives}"
        )
    if None in shape[1:3] and size is None:
        raise UserError(
            f"--model leaves its input size open {shape}: give --image_size."
        )
    if size is not None and any(n not in (None, size) for n in shape[1:3]):
        raise UserError(
            f"--model takes pictures of {shape[1]}x{shape[2]} pixels. "
            f"Received: --image_size={size}"
        )
    return (shape[1] or size, shape[2] or size, shape[3])


def _read(shape, seed) -> tuple[pictures.Arrays, list[str]]:
    options = dict(test_fraction=_TEST_FRACTION.value, seed=seed)
    if os.path.isdir(_IMAGES.value):
        return pictures.read_folder(
            _IMAGES.value,
            shape,
            names=_CLASS_NAMES.value,
            progress=os.isatty(1),
            **options,
        )
    if os.sep in _IMAGES.value:
        raise UserError(f"--images={_IMAGES.value} is not a folder.")
    try:
        return pictures.read_tfds(
            _IMAGES.value, _DATA_DIR.value, shape, **options
        )
    except UserError as error:
        raise UserError(f"--images is not a folder, and {error}") from error


def _preprocessed(
    model: keras.Model, arrays: pictures.Arrays, mode: str
) -> tuple[data.Dataset, float, str]:
    """The dataset as the model sees it best, how well, and by which mode."""
    x_train, y_train, x_test, y_test = arrays
    channels = x_train.shape[-1]
    found = {}
    for name, (mean, std, bgr) in PREPROCESSING.items():
        if mode not in ("auto", name) or len(mean) > channels:
            continue
        dataset = data.Dataset(
            name=_IMAGES.value,
            num_classes=scores.only_shape(model.output_shape)[-1],
            x_train=x_train,
            y_train=y_train,
            x_test=x_test,
            y_test=y_test,
            mean=np.resize(mean, channels),
            std=np.resize(std, channels),
            pad=flags.FLAGS.shift,
            flip=flags.FLAGS.flip,
            bgr=bgr,
        )
        # Folders are read class by class: a part of all of them.
        part = slice(None, None, max(1, len(y_train) // _TRIED))
        labels = training.predict_labels(
            model, dataset.normalize(x_train[part])
        )
        found[name] = (float(np.mean(labels == y_train[part])), dataset)
    if not found:
        raise UserError(f"--preprocessing={mode} is for pictures in colour.")
    best = max(found, key=lambda name: found[name][0])
    if not found[best][0]:
        # None of them right: is it a network at all?
        shown = found[best][1].normalize(x_train[part])
        training.count_right(model, shown, y_train[part], "given")
    return found[best][1], found[best][0], best


def _gives_probabilities(model: keras.Model, dataset: data.Dataset) -> bool:
    outputs = scores.predict(model, dataset.normalize(dataset.x_test[:8]))
    # Of bfloat16, too, whose numbers have two to three digits.
    sums = np.sum(outputs, axis=-1)
    return bool(np.all(outputs >= 0) and np.allclose(sums, 1, atol=0.02))


def main(_):
    run.main(ProtectModel)


if __name__ == "__main__":
    app.run(main)
