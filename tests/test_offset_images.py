"""A trained model under a passport of images: the truth is the model."""

import keras
import numpy as np
import pytest

import keras_passport as kp
from keras_passport import attacks, ownership
from keras_passport.cli import parser
from keras_passport.layers import filters, offsets
from keras_passport.models import exact_images
from keras_passport.passports import specs
from support.trained_models import MODELS, gap, inputs_of, look_trained

NAMES = list(MODELS)
if keras.backend.backend() == "jax":
    # Which compiles every operation that is called by itself.
    NAMES = ["plain"]


def outputs(model, *inputs):
    return model(*inputs, training=False)


def made(name, count=6, **options):
    """A trained model, its images, its protected copy and the passport."""
    keras.utils.set_random_seed(0)
    base = look_trained(MODELS[name]())
    images = inputs_of(base, count)
    options.setdefault("seed", 0)
    return base, images, *kp.protect_trained(base, images=images, **options)


@pytest.mark.parametrize("name", NAMES)
def test_computes_what_the_trained_model_computes(name, tmp_path):
    base, inputs, model, passport = made(name)
    expected = outputs(base, inputs)
    assert gap(outputs(model, inputs), expected) < 1e-4
    assert all(row.error < 1e-5 for row in model.solution)
    model.save(tmp_path / "protected.keras")
    passport.save(tmp_path / "owner.h5")
    loaded = keras.saving.load_model(tmp_path / "protected.keras")
    owners = kp.Passport.load(tmp_path / "owner.h5")
    assert owners.fingerprint == passport.fingerprint
    assert gap(outputs(kp.bind(loaded, owners), inputs), expected) < 1e-4
    served = kp.require_passport(model)
    given = kp.with_passport(inputs, owners.pack(kp.passport_spec(served)))
    assert gap(outputs(served, given), expected) < 1e-4
    for fold in (True, False):
        plain = kp.unlock(model, owners, fold=fold)
        assert gap(outputs(plain, inputs), expected) < 1e-4
    # Keys are made of the images and the seed, whatever layers are called.
    exact_images.check(owners, model, base)
    first = next(iter(owners.layers))
    again = owners.renamed({first: "other"}).renamed({"other": first})
    exact_images.check(again, model, base)


def test_offsets_are_large_beside_what_they_hide():
    _, _, model, passport = made("separable", order=False)
    for layer in kp.protected_layers(model).values():
        hidden = dict(
            zip(("gamma", "beta"), layer.hidden_parameters(), strict=True)
        )
        for role, value in hidden.items():
            response = value - offsets.of(layer, role)
            ratio = np.sqrt(np.mean(response**2) / np.mean(value**2))
            assert 15 < ratio < 60
        groups = layer.geometry.key_groups
        for key in passport.keys()[layer.name].values():
            # No two groups' keys are alike, nor is a number of one zero.
            rows = key.reshape(groups, -1).astype("float64")
            assert np.all(rows)
            cosines = np.corrcoef(rows) if len(rows) > 1 else np.eye(1)
            limit = 6 / np.sqrt(rows.shape[1])
            assert np.all(np.abs(cosines - np.eye(groups)) < limit)


@pytest.mark.parametrize("cancel", [False, True])
def test_offsets_tell_no_signs(cancel):
    """Beyond chance, whoever takes the best linear estimate of γ."""
    right = []
    keras.utils.set_random_seed(0)
    base = look_trained(
        keras.Sequential([keras.Input((6, 6, 16)), keras.layers.Conv2D(12, 1)])
    )
    if cancel:
        # As those before a softmax do, once they are trained.
        kernel = np.asarray(base.layers[0].kernel)
        base.layers[0].kernel.assign(kernel - kernel.mean(-1, keepdims=True))
    images = np.random.default_rng(1).random((12, 6, 6, 16), "float32")
    for seed in range(40):
        model, _ = kp.protect_trained(base, images=images, seed=seed)
        [layer] = kp.protected_layers(model).values()
        gamma, _ = layer.hidden_parameters()
        groups = layer.geometry.key_groups
        [matrix] = filters.response_matrix(layer)
        for group in range(groups):
            part = slice(group, None, groups)
            columns, own = matrix[:, part], gamma[part]
            of_keys = columns.T @ columns
            of_keys *= 30.0**2 * np.mean(own**2) / np.mean(np.diag(of_keys))
            total = of_keys + np.mean(own**2) * np.eye(len(own))
            offset = offsets.of(layer, "gamma")[part]
            found = np.linalg.solve(total, offset)
            right.append(np.sign(found) == np.sign(own))
    assert groups > 1
    assert_chance(right)


@pytest.mark.parametrize("order, groups", [(False, [12]), (True, range(1, 12))])
def test_the_size_of_offsets_tells_nothing(order, groups):
    """Of filters that are all alike each has a key, and F but one number."""
    right = []
    keras.utils.set_random_seed(0)
    base = look_trained(
        keras.Sequential([keras.Input((6, 6, 16)), keras.layers.Conv2D(12, 1)])
    )
    kernel = np.asarray(base.layers[0].kernel)
    base.layers[0].kernel.assign(kernel[..., :1] + 1e-3 * kernel)
    images = np.random.default_rng(1).random((40, 6, 6, 16), "float32")
    for seed in range(10):
        model, _ = kp.protect_trained(
            base, images=images, seed=seed, order=order
        )
        [layer] = kp.protected_layers(model).values()
        # Rows in another order make filters of other groups unlike.
        assert layer.geometry.key_groups in groups
        gamma, _ = layer.hidden_parameters()
        offset = offsets.of(layer, "gamma")
        # If |F| were one number, this would be γ.
        guessed = offset - np.sign(offset) * np.mean(np.abs(offset))
        right += list(np.sign(guessed) == np.sign(gamma))
    assert_chance(right)


def assert_chance(right):
    """Whether as many guesses are right as wrong; those of a group are one."""
    share = np.mean([np.mean(one) for one in right])
    assert abs(share - 0.5) < 3 * 0.5 / np.sqrt(len(right))


def test_two_images_are_taken_as_they_stand():
    base, images, model, passport = made("plain", count=2)
    keys = [
        exact_images.unscaled_keys(
            model,
            {path: path for path in passport.layers},
            some,
            base,
            passport.seed,
        )
        for some in (images, images[::-1].copy())
    ]
    assert passport.kind == "offset_image"
    # Dense layers after a ReLU aside, γ's key follows the first image.
    for path in passport.layers:
        first, second = (both[path]["gamma"][0] for both in keys)
        assert not np.allclose(first, second)
    inputs = inputs_of(base)
    assert gap(outputs(model, inputs), outputs(base, inputs)) < 1e-4
    with pytest.raises(kp.PassportError, match="at least 2 identity images"):
        kp.protect_trained(base, images=images[:1])


def test_rows_in_a_secret_order_and_another_reference():
    base, images, model, passport = made("residual")
    inputs = inputs_of(base)
    assert gap(outputs(model, inputs), outputs(base, inputs)) < 1e-4
    other = look_trained(keras.models.clone_model(base), seed=1)
    with pytest.raises(kp.PassportError, match="made anew"):
        exact_images.check(passport, model, other)
    with pytest.raises(kp.PassportError, match="reference"):
        kp.protect_trained(base, images=images, reference=MODELS["plain"]())


def test_a_claim_speaks_of_its_images():
    base, _, model, passport = made("residual")
    secret = b"a secret of 32 bytes for a test."
    images = inputs_of(base, 6)
    seed = ownership.passport_seed(secret)
    signature = ownership.Signature(secret, "Ada Ltd")
    model, passport = kp.protect_trained(
        base, images=images, seed=seed, signs=signature
    )
    claim, opening = ownership.claim(
        passport, owner="Ada Ltd", model=model, reference=base, secret=secret
    )
    x = inputs_of(base, 200)
    y = np.argmax(outputs(base, x), -1)
    evidence = ownership.Evidence(
        claim, opening, passport, kp.public(model), base
    )
    for suspect in (kp.public(model), kp.unlock(model, passport, fold=False)):
        report = ownership.verify(suspect, evidence, (x, y), fakes=20)
        steps = {step.name: step for step in report.steps}
        assert steps["commitment"].holds and steps["provenance"].holds
        # Of an untrained network no more is to be said.
        assert steps["passport"].figure > 0.99
        assert steps["signs"].figure == 1.0
    # Images that were put there afterwards are not those of the keys.
    passport.images = images[::-1].copy()
    assert not ownership.evidence.provenance(evidence, passport).holds


def test_whoever_else_reads_a_key_adds_the_offset():
    base, _, model, passport = made("residual")
    inputs = inputs_of(base)
    expected = outputs(base, inputs)
    disclosed = {
        path: layer.hidden_parameters()
        for path, layer in kp.protected_layers(model).items()
    }
    public = kp.public(model)
    forged, _ = attacks.forge_passport(public, disclosed)
    assert gap(outputs(kp.bind(model, forged), inputs), expected) > 0.1
    forged, _ = attacks.forge_passport(
        public, disclosed, specs.order_seeds(passport)
    )
    assert gap(outputs(kp.bind(model, forged), inputs), expected) < 1e-4
    kp.bind(model, passport)
    secret = b"a secret of 32 bytes for a test."
    licensor = kp.licensing.Licensor(passport, model, secret)
    licence = licensor.issue("Bob")
    kp.bind(model, licence)
    # One per cent of γ, not of F.
    assert 1e-4 < gap(outputs(model, inputs), expected) < 0.2
    names = [f"licensee {i}" for i in range(20)] + ["Bob"]
    plain = kp.unlock(model, licence, fold=False)
    for leak in (licence, plain):
        assert licensor.trace(leak, names).verdict == "Bob"
    kp.bind(model, passport)
    for path, layer in kp.protected_layers(model).items():
        gamma, beta = disclosed[path]
        layer.set_hidden_parameters(1.1 * gamma, beta)
        np.testing.assert_allclose(
            layer.hidden_parameters()[0], 1.1 * gamma, rtol=1e-3, atol=1e-4
        )


@pytest.mark.parametrize("rewrite", ["scale_filters", "flip_signs"])
def test_rewrites_take_offsets_along(rewrite):
    _, _, model, _ = made("residual")
    disclosed = {
        path: layer.hidden_parameters()
        for path, layer in kp.protected_layers(model).items()
    }
    rewritten = getattr(attacks, rewrite)(model, seed=1)
    for path, layer in kp.protected_layers(rewritten.model).items():
        packed = model.get_layer(path)._secret.bound.array
        factor = rewritten.factors[path]
        gamma, _ = layer.hidden_parameters(packed)
        np.testing.assert_allclose(
            gamma, factor * disclosed[path][0], rtol=1e-3, atol=1e-4
        )


@pytest.mark.eager
def test_it_trains_on_from_there(tmp_path):
    base, images, model, passport = made("residual")
    model.compile(keras.optimizers.SGD(0.01), "sparse_categorical_crossentropy")
    labels = np.arange(6) % 4
    start = model.evaluate(images, labels, verbose=0)
    before = [np.array(v) for v in model.non_trainable_weights]
    model.fit(images, labels, epochs=3, batch_size=6, verbose=0)
    assert model.evaluate(images, labels, verbose=0) < start
    for old, new in zip(before, model.non_trainable_weights, strict=True):
        np.testing.assert_array_equal(old, new)
    plain = kp.unlock(model, passport)
    assert gap(outputs(plain, images), outputs(model, images)) < 1e-4
    # A random passport is none.
    kp.bind(model, kp.Passport.random_pattern(model, seed=1))
    assert gap(outputs(model, images), outputs(plain, images)) > 0.1
    kp.public(model).save(tmp_path / "protected.keras")
    report = kp.find_leaks(passport, tmp_path / "protected.keras")
    assert not report.leaks


def test_command_line(tmp_path, capsys):
    base = look_trained(MODELS["residual"]())
    base.save(tmp_path / "original.keras")
    folder = tmp_path / "pictures"
    folder.mkdir()
    pictures = np.random.default_rng(0).integers(0, 255, (4, 8, 8, 3), "uint8")
    for number, picture in enumerate(pictures):
        keras.utils.save_img(folder / f"{number}.png", picture, scale=False)
    files = [tmp_path / name for name in ("original.keras", "p.keras", "o.h5")]
    words = ["keras-passport", "protect", "--exact", f"--images={folder}"]
    assert parser.main(parser.parse([*words, *map(str, files)])) == 0
    assert "Wrote" in capsys.readouterr().out
    owner = kp.Passport.load(tmp_path / "o.h5")
    assert owner.kind == "offset_image" and len(owner.images) == 4
    model = kp.bind(keras.saving.load_model(tmp_path / "p.keras"), owner)
    inputs = inputs_of(base)
    assert gap(outputs(model, inputs), outputs(base, inputs)) < 1e-4
    for flags in (
        ("--exact", "--preprocessing=tf"),
        ("--exact", "--image_size=8"),
        ("--preprocessing=tf",),
        ("--exact", "--images="),
    ):
        words = ["keras-passport", "protect", "--overwrite", *flags]
        assert parser.main(parser.parse([*words, *map(str, files)])) == 2, flags
        told = capsys.readouterr().err.splitlines()[-1]
        assert "Expected" in told and "Received" in told, flags
