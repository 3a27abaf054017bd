"""The example trainers as a user runs them: in a process of their own."""

import json
import os
import random
import re
import resource
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
from common import networks, training
from common.rundir import UNFINISHED
from support.programs import (
    EXAMPLES,
    SMALL,
    finished_run,
    run_here,
    start,
    succeed,
)
from support.stored_secrets import (
    correlates,
    keras_file,
    secrets_of,
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of a process: its directory, and what it printed."""
    folder, output, errors = finished_run(tmp_path_factory)
    assert "WARNING" not in errors and "retracing" not in errors
    return folder, output + errors


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

    def test_nobody_draws_its_first_weights_again(self, finished):
        """Not from --seed, which `config.json` tells: they say of any order."""
        folder, _ = finished
        owner = folder / "owner"
        mode = (owner / "first_weights").stat().st_mode
        assert stat.S_IMODE(mode) == 0o600
        original = keras.saving.load_model(owner / "original.keras")
        assert kp.audit.first_seed(original) is None
        # It has hardly moved away from those that follow from the secret.
        likeness = []
        first = keras.models.clone_model(original)
        keras.utils.set_random_seed(0)
        kp.reinitialize(first, (owner / "first_weights").read_bytes())
        for ours, theirs in zip(
            original.trainable_weights, first.trainable_weights, strict=True
        ):
            if len(ours.shape) == 4:
                ours, theirs = (
                    np.ravel(keras.ops.convert_to_numpy(one))
                    for one in (ours, theirs)
                )
                sizes = np.linalg.norm(ours) * np.linalg.norm(theirs)
                likeness.append(ours @ theirs / sizes)
        assert min(likeness) > 0.5

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
        status, _, errors = run_here(
            *SMALL, "--function=V1", f"--run_dir={folder}"
        )
        assert status == 2
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
            "--passport=random_pattern",
            "--nohide_statistics",
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
        "kind, function, hidden",
        [
            ("fixed_image", "V1", ()),
            ("random_pattern", "V2", ("--nohide_statistics",)),
        ],
    )
    def test_kinds_and_functions(
        self, tmp_path, finished, kind, function, hidden
    ):
        reference = finished[0] / "owner" / "original.keras"
        output, _ = succeed(
            *SMALL,
            f"--passport={kind}",
            f"--function={function}",
            f"--reference={reference}",
            "--owner=Ada Ltd",
            f"--run_dir={tmp_path / 'run'}",
            *hidden,
        )
        owner, public = tmp_path / "run" / "owner", tmp_path / "run" / "public"
        passport = kp.Passport.load(owner / "passport.h5")
        assert (passport.kind, passport.function.name) == (kind, function)
        # Claimed as it was published, and recorded.
        claim = kp.ownership.Claim.load(public / "claim.json")
        opening = kp.ownership.Opening.load(owner / "opening.json")
        assert opening.claim() == claim and opening.seed_follows
        reference = keras.saving.load_model(reference, compile=False)
        network = keras.saving.load_model(public / "protected.keras")
        assert not opening.check(
            passport, reference if kind == "fixed_image" else None, network
        )
        assert kp.ownership.attached(network) == claim
        record = kp.ownership.Record.load(owner / "record.json")
        assert record.fingerprint == passport.fingerprint
        assert record.kernels == opening.kernels
        # V1's can't be hidden, and it is said where they should have been.
        told = "Statistics are published as they are" in output
        assert told == (function == "V1")

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
    SERVE = EXAMPLES / "serve.py"

    def test_a_client_without_the_package(self, finished, tmp_path):
        """With what was there before, which is replaced when asked for."""
        folder, _ = finished
        served = tmp_path / "served"
        served.mkdir()
        (served / "saved_model.pb").write_bytes(b"old")
        flags = (f"--run_dir={folder}", f"--saved_model={served}")
        status, _, errors = run_here(*flags, program=self.SERVE)
        assert (status, "--overwrite" in errors) == (2, True)
        assert (served / "saved_model.pb").read_bytes() == b"old"
        output, _ = succeed(*flags, "--overwrite", program=self.SERVE)
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
        status, _, errors = run_here(
            f"--run_dir={tmp_path}", program=self.SERVE
        )
        assert status == 2
        assert "holds no run" in errors
        assert "Traceback" not in errors

    @pytest.mark.parametrize("extra", [(), ("--overwrite",)])
    def test_nothing_but_its_own_is_replaced(self, finished, tmp_path, extra):
        folder, _ = finished
        place = tmp_path / "run"
        shutil.copytree(folder, place)
        mine = tmp_path / "mine"
        shutil.copytree(place / "owner", mine / "assets")
        # More of what there may be is in `test_saved_model_places`.
        before = contents(tmp_path)
        for target in (
            place,
            place / "owner",
            place / "public",
            place / "owner" / "passport.h5",
            mine,
            tmp_path / "none" / "served",
        ):
            status, _, errors = run_here(
                f"--run_dir={place}",
                f"--saved_model={target}",
                *extra,
                program=self.SERVE,
            )
            assert status == 2
            assert errors.startswith("serve.py: --saved_model: Expected")
            assert str(target if target.exists() else target.parent) in errors
            assert contents(tmp_path) == before


def contents(folder):
    """Every file's bytes, by its path."""
    return {
        path: path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


class TestOneRunDirectory:
    def test_two_programs_do_not_write_to_it(self, finished, tmp_path):
        place = tmp_path / "run"
        shutil.copytree(finished[0], place)
        before = contents(place)
        # A process of its own holds it; killed, it holds it no more.
        holder = hold(place)
        try:
            for program, flags in (
                ("cifar_resnet", SMALL),
                ("attack", ("--attack=fake_random_pattern",)),
                ("evaluate_protection", ()),
            ):
                status, _, errors = run_here(
                    f"--run_dir={place}",
                    *flags,
                    program=EXAMPLES / f"{program}.py",
                )
                assert status == 2
                assert (
                    f"written to by process {holder.pid} on a machine" in errors
                )
                assert errors.count("\n") == 1
        finally:
            holder.kill()
            holder.wait()
        before.pop(place / ".lock", None)
        after = contents(place)
        after.pop(place / ".lock")
        assert after == before
        succeed(*SMALL, f"--run_dir={place}")

    def test_of_two_trainers_the_second_is_refused(self, tmp_path):
        place = tmp_path / "run"
        holder = hold(place)
        try:
            status, _, errors = run_here(*SMALL, f"--run_dir={place}")
            assert status == 2
            assert "Wait for it" in errors
            assert os.listdir(place) == [".lock"]
        finally:
            holder.kill()
            holder.wait()

    def test_files_of_the_users_stay(self, finished, tmp_path):
        place = tmp_path / "run"
        shutil.copytree(finished[0], place)
        mine = [
            place / "owner" / name
            for name in (
                ".passport-20261128.h5",
                ".passport-0123abcd.h5",
                ".my-document.txt",
                ".original-deadbeef.keras",
            )
        ]
        mine.append(place / "public" / ".protected-0123abcd.keras")
        mine.append(place / "owner" / "checkpoints" / ".fakes-01234567.json")
        for path in mine:
            path.write_text("mine")
        # What a killed run left is removed: of a checkpoint it is a secret.
        left = place / "owner" / "checkpoints" / UNFINISHED
        left.mkdir()
        (left / "protected.h5").write_text("half of it")
        succeed(*SMALL, f"--run_dir={place}")
        assert all(path.read_text() == "mine" for path in mine)
        assert not left.exists()

    @pytest.mark.parametrize("size", [9_000, 100_000])
    def test_a_full_disk(self, finished, tmp_path, size):
        place = tmp_path / "run"
        shutil.copytree(finished[0], place)
        (place / "public" / "protected.keras").unlink()
        before = contents(place)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        # No file may become larger: of checkpoint and network, or of the last.
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        try:
            status, _, errors = run_here(*SMALL, f"--run_dir={place}")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert status == 2
        assert "File too large. What was written before" in errors
        assert errors.count("\n") == 1
        # All is whole: what was there, and the checkpoint if it was small.
        after = contents(place)
        new = {place / ".lock", place / "owner/checkpoints/protected.h5"}
        assert after.keys() - before.keys() <= new
        for path, content in before.items():
            if path.name not in (".lock", "history.json"):
                assert after[path] == content


# As `RunDirectory.locked` locks it; without Keras, which takes its time.
HOLD = """
import fcntl, os, sys, time
handle = os.open(sys.argv[1] + "/.lock", os.O_RDWR | os.O_CREAT, 0o600)
fcntl.flock(handle, fcntl.LOCK_EX)
os.write(handle, f"{os.getpid()} a machine".encode())
print("held", flush=True)
time.sleep(600)
"""


def hold(place):
    """A process that writes to a run's directory, until it is killed."""
    place.mkdir(exist_ok=True)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(place)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout.readline() == "held\n"
    return holder


class TestDiverging:
    def test_one_message_and_the_records(self, tmp_path):
        place = tmp_path / "run"
        flags = (*SMALL, "--learning_rate=1e9", f"--run_dir={place}")
        status, output, errors = run_here(*flags)
        assert status == 2
        assert errors.count("\n") == 1
        for said in (
            "original network diverged in epoch 1 of 2",
            "loss",
            "--learning_rate (now 1e+09)",
            "another --run_dir",
        ):
            assert said in errors
        assert "fake passports" not in output
        assert os.listdir(place / "public") == []
        assert not (place / "owner" / "passport.h5").exists()
        assert json.loads((place / "config.json").read_text())["epochs"] == 2
        history = json.loads((place / "owner" / "history.json").read_text())
        assert history["original"]["loss"] == [None]

    def test_a_network_of_nan_is_no_reference(self, finished, tmp_path):
        path = tmp_path / "nan.keras"
        model = keras.saving.load_model(finished[0] / "owner/original.keras")
        weights = model.get_weights()
        model.set_weights([np.full_like(w, np.nan) for w in weights])
        model.save(path)
        status, _, errors = run_here(
            *SMALL, f"--reference={path}", f"--run_dir={tmp_path / 'run'}"
        )
        assert status == 2
        assert "finite scores of the --reference network" in errors
        assert not (tmp_path / "run").exists()

    def test_a_step_that_float16_leaves_out_is_none(self):
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        plain = keras.optimizers.SGD()
        numbers = {"loss": np.nan, "val_loss": 1.0}
        model.compile(plain, "mse")
        assert training._not_finite(model, numbers, False) == ["loss"]
        model.compile(keras.optimizers.LossScaleOptimizer(plain), "mse")
        assert training._not_finite(model, numbers, True) == []
        numbers["val_loss"] = np.inf
        assert training._not_finite(model, numbers, False) == []
        assert training._not_finite(model, numbers, True) == ["val_loss"]
        model.layers[0].kernel.assign([[np.nan]])
        found = training._not_finite(model, numbers, False)
        assert found == ["1 of 2 weights"]


class TestMistakes:
    @pytest.mark.parametrize(
        "flag, expected",
        [
            ("--passport=random", "random_image"),
            ("--depth=9", "6n + 2"),
            ("--reference=missing.keras", "missing.keras"),
            ("--identity_images=missing.png,other.png", "missing.png"),
            ("--learning_rate=nan", "finite number"),
            ("--weight_decay=inf", "finite number"),
            ("--owner=", "must be a name"),
            ("--strategy=multi_worker", "TF_CONFIG"),
            ("--no_such_flag=1", "no_such_flag"),
        ],
    )
    def test_one_clear_message(self, tmp_path, flag, expected):
        folder = tmp_path / "run"
        status, output, errors = run_here(*SMALL, flag, f"--run_dir={folder}")
        assert status != 0
        assert expected in output + errors
        assert "Traceback" not in errors
        assert not (folder / "owner" / "passport.h5").exists()

    @pytest.mark.parametrize("place", ["file", "file/run"])
    def test_no_directory(self, tmp_path, place):
        (tmp_path / "file").write_text("mine")
        for program, flags in (
            ("cifar_resnet", SMALL),
            ("attack", ("--attack=fake_random_pattern",)),
            ("evaluate_protection", ()),
            ("serve", ()),
        ):
            status, _, errors = run_here(
                f"--run_dir={tmp_path / place}",
                *flags,
                program=EXAMPLES / f"{program}.py",
            )
            assert (status, errors.count("\n")) == (2, 1)
            assert str(tmp_path / place) in errors

    @pytest.mark.parametrize(
        "name, expected",
        [
            ("owner/passport.h5", "checksum"),
            ("owner/original.keras", "damaged"),
        ],
    )
    def test_a_truncated_file(self, tmp_path, finished, name, expected):
        source, _ = finished
        folder = tmp_path / "run"
        shutil.copytree(source, folder)
        os.remove(folder / "public" / "protected.keras")
        file = folder / name
        file.write_bytes(file.read_bytes()[:-100])
        status, _, errors = run_here(*SMALL, f"--run_dir={folder}")
        assert status == 2
        assert expected in errors
        assert "Traceback" not in errors


@pytest.mark.parametrize(
    "given, said",
    [
        (["--nonsense"], "Unknown command line flag 'nonsense'"),
        (["--epochs=many"], "--epochs=many"),
        (["--passport=none_such"], "--passport=none_such"),
    ],
)
def test_a_wrong_flag_is_told_in_one_line(given, said):
    status, output, errors = run_here(*given)
    assert (status, output) == (2, "")
    assert errors.startswith("cifar_resnet.py: ") and said in errors
    assert errors.count("\n") == 1
