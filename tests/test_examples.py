"""The example trainers as a user runs them: in a process of their own."""

import json
import os
import random
import re
import shutil
import signal
import stat
import subprocess
import sys
import time

import h5py
import keras
import numpy as np
import pytest

import keras_passport as kp
from common import networks
from test_case import REPOSITORY
from test_secrets import arrays_of_h5, correlates, keras_file, secrets_of

PROGRAM = REPOSITORY / "examples" / "cifar_resnet.py"
SMALL = ("--dataset=digits", "--width=4", "--epochs=2", "--num_fakes=3")


def start(*flags, backend=None, program=PROGRAM):
    return subprocess.Popen(
        [sys.executable, str(program), *flags],
        env={
            **os.environ,
            "KERAS_BACKEND": backend or keras.backend.backend(),
            "PYTHONPATH": str(REPOSITORY),
            # What a killed one has printed is not lost.
            "PYTHONUNBUFFERED": "1",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*flags, **options):
    """Exit status, standard output, standard error."""
    process = start(*flags, **options)
    output, errors = process.communicate(timeout=300)
    return process.returncode, output, errors


def succeed(*flags, **options):
    status, output, errors = run(*flags, **options)
    assert status == 0, errors[-4000:]
    return output, errors


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run: its directory, and what it printed."""
    folder = tmp_path_factory.mktemp("run") / "digits"
    return folder, "".join(succeed(*SMALL, f"--run_dir={folder}"))


class TestRunDirectory:
    def test_everything_is_there(self, finished):
        folder, output = finished
        result = json.loads((folder / "result.json").read_text())
        assert len(result["fake_accuracies"]) == 3
        assert 0 <= result["valid_accuracy"] <= 100
        assert result["inconsistency"] == pytest.approx(
            result["original_accuracy"] - result["valid_accuracy"]
        )
        assert result["protection_strength"] == pytest.approx(
            result["valid_accuracy"] - np.mean(result["fake_accuracies"])
        )
        for name in ("fakes.png", "training.png", "config.json"):
            assert (folder / name).stat().st_size > 0
        assert "functionality-preserving" in output
        assert "well-protected" in output

    def test_secrets_are_the_owners_alone(self, finished):
        folder, _ = finished
        assert os.listdir(folder / "public") == ["protected.keras"]
        assert stat.S_IMODE((folder / "owner").stat().st_mode) == 0o700
        mode = (folder / "owner" / "passport.h5").stat().st_mode
        assert stat.S_IMODE(mode) == 0o600

    def test_the_published_model_works_with_the_passport(self, finished):
        folder, output = finished
        model = keras.saving.load_model(folder / "public" / "protected.keras")
        kp.bind(model, kp.Passport.load(folder / "owner" / "passport.h5"))
        x = np.zeros((2, *model.input_shape[1:]), "float32")
        assert np.all(np.isfinite(model.predict(x, verbose=0)))
        # Every run has a passport of its own: with some, so small a network
        # loses too much by hiding its statistics.
        shown = "Statistics are published as they are" in output
        for layer in kp.protected_layers(model).values():
            mean = keras.ops.convert_to_numpy(layer.normalization.moving_mean)
            assert mean.any() == shown

    def test_no_secret_is_in_what_may_be_published(self, finished, tmp_path):
        folder, output = finished
        public = folder / "public" / "protected.keras"
        model = keras.saving.load_model(public)
        passport = kp.Passport.load(folder / "owner" / "passport.h5")
        kp.bind(model, passport)
        secrets = secrets_of(model)
        for path, keys in passport.keys(model).items():
            for role, key in keys.items():
                secrets[f"{path}/{role} key"] = key
        original = keras.saving.load_model(
            folder / "owner" / "original.keras", compile=False
        )
        arrays = {}
        for name, some in (("protected", model), ("original", original)):
            place = tmp_path / name
            place.mkdir()
            for key, array in keras_file(some, place).items():
                arrays[f"{name} {key}"] = array
        texts = output + "".join(
            (folder / name).read_text()
            for name in ("config.json", "result.json")
        )
        assert passport.seed.hex() not in texts
        for name, secret in secrets.items():
            if np.size(secret) < 16:
                continue  # So few numbers correlate by chance.
            for where, array in arrays.items():
                assert not correlates(secret, array), (name, where)
            for value in np.ravel(secret)[:20]:
                digits = repr(float(value))
                # An exact zero's digits are anywhere.
                assert len(digits) < 10 or digits not in texts

    def test_a_finished_run_is_read_not_done_again(self, finished):
        folder, _ = finished
        before = (folder / "public" / "protected.keras").stat().st_mtime_ns
        succeed(*SMALL, f"--run_dir={folder}")
        after = (folder / "public" / "protected.keras").stat().st_mtime_ns
        assert before == after

    def test_another_configuration_is_refused(self, finished):
        folder, _ = finished
        status, _, errors = run(*SMALL, "--function=V1", f"--run_dir={folder}")
        assert status != 0
        assert "function" in errors
        assert "Traceback" not in errors


class TestResuming:
    def test_a_killed_run_goes_on(self, tmp_path):
        folder = tmp_path / "run"
        flags = (
            "--dataset=digits",
            "--width=4",
            "--epochs=4",
            "--num_fakes=2",
            f"--run_dir={folder}",
        )
        process = start(*flags)
        checkpoints = folder / "owner" / "checkpoints"
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            if any(checkpoints.glob("[!.]*")):
                break
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        [checkpoint] = checkpoints.glob("[!.]*")
        assert stat.S_IMODE(checkpoint.stat().st_mode) == 0o600
        with h5py.File(checkpoint) as file:
            done = len(json.loads(file["history"][()])["loss"])
        assert done >= 1
        output, _ = succeed(*flags)
        assert f"Going on after epoch {done} of 4" in output
        assert epochs_of(output)["original"] == list(range(done + 1, 5))
        assert "Protection S" in output
        history = json.loads((folder / "owner" / "history.json").read_text())
        assert len(history["original"]["loss"]) == 4
        assert (folder / "result.json").exists()

    @pytest.mark.benchmark
    def test_killed_often(self, tmp_path):
        kill_at_random(tmp_path, count=10, epochs=10)


def epochs_of(output):
    """Numbers of the epochs that were begun, for each network."""
    stages = {}
    for line in output.splitlines():
        if match := re.match(r"Training the (\w+)", line):
            stage = stages.setdefault(match[1], [])
        elif match := re.match(r"Epoch (\d+)/", line):
            stage.append(int(match[1]))
    return stages


def kill_at_random(folder, count, epochs):
    """Kills runs at random moments; the same command goes on each time.

    As many runs as it takes, since some of them come to their end meanwhile.
    """
    flags = (
        "--dataset=digits",
        "--width=4",
        f"--epochs={epochs}",
        "--num_fakes=3",
    )
    began = time.monotonic()
    succeed(*flags, f"--run_dir={folder / 'whole'}")
    seconds = time.monotonic() - began
    whole = json.loads((folder / "whole/owner/history.json").read_text())
    rng = random.Random(0)
    killed, again, number = 0, 0, 0
    while killed < count:
        number += 1
        run_dir = folder / str(number)
        last = {}
        status = None
        while status != 0:
            process = start(*flags, f"--run_dir={run_dir}")
            try:
                wait = rng.uniform(0, seconds) if killed < count else 300
                output, errors = process.communicate(timeout=wait)
            except subprocess.TimeoutExpired:
                process.kill()
                output, errors = process.communicate()
                killed += 1
            status = process.returncode
            assert status in (0, -signal.SIGKILL), errors[-4000:]
            for stage, begun in epochs_of(output).items():
                if begun:
                    # The last one that was begun is done again, or is done.
                    assert begun[0] - last.get(stage, 0) in (0, 1)
                    again += begun[0] == last.get(stage)
                    last[stage] = begun[-1]
        assert last == {"original": epochs, "protected": epochs}
        assert "Protection S" in output
        history = json.loads((run_dir / "owner/history.json").read_text())
        np.testing.assert_allclose(
            history["original"]["val_loss"],
            whole["original"]["val_loss"],
            rtol=1e-3,
        )
        assert len(history["protected"]["loss"]) == epochs
        assert (run_dir / "result.json").exists()
    print(
        f"\n{killed} times killed in {number} runs, {again} epochs done "
        "again, each run with its table"
    )


class TestKinds:
    @pytest.mark.parametrize(
        "kind, function",
        [("fixed_image", "V1"), ("random_pattern", "V2")],
    )
    def test_kinds_and_functions(self, tmp_path, finished, kind, function):
        reference = finished[0] / "owner" / "original.keras"
        output, _ = succeed(
            *SMALL,
            f"--passport={kind}",
            f"--function={function}",
            f"--reference={reference}",
            f"--run_dir={tmp_path / 'run'}",
        )
        passport = kp.Passport.load(tmp_path / "run" / "owner" / "passport.h5")
        assert (passport.kind, passport.function.name) == (kind, function)
        told = "Statistics are published as they are" in output
        assert told == (function == "V1")

    def test_other_backend(self, tmp_path, finished):
        reference = finished[0] / "owner" / "original.keras"
        folder = tmp_path / "run"
        succeed(
            *SMALL,
            f"--reference={reference}",
            f"--run_dir={folder}",
            backend="jax",
        )
        arrays = arrays_of_h5(folder / "owner" / "passport.h5")
        assert len(arrays) > 0

    @pytest.mark.parametrize(
        "build, layers",
        [(networks.vgg, 13), (networks.alexnet, 7), (networks.resnet, 9)],
    )
    @pytest.mark.parametrize("shape", [(8, 8, 1), (32, 32, 3)])
    def test_all_of_a_network_but_its_classifier(self, build, layers, shape):
        if shape[0] == 32 and build is networks.resnet:
            layers = 21
        base = build(shape, 10, width=8)
        model = kp.protect(base)
        assert len(model.report.protected) == layers
        kp.bind(model, kp.Passport.random_pattern(model))
        scores = model(np.zeros((2, *shape), "float32"))
        assert scores.shape == (2, 10)


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="TensorFlow's own"
)
class TestServing:
    SERVE = REPOSITORY / "examples" / "serve.py"

    def test_a_client_without_the_package(self, finished, tmp_path):
        folder, _ = finished
        served = tmp_path / "served"
        output, _ = succeed(
            f"--run_dir={folder}",
            f"--saved_model={served}",
            program=self.SERVE,
        )
        values = dict(
            line.strip().split(" passport")
            for line in output.splitlines()
            if " passport " in line and line.startswith("  ")
        )
        result = json.loads((folder / "result.json").read_text())
        assert float(values["right"]) == pytest.approx(
            result["valid_accuracy"], abs=0.5
        )
        assert float(values["wrong"]) < 60
        assert "Error" in values["no"]
        labels = (served / "assets" / "labels.txt").read_text()
        assert labels.split() == list("0123456789")
        passport = kp.Passport.load(folder / "owner" / "passport.h5")
        packed = passport.packed().tobytes()
        for file in served.rglob("*"):
            assert file.is_dir() or packed not in file.read_bytes()

    def test_no_run(self, tmp_path):
        status, _, errors = run(f"--run_dir={tmp_path}", program=self.SERVE)
        assert status != 0
        assert "holds no run" in errors
        assert "Traceback" not in errors


class TestMistakes:
    @pytest.mark.parametrize(
        "flag, expected",
        [
            ("--passport=random", "random_image"),
            ("--depth=9", "6n + 2"),
            ("--reference=missing.keras", "missing.keras"),
            ("--identity_images=missing.png,other.png", "missing.png"),
            ("--strategy=multi_worker", "TF_CONFIG"),
            ("--no_such_flag=1", "no_such_flag"),
        ],
    )
    def test_one_clear_message(self, tmp_path, flag, expected):
        folder = tmp_path / "run"
        status, output, errors = run(*SMALL, flag, f"--run_dir={folder}")
        assert status != 0
        assert expected in output + errors
        assert "Traceback" not in errors
        assert not (folder / "owner" / "passport.h5").exists()

    def test_a_truncated_passport(self, tmp_path, finished):
        source, _ = finished
        folder = tmp_path / "run"
        folder.mkdir()
        shutil.copytree(source, folder, dirs_exist_ok=True)
        os.remove(folder / "public" / "protected.keras")
        passport = folder / "owner" / "passport.h5"
        passport.write_bytes(passport.read_bytes()[:-100])
        status, _, errors = run(*SMALL, f"--run_dir={folder}")
        assert status != 0
        assert "checksum" in errors
        assert "Traceback" not in errors
