"""Files that are written while the process is killed, or the write fails."""

import functools
import os
import random
import signal
import stat
import subprocess
import sys
import time

import keras
import numpy as np
import pytest

import keras_passport as kp
from support.processes import python_path
from support.protected_models import version
from support.truth import relative_difference

needs_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="TensorFlow's own"
)


# Forks a process for every one that is killed: before TensorFlow computes for
# the first time, so that no thread is lost by it. NumPy has none to lose.
SERVER = """
import os, sys, time
import keras, keras_passport as kp
kp.export_saved_model
from support.protected_models import version
versions = None
if keras.backend.backend() == "numpy":
    versions = [version(0), version(1)]
for line in sys.stdin:
    what, place = line.rstrip("\\n").split(" ", 1)
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
        print("ended", flush=True)
        continue
    versions = versions or [version(0), version(1)]
    def write(model):
        if what == "save":
            model.save(place)
        elif what == "save_weights":
            model.save_weights(place)
        else:
            kp.export_saved_model(model, place, overwrite=True)
    write(versions[0])
    start = time.monotonic()
    write(versions[1])
    # With its number in one call: two processes write to this pipe.
    os.write(1, f"{os.getpid()} {time.monotonic() - start}\\n".encode())
    while True:
        for model in versions:
            write(model)
"""


class Killer:
    """Lets processes write, and kills them.

    Args:
        backend: Keras backend of theirs.
    """

    def __init__(self, backend):
        self._server = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            env={
                **os.environ,
                "KERAS_BACKEND": backend,
                "PYTHONPATH": python_path("tests"),
                "TF_CPP_MIN_LOG_LEVEL": "3",
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._server.stdin.close()
        self._server.wait(60)
        self._server.stdout.close()

    def kill_one(self, what, place, rng):
        """Kills one at a random moment of two writings.

        Args:
            what: `"save"`, `"save_weights"` or `"export"`.
            place: What it writes, two versions by turns, over and over.
            rng: Says which moment.
        """
        self._server.stdin.write(f"{what} {place}\n")
        self._server.stdin.flush()
        pid, seconds = self._server.stdout.readline().split()
        time.sleep(rng.uniform(0, 2 * float(seconds)))
        os.kill(int(pid), signal.SIGKILL)
        assert self._server.stdout.readline() == "ended\n"


def which_model(place):
    return _which(keras.saving.load_model(place))


def which_weights(place):
    model = _versions()[2]
    model.load_weights(place)
    return _which(model)


@functools.cache
def _versions():
    return [version(number) for number in (0, 1, 2)]


def _which(model):
    """The number of the version that all weights are of."""
    for number, its in enumerate(_versions()[:2]):
        pairs = zip(model.weights, its.weights, strict=True)
        if all(np.array_equal(one, other) for one, other in pairs):
            return number
    raise AssertionError("Neither of the two versions")


@functools.cache
def _outputs():
    """Inputs, a passport, and what each version makes of them."""
    rng = np.random.default_rng(0)
    x = rng.random((2, 5), "float32")
    size = kp.passport_spec(_versions()[0])["size"]
    key = rng.random((1, size), "float32")
    served = [kp.require_passport(its) for its in _versions()[:2]]
    return x, key, [model([x, key]) for model in served]


def which_export(place):
    import tensorflow as tf

    x, key, outputs = _outputs()
    signature = tf.saved_model.load(str(place)).signatures["serving_default"]
    [received] = signature(
        inputs=tf.constant(x), passport=tf.constant(key)
    ).values()
    for number, expected in enumerate(outputs):
        if relative_difference(received, expected) < 1e-5:
            return number
    raise AssertionError("Neither of the two versions")


WHAT = {
    "save": ("model.keras", which_model),
    "save_weights": ("model.weights.h5", which_weights),
    "export": ("model", which_export),
}


def kill(what, folder, count, killer, seed=0):
    """Kills writers; returns how often each version was found.

    Also how often a process was killed within a writing: it left a temporary
    name, which hinders none of those that follow.
    """
    name, which = WHAT[what]
    found, within = [], 0
    rng = random.Random(seed)
    for _ in range(count):
        before = len(list(folder.iterdir()))
        killer.kill_one(what, folder / name, rng)
        within += len(list(folder.iterdir())) > max(before, 1)
        found.append(which(folder / name))
    print(
        f"\n{what}: {count} killed, {within} of them within a "
        f"writing; old or new was there, whole, {len(found)} times "
        f"({found.count(0)} and {found.count(1)})"
    )
    assert within >= count / 5
    assert all(
        path.name == name or path.name.startswith(".model-")
        for path in folder.iterdir()
    )


@pytest.fixture(scope="module")
def saver():
    # Keras's code that writes is the same, and nothing takes time to start.
    with Killer("numpy") as killer:
        yield killer


@pytest.mark.parametrize("what, count", (("save", 10), ("save_weights", 5)))
def test_killed_while_saving(what, count, tmp_path, saver):
    kill(what, tmp_path, count, saver)


@needs_tensorflow
def test_killed_while_exporting(tmp_path):
    with Killer("tensorflow") as killer:
        kill("export", tmp_path, 3, killer)


@needs_tensorflow
@pytest.mark.benchmark
@pytest.mark.parametrize("what", WHAT)
def test_killed_often(what, tmp_path):
    with Killer("tensorflow") as killer:
        kill(what, tmp_path, 50, killer, seed=1)


# What Keras promises of `save` and `save_weights` still holds.


def small(number=0):
    return version(number, units=4)


SAVES = {
    "model.keras": lambda model, place, **options: model.save(place, **options),
    "model.h5": lambda model, place, **options: model.save(place, **options),
    "model.weights.h5": lambda model, place, **options: model.save_weights(
        place, **options
    ),
}


def equal(place, model):
    other = small(7)
    other.load_weights(place)
    return all(
        np.array_equal(one, two)
        for one, two in zip(model.weights, other.weights, strict=True)
    )


@pytest.mark.parametrize("name", SAVES)
class TestKerasPromises:
    def test_saves_and_overwrites(self, name, tmp_path):
        for number, place in enumerate((tmp_path / name, str(tmp_path / name))):
            SAVES[name](small(number), place)
            assert equal(tmp_path / name, small(number))
        assert os.listdir(tmp_path) == [name]

    def test_asks_before_it_overwrites(self, name, tmp_path, monkeypatch):
        place, answers = tmp_path / name, ["n", "y"]
        asked = []

        def answer(text):
            asked.append(text)
            return answers[len(asked) - 1]

        monkeypatch.setattr("builtins.input", answer)
        SAVES[name](small(0), place, overwrite=False)
        assert not asked
        for number in (0, 1):
            SAVES[name](small(1), place, overwrite=False)
            assert equal(place, small(number))
        assert len(asked) == 2 and str(place) in asked[0]

    def test_a_failure_leaves_the_old_one(self, name, tmp_path, monkeypatch):
        place = tmp_path / name
        SAVES[name](small(0), place)
        broken = small(1)

        def fail(*args):
            raise ZeroDivisionError

        # One of them in each of Keras's formats, after some of the writing.
        last = broken.layers[-1]
        for name_of_it in ("save_own_variables", "get_config"):
            monkeypatch.setattr(last, name_of_it, fail)
        with pytest.raises(ZeroDivisionError):
            SAVES[name](broken, place)
        assert equal(place, small(0))
        assert os.listdir(tmp_path) == [name]

    def test_keeps_the_mode_and_follows_links(self, name, tmp_path):
        (tmp_path / "real").mkdir()
        place = tmp_path / "real" / name
        SAVES[name](small(0), place)
        umask = os.umask(0)
        os.umask(umask)
        assert stat.S_IMODE(place.stat().st_mode) == 0o666 & ~umask
        place.chmod(0o640)
        (tmp_path / name).symlink_to(place)
        SAVES[name](small(1), tmp_path / name)
        assert (tmp_path / name).is_symlink()
        assert stat.S_IMODE(place.stat().st_mode) == 0o640
        assert equal(place, small(1))
        assert os.listdir(tmp_path / "real") == [name]

    def test_beside_what_a_killed_process_left(self, name, tmp_path):
        stem, _, suffix = name.partition(".")
        leftover = tmp_path / f".{stem}-01234567.{suffix}"
        leftover.write_text("half")
        SAVES[name](small(0), tmp_path / name)
        assert sorted(os.listdir(tmp_path)) == sorted([leftover.name, name])

    def test_into_no_folder(self, name, tmp_path):
        place = tmp_path / "none" / name
        if name == "model.h5":  # Keras makes it.
            SAVES[name](small(0), place)
            assert equal(place, small(0))
            return
        with pytest.raises(OSError, match="No such file"):
            SAVES[name](small(0), place)


def test_what_is_left_to_keras(tmp_path):
    import io

    model = small()
    with pytest.raises(ValueError, match="extension"):
        model.save(tmp_path / "model.zip")
    with pytest.raises(ValueError, match="weights.h5"):
        model.save_weights(tmp_path / "model.h5")
    with pytest.raises(ValueError, match="not supported"):
        model.save(tmp_path / "model.keras", nonsense=1)
    with pytest.raises(IsADirectoryError):
        (tmp_path / "folder.keras").mkdir()
        model.save(tmp_path / "folder.keras")
    (tmp_path / "folder.keras").rmdir()
    assert not list(tmp_path.iterdir())
    model.save(tmp_path / "folder", zipped=False)
    assert (tmp_path / "folder" / "config.json").exists()
    model.save_weights(tmp_path / "parts.weights.json", max_shard_size=1)
    assert (tmp_path / "parts.weights.json").exists()
    stream = io.BytesIO()
    keras.src.saving.saving_lib.save_model(model, stream)
    assert stream.getvalue()


def test_a_trainings_checkpoints(tmp_path):
    model = kp.bind(small(), kp.Passport.random_pattern(small()))
    model.compile("sgd", "mse")
    callbacks = [
        keras.callbacks.ModelCheckpoint(tmp_path / "a{epoch}.keras"),
        keras.callbacks.ModelCheckpoint(
            tmp_path / "b.weights.h5", save_weights_only=True
        ),
    ]
    x, y = np.zeros((4, 5)), np.zeros((4, 3))
    model.fit(x, y, epochs=2, verbose=0, callbacks=callbacks)
    names = ["a1.keras", "a2.keras", "b.weights.h5"]
    assert sorted(os.listdir(tmp_path)) == names
    assert equal(tmp_path / "b.weights.h5", model)
