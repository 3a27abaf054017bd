"""What the examples in docstrings run with: a plugin of pytest's.

    python -m pytest -n 0 -p tests.support.docstrings \\
        --doctest-modules keras_passport

An example sees these names and none of its module's, so that it shows what a
reader would write: `kp.bind`, not `bind`. It runs in a folder of its own, with
the files of an owner and a published model in it.
"""

import io
import json
import pathlib
import shutil

import pytest


@pytest.fixture(scope="session")
def example(tmp_path_factory):
    """A network, the passport that protects it, data, and a folder of files."""
    import keras
    import numpy as np

    import keras_passport as kp

    keras.utils.set_random_seed(0)
    base = keras.Sequential(
        [
            keras.Input((8, 8, 3), name="images"),
            keras.layers.Conv2D(4, 3, padding="same", name="conv1"),
            keras.layers.BatchNormalization(name="bn1"),
            keras.layers.ReLU(name="relu1"),
            keras.layers.Conv2D(6, 3, padding="same", name="conv2"),
            keras.layers.BatchNormalization(name="bn2"),
            keras.layers.ReLU(name="relu2"),
            keras.layers.GlobalAveragePooling2D(name="pool"),
            keras.layers.Dense(3, name="classes"),
        ],
        name="network",
    )
    draw = np.random.default_rng(0)
    images = draw.random((24, 8, 8, 3), "float32")
    model = kp.protect(base)
    passport = kp.Passport.random_pattern(model, seed=0)
    folder = tmp_path_factory.mktemp("example")
    passport.save(folder / "owner.h5")
    (folder / "public").mkdir()
    model.save(folder / "public" / "model.keras")
    base.save(folder / "original.keras")
    kp.require_passport(model).save(folder / "served.keras")
    labels = np.arange(len(images)) % 3
    names = {
        "io": io,
        "json": json,
        "keras": keras,
        "kp": kp,
        "np": np,
        "pathlib": pathlib,
        "base": base,
        "passport": passport,
        "images": images,
        "labels": labels,
        "data": (images[:16], labels[:16]),
        "test": (images[16:], labels[16:]),
    }
    return names, folder


@pytest.fixture(autouse=True)
def names_of_an_example(request):
    """Gives an example its names, and a folder that is a copy."""
    if not isinstance(request.node, pytest.DoctestItem):
        return
    names, folder = request.getfixturevalue("example")
    here = request.getfixturevalue("tmp_path") / "here"
    shutil.copytree(folder, here)
    request.getfixturevalue("monkeypatch").chdir(here)
    if "attacks" in request.node.name:
        # To trace a training takes longer than the little that is trained.
        tf = pytest.importorskip("tensorflow")
        tf.config.run_functions_eagerly(True)
        request.addfinalizer(lambda: tf.config.run_functions_eagerly(False))
    protected = names["kp"].protect(names["base"])
    request.node.dtest.globs.clear()
    request.node.dtest.globs.update(names, model=protected)
