"""`hide_rows`: the truth is the network whose rows are in their own order."""

import functools
import json

import keras
import numpy as np
import pytest
from keras import ops

import keras_passport as kp
from keras_passport.passports import specs
from support.kernel_layers import FUNCTIONS, KERNELS, stack
from support.known_statistics import pictures
from support.plain_models import nested_model, plain_cnn, small_resnet
from support.protected_models import compiled, in_one_order, predict
from support.truth import relative_difference

pytestmark = pytest.mark.eager


BOTH = pytest.mark.parametrize("hide", [kp.hide_rows, in_one_order])


def passport_of(model, base, kind="random_image"):
    if kind == "random_pattern":
        return kp.Passport.random_pattern(model, seed=0)
    return kp.Passport.random_image(
        model, pictures(5, seed=3), reference=base, seed=0
    )


def case(base=plain_cnn, function="V3", kind="random_image", hide=kp.hide_rows):
    """A bound model with statistics, its passport, a copy of hidden rows."""
    plain = base()
    model = kp.protect(plain, function)
    passport = passport_of(model, plain, kind)
    kp.calibrate(kp.bind(model, passport))
    kp.estimate_statistics(model, [pictures(64)])
    return model, passport, hide(model, passport)


@pytest.mark.parametrize("name", KERNELS)
def test_every_kernel_layers_rows(name):
    *_, shape = KERNELS[name]
    model = kp.protect(stack(name))
    passport = kp.Passport.random_pattern(model, seed=0)
    kp.bind(model, passport)
    x = np.random.default_rng(1).normal(size=(4, *shape)).astype("float32")
    expected = predict(model, x)
    hidden = kp.hide_rows(model, passport)
    assert relative_difference(predict(hidden, x), expected) < 1e-5
    assert hidden.count_params() == model.count_params()
    # γ and β are set as they would be, through all kernels of a layer.
    for layer in kp.protected_layers(hidden).values():
        size = layer.adapter.units(layer.layer)
        wanted = np.arange(1.0, 1 + size), np.full(size, -1.0)
        layer.set_hidden_parameters(*wanted)
        found = layer.hidden_parameters()
        np.testing.assert_allclose(np.stack(found), wanted, atol=1e-4)


@pytest.mark.parametrize("base", [small_resnet, nested_model])
@pytest.mark.parametrize("function", FUNCTIONS)
@BOTH
def test_the_network_computes_the_same(hide, function, base, tmp_path):
    model, passport, hidden = case(base, function, hide=hide)
    x = pictures(20)
    expected = predict(model, x)
    assert relative_difference(predict(hidden, x), expected) < 1e-5
    before, after = map(kp.protected_layers, (model, hidden))
    for path, layer in after.items():
        assert layer.ordered and not before[path].ordered
        [(rows, groups)] = layer.geometry.orders
        stored, own = (
            np.abs(ops.convert_to_numpy(one.layer.kernel)).reshape(
                rows, groups, -1
            )
            for one in (layer, before[path])
        )
        for group in range(groups):
            # The same rows, in other places, some of them negated.
            one, other = stored[:, group], own[:, group]
            assert not np.array_equal(one, other)
            np.testing.assert_array_equal(
                one[np.lexsort(one.T)], other[np.lexsort(other.T)]
            )
    # What a call gathers is bit for bit what was trained.
    plain = kp.unlock(hidden, passport, fold=False)
    for one, other in zip(
        plain.get_weights(),
        kp.unlock(model, passport, fold=False).get_weights(),
        strict=True,
    ):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)

    # One file serves both, and says of itself what it said before.
    passport.save(tmp_path / "owner.h5")
    hidden.save(tmp_path / "protected.keras")
    loaded = keras.saving.load_model(tmp_path / "protected.keras")
    owners = kp.Passport.load(tmp_path / "owner.h5")
    assert owners.fingerprint == passport.fingerprint
    assert (
        relative_difference(predict(kp.bind(loaded, owners), x), expected)
        < 1e-5
    )
    predict(kp.bind(model, owners), x)
    assert (
        relative_difference(predict(kp.unlock(hidden, owners), x), expected)
        < 1e-5
    )

    served = kp.require_passport(hidden)
    spec = json.loads(json.dumps(kp.passport_spec(served)))
    given = kp.with_passport(x, owners.pack(spec))
    assert relative_difference(predict(served, given), expected) < 1e-5


CONV = functools.partial(keras.layers.Conv2D, 8, 3, padding="same")


@pytest.mark.parametrize(
    "layer, shape, orders",
    [
        (CONV(), (3, 3, 16), 2),
        (CONV(), (2, 2, 16), 8),
        (CONV(), (4, 2, 16), 8),
        (CONV(dilation_rate=2), (4, 4, 16), 8),
        (CONV(dilation_rate=2), (5, 5, 16), 2),
        (CONV(), (None, None, 16), 2),
        (keras.layers.Conv1D(8, 3, padding="causal"), (2, 32), 8),
        (keras.layers.Conv2DTranspose(8, 3), (1, 1, 16), 2),
        (keras.layers.Dense(8), (64,), 2),
    ],
)
@pytest.mark.parametrize("way", ["protect_trained", "hide_rows"])
def test_each_filter_has_an_order_where_windows_exceed_maps(
    way, layer, shape, orders
):
    """Their corners learn little: long rows are found by first weights."""
    layer = type(layer).from_config({**layer.get_config(), "name": "kernel"})
    base = keras.Sequential([keras.Input(shape), layer])
    model, passport = kp.protect_trained(base, order=way == "protect_trained")
    if way == "hide_rows":
        model = kp.hide_rows(model, passport)
    [layer] = kp.protected_layers(model).values()
    assert layer.row_groups == (orders,)


@pytest.mark.parametrize("filters", [1, 2, 4, 100, None])
def test_fewer_filters_may_have_an_order_in_common(filters):
    base = small_resnet()
    model = kp.protect(base)
    passport = passport_of(model, base)
    hidden = kp.hide_rows(kp.bind(model, passport), passport, filters)
    given = pictures(4)
    np.testing.assert_array_equal(predict(hidden, given), predict(model, given))
    usual = kp.protected_layers(kp.hide_rows(model, passport))
    for path, layer in kp.protected_layers(hidden).items():
        units = layer.layer.kernel.shape[-1]
        [groups], [most] = layer.row_groups, usual[path].row_groups
        assert groups == max(most, units // min(filters or 4, 4))
    kp.bind(kp.public(hidden), passport)


def test_another_passport_paralyses():
    model, passport, hidden = case()
    other = passport_of(kp.protect(plain_cnn()), None, "random_pattern")
    x = pictures(20)
    expected = predict(model, x)
    assert (
        relative_difference(predict(kp.bind(hidden, other), x), expected) > 0.1
    )
    # Nor do the right keys alone, in an order of somebody's own.
    row = passport.fitted(hidden).rows()
    for path, layer in kp.protected_layers(hidden).items():
        [(rows, groups)] = layer.geometry.orders
        row[path] = row[path].copy()
        own = np.repeat(np.arange(1, rows + 1), groups)
        row[path][0, -own.size :] = own
    packed = np.concatenate(list(row.values()), axis=1)
    with kp.presented(hidden, packed):
        assert relative_difference(predict(hidden, x), expected) > 0.1


def test_training_goes_on_as_it_would_have():
    model, passport, hidden = case()
    x, y = pictures(24), np.arange(24) % 4
    found = []
    for one in (model, hidden):
        keras.utils.set_random_seed(0)
        compiled(one).fit(
            x, y, epochs=3, batch_size=8, shuffle=False, verbose=0
        )
        found.append(predict(one, x))
    assert relative_difference(*found) < 1e-3


def test_layers_of_other_names_are_matched():
    model, passport, hidden = case()
    names = {path: f"{path}_now" for path in passport.layers}
    renamed = passport.renamed(names)
    x = pictures(8)
    expected = predict(hidden, x)
    with pytest.warns(UserWarning, match="other paths"):
        kp.bind(hidden, renamed)
    assert relative_difference(predict(hidden, x), expected) < 1e-6


@BOTH
def test_a_renamed_and_saved_passport_of_hidden_rows(hide, tmp_path):
    model, passport, hidden = case(hide=hide)
    x = pictures(8)
    expected = predict(hidden, x)
    fitted = passport.fitted(hidden)
    fitted.save(tmp_path / "fitted.h5")
    loaded = kp.Passport.load(tmp_path / "fitted.h5")
    assert loaded.fingerprint == fitted.fingerprint
    np.testing.assert_array_equal(loaded.packed(), fitted.packed())
    assert (
        relative_difference(predict(kp.bind(hidden, loaded), x), expected)
        < 1e-6
    )


def test_kinds_of_protect_trained_without_an_order():
    base = small_resnet()
    x = pictures(8)
    expected = base.predict(x, verbose=0)
    for images in (None, pictures(4, seed=5)):
        model, passport = kp.protect_trained(
            base, order=False, images=images, seed=0
        )
        hidden = kp.hide_rows(model, passport)
        assert all(
            layer.ordered for layer in kp.protected_layers(hidden).values()
        )
        assert relative_difference(predict(hidden, x), expected) < 1e-4


@BOTH
def test_fakes_of_who_knows_the_order_are_those_of_before(hide):
    model, passport, hidden = case(hide=hide)
    data = pictures(40), np.arange(40) % 4
    seeds = specs.order_seeds(passport.fitted(hidden))
    options = {
        "images": pictures(6, seed=8),
        "reference": plain_cnn(),
        "seed": 1,
    }
    for kind in (
        "random_pattern",
        "fixed_image",
        "random_image",
        "known_images",
    ):
        found = [
            kp.attacks.fake_passports(one, kind, 3, data, **options, **more)
            for one, more in (
                (model, {}),
                (hidden, {"order_seeds": seeds}),
                (hidden, {}),
            )
        ]
        assert found[1].accuracies == pytest.approx(
            found[0].accuracies, abs=0.026
        )
        assert found[1].entropies == pytest.approx(found[0].entropies, abs=0.2)
        assert len(found[2].accuracies) == 3


def test_noise_on_a_passport_is_noise_on_its_maps():
    model, passport, hidden = case()
    data = pictures(60), predict(model, pictures(60)).argmax(-1)
    found = [
        kp.audit.accuracy_under_noise(one, passport, data, repeats=2)
        for one in (model, hidden)
    ]
    for one, other in zip(*(f["accuracies"] for f in found), strict=True):
        assert one == pytest.approx(other, abs=0.034)
    assert found[1]["accuracies"][0] == [1.0, 1.0]


def test_filters_tell_no_sign_any_more():
    keras.utils.set_random_seed(0)
    model, passport, _ = case(small_resnet)
    rng = np.random.default_rng(0)
    for layer in kp.protected_layers(model).values():
        # As trained filters are: of negative sum where γ is positive.
        gamma, _ = layer.hidden_parameters()
        value = rng.gamma(0.5, size=layer.layer.kernel.shape) - 0.5
        layer.layer.kernel.assign((value - 0.3) * np.sign(gamma))
        layer.set_hidden_parameters(gamma, np.zeros(gamma.shape))
    hidden = kp.hide_rows(model, passport)
    told = []
    for one in (model, hidden):
        right = []
        for layer in kp.protected_layers(kp.bind(one, passport)).values():
            gamma, _ = layer.hidden_parameters()
            kernel = ops.convert_to_numpy(layer.layer.kernel)
            sums = kernel.reshape(-1, kernel.shape[-1]).sum(0)
            right += list(np.sign(sums) == -np.sign(gamma))
        told.append(np.mean(right))
    assert told[0] > 0.9
    assert abs(told[1] - 0.5) < 0.25


@BOTH
def test_leaks_of_keys_and_of_the_order_are_found(hide, tmp_path):
    model, passport, hidden = case(hide=hide)
    hidden.save(tmp_path / "protected.keras")
    clean = kp.find_leaks(passport, [tmp_path], model=hidden)
    assert clean.clean, str(clean)
    fitted = passport.fitted(hidden)
    [path] = list(fitted.layers)[:1]
    for number, value in enumerate(
        (
            fitted.keys()[path]["gamma"],
            passport.keys()[path]["gamma"],
            specs.orders_of(fitted)[path],
        )
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        np.save(folder / "noted.npy", np.asarray(value))
        found = kp.find_leaks(passport, [folder], model=hidden)
        assert not found.clean, number


def test_licences_of_hidden_rows_are_traced():
    model, passport, hidden = case(small_resnet)
    licensor = kp.licensing.Licensor(passport, hidden, bytes(32))
    x = pictures(8)
    expected = predict(hidden, x)
    licence = licensor.issue("somebody")
    assert (
        relative_difference(predict(kp.bind(hidden, licence), x), expected)
        < 0.5
    )
    names = [f"licensee {number}" for number in range(20)]
    found = licensor.trace(licence, ["somebody", *names])
    assert found.licensees == ("somebody",)


def test_mistakes_are_told():
    model, passport, hidden = case()
    with pytest.raises(kp.PassportError, match="own order"):
        kp.hide_rows(hidden, passport)
    with pytest.raises(kp.PassportError, match="Passport"):
        kp.hide_rows(model, "owner.h5")
    other = kp.Passport.random_pattern(kp.protect(small_resnet()))
    with pytest.raises(kp.PassportError, match="6 layers"):
        kp.hide_rows(model, other)
    with pytest.raises(kp.PassportError):
        kp.hide_rows(plain_cnn(), passport)
    for filters in (0, -1, 1.5, True, "4"):
        with pytest.raises(kp.PassportError, match="positive integer"):
            kp.hide_rows(model, passport, filters)
    with pytest.raises(kp.PassportError, match="own order"):
        kp.hide_statistics(kp.bind(hidden, passport), [pictures(8)])


def under_a_head(model):
    """A larger network, in which all layers have other paths."""
    inputs = keras.Input(model.input_shape[1:])
    return keras.Model(inputs, keras.layers.Dense(3)(model(inputs)))


SCALINGS = ("paper", "unit", "fan_in", "orthogonal", "signed")


@pytest.mark.parametrize("kind", [*SCALINGS, "solved", "images"])
def test_an_order_follows_the_passports_own_paths(kind):
    """However keys were made, and whenever layers got other paths."""
    base = plain_cnn()
    # F of pictures is 30 times γ, and offsets take it away again.
    bound = 1e-4 if kind == "images" else 1e-5
    if kind in SCALINGS:
        model = kp.protect(base)
        passport = kp.Passport.random_pattern(model, seed=0, key_scaling=kind)
        kp.bind(model, passport)
    else:
        images = pictures(4, seed=5) if kind == "images" else None
        model, passport = kp.protect_trained(
            base, order=False, images=images, seed=0
        )
    x = pictures(8)
    expected = predict(model, x)
    hidden = kp.hide_rows(model, passport)
    renamed = passport.renamed({p: f"{p}_now" for p in passport.layers})
    there_and_back = renamed.renamed({f"{p}_now": p for p in passport.layers})
    with pytest.warns(UserWarning, match="other paths"):
        kp.bind(hidden, renamed)
    assert relative_difference(predict(hidden, x), expected) < bound
    kp.bind(hidden, there_and_back)
    assert relative_difference(predict(hidden, x), expected) < bound
    larger = under_a_head(model)
    expected = predict(larger, x)
    for one in (passport, renamed.fitted(larger)):
        found = predict(kp.hide_rows(larger, one), x)
        assert relative_difference(found, expected) < bound


@BOTH
def test_licences_outlive_it(hide):
    """Issued before or after, bound and traced before or after."""
    model, passport, hidden = case(small_resnet, hide=hide)
    x = pictures(8)
    expected = predict(model, x)
    names = [f"licensee {number}" for number in range(20)]
    licensors = [
        kp.licensing.Licensor(passport, one, bytes(32))
        for one in (model, hidden)
    ]
    for licensor in licensors:
        licence = licensor.issue("licensee 3")
        for one in (model, hidden):
            bound = kp.bind(kp.public(one), licence)
            assert 0 < relative_difference(predict(bound, x), expected) < 0.5
        for judge in licensors:
            leaks = [licence, licence.packed(), licence.pack(judge.model)]
            for leak in leaks:
                found = judge.trace(leak, names)
                assert found.verdict == "licensee 3", leak
                assert found.marks["null-space"] == ["licensee 3"]
    one, other = (licensor.issue("somebody") for licensor in licensors)
    np.testing.assert_allclose(one.packed(), other.packed(), atol=1e-4)
    # A licensee hides rows in the owner's order, too.
    theirs = kp.bind(kp.hide_rows(model, one), passport)
    assert relative_difference(predict(theirs, x), expected) < 1e-5


def test_weights_of_another_order_are_refused(tmp_path):
    model, passport, hidden = case()
    kinds = model, hidden, in_one_order(model, passport)
    for number, one in enumerate(kinds):
        path = tmp_path / f"{number}.weights.h5"
        one.save_weights(path)
        kp.public(one).load_weights(path)
        for other in kinds:
            if other is not one:
                with pytest.raises(ValueError, match="rows in .* order"):
                    kp.public(other).load_weights(path)


@pytest.mark.parametrize("way", ["hide_rows", "protect_trained"])
def test_lora_is_refused(way):
    model, passport, hidden = case()
    if way == "protect_trained":
        hidden, passport = kp.protect_trained(plain_cnn())
    for layer in kp.protected_layers(hidden).values():
        with pytest.raises(kp.PassportError, match="own order before LoRA"):
            layer.layer.enable_lora(2)
    trained = kp.unlock(hidden, passport, fold=False)
    trained.layers[-1].enable_lora(2)


@pytest.mark.parametrize("way", ["hide_rows", "order", "order=False"])
def test_constraints_of_trained_kernels_are_left_out(way):
    """They hold for filters as they were, and the next step would ruin them."""
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(
        6, 3, use_bias=False, kernel_constraint="non_neg", name="conv"
    )(inputs)
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.ReLU()(x))
    base = keras.Model(inputs, keras.layers.Dense(4)(x))
    kernel = base.get_layer("conv").kernel
    kernel.assign(ops.abs(kernel.value))
    base.get_layer("norm").trainable = False
    if way == "hide_rows":
        model = kp.protect(base)
        passport = kp.Passport.random_pattern(model)
        kp.bind(model, passport)
        with pytest.warns(UserWarning, match="'conv' has a kernel_constraint"):
            model = kp.hide_rows(model, passport)
    else:
        with pytest.warns(UserWarning, match="'conv' has a kernel_constraint"):
            model, _ = kp.protect_trained(base, order=way == "order")
    x = pictures(8)
    expected = predict(model, x)
    model.compile(keras.optimizers.SGD(0.0), "mse")
    model.fit(x, np.zeros((8, 4)), verbose=0)
    assert relative_difference(predict(model, x), expected) < 1e-6


def test_what_was_compiled_and_reported_stays():
    model, passport, _ = case()
    hidden = kp.hide_rows(compiled(model), passport)
    assert hidden.report == model.report
    assert hidden.calibration == model.calibration
    x, y = pictures(8), np.arange(8) % 4
    one, other = (m.evaluate(x, y, verbose=0) for m in (model, hidden))
    assert one == pytest.approx(other, rel=1e-4)
    with pytest.raises(kp.PassportError, match="passport as an input"):
        kp.hide_rows(kp.require_passport(model), passport)


@BOTH
def test_packed_keys_of_hidden_rows_are_leaks(hide, tmp_path):
    """Also where nobody says that rows were hidden."""
    model, passport, hidden = case(hide=hide)
    np.save(tmp_path / "row.npy", passport.pack(hidden))
    assert not kp.find_leaks(passport, [tmp_path]).clean
    other = kp.Passport.random_pattern(model, seed=9)
    assert kp.find_leaks(other, [tmp_path]).clean


@BOTH
def test_permuting_leaves_what_is_read_in_a_secret_order(hide):
    model, passport, hidden = case(hide=hide)
    rewrite = kp.attacks.permute_channels(hidden, seed=1)
    one = hide is in_one_order
    assert list(rewrite.orders) == ["second_conv"] * one
    assert "order" in rewrite.skipped["first_conv"]
