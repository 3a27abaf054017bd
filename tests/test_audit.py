"""What the owner measures: right guesses, passports with noise."""

import random

import keras
import numpy as np
import pytest

import keras_passport as kp
from support.plain_models import randomize, small_resnet


@pytest.fixture
def model():
    return kp.protect(randomize(small_resnet(classes=4)))


@pytest.fixture
def images(model):
    rng = np.random.default_rng(1)
    return rng.normal(size=(5, *model.input_shape[1:])).astype("float32")


@pytest.fixture
def passport(model, images):
    reference = randomize(small_resnet(classes=4), seed=2)
    return kp.Passport.random_image(model, images, reference=reference)


class TestAccuracies:
    def test_a_column_of_labels_is_as_good(self, model, passport):
        rng = np.random.default_rng(0)
        x = rng.normal(size=(40, *model.input_shape[1:])).astype("float32")
        y = rng.integers(0, 4, 40)
        found = [
            kp.audit.accuracies(model, passport, (x, labels), fakes=2)
            for labels in (y, y[:, None])
        ]
        assert found[0] == found[1]
        noise = [
            kp.audit.accuracy_under_noise(
                model, passport, (x, labels), fractions=[0.0], repeats=1
            )["accuracies"]
            for labels in (y, y[:, None])
        ]
        assert noise[0] == noise[1] == [[found[0]["valid"]]]

    @pytest.mark.parametrize("batch_size", (0, -1, 2.5, None))
    def test_sizes_that_make_no_batch(self, model, passport, batch_size):
        data = np.zeros((4, *model.input_shape[1:]), "float32"), np.zeros(4)
        with pytest.raises(ValueError, match="Expected batch_size"):
            kp.audit.accuracies(
                model, passport, data, fakes=1, batch_size=batch_size
            )

    @pytest.mark.parametrize("wrong", ({"fractions": ()}, {"repeats": 0}))
    def test_a_curve_of_nothing(self, model, passport, wrong):
        data = np.zeros((4, *model.input_shape[1:]), "float32"), np.zeros(4)
        with pytest.raises(ValueError, match="one fraction or more"):
            kp.audit.accuracy_under_noise(model, passport, data, **wrong)


class TestRightGuesses:
    def test_one_is_right_in_n(self, model, images, passport):
        rng = np.random.default_rng(0)
        x = rng.normal(size=(2, *model.input_shape[1:])).astype("float32")
        result = kp.attacks.fake_passports(
            model,
            "known_images",
            200,
            (x, [0, 1]),
            images=images,
            reference=randomize(small_resnet(classes=4), seed=2),
            seed=3,
        )
        right = kp.audit.right_guesses(passport, result.history)
        assert right.shape == (200, len(passport.layers), 2)
        assert right.mean() == pytest.approx(1 / 5, abs=0.05)

    def test_the_passports_own_choices_are_right(self, passport):
        chosen = [
            [entry.gamma_image, entry.beta_image]
            for entry in passport.layers.values()
        ]
        other = [[beta, gamma] for gamma, beta in chosen]
        right = kp.audit.right_guesses(
            passport, [{"images": chosen}, {"images": other}]
        )
        assert right[0].all()
        assert not right[1].any()

    def test_other_passports_are_refused(self, model, passport):
        pattern = kp.Passport.random_pattern(model)
        with pytest.raises(kp.PassportError, match="Received: .*pattern"):
            kp.audit.right_guesses(pattern, [{"images": [[0, 1]]}])
        with pytest.raises(kp.PassportError, match=r"Received: shape=\(1, 1"):
            kp.audit.right_guesses(passport, [{"images": [[0, 1]]}])


class TestNoise:
    @pytest.mark.parametrize("replace", [False, True])
    @pytest.mark.parametrize("fraction", [0.0, 0.25, 1.0])
    def test_so_many_elements_change(self, passport, fraction, replace):
        noisy = kp.audit.add_noise(passport, fraction, replace=replace, seed=1)
        for path, entry in passport.layers.items():
            for role in ("gamma", "beta"):
                before = entry.array(role)
                changed = before != noisy.layers[path].array(role)
                assert changed.sum() == round(fraction * before.size)

    def test_of_keys_where_there_are_no_maps(self, model, passport):
        layers = {
            path: kp.PassportEntry(
                entry.geometry,
                gamma_key=entry.key("gamma"),
                beta_key=entry.key("beta"),
            )
            for path, entry in passport.layers.items()
        }
        solved = kp.Passport("feature_maps", "V3", layers, passport.seed)
        noisy = kp.audit.add_noise(solved, 1.0)
        noisy.check(model)
        assert np.all(noisy.packed() != solved.packed())

    def test_it_is_the_same_for_a_passport_that_was_saved(self, tmp_path):
        """Its file holds keys in place of large maps, which average noise."""
        inputs = keras.Input((160, 160, 3))
        outputs = keras.layers.Conv2D(4, 3, padding="same")(inputs)
        outputs = keras.layers.BatchNormalization()(outputs)
        base = keras.Model(inputs, outputs)
        model = kp.protect(base)
        images = np.random.default_rng(0).random((3, 160, 160, 3), "float32")
        for passport in (
            kp.Passport.random_pattern(model),
            kp.Passport.random_image(model, images, reference=base),
        ):
            passport.save(tmp_path / "owner.h5")
            loaded = kp.Passport.load(tmp_path / "owner.h5")
            assert loaded.fingerprint == passport.fingerprint
            kept, noisy = (
                kp.audit.add_noise(one, 0.5, replace=True, seed=3)
                for one in (passport, loaded)
            )
            np.testing.assert_array_equal(kept.packed(), noisy.packed())
            assert np.any(kept.packed() != passport.packed())
            # The maps that it was made of are not those of its keys.
            noisy.save(tmp_path / "noisy.h5")
            again = kp.Passport.load(tmp_path / "noisy.h5")
            assert again.feature_maps() == {
                path: (None, None) for path in passport.layers
            }

    def test_without_noise_the_accuracy_is_the_valid_one(self, model, passport):
        kp.bind(model, passport)
        x = np.random.default_rng(0).normal(size=(40, *model.input_shape[1:]))
        scores = keras.ops.convert_to_numpy(model(x, training=False))
        # An untrained network says the same of all.
        model.layers[-1].bias.assign_sub(scores.mean(0))
        labels = (scores - scores.mean(0)).argmax(-1)
        found = kp.audit.accuracy_under_noise(
            model, passport, (x, labels), fractions=(0.0, 1.0), repeats=2
        )
        assert found["accuracies"][0] == [1.0, 1.0]
        assert np.mean(found["accuracies"][1]) < 0.9
        again = kp.audit.accuracy_under_noise(
            model, passport, (x, labels), fractions=(0.0, 1.0), repeats=2
        )
        assert again == found

    @pytest.mark.parametrize(
        "wrong", [{"fraction": 1.5}, {"fraction": 0.5, "scale": -1}]
    )
    def test_wrong_arguments(self, passport, wrong):
        with pytest.raises(ValueError, match="Expected a fraction in"):
            kp.audit.add_noise(passport, **wrong)


class TestFirstSeed:
    """Whoever has it draws a training's first weights again."""

    def network(self, initializer="glorot_uniform"):
        return keras.Sequential(
            [
                keras.Input((8, 8, 3)),
                keras.layers.Dropout(0.1),
                keras.layers.Conv2D(16, 3, kernel_initializer=initializer),
                keras.layers.BatchNormalization(),
                keras.layers.Dense(4, kernel_initializer=initializer),
            ]
        )

    def trained(self, network):
        """As far from its first weights as the networks of the tables are."""
        rng = np.random.default_rng(0)
        for weight in network.trainable_weights:
            if len(weight.shape) > 1:
                values = np.array(weight)
                noise = rng.normal(0.0, 1.5 * values.std(), values.shape)
                weight.assign(values + noise)
        return network

    @pytest.mark.parametrize("seed", [0, 42, 2026])
    @pytest.mark.parametrize("initializer", ["glorot_uniform", "he_normal"])
    def test_a_scripts_seed_is_found(self, initializer, seed):
        keras.utils.set_random_seed(seed)
        model = self.trained(self.network(initializer))
        before = random.getstate()
        assert kp.audit.first_seed(model) == seed
        assert random.getstate() == before
        assert kp.audit.first_seed(model, seeds=[seed + 1]) is None

    def test_the_seed_of_an_initializer_is_found(self):
        made = keras.initializers.HeNormal(seed=987654)
        model = self.trained(self.network(made))
        assert kp.audit.first_seed(model) == 987654
        kp.reinitialize(model)
        assert kp.audit.first_seed(model) is None

    def test_a_secret_is_not(self):
        keras.utils.set_random_seed(0)
        assert kp.audit.first_seed(kp.reinitialize(self.network())) is None

    def test_what_has_no_kernel_tells_nothing(self):
        inputs = keras.Input((4,))
        model = keras.Model(inputs, keras.layers.ReLU()(inputs))
        assert kp.audit.first_seed(model) is None

    def test_numbers_of_numpy_are_seeds(self):
        keras.utils.set_random_seed(3)
        model = self.trained(self.network())
        assert kp.audit.first_seed(model, np.arange(5)) == 3

    @pytest.mark.parametrize(
        "seeds, received",
        [
            (3, "int"),
            (None, "NoneType"),
            ("123", "str"),
            ([1.5], "1.5"),
            ([None], "None"),
        ],
    )
    def test_what_no_script_gives_keras_is_no_seed(self, seeds, received):
        with pytest.raises(ValueError, match=f"whole numbers.*{received}"):
            kp.audit.first_seed(self.network(), seeds)

    @pytest.mark.parametrize(
        "make, received",
        [
            (lambda: "model.keras", "a str"),
            (lambda: keras.Sequential([keras.layers.Dense(3)]), "not built"),
        ],
    )
    def test_what_has_no_weights_is_told(self, make, received):
        with pytest.raises(ValueError, match=received):
            kp.audit.first_seed(make())
