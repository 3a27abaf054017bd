"""Every licensee has a key of their own, and a leak names its holder."""

import os
import signal
import subprocess
import sys
import textwrap
import time
import traceback

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_passport as kp
from keras_passport import licensing
from keras_passport.layers import spaces
from keras_passport.licensing import codes
from keras_passport.models.unlocking import with_parameters
from keras_passport.passports.entries import PassportEntry

SECRET = bytes(range(32))
NAMES = [f"licensee {number}" for number in range(200)]
MEMBERS = NAMES[:5]


def network():
    """Rows fewer, as many, and more than columns; groups; channels alone."""
    inputs = keras.Input((8, 8, 3))
    x = inputs
    for layer in (
        layers.Conv2D(64, 3, padding="same", use_bias=False, name="first"),
        layers.SeparableConv2D(64, 3, use_bias=False, name="apart"),
        layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="depth"),
        layers.Conv2D(96, 3, groups=2, use_bias=False, name="groups"),
        layers.Conv2D(128, 1, use_bias=False, name="last"),
    ):
        x = layer(x)
        x = layers.BatchNormalization(name=f"{layer.name}_norm")(x)
        x = layers.ReLU(name=f"{layer.name}_relu")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, layers.Dense(5, name="head")(x))


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    model = kp.protect(network())
    rng = np.random.default_rng(0)
    for layer in kp.protected_layers(model).values():
        statistics = layer.normalization
        shape = statistics.moving_mean.shape
        statistics.moving_mean.assign(rng.normal(size=shape))
        statistics.moving_variance.assign(rng.uniform(0.5, 2.0, shape))
    return model


@pytest.fixture(scope="module")
def passport(model):
    return kp.Passport.random_pattern(model)


@pytest.fixture(scope="module")
def licensor(model, passport):
    return licensing.Licensor(passport, model, SECRET)


def images():
    return np.random.default_rng(1).normal(size=(16, 8, 8, 3)).astype("float32")


def outputs(model, passport):
    kp.bind(model, passport)
    try:
        return ops.convert_to_numpy(model(images(), training=False))
    finally:
        kp.unbind(model)


def parameters(model, passport):
    kp.bind(model, passport)
    try:
        return {
            path: layer.hidden_parameters()
            for path, layer in kp.protected_layers(model).items()
        }
    finally:
        kp.unbind(model)


def gap(one, other):
    return np.abs(one - other).max() / np.abs(one).max()


def test_the_null_space_mark_changes_nothing(model, passport):
    licensor = licensing.Licensor(passport, model, SECRET, range_strength=0.0)
    licence = licensor.issue("Bob")
    assert gap(outputs(model, passport), outputs(model, licence)) < 1e-4
    # And it is large: nobody mistakes it for rounding.
    key = passport.keys()["groups"]["gamma"]
    change = licence.keys()["groups"]["gamma"] - key
    assert np.linalg.norm(change) > 0.3 * np.linalg.norm(key)


@pytest.mark.parametrize("trainable", [True, False])
def test_groups_of_a_frozen_layer_are_those_of_before(trainable):
    """Several keys to a grouped kernel, of a backbone that does not train."""
    inputs = keras.Input((8, 8, 4))
    x = layers.Conv2D(12, 1, groups=2, name="conv")(inputs)
    x = layers.BatchNormalization(name="norm")(x)
    base = keras.Model(
        inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(x))
    )
    base.trainable = trainable
    model, passport = kp.protect_trained(base, seed=0)
    assert kp.protected_layers(model)["conv"].key_groups > 1
    licence = licensing.Licensor(
        passport, model, SECRET, range_strength=0
    ).issue("Bob")
    assert np.linalg.norm(licence.packed() - passport.packed()) > 1.0
    x = np.random.default_rng(0).normal(size=(6, 8, 8, 4)).astype("float32")
    np.testing.assert_allclose(
        ops.convert_to_numpy(kp.bind(model, licence)(x, training=False)),
        ops.convert_to_numpy(base(x, training=False)),
        atol=1e-4,
    )


def test_both_marks_change_little(model, passport, licensor):
    mine, owners = outputs(model, passport), parameters(model, passport)
    for name in MEMBERS:
        licence = licensor.issue(name)
        assert gap(mine, outputs(model, licence)) < 0.1
        for path, values in parameters(model, licence).items():
            for own, value in zip(owners[path], values, strict=True):
                size = np.sqrt(np.mean(own**2))
                assert np.sqrt(np.mean((value - own) ** 2)) < 0.011 * size


def test_a_licence_is_a_passport(model, licensor, tmp_path):
    licence = licensor.issue("Bob")
    licence.save(tmp_path / "bob.h5")
    loaded = kp.Passport.load(tmp_path / "bob.h5")
    assert loaded.fingerprint == licence.fingerprint
    assert licence.licensee == "Bob"
    assert b"Bob" not in (tmp_path / "bob.h5").read_bytes()
    served = kp.require_passport(model)
    packed = loaded.pack(kp.passport_spec(served))
    np.testing.assert_allclose(
        ops.convert_to_numpy(served(kp.with_passport(images(), packed))),
        outputs(model, licence),
        atol=1e-4,
    )
    # The same name always gets the same; another gets another.
    assert licensor.issue("Bob").fingerprint == licence.fingerprint
    assert licensor.issue("Eve").fingerprint != licence.fingerprint


def projected(licensor, licence):
    """What an expert makes of a key: its part in the range of W."""
    keys = licence.keys()
    entries = {}
    for path, layer in kp.protected_layers(licensor.model).items():
        found = {}
        for role, key in keys[path].items():
            space = licensor.places[path, role].space
            found[f"{role}_key"] = space.solve(space.response(key)).astype(
                "float32"
            )
        entries[path] = PassportEntry(layer.geometry, **found)
    return kp.Passport("feature_maps", "V3", entries, bytes(16))


def biased(model, licence):
    """An unlocked model with numbers added before and in its means."""
    plain = kp.unlock(model, licence, fold=False)
    rng = np.random.default_rng(5)
    arrays = {}
    for layer in plain.layers:
        for variable in layer.variables:
            arrays[layer.name, variable.name] = ops.convert_to_numpy(variable)
        if isinstance(layer, layers.BatchNormalization):
            kernel = layer.name.removesuffix("_norm")
            added = rng.normal(size=layer.moving_mean.shape)
            arrays[kernel, "bias"] = added
            arrays[layer.name, "moving_mean"] = (
                arrays[layer.name, "moving_mean"] + added
            )

    def with_bias(layer):
        config = layer.get_config()
        if "use_bias" in config:
            config["use_bias"] = True
        return type(layer).from_config(config)

    made = keras.models.clone_model(plain, clone_function=with_bias)
    for layer in made.layers:
        for variable in layer.variables:
            variable.assign(arrays[layer.name, variable.name])
    np.testing.assert_allclose(
        made(images()), plain(images()), rtol=1e-3, atol=1e-4
    )
    return made


def noisy(licence):
    packed = licence.packed()
    rng = np.random.default_rng(0)
    return packed + 0.05 * packed.std() * rng.normal(size=packed.shape)


LEAKS = {
    "licence": lambda at, model, licence: licence,
    "packed": lambda at, model, licence: licence.packed()[0],
    "float16": lambda at, model, licence: licence.packed().astype("float16"),
    "noise": lambda at, model, licence: noisy(licence),
    "projected": lambda at, model, licence: projected(at, licence),
    "parameters": lambda at, model, licence: parameters(model, licence),
    "gamma": lambda at, model, licence: {
        path: (gamma, None)
        for path, (gamma, _) in parameters(model, licence).items()
    },
    "unlocked": lambda at, model, licence: kp.unlock(
        model, licence, fold=False
    ),
    "folded": lambda at, model, licence: kp.unlock(model, licence),
    "biased": lambda at, model, licence: biased(model, licence),
}


@pytest.mark.parametrize("leak", LEAKS)
def test_a_leak_names_its_holder(leak, model, licensor):
    for name in NAMES[3:5]:
        found = licensor.trace(
            LEAKS[leak](licensor, model, licensor.issue(name)), NAMES
        )
        assert found.verdict == name, str(found)
        assert "at most 0.0e+00" not in str(found)
        assert found.licensees == (name,)
        assert found.bound < 1e-6


@pytest.mark.parametrize(
    "trials", [200, pytest.param(1000, marks=pytest.mark.benchmark)]
)
@pytest.mark.parametrize("strategy", ["average", "mixture", "median", "rarest"])
def test_colluders_name_one_of_them_and_nobody_else(
    strategy, trials, model, licensor
):
    """Whatever they make of γ and β of theirs."""
    rng = np.random.default_rng(0)
    places = list(licensor.places)
    words = np.stack(
        [
            np.concatenate([licensor.bits(name, *place) for place in places])
            for name in NAMES
        ]
    )
    chances = np.concatenate(
        [licensor.places[place].chances for place in places]
    )
    members = {"average": 5, "mixture": 3, "median": 3, "rarest": 2}[strategy]
    missed = 0
    for _ in range(trials):
        guilty = rng.choice(len(NAMES), members, replace=False)
        theirs = words[guilty]
        if strategy == "average":
            leak = theirs.mean(0)
        elif strategy == "mixture":
            leak = theirs[
                rng.integers(members, size=theirs.shape[1]),
                np.arange(theirs.shape[1]),
            ]
        elif strategy == "median":
            leak = np.median(theirs, axis=0)
        else:
            leak = theirs.min(0) if rng.integers(2) else theirs.max(0)
        _, bounds = codes.score(leak, words, chances)
        named = np.flatnonzero(bounds * len(NAMES) < 1e-6)
        assert set(named) <= set(guilty)
        missed += not len(named)
    assert missed <= trials / 100


def test_an_average_of_keys_names_all_who_took_part(model, licensor):
    leak = np.mean([licensor.issue(n).packed() for n in MEMBERS], axis=0)
    found = licensor.trace(leak, NAMES)
    assert set(found.licensees) == set(MEMBERS)


def test_a_shift_of_zero_has_no_mark_and_says_nothing():
    """Its mark would be less than float32 rounds, and hide all others."""
    x = inputs = keras.Input((8, 8, 3))
    for number in range(2):
        for kind in ("bare", "norm"):
            x = layers.Conv2D(*(48, 3), use_bias=False, name=f"{kind}{number}")(
                x
            )
            if kind == "norm":
                x = layers.BatchNormalization(beta_initializer="ones")(x)
            x = layers.ReLU()(x)
        x = layers.ZeroPadding2D(2)(x)
    x = layers.GlobalAveragePooling2D()(x)
    base = keras.Model(inputs, layers.Dense(5, name="head")(x))
    model, passport = kp.protect_trained(base)
    licensor = licensing.Licensor(passport, model, SECRET, null_strength=0)
    # γ of all, and β behind the two normalisations.
    assert licensor.positions == (4 * 48 + 5) + 2 * 48
    licence = licensor.issue(NAMES[3])
    whole = parameters(model, licence)
    marked = {
        path: (gamma, None if path.startswith("bare") else beta)
        for path, (gamma, beta) in whole.items()
    }
    expected = licensor.trace(marked, NAMES)
    assert expected.verdict == NAMES[3]
    for leak in (licence, whole, kp.unlock(model, licence)):
        found = licensor.trace(leak, NAMES)
        assert found.scores == pytest.approx(expected.scores, abs=0.1)


def test_the_owners_and_others_keys_accuse_nobody(model, passport, licensor):
    for leak in (
        passport,
        parameters(model, passport),
        kp.Passport.random_pattern(model),
        kp.unlock(model, passport),
    ):
        found = licensor.trace(leak, NAMES)
        assert found.verdict == "nobody" and not found.licensees
    # A key that gives the owner's γ and β and is not the owner's.
    marked = licensing.Licensor(passport, model, SECRET, range_strength=0.0)
    found = marked.trace(projected(marked, marked.issue("Bob")), NAMES)
    assert found.verdict == "stripped"


def test_bounds_of_false_accusations_hold():
    """Of innocent words, no larger part has a bound than the bound says."""
    rng = np.random.default_rng(0)
    chances = codes.biases(SECRET, "layer", "gamma", 200)
    leak = rng.choice([-1.0, 1.0], 200)
    words = np.where(rng.random((100_000, 200)) < chances, 1.0, -1.0)
    scores, bounds = codes.score(leak, words, chances)
    assert abs(scores.mean()) < 0.02 and abs(scores.std() - 1) < 0.02
    for bound in (0.1, 0.01, 0.001):
        assert np.mean(bounds <= bound) <= 1.1 * bound


def test_capacity_grows_with_the_root_of_positions():
    assert codes.capacity(1568, 1000) >= 4
    assert codes.capacity(4 * 1568, 1000) >= 2 * codes.capacity(1568, 1000)
    assert codes.capacity(10, 1000) == 0


def test_spaces_are_the_layers_own_maps(model):
    rng = np.random.default_rng(0)
    for layer in kp.protected_layers(model).values():
        space = spaces.of_layer(layer)
        key = rng.normal(size=space.shape)
        expected = layer.adapter.response(
            layer.layer, ops.convert_to_tensor(key[None], "float32")
        )
        np.testing.assert_allclose(
            space.response(key), ops.convert_to_numpy(expected)[0], atol=1e-4
        )
        assert np.abs(space.response(space.null_part(key))).max() < 1e-9


def test_a_ledger_says_who_has_a_licence(licensor, tmp_path):
    ledger = licensing.Ledger(tmp_path / "ledger", SECRET)
    licences = [licensor.issue(name, ledger) for name in MEMBERS]
    again = licensing.Ledger(tmp_path / "ledger", SECRET)
    assert again.licensees == MEMBERS
    assert [e["fingerprint"] for e in again.entries] == [
        licence.fingerprint for licence in licences
    ]
    assert licensor.trace(licences[2], again).verdict == MEMBERS[2]
    with pytest.raises(kp.PassportError, match="has one"):
        licensor.issue(MEMBERS[0], ledger)
    assert (tmp_path / "ledger").stat().st_mode & 0o077 == 0


def test_a_line_without_its_end_is_a_licence(licensor, tmp_path):
    """All that says who has one is there."""
    path = tmp_path / "ledger"
    ledger = licensing.Ledger(path, SECRET)
    for name in ("Bob", "Eve"):
        licensor.issue(name, ledger)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    ledger = licensing.Ledger(path, SECRET)
    assert ledger.licensees == ["Bob", "Eve"]
    licensor.issue("Ann", ledger)
    assert path.read_bytes().startswith(whole)
    assert licensing.Ledger(path, SECRET).licensees == ["Bob", "Eve", "Ann"]


def test_a_ledger_changes_in_no_bit(licensor, tmp_path):
    path = tmp_path / "ledger"
    ledger = licensing.Ledger(path, SECRET)
    for name in MEMBERS[:3]:
        ledger.append(name)
    text = path.read_bytes()
    lines = text.splitlines(keepends=True)
    changes = [
        text[:at] + bytes([text[at] ^ 1]) + text[at + 1 :]
        for at in range(0, len(text) - 1, 7)
        if text[at] ^ 1 != ord("\n")
    ]
    changes += [
        b"".join(lines[1:]),
        b"".join([lines[0], lines[2]]),
        b"".join([lines[1], lines[0], lines[2]]),
        b"".join([*lines, lines[0]]),
    ]
    for changed in changes:
        path.write_bytes(changed)
        with pytest.raises(kp.PassportError):
            licensing.Ledger(path, SECRET)
    path.write_bytes(text)
    with pytest.raises(kp.PassportError):
        licensing.Ledger(path, bytes(32))


def test_a_torn_line_is_no_licence(tmp_path):
    path = tmp_path / "ledger"
    ledger = licensing.Ledger(path, SECRET)
    for name in MEMBERS[:2]:
        ledger.append(name)
    text = path.read_bytes()
    path.write_bytes(text[:-20])
    torn = licensing.Ledger(path, SECRET)
    assert torn.licensees == MEMBERS[:1]
    torn.append("Eve")
    assert licensing.Ledger(path, SECRET).licensees == [MEMBERS[0], "Eve"]


def test_a_ledger_outlives_kill(tmp_path):
    """What was given out before a process was killed is written down."""
    program = textwrap.dedent(
        """
        import os, sys
        from keras_passport.licensing.ledger import Ledger
        name = "one" if os.fork() else "two"
        ledger = Ledger(sys.argv[1], bytes(range(32)))
        for number in range(10**6):
            ledger.append(f"{name} {number}")
            # One call a line: print's pieces meet the other process's.
            os.write(1, f"{name} {os.getpid()}\\n".encode())
        """
    )
    path = tmp_path / "ledger"
    pids, given = {}, {"one": 0, "two": 0}

    def read(line):
        name, pid = line.split()
        pids[name] = int(pid)
        given[name] += 1

    with subprocess.Popen(
        [sys.executable, "-c", program, str(path)],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        while len(pids) < 2:
            read(process.stdout.readline())
        time.sleep(0.3)
        for pid in pids.values():
            os.kill(pid, signal.SIGKILL)
        for line in process.stdout:
            read(line)
    licensees = licensing.Ledger(path, SECRET).licensees
    for name, count in given.items():
        mine = [entry for entry in licensees if entry.startswith(name)]
        assert len(mine) in (count, count + 1)


def test_a_licence_without_a_ledger_entry_is_made_again(model, passport):
    one = licensing.issue_licence(passport, model, "Bob", SECRET)
    other = licensing.Licensor(passport, model, SECRET).issue("Bob")
    np.testing.assert_array_equal(one.packed(), other.packed())


def test_a_licence_is_good_enough(model, licensor, tmp_path):
    """The first word that is accepted, which the ledger holds."""
    seen = []

    def accept(licence):
        seen.append(licence.fingerprint)
        return len(seen) == 3

    ledger = licensing.Ledger(tmp_path / "ledger", SECRET)
    licensor.issue("Bob", ledger)
    licence = licensor.issue("Eve", ledger, accept)
    assert seen[0] == licensor.issue("Eve").fingerprint
    assert licence.fingerprint == seen[2] == ledger.entries[1]["fingerprint"]
    word = ledger.entries[1]["word"]
    assert licensor.issue("Eve", word=word).fingerprint == seen[2]
    assert ledger.entries[0]["word"] == 0
    for leak in (licence, parameters(model, licence)):
        found = licensor.trace(
            leak, licensing.Ledger(tmp_path / "ledger", SECRET)
        )
        assert found.licensees == ("Eve",) and found.bound < 1e-6
    with pytest.raises(kp.PassportError, match="took none"):
        licensor.issue("Mallory", ledger, lambda licence: False)
    assert ledger.licensees == ["Bob", "Eve"]


def first(licensor):
    """The path of the first protected layer."""
    return next(iter(licensor.passport.layers))


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda at: at.issue(""), "name of 1"),
        (lambda at: at.issue(7), "name of 1"),
        (lambda at: at.issue("nobody"), "name other than"),
        (lambda at: at.issue("Bob", word=-1), "word of 0 or more"),
        (lambda at: at.issue("Bob", word=1.5), "word of 0 or more"),
        (lambda at: at.trace(at.issue("B"), "B"), "names"),
        (
            lambda at: licensing.Ledger("no_ledger", SECRET).append(
                "Bob", previous=""
            ),
            "previous",
        ),
        (lambda at: at.trace("bob.h5", NAMES), "Received: a str"),
        (lambda at: at.trace(np.zeros(3), NAMES), "packed keys"),
        (lambda at: at.trace({}, NAMES), "γ or β"),
        (lambda at: at.trace(np.zeros(3), []), "names"),
        (
            lambda at: licensing.Licensor(at.passport, at.model, b"short"),
            "32 bytes",
        ),
        (
            lambda at: at.trace(
                at.issue("licensee 1").packed() * np.nan, NAMES
            ),
            "finite",
        ),
        (lambda at: licensing.Ledger("no_ledger", None), "32 bytes"),
        (lambda at: at.issue("Bob", "ledger.jsonl"), "licensing.Ledger.*str"),
        (lambda at: at.issue("Bob", []), "licensing.Ledger.*list"),
        (lambda at: at.issue("Bob", accept=True), "accept.*bool"),
        (lambda at: at.again("Bob", "ledger.jsonl"), "licensing.Ledger.*str"),
        (lambda at: at.trace(np.zeros(3), 5), "names.*int"),
        (lambda at: at.trace(np.zeros(3) * 1j, NAMES), "complex"),
        (lambda at: at.trace({first(at): None}, NAMES), "tuple of two"),
        (lambda at: at.trace({first(at): 5}, NAMES), "tuple of two"),
        (lambda at: at.trace({first(at): (5,)}, NAMES), "tuple of two"),
        (lambda at: at.trace({first(at): ("a", "b")}, NAMES), "numbers"),
        (lambda at: at.trace(at.model, NAMES), "γ and β of its own"),
        (lambda at: licensing.Ledger("no_ledger", "s" * 32), "32 bytes"),
    ],
)
def test_mistakes_are_told(call, match, licensor):
    with pytest.raises(kp.PassportError, match=match):
        call(licensor)


def test_what_shows_locals_can_show_a_licensor_that_failed(licensor):
    with pytest.raises(kp.PassportError, match="32 bytes") as raised:
        licensing.Licensor(licensor.passport, licensor.model, b"short")
    traceback.TracebackException.from_exception(
        raised.value, capture_locals=True
    )


def test_a_few_steps_on_gamma_and_beta_leave_the_mark(model, licensor):
    """Fine-tuned by much less than the mark's size, it is found again."""
    rng = np.random.default_rng(0)
    found = parameters(model, licensor.issue("licensee 7"))
    for path, values in found.items():
        found[path] = tuple(
            value * (1 + 0.01 * rng.normal(size=value.shape))
            for value in values
        )
    assert licensor.trace(found, NAMES).verdict == "licensee 7"
    trained = with_parameters(model, found, fold=False)
    assert licensor.trace(trained, NAMES).verdict == "licensee 7"


@pytest.mark.parametrize("bound", (0, -1e-6, 1, 2, float("nan"), "1e-6"))
def test_a_bound_that_is_no_chance_is_refused(bound, licensor):
    """With one of 0 or NaN a marked key was called stripped."""
    with pytest.raises(ValueError, match="Expected bound"):
        licensor.trace(licensor.issue("licensee 1"), NAMES, bound)


@pytest.mark.parametrize("strength", (-1.0, float("inf"), float("nan"), "1"))
@pytest.mark.parametrize("name", ("range_strength", "null_strength"))
def test_strengths_that_make_no_key_are_refused(name, strength, licensor):
    with pytest.raises(ValueError, match="Expected finite strengths"):
        licensing.Licensor(
            licensor.passport, licensor.model, SECRET, **{name: strength}
        )


def test_who_is_named_twice_is_one_suspect(licensor):
    leak = licensor.issue("licensee 1")
    found = licensor.trace(leak, [*NAMES, *NAMES])
    assert found == licensor.trace(leak, NAMES)
    assert found.licensees == ("licensee 1",)
