"""Two replicas, of one machine or two, against one device."""

import json
import os
import re
import signal
import socket
import subprocess
import sys

import keras
import numpy as np
import pytest

import keras_passport as kp
from common import distribution, training
from common.errors import UserError
from common.rundir import RunDirectory, write_json
from support.processes import python_path
from support.replicas import (
    EPOCHS,
    INTERRUPTED,
    TOLERANCE,
    Interruption,
    fakes,
    network,
    pictures,
    train,
)

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="TensorFlow's own"
)


def interrupt():
    raise KeyboardInterrupt


def agree(one, other, tolerance=TOLERANCE):
    for name in ("loss", "val_loss", "accuracy", "val_accuracy"):
        assert len(one[name]) == EPOCHS
        np.testing.assert_allclose(one[name], other[name], atol=tolerance)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One device's model and history."""
    checkpoint = tmp_path_factory.mktemp("alone") / "checkpoint.h5"
    return train(distribution.Distribution(), checkpoint)


@pytest.fixture(scope="module")
def mirrored():
    spread = distribution.start("mirrored")
    assert spread.replicas == 2
    return spread


class TestMirrored:
    def test_trains_as_one_device_does(self, mirrored, alone, tmp_path):
        one, expected = alone
        model, history = train(mirrored, tmp_path / "checkpoint.h5")
        agree(history, expected)
        assert history["loss"][-1] < history["loss"][0] - 0.2
        for mine, its in zip(model.variables, one.variables, strict=True):
            on_first, on_second = (v.numpy() for v in mine.value.values)
            np.testing.assert_array_equal(on_first, on_second)
            np.testing.assert_allclose(on_first, its, atol=TOLERANCE)
        # The layers are as they were.
        for layer in kp.protected_layers(model).values():
            assert not layer.normalization.synchronized

    @pytest.mark.parametrize("first", [1, 2])
    def test_goes_on_with_more_or_fewer(
        self, mirrored, alone, first, tmp_path, capsys
    ):
        spreads = [distribution.Distribution(), mirrored]
        if first == 2:
            spreads.reverse()
        checkpoint = tmp_path / "checkpoint.h5"
        with pytest.raises(KeyboardInterrupt):
            train(spreads[0], checkpoint, Interruption(INTERRUPTED, interrupt))
        _, history = train(spreads[1], checkpoint)
        assert (
            f"after epoch {INTERRUPTED} of {EPOCHS}" in capsys.readouterr()[0]
        )
        agree(history, alone[1])

    @pytest.mark.parametrize("kind", ["random_pattern", "random_image"])
    def test_fakes_are_the_same(self, mirrored, kind):
        x, y = pictures().test_examples(33)
        results = []
        for spread in (distribution.Distribution(), mirrored):
            with spread.scope():
                model = network()
                sources = {}
                if kind == "random_image":
                    sources = {"images": x[:5], "reference": network()}
                results.append(
                    kp.attacks.fake_passports(
                        model, kind, 4, (x, y), seed=2, batch_size=20, **sources
                    )
                )
        one, two = results
        assert one.accuracies == two.accuracies
        assert one.entropies == two.entropies

    def test_half_precision(self, mirrored, tmp_path):
        with training.precision("float16"):
            _, history = train(mirrored, tmp_path / "checkpoint.h5")
        assert np.all(np.isfinite(history["loss"]))


# Each worker writes what it saw; one may be killed in the middle of an epoch.
WORKER = """
import json, os, pathlib, signal, sys
import keras_passport
from common import distribution
from common.errors import UserError
from support import replicas as test

folder, dies = pathlib.Path(sys.argv[1]), sys.argv[2] == "dies"
spread = distribution.start("multi_worker")
watch = None
if dies:
    watch = test.Interruption(
        test.INTERRUPTED, lambda: os.kill(os.getpid(), signal.SIGKILL)
    )
try:
    with spread.guarded():
        model, history = test.train(spread, folder / "checkpoint.h5", watch)
        with spread.scope():
            fakes = test.fakes(model)
        said = [spread.agree(spread.is_chief), spread.agree(False)]
except UserError as error:
    sys.exit(f"one line: {error}")
name = "chief" if spread.is_chief else "other"
(folder / f"{name}.json").write_text(json.dumps([history, fakes, said]))
spread.agree()
"""


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def tf_configs(count=2):
    """The environment variable of each worker on this machine."""
    workers = [f"127.0.0.1:{port}" for port in free_ports(count)]
    return [
        json.dumps(
            {
                "cluster": {"worker": workers},
                "task": {"type": "worker", "index": index},
            }
        )
        for index in range(count)
    ]


def start_workers(*commands):
    """Starts one worker for each command."""
    return [
        subprocess.Popen(
            [sys.executable, *map(str, command)],
            env={
                **os.environ,
                "KERAS_BACKEND": "tensorflow",
                "PYTHONPATH": python_path("examples", "tests"),
                "TF_CONFIG": config,
                "TF_CPP_MIN_LOG_LEVEL": "3",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for command, config in zip(
            commands, tf_configs(len(commands)), strict=True
        )
    ]


def ends_of(workers):
    """Each worker's exit status, standard output and standard error."""
    try:
        ended = [worker.communicate(timeout=300) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    return [
        (worker.returncode, *texts)
        for worker, texts in zip(workers, ended, strict=True)
    ]


class TestWorkers:
    @pytest.mark.benchmark
    def test_one_is_killed_and_both_go_on(self, alone, tmp_path):
        command = ("-c", WORKER, tmp_path)
        chief, other = ends_of(
            start_workers((*command, "lives"), (*command, "dies"))
        )
        assert other[0] == -signal.SIGKILL
        assert chief[0] == 1
        [line] = [s for s in chief[2].splitlines() if "one line" in s]
        assert "Start all workers again" in line
        assert "Traceback" not in chief[2]

        ended = ends_of(start_workers((*command, "lives"), (*command, "lives")))
        for status, output, errors in ended:
            assert status == 0, errors[-4000:]
            # The other died before its own end of the next epoch.
            [done] = re.findall(r"Going on after epoch (\d+) of", output)
            assert int(done) in (INTERRUPTED, INTERRUPTED + 1)
        expected = fakes(alone[0])
        for name in ("chief", "other"):
            history, found, said = json.loads(
                (tmp_path / f"{name}.json").read_text()
            )
            agree(history, alone[1])
            np.testing.assert_allclose(found, expected, atol=1e-6)
            assert said == [True, False]


class TestMistakes:
    @pytest.mark.parametrize(
        "config",
        [
            None,
            "",
            "worker0",
            "[]",
            '{"cluster": {"worker": ["a:1"]}}',
            '{"cluster": {"worker": ["a:1"]}, '
            '"task": {"type": "worker", "index": 1}}',
            '{"cluster": {"worker": ["a:1"]}, '
            '"task": {"type": "worker", "index": -1}}',
            '{"cluster": {"worker": ["a:1"], "ps": ["b:1"]}, '
            '"task": {"type": "ps", "index": 0}}',
        ],
    )
    def test_tf_config(self, monkeypatch, config):
        monkeypatch.delenv("TF_CONFIG", raising=False)
        if config is not None:
            monkeypatch.setenv("TF_CONFIG", config)
        with pytest.raises(UserError, match="TF_CONFIG"):
            distribution.start("multi_worker")

    @pytest.mark.parametrize(
        "kind, index, expected",
        [("worker", 0, False), ("worker", 1, False), ("chief", 0, True)],
    )
    def test_who_is_chief(self, monkeypatch, kind, index, expected):
        config = {
            "cluster": {"chief": ["a:1"], "worker": ["b:1", "c:1"]},
            "task": {"type": kind, "index": index},
        }
        monkeypatch.setenv("TF_CONFIG", json.dumps(config))
        assert distribution._read_tf_config() == (expected, 3)
        del config["cluster"]["chief"]
        monkeypatch.setenv("TF_CONFIG", json.dumps(config))
        if kind == "worker":
            assert distribution._read_tf_config() == (index == 0, 2)

    @pytest.mark.parametrize("name", ["mirrored", "multi_worker"])
    def test_other_backends(self, monkeypatch, name):
        monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
        with pytest.raises(UserError, match="KERAS_BACKEND=tensorflow"):
            distribution.start(name)

    def test_batch_size(self, mirrored):
        mirrored.check_batch_size(48)
        with pytest.raises(UserError, match="--batch_size.*2 replicas"):
            mirrored.check_batch_size(49)

    def test_a_directory_of_a_workers_own(self, tmp_path):
        directory = RunDirectory(tmp_path)
        with pytest.raises(UserError, match="all workers see"):
            directory.check({"seed": 0})

    def test_a_run_goes_on_with_another_strategy(self, tmp_path):
        directory = RunDirectory(tmp_path)
        config = {"seed": 0, "strategy": "none"}
        directory.open(config)
        directory.open({**config, "strategy": "mirrored"})
        with pytest.raises(UserError, match="another run"):
            directory.open({**config, "seed": 1})
        write_json(directory.config, {"seed": 0})
        directory.open(config)
