"""`PassportNormalization`: a kernel layer with γ and β from a passport."""

import dataclasses
import functools
from typing import Any

import keras
from keras import ops

from keras_passport import secrecy
from keras_passport.errors import PassportError
from keras_passport.hints import Tensor
from keras_passport.layers import (
    access,
    decoupling,
    duals,
    folding,
    kernels,
    loading,
    normalization,
    offsets,
    optimizer_state,
    packing,
    quantization,
    received,
    row_order,
    scopes,
)
from keras_passport.layers.normalization import without_affine
from keras_passport.passports import functions

# What a layer is made of; its adapter, geometry and keys belong to these.
_PARTS = ("layer", "normalization", "between", "function")
_NEW = ("offsets", "row_groups", "gathered")


@keras.saving.register_keras_serializable(package="keras_passport")
class PassportNormalization(
    loading.Noted, scopes.Rematerialized, keras.layers.Wrapper
):
    """Kernel layer and normalisation with a scale and shift from a passport.

    Computes y = γ · normalise(layer(x)) + β (eq. 3) where, as the passport
    function says, γ = F(W, p_γ) and β = F(W, p_β) (eqs. 4 and 5, Table 1) are
    computed from the layer's kernel W and a secret passport. They are never
    stored. The passport is either *bound* to the layer (`kp.bind`) or given
    with the call; without one, a call raises `PassportRequiredError`.

    Hidden parameters are computed in float32 whatever the dtype policy of the
    wrapped layers, so this layer's own policy is always float32; it hands
    inputs and outputs through in the wrapped layers' dtypes.

    Args:
        layer: The kernel layer: any type registered in `kernels`.
        normalization: A `BatchNormalization`, `LayerNormalization` or
            `GroupNormalization` over the channel axis, whose place this layer
            takes. Its own scale and shift are not used: what the passport
            function leaves trainable has its initializer, regularizer and
            constraint. Defaults to a batch normalisation.
        function: `"V1"` (γ hidden, β trainable), `"V2"` (β hidden, γ
            trainable) or `"V3"` (both hidden).
        between: Layers that stand between kernel layer and normalisation
            (padding, pooling), in order.
        activation: Activation after scale and shift, or `None`.
        key_groups: Into how many groups output channels fall that have a key
            each; see `key_groups`.
        identity: Whether the normalisation stands where the original has
            none and only scales and shifts, so that `unlock` leaves none.
        ordered: Whether the kernel's rows are stored in a secret order; see
            `row_order`.
        row_groups: How many orders each kernel's rows have; one if not given.
        gathered: Whether keys meet those rows in their own order.
        offsets: Whether γ and β are F(W, p) and a public offset; see
            `offsets`.
        decouple: Whether a passport's hidden parameters train as if
            they were variables of their own: their gradient then reaches the
            kernel along the dual keys, and the features' gradient not along
            the keys. Values are the same either way; so it is in every call,
            whether it trains or not, and in JAX's forward mode. With `False`,
            they are those of the formula alone, as in the paper's own
            training. Separable layers, whose response is no linear function
            of one kernel, and frozen kernels always do that.
        name: Defaults to the kernel layer's name.

    Call arguments:
        inputs: Tensor, the kernel layer's input.
        passport: Keys of shape `(1 or batch, passport_size)`, float32: γ's
            key, then β's, each in C order, and the order of rows if they have
            one. Defaults to the bound ones.
        training: Whether to normalise with the batch's own statistics.
        mask: Mask over the inputs, used as the normalisation uses it.

    Example:

    >>> layer = kp.PassportNormalization(keras.layers.Dense(4), function="V3")
    >>> x = np.ones((2, 3), "float32")
    >>> tuple(layer(x, passport=np.ones((1, 6), "float32")).shape)
    (2, 4)

    Reference:

    - Fan, Ng, Chan: Digital Passport, Section 2.3, Figure 2.
    """

    def __init__(
        self,
        layer: keras.layers.Layer,
        normalization: keras.layers.Layer | None = None,
        function: str | functions.PassportFunction = "V3",
        between: tuple | list = (),
        activation: Any = None,
        decouple: bool = True,
        key_groups: int = 1,
        identity: bool = False,
        ordered: bool = False,
        row_groups: tuple[int, ...] = (),
        gathered: bool = False,
        offsets: bool = False,
        **kwargs: Any,
    ):
        kwargs.setdefault("name", getattr(layer, "name", None))
        kwargs.pop("dtype", None)
        # Of what this layer gives out in the normalisation's place.
        penalty = getattr(normalization, "activity_regularizer", None)
        kwargs.setdefault("activity_regularizer", penalty)
        super().__init__(layer, dtype="float32", autocast=False, **kwargs)
        self.adapter = kernels.adapter_for(layer)
        refusal = (
            "it is not a registered kernel layer"
            if self.adapter is None
            else self.adapter.refusal(layer)
        )
        if refusal:
            raise PassportError(
                "Expected layer to be a kernel layer that can be protected "
                f"(see kernels.register_kernel_layer), but {refusal}. "
                f"Received: layer={layer}"
            )
        if normalization is None:
            normalization = keras.layers.BatchNormalization(
                axis=self.adapter.channel_axis(layer),
                dtype=layer.dtype_policy,
                name=f"{layer.name}_normalization",
            )
        self.function = functions.get(function)
        self.between = list(between)
        self.activation = keras.activations.get(activation)
        self.decouple = decouple
        self.key_groups = key_groups
        self.identity = identity
        self.ordered, self.row_groups = ordered, tuple(row_groups)
        self.gathered = gathered
        self.offsets = offsets
        self.affine, self.normalization = without_affine(normalization)
        self.supports_masking = all(
            part.supports_masking for part in (layer, *self.between)
        )
        for part in (layer, *self.between, self.normalization):
            scopes.without_remat(part)
        quantization.refuse(layer)
        self.gamma = None
        self.beta = None
        self.geometry = None
        self._secret = access.Secret(self)

    def __setattr__(self, name, value):
        if name in _PARTS and getattr(self, "_secret", None) is not None:
            raise PassportError(
                f"Expected layer '{self.name}' to keep its parts: its keys and "
                "hidden parameters belong to them. Make a new "
                f"PassportNormalization instead. Received: {name}={value!r}"
            )
        super().__setattr__(name, value)

    def quantize(self, mode=None, type_check=True, config=None):
        raise quantization.refused(self.layer)

    # Building -----------------------------------------------------------

    def build(self, inputs_shape, passport_shape=None):
        shape = inputs_shape
        for part in (self.layer, *self.between, self.normalization):
            if not part.built:
                part.build(shape)
            shape = part.compute_output_shape(shape)
        self._note_geometry()
        self.inputs_shape = tuple(inputs_shape)
        if not self.function.hides_gamma and self.affine["scale"]:
            self.gamma = normalization.own_affine(self, "gamma")
        if not self.function.hides_beta and self.affine["center"]:
            self.beta = normalization.own_affine(self, "beta")
        if self.offsets:
            offsets.add(self)
        normalization.check_axis(self, len(shape))
        optimizer_state.withhold(self)

    def _note_geometry(self):
        rows = ()
        if self.ordered:
            rows = row_order.counts(self.adapter, self.layer)
        row_order.guard(self.layer, self.ordered)
        self.geometry = dataclasses.replace(
            self.adapter.geometry(self.layer),
            key_groups=self.key_groups,
            ordered_rows=rows,
            row_groups=self.row_groups,
            gathered=self.gathered,
        )

    @property
    def replaced(self) -> dict:
        """The config of the normalisation whose place this layer takes."""
        return normalization.with_affine(self.normalization, self.affine)

    @property
    def passport_size(self) -> int:
        """Number of elements of all keys, and of the order of rows."""
        return packing.size(self)

    # Keys ---------------------------------------------------------------

    @property
    def is_bound(self) -> bool:
        """Whether a passport's keys are bound to this layer."""
        return self._secret.bound is not None

    def bind_keys(
        self, gamma: Tensor = None, beta: Tensor = None, order: Tensor = None
    ) -> None:
        """Binds the keys of a passport. See `kp.bind` for a whole model.

        Args:
            gamma: Key for γ, float array of shape `geometry.key_shape`;
                `None` where the function does not hide γ.
            beta: Key for β, of the same shape, or `None`.
            order: The order of the kernel's rows, float array `(rows,)`;
                `None` where they are stored in their own.

        Raises:
            PassportError: If a key is missing, superfluous, of the wrong
                shape, or not finite.
        """
        access.bind({self._secret: self.keys_of(gamma, beta, order)})

    def keys_of(
        self, gamma: Tensor = None, beta: Tensor = None, order: Tensor = None
    ) -> access.Keys:
        """Keys to bind: `bind_keys` without binding them."""
        gamma, beta, order = map(secrecy.hidden, (gamma, beta, order))
        keys = {"gamma": gamma, "beta": beta}
        return self.packed_keys(packing.pack(self, keys, order))

    def packed_keys(self, array: Tensor, tensor: Tensor = None) -> access.Keys:
        """Keys as they are packed; see `access.Keys`."""
        dual = functools.partial(duals.packed_basis, self)
        return access.Keys(array, dual, tensor)

    def split_keys(
        self,
        groups: int,
        row_groups: tuple[int, ...] = (),
        gathered: bool = False,
    ) -> None:
        """Deals the output channels out to groups that have a key each.

        Args:
            groups: Number of groups; see `key_groups`.
            row_groups: How many secret orders each kernel's rows have now.
            gathered: Whether keys meet them in their own order.
        """
        if self.is_bound:
            raise PassportError(
                f"Expected layer '{self.name}' to be unbound before its keys "
                "are split. Received: a bound layer"
            )
        self.key_groups, self.ordered = groups, bool(row_groups)
        self.row_groups = row_groups if any(n > 1 for n in row_groups) else ()
        self.gathered = gathered
        self._note_geometry()

    def unbind_keys(self) -> None:
        """Takes the bound keys away; does nothing if there are none."""
        access.bind({self._secret: None})

    def hidden_parameters(self, passport: Any = None) -> tuple:
        """γ and β of a passport. For its holder only: they are secrets.

        Args:
            passport: Packed keys `(1, passport_size)`. Defaults to the bound
                ones.

        Returns:
            Tuple `(gamma, beta)` of float32 arrays of shape `(channels,)`,
            whose `repr` shows no value; `None` for a parameter that the
            function does not hide.
        """
        if passport is not None:
            passport = secrecy.hidden(passport)
            received.check_call(self, passport)
            passport = ops.convert_to_tensor(passport, "float32")
        gamma, beta = self._parameters(self._seen(passport))
        return tuple(
            None
            if value is None
            else secrecy.hidden(ops.convert_to_numpy(value)[0])
            for value in (gamma, beta)
        )

    def set_hidden_parameters(
        self, gamma: Tensor = None, beta: Tensor = None
    ) -> None:
        """Gives the bound passport other γ and β by changing the kernel.

        The change is the smallest there is, Σ κ̃ (wanted - κ · W): it stays in
        the span of the keys. A separable layer's pointwise kernel changes.

        Args:
            gamma: Wanted γ, float array of shape `(channels,)`; `None` where
                the function does not hide it.
            beta: Wanted β, of the same shape, or `None`.

        Raises:
            PassportError: If no passport is bound, what is given is not what
                the function hides, or the kernel is frozen.
        """
        kernel, change = self.change_of_kernel(gamma=gamma, beta=beta)
        kernel.assign_add(ops.cast(change, kernel.dtype))

    def change_of_kernel(
        self, gamma: Tensor = None, beta: Tensor = None, size: float = 1.0
    ) -> tuple[Any, Tensor]:
        """The smallest change that gives the bound passport other γ and β.

        Args:
            gamma: As for `set_hidden_parameters`.
            beta: As for `set_hidden_parameters`.
            size: A factor that the kernel is to be multiplied by before.

        Returns:
            Tuple of the variable to change and the change, a float32 tensor
            of its shape.

        Raises:
            PassportError: As `set_hidden_parameters` raises it.
        """
        return duals.change_of_kernel(self, gamma, beta, size)

    def fold_bias(self) -> None:
        """Moves a bias that the normalisation cancels into its mean.

        Outputs stay the same. Where batch statistics normalise, such a bias
        has no effect, but a trained one tells what the layer that reads these
        outputs sees: it must not be published.
        """
        folding.into_mean(self)

    def _parameters(self, packed, kernels=None):
        """γ and β, each (rows, channels), or None where not hidden."""
        return self._by_role(self._respond(packed, kernels), packed.shape[0])

    def _seen(self, passport):
        """The packed keys of a call: those given with it, or its context's."""
        if passport is None:
            passport = access.read(self._secret)
        return row_order.one_passport(self, passport)

    def _respond(self, packed, kernels=None):
        """The kernel's response to packed keys: (rows · roles, channels).

        γ's and β's keys meet the kernel in one product: it is read once. What
        they meet may be known already, as `scopes.Substitution` takes it.
        """
        if kernels is None:
            kernels = row_order.met_by_keys(self, packed)
        keys = packing.keys_in(self, packed)
        with scopes.Substitution(kernels):
            return self.adapter.response(self.layer, keys)

    def _by_role(self, response, rows):
        roles = self.function.roles
        shape = (rows or -1, len(roles), response.shape[-1])
        response = ops.reshape(response, shape)
        values = {
            role: offsets.added(self, role, response[:, i])
            for i, role in enumerate(roles)
        }
        return values.get("gamma"), values.get("beta")

    # Calling ------------------------------------------------------------

    def __call__(self, *args, **kwargs):
        # Before Keras's own messages, which show arguments.
        for passport in (*args[1:2], kwargs.get("passport")):
            if passport is not None:
                received.check_call(self, passport)
        return super().__call__(*args, **kwargs)

    def call(
        self,
        inputs,
        passport=None,
        training=None,
        mask=None,
        inputs_mask=None,
    ):
        # Keras names the argument after the inputs once there are two of them.
        mask = inputs_mask if mask is None else mask
        if passport is not None:
            received.check_call(self, passport)
            access.refuse_constants(passport, self.name)
        if getattr(self.layer, "quantization_mode", None) is not None:
            raise quantization.refused(self.layer)
        assumed = access.read(self._secret, access.PARAMETERS)
        if assumed is not None:
            values = []
            gamma, beta = (ops.expand_dims(value, 0) for value in assumed)
        else:
            values, gamma, beta = decoupling.hidden(self, passport, training)
        if self.identity and assumed is None:
            # Where the original has no normalisation, thawed layers have none.
            training = False
        received.check_rows(self, inputs, gamma, beta)
        gamma, beta = _or_own(gamma, self.gamma), _or_own(beta, self.beta)
        # Who trains γ and β that are assumed wants no gradient of a kernel.
        trains = training and (self.normalization.trainable or assumed)
        if (
            not trains
            and mask is None
            and folding.pays(self, inputs, gamma, beta)
        ):
            outputs = folding.call(self, inputs, gamma, beta, training, values)
            return self.activation(outputs)
        if not assumed:
            values = [*values, *folding.still_bias(self, training)]
        outputs = scopes.call_with(self.layer, inputs, values)
        mask = scopes.mask_after(self.layer, outputs, mask)
        for part in self.between:
            outputs = part(outputs)
            mask = scopes.mask_after(part, outputs, mask)
        outputs = normalization.normalize(
            self.normalization, outputs, gamma, beta, training, mask
        )
        return self.activation(outputs)

    def compute_mask(self, inputs, previous_mask):
        return previous_mask if self.supports_masking else None

    def compute_output_spec(self, inputs, passport=None, **kwargs):
        received.refuse_configured(passport, self.name)
        # Not by tracing `call`: a graph is built before there is a passport.
        outputs = inputs
        for part in (self.layer, *self.between, self.normalization):
            outputs = part.compute_output_spec(outputs)
        return outputs

    def compute_output_shape(self, inputs_shape, passport_shape=None):
        shape = inputs_shape
        for part in (self.layer, *self.between, self.normalization):
            shape = part.compute_output_shape(shape)
        return shape

    # Serialisation ------------------------------------------------------

    def get_config(self):
        config = super().get_config()
        # The same whether the layer is built or not; see `scopes.unbuilt`.
        config["layer"].pop("build_config", None)
        return {
            **config,
            "normalization": self.replaced,
            "function": self.function.name,
            "between": [
                keras.saving.serialize_keras_object(part)
                for part in self.between
            ],
            "activation": keras.activations.serialize(self.activation),
            "decouple": self.decouple,
            "key_groups": self.key_groups,
            "identity": self.identity,
            "ordered": self.ordered,
            # Which versions before this one did not know.
            **{n: v for n in _NEW if (v := getattr(self, n))},
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        for name in ("layer", "normalization"):
            config[name] = scopes.unbuilt(config[name], custom_objects)
        config["between"] = [
            scopes.unbuilt(part, custom_objects) for part in config["between"]
        ]
        return cls(**config)


def _or_own(value, variable):
    """A row of γ or β: the given one, or what the layer holds itself."""
    if value is not None or variable is None:
        return value
    return ops.expand_dims(ops.convert_to_tensor(variable), 0)
