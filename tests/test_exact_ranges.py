"""`protect_trained` where a layer's β are of very different sizes.

The truth is the trained model itself.
"""

import keras
import numpy as np
import pytest
from keras import layers

import keras_passport as kp
from support.trained_models import inputs_of, look_trained


def outputs(model, *inputs):
    return model(*inputs, training=False)


@pytest.mark.parametrize("size", (1e2, 1e5, 1e9))
@pytest.mark.parametrize("name", ("bias", "beta", "moving_mean"))
@pytest.mark.parametrize("count", (1, 9))
def test_channels_that_are_switched_off(name, count, size):
    """One class of ten, or all but one, with a bias of -1e9, say."""
    base = keras.Sequential([keras.Input((20,)), layers.Dense(10)])
    if name != "bias":
        base.add(layers.BatchNormalization())
        base.add(layers.ReLU())
    base = look_trained(base)
    owner = base.layers[0 if name == "bias" else 1]
    values = np.array(getattr(owner, name))
    values[:count] = size if name == "moving_mean" else -size
    gamma = getattr(owner, "gamma", None)
    if gamma is not None:
        gamma.assign(np.abs(gamma))
    getattr(owner, name).assign(values)
    inputs = inputs_of(base)
    expected = np.array(outputs(base, inputs))
    model, passport = kp.protect_trained(base, seed=0)
    for made in (model, kp.unlock(model, passport)):
        received = np.array(outputs(made, inputs))
        np.testing.assert_allclose(
            received[:, :count], expected[:, :count], 1e-5
        )
        np.testing.assert_allclose(
            received[:, count:], expected[:, count:], 1e-5, 1e-5
        )
    if size > 1e8 and name != "moving_mean":
        with pytest.raises(kp.PassportError, match="1,000 times as large"):
            kp.protect_trained(base, images=inputs, seed=0)
