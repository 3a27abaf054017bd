"""The example programs: in this process, or as a user runs them, in another.

TensorFlow takes a program longer to import than what most tests try of it.
"""

import contextlib
import fcntl
import importlib
import io
import json
import os
import pathlib
import shutil
import subprocess
import sys
import traceback

import keras
from absl import flags, logging

from support.processes import COMPILED_QUICKLY, REPOSITORY, python_path

EXAMPLES = REPOSITORY / "examples"
TRAINER = EXAMPLES / "cifar_resnet.py"
SMALL = ("--dataset=digits", "--width=4", "--epochs=2", "--num_fakes=3")


def start(*given, backend=None, program=TRAINER):
    """A process of the program; its output and errors are read as text."""
    return subprocess.Popen(
        [sys.executable, str(program), *given],
        env={
            **os.environ,
            **COMPILED_QUICKLY,
            "KERAS_BACKEND": backend or keras.backend.backend(),
            "PYTHONPATH": python_path(),
            # What a killed one has printed is not lost.
            "PYTHONUNBUFFERED": "1",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*given, **options):
    """Exit status, standard output, standard error of a process."""
    process = start(*given, **options)
    output, errors = process.communicate(timeout=300)
    return process.returncode, output, errors


def succeed(*given, runs=None, **options):
    """Standard output and standard error of a program that ends well.

    It runs in this process, or in one of its own with `runs=run`.
    """
    status, output, errors = (runs or run_here)(*given, **options)
    assert status == 0, errors[-4000:]
    return output, errors


def finished_run(factory):
    """A copy of a finished run of a process: directory, output, errors.

    It is trained once for all workers of a session, by the first that asks.

    Args:
        factory: pytest's `tmp_path_factory`.
    """
    shared = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    trained, printed = shared / "finished_run", shared / "finished_run.json"
    with open(shared / "finished_run.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not printed.exists():
            said = succeed(*SMALL, f"--run_dir={trained}", runs=run)
            printed.write_text(json.dumps(said))
    folder = factory.mktemp("run") / "digits"
    shutil.copytree(trained, folder)
    return folder, *json.loads(printed.read_text())


def run_here(*given, program=TRAINER):
    """As `run`, in this process, with flags and modules of its own."""
    output, errors = io.StringIO(), io.StringIO()
    with (
        _alone(),
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(errors),
    ):
        status = _status(pathlib.Path(program), given)
    return status, output.getvalue(), errors.getvalue()


def _status(program, given):
    sys.argv = [str(program), *given]
    try:
        module = importlib.import_module(program.stem)
        errors = importlib.import_module("common.errors")
        module.main(errors.parsed(sys.argv))
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            return 1
        return end.code or 0
    except Exception:
        traceback.print_exc()
        return 1
    return 0


_TABLES = ("__flags", "__flags_by_module", "__flags_by_module_id")
_TABLES += ("__key_flags_by_module",)


@contextlib.contextmanager
def _alone():
    """Takes the flags and modules of other examples away meanwhile."""
    held = flags.FLAGS.__dict__
    tables = {name: held[name] for name in _TABLES}
    parsed, argv, path = held["__flags_parsed"], sys.argv, list(sys.path)
    verbosity = logging.get_verbosity()
    modules = {
        name: module
        for name, module in sys.modules.items()
        if str(getattr(module, "__file__", None)).startswith(str(EXAMPLES))
    }
    of_examples = {
        id(flag)
        for module in modules
        for flag in tables["__flags_by_module"].get(module, ())
    }
    try:
        held["__flags"] = {
            name: flag
            for name, flag in tables["__flags"].items()
            if id(flag) not in of_examples
        }
        for name in _TABLES[1:]:
            held[name] = {
                module: list(some)
                for module, some in tables[name].items()
                if module not in modules
            }
        held["__flags_parsed"] = False
        for name in modules:
            del sys.modules[name]
        sys.path.insert(0, str(EXAMPLES))
        yield
    finally:
        for name in [
            name
            for name, module in sys.modules.items()
            if str(getattr(module, "__file__", None)).startswith(str(EXAMPLES))
        ]:
            del sys.modules[name]
        sys.modules.update(modules)
        held.update(tables)
        held["__flags_parsed"] = parsed
        sys.argv, sys.path[:] = argv, path
        logging.set_verbosity(verbosity)
        flags.FLAGS["verbosity"].present = 0
