"""The key identity, for every registered layer and every way to set it up."""

import itertools

import keras
import numpy as np
import pytest
from keras import ops

from keras_passport.errors import PassportError
from keras_passport.layers import kernels
from keras_passport.passports import geometry
from support.marks import needs_keras
from support.processes import run_in_fresh_process
from support.truth import plain_response, relative_difference

CHANNELS = 4

# One row per convolution: its class, its number of spatial axes, its
# paddings, its groups, and the arguments that say how many outputs it has.
CONVOLUTIONS = [
    (
        keras.layers.Conv1D,
        1,
        ("valid", "same", "causal"),
        (1, 2),
        {"filters": 6},
    ),
    (keras.layers.Conv2D, 2, ("valid", "same"), (1, 2), {"filters": 6}),
    (keras.layers.Conv3D, 3, ("valid", "same"), (1, 2), {"filters": 6}),
    (
        keras.layers.DepthwiseConv1D,
        1,
        ("valid", "same"),
        (None,),
        {"depth_multiplier": 2},
    ),
    (
        keras.layers.DepthwiseConv2D,
        2,
        ("valid", "same"),
        (None,),
        {"depth_multiplier": 2},
    ),
    (
        keras.layers.SeparableConv1D,
        1,
        ("valid", "same"),
        (None,),
        {"filters": 6, "depth_multiplier": 2},
    ),
    (
        keras.layers.SeparableConv2D,
        2,
        ("valid", "same"),
        (None,),
        {"filters": 6, "depth_multiplier": 2},
    ),
    (
        keras.layers.Conv1DTranspose,
        1,
        ("valid", "same"),
        (None,),
        {"filters": 6},
    ),
    (
        keras.layers.Conv2DTranspose,
        2,
        ("valid", "same"),
        (None,),
        {"filters": 6},
    ),
    (
        keras.layers.Conv3DTranspose,
        3,
        ("valid", "same"),
        (None,),
        {"filters": 6},
    ),
]
ROWS = {row[0].__name__: row for row in CONVOLUTIONS}

# Odd and even along every axis, and no two axes of one map alike in both.
SIZES = {
    1: [(8,), (9,)],
    2: [(8, 11), (9, 10)],
    3: [(8, 7, 10), (7, 8, 9)],
}


def kernel_size(size, rank):
    """`size` along the first axis, and another one along each further."""
    return tuple((size - 1 + axis) % 4 + 1 for axis in range(rank))


def settings():
    for layer_class, rank, paddings, groups, arguments in CONVOLUTIONS:
        for size, stride, dilation, padding, group in itertools.product(
            (1, 2, 3, 4), (1, 2), (1, 2), paddings, groups
        ):
            # No layer of Keras promises strides and dilation together.
            if stride > 1 and dilation > 1:
                continue
            chosen = {
                **arguments,
                "kernel_size": kernel_size(size, rank),
                "strides": stride,
                "dilation_rate": dilation,
                "padding": padding,
            }
            name = f"{layer_class.__name__}-k{size}-s{stride}-d{dilation}"
            name += f"-{padding}"
            if group is not None:
                chosen["groups"] = group
                name += f"-g{group}"
            yield pytest.param(layer_class, rank, chosen, id=name)


def built(layer_class, spatial=(), channels=CHANNELS, seed=0, **arguments):
    """A built layer with a bias and an activation that F must leave out."""
    arguments = {"activation": "relu", **arguments}
    layer = layer_class(**arguments)
    first = arguments.get("data_format") == "channels_first"
    shape = (channels, *spatial) if first else (*spatial, channels)
    layer.build((None, *shape))
    rng = np.random.default_rng(seed)
    for weight in layer.weights:
        weight.assign(rng.normal(size=tuple(weight.shape)))
    return layer


def feature_map(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def response(layer, passport):
    """F(W, p) as the package computes it, through the key."""
    adapter = kernels.adapter_for(layer)
    key = geometry.digest(passport, adapter.geometry(layer))
    assert key.shape == adapter.key_shape(layer)
    return np.asarray(adapter.response(layer, key[None]))[0]


def check_identity(layer_class, spatial, arguments):
    """Both data formats against one truth, which has the same weights."""
    passport = feature_map(*spatial, CHANNELS)
    last = built(layer_class, spatial, **arguments, data_format="channels_last")
    truth = plain_response(last, passport)
    assert relative_difference(response(last, passport), truth) < 1e-5

    arguments = {**arguments, "data_format": "channels_first"}
    first = built(layer_class, spatial, **arguments)
    passport = np.moveaxis(passport, -1, 0)
    assert relative_difference(response(first, passport), truth) < 1e-5


class TestKeyIdentity:
    @pytest.mark.parametrize("layer_class, rank, arguments", list(settings()))
    def test_convolutions(self, layer_class, rank, arguments):
        for spatial in SIZES[rank]:
            check_identity(layer_class, spatial, arguments)

    def test_the_table_holds_every_registered_layer(self):
        in_tests = {
            *(row[0] for row in CONVOLUTIONS),
            keras.layers.Dense,
            keras.layers.EinsumDense,
        }
        own = {
            layer_class
            for layer_class in kernels.registered_layers()
            if layer_class.__module__.startswith("keras.")
        }
        assert own == in_tests

    @pytest.mark.parametrize(
        "name", [n for n in ROWS if not n.startswith(("Depthwise", "Separ"))]
    )
    def test_settings_that_differ_between_axes(self, name):
        layer_class, rank, paddings, _, arguments = ROWS[name]
        different = (1, 2, 3)[-rank:]
        for padding, key in itertools.product(
            paddings, ("strides", "dilation_rate")
        ):
            chosen = {**arguments, "kernel_size": 2, "padding": padding}
            chosen[key] = different
            check_identity(layer_class, SIZES[rank][0], chosen)

    @needs_keras("3.15", "its configs, and so copies, forget output_padding")
    @pytest.mark.parametrize("name", [n for n in ROWS if "Transpose" in n])
    @pytest.mark.parametrize("padding", ["valid", "same"])
    @pytest.mark.parametrize("size", [1, 2, 3, 4])
    @pytest.mark.parametrize(
        "stride, output_padding", [(1, 0), (2, 0), (2, 1), (3, 1), (3, 2)]
    )
    def test_output_padding(self, name, padding, size, stride, output_padding):
        if padding == "same" and size % 2 == 0 and output_padding == 0:
            pytest.skip("Keras's output size fits no `same` padding here.")
        layer_class, rank, _, _, arguments = ROWS[name]
        check_identity(
            layer_class,
            SIZES[rank][0],
            {
                **arguments,
                "kernel_size": size,
                "strides": stride,
                "padding": padding,
                "output_padding": output_padding,
            },
        )

    @pytest.mark.parametrize("name", [n for n in ROWS if "Transpose" not in n])
    def test_strides_larger_than_the_kernel(self, name):
        layer_class, rank, paddings, _, arguments = ROWS[name]
        for padding in paddings:
            chosen = {**arguments, "kernel_size": 2, "strides": 3}
            chosen["padding"] = padding
            check_identity(layer_class, SIZES[rank][0], chosen)

    @pytest.mark.parametrize("name", list(ROWS))
    @pytest.mark.parametrize("size", [1, 2, 3])
    def test_maps_smaller_than_the_kernel(self, name, size):
        """Padding makes up for it, wherever there is any."""
        layer_class, rank, paddings, _, arguments = ROWS[name]
        for padding in paddings:
            if padding == "valid" and "Transpose" not in name:
                continue
            chosen = {**arguments, "kernel_size": 4, "padding": padding}
            check_identity(layer_class, (size,) * rank, chosen)

    @pytest.mark.parametrize("spatial", [(), (7,), (4, 5)])
    def test_dense(self, spatial):
        layer = built(keras.layers.Dense, spatial, units=6)
        passport = feature_map(*spatial, CHANNELS)
        truth = plain_response(layer, passport)
        assert relative_difference(response(layer, passport), truth) < 1e-5

    @pytest.mark.parametrize(
        "equation, output_shape, spatial",
        [
            ("ab,bc->ac", (6,), ()),
            ("abc,cd->abd", (None, 6), (7,)),
            ("abcd,de->abce", (4, 5, 6), (4, 5)),
            ("...x,xy->...y", (6,), (7,)),
        ],
    )
    def test_einsum_dense(self, equation, output_shape, spatial):
        layer = built(
            keras.layers.EinsumDense,
            spatial,
            equation=equation,
            output_shape=output_shape,
            bias_axes=equation[-1],
        )
        adapter = kernels.adapter_for(layer)
        assert adapter.refusal(layer) is None
        passport = feature_map(*spatial, CHANNELS)
        truth = plain_response(layer, passport)
        assert relative_difference(response(layer, passport), truth) < 1e-5


class TestDigest:
    def test_the_definition(self):
        """κ[i, j, c] = mean over (u, v) of p_padded[u·s + i·d, ...]."""
        passport = feature_map(9, 10, 3)
        key = geometry.digest(
            passport,
            geometry.Geometry(
                "convolution",
                channels=3,
                kernel_size=(3, 2),
                strides=(2, 3),
                dilation=(1, 2),
                padding="valid",
            ),
        )
        expected = np.zeros((3, 2, 3))
        for i, j in np.ndindex(3, 2):
            rows, columns = np.arange(4) * 2 + i, np.arange(3) * 3 + j * 2
            expected[i, j] = passport[np.ix_(rows, columns)].mean((0, 1))
        np.testing.assert_allclose(key, expected, rtol=1e-6)

    @pytest.mark.parametrize("dtype", ["float16", "float64", "uint8"])
    def test_every_number_format_gives_a_float32_key(self, dtype):
        layer = built(keras.layers.Conv2D, (8, 8), filters=2, kernel_size=3)
        form = kernels.adapter_for(layer).geometry(layer)
        passport = (100 * np.abs(feature_map(8, 8, CHANNELS))).astype(dtype)
        key = geometry.digest(passport, form)
        assert key.dtype == np.float32
        exact = geometry.digest(passport.astype("float64"), form)
        np.testing.assert_array_equal(key, exact)

    def test_it_leaves_the_passport_alone(self):
        layer = built(keras.layers.Conv2D, (8, 8), filters=2, kernel_size=3)
        passport = feature_map(8, 8, CHANNELS)
        before = passport.copy()
        geometry.digest(passport, kernels.adapter_for(layer).geometry(layer))
        np.testing.assert_array_equal(passport, before)

    @pytest.mark.parametrize("name", list(ROWS))
    @pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
    def test_wrong_shapes_name_expected_and_received(self, name, data_format):
        layer_class, rank, _, _, arguments = ROWS[name]
        layer = built(
            layer_class,
            (8,) * rank,
            **arguments,
            kernel_size=3,
            data_format=data_format,
        )
        form = kernels.adapter_for(layer).geometry(layer)
        last = data_format == "channels_last"

        def shape(spatial, channels):
            return (*spatial, channels) if last else (channels, *spatial)

        for wrong in (
            shape((8,) * rank, CHANNELS + 1),
            shape((8,) * (rank + 1), CHANNELS),
            shape((8,) * (rank - 1), CHANNELS),
            shape((8,) * (rank - 1) + (0,), CHANNELS),
            (),
        ):
            with pytest.raises(PassportError) as caught:
                geometry.digest(np.zeros(wrong), form)
            message = str(caught.value)
            assert "Expected" in message
            assert str(CHANNELS) in message.split("Received")[0]
            assert f"Received: shape={wrong}" in message

    def test_a_map_smaller_than_a_valid_kernel_is_refused(self):
        layer = built(
            keras.layers.Conv2D,
            (8, 8),
            filters=2,
            kernel_size=3,
            dilation_rate=2,
        )
        form = kernels.adapter_for(layer).geometry(layer)
        assert geometry.digest(np.ones((5, 5, CHANNELS)), form).all()
        with pytest.raises(PassportError, match=r"at least 5.*Received: 4"):
            geometry.digest(np.ones((5, 4, CHANNELS)), form)

    def test_values_that_are_not_finite_stay_so(self):
        """A key never hides that its passport was damaged."""
        layer = built(keras.layers.Conv1D, (8,), filters=2, kernel_size=3)
        form = kernels.adapter_for(layer).geometry(layer)
        passport = feature_map(8, CHANNELS)
        passport[4, 2] = np.nan
        assert np.isnan(geometry.digest(passport, form)[:, 2]).all()

    def test_a_geometry_survives_json(self):
        import json

        for layer_class, rank, _, _, arguments in CONVOLUTIONS:
            layer = built(layer_class, (8,) * rank, **arguments, kernel_size=3)
            form = kernels.adapter_for(layer).geometry(layer)
            text = json.dumps(form.to_dict())
            assert geometry.Geometry.from_dict(json.loads(text)) == form

    @pytest.mark.parametrize(
        "change",
        [
            {"kind": "recurrent"},
            {"channels": 0},
            {"channels": "3"},
            {"kernel_size": [3]},
            {"kernel_size": [0, 3]},
            {"kernel_size": [3.0, 3.0]},
            {"strides": [1, -1]},
            {"dilation": []},
            {"dilation": [True, 1]},
            {"output_padding": [1]},
            {"output_padding": [1, -1]},
            {"padding": "full"},
            {"data_format": "channels_middle"},
            {"color": "red"},
        ],
    )
    def test_descriptions_of_no_layer_are_refused(self, change):
        config = geometry.Geometry(
            "convolution",
            channels=3,
            kernel_size=(3, 3),
            strides=(1, 1),
            dilation=(1, 1),
        ).to_dict()
        with pytest.raises(PassportError, match="Expected.*Received"):
            geometry.Geometry.from_dict({**config, **change})

    def test_a_long_axis_and_a_long_kernel(self):
        # 500 MB, if every kernel element had a number for every input one.
        passport = np.ones((20_000, 1), "float32")
        key = geometry.digest(
            passport,
            geometry.Geometry(
                "convolution", 1, (3_001,), (1,), (1,), padding="same"
            ),
        )
        met = 20_000 - np.abs(np.arange(3_001) - 1_500)
        np.testing.assert_allclose(key[:, 0], met / 20_000, rtol=1e-6)

    def test_a_client_without_keras_digests(self):
        printed = run_in_fresh_process(
            """
import sys
import numpy as np
from keras_passport.geometry import Geometry, digest
form = Geometry("convolution", 3, (3, 3), (1, 1), (1, 1), "same")
print(digest(np.ones((8, 8, 3)), form).shape)
print([name for name in ("keras", "tensorflow", "jax") if name in sys.modules])
"""
        )
        assert printed.split("\n")[:2] == ["(3, 3, 3)", "[]"]


class TestResponse:
    @pytest.mark.parametrize(
        "layer_class, arguments",
        [
            (row[0], {**row[4], "kernel_size": 3, **extra})
            for row in CONVOLUTIONS
            for extra in [{"groups": g} if g else {} for g in row[3]]
        ]
        + [(keras.layers.Dense, {"units": 6})],
    )
    def test_a_batch_of_keys(self, layer_class, arguments):
        rank = ROWS.get(layer_class.__name__, (None, 0))[1]
        layer = built(layer_class, (8,) * rank, **arguments)
        adapter = kernels.adapter_for(layer)
        keys = feature_map(5, *adapter.key_shape(layer))
        together = adapter.response(layer, keys)
        assert tuple(together.shape) == (5, adapter.units(layer))
        assert keras.backend.standardize_dtype(together.dtype) == "float32"
        for key, row in zip(keys, np.asarray(together), strict=True):
            alone = np.asarray(adapter.response(layer, key[None]))[0]
            assert relative_difference(row, alone) < 1e-5
        output = layer.compute_output_shape(
            (1, *(8,) * rank, adapter.channels(layer))
        )
        assert output[adapter.channel_axis(layer)] == adapter.units(layer)

    def test_the_channel_axis_follows_the_data_format(self):
        for data_format, axis in [("channels_last", -1), ("channels_first", 1)]:
            layer = keras.layers.Conv2D(2, 3, data_format=data_format)
            assert kernels.adapter_for(layer).channel_axis(layer) == axis

    @pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
    def test_it_is_computed_in_float32_under_mixed_precision(self, policy):
        layer = built(
            keras.layers.Conv2D, (8, 8), filters=6, kernel_size=3, dtype=policy
        )
        passport = feature_map(8, 8, CHANNELS)
        truth = plain_response(layer, passport)
        assert relative_difference(response(layer, passport), truth) < 1e-5

    @pytest.mark.parametrize("wrong", [(1, 3, 3), (1, 3, 3, 5), (3, 3, 4), ()])
    def test_wrong_key_shapes_name_expected_and_received(self, wrong):
        layer = built(
            keras.layers.Conv2D, (8, 8), filters=6, kernel_size=3, name="stem"
        )
        with pytest.raises(ValueError) as caught:
            kernels.adapter_for(layer).response(layer, np.zeros(wrong))
        message = str(caught.value)
        assert "3, 3, 4" in message.split("Received")[0]
        assert "stem" in message
        assert f"Received: shape={wrong}" in message

    def test_an_unknown_batch_size(self):
        layer = built(
            keras.layers.Conv2D, (8, 8), filters=6, kernel_size=3, groups=2
        )
        adapter = kernels.adapter_for(layer)

        class Respond(keras.layers.Layer):
            def call(self, keys):
                return adapter.response(layer, keys)

        keys = keras.Input(adapter.key_shape(layer))
        model = keras.Model(keys, Respond()(keys))
        values = feature_map(3, *adapter.key_shape(layer))
        assert (
            relative_difference(
                model.predict(values, verbose=0),
                adapter.response(layer, values),
            )
            < 1e-5
        )


class Double(keras.layers.Layer):
    """A user's own linear layer: twice its input, channel by channel."""

    def build(self, input_shape):
        self.scale = self.add_weight(shape=(input_shape[-1],))

    def call(self, inputs):
        return 2.0 * self.scale * inputs


class DoubleAdapter(kernels.KernelAdapter):
    def channels(self, layer):
        return layer.scale.shape[0]

    def units(self, layer):
        return layer.scale.shape[0]

    def geometry(self, layer):
        return geometry.Geometry("pointwise", channels=self.channels(layer))

    def apply(self, layer, keys):
        return 2.0 * ops.convert_to_tensor(layer.scale) * keys


@pytest.fixture
def registry(monkeypatch):
    """Undoes what a test registers."""
    monkeypatch.setattr(kernels, "_REGISTRY", dict(kernels._REGISTRY))


class TestRegistry:
    @pytest.mark.parametrize(
        "layer",
        [
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.MaxPooling2D(),
            keras.layers.Embedding(4, 3),
            keras.layers.LSTM(3),
            keras.layers.SpectralNormalization(keras.layers.Dense(3)),
            keras.layers.MultiHeadAttention(2, 3),
            Double(),
        ],
        ids=lambda layer: type(layer).__name__,
    )
    def test_layers_without_a_kernel_have_no_adapter(self, layer):
        assert kernels.adapter_for(layer) is None
        assert kernels.adapter_for(type(layer)) is None

    @pytest.mark.parametrize(
        "equation, output_shape",
        [
            ("abc,bcd->ad", (6,)),
            ("abc,cde->abde", (None, 2, 3)),
            ("abc,bd->adc", (6, None)),
            ("abc,dc->abd", (None, 6)),
            ("abc,cd->adb", (6, None)),
        ],
    )
    def test_other_einsum_denses_are_refused_with_a_reason(
        self, equation, output_shape
    ):
        layer = keras.layers.EinsumDense(equation, output_shape)
        adapter = kernels.adapter_for(layer)
        reason = adapter and adapter.refusal(layer)
        assert adapter is None or f"'{equation}'" in reason

    @pytest.mark.parametrize("mode", ["int8", "int4"])
    def test_quantized_layers_are_refused_with_a_reason(self, mode):
        """Their integer kernel is the linear map only with its scale."""
        layer = keras.layers.Dense(6)
        layer.build((None, CHANNELS))
        layer.quantize(mode)
        reason = kernels.adapter_for(layer).refusal(layer)
        assert reason is not None
        assert mode in reason

    def test_lora_belongs_to_the_kernel(self):
        layer = keras.layers.Dense(6)
        layer.build((None, CHANNELS))
        layer.enable_lora(2)
        for weight in layer.weights:
            weight.assign(feature_map(*weight.shape, seed=weight.shape[0]))
        passport = feature_map(7, CHANNELS)
        truth = np.asarray(layer(passport)) - np.asarray(layer.bias)
        assert (
            relative_difference(response(layer, passport), truth.mean(0)) < 1e-5
        )

    def test_a_layer_of_ones_own(self, registry):
        kernels.register_kernel_layer(Double, DoubleAdapter())
        assert Double in kernels.registered_layers()
        layer = Double()
        passport = feature_map(7, 5)
        truth = np.asarray(layer(passport[None])).mean((0, 1))
        assert relative_difference(response(layer, passport), truth) < 1e-5

    def test_a_layer_like_a_registered_one(self, registry):
        class Rounded(keras.layers.Conv2D):
            def call(self, inputs):
                return ops.round(super().call(inputs))

        assert kernels.adapter_for(Rounded) is None
        adapter = kernels.adapter_for(keras.layers.Conv2D)
        kernels.register_kernel_layer(Rounded, adapter)
        assert kernels.adapter_for(Rounded(2, 3)) is adapter

    def test_subclasses_that_keep_the_linear_map(self):
        class Named(keras.layers.Conv2D):
            def get_config(self):
                return {**super().get_config(), "color": "red"}

        class Squared(keras.layers.Conv2D):
            def convolution_op(self, inputs, kernel):
                return super().convolution_op(inputs, kernel**2)

        class SquaredAgain(Squared):
            pass

        known = kernels.adapter_for(keras.layers.Conv2D)
        assert kernels.adapter_for(Named(2, 3)) is known
        assert kernels.adapter_for(Squared(2, 3)) is None
        assert kernels.adapter_for(SquaredAgain(2, 3)) is None

    @pytest.mark.parametrize("bad", [int, "Conv2D", None, Double()])
    def test_what_is_no_layer_class_is_refused(self, registry, bad):
        with pytest.raises(TypeError, match="layer_class.*Received"):
            kernels.register_kernel_layer(bad, DoubleAdapter())

    @pytest.mark.parametrize("bad", [None, DoubleAdapter, "Conv2D"])
    def test_what_is_no_adapter_is_refused(self, registry, bad):
        with pytest.raises(TypeError, match="adapter.*Received"):
            kernels.register_kernel_layer(Double, bad)
        assert kernels.adapter_for(Double) is None
