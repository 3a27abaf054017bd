"""What only a passport's owner can measure: never a part of an attack."""

import dataclasses
import operator
import random
from collections.abc import Iterable, Sequence

import keras
import numpy as np

from keras_passport import graph, scores, secrecy
from keras_passport.attacks.fake import Judge, fake_passports, scaling_of
from keras_passport.errors import PassportError
from keras_passport.passports import passport_file, specs
from keras_passport.passports.passport import Passport, check_passport

# What scripts give `keras.utils.set_random_seed`.
COMMON_SEEDS = (
    *(*range(11), 42, 100, 123, 1234, 12345, 123456, 1337, 3407),
    *range(2015, 2027),
)
# How many seeds a script may have drawn before that of the kernel which tells;
# numbers that such a kernel has; deviations of chance that none is beyond.
_DRAWS = 64
_TELLING = 256
_SURE = 8.0
# Of how many kernels the smallest is looked at.
_FIRST = 8


def first_seed(
    model: keras.Model, seeds: Iterable[int] = COMMON_SEEDS
) -> int | None:
    """Which seed a trained model's first weights can be drawn again from.

    Kernels that were trained are still like those that they began as. Keras
    draws these from one number of a script, or of the layer's initialiser,
    and who has it undoes, after a short training, some of what a secret order
    of rows hides (`attacks.with_rows_of`).
    Train what is to be protected from `reinitialize(network)`.

    Args:
        model: The original, as it was trained, on the backend of then.
        seeds: What scripts may have given `keras.utils.set_random_seed`.

    Returns:
        The seed, or `None`: it is none of these, which is not to say that
        there is none; without a secret 10⁹ can be tried for each kernel.

    Raises:
        ValueError: If it is no built model, or a seed is no whole number.

    Example:

    >>> kp.audit.first_seed(kp.reinitialize(base)) is None
    True
    """
    if not isinstance(model, keras.Model) or not model.built:
        raise ValueError(
            "Expected a Keras model with its weights, as it was trained. "
            f"Received: a {secrecy.type_of(model)}"
            + (" that is not built" if isinstance(model, keras.Model) else "")
        )
    if not isinstance(seeds, Iterable) or isinstance(seeds, (str, bytes)):
        raise ValueError(
            "Expected seeds to be several whole numbers, such as range(1000). "
            f"Received: a {secrecy.type_of(seeds)}"
        )
    made, kernel = _telling_kernel(model)
    if made is None:
        return None
    trained = keras.ops.convert_to_numpy(kernel).astype("float64").ravel()
    least = _SURE / np.sqrt(trained.size) * np.linalg.norm(trained)

    def is_like(drawn):
        config = {**made.get_config(), "seed": drawn}
        first = np.ravel(type(made).from_config(config)(kernel.shape))
        first = first.astype("float64")
        return abs(first @ trained) > least * np.linalg.norm(first)

    own = made.get_config()["seed"]
    if own is not None:
        return own if isinstance(own, int) and is_like(own) else None
    state = random.getstate()
    try:
        for given in seeds:
            seed = _whole(given)
            random.seed(seed)
            if any(is_like(random.randint(1, 10**9)) for _ in range(_DRAWS)):
                return seed
    finally:
        random.setstate(state)
    return None


def _whole(seed) -> int:
    """A seed as Python's own int, of which `random` makes what Keras did."""
    try:
        return operator.index(seed)
    except TypeError:
        raise ValueError(
            "Expected seeds to be whole numbers, as "
            f"keras.utils.set_random_seed takes them. Received: {seed!r}"
        ) from None


def _telling_kernel(model):
    """The initialiser and kernel, of the first ones, that is drawn soonest."""
    found = []
    for _, layer in graph.walk(model):
        for variable in layer._trainable_variables:
            made = getattr(layer, f"{variable.name}_initializer", None)
            telling = np.prod(variable.shape) >= _TELLING
            if telling and "seed" in getattr(made, "get_config", dict)():
                found.append((made, variable))
    return min(
        found[:_FIRST],
        key=lambda pair: np.prod(pair[1].shape),
        default=(None, None),
    )


def right_guesses(passport: Passport, history: Sequence[dict]) -> np.ndarray:
    """Which of their images fakes happened to get right.

    Whoever sees how many of a guess are right can search for the passport:
    it is the owner's to know.

    Args:
        passport: A random_image passport.
        history: Of `attacks.fake_passports` with `"known_images"`.

    Returns:
        Boolean array `(fakes, layers, roles)`.

    Raises:
        PassportError: If the passport is of another kind, or the guesses are
            for another number of layers.
    """
    if passport.kind != "random_image":
        raise PassportError(
            "Expected a random_image passport, of which each layer has "
            f"images of its own. Received: one of kind {passport.kind}"
        )
    chosen = np.asarray(
        [
            [
                getattr(entry, f"{role}_image")
                for role in passport.function.roles
            ]
            for entry in passport.layers.values()
        ]
    )
    guesses = np.asarray([fake["images"] for fake in history])
    if guesses.shape[1:] != chosen.shape:
        raise PassportError(
            f"Expected guesses of shape (fakes, {chosen.shape[0]} layers, "
            f"{chosen.shape[1]} roles). Received: shape={guesses.shape}"
        )
    return guesses == chosen


def accuracies(
    model: keras.Model,
    passport: Passport,
    data: tuple,
    *,
    fakes: int = 10,
    seed: int = 0,
    batch_size: int = 500,
) -> dict[str, float]:
    """What the valid passport, and fake ones, reach with a model.

    It is for a model that somebody changed: a protection that outlives
    pruning, fine-tuning and rewrites keeps the one high and the others low.

    Args:
        model: Protected classifier with one output, of the passport's
            architecture; what is bound to it is not used.
        passport: The owner's.
        data: Inputs and integer labels.
        fakes: How many fake random patterns to try, 1 or more.
        seed: Of the fakes.
        batch_size: Examples per call.

    Returns:
        Dict of fractions: `"valid"`, and the mean and maximum of the fakes,
        `"fakes"` and `"best_fake"`.

    Raises:
        ValueError: If an argument is out of range, a label is no class, or
            scores under the valid passport are not finite. Under a fake such
            a row is wrong.
        PassportError: If the passport does not fit the model.

    Example:

    >>> pruned = kp.attacks.prune(model, 0.5)
    >>> 0 <= kp.audit.accuracies(pruned, passport, test)["valid"] <= 1
    True
    """
    check_passport(passport)
    passport = passport.fitted(model)
    tried = fake_passports(
        model,
        "random_pattern",
        fakes,
        data,
        key_scaling=scaling_of(passport),
        order_seeds=specs.order_seeds(passport),
        seed=seed,
        batch_size=batch_size,
    )
    valid, _ = Judge(model, *scores.pair(data), batch_size)(
        passport.packed(), is_valid=True
    )
    return {"valid": valid, "fakes": tried.mean, "best_fake": tried.accuracy}


def add_noise(
    passport: Passport,
    fraction: float,
    *,
    scale: float = 1.0,
    replace: bool = False,
    seed: int | Sequence[int] = 0,
) -> Passport:
    """A passport with noise on a part of its elements, p + e(c) (Figure 5).

    Args:
        passport: The valid one. Elements are those that its file holds: of
            feature maps, or of keys in place of large ones.
        fraction: c, in [0, 1]: the part of each map's elements.
        scale: Standard deviation of the normal noise, in that of the map.
        replace: Whether noise around the map's mean takes the elements'
            place. Added to them, it averages out the more the larger a map
            is: F takes the mean over all positions.
        seed: Of places and noise.

    Returns:
        A new `Passport`, as secret as the valid one.

    Raises:
        ValueError: If an argument is out of range.

    Example:

    >>> noisy = kp.audit.add_noise(passport, 0.25, replace=True)

    Reference:

    - Fan, Ng, Chan: Digital Passport, Section 3.2, Figure 5.
    """
    if not 0 <= fraction <= 1 or not scale >= 0:
        raise ValueError(
            "Expected a fraction in [0, 1] and a scale of 0 or more. "
            f"Received: fraction={fraction}, scale={scale}"
        )
    check_passport(passport)
    passport = passport_file.as_held(passport)
    rng = np.random.default_rng(seed)

    def noisy(array):
        array = array.copy()
        flat = array.reshape(-1)
        places = rng.permutation(flat.size)[: round(fraction * flat.size)]
        noise = rng.normal(scale=scale * flat.std(), size=places.size)
        flat[places] = noise + (flat.mean() if replace else flat[places])
        return array

    layers = {}
    for path, entry in passport.layers.items():
        changed = {}
        for role in passport.function.roles:
            name = role if getattr(entry, role) is not None else f"{role}_key"
            changed[name] = noisy(getattr(entry, name))
            # They are no image's any more, nor of a map that could be made.
            changed[f"{role}_image"] = changed[f"{role}_record"] = None
        layers[path] = dataclasses.replace(entry, **changed)
    return Passport(
        "feature_maps",
        passport.function,
        layers,
        passport.seed,
        passport.key_scaling,
    )


def accuracy_under_noise(
    model: keras.Model,
    passport: Passport,
    data: tuple,
    *,
    fractions: Sequence[float] = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0),
    scale: float = 1.0,
    replace: bool = False,
    repeats: int = 5,
    seed: int = 0,
    batch_size: int = 500,
    judge: Judge | None = None,
) -> dict:
    """Accuracy against the part of a passport's elements that has noise.

    Args:
        model: Protected classifier with one output.
        passport: Its valid passport.
        data: Inputs and integer labels.
        fractions: Values of c, in [0, 1].
        scale: As for `add_noise`.
        replace: As for `add_noise`.
        repeats: Noisy passports per fraction.
        seed: Of all noise.
        batch_size: Examples per call.
        judge: Of the model on the data, where there is one already.

    Returns:
        Dict of the arguments and `"accuracies"`: per fraction a list of
        `repeats` fractions. No value of the passport is in it. Scores that
        noise makes infinite are wrong.

    Raises:
        ValueError: If an argument is out of range.
        PassportError: If the passport does not fit the model.
    """
    check_passport(passport)
    # Of none there is no accuracy, nor a mean to hold against another's.
    if repeats < 1 or not len(fractions):
        raise ValueError(
            "Expected one fraction or more, and repeats of 1 or more. "
            f"Received: fractions={fractions}, repeats={repeats}"
        )
    # NumPy's own numbers would be none for a record's file.
    seed = operator.index(seed)
    passport = passport_file.as_held(passport.fitted(model))
    judge = judge or Judge(model, *scores.pair(data), batch_size)

    def measure(number, fraction, repeat):
        noisy = add_noise(
            passport,
            fraction,
            scale=scale,
            replace=replace,
            seed=[seed, number, repeat],
        )
        return judge(noisy.packed())[0]

    return {
        "fractions": [float(fraction) for fraction in fractions],
        "scale": float(scale),
        "replace": bool(replace),
        "seed": seed,
        "accuracies": [
            [measure(number, fraction, repeat) for repeat in range(repeats)]
            for number, fraction in enumerate(fractions)
        ],
    }
