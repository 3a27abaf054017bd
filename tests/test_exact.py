"""`protect_trained`: the truth is the trained model itself."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_passport as kp
from keras_passport.attacks.fake import scaling_of
from keras_passport.cli import parser
from keras_passport.layers import kernels
from keras_passport.layers.channel_scale import ChannelScale
from support.plain_models import small_resnet
from support.trained_models import MODELS, gap, inputs_of, look_trained

if keras.backend.backend() == "jax":
    # Which compiles every operation that is called by itself.
    MODELS = {name: MODELS[name] for name in ("plain", "residual", "separable")}
_MADE = {}


def case(name):
    """A trained model, its protected copy, and the passport; made once."""
    if name not in _MADE:
        keras.utils.set_random_seed(0)
        base = look_trained(MODELS[name]())
        _MADE[name] = (base, *kp.protect_trained(base, seed=0, order=False))
    base, model, passport = _MADE[name]
    return base, kp.bind(model, passport), passport


def outputs(model, *inputs):
    return model(*inputs, training=False)


@pytest.mark.eager
@pytest.mark.parametrize("name", MODELS)
def test_computes_what_the_trained_model_computes(name, tmp_path):
    base, model, passport = case(name)
    inputs = inputs_of(base)
    expected = outputs(base, inputs)
    assert gap(outputs(model, inputs), expected) < 1e-5

    # From a file, and with the passport as an input.
    model.save(tmp_path / "protected.keras")
    passport.save(tmp_path / "owner.h5")
    loaded = keras.saving.load_model(tmp_path / "protected.keras")
    with pytest.raises(kp.PassportRequiredError):
        outputs(loaded, inputs)
    owners = kp.Passport.load(tmp_path / "owner.h5")
    assert owners.fingerprint == passport.fingerprint
    assert gap(outputs(kp.bind(loaded, owners), inputs), expected) < 1e-5
    served = kp.require_passport(model)
    packed = owners.pack(kp.passport_spec(served))
    given = kp.with_passport(inputs, packed)
    assert gap(outputs(served, given), expected) < 1e-5

    # Unlocked for whom is trusted; the original's architecture and kernels.
    assert gap(outputs(kp.unlock(model, passport), inputs), expected) < 1e-5
    plain = kp.unlock(model, owners, fold=False)
    assert gap(outputs(plain, inputs), expected) < 1e-5
    kinds = [
        [type(part) for part in m._flatten_layers()] for m in (base, plain)
    ]
    assert sorted(map(str, kinds[0][1:])) == sorted(map(str, kinds[1][1:]))
    assert base.count_params() == plain.count_params()


@pytest.mark.parametrize("name", MODELS)
def test_protects_every_kernel_layer(name):
    base, model, _ = case(name)
    kernel_layers = [
        layer
        for layer in base._flatten_layers()
        if kernels.adapter_for(layer) is not None
    ]
    assert len(model.report.protected) == len(kernel_layers)
    assert [row.path for row in model.solution] == list(
        kp.protected_layers(model)
    )
    for row in model.solution:
        assert row.residual < 1e-9 and row.error < 1e-6 and row.dead == 0


@pytest.mark.parametrize("name", MODELS)
def test_publishes_neither_sizes_nor_statistics(name):
    _, model, _ = case(name)
    for layer in kp.protected_layers(model).values():
        matrix = layer.adapter.matrix(layer.layer)
        norms = np.linalg.norm(matrix, axis=1)
        if isinstance(layer.layer, ChannelScale):
            np.testing.assert_array_equal(norms, 1.0)
            continue
        np.testing.assert_allclose(norms, np.sqrt(2.0), rtol=1e-5)
        assert np.all(layer.normalization.moving_mean == 0.0)
        assert np.all(layer.normalization.moving_variance == 1.0)
        assert not layer.normalization.trainable
        if getattr(layer.layer, "bias", None) is not None:
            assert np.all(layer.layer.bias == 0.0)


@pytest.mark.parametrize("name", ["residual", "plain", "separable"])
def test_another_passport_gives_something_else(name):
    base, model, _ = case(name)
    inputs = inputs_of(base)
    kp.bind(model, kp.Passport.random_pattern(model, seed=1))
    assert gap(outputs(model, inputs), outputs(base, inputs)) > 0.1


def test_signs_alone_come_back_bit_for_bit():
    base = look_trained(MODELS["residual"]())
    model, passport = kp.protect_trained(base, sizes=False, seed=0, order=False)
    plain = kp.unlock(model, passport, fold=False)
    signs = []
    for layer in base.layers:
        if kernels.adapter_for(layer) is None:
            continue
        kernel = np.asarray(layer.kernel)
        np.testing.assert_array_equal(
            plain.get_layer(layer.name).kernel, kernel
        )
        published = np.asarray(model.get_layer(layer.name).layer.kernel)
        np.testing.assert_array_equal(np.abs(published), np.abs(kernel))
        signs.append(np.sign(published * kernel).reshape(-1, kernel.shape[-1]))
        assert np.all(signs[-1] == signs[-1][0])
    signs = np.concatenate([some[0] for some in signs])
    assert 0.2 < np.mean(signs < 0) < 0.8
    inputs = inputs_of(base)
    assert gap(outputs(plain, inputs), outputs(base, inputs)) < 1e-5


ORDERED = ["separable"]
if keras.backend.backend() != "jax":
    ORDERED.append("generator")


@pytest.mark.parametrize("name", ORDERED)
def test_rows_in_a_secret_order(name, tmp_path):
    base, unordered, _ = case(name)
    inputs, expected = inputs_of(base), outputs(base, inputs_of(base))
    model, passport = kp.protect_trained(base, sizes=False, seed=0)
    assert gap(outputs(model, inputs), expected) < 1e-5
    # The kernels are others than signs alone would make them.
    bare = kp.protect_trained(base, sizes=False, seed=0, order=False)[0]
    pairs = (
        list(kp.protected_layers(model).values()),
        [*kp.protected_layers(bare).values()],
    )
    for stored, signed in zip(*pairs, strict=True):
        assert stored.ordered != isinstance(stored.layer, ChannelScale)
        for one, other in zip(stored.weights, signed.weights, strict=True):
            one, other = (np.abs(np.asarray(w)) for w in (one, other))
            if one.ndim > 1 and one.size > 20:
                assert not np.array_equal(one, other)
            assert np.array_equal(np.sort(one, None), np.sort(other, None))

    model.save(tmp_path / "protected.keras")
    passport.save(tmp_path / "owner.h5")
    loaded = keras.saving.load_model(tmp_path / "protected.keras")
    owners = kp.Passport.load(tmp_path / "owner.h5")
    assert owners.fingerprint == passport.fingerprint
    assert gap(outputs(kp.bind(loaded, owners), inputs), expected) < 1e-5
    with pytest.raises(kp.PassportError, match="Expected a passport for"):
        kp.bind(unordered, owners)
    served = kp.require_passport(kp.public(model))
    packed = owners.pack(kp.passport_spec(served))
    given = kp.with_passport(inputs, packed)
    assert gap(served.predict(given, verbose=0), expected) < 1e-5
    # The kernel is one for all examples.
    mixed = kp.with_passport(inputs, np.concatenate([packed, packed, -packed]))
    with pytest.raises(kp.PassportError, match="several passports"):
        outputs(served, mixed)
    with pytest.raises(kp.PassportError, match="several passports"):
        served.predict(mixed, verbose=0)

    plain = kp.unlock(model, owners, fold=False)
    kernels_of = [
        [w for w in one.weights if "kernel" in w.name] for one in (base, plain)
    ]
    for old, new in zip(*kernels_of, strict=True):
        if "pointwise" not in old.name or name != "separable":
            np.testing.assert_array_equal(old, new)
    for one in (plain, kp.unlock(model)):
        assert gap(outputs(one, inputs), expected) < 1e-5
    # A passport under other names keeps the order.
    path = next(iter(passport.layers))
    again = owners.renamed({path: "other"}).renamed({"other": path})
    assert gap(outputs(kp.bind(model, again), inputs), expected) < 1e-5


@pytest.mark.eager
def test_rows_in_a_secret_order_train_on(tmp_path):
    base = look_trained(MODELS["residual"]())
    base.compile(keras.optimizers.SGD(0.01), "sparse_categorical_crossentropy")
    images, labels = inputs_of(base, 16), np.arange(16) % 4
    received = []
    for order in (False, True):
        model, passport = kp.protect_trained(base, seed=0, order=order)
        start = model.evaluate(images, labels, verbose=0)
        model.fit(images, labels, epochs=3, batch_size=16, verbose=0)
        received.append(start - model.evaluate(images, labels, verbose=0))
        plain = kp.unlock(model, passport)
        assert gap(outputs(plain, images), outputs(model, images)) < 1e-5
    assert min(received) > 0
    # A licensee gets the order too.
    expected = outputs(model, images)
    issued = kp.licensing.issue_licence(passport, model, "Bob", b"x" * 32)
    issued.save(tmp_path / "bob.h5")
    kp.bind(model, kp.Passport.load(tmp_path / "bob.h5"))
    assert 1e-5 < gap(outputs(model, images), expected) < 0.1
    with pytest.raises(kp.PassportError, match="their own order"):
        kp.hide_statistics(model, [images])


def test_statistics_are_restored():
    base = look_trained(MODELS["residual"]())
    inputs = inputs_of(base, 64)
    kp.estimate_statistics(base, [inputs])
    expected = outputs(base, inputs)
    model, passport = kp.protect_trained(base, seed=0)
    plain = kp.unlock(model, passport, fold=False)
    assert gap(plain(inputs, training=True), expected) < 1e-4  # Frozen.
    assert kp.restore_statistics(plain, np.split(inputs, 4)) is plain
    assert gap(outputs(plain, inputs), expected) < 1e-4
    assert len(plain.trainable_weights) == len(base.trainable_weights)
    # They are those of what is normalised: plain Keras estimates the same.
    before = [np.array(w) for w in plain.non_trainable_weights]
    kp.estimate_statistics(plain, [inputs])
    for old, new in zip(before, plain.non_trainable_weights, strict=True):
        np.testing.assert_allclose(old, new, rtol=1e-3, atol=1e-4)
    # So a training starts from what the network is, not from scratch.
    training = plain(inputs, training=True)
    assert gap(training, expected) < 1e-3
    with pytest.raises(ValueError, match="at least one batch"):
        kp.restore_statistics(plain, [])


@pytest.mark.eager
@pytest.mark.parametrize("fold", [True, False])
def test_unlocks_what_was_thawed_and_trained_on(fold):
    base = look_trained(MODELS["residual"]())
    images, labels = inputs_of(base, 16), np.arange(16) % 4
    model, passport = kp.protect_trained(base, seed=0)
    model.trainable = False
    model.trainable = True  # As in transfer learning: normalisations, too.
    model.compile(keras.optimizers.SGD(0.01), "sparse_categorical_crossentropy")
    model.fit(images, labels, epochs=2, batch_size=16, verbose=0)
    paths = kp.protected_layers(model)
    means = [w for w in model.weights if w.name == "moving_mean"]
    assert sum(np.any(np.array(mean)) for mean in means) == sum(
        not layer.identity for layer in paths.values()
    )
    plain = kp.unlock(model, passport, fold=fold)
    assert gap(outputs(plain, images), outputs(model, images)) < 1e-5


def test_what_is_published_follows_from_no_more_than_signs():
    base = look_trained(MODELS["separable"]())
    made = [
        kp.protect_trained(base, seed=seed, order=False)[0]
        for seed in (1, 1, 2)
    ]
    weights = [[np.asarray(w) for w in model.weights] for model in made]
    for first, again, other in zip(*weights, strict=True):
        np.testing.assert_array_equal(first, again)
        np.testing.assert_allclose(np.abs(first), np.abs(other), rtol=1e-6)
    groups = [[row.groups for row in model.solution] for model in made]
    assert groups[0] == groups[1] == groups[2] and max(groups[0]) > 1
    # A default seed is nobody's to guess.
    passports = [kp.protect_trained(base)[1] for _ in range(2)]
    assert passports[0].fingerprint != passports[1].fingerprint


def test_dead_and_equal_filters():
    base = look_trained(MODELS["plain"]())
    for layer in (base.layers[0], base.layers[2], base.layers[4]):
        kernel = np.array(layer.kernel)
        kernel[..., 1] = 0.0
        kernel[..., 3] = kernel[..., 2]
        kernel[..., 4] *= 1e-20
        layer.kernel.assign(kernel)
    model, passport = kp.protect_trained(base, seed=0)
    assert sum(row.dead for row in model.solution) == 3
    inputs = inputs_of(base)
    expected = outputs(base, inputs)
    assert gap(outputs(model, inputs), expected) < 1e-5
    for fold in (True, False):
        plain = kp.unlock(model, passport, fold=fold)
        assert gap(outputs(plain, inputs), expected) < 1e-5


def test_dead_filters_become_what_nobody_else_draws():
    """Known numbers in one filter would tell where all rows have gone."""
    base = look_trained(MODELS["plain"]())
    kernel = np.array(base.layers[0].kernel)
    kernel[..., 1] = 0.0
    base.layers[0].kernel.assign(kernel)
    revived = []
    for seed in (0, 1):
        model, _ = kp.protect_trained(base, seed=seed)
        layer = next(iter(kp.protected_layers(model).values()))
        values = np.abs(layer.adapter.matrix(layer.layer)[0])
        revived.append(np.sort(values, axis=0))
    gaps = np.abs(revived[0] - revived[1]).max(0)
    assert gaps[1] > 0.01 and np.delete(gaps, 1).max() < 1e-5


@pytest.mark.parametrize("hide", ["protect_trained", "hide_rows"])
def test_no_seed_is_published(hide):
    """Who draws the first weights again undoes the order of rows."""
    initializer = keras.initializers.HeNormal
    base = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(8, 3, kernel_initializer=initializer(seed=77777)),
            layers.BatchNormalization(),
            layers.Dropout(0.5, seed=77777),
            layers.SpatialDropout2D(0.5),
        ]
    )
    state = np.asarray(base.layers[-1].seed_generator.state)
    if hide == "protect_trained":
        model, _ = kp.protect_trained(base)
    else:
        model = kp.protect(base)
        passport = kp.Passport.random_pattern(model)
        model = kp.hide_rows(kp.bind(model, passport), passport)
    assert "77777" in base.to_json() and "77777" not in model.to_json()
    seeds = [v for v in model.variables if v.name == "seed_generator_state"]
    assert len(seeds) == 2
    for seed in seeds:
        assert np.asarray(seed)[0] not in (77777, state[0])
    np.testing.assert_array_equal(base.layers[-1].seed_generator.state, state)


def factor_by_rounding(values):
    """Which factor, of 1 to 2, makes numbers that are nearly all its products.

    Args:
        values: float32, `(numbers,)`.

    Returns:
        Tuple of the factor, and how unlikely so many are by chance (-log).
    """
    fractions = np.frexp(np.abs(values))[0] * 2.0
    left = []
    # In parts that stay in a processor's cache.
    for factors in np.split(np.arange(2**23, 2**24) / 2**23, 128):
        for one in fractions:
            if not factors.size:
                break
            before = one / factors
            before = np.where(before < 1, 2 * before, before).astype("float32")
            product = before * factors
            product = np.where(product > 1.5 * one, product / 2, product)
            factors = factors[product.astype("float32") == one]
        left.append(factors)
    factors = np.concatenate(left)
    # Products of less than 2 leave gaps between them.
    met = len(values) - np.searchsorted(np.sort(fractions), factors)
    surprise = met * np.log(factors)
    best = np.argmax(surprise)
    return factors[best], surprise[best]


def test_rounding_tells_no_sizes():
    base = keras.Sequential([keras.Input((400,)), keras.layers.Dense(6)])
    kernel = np.random.default_rng(0).normal(size=(400, 6)).astype("float32")
    base.layers[0].kernel.assign(kernel)
    model, _ = kp.protect_trained(base)
    (layer,) = kp.protected_layers(model).values()
    published = np.asarray(layer.layer.kernel)
    size = np.float32(np.sqrt(2) / np.linalg.norm(kernel[:, 0], axis=0))
    # What is only multiplied tells it.
    factor, surprise = factor_by_rounding(kernel[:, 0] * size)
    assert factor == np.frexp(size)[0] * 2 and surprise > 24
    assert factor_by_rounding(published[:, 0])[1] < 24


def test_a_depthwise_kernel_of_zeros():
    base = look_trained(MODELS["separable"]())
    for layer in base.layers:
        if isinstance(layer, layers.SeparableConv2D):
            kernel = layer.depthwise_kernel
            kernel.assign(np.zeros(kernel.shape))
    model, _ = kp.protect_trained(base, seed=0)
    inputs = inputs_of(base)
    assert gap(outputs(model, inputs), outputs(base, inputs)) < 1e-5


@pytest.mark.parametrize("policies", ["float64 float32", "float32 float64"])
def test_a_kernel_and_its_normalisation_of_different_precision(policies):
    if keras.backend.backend() == "jax":
        pytest.skip("JAX has float64 by a switch of its own alone")
    of_kernel, of_normalization = policies.split()
    base = keras.Sequential(
        [
            keras.Input((6, 6, 3)),
            layers.Conv2D(8, 3, dtype=of_kernel),
            layers.BatchNormalization(dtype=of_normalization),
        ]
    )
    model, _ = kp.protect_trained(look_trained(base), seed=0)
    inputs = inputs_of(base)
    received, expected = outputs(model, inputs), outputs(base, inputs)
    assert received.dtype == expected.dtype and gap(received, expected) < 1e-5
    model.compile("sgd", "mse")
    model.train_on_batch(inputs, np.zeros_like(expected))


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "float64", "bfloat16"])
def test_dtype_policies(policy):
    if keras.backend.backend() == "jax" and policy == "float64":
        pytest.skip("JAX has float64 by a switch of its own alone")
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        base = look_trained(MODELS["residual"]())
    finally:
        keras.config.set_dtype_policy(before)
    model, passport = kp.protect_trained(base, seed=0)
    inputs = inputs_of(base)
    received, expected = outputs(model, inputs), outputs(base, inputs)
    assert received.dtype == expected.dtype
    assert gap(received, expected) < (1e-12 if policy == "float64" else 0.05)
    for old, new in zip(
        base.layers, kp.unlock(model, passport, fold=False).layers, strict=True
    ):
        if policy == "bfloat16" and kernels.adapter_for(old) is not None:
            np.testing.assert_array_equal(old.kernel, new.kernel)
    if policy == "float64":
        # What keys in float32 lack is public, and nothing without them.
        for fold in (True, False):
            plain = kp.unlock(model, passport, fold=fold)
            assert gap(outputs(plain, inputs), expected) < 1e-12
        model.compile(keras.optimizers.SGD(1e-3), "mse")
        model.fit(inputs, np.zeros_like(expected), verbose=0)


@pytest.mark.eager
def test_it_trains_on_from_there():
    base = look_trained(MODELS["residual"]())
    base.layers[1].trainable = False
    base.compile(keras.optimizers.SGD(0.01), "sparse_categorical_crossentropy")
    model, passport = kp.protect_trained(base, seed=0)
    images = inputs_of(base, 16)
    labels = np.arange(16) % 4
    frozen = np.array(model.layers[1].layer.kernel)
    start = model.evaluate(images, labels, verbose=0)
    np.testing.assert_allclose(
        start, base.evaluate(images, labels, verbose=0), rtol=1e-4
    )
    model.fit(images, labels, epochs=3, verbose=0)
    assert model.evaluate(images, labels, verbose=0) < start
    np.testing.assert_array_equal(model.layers[1].layer.kernel, frozen)
    # What is unlocked then is the network of then.
    expected = outputs(model, images)
    for fold in (True, False):
        plain = kp.unlock(model, passport, fold=fold)
        assert gap(outputs(plain, images), expected) < 1e-5


def test_some_layers_can_be_chosen():
    base = look_trained(MODELS["plain"]())
    model, passport = kp.protect_trained(base, select=["first"], seed=0)
    assert model.report.protected == ["first"] == list(passport.layers)
    inputs = inputs_of(base)
    assert gap(outputs(model, inputs), outputs(base, inputs)) < 1e-5
    with pytest.raises(kp.PassportError, match="no kernel layer"):
        kp.protect_trained(base, select="fist")


def test_normalisations_without_a_kernel_are_protected_too():
    if "pooled" not in MODELS:
        pytest.skip("on TensorFlow alone")
    _, model, _ = case("pooled")
    assert all(row.protected for row in model.report.rows)
    reasons = " ".join(row.reason for row in model.report.rows)
    for what in ("pads a bias", "not linear", "the activation of"):
        assert f"on its own: follows '{what}" in reasons or what in reasons
    base, model, _ = case("sequence")
    reasons = [row.reason for row in model.report.rows]
    assert any("on its own: mixes the channels" in text for text in reasons)
    # Nothing of γ, β and statistics is left in any public variable.
    for name in MODELS:
        for layer in case(name)[1]._flatten_layers():
            for variable in layer.variables:
                if variable.name in ("gamma", "beta"):
                    pytest.fail(f"{name}: {variable.path}")


def test_a_passport_keeps_its_scales_when_it_is_renamed(tmp_path):
    base, model, passport = case("plain")
    renamed = passport.renamed({"first": "foremost"})
    renamed.save(tmp_path / "owner.h5")
    again = kp.Passport.load(tmp_path / "owner.h5")
    scales = again.layers["foremost"].scales
    np.testing.assert_array_equal(scales, passport.layers["first"].scales)
    assert (scales < 0).any() and (scales > 0).any()
    assert "scales" not in repr(again.layers["foremost"])


def test_an_activity_regularizer_sees_what_the_layer_gives_out():
    base = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(3, "relu", activity_regularizer="l2", name="dense"),
        ]
    )
    model, _ = kp.protect_trained(look_trained(base), seed=0)
    inputs = inputs_of(base)
    losses = []
    for one in (base, model):
        outputs(one, inputs)
        losses.append(float(one.losses[0]))
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    again = keras.Model.from_config(model.get_config())
    regularizer = again.get_layer("dense").activity_regularizer
    assert isinstance(regularizer, keras.regularizers.L2)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(2)

    def call(self, inputs):
        return self.dense(inputs)


def test_what_is_refused():
    base, model, _ = case("plain")
    with pytest.raises(kp.PassportError, match="protected already"):
        kp.protect_trained(model)
    with pytest.raises(ValueError, match="subclassed"):
        kp.protect_trained(Subclassed())
    with pytest.raises(ValueError, match="keras.Model"):
        kp.protect_trained(base.layers[0])
    empty = keras.Sequential([keras.Input((3,)), layers.ReLU()])
    with pytest.raises(kp.PassportError, match="nothing to protect"):
        kp.protect_trained(empty)
    for name in ("bias", "kernel"):
        broken = MODELS["plain"]()
        values = getattr(broken.layers[0], name)
        values.assign(np.full(values.shape, np.nan))
        with pytest.raises(kp.PassportError, match="finite"):
            kp.protect_trained(broken)


def run_command(*words):
    return parser.main(parser.parse(["keras-passport", *map(str, words)]))


def test_the_command_writes_a_model_and_its_passport(tmp_path, capsys):
    base, _, _ = case("residual")
    base.save(tmp_path / "original.keras")
    words = ("protect", "--exact", tmp_path / "original.keras")
    out, owner = tmp_path / "protected.keras", tmp_path / "owner.h5"
    assert run_command(*words, out, owner) == 0
    assert "4 of 4 kernel layers protected" in capsys.readouterr().out
    assert run_command("show", owner) == 0
    assert "of 141 rows, 834 numbers" in capsys.readouterr().out
    assert owner.stat().st_mode & 0o777 == 0o600
    model = keras.saving.load_model(out)
    kp.bind(model, kp.Passport.load(owner))
    inputs = inputs_of(base)
    assert gap(outputs(model, inputs), outputs(base, inputs)) < 1e-5
    for wrong in (
        (*words, out, "--overwrite"),
        (words[0], *words[2:], out, owner, "--overwrite"),
        (*words, out, owner, "--overwrite", "--function=V1"),
        (*words, out, owner, "--overwrite", "--insert"),
        (words[0], *words[2:], out, owner, "--overwrite", "--noorder"),
        (*words, out, out, "--overwrite"),
        (*words, out, owner),
    ):
        assert run_command(*wrong) == 2
        assert "Expected" in capsys.readouterr().err


def test_the_command_warns_of_first_weights_that_others_draw(tmp_path, capsys):
    keras.utils.set_random_seed(0)
    base = keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(16, 3)])
    place = tmp_path / "original.keras"
    outs = tmp_path / "protected.keras", tmp_path / "owner.h5"
    words = ("protect", "--exact", place, *outs, "--overwrite")
    for secret, order in ((False, True), (False, False), (True, True)):
        if secret:
            kp.reinitialize(base)
        base.save(place)
        assert run_command(*words, *([] if order else ["--noorder"])) == 0
        said = "seed 0" in capsys.readouterr().out
        assert said == (order and not secret)


@pytest.mark.eager
@pytest.mark.parametrize("licensed", [False, True])
@pytest.mark.parametrize("order", [True, False])
def test_fakes_of_solved_keys_are_of_their_size(order, licensed):
    """Smaller ones would all answer one class, which flatters the keys."""
    model, passport = kp.protect_trained(small_resnet(), order=order)
    if licensed:
        licensor = kp.licensing.Licensor(
            passport, model, kp.ownership.new_secret()
        )
        passport = licensor.issue("Bob")
    scaling = scaling_of(passport)
    fake = kp.Passport.random_pattern(
        kp.public(model), seed=0, key_scaling=scaling
    )
    sizes = [
        np.median(
            [
                np.linalg.norm(key)
                for keys in one.keys().values()
                for key in keys.values()
            ]
        )
        for one in (passport, fake)
    ]
    assert 0.3 < sizes[1] / sizes[0] < 3


def test_fakes_of_small_keys_are_small():
    """Patterns of the paper's size, and what becomes of one with new paths."""
    model = kp.protect(small_resnet())
    passport = kp.Passport.random_pattern(model, seed=0, key_scaling="paper")
    names = {path: f"net/{path}" for path in passport.layers}
    assert (
        scaling_of(passport) == scaling_of(passport.renamed(names)) == "paper"
    )
