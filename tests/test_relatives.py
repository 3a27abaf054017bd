"""What a public ancestor, or another version, gives away."""

import functools

import keras
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

import keras_passport as kp
from keras_passport.layers import kernels, row_order
from support.attack_targets import hidden
from support.known_statistics import pictures
from support.plain_models import plain_cnn, small_resnet
from support.protected_models import in_one_order, predict


@functools.cache
def ancestor(base=small_resnet):
    """A plain network with γ, β and statistics of its own."""
    model = base()
    rng = np.random.default_rng(0)
    for weight in model.weights:
        shape, name = weight.shape, weight.name
        if len(shape) > 1:
            scale = np.sqrt(2 / np.prod(shape[:-1]))
            weight.assign(rng.normal(0.0, scale, shape))
        elif name == "gamma":
            weight.assign(rng.uniform(0.5, 1.2, shape))
        elif name == "beta":
            weight.assign(rng.normal(0.0, 0.2, shape))
    return kp.estimate_statistics(model, [pictures(256, seed=9)])


def of_three_kernels():
    x = inputs = keras.Input((8, 8, 3))
    for filters in (16, 32, 48):
        x = keras.layers.Conv2D(filters, 3, use_bias=False)(x)
        x = keras.layers.BatchNormalization()(x)
    return keras.Model(inputs, x)


def of_shapes(classes=4, width=8, size=3):
    """A network with filters of sizes of their own, without normalisations."""
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(width, size, name="first")(x)
    x = keras.layers.Conv2D(12, 3, activation="relu", name="second")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(classes, name="head")(x))


def trained_on(untrained, shuffled, likeness):
    """A network with kernels that are like those, as after a training."""
    base, rng = keras.models.clone_model(untrained), np.random.default_rng(3)
    for new, old in zip(base.weights, untrained.weights, strict=True):
        if len(new.shape) > 1:
            begun = keras.ops.convert_to_numpy(old)
            if shuffled:
                begun = rng.permuted(begun)
            noise = rng.normal(0.0, begun.std(), begun.shape)
            new.assign(likeness * begun + np.sqrt(1 - likeness**2) * noise)
    return base


def scale_and_shift(base):
    """γ and β of a plain network, by the kernel layers' names."""
    return {
        layer.name.replace("_bn", "_conv"): tuple(
            keras.ops.convert_to_numpy(value)
            for value in (layer.gamma, layer.beta)
        )
        for layer in base.layers
        if isinstance(layer, keras.layers.BatchNormalization)
    }


def protected(base, hides=False):
    """A model that was protected from an ancestor without further training."""
    model = kp.protect(base)
    passport = kp.Passport.random_pattern(model, seed=1)
    batches = [pictures(256, seed=9)]
    kp.calibrate(kp.bind(model, passport), like=base)
    kp.estimate_statistics(model, batches)
    x = pictures(300, seed=6)
    scores = predict(model, x)
    # Its classes are equally frequent.
    last = model.layers[-1]
    for _ in range(200):
        frequency = np.eye(4)[scores.argmax(-1)].mean(0)
        shift = 0.1 * scores.std() * (1 / 4 - frequency)
        scores = scores + shift
        last.bias.assign_add(shift.astype("float32"))
    if hides:
        kp.hide_statistics(model, batches)
    return model, passport, (x, predict(model, x).argmax(-1))


class TestKnownAncestor:
    def test_what_was_protected_without_training_is_recovered(self):
        model, _, test = protected(ancestor())
        result = kp.attacks.known_ancestor(kp.public(model), ancestor(), test)
        assert result.accuracy > 0.99
        assert min(result.history[0]["alike"].values()) > 0.8

    @pytest.mark.parametrize("order", [False, True])
    def test_so_is_what_was_protected_exactly(self, order):
        base = ancestor.__wrapped__(plain_cnn)
        x = pictures(200, seed=6)
        # Its classes are equally frequent, as far as scores go.
        base.layers[-1].bias.assign(-predict(base, x).mean(0))
        model, _ = kp.protect_trained(base, seed=1, order=order)
        test = x, predict(base, x).argmax(-1)
        assert np.bincount(test[1]).max() < 150
        result = kp.attacks.known_ancestor(kp.public(model), base, test)
        assert result.accuracy > 0.97

    @pytest.mark.parametrize(
        "change, strange",
        [
            ({"classes": 3}, {"head"}),
            ({"classes": 4, "width": 6}, {"first", "second"}),
            ({"size": 5}, {"first"}),
        ],
        ids=["fewer classes", "narrower", "larger kernels"],
    )
    @pytest.mark.parametrize("order", [False, True])
    def test_layers_of_other_shapes_are_strangers(self, order, change, strange):
        """As an ancestor's classifier nearly always is."""
        base, other = of_shapes(), of_shapes(**change)
        for path in {"first", "second", "head"} - strange:
            weights = base.get_layer(path).get_weights()
            other.get_layer(path).set_weights(weights)
        model, _ = kp.protect_trained(base, seed=1, order=order)
        test = pictures(8, seed=6), np.arange(8) % 4
        one, reference = (
            kp.attacks.known_ancestor(model, network, test).history[0][
                "parameters"
            ]
            for network in (other, base)
        )
        for path, (gamma, beta) in one.items():
            if path in strange:
                assert set(gamma) == {1.0} and set(beta) == {0.0}
            else:
                np.testing.assert_array_equal(gamma, reference[path][0])
                np.testing.assert_array_equal(beta, reference[path][1])
        kp.attacks.ancestor_alone(model, other, test)
        bases = kp.attacks.difference_directions(model, other)
        assert {path for path, rows in bases.items() if len(rows)} == (
            {"first", "second", "head"} - strange
        )

    @pytest.mark.parametrize("order", [False, True])
    def test_means_are_those_without_the_kernels_biases(self, order):
        """As of keras.applications' ResNets, whose kernels have some."""
        x = inputs = keras.Input((8, 8, 3))
        for filters in (8, 16):
            x = keras.layers.Conv2D(filters, 3, padding="same")(x)
            x = keras.layers.BatchNormalization()(x)
            x = keras.layers.ReLU()(x)
        x = keras.layers.GlobalAveragePooling2D()(x)
        base = keras.Model(inputs, keras.layers.Dense(4)(x))
        base = ancestor.__wrapped__(lambda: base)
        rng = np.random.default_rng(1)
        for weight in base.weights:
            if weight.name == "bias":
                weight.assign(rng.normal(0.0, 0.5, weight.shape))
        kp.estimate_statistics(base, [pictures(64, seed=9)])
        model, _ = kp.protect_trained(base, order=order)
        found = kp.attacks.known_ancestor(
            kp.public(model),
            base,
            (pictures(8), np.arange(8) % 4),
            keep_model=True,
        )
        x = pictures(32, seed=6)
        np.testing.assert_allclose(
            predict(found.model, x), predict(base, x), rtol=2e-3, atol=2e-3
        )

    def test_signs_and_sizes_of_filters_are_found(self):
        base = ancestor()
        model = kp.protect(base)
        rewrite = kp.attacks.flip_signs(model, seed=3)
        rewrite = kp.attacks.scale_filters(rewrite.model, seed=4)
        test = pictures(8), np.arange(8) % 4
        found = kp.attacks.known_ancestor(rewrite.model, base, test)
        flipped = kp.attacks.flip_signs(model, seed=3)
        expected = flipped.parameters(scale_and_shift(base))
        for path, pair in found.history[0]["parameters"].items():
            np.testing.assert_allclose(pair, expected[path], rtol=1e-5)

    def test_signs_of_filters_that_were_trained_on_for_long_are_found(self):
        """Where signs were scrambled, a small cosine tells one, too."""
        base = ancestor()
        model, passport = kp.protect_trained(base, order=False)
        truth = {
            path: np.sign(layer.hidden_parameters(passport.rows()[path])[0])
            for path, layer in kp.protected_layers(model).items()
        }
        changed, rng = kp.public(model), np.random.default_rng(2)
        for layer in kp.protected_layers(changed).values():
            kernel = keras.ops.convert_to_numpy(layer.layer.kernel)
            noise = 1.4 * kernel.std() * rng.normal(size=kernel.shape)
            layer.layer.kernel.assign(kernel + noise)
        test = pictures(8), np.arange(8) % 4
        found = kp.attacks.known_ancestor(changed, base, test).history[0]
        known = [path for path in truth if found["alike"][path] >= 0.5]
        assert len(known) > len(truth) / 2
        right = np.concatenate(
            [
                truth[path] == np.sign(found["parameters"][path][0])
                for path in known
            ]
        )
        assert right.mean() > 0.99

    @pytest.mark.parametrize("trained", ["from it", "from other weights"])
    def test_long_rows_fit_what_their_training_began_with(self, trained):
        """A kernel that was trained is still like its initial weights."""
        untrained = of_three_kernels()
        base = trained_on(untrained, trained != "from it", likeness=0.6)
        model, passport = kp.protect_trained(base, order=False)
        model = in_one_order(model, passport)
        aligned, fits = kp.attacks.with_rows_of(model, untrained)
        *_, path = kp.protected_layers(model)
        assert fits[path] == (trained == "from it")
        if not fits[path]:
            return
        layer = kp.protected_layers(aligned)[path]
        ours, theirs = (
            keras.ops.convert_to_numpy(one.kernel).reshape(-1, 48)
            for one in (layer.layer, base.layers[-2])
        )
        # Signs of filters stay those that the passport's γ has.
        cosines = np.sum(ours * theirs, 0) / np.linalg.norm(ours, axis=0)
        cosines /= np.linalg.norm(theirs, axis=0)
        gamma, _ = kp.protected_layers(model)[path].hidden_parameters()
        same = np.sign(np.ravel(gamma)) == np.sign(cosines)
        assert np.abs(cosines).min() > 0.9
        assert same.all() or not same.any()

    @pytest.mark.parametrize("way", ["protect_trained", "hide_rows"])
    @pytest.mark.parametrize("likeness", [0.6, 0.85, 0.99])
    def test_rows_of_few_filters_say_no_more_than_what_they_are_like(
        self, likeness, way
    ):
        """First weights tell no order of four filters; a release does."""
        untrained = of_three_kernels()
        base = trained_on(untrained, shuffled=False, likeness=likeness)
        hides = way == "hide_rows"
        model, passport = kp.protect_trained(base, order=not hides)
        if hides:
            model = kp.hide_rows(model, passport)
        aligned, fits = kp.attacks.with_rows_of(model, untrained)
        layers = kp.protected_layers(aligned)
        for path in fits:
            ours, theirs = (
                keras.ops.convert_to_numpy(one.kernel)
                for one in (layers[path].layer, base.get_layer(path))
            )
            ours, theirs = (
                one.reshape(-1, one.shape[-1]) for one in (ours, theirs)
            )
            cosines = np.sum(ours * theirs, 0) / np.linalg.norm(ours, axis=0)
            cosines = np.abs(cosines / np.linalg.norm(theirs, axis=0))
            assert cosines.mean() < likeness + 0.03
            # Of the stem's 27 rows each filter has an order.
            if likeness == 0.99 and len(ours) > 27:
                assert fits[path] and cosines.mean() > 0.97

    @pytest.mark.parametrize("likeness, most", [(0.8, 0.1), (0.9, 0.2)])
    def test_long_kernels_have_no_longer_rows(self, likeness, most):
        """More rows are harder to tell, but not by twice as many numbers.

        Filters' signs are known here, which an attacker has to guess.
        """
        layer = keras.layers.Conv2D(16, 3)
        layer.build((None, 8, 8, 128))
        [groups] = row_order.groups(kernels.adapter_for(layer), layer)
        rng = np.random.default_rng(0)

        def put_back(filters):
            first, noise = rng.normal(size=(2, 1152, filters))
            trained = likeness * first + np.sqrt(1 - likeness**2) * noise
            order = rng.permutation(1152)
            stored = trained[order] * rng.choice((-1, 1), (1152, 1))
            _, found = linear_sum_assignment(-np.abs(first @ stored.T))
            return np.mean(order[found] == np.arange(1152))

        right = put_back(16 // groups)
        assert right < most
        assert put_back(8) > max(0.15, 2.0 * right)

    def test_a_stranger_gives_nothing(self):
        model, _, test = protected(ancestor())
        stranger = small_resnet()
        rng = np.random.default_rng(5)
        for weight in stranger.weights:
            if len(weight.shape) > 1:
                weight.assign(rng.normal(size=weight.shape))
        result = kp.attacks.known_ancestor(model, stranger, test)
        layer = result.history[0]["parameters"]["block1_2_conv"]
        np.testing.assert_array_equal(layer[0], 1.0)

    def test_another_architecture_is_refused(self):
        model, _, test = protected(ancestor())
        with pytest.raises(kp.PassportError):
            kp.attacks.known_ancestor(model, plain_cnn(), test)


def shares(model, passport, other):
    """How much of γ and β lies in the directions, by layer."""
    directions = kp.attacks.difference_directions(kp.public(model), other)
    for path, pair in hidden(model, passport).items():
        basis = directions[path]
        assert len(basis) == 2
        for value in pair:
            yield np.sum((basis @ value) ** 2) / np.sum(value**2)


class TestDifference:
    def test_a_public_ancestor_shows_the_keys_plane(self):
        model, passport, _ = protected(ancestor())
        assert min(shares(model, passport, ancestor())) > 0.999

    def test_so_does_a_release_of_before_statistics_were_hidden(self):
        before, _, _ = protected(ancestor())
        model, passport, _ = protected(ancestor(), hides=True)
        assert min(shares(model, passport, kp.public(before))) > 0.999

    def test_rows_in_the_same_orders_show_a_plane_for_each_of_them(self):
        before, _, _ = protected(ancestor())
        model, passport, _ = protected(ancestor(), hides=True)
        before, model = (kp.hide_rows(m, passport) for m in (before, model))
        directions = kp.attacks.difference_directions(model, before)
        for path, pair in hidden(model, passport).items():
            basis = directions[path]
            # Of four filters two directions, of one its only one.
            layer = kp.protected_layers(model)[path]
            [(rows, groups)] = layer.geometry.orders
            assert len(basis) == (2 * groups if rows >= 64 else groups)
            for value in pair:
                assert np.sum((basis @ value) ** 2) > 0.999 * np.sum(value**2)

    @pytest.mark.parametrize("public", (True, False))
    def test_four_numbers_a_layer_are_left(self, public):
        """A public ancestor's own γ and β tell them; else labels do."""
        model, _, (x, y) = protected(ancestor(plain_cnn))
        other = ancestor(plain_cnn)
        result = kp.attacks.difference(
            kp.public(model),
            other if public else kp.protect(other),
            (x[:100], y[:100]),
            (x[100:], y[100:]),
            restarts=1,
            recipe=kp.attacks.Recipe(
                epochs=4 if public else 30, batch_size=20, learning_rate=0.1
            ),
        )
        chance = np.bincount(y[100:]).max() / 200
        assert result.accuracy > (0.98 if public else chance + 0.15)
        assert result.knowledge["versions"] == 2

    def test_the_same_network_twice_is_refused(self):
        model, passport, _ = protected(ancestor())
        for one in (model, kp.hide_rows(model, passport)):
            with pytest.raises(kp.PassportError, match="differ in a kernel"):
                kp.attacks.difference_directions(one, kp.public(one))

    def test_a_normalisation_without_a_kernel_has_no_directions(self):
        inputs = keras.Input((3,))
        outputs = keras.layers.Dense(4)(inputs)
        outputs = keras.layers.LayerNormalization(name="alone")(outputs)
        outputs = keras.layers.Dense(2, activation="softmax")(outputs)
        base = keras.Model(inputs, outputs)
        model, _ = kp.protect_trained(base, seed=0)
        directions = kp.attacks.difference_directions(model, base)
        assert directions["alone"].shape == (0, 4)
        data = np.ones((16, 3), "float32"), np.arange(16) % 2
        recipe = kp.attacks.Recipe(epochs=1)
        result = kp.attacks.difference(
            model, base, data, data, restarts=1, recipe=recipe
        )
        assert result.knowledge["versions"] == 2
