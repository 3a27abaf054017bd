"""The flags that all programs share, and their values."""

import math
import os
import sys
from collections.abc import Mapping
from typing import Any

from absl import flags

from keras_passport.passports.derivation import (
    DEFAULT_KEY_SCALING,
    KEY_SCALINGS,
    MADE_KINDS,
)

flags.DEFINE_enum(
    "passport",
    "random_image",
    MADE_KINDS,
    "Kind of passport: the paper's T3, T2 or T1.",
)
flags.DEFINE_enum(
    "function",
    "V3",
    ["V1", "V2", "V3"],
    "What the passport makes: the scale (V1), the shift (V2) or both (V3).",
)
flags.DEFINE_enum(
    "key_scaling",
    DEFAULT_KEY_SCALING,
    KEY_SCALINGS,
    "Size of the keys: as the paper makes them, of norm 1, of norm "
    "sqrt(size / 2), with which He's initialisation makes scales of about 1, "
    "or so and at right angles to each other; the last with signs that follow "
    "from the seed, which nobody guesses layer by layer.",
)
flags.DEFINE_bool(
    "hide_statistics",
    True,
    "Publish no statistics of single channels, from which scales and shifts "
    "can be found: they become part of the hidden parameters (V2, V3).",
)
flags.DEFINE_bool(
    "hide_rows",
    True,
    "Publish kernels with their rows in a secret order, which follows from the "
    "passport: filters' shapes tell four of five signs of γ otherwise. One "
    "passport serves all examples of a call then.",
)
flags.DEFINE_string(
    "owner",
    None,
    "A name. The network is trained with signs of γ that follow from a "
    "secret, then claimed and recorded in this name (Section 3.2); None for "
    "no claim.",
)
flags.DEFINE_list(
    "identity_images",
    None,
    "Picture files that stand for the owner (logo.png,portrait.jpg), or "
    "folders of them. Without them, pictures are drawn from the training set.",
)
flags.DEFINE_integer(
    "num_images",
    None,
    "How many pictures to draw for a random_image passport; 20 if not given.",
    lower_bound=2,
)
flags.DEFINE_integer("epochs", None, "Of either training.", lower_bound=1)
flags.DEFINE_integer("batch_size", None, "Pictures a step.", lower_bound=1)
flags.DEFINE_float("learning_rate", None, "Its peak.", lower_bound=0)
flags.DEFINE_float(
    "weight_decay", 5e-4, "Of the kernels, as added to their gradients.", 0
)
flags.DEFINE_integer(
    "num_fakes", None, "Fake passports of the same kind to try.", lower_bound=1
)
flags.DEFINE_integer(
    "fake_examples",
    None,
    "Test pictures that each fake is judged on.",
    lower_bound=1,
)
flags.DEFINE_enum(
    "strategy",
    "none",
    ["none", "on_device", "mirrored", "multi_worker"],
    "Trainings and fakes on one device, with JAX in calls of a whole epoch "
    "(on_device), on all devices of this machine "
    "(mirrored), or on several machines (multi_worker, with TF_CONFIG), with "
    "TensorFlow. --batch_size is that of all of them together.",
)
flags.DEFINE_integer(
    "seed",
    0,
    "Of initial weights and of the data's order; never of the passport.",
    lower_bound=0,
)
flags.DEFINE_string(
    "run_dir",
    None,
    "Where all results go and from where an interrupted run goes on; "
    "runs/<network>-<dataset>-<passport>-<function> if not given.",
)

# An empty shell variable would leave a network without a claim.
flags.register_validator(
    "owner",
    lambda name: name is None or bool(name.strip()),
    "must be a name, or not be given",
)
for _name in ("learning_rate", "weight_decay"):
    # Bounds let nan through, which is neither above nor below them.
    flags.register_validator(
        _name,
        lambda value: value is None or math.isfinite(value),
        "must be a finite number",
    )


def settings(module: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """What a run's results depend on: these flags and a program's own.

    Where things lie is left out (`--run_dir`, `--data_dir`, `--import`), and
    of files and folders that the user names only the names are kept.

    Args:
        module: the name of the module that defines the program's flags.
        defaults: values of the flags that the user leaves open.
    """
    values = {
        flag.name: flag.value
        for name in (__name__, module)
        for flag in flags.FLAGS.get_flags_for_module(sys.modules[name])
        if flag.name not in _WHERE
    }
    for name, value in defaults.items():
        if values[name] is None:
            values[name] = value
    for name in _PATHS & values.keys():
        if isinstance(values[name], list):
            values[name] = [os.path.basename(path) for path in values[name]]
        elif values[name]:
            values[name] = os.path.basename(os.path.normpath(values[name]))
    return values


# Flags that say where things lie.
_WHERE = {"run_dir", "data_dir", "import"}
_PATHS = {"identity_images", "images", "model", "reference"}
