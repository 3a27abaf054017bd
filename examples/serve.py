"""Exports a run's protected network, and lets a client without us run it.

The network of a finished run becomes a SavedModel that takes uint8 pictures
and a passport. A second process, which has TensorFlow but neither Keras nor
this package, classifies test pictures with it:

    python examples/serve.py --run_dir=runs/resnet-digits-random_image-V3

With files that lie elsewhere:

    python examples/serve.py --model=protected.keras --passport=owner.h5 \
        --dataset=digits --saved_model=served

What is at --saved_model stays, unless --overwrite is given and it is a
SavedModel, with nothing beside what one holds.
"""

import contextlib
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
from absl import flags

import keras_passport as kp
from common import data, pictures
from common.errors import UserError, in_one_line, run_program
from common.rundir import RunDirectory, load_model, read_json
from keras_passport import files, shapes

_RUN_DIR = flags.DEFINE_string(
    "run_dir", None, "A finished run of a trainer, for all that is not given."
)
_MODEL = flags.DEFINE_string("model", None, "A protected .keras file.")
_PASSPORT = flags.DEFINE_string("passport", None, "Its passport's file.")
_IMAGES = flags.DEFINE_string(
    "images", None, "As for protect_model.py, for a run of it."
)
_DATASET = flags.DEFINE_enum(
    "dataset", None, sorted(data.SOURCES), "What the network classifies."
)
_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "As for the trainer that made the network."
)
_SAVED_MODEL = flags.DEFINE_string(
    "saved_model",
    None,
    "Folder to export to; saved_model beside the model if not given.",
)
_OVERWRITE = flags.DEFINE_bool(
    "overwrite", False, "Replace a SavedModel that is there."
)
_EXAMPLES = flags.DEFINE_integer(
    "examples", 500, "Test pictures that the client classifies.", 1
)

# What the client runs. The two names can't be imported, installed or not.
CLIENT = """
import json, sys
sys.modules.update(keras=None, keras_passport=None)
import numpy as np
import tensorflow as tf
served = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]
with np.load(sys.argv[2]) as case:
    case = dict(case)
name = str(case["name"])
def classify(pictures, **passport):
    [scores] = served(**{name: tf.constant(pictures)}, **passport).values()
    return scores.numpy().argmax(-1)
def accuracy(passport):
    batches = np.array_split(case["pictures"], -(-len(case["labels"]) // 250))
    found = [classify(x, passport=tf.constant(passport)) for x in batches]
    return 100 * float(np.mean(np.concatenate(found) == case["labels"]))
result = {kind: accuracy(case[kind]) for kind in ("right", "wrong")}
try:
    classify(case["pictures"][:1])
except Exception as error:
    line = str(error).strip().splitlines()[0].split(" Received")[0]
    result["without"] = f"{type(error).__name__}: {line}"
print(json.dumps(result))
"""


class Server:
    """Exports the network, and asks the client what it is worth."""

    def __init__(self):
        import keras

        if keras.backend.backend() != "tensorflow":
            raise UserError("A SavedModel needs KERAS_BACKEND=tensorflow.")
        model, passport = _MODEL.value, _PASSPORT.value
        config = {"dataset": _DATASET.value}
        if _RUN_DIR.value is not None:
            directory = RunDirectory(_RUN_DIR.value)
            found = read_json(directory.config)
            if found is None:
                raise UserError(f"--run_dir={directory.path} holds no run.")
            model = model or directory.protected
            passport = passport or directory.passport
            if _DATASET.value is None:
                config = found
        if None in (model, passport) or config == {"dataset": None}:
            raise UserError(
                "Give --run_dir, or --model, --passport and --dataset."
            )
        self.folder = pathlib.Path(
            _SAVED_MODEL.value or pathlib.Path(model).parent / "saved_model"
        )
        with _about_saved_model():
            files.check_saved_model(
                self.folder, _OVERWRITE.value, "--overwrite"
            )
        self.model = load_model(model)
        self.passport = kp.Passport.load(passport)
        self.passport.check(self.model)
        self.dataset = pictures.of_run(
            self.model, config, _IMAGES.value, _DATA_DIR.value
        )
        expected, shape = self.model.input_shape[1:], self.dataset.input_shape
        if not shapes.fits(expected, shape):
            raise UserError(
                f"The network takes pictures of {expected}. Received: "
                f"{self.dataset.name}, pictures of {shape}"
            )

    def run(self) -> None:
        mean = np.asarray(self.dataset.mean, "float32")
        std = np.asarray(self.dataset.std, "float32")
        step = -1 if self.dataset.bgr else 1
        # Of what came there meanwhile, too.
        with _about_saved_model():
            kp.export_saved_model(
                self.model,
                self.folder,
                preprocessing=lambda given: (given[..., ::step] - mean) / std,
                input_dtype="uint8",
                class_names=[str(i) for i in range(self.dataset.num_classes)],
                overwrite=_OVERWRITE.value,
            )
        print(f"The SavedModel is {self.folder}")
        result = self._ask_client()
        print("Accuracy in a process without Keras and this package, per cent:")
        for kind in ("right", "wrong"):
            print(f"  {kind + ' passport':16}{result[kind]:6.2f}")
        print(f"  {'no passport':16}{result['without']}")

    def _ask_client(self) -> dict:
        wrong = kp.Passport.random_pattern(
            self.model, key_scaling=self.passport.key_scaling
        )
        count = min(_EXAMPLES.value, len(self.dataset.y_test))
        with tempfile.TemporaryDirectory() as folder:
            np.savez(
                f"{folder}/case.npz",
                name=self.model.inputs[0].name,
                pictures=self.dataset.x_test[:count],
                labels=self.dataset.y_test[:count],
                right=self.passport.pack(self.folder),
                wrong=wrong.pack(self.folder),
            )
            client = [sys.executable, "-I", "-c", CLIENT]
            finished = subprocess.run(
                [*client, str(self.folder.absolute()), f"{folder}/case.npz"],
                cwd=folder,
                capture_output=True,
                text=True,
            )
        if finished.returncode:
            raise UserError(f"The client failed:\n{finished.stderr[-2000:]}")
        return json.loads(finished.stdout.splitlines()[-1])


@contextlib.contextmanager
def _about_saved_model():
    """Within, what is wrong with a place to write to is the flag's."""
    try:
        yield
    except (FileExistsError, FileNotFoundError) as error:
        raise UserError(f"--saved_model: {error}") from error


def main(_):
    with in_one_line():
        Server().run()


if __name__ == "__main__":
    run_program(main)
