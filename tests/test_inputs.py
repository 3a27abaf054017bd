"""One array serves wherever Keras's own `predict` takes one."""

import warnings

import keras
import numpy as np
import pytest

import keras_passport as kp
from keras_passport.models import inputs as inputs_module
from support.plain_models import randomize

RNG = np.random.default_rng(0)
X = RNG.random((6, 8, 8, 1), "float32")
Y = np.arange(6) % 3


def body(x):
    for index in range(2):
        x = keras.layers.Conv2D(5, 3, name=f"conv{index}")(x)
        x = keras.layers.BatchNormalization(name=f"norm{index}")(x)
        x = keras.layers.ReLU(name=f"relu{index}")(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.layers.Dense(3, name="head")(x)


def made(structure):
    keras.utils.set_random_seed(4)
    image = keras.Input((8, 8, 1), name="images")
    if structure == "sequential":
        functional = keras.Model(image, body(image))
        base = keras.Sequential([image, *functional.layers[1:]])
    elif structure == "flat":
        image = keras.Input((8, 8), name="images")
        four = keras.layers.Reshape((8, 8, 1), name="reshape")(image)
        base = keras.Model(image, body(four))
    else:
        taken = {
            "tensor": image,
            "list": [image],
            "tuple": (image,),
            "dict": {"images": image},
        }[structure]
        base = keras.Model(taken, body(image))
    return randomize(base, seed=4)


STRUCTURES = ("tensor", "list", "tuple", "dict", "sequential", "flat")
GIVEN = {
    "array": lambda x: x,
    "list": lambda x: [x],
    "tuple": lambda x: (x,),
    "dict": lambda x: {"images": x},
    "another rank": lambda x: x[..., 0],
    "integers": lambda x: (x * 255).astype("uint8"),
    "tensor": keras.ops.convert_to_tensor,
}


def results(structure, x):
    """What every verb that takes inputs makes of one form of them."""
    base = made(structure)
    model = kp.protect(base)
    random = kp.Passport.random_image(model, x, reference=base, seed=1)
    first_two = keras.tree.map_structure(lambda array: array[:2], x)
    fixed = kp.Passport.fixed_image(model, first_two, reference=base, seed=1)
    fakes = kp.attacks.fake_passports(
        model,
        "random_image",
        3,
        (x, Y),
        images=x,
        reference=base,
        key_scaling="paper",
        seed=2,
    )
    patterns = kp.attacks.fake_passports(
        model, "random_pattern", 3, (x, Y), seed=2
    )
    kp.calibrate(kp.bind(model, random), like=base)
    kp.estimate_statistics(model, [x])
    outputs = [model.predict(x, verbose=0)]
    kp.hide_statistics(model, [x])
    outputs.append(model.predict(x, verbose=0))
    return {
        "random": random.packed(),
        "fixed": fixed.packed(),
        "images": random.images,
        "fakes": fakes.accuracies,
        "patterns": patterns.accuracies,
        "outputs": np.stack(outputs),
    }


@pytest.fixture(scope="module")
def expected():
    return results("tensor", X)


@pytest.fixture(scope="module")
def models():
    bases = {structure: made(structure) for structure in STRUCTURES}
    return {name: (base, kp.protect(base)) for name, base in bases.items()}


@pytest.mark.eager
@pytest.mark.parametrize(
    "structure, given",
    [
        ("list", "array"),
        ("list", "list"),
        ("tuple", "array"),
        ("dict", "array"),
        ("sequential", "list"),
    ],
)
def test_every_verb_takes_what_predict_takes(structure, given, expected):
    with warnings.catch_warnings():
        # Keras warns of another structure, and goes on.
        warnings.simplefilter("ignore")
        received = results(structure, GIVEN[given](X))
    for name, value in expected.items():
        got = np.asarray(received[name])
        np.testing.assert_allclose(got, value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("given", GIVEN)
def test_passports_of_images(structure, given, models):
    base, model = models[structure]
    x = GIVEN[given](X[:2])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # The truth: Keras takes it. (TensorFlow would trace `predict` for any
        # rank, once it had seen two.)
        assert base(keras.tree.map_structure(keras.ops.array, x)).shape == (
            2,
            3,
        )
        passport = kp.Passport.fixed_image(model, x, reference=base, seed=1)
    if given == "integers":
        assert passport.images.max() > 200
        return
    plain = kp.Passport.fixed_image(
        models["tensor"][1], X[:2], reference=models["tensor"][0], seed=1
    )
    np.testing.assert_allclose(
        passport.packed(), plain.packed(), rtol=1e-4, atol=1e-4
    )


def test_a_reference_of_another_structure(expected, models):
    model = models["tensor"][1]
    for structure in ("list", "dict", "sequential"):
        passport = kp.Passport.random_image(
            model, X, reference=models[structure][0], seed=1
        )
        wanted = expected["random"]
        np.testing.assert_allclose(
            passport.packed(), wanted, rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize(
    "form",
    (
        lambda a, b: {"b": b, "a": a},
        lambda a, b: [a, b],
        lambda a, b: (a, b),
        lambda a, b: [a, [b]],
    ),
)
def test_several_inputs_by_name_or_in_order(form):
    one, two = keras.Input((3,), name="a"), keras.Input((4,), name="b")
    model = keras.Model(form(one, two), keras.layers.Concatenate()([one, two]))
    a, b = np.ones((2, 3)), np.ones((2, 4))
    for given in (form(a, b), {"a": a, "b": b}):
        flat = inputs_module.flat(model, given)
        kept = inputs_module.plain(model, flat)
        again = inputs_module.flat(model, kept)
        shapes = [tensor.shape[1:] for tensor in model.inputs]
        for arrays in (flat, again):
            assert [array.shape[1:] for array in arrays] == shapes
    for wrong in (a, [a], {"a": a}, {"a": a, "c": b}, [a, b, a]):
        with pytest.raises(kp.PassportError, match="structure"):
            inputs_module.flat(model, wrong)


def test_images_of_several_inputs_stay_in_order(tmp_path):
    """More than ten inputs, whose numbers as texts sort otherwise."""
    taken = [keras.Input((4,), name=f"in{index}") for index in range(11)]
    x = keras.layers.Concatenate()(taken)
    x = keras.layers.Dense(6, name="dense")(x)
    x = keras.layers.BatchNormalization()(x)
    base = keras.Model(taken, x)
    images = list(RNG.random((11, 3, 4), "float32"))
    passport = kp.Passport.random_image(
        kp.protect(base), images, reference=base
    )
    passport.save(tmp_path / "owner.h5")
    loaded = kp.Passport.load(tmp_path / "owner.h5")
    np.testing.assert_array_equal(loaded.images, images)
    assert loaded.fingerprint == passport.fingerprint
    np.save(tmp_path / "x.npy", images[3])
    assert not kp.find_leaks(loaded, tmp_path / "x.npy").clean


@pytest.fixture(scope="module")
def estimated():
    """A network and its protection, bound, with statistics of their own."""
    base = made("tensor")
    model = kp.protect(base)
    kp.bind(model, kp.Passport.random_pattern(model, seed=0))
    return base, kp.estimate_statistics(model, [X])


def numpy(tensor):
    return keras.ops.convert_to_numpy(tensor)


def with_a_number(number):
    x = X.copy()
    x[3, 0, 0, 0] = number
    return x


TAKE_BATCHES = {
    "estimate": lambda base, model, x: kp.estimate_statistics(model, x),
    "hide": lambda base, model, x: kp.hide_statistics(model, x),
    "restore": lambda base, model, x: kp.restore_statistics(base, x),
    "calibrate": lambda base, model, x: kp.calibrate(
        model, like=base, batches=x
    ),
}
WRONG_BATCHES = {
    "a number": (lambda: 4, "Received: a int"),
    "an array": (lambda: X, r"shape=\(8, 8, 1\) as batch number 0"),
    "numbers": (lambda: [X.tolist()], "Received: a list as batch"),
    "labels": (lambda: [(X, Y)], "lambda x, y: x"),
    "an empty one": (lambda: [X, X[:0]], "batch number 1.*without any"),
    "no batches": (lambda: iter(()), "at least one batch"),
    "NaN": (lambda: [X, with_a_number(np.nan)], "NaN or infinity"),
    "infinity": (lambda: [with_a_number(np.inf)], "NaN or infinity"),
}


@pytest.mark.eager
@pytest.mark.parametrize(
    "verb, name",
    [("estimate", name) for name in WRONG_BATCHES]
    + [
        (verb, name)
        for verb in ("hide", "restore", "calibrate")
        for name in ("an array", "NaN")
    ],
)
def test_wrong_batches_are_told_and_spoil_nothing(verb, name, estimated):
    """One picture with NaN made NaN of all statistics, and then of kernels."""
    make, message = WRONG_BATCHES[name]
    before = [numpy(one(X, training=False)) for one in estimated]
    with pytest.raises(ValueError, match=message):
        TAKE_BATCHES[verb](*estimated, make())
    for old, one in zip(before, estimated, strict=True):
        new = numpy(one(X, training=False))
        if verb == "calibrate" and name == "NaN":
            assert np.isfinite(new).all()  # its kernels are what they became
        else:
            np.testing.assert_allclose(new, old, atol=1e-6)
