"""Groups of output channels with a key each, against sums written out."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_passport as kp
from keras_passport.layers import kernels
from keras_passport.passports.geometry import Geometry, digest

pytestmark = pytest.mark.eager

# Layer, and the shape of its input.
LAYERS = [
    (lambda: layers.Conv1D(6, 3), (7, 2)),
    (lambda: layers.Conv2D(10, 3), (6, 6, 2)),
    (lambda: layers.Conv2D(12, 3, groups=3), (6, 6, 6)),
    (lambda: layers.DepthwiseConv2D(3, depth_multiplier=2), (6, 6, 4)),
    (lambda: layers.SeparableConv2D(20, 3), (6, 6, 3)),
    (lambda: layers.Conv2DTranspose(9, 2), (5, 5, 3)),
    (lambda: layers.Dense(17), (4,)),
]


@pytest.mark.parametrize("groups", [1, 2, 3])
@pytest.mark.parametrize(("make", "shape"), LAYERS)
def test_each_channel_meets_the_key_of_its_group(make, shape, groups):
    layer = make()
    layer.build((None, *shape))
    adapter = kernels.adapter_for(layer)
    rng = np.random.default_rng(groups)
    key_shape = adapter.key_shape(layer)
    keys = rng.normal(size=(2, groups, *key_shape)).astype("float32")
    given = keys[:, 0] if groups == 1 else keys
    # The same with one key at a time, and every group's own channels of it.
    alone = np.stack(
        [np.asarray(adapter.response(layer, keys[:, g])) for g in range(groups)]
    )
    units = adapter.units(layer)
    block = units // adapter.blocks(layer)
    expected = np.stack(
        [alone[c % block % groups, :, c] for c in range(units)], axis=1
    )
    received = np.asarray(adapter.response(layer, given))
    np.testing.assert_allclose(received, expected, atol=1e-6)

    # The kernel's matrix says the same.
    matrix = adapter.matrix(layer)
    rows = rng.normal(size=(2, *matrix.shape[:2])).astype("float32")
    product = np.einsum("nbr,bru->nbu", rows, matrix).reshape(2, -1)
    response = adapter.response(layer, adapter.keys_of(layer, rows))
    np.testing.assert_allclose(product, response, atol=1e-5)

    # And kernels can be changed for what is wanted.
    wanted = rng.normal(size=received.shape).astype("float32")
    change = adapter.smallest_change(layer, given, wanted - received)
    adapter.solvable(layer).assign_add(change)
    received = np.asarray(adapter.response(layer, given))
    np.testing.assert_allclose(received, wanted, atol=1e-4)


def test_keys_of_another_shape_are_refused():
    layer = layers.Dense(3)
    layer.build((None, 4))
    adapter = kernels.adapter_for(layer)
    for shape in ((2, 5), (2, 3, 5), (2, 1, 1, 4)):
        with pytest.raises(ValueError, match="Expected keys of shape"):
            adapter.response(layer, np.ones(shape, "float32"))


def test_geometries_of_one_key_are_described_as_ever():
    one = Geometry("pointwise", channels=3)
    assert "key_groups" not in one.to_dict()
    several = Geometry("pointwise", channels=3, key_groups=4)
    assert Geometry.from_dict(several.to_dict()) == several
    assert several.key_shape == (4, 3) and several.filter_shape == (3,)
    key = digest(np.array([1.0, 2.0, 3.0]), several)
    np.testing.assert_array_equal(key, np.tile([1.0, 2.0, 3.0], (4, 1)))
    with pytest.raises(kp.PassportError):
        Geometry("pointwise", channels=3, key_groups=0)
    ordered = Geometry("pointwise", channels=3, ordered_rows=(3,))
    assert Geometry.from_dict(ordered.to_dict()) == ordered
    assert "ordered_rows" not in several.to_dict()
    with pytest.raises(kp.PassportError):
        Geometry("pointwise", channels=3, ordered_rows=(3, -3))


def make_layer(**options):
    layer = kp.PassportNormalization(
        layers.Conv2D(8, 1, name="conv"), key_groups=3, **options
    )
    layer.build((None, 4, 4, 2))
    return layer


def test_several_keys_train_as_variables_would():
    layer = make_layer()
    keys = np.random.default_rng(0).normal(size=(2, 3, 1, 1, 2))
    layer.bind_keys(*keys.astype("float32"))
    plain = keras.Sequential(
        [
            keras.Input((4, 4, 2)),
            layers.Conv2D(8, 1, trainable=False),
            layers.BatchNormalization(),
        ]
    )
    gamma, beta = layer.hidden_parameters()
    plain.layers[0].set_weights(layer.layer.get_weights())
    plain.layers[1].gamma.assign(gamma)
    plain.layers[1].beta.assign(beta)
    rng = np.random.default_rng(1)
    images = rng.random((4, 4, 4, 2), "float32")
    targets = rng.random((4, 4, 4, 8), "float32")
    for model in (keras.Sequential([keras.Input((4, 4, 2)), layer]), plain):
        model.compile(keras.optimizers.SGD(0.1), "mse")
        model.train_on_batch(images, targets)
    received = layer.hidden_parameters()
    assert np.abs(received[0] - gamma).max() > 1e-3
    np.testing.assert_allclose(received[0], plain.layers[1].gamma, atol=1e-5)
    np.testing.assert_allclose(received[1], plain.layers[1].beta, atol=1e-5)


def test_it_is_made_again_from_its_config():
    layer = make_layer(identity=True)
    again = kp.PassportNormalization.from_config(layer.get_config())
    again.build((None, 4, 4, 2))
    assert again.identity and again.passport_size == layer.passport_size == 12
