"""What tests run under, once per process: see `conftest`."""

import contextlib
import hashlib
import itertools
import os
import random
import types

import keras
from keras.src.utils import naming

from keras_passport.attacks import fake
from keras_passport.ownership import claim_secret
from keras_passport.passports import derivation

NUM_DEVICES = 2

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf
    from tensorflow.python.eager import context
    from tensorflow.python.util import tf_stack

    # Before anything else touches a device: distribution tests need two.
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0],
        [tf.config.LogicalDeviceConfiguration() for _ in range(NUM_DEVICES)],
    )

    def set_seed(self, seed):
        """As TensorFlow does it, but its kernels stay prepared.

        It drops them for those that hold the state of a random generator,
        which neither Keras nor a test asks for; every operation and function
        would be prepared anew for each test, a fifth of all there is to do.
        """
        self._seed, self._rng = seed, random.Random(seed)

    context.Context._set_global_seed = set_seed

    # Where an operation of a graph was made: TensorFlow walks the whole stack
    # for each, a hundred frames in a test, to tell of it if it fails.
    NOWHERE = tf_stack.extract_stack()
    tf_stack.extract_stack = lambda stacklevel=1: NOWHERE


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


@contextlib.contextmanager
def clean_keras(is_eager):
    """Seeds Keras, and undoes changes of its settings.

    Args:
        is_eager: Whether functions of TensorFlow's run as they are written.
    """
    is_eager = is_eager and keras.backend.backend() == "tensorflow"
    if is_eager:
        tf.config.run_functions_eagerly(True)
    floatx = keras.config.floatx()
    policy = keras.config.dtype_policy()
    data_format = keras.config.image_data_format()
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_floatx(floatx)
    keras.config.set_dtype_policy(policy)
    keras.config.set_image_data_format(data_format)
    naming.reset_uids()
    if is_eager:
        tf.config.run_functions_eagerly(False)
