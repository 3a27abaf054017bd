"""Who sees which passport: contexts, other threads, compiled functions."""

import asyncio
import threading

import keras
import numpy as np
import pytest

import keras_passport as kp
from keras_passport.layers import bindings
from keras_passport.models.binding import keyed_function
from support.protected_models import (
    compiled,
    images,
    labels,
    outer_model,
    predict,
)
from support.protected_models import protected as protected_model

BACKEND = keras.backend.backend()
X = images()


def small():
    """Two layers to protect, so that a passport can be half there."""
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Flatten()(inputs)
    for i in range(2):
        # A passport that is drawn from a seed depends on the layers' names.
        x = keras.layers.Dense(6, name=f"hidden_{i}")(x)
        x = keras.layers.BatchNormalization(name=f"norm_{i}")(x)
    return keras.Model(inputs, keras.layers.Dense(4, name="scores")(x))


def protected(bound=True):
    return protected_model(base=small, bound=bound)


def passports(model, count):
    return [
        kp.Passport.random_pattern(model, seed=bytes([i]) * 16)
        for i in range(count)
    ]


def outputs_of(model, some):
    """What the model answers under each passport; it is unbound then."""
    expected = [predict(kp.bind(model, passport), X) for passport in some]
    kp.unbind(model)
    return expected


def assert_near(received, expected):
    np.testing.assert_allclose(received, expected, rtol=1e-4, atol=1e-4)


def refused(call, error=kp.PassportRequiredError):
    with pytest.raises(error):
        call()


# Every way to compile a call of a model: a function of the model that returns
# a function of inputs.
def trained_by_keras(model, **options):
    model.compile("sgd", "mse", **options)
    return lambda x: model.predict(x, batch_size=2, verbose=0)


def own_function(model):
    def call(x):
        return model(x, training=False)

    if BACKEND == "jax":
        import jax

        return jax.jit(call)
    import tensorflow as tf

    return tf.function(call)


COMPILED = {
    "predict": trained_by_keras,
    "jit": lambda m: trained_by_keras(m, jit_compile=True),
    "steps": lambda m: trained_by_keras(m, steps_per_execution=2),
    "eager": lambda m: trained_by_keras(m, run_eagerly=True),
    "own": own_function,
}
AROUND = {
    "itself": lambda m: m,
    "plain": outer_model,
    "protected": lambda m: outer_model(m, kp.ProtectedModel),
    "nested": lambda m: outer_model(outer_model(m)),
}


# Contexts --------------------------------------------------------------------


def test_blocks_nest_and_end_with_an_error():
    model, _ = protected(bound=False)
    first, second, third = passports(model, 3)
    expected = outputs_of(model, (first, second, third))
    kp.bind(model, third)
    with kp.presented(model, first.packed()):
        with (
            pytest.raises(ZeroDivisionError),
            kp.presented(model, second.packed()),
        ):
            assert_near(predict(model, X), expected[1])
            1 / 0  # noqa: B018
        assert_near(predict(model, X), expected[0])
    assert_near(predict(model, X), expected[2])


def test_a_row_per_example():
    model, _ = protected(bound=False)
    some = passports(model, 2)
    expected = outputs_of(model, some)
    rows = np.concatenate([one.packed() for one in some] * 3)
    with kp.presented(model, rows):
        received = predict(model, X)
    for i in range(6):
        assert_near(received[i], expected[i % 2][i])


def test_blocks_of_generators_end_in_any_order():
    model, _ = protected(bound=False)
    some = passports(model, 2)

    def answers(passport):
        with kp.presented(model, passport.packed()):
            while True:
                yield predict(model, X)

    first, second = map(answers, some)
    next(first), next(second)
    first.close()
    second.close()
    refused(lambda: predict(model, X))


def test_tasks_see_what_they_present():
    model, _ = protected(bound=False)
    some = passports(model, 3)
    expected = outputs_of(model, some)

    async def customer(i):
        for _ in range(3):
            with kp.presented(model, some[i].packed()):
                await asyncio.sleep(0)
                assert_near(predict(model, X), expected[i])
                received = await asyncio.to_thread(predict, model, X)
                assert_near(received, expected[i])

    async def nobody():
        for _ in range(6):
            await asyncio.sleep(0)
            refused(lambda: predict(model, X))

    async def all_of_them():
        await asyncio.gather(*map(customer, range(3)), nobody())

    asyncio.run(all_of_them())


def test_a_task_that_outlives_a_block_keeps_nothing():
    model, passport = protected(bound=False)

    async def late():
        await asyncio.sleep(0.01)
        predict(model, X)

    async def main():
        with kp.presented(model, passport.packed()):
            task = asyncio.create_task(late())
            await asyncio.sleep(0)
        await task

    refused(lambda: asyncio.run(main()))


def stress(calls, customers):
    """Threads with a passport each, one without, one that rebinds its own.

    Returns:
        How many answers there were, and those that are nobody's.
    """
    model, _ = protected(bound=False)
    some = passports(model, customers)
    expected = outputs_of(model, some)
    # Rebound again and again while its readers check each answer.
    bound, _ = protected(bound=False)
    theirs = passports(bound, 3)
    possible = outputs_of(bound, theirs)
    kp.bind(bound, theirs[0])
    traced, keyed = own_function(bound), keyed_function(model)
    traced(X), keyed(some[0].packed(), X)
    answers, wrong, busy = [0], [], [True]
    threads = [lambda i=i: customer(i) for i in range(customers)]

    def check(received, options):
        answers[0] += 1
        received = keras.ops.convert_to_numpy(received)
        if not any(np.allclose(received, e, atol=1e-3) for e in options):
            wrong.append(received)

    def customer(i):
        packed = some[i].packed()
        for turn in range(calls):
            with kp.presented(model, packed):
                received = predict(model, X)
                if BACKEND == "tensorflow" and turn % 8 == 0:
                    check(model.predict_on_batch(X), expected[i : i + 1])
            check(received, expected[i : i + 1])
            check(keyed(packed, X), expected[i : i + 1])

    def nobody():
        while busy[0]:
            try:
                wrong.append(predict(model, X))
            except kp.PassportRequiredError:
                answers[0] += 1

    def rebind():
        while busy[0]:
            for passport in theirs:
                kp.bind(bound, passport)

    def read():
        for _ in range(calls):
            check(predict(bound, X), possible)
            check(traced(X), possible)

    workers = [threading.Thread(target=run) for run in (*threads, read)]
    others = [threading.Thread(target=run) for run in (nobody, rebind)]
    for thread in (*workers, *others):
        thread.start()
    for thread in workers:
        thread.join()
    busy[0] = False
    for thread in others:
        thread.join()
    return answers[0], wrong


def test_threads_see_nobody_elses():
    answers, wrong = stress(calls=4, customers=3)
    assert answers >= 4 * 2 * 4 and not wrong


@pytest.mark.benchmark
def test_threads_see_nobody_elses_in_10000_calls():
    answers, wrong = stress(calls=600, customers=8)
    assert answers >= 10_000 and not wrong


# Compiled functions ---------------------------------------------------------


@pytest.mark.parametrize(
    "how, around",
    [(how, "itself") for how in COMPILED]
    + [(how, "plain") for how in ("predict", "own")],
)
def test_compiled_functions_answer_under_the_passport_of_the_moment(
    how, around
):
    model, _ = protected(bound=False)
    first, second = passports(model, 2)
    whole = AROUND[around](model)
    expected = outputs_of(model, (first, second))
    if around != "itself":
        expected = []
        for passport in (first, second):
            kp.bind(model, passport)
            expected.append(predict(whole, X))
        kp.unbind(model)
    run = COMPILED[how](whole)
    refused(lambda: run(X))
    for passport, outputs in zip((first, second), expected, strict=True):
        kp.bind(model, passport)
        assert_near(run(X), outputs)
    with kp.presented(model, first.packed()):
        assert_near(run(X), expected[0])
        with kp.presented(model, second.packed()):
            assert_near(run(X), expected[1])
    kp.unbind(model)
    if (BACKEND, how) == ("jax", "own"):
        with pytest.raises(Exception, match="no passport"):
            np.asarray(run(X))
    else:
        refused(lambda: run(X))
    kp.bind(model, first)
    assert_near(run(X), expected[0])


@pytest.mark.parametrize(
    "around, traced",
    [(around, False) for around in AROUND] + [("plain", True)],
)
def test_models_keep_their_weights_without_a_passport(around, traced):
    model, passport = protected()
    whole = compiled(AROUND[around](model))
    if traced:
        whole.fit(X, labels(), verbose=0)
        whole.evaluate(X, labels(), verbose=0)
        whole.predict(X, verbose=0)
    expected = predict(whole, X)
    weights = whole.get_weights()
    kp.unbind(model)
    for call in (
        lambda: whole.fit(X, labels(), verbose=0),
        lambda: whole.evaluate(X, labels(), verbose=0),
        lambda: whole.predict(X, verbose=0),
    ):
        refused(call)
        for before, after in zip(weights, whole.get_weights(), strict=True):
            np.testing.assert_array_equal(before, after)
    kp.bind(model, passport)
    assert_near(whole.predict(X, verbose=0), expected)
    whole.fit(X, labels(), verbose=0)
    assert_near(whole.predict(X, verbose=0), predict(whole, X))


def disturbed(model, other, passport):
    kp.bind(model, other)
    model.evaluate(X, labels(), verbose=0)
    kp.bind(model, passport)


DISTURBANCES = {
    "none": lambda *some: None,
    "bind": lambda m, other, own: (kp.bind(m, other), kp.bind(m, own)),
    "unbind": lambda m, other, own: (kp.unbind(m), kp.bind(m, own)),
    "evaluate": disturbed,
}


@pytest.fixture(scope="module")
def undisturbed():
    return trained_with("none", "on_epoch_end")


def trained_with(what, place):
    keras.utils.set_random_seed(0)
    model, _ = protected(bound=False)
    own, other = passports(model, 2)
    compiled(kp.bind(model, own))
    callback = keras.callbacks.Callback()
    setattr(
        callback,
        place,
        lambda *args, **logs: DISTURBANCES[what](model, other, own),
    )
    model.fit(
        X,
        labels(),
        batch_size=3,
        epochs=2,
        shuffle=False,
        verbose=0,
        callbacks=[callback],
    )
    return model.get_weights()


@pytest.mark.parametrize(
    "what, place",
    [
        ("bind", "on_train_batch_end"),
        ("unbind", "on_train_batch_begin"),
        ("evaluate", "on_train_batch_end"),
        ("evaluate", "on_epoch_end"),
    ],
)
def test_callbacks_change_nothing_of_a_training(what, place, undisturbed):
    for received, expected in zip(
        trained_with(what, place), undisturbed, strict=True
    ):
        np.testing.assert_allclose(received, expected, atol=1e-5)


@pytest.mark.parametrize("other_thread", (False, True))
@pytest.mark.parametrize("method", ("fit", "predict"))
def test_unbinding_while_it_runs(method, other_thread):
    model, passport = protected()
    compiled(model)
    callback = keras.callbacks.Callback()

    def unbind(*args, **logs):
        if other_thread:
            thread = threading.Thread(target=kp.unbind, args=(model,))
            thread.start()
            thread.join()
        else:
            kp.unbind(model)

    callback.on_train_batch_end = callback.on_predict_batch_end = unbind
    options = {"batch_size": 2, "verbose": 0, "callbacks": [callback]}
    if method == "fit":
        refused(lambda: model.fit(X, labels(), **options))
    else:
        refused(lambda: model.predict(X, **options))
    kp.bind(model, passport)
    assert_near(model.predict(X, verbose=0), predict(model, X))
    model.fit(X, labels(), verbose=0)


def test_training_under_a_presented_passport_is_that_under_a_bound_one():
    weights = []
    for binds in (True, False):
        keras.utils.set_random_seed(0)
        model, _ = protected(bound=False)
        (passport,) = passports(model, 1)
        compiled(model)
        if binds:
            kp.bind(model, passport)
            model.fit(X, labels(), shuffle=False, verbose=0)
        else:
            with kp.presented(model, passport.packed()):
                model.fit(X, labels(), shuffle=False, verbose=0)
        weights.append(model.get_weights())
    for one, other in zip(*weights, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_assumed_parameters_in_compiled_functions():
    model, passport = protected()
    expected = predict(model, X)
    parameters = {
        path: layer.hidden_parameters()
        for path, layer in kp.protected_layers(model).items()
    }
    compiled(kp.unbind(model))
    with kp.assumed(model, parameters):
        assert_near(predict(model, X), expected)
        assert_near(model.predict(X, verbose=0), expected)
    refused(lambda: model.predict(X, verbose=0))
    kp.bind(model, passport)
    # What was traced for γ and β takes no keys.
    refused(lambda: model.predict(X, verbose=0), kp.PassportError)
    assert_near(predict(model, X), expected)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="TensorFlow's own")
def test_errors_of_traced_functions_are_what_they_are():
    import tensorflow as tf

    model, passport = protected(bound=False)
    layer = next(iter(kp.protected_layers(model).values()))

    @tf.function
    def branches(x):
        if tf.reduce_sum(x) > 0:
            return model(x, training=False)
        return model(2 * x, training=False)

    examples = tf.data.Dataset.from_tensor_slices(X).batch(2)
    refused(lambda: branches(X))
    refused(lambda: examples.map(model))
    key = np.ones((1, layer.passport_size), "float32")
    refused(
        lambda: tf.function(lambda x: layer(x, passport=key))(X),
        kp.PassportError,
    )
    kp.bind(model, passport)
    assert_near(branches(X), predict(model, X))
    for error in (kp.PassportError, kp.PassportRequiredError):
        assert error.__init__ is Exception.__init__


@pytest.mark.skipif(BACKEND != "tensorflow", reason="TensorFlow's own")
def test_functions_inside_functions():
    import tensorflow as tf

    model, _ = protected(bound=False)
    first, second = passports(model, 2)
    expected = outputs_of(model, (first, second))
    inner = own_function(model)
    assert_near(inner(X) if kp.bind(model, first) else None, expected[0])

    @tf.function
    def symbolic(keys, x):
        with kp.presented(model, keys):
            return inner(x)

    @tf.function
    def known(x):
        with kp.presented(model, first.packed()):
            return model(x, training=False), inner(x)

    @tf.function
    def loop(x):
        total = tf.zeros((6, 4))
        for _ in tf.range(2):
            total += inner(x) + model(x, training=False)
        return total / 4

    kp.bind(model, second)
    assert_near(symbolic(tf.constant(first.packed()), X), expected[0])
    assert_near(loop(X), expected[1])
    direct, _ = known(X)
    assert_near(direct, expected[0])
    with kp.presented(model, first.packed()):
        assert_near(loop(X), expected[0])


# What holds no key ----------------------------------------------------------


def test_a_functional_graph_takes_no_known_keys():
    model, _ = protected()
    layer = next(iter(kp.protected_layers(model).values()))
    inputs = keras.Input((8, 8, 3))
    key = np.full((1, layer.passport_size), 0.739, "float32")
    with pytest.raises(kp.PassportError, match="input of the") as raised:
        layer(inputs, passport=key)
    assert "0.739" not in str(raised.value)
    layer(inputs, passport=keras.Input((layer.passport_size,)))


def test_nothing_shows_values():
    model, passport = protected()
    with kp.presented(model, passport.packed()):
        shown = [repr(frame) for frame in bindings._frames.get()]
    for layer in kp.protected_layers(model).values():
        secret = layer._secret
        shown += map(repr, (secret, secret.bound, secret.bound.array))
        shown.append(repr(vars(layer)))
        value = str(float(secret.bound.array[0, 0]))[:6]
        assert value not in "".join(shown)
