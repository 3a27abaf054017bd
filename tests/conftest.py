"""What every test runs under: two logical CPUs, fixed seeds, clean globals.

Passports, and fakes without a seed, are drawn from the operating system. Here
a test's draws are its own and always the same, so that no test passes or fails
by luck; `DRAW=7 python -m pytest` runs the suite with others. Processes that a
test starts draw as they always do: what is tried of them holds for any draw.
"""

import gc
import os

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Before NumPy is imported, here and in what tests start. There is a worker for
# each core, and threads of OpenBLAS's that have none spin while they wait: two
# took a hundred times one's processor time to solve for a few hundred rows.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# So do TensorFlow's, which has pools of them for every device.
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")


def pytest_configure(config):
    """Prepares what tests need, but not in xdist's own process.

    That one runs none, and its workers would wait while it imports Keras.
    """
    is_worker = hasattr(config, "workerinput")
    if is_worker or not config.getoption("numprocesses", None):
        # Before Keras is imported.
        import support.light.sitecustomize  # noqa: F401
        import support.settings  # noqa: F401


def pytest_collection_finish():
    """What was imported stays: nobody need look through it for garbage."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def clean_module(request):
    """Seeds what fixtures of a module draw, and forgets Keras's graphs after.

    Not after every test: TensorFlow would prepare its kernels anew for each.
    """
    from support import settings

    settings.draws.restart(request.node.name)
    yield
    settings.keras.utils.clear_session(free_memory=False)


@pytest.fixture(autouse=True)
def clean_keras(request):
    """Seeds Keras and passports, and undoes changes of Keras's settings."""
    from support import settings

    is_eager = request.node.get_closest_marker("eager") is not None
    with settings.clean_keras(is_eager):
        settings.draws.restart(request.node.name)
        yield


@pytest.fixture(params=["channels_last", "channels_first"])
def data_format(request):
    return request.param
