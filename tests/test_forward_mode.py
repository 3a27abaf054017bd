"""JAX's forward mode through passport layers: `jvp`, `jacfwd`, `hessian`.

The truth of what goes forward is what goes backward, transposed; of inputs,
the unlocked model; of second derivatives, differences of gradients.
"""

import keras
import numpy as np
import pytest

import keras_passport as kp
from support.kernel_layers import stack
from support.plain_models import inputs_of, randomize
from support.truth import relative_difference

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="JAX alone has a forward mode"
)


def bound(base, function="V3", trained=False, decouple=True):
    if trained:
        model, passport = kp.protect_trained(base, seed=0)
    else:
        model = kp.protect(base, function)
        passport = kp.Passport.random_pattern(model, seed=0)
        kp.bind(model, passport)
    for layer in kp.protected_layers(model).values():
        layer.decouple = decouple
    return model, passport


def function_of(model, x, training, packed=None):
    """A few outputs, of the trainable variables and the passport, if given."""
    state = [variable.value for variable in model.non_trainable_variables]

    def outputs(variables):
        y, _ = model.stateless_call(variables, state, x, training=training)
        return keras.ops.ravel(y)[:3]

    def presented(variables):
        *variables, packed = variables
        with kp.presented(model, packed):
            return outputs(variables)

    values = [variable.value for variable in model.trainable_variables]
    if packed is None:
        return outputs, values
    return presented, [*values, packed]


def directions(values, seed=0):
    rng = np.random.default_rng(seed)
    return [
        keras.ops.convert_to_tensor(rng.normal(size=v.shape), v.dtype)
        for v in values
    ]


def product(some, others):
    pairs = zip(some, others, strict=True)
    return sum(float(keras.ops.vdot(a, b)) for a, b in pairs)


def assert_transposed(function, values):
    import jax

    # Compiled: op by op, JAX compiles every one of them.
    @jax.jit
    def both(values, tangents, upstream):
        outputs, forward = jax.jvp(function, (values,), (tangents,))
        expected, backward = jax.vjp(function, values)
        return outputs, forward, expected, backward(upstream)[0]

    tangents = directions(values)
    [upstream] = directions([np.zeros(3, "float32")], 1)
    outputs, forward, expected, backward = both(values, tangents, upstream)
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        product([forward], [upstream]),
        product(tangents, backward),
        rtol=1e-3,
        atol=1e-4,
    )


# Whose keys meet kernels in ways that differ, which is what is transposed.
@pytest.mark.parametrize("kernel", ["grouped", "separable"])
def test_kernel_layers(kernel):
    base = randomize(stack(kernel))
    model, _ = bound(base)
    assert_transposed(*function_of(model, inputs_of(base), True))


CASES = {
    "V1": {"function": "V1"},
    "V2": {"function": "V2"},
    "V3": {},
    "coupled": {"decouple": False},
    "secret order": {"trained": True},
}


@pytest.mark.parametrize(
    ("name", "given", "training"),
    [
        ("V1", False, True),
        ("V2", True, False),
        ("V3", False, False),
        ("V3", True, True),
        ("coupled", False, True),
        ("secret order", True, True),
    ],
)
def test_every_way_to_call_it(name, given, training):
    base = randomize(stack("dense"))
    model, passport = bound(base, **CASES[name])
    packed = None
    if given:
        packed = keras.ops.convert_to_tensor(np.asarray(passport.packed()))
        kp.unbind(model)
    assert_transposed(*function_of(model, inputs_of(base), training, packed))


def test_jacobians_both_ways():
    """`jacfwd` maps over directions."""
    import jax

    base = randomize(stack("dense"))
    model, _ = bound(base)
    function, values = function_of(model, inputs_of(base), False)
    # Of the last kernel alone: one pass for each of its numbers.
    place = min(
        (i for i, v in enumerate(values) if v.ndim > 1),
        key=lambda i: values[i].size,
    )

    def of_one(value):
        return function([*values[:place], value, *values[place + 1 :]])

    [direction] = directions(values[place : place + 1])

    @jax.jit
    def all_ways(value):
        _, linear = jax.linearize(of_one, value)
        both = jax.jacrev(of_one)(value), jax.jacfwd(of_one)(value)
        return *both, linear(direction)

    expected, received, product = all_ways(values[place])
    assert relative_difference(received, expected) < 1e-5
    expected = np.tensordot(expected, direction, direction.ndim)
    assert relative_difference(product, expected) < 1e-4


def test_of_inputs_it_is_the_unlocked_models():
    import jax

    base = randomize(stack("dense"))
    model, passport = bound(base)
    plain = kp.unlock(model, passport, fold=False)
    x = keras.ops.convert_to_tensor(inputs_of(base, 2))
    [direction] = directions([x])
    found = [
        jax.jvp(lambda x, m=m: m(x, training=False), (x,), (direction,))[1]
        for m in (model, plain)
    ]
    assert relative_difference(*found) < 1e-5


@pytest.mark.parametrize("decouple", [False, True])
def test_second_derivatives(decouple):
    """Symmetric; of the formula's own gradients, differences of these."""
    import jax

    base = randomize(stack("dense"))
    model, _ = bound(base, decouple=decouple)
    function, values = function_of(model, inputs_of(base), False)

    def loss(values):
        return keras.ops.sum(keras.ops.square(function(values)))

    gradient = jax.jit(jax.grad(loss))
    one, other = directions(values, 1), directions(values, 2)
    products = jax.jvp(gradient, (values,), (one,))[1]
    np.testing.assert_allclose(
        product(other, products),
        product(one, jax.jvp(gradient, (values,), (other,))[1]),
        rtol=1e-3,
    )
    if decouple:
        return
    step = 1e-3
    around = [
        gradient(
            [v + sign * step * t for v, t in zip(values, one, strict=True)]
        )
        for sign in (1, -1)
    ]
    for received, above, below in zip(products, *around, strict=True):
        expected = (above - below) / (2 * step)
        assert relative_difference(received, expected) < 2e-2
