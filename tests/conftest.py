"""What every test runs under: two logical CPUs, fixed seeds, clean globals.

Passports, and fakes without a seed, are drawn from the operating system. Here
a test's draws are its own and always the same, so that no test passes or fails
by luck; `DRAW=7 python -m pytest` runs the suite with others. Processes that a
test starts draw as they always do: what is tried of them holds for any draw.
"""

import functools
import hashlib
import itertools
import os
import types

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras  # noqa: E402
import pytest  # noqa: E402
from keras.src.utils import naming  # noqa: E402

from keras_passport.attacks import fake  # noqa: E402
from keras_passport.models import compiling  # noqa: E402
from keras_passport.ownership import claim_secret  # noqa: E402
from keras_passport.passports import derivation  # noqa: E402

NUM_DEVICES = 2

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

    # Before anything else touches a device: distribution tests need two.
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0],
        [tf.config.LogicalDeviceConfiguration() for _ in range(NUM_DEVICES)],
    )


def traced_once(method):
    """Plain Keras's method, which begins as fast as `ProtectedModel`'s does.

    Both compute the same (`test_tracing_once`); the suite trains hundreds of
    networks for a step or two, and tracing is most of that.
    """

    @functools.wraps(method)
    def trains(self, *args, **kwargs):
        compiling.build_ahead_of(method, self, args, kwargs)
        return method(self, *args, **kwargs)

    return trains


for method in ("fit", "train_on_batch"):
    setattr(keras.Model, method, traced_once(getattr(keras.Model, method)))


class Draws:
    """Draws like `secrets`, but the same ones for the same name."""

    def __init__(self):
        self.restart("")

    def restart(self, name):
        self._name = f"{os.environ.get('DRAW', '0')} {name}"
        self._numbers = itertools.count()

    def token_bytes(self, count):
        drawn = f"{self._name} {next(self._numbers)}".encode()
        return hashlib.shake_256(drawn).digest(count)

    def randbits(self, count):
        return int.from_bytes(self.token_bytes(count // 8), "big")


draws = Draws()
for module in (claim_secret, derivation, fake):
    module.secrets = types.SimpleNamespace(
        token_bytes=draws.token_bytes, randbits=draws.randbits
    )


@pytest.fixture(autouse=True, scope="module")
def clean_module(request):
    """Seeds what fixtures of a module draw, and forgets Keras's graphs after.

    Not after every test: TensorFlow would prepare its kernels anew for each.
    """
    draws.restart(request.node.name)
    yield
    keras.utils.clear_session(free_memory=False)


@pytest.fixture(autouse=True)
def clean_keras(request):
    """Seeds Keras and passports, and undoes changes of Keras's settings."""
    is_eager = request.node.get_closest_marker("eager") is not None
    if is_eager and keras.backend.backend() == "tensorflow":
        tf.config.run_functions_eagerly(True)
    floatx = keras.config.floatx()
    policy = keras.config.dtype_policy()
    data_format = keras.config.image_data_format()
    keras.utils.set_random_seed(0)
    draws.restart(request.node.name)
    yield
    keras.config.set_floatx(floatx)
    keras.config.set_dtype_policy(policy)
    keras.config.set_image_data_format(data_format)
    naming.reset_uids()
    if is_eager and keras.backend.backend() == "tensorflow":
        tf.config.run_functions_eagerly(False)


@pytest.fixture(params=["channels_last", "channels_first"])
def data_format(request):
    return request.param
