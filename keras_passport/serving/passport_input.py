"""Models that take a passport with every call."""

import functools
from collections.abc import Mapping

import keras
import numpy as np
from keras import ops

from keras_passport import graph, registration, subclasses
from keras_passport.errors import PassportError
from keras_passport.hints import Inputs, Tensor
from keras_passport.layers import decoupling, received, row_order
from keras_passport.layers.passport_normalization import PassportNormalization
from keras_passport.layers.protected import function_of, protected_layers
from keras_passport.models import checks, inputs
from keras_passport.models.protected_model import ProtectedModel
from keras_passport.passports.specs import SPEC_VERSION
from keras_passport.secrecy import hidden, type_of
from keras_passport.serving.one_row import by_batches

INPUT = "passport"


@registration.named_in_hdf5
@keras.saving.register_keras_serializable(package="keras_passport")
class PassportInputModel(ProtectedModel):
    """A protected model with the passport as an input; see `require_passport`.

    It needs no bound passport, so nothing is asked for before a call, and
    `export` is as safe as `export_saved_model`: none of its variables holds a
    key. A passport of another shape or kind is a `PassportError`, before
    Keras's own messages, which show what a model was called with.
    """

    takes_passport = True

    evaluate = by_batches(ProtectedModel.evaluate)
    predict = by_batches(ProtectedModel.predict)

    @functools.wraps(keras.Model.export)
    def export(self, *args, **kwargs):
        with decoupling.values_only():
            return keras.Model.export(self, *args, **kwargs)

    def _checked_call(self, x=None, *args, **kwargs):
        validation = kwargs.get("validation_data")
        if isinstance(validation, (list, tuple)) and validation:
            first, *others = validation
            kwargs["validation_data"] = (self._checked(first), *others)
        # What is no array or structure of arrays is a data set.
        if isinstance(x, (list, tuple, Mapping, np.ndarray)):
            x = self._checked(x)
        return (x, *args), kwargs

    def __call__(self, *args, **kwargs):
        args, kwargs = graph.positional(self, args, kwargs)
        given, *others = args or (None,)
        given = self._checked(given)
        if isinstance(given, Mapping) and len(given) == len(self.inputs):
            given = inputs.restructured(self, given)
        return super().__call__(given, *others, **kwargs)

    def call(self, inputs, training=None, mask=None):
        outputs = super().call(inputs, training=training, mask=mask)
        return row_order.of_one_passport(
            protected_layers(self).values(), self._passport_in(inputs), outputs
        )

    def _passport_in(self, given):
        """The packed passport among inputs, or `None`."""
        if isinstance(given, Mapping):
            return given.get(INPUT)
        flat = keras.tree.flatten(given)
        if isinstance(given, (list, tuple)) and len(flat) == len(self.inputs):
            return flat[[tensor.name for tensor in self.inputs].index(INPUT)]
        return None

    def _checked(self, given):
        """Inputs with a passport among them that Keras will not show.

        Args:
            given: Anything.

        Raises:
            PassportError: If they are no structure of arrays or tensors with
                a packed passport in its place.
        """
        flat = keras.tree.flatten(given)
        passport = self._passport_in(given)
        if passport is None or not all(
            leaf is None or hasattr(leaf, "shape") for leaf in flat
        ):
            names = keras.tree.map_structure(
                lambda tensor: tensor.name, graph.inputs_of(self)
            )
            raise PassportError(
                "Expected arrays or tensors, and the packed passport among "
                f"them: {names}. Received: {received.described(given)}"
            )
        received.check_model(protected_layers(self).values(), passport)
        if not any(ops.is_tensor(leaf) for leaf in flat):
            return given
        # Keras takes tensors or arrays, and shows a mixture of both.
        return keras.tree.map_structure(
            lambda leaf: (
                ops.convert_to_tensor(leaf)
                if isinstance(leaf, np.ndarray)
                else leaf
            ),
            given,
        )


@keras.saving.register_keras_serializable("keras_passport", "AnySizes")
class Functional(keras.Model):
    """A part of a `PassportInputModel` that was a Sequential.

    Like one, it may be called with another size than it was built for. Its
    name is Keras's own for such a part, since weights files have it.
    """

    @property
    def input_spec(self):
        return None

    @input_spec.setter
    def input_spec(self, value):
        pass


def require_passport(model: keras.Model) -> PassportInputModel:
    """A copy of a protected model with one more input, `passport`.

    The product leaves the house without its passport: whoever runs it
    presents one with every call. No variable of the copy holds a key or a
    hidden parameter, whether or not a passport is bound to the model.

    Args:
        model: Protected functional model, bound or not.

    Returns:
        A `PassportInputModel`, uncompiled. Its inputs are the model's, and
        `passport`, float32 of shape `(1 or batch, K)`, last in a list or by
        name in a dict: one row, `Passport.pack`'s, serves the whole batch,
        one row per example gives each its own, or, where kernels' rows are
        in a secret order (`protect_trained`), all the same one. `fit`,
        `evaluate` and `predict` want as many rows as examples: see
        `with_passport`.

    Raises:
        PassportError: If the model is not protected or no functional model,
            or has an input named passport already.

    Example:

    >>> served = kp.require_passport(model)
    >>> packed = passport.pack(kp.passport_spec(served))
    >>> outputs = served([images, packed])

    Reference:

    - Fan, Ng, Chan: Digital Passport, Section 2.3, eqs. 3 to 5.
    """
    spec = passport_spec(model)
    checks.check_graph(model)
    _check_name_is_free(model)
    layers = protected_layers(model)
    bounds = {
        id(layer): (about["offset"], about["offset"] + about["size"])
        for layer, about in zip(layers.values(), spec["layers"], strict=True)
    }
    rewrite = _Requiring(bounds, spec["size"])
    served = graph.rebuild(model, rewrite, PassportInputModel)
    checks.check_reached(layers, rewrite)
    served.claim = getattr(model, "claim", None)
    return served


def _holds_passports(operation) -> bool:
    """Whether passport layers are in a model's graph, or in one within it."""
    return graph.is_model(operation) and any(
        isinstance(child, PassportNormalization) or _holds_passports(child)
        for child in graph.children(operation)
    )


def _check_name_is_free(model):
    """The name of the new input must be new, in nested models as well."""
    structure = graph.inputs_of(model)
    names = {
        *_input_names(model),
        *(structure if isinstance(structure, dict) else ()),
    }
    for layer in graph.children(model):
        names.add(layer.name)
        if _holds_passports(layer):
            _check_name_is_free(layer)
    if INPUT in names:
        raise PassportError(
            f"Expected a model without an input or layer named '{INPUT}'. "
            f"Received: '{model.name}' with inputs {_input_names(model)}"
        )


class _Requiring(graph.Rewrite):
    """Hands the passport, as an input, on to each passport layer.

    Args:
        bounds: Dict from the id of a passport layer to where its part of the
            packed passport begins and ends.
        size: Size of the whole.
    """

    def __init__(self, bounds, size):
        super().__init__()
        self._bounds = bounds
        self._size = size
        self._parts = {}

    def extra_input(self, model):
        if not _holds_passports(model):
            return None
        methods = set(subclasses.overridden(model)) & {"call", "__call__"}
        if methods:
            raise PassportError(
                "Expected a model that takes its inputs as its graph does. "
                f"Received: '{model.name}' ({type(model).__name__}) with its "
                f"own {', '.join(sorted(methods))}, which knows nothing of a "
                "passport as an input. Put what it does into the graph, as a "
                "layer"
            )
        passport = keras.Input((self._size,), name=INPUT, dtype="float32")
        cuts = {
            cut
            for layer in graph.children(model)
            for cut in self._bounds.get(id(layer), ())
        }
        cuts = sorted(cuts - {0, self._size})
        parts = {0: passport}
        if cuts:
            # One operation takes the whole passport apart: at every bound.
            split = ops.split(passport, cuts, axis=1)
            # The name that Keras gives it may be one of the model's own.
            graph.operation_of(split[0]).name = f"{INPUT}_parts"
            parts = dict(zip([0, *cuts], split, strict=True))
        self._parts[id(passport)] = parts
        return passport

    def call(self, operation, new, args, kwargs, extra):
        if id(operation) in self._bounds:
            start, _ = self._bounds[id(operation)]
            kwargs = {**kwargs, INPUT: self._parts[id(extra)][start]}
        elif _holds_passports(operation):
            given = inputs.restructured(operation, args[0])
            args = (graph.with_extra(given, INPUT, extra), *args[1:])
        return new(*args, **kwargs)

    def model_class(self, model):
        if isinstance(model, keras.Sequential) and _holds_passports(model):
            return Functional
        return None


def passport_spec(model: keras.Model) -> dict:
    """How a passport is packed for a model. It holds no secret.

    Args:
        model: Protected model, with or without the passport as an input.

    Returns:
        Dict for JSON: `size`, K, and in the order of packing for each layer
        its `path`, `offset`, `size`, `roles` (γ's key comes before β's),
        `key_shape` (C order) and `geometry`, with which `Passport.pack`
        checks that a passport was made for this architecture.

    Raises:
        PassportError: If the model is not protected.

    Example:

    >>> text = json.dumps(kp.passport_spec(model))
    """
    function = function_of(model)
    layers, offset = [], 0
    for path, layer in protected_layers(model).items():
        layers.append(
            {
                "path": path,
                "offset": offset,
                "size": layer.passport_size,
                "roles": list(function.roles),
                "key_shape": list(layer.geometry.key_shape),
                "geometry": layer.geometry.to_dict(),
            }
        )
        offset += layer.passport_size
    return {
        "version": SPEC_VERSION,
        "function": function.name,
        "size": offset,
        "layers": layers,
    }


def with_passport(inputs: Inputs, packed: Tensor) -> Inputs:
    """Inputs for `fit`, `evaluate` and `predict` of a `PassportInputModel`.

    Keras checks that all inputs have equally many rows, so one row is
    repeated, without being copied; `evaluate` and `predict` hand each batch
    one. `fit` copies all rows, which are long where kernels' rows are in
    secret orders (`protect_trained`): train what a passport is bound to.

    Args:
        inputs: Array, or list or dict of arrays, as the model without the
            passport takes them.
        packed: float32 array `(1, K)`, of `Passport.pack`, or with one row
            per example.

    Returns:
        The inputs in the structure that the model takes.

    Raises:
        PassportError: If it is no packed passport, or has another number of
            rows than 1 and the examples.

    Example:

    >>> served = kp.require_passport(model)
    >>> packed = passport.pack(kp.passport_spec(served))
    >>> scores = served.predict(kp.with_passport(images, packed), verbose=0)
    """
    packed = hidden(packed)
    rows = {
        len(given) for given in keras.tree.flatten(inputs) if given is not None
    }
    shape = getattr(packed, "shape", None)
    if (
        not isinstance(packed, np.ndarray)
        or packed.ndim != 2
        or not rows
        or packed.shape[0] not in (1, *rows)
    ):
        raise PassportError(
            "Expected a packed passport of shape (1 or "
            f"{', '.join(map(str, sorted(rows)))}, K). "
            f"Received: a {type_of(packed)}, shape={shape}"
        )
    received.check(packed, None)
    rows = max(rows) if packed.shape[0] == 1 else packed.shape[0]
    if packed.dtype == "float64":
        packed = packed.astype("float32")
    return graph.with_extra(
        inputs, INPUT, np.broadcast_to(packed, (rows, packed.shape[1]), True)
    )


def _input_names(model) -> list[str]:
    """Names of a model's inputs, in the order of their structure."""
    return [graph.operation_of(tensor).name for tensor in model.inputs]
