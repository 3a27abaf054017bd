"""Protects a model of your own with a passport.

    python examples/protect_model.py --model=my.keras
    python examples/protect_model.py --model=my.keras --images=folder

Exactly, that is without training and with the same outputs; pictures are
needed only to judge it by, and those that `--identity_images` names are what
the passport is made of. Or by fine-tuning the model, or training it from
scratch:

    python examples/protect_model.py --model=my.keras --images=folder \
        --method=fine_tune --passport=fixed_image \
        --identity_images=logo.png,portrait.png

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

import sys
from typing import TYPE_CHECKING

import numpy as np
from absl import flags

import keras_passport as kp
from common import data, exact, pictures, run, training
from common.distribution import Distribution
from common.errors import UserError, run_program, users_mistakes
from common.rundir import RunDirectory, load_model
from common.settings import settings
from keras_passport.attacks.training import gives_logits
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
    "A folder of class-named folders, or the name of a tfds dataset. --method="
    "exact can do without.",
)
_METHOD = flags.DEFINE_enum(
    "method",
    "exact",
    ["exact", "fine_tune", "from_scratch"],
    "Without training; or with a passport of --passport's kind, by training "
    "on from the model's weights, or from new ones.",
)
_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "TensorFlow Datasets' folder, if not its own choice."
)
flags.DEFINE_list(
    "class_names",
    None,
    "The folders in the order of the model's outputs; sorted by name if not "
    "given, as Keras's own loader sorts them.",
)
flags.DEFINE_float(
    "test_fraction",
    0.2,
    "Part of every class kept for testing, where there is no test folder.",
    lower_bound=0.01,
    upper_bound=0.9,
)
flags.DEFINE_integer(
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
flags.DEFINE_bool(
    "order",
    True,
    "With --method=exact: store the rows of kernels in a secret order, too. "
    "Without, a call is shorter, and filters' shapes tell most signs of γ.",
)
_OWN = flags.DEFINE_multi_string(
    "import", None, "A module, or a .py file, that defines layers of --model."
)
_DERIVED = flags.DEFINE_bool(
    "derived_from_public",
    None,
    "Whether others have weights that --model was trained on from. You are "
    "asked, on a terminal, if you don't say.",
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
    """Protects the user's model and trains it."""

    def __init__(self, spread: Distribution):
        config = settings(__name__, _DEFAULTS)
        self.fine_tunes = config["method"] == "fine_tune"
        if self.fine_tunes:
            # It was the only one when the first runs were made.
            del config["method"]
        config.pop("order")
        if flags.FLAGS["order"].present:
            raise UserError("--[no]order goes with --method=exact alone.")
        if _IMAGES.value is None:
            raise UserError(f"--method={_METHOD.value} needs --images.")
        self.inserts = config["insert"]
        with users_mistakes():
            given.import_modules(_OWN.value or [])
        self._model = load_model(_MODEL.value)
        arrays = pictures.read(
            self._model, _IMAGES.value, _DATA_DIR.value, config
        )
        dataset, accuracy, mode = _preprocessed(self._model, arrays, config)
        print(
            f"{self._model.name} on {len(dataset.x_train):,} training and "
            f"{len(dataset.x_test):,} test pictures of {dataset.num_classes} "
            f"classes, preprocessing {mode}: it classifies "
            f"{100 * accuracy:.1f} % of the training pictures."
        )
        if accuracy < 2 / dataset.num_classes:
            print(
                "That is hardly better than chance: are the folders in the "
                "order of the outputs (--class_names), and is it trained?"
            )
        super().__init__(
            spread,
            f"{self._model.name}-{config['images']}",
            {**config, "dataset": config["images"], "preprocessing": mode},
            dataset,
            from_logits=gives_logits(
                self._model, dataset.normalize(dataset.x_test[:8])
            ),
            run_dir=flags.FLAGS.run_dir,
            identity_images=flags.FLAGS.identity_images,
        )

    def prepare(self) -> None:
        with users_mistakes():
            everything = kp.inspect(self._model, self.function, insert=True)
            self.selects = given.selection(
                self.config["select"],
                [row.path for row in everything.rows if row.role == "kernel"],
            )
            report = kp.inspect(
                self._model, self.function, self.selects, insert=self.inserts
            )
        print(report)
        if not report.protected:
            raise UserError(
                "Nothing in --model can be protected; the table says why. "
                "--insert protects layers without a normalisation."
            )

    def make_original(self) -> keras.Model:
        with self.spread.scope():
            return load_model(_MODEL.value)


def _preprocessed(
    model: keras.Model, arrays: pictures.Arrays, config: dict
) -> tuple[data.Dataset, float, str]:
    """The dataset as the model sees it best, how well, and by which mode."""
    mode, labels = config["preprocessing"], arrays[1]
    # Folders are read class by class: a part of all of them.
    part = slice(None, None, max(1, len(labels) // _TRIED))
    found = {}
    for name in PREPROCESSING if mode == "auto" else (mode,):
        dataset = pictures.dataset(
            model, arrays, {**config, "preprocessing": name}
        )
        if dataset is None:
            continue
        shown = dataset.normalize(dataset.x_train[part])
        right = training.predict_labels(model, shown) == labels[part]
        found[name] = (dataset, float(np.mean(right)), name)
    if not found:
        raise UserError(f"--preprocessing={mode} is for pictures in colour.")
    best = max(found.values(), key=lambda tried: tried[1])
    if not best[1]:
        # None of them right: is it a network at all?
        shown = best[0].normalize(best[0].x_train[part])
        training.count_right(model, shown, labels[part], "given")
    return best


def _protect_exactly() -> None:
    """Without training; what is not asked for then has no effect."""
    config = settings(__name__, _DEFAULTS)
    with users_mistakes():
        given.import_modules(_OWN.value or [])
    model = load_model(_MODEL.value)

    def read():
        arrays = pictures.read(model, _IMAGES.value, _DATA_DIR.value, config)
        dataset, _, mode = _preprocessed(model, arrays, config)
        return dataset, mode

    place = flags.FLAGS.run_dir or f"runs/{model.name}-exact"
    exact.run(
        model,
        config,
        RunDirectory(place),
        read if _IMAGES.value else None,
        flags.FLAGS.identity_images,
    )


def _warn_of_an_ancestor() -> None:
    """What no passport hides, of a model whose weights were public."""
    derived = _DERIVED.value
    asks = sys.stdin.isatty() and sys.stdout.isatty()
    if derived is None and asks:
        question = "Was --model trained on from public weights? [y/N] "
        derived = input(question).strip().lower().startswith("y")
    if derived:
        print(
            "Warning: no passport hides what was public. Whoever has those "
            "weights takes γ and β from them, filter by filter, as far as "
            "training has left them alike. Measure it: "
            "evaluate_protection.py --ancestor=public.keras"
        )


def main(_):
    _warn_of_an_ancestor()
    if _METHOD.value == "exact":
        with run.in_one_line():
            _protect_exactly()
    else:
        run.main(ProtectModel)


if __name__ == "__main__":
    run_program(main)
