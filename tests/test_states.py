"""What models carry from one to another, against plain Keras in their place."""

import copy
import pickle

import keras
import numpy as np
import pytest
from keras import ops

import keras_passport as kp
from support.kernel_layers import FUNCTIONS
from support.plain_models import plain_cnn, randomize, small_resnet
from support.protected_models import (
    compiled,
    images,
    labels,
    predict,
    protected,
)
from support.truth import NORMALIZATIONS

pytestmark = pytest.mark.eager


def reloaded(model, tmp_path, name="model.keras"):
    model.save(tmp_path / name)
    return keras.saving.load_model(tmp_path / name)


# Every way to a copy that Keras makes of a plain model as well.
COPIES = {
    "keras": reloaded,
    "h5": lambda model, tmp_path: reloaded(model, tmp_path, "model.h5"),
    "clone_model": lambda model, _: keras.models.clone_model(model),
    "deepcopy": lambda model, _: copy.deepcopy(model),
    "pickle": lambda model, _: pickle.loads(pickle.dumps(model)),
}
# And those of ours, whose truth is the plain model itself.
OURS = {
    "public": lambda model, passport: kp.public(model),
    "unlock": lambda model, passport: kp.unlock(model, passport, fold=False),
    "hide_rows": kp.hide_rows,
}


def batch_normalizations(model):
    return [
        layer
        for layer in model._flatten_layers()
        if type(layer) in NORMALIZATIONS
    ]


def frozen(normal):
    normal.trainable = False


def thawed(normal):
    normal.trainable = True


def slower(normal):
    normal.momentum = 0.5


def coarser(normal):
    normal.epsilon = 0.1


CHANGES = (frozen, thawed, slower, coarser)


def changed(model, change):
    for normal in batch_normalizations(model):
        change(normal)
    return model


def base_of(change):
    """A plain model for which the change is one."""
    base = plain_cnn()
    return changed(base, frozen) if change is thawed else base


def told(model):
    """What normalisations say of themselves, but for their affine part."""
    return [
        (normal.name, normal.trainable, normal.momentum, normal.epsilon)
        for normal in batch_normalizations(model)
    ]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("way", COPIES)
def test_a_changed_normalization_stays_changed(way, change, tmp_path):
    base = base_of(change)
    model = kp.protect(base)
    base, model = (changed(one, change) for one in (base, model))
    truth = told(COPIES[way](base, tmp_path))
    assert told(base) == truth
    assert told(COPIES[way](model, tmp_path)) == truth


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("way", OURS)
def test_and_in_our_own_copies(way, change):
    base = base_of(change)
    model, passport = protected(base=lambda: base)
    changed(model, change)
    truth = told(changed(base, change))
    assert told(OURS[way](model, passport)) == truth


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_the_originals_affine_part_is_kept(normalization, function):
    """Whatever becomes of the normalisation without it."""
    options = {
        "name": "normal",
        "center": function != "V2",
        "scale": True,
        "gamma_initializer": keras.initializers.RandomUniform(seed=3),
        "beta_regularizer": keras.regularizers.L2(0.1),
        "gamma_constraint": keras.constraints.NonNeg(),
    }
    if normalization is keras.layers.GroupNormalization:
        options["groups"] = 2
    truth = normalization(**options)
    layer = kp.PassportNormalization(
        keras.layers.Dense(4), normalization(**options), function
    )
    layer.build((None, 3))
    truth.build((None, 4))
    for normal in (truth, layer.normalization):
        normal.trainable = False
    config = layer.get_config()["normalization"]["config"]
    assert config == truth.get_config()
    again = type(layer).from_config(layer.get_config())
    assert again.get_config()["normalization"]["config"] == config


@pytest.mark.parametrize("way", ("keras", "pickle"))
def test_statistics_move_as_plain_ones_do(way, tmp_path):
    """Frozen ones stay, those of another momentum go as far."""
    x = images(16) * 3 + 2
    found = []
    for model in (plain_cnn(), protected()[0]):
        first, second = batch_normalizations(model)
        first.trainable, second.momentum = False, 0.0
        copied = COPIES[way](model, tmp_path)
        if kp.protected_layers(copied):
            kp.bind(copied, kp.Passport.random_pattern(copied))
        first, second = batch_normalizations(copied)
        start = [ops.convert_to_numpy(n.moving_mean) for n in (first, second)]
        compiled(copied).fit(x, labels(16), verbose=0)
        found.append(
            [
                bool(np.any(ops.convert_to_numpy(n.moving_mean) != before))
                for n, before in zip((first, second), start, strict=True)
            ]
        )
    assert found == [[False, True], [False, True]]


# Optimizers of which Keras's count says what their slots have been through.
OPTIMIZERS = {
    "averages": lambda: keras.optimizers.Adam(1e-3, use_ema=True),
    "moments": lambda: keras.optimizers.Adam(1e-2),
    "momentum": lambda: keras.optimizers.SGD(0.05, momentum=0.9),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_training_restarts_whole_from_a_state_tree(name):
    """As it does from files, and as a plain one from its weights alone."""

    def trained(model, epochs, **options):
        model.fit(images(8), labels(8), epochs=epochs, verbose=0, **options)
        return model

    def made(model):
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(OPTIMIZERS[name](), loss)
        model.optimizer.build(model.trainable_variables)
        return model

    base = plain_cnn()
    model, passport = protected(base=lambda: base)
    for kind in (base, model):
        before = trained(made(kind), 3)
        tree = before.get_state_tree("numpy_array")
        if kind is base:
            assert keras.tree.flatten(tree["optimizer_variables"])
            tree["optimizer_variables"] = {}
        assert tree["optimizer_variables"] == {}
        resumed, restarted = (
            made(keras.models.clone_model(kind)) for _ in range(2)
        )
        if kind is model:
            kp.bind(resumed, passport)
            kp.bind(restarted, passport)
        resumed.set_state_tree(tree)
        restarted.set_weights(before.get_weights())
        assert int(resumed.optimizer.iterations) == 0
        for one, other in zip(
            trained(resumed, 1).get_weights(),
            trained(restarted, 1).get_weights(),
            strict=True,
        ):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def paths(model):
    return [variable.path for variable in model.variables]


@pytest.mark.parametrize("base", (plain_cnn, small_resnet))
def test_paths_do_not_tell_how_a_model_was_made(base, tmp_path):
    plain = compiled(randomize(base()))
    assert paths(reloaded(plain, tmp_path)) == paths(plain)
    model = compiled(kp.protect(plain))
    passport = kp.Passport.random_pattern(model)
    trained, its_passport = kp.protect_trained(plain, seed=0)
    # Which protects the last layer too.
    last = plain.layers[-1].name
    assert [p for p in paths(model) if not p.startswith(last)] == [
        p for p in paths(trained) if not p.startswith(last)
    ]
    for one, its in ((model, passport), (compiled(trained), its_passport)):
        copies = {way: make(one, tmp_path) for way, make in COPIES.items()}
        copies["public"] = kp.public(one)
        if one is model:
            copies["hide_rows"] = kp.hide_rows(one, its)
        for way, copied in copies.items():
            assert paths(copied) == paths(one), way
            for variable in copied.variables:
                variable.assign(variable * 0 + 2)
            compiled(copied).set_state_tree(one.get_state_tree("numpy_array"))
            for found, expected in zip(
                copied.get_weights(), one.get_weights(), strict=True
            ):
                np.testing.assert_array_equal(found, expected)


# How weights are read; the suffix of the file, and Keras's arguments.
READERS = {
    "weights": (".weights.h5", {}),
    "keras": (".keras", {}),
    "h5": (".h5", {}),
    "h5 by name": (".h5", {"by_name": True}),
    "skipping": (".weights.h5", {"skip_mismatch": True}),
    "skipping keras": (".keras", {"skip_mismatch": True}),
    "skipping h5": (".h5", {"skip_mismatch": True}),
}


def saved(model, path):
    save = model.save_weights if ".weights" in path.name else model.save
    save(path)
    return path


def other_filters():
    """A plain model whose weights don't fit `plain_cnn`, but for the last."""
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(8, 1, use_bias=False, name="first_conv")(inputs)
    x = keras.layers.BatchNormalization(name="first_bn")(x)
    x = keras.layers.Conv2D(12, 1, use_bias=False, name="second_conv")(x)
    x = keras.layers.BatchNormalization(name="second_bn")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(4, name="classes")(x))


def read(model, path, options):
    """What Keras said, and the variables that have other values now."""
    before = model.get_weights()
    said = None
    try:
        model.load_weights(path, **options)
    except ValueError as error:
        said = str(error)
    return said, [
        variable.path
        for variable, value in zip(model.weights, before, strict=True)
        if np.any(ops.convert_to_numpy(variable) != value)
    ]


@pytest.mark.filterwarnings("ignore:A total of", "ignore:Skipping loading")
@pytest.mark.parametrize("function", ("V2", "V3"))
@pytest.mark.parametrize("name", READERS)
def test_weights_of_the_other_order_are_refused_whole(name, function, tmp_path):
    suffix, options = READERS[name]
    plain = randomize(plain_cnn())
    path = saved(randomize(other_filters()), tmp_path / f"plain{suffix}")
    said, there = read(plain, path, options)
    assert (said is None) == ("skip_mismatch" in options)
    assert not any("conv" in one for one in there)

    model, passport = protected(function)
    hidden = kp.hide_rows(model, passport)
    for one, other in ((model, hidden), (hidden, model)):
        path = saved(one, tmp_path / f"protected{suffix}")
        reader = kp.bind(kp.public(other), passport)
        for variable in reader.weights:
            variable.assign(variable * 0.5)
        x = images()
        said, there = read(reader, path, options)
        if "skip_mismatch" in options and suffix != ".h5":
            assert said is None
        else:
            assert "rows in" in said
        assert not any("conv" in one for one in there)
        # What is of the same order goes on as ever.
        reader = kp.bind(kp.public(one), passport)
        for variable in reader.weights:
            variable.assign(variable * 0.5)
        assert read(reader, path, options)[0] is None
        np.testing.assert_allclose(predict(reader, x), predict(one, x), 1e-5)


@pytest.mark.parametrize("which", ("all", "normalizations"))
@pytest.mark.parametrize("function", ("V1", "V2"))
def test_what_was_frozen_when_it_was_protected_can_train(function, which):
    role = "beta" if function == "V1" else "gamma"
    plain = randomize(plain_cnn())
    if which == "all":
        plain.trainable = False
    else:
        changed(plain, frozen)
    model = kp.protect(plain, function)
    kp.bind(model, kp.Passport.random_pattern(model))
    own = {
        plain: [getattr(n, role) for n in batch_normalizations(plain)],
        model: [getattr(n, role) for n in kp.protected_layers(model).values()],
    }
    for one, variables in own.items():
        assert not any(variable.trainable for variable in variables)
        for layer in one.layers:
            layer.trainable = False
            layer.trainable = True
        one.trainable = True
        start = [ops.convert_to_numpy(variable) for variable in variables]
        compiled(one).fit(images(8), labels(8), verbose=0)
        for variable, before in zip(variables, start, strict=True):
            assert np.any(ops.convert_to_numpy(variable) != before)


NEED_KERNELS = {
    "random_pattern": lambda model, p: kp.Passport.random_pattern(model),
    "from_feature_maps": lambda model, p: kp.Passport.from_feature_maps(
        model, {}
    ),
    "bind": kp.bind,
    "public": lambda model, p: kp.public(model),
}


@pytest.mark.parametrize("name", NEED_KERNELS)
def test_a_model_is_built_first(name):
    """Plain Keras has nothing to say of its kernels before, either."""
    layers = [keras.layers.Conv2D(4, 3), keras.layers.ReLU()]
    plain = keras.Sequential(layers)
    with pytest.raises(ValueError, match="built"):
        plain.count_params()
    model = keras.Sequential(
        [kp.PassportNormalization(keras.layers.Conv2D(4, 3))]
    )
    _, passport = protected()
    with pytest.raises(kp.PassportError, match="is built"):
        NEED_KERNELS[name](model, passport)
    model.build((None, 8, 8, 3))
    passport = kp.Passport.random_pattern(model)
    kp.bind(model, passport)
    assert predict(model, images()).shape == (6, 6, 6, 4)
