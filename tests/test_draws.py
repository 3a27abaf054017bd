"""What follows from a secret is the same in years to come.

The numbers here were drawn once, with NumPy 2; files that users keep depend on
them. Of `Generator`, whose methods may change, nothing is used.
"""

import numpy as np
import pytest

from keras_passport.licensing import codes
from keras_passport.passports import draws
from keras_passport.passports.derivation import derive

SEED = derive(b"0" * 16, "x")


@pytest.mark.parametrize(
    "drawn, expected",
    [
        (
            draws.words(SEED, 2),
            [12735738120255326127, 16520215277939450793],
        ),
        (
            draws.uniform(SEED, (3, 1)),
            [
                [0.8923424482345581],
                [0.3808114528656006],
                [-0.07373392581939697],
            ],
        ),
        (draws.chances(SEED, 2), [0.6904057469093638, 0.8955626647135086]),
        (draws.signs(SEED, 6), [-1, -1, -1, 1, 1, -1]),
        (draws.order_of_rows(SEED, ((4, 1), (3, 1))), [4, -3, -1, 2, -1, 2, 3]),
        (
            codes.noise(SEED, 3, "a"),
            [0.9850172016064822, 0.21008631712422746, -0.5415009686072971],
        ),
    ],
)
def test_are_what_they_were(drawn, expected):
    assert np.shape(drawn) == np.shape(expected)
    np.testing.assert_allclose(drawn, np.array(expected, drawn.dtype), 1e-7)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (2, 3), (7, 1, 3)])
def test_uniform_has_any_shape(shape):
    drawn = draws.uniform(SEED, shape)
    assert drawn.shape == shape and drawn.dtype == "float32"
    assert np.all((drawn >= -1) & (drawn < 1))


def test_draws_are_spread():
    count = 20_000
    assert abs(draws.uniform(SEED, (count,)).mean()) < 0.02
    assert abs(draws.signs(SEED, count).mean()) < 0.03
    normal = codes.noise(SEED, count)
    assert abs(normal.mean()) < 0.03 and abs(normal.std() - 1) < 0.02


@pytest.mark.parametrize(
    "orders",
    [((1, 1),), ((5, 1),), ((9, 1), (4, 1)), ((3, 2), (1, 1), (6, 4))],
)
def test_orders_are_of_each_kernel_and_group(orders):
    order, start = draws.order_of_rows(SEED, orders), 0
    for rows, groups in orders:
        part = order[start : start + rows * groups].reshape(rows, groups)
        for column in np.abs(part).T:
            assert sorted(column) == list(range(1, rows + 1))
        columns = {tuple(column) for column in part.T}
        assert rows < 5 or len(columns) == groups
        start += rows * groups
    assert start == len(order)
