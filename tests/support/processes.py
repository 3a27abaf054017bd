"""Programs that a test runs in interpreters of their own."""

import os
import pathlib
import subprocess
import sys

import keras

# Tests run what JAX compiles a few times: compiling with care would take them
# twice the processor time that it saves. Results differ by rounding alone.
COMPILED_QUICKLY = {"XLA_FLAGS": "--xla_backend_optimization_level=0"}

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


def python_path(*folders: str) -> str:
    """What Python's variable of that name says to a test's process.

    Args:
        *folders: Of the repository, which are on its path beside it.
    """
    light = pathlib.Path("tests", "support", "light")
    return os.pathsep.join(
        str(REPOSITORY / folder) for folder in (light, "", *folders)
    )


def run_in_fresh_process(
    code: str, backend: str | None = None, timeout: float = 300, **variables
) -> str:
    """Runs Python code in a new interpreter and returns what it printed.

    Args:
        code: The program. The repository, `examples` and `tests` are on its
            path.
        backend: The Keras backend it runs on; by default this process's.
        timeout: Seconds after which it is ended.
        **variables: Further environment variables.

    Raises:
        AssertionError: If it fails, with the end of what it wrote.
    """
    environment = {
        **os.environ,
        **COMPILED_QUICKLY,
        "KERAS_BACKEND": backend or keras.backend.backend(),
        "PYTHONPATH": python_path("examples", "tests"),
        "TF_CPP_MIN_LOG_LEVEL": "2",
        **variables,
    }
    finished = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert finished.returncode == 0, (
        f"The process exited with {finished.returncode}.\n"
        f"{finished.stdout[-2000:]}\n{finished.stderr[-6000:]}"
    )
    return finished.stdout
