"""From scores to accuracies: what is no number, and no class, counts."""

import json

import keras
import numpy as np
import pytest

import keras_passport as kp
from keras_passport import scores
from keras_passport.attacks import fake, training
from support.attack_targets import CLASSES, target
from support.programs import EXAMPLES, run_here

NAN, INF = np.nan, np.inf
# Of four examples: class 1, none, none, class 0.
SCORES = np.array([[0, 2, 1], [NAN, 1, 2], [INF, 0, 0], [3, -1, 0]], "float32")
# What counting NaN and inf as the largest would make of labels of class 0.
LABELS = np.array([0, 0, 0, 0])


def fixed(rows):
    """A model that answers example i of `eye(n)` with row i."""
    count, classes = rows.shape
    inputs = keras.Input((count,), dtype="float32")
    places = keras.ops.argmax(inputs, axis=-1)
    outputs = keras.ops.take(keras.ops.convert_to_tensor(rows), places, axis=0)
    return keras.Model(inputs, outputs)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_what_is_not_finite_is_no_class(dtype):
    np.testing.assert_array_equal(
        scores.classes_of(SCORES.astype(dtype)), [1, -1, -1, 0]
    )
    with pytest.raises(ValueError, match="2 of 4 examples, the first for num"):
        scores.finite_classes_of(SCORES.astype(dtype), "the network")
    kept = scores.finite_classes_of(SCORES[[0, 3]].astype(dtype), "it")
    np.testing.assert_array_equal(kept, [1, 0])


def test_an_attacked_network_of_nan_is_wrong():
    x = np.eye(4, dtype="float32")
    accuracy, entropy = training.judge(fixed(SCORES), (x, LABELS))
    assert accuracy == pytest.approx(1 / 4)
    # Class 1 once, class 0 once, no class twice: 1.5 bits.
    assert entropy == pytest.approx(1.5)
    nowhere = np.full((4, 3), NAN, "float32")
    accuracy, entropy = training.judge(fixed(nowhere), (x, LABELS))
    assert (accuracy, entropy) == (0.0, 0.0)


@pytest.mark.parametrize("form", ["array", "list", "dict"])
def test_one_output_in_any_structure(form):
    model = fixed(SCORES)
    outputs = {
        "array": model.output,
        "list": [model.output],
        "dict": {"scores": model.output},
    }[form]
    wrapped = keras.Model([model.input], outputs)
    found = scores.predict(wrapped, np.eye(4, dtype="float32"), batch_size=3)
    np.testing.assert_array_equal(found, SCORES)
    both = keras.Model(model.input, [model.output, model.output])
    with pytest.raises(ValueError, match="2 outputs"):
        scores.predict(both, np.eye(4, dtype="float32"))


WRONG = [
    ([0, 1, -1, 2], r"\[0, 3\).*-1, and 0 more"),
    ([0, 1, 3, 7], r"\[0, 3\).*3, and 1 more"),
    ([0, 0.5, 1, 2], "with 0.5 in it"),
    ([0, NAN, 1, 2], "with nan in it"),
    (["0", "1", "2", "0"], "dtype <U1"),
    ([0, 1, 2], r"shape \(3,\)"),
    (np.eye(3)[[0, 1, 2, 0]], "argmax.*one-hot"),
    (np.zeros((4, 2), int), r"shape \(4, 2\)"),
    (0, r"shape \(\)"),
]


@pytest.mark.parametrize("y, said", WRONG)
def test_labels_that_no_class_has(y, said):
    with pytest.raises(ValueError, match=said):
        scores.labels_of(y, 4, 3)


@pytest.mark.parametrize(
    "y", [[2, 0, 1, 1], [2.0, 0.0, 1.0, 1.0], [[2], [0], [1], [1]]]
)
def test_labels_of_any_type(y):
    found = scores.labels_of(y, 4, 3)
    np.testing.assert_array_equal(found, [2, 0, 1, 1])
    assert found.dtype == "int64"


@pytest.fixture(scope="module")
def protected():
    return target(bound=False)


@pytest.mark.parametrize("y, said", WRONG)
def test_judges_refuse_such_labels(y, said, protected):
    model, passport, data, (x, labels) = protected
    x, right = x[:4], (x[4:8], labels[4:8])
    uses = [
        lambda: fake.Judge(model, x, y),
        lambda: kp.attacks.fake_passports(
            model, "random_pattern", 1, (x, y), seed=0
        ),
        lambda: kp.audit.accuracies(model, passport, (x, y)),
        lambda: kp.audit.accuracy_under_noise(model, passport, (x, y)),
        lambda: training.judge(model, (x, y)),
        lambda: kp.attacks.from_scratch(model, right, (x, y)),
    ]
    if np.shape(y) != (4, 3):
        # Attackers train on probabilities, too, of which these are some.
        uses.append(lambda: kp.attacks.from_scratch(model, (x, y), right))
    for use in uses:
        with pytest.raises(ValueError):
            use()


def test_a_fake_that_overflows_is_wrong_and_the_valid_one_refused(protected):
    model, passport, _, (x, labels) = protected
    judge = fake.Judge(model, x, np.zeros_like(labels))
    packed = np.asarray(passport.packed())
    assert judge(packed, is_valid=True)[0] == np.mean(labels == 0)
    huge = np.full_like(packed, 3e38)
    assert judge(huge) == (0.0, 0.0)
    with pytest.raises(ValueError, match="finite scores of the valid pass"):
        judge(huge, is_valid=True)
    broken = kp.public(model)
    last = [layer for layer in broken.layers if layer.weights][-1]
    last.set_weights([np.full_like(w, NAN) for w in last.get_weights()])
    for use in (kp.audit.accuracies,):
        with pytest.raises(ValueError, match="finite scores of the valid pass"):
            use(broken, passport, (x, labels))
    result = kp.attacks.fake_passports(
        broken, "random_pattern", 2, (x, np.zeros_like(labels)), seed=0
    )
    assert result.accuracies == (0.0, 0.0)
    assert CLASSES == 3


def test_a_trial_that_diverged_is_not_chosen():
    finite = {"val_loss": 2.0, "val_accuracy": 0.1}
    lost = {"val_loss": NAN, "val_accuracy": 0.9}
    assert training.standing(finite) > training.standing(lost)


def test_a_run_of_nan_is_named(tmp_path):
    from support.planted_runs import linear_classifier, planted

    run = planted(tmp_path / "run", linear_classifier())
    model = run.given["model"]
    weights = model.get_weights()
    weights[-1] = np.full_like(weights[-1], NAN)
    model.set_weights([np.full_like(w, NAN) for w in weights])
    model.save(run.directory.protected)
    for name, flags in (
        ("attack", ("--attack=fake_random_pattern",)),
        ("evaluate_protection", ()),
    ):
        status, _, errors = run_here(
            f"--run_dir={tmp_path / 'run'}",
            *flags,
            program=EXAMPLES / f"{name}.py",
        )
        assert (status, errors.count("\n")) == (2, 1)
        assert "finite scores of the valid network" in errors
    assert json.loads(run.directory.config.read_text())


def test_data_that_is_no_pair(protected):
    """Such as a dataset, of which attacks would take any two parts."""
    model, passport, data, test = protected
    for given in (np.zeros(4), [1, 2, 3], zip([1], [2], strict=True)):
        for use in (
            lambda: kp.attacks.reverse_engineering(model, given, test),  # noqa: B023
            lambda: kp.attacks.reverse_engineering(model, data, given),  # noqa: B023
            lambda: kp.audit.accuracies(model, passport, given),  # noqa: B023
            lambda: kp.evaluation.Case.of(model, passport, data, given),  # noqa: B023
        ):
            with pytest.raises(ValueError, match="tuple of two arrays"):
                use()


ODD = {
    "Expected examples": lambda x: x[:0],
    "finite numbers": lambda x: np.where(x == x.max(), NAN, x),
    "an array .*list with a float": lambda x: x.tolist(),
    "an array .*ndarray with a ndarray": lambda x: np.array(
        [None, *x], dtype=object
    )[1:],
    "an array .*NoneType": lambda x: None,
    "equally many": lambda x: [x, x[1:]],
}


@pytest.mark.parametrize("said", ODD)
def test_inputs_of_which_nothing_can_be_said(said, protected):
    """None counts as an attack that failed."""
    model, passport, data, test = protected
    odd, wrong = ((ODD[said](x), y) for x, y in (data, test))
    for use in (
        lambda: kp.audit.accuracies(model, passport, wrong),
        lambda: kp.attacks.fake_passports(model, "random_pattern", 1, wrong),
        lambda: kp.attacks.reverse_engineering(model, odd, test),
        lambda: kp.attacks.reverse_engineering(model, data, wrong),
        lambda: kp.attacks.spectral(model, None, wrong),
        lambda: kp.attacks.statistics_matching(model, odd[0], test),
        lambda: kp.evaluation.Case.of(model, passport, data, wrong),
    ):
        with pytest.raises(ValueError, match=said):
            use()


def test_what_is_no_classifier_is_not_judged(protected):
    _, _, _, (x, y) = protected
    pixels = keras.Sequential([keras.Input(x.shape[1:]), keras.layers.ReLU()])
    with pytest.raises(ValueError, match="Expected a classifier, whose output"):
        training.judge(pixels, (x, y))


@pytest.mark.parametrize("form", ["list", "tuple", "dict", "tensors"])
def test_attackers_train_on_inputs_in_any_structure(form):
    x = np.random.default_rng(0).random((16, 3), "float32")
    y = np.arange(16) % 2
    inputs = [keras.Input((3,), name=name) for name in ("a", "b")]
    given = {"a": x, "b": -x}
    if form == "dict":
        inputs = {one.name: one for one in inputs}
    elif form == "tensors":
        inputs = inputs[0]
        given, y = map(keras.ops.convert_to_tensor, (x, y))
    else:
        kind = {"list": list, "tuple": tuple}[form]
        inputs, given = kind(inputs), kind(given.values())
    merged = keras.tree.flatten(inputs)
    outputs = keras.layers.Dense(4)(sum(merged[1:], merged[0]))
    outputs = keras.layers.BatchNormalization()(outputs)
    outputs = keras.layers.Dense(2, activation="softmax")(outputs)
    model, _ = kp.protect_trained(keras.Model(inputs, outputs), seed=0)
    result = kp.attacks.reverse_engineering(
        model, (given, y), (given, y), recipe=kp.attacks.Recipe(epochs=1)
    )
    assert result.budget["images"] == 16
    kp.attacks.statistics_matching(
        model, given, (given, y), restarts=1, rounds=1
    )


@pytest.mark.parametrize("activation", ["sigmoid", None])
def test_a_binary_classifier_is_judged_by_two_outputs(activation):
    base = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(8, "relu"),
            keras.layers.Dense(1, activation),
        ]
    )
    model, passport = kp.protect_trained(base)
    x = np.random.default_rng(0).normal(size=(50, 4)).astype("float32")
    y = np.arange(50) % 2
    with pytest.raises(ValueError, match="judged by two outputs"):
        training.judge(model, (x, y))
    p = model.outputs[0]
    both = [1 - p, p] if activation else [0 * p, p]
    two = keras.Model(model.inputs, keras.ops.concatenate(both, axis=-1))
    found, _ = training.judge(kp.bind(two, passport), (x, y))
    middle = 0.5 if activation else 0.0
    answers = keras.ops.convert_to_numpy(base(x))[:, 0] > middle
    assert found == pytest.approx(np.mean(answers == y))
    # Paths are as they were: so the passport fits.
    assert kp.protected_layers(kp.unbind(two)).keys() == passport.layers.keys()
