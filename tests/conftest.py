"""What every test runs under: two logical CPUs, fixed seeds, clean globals."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras  # noqa: E402
import pytest  # noqa: E402

NUM_DEVICES = 2

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

    # Before anything else touches a device: distribution tests need two.
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0],
        [tf.config.LogicalDeviceConfiguration() for _ in range(NUM_DEVICES)],
    )


@pytest.fixture(autouse=True)
def clean_keras():
    """Seeds Keras, and undoes what a test does to its global settings."""
    floatx = keras.config.floatx()
    policy = keras.config.dtype_policy()
    data_format = keras.config.image_data_format()
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_floatx(floatx)
    keras.config.set_dtype_policy(policy)
    keras.config.set_image_data_format(data_format)
    keras.utils.clear_session(free_memory=False)


@pytest.fixture(params=["channels_last", "channels_first"])
def data_format(request):
    return request.param
