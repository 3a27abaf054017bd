"""`protect`: an ordinary Keras model becomes one that needs a passport."""

import random

import keras

from keras_passport import graph, subclasses
from keras_passport.errors import PassportError
from keras_passport.layers.passport_normalization import PassportNormalization
from keras_passport.layers.protected import function_of, protected_layers
from keras_passport.models import checks, compiling, composites, forgetting
from keras_passport.models.protected_model import ProtectedModel
from keras_passport.models.report import PassportReport
from keras_passport.models.sites import Plan, Selection
from keras_passport.passports import functions
from keras_passport.passports.derivation import derive, secret_seed


def protect(
    model: keras.Model,
    function: str | functions.PassportFunction = "V3",
    select: Selection = None,
    insert: bool = False,
) -> ProtectedModel:
    """Clones a model with passport layers in place of its normalisations.

    Every batch, layer or group normalisation that directly follows a kernel
    layer, and is the only one to read it, becomes one with that layer: a
    `PassportNormalization` under the kernel layer's name. Weights, names,
    dtype policies and `trainable` flags carry over; the source is unchanged.

    Args:
        model: Functional or built Sequential model, with nested ones or
            without. Its weights are copied.
        function: Passport function of all layers: `"V1"`, `"V2"` or `"V3"`
            (Table 1). V1 and V2 are for comparison: what they publish, β and
            statistics or γ, is enough for an attacker with few labels.
        select: Which kernel layers to protect: a path or an iterable of
            paths, a compiled regular expression that is searched for in the
            path, or a function of `(path, layer)` that returns whether to.
            Defaults to all.
        insert: Whether to protect kernel layers without a normalisation too
            (VGG, AlexNet), by inserting a batch normalisation before their
            activation. It changes what the model computes, so it must be
            trained. The last kernel layers, the classifier, are left alone
            unless `select` names them.

    Returns:
        A `ProtectedModel`. Its `report` attribute, a `PassportReport`, says
        what was done with each layer. If the source was compiled, it is
        compiled in the same way, with a new optimizer and new metrics.

    Raises:
        PassportError: If the model has no graph, nothing in it can be
            protected, or `select` names a layer that can't be.
        ValueError: If it is no built model of Keras 3.

    Example:

    >>> base = keras.Sequential([
    ...     keras.Input((8, 8, 3)),
    ...     keras.layers.Conv2D(4, 3, name="conv"),
    ...     keras.layers.BatchNormalization(),
    ... ])
    >>> kp.protect(base).report.protected
    ['conv']

    Reference:

    - Fan, Ng, Chan: Digital Passport, Sections 2.2 and 2.3.
    """
    function = functions.get(function)
    check_source(model)
    if protected_layers(model) and function_of(model) != function:
        raise PassportError(
            "Expected the function of the layers that are protected already, "
            f"{function_of(model).name}. Received: function={function.name}"
        )
    plan = Plan(model, function, select, insert)
    if not plan.report.protected:
        raise PassportError(
            "Expected a model with a batch, layer or group normalisation "
            "directly after a kernel layer (Dense, or a convolution of any "
            f"kind). {_insertable(model, function, insert)}"
            f"Received: model '{model.name}' with nothing to protect\n"
            f"{plan.report}"
        )
    protected = graph.rebuild(model, Protecting(plan, function), ProtectedModel)
    protected.report = plan.report
    compiling.compile_like(model, protected)
    return protected


def inspect(
    model: keras.Model,
    function: str | functions.PassportFunction = "V3",
    select: Selection = None,
    insert: bool = False,
) -> PassportReport:
    """What `protect` would do with a model, or did: nothing is cloned.

    Args:
        model: Functional or built Sequential model, protected or not.
        function: As for `protect`; a protected model's own is reported.
        select: As for `protect`.
        insert: As for `protect`.

    Returns:
        A `PassportReport`. Of a protected model, without `select` and
        `insert`, what is protected; with them, what a second `protect` would
        make of it.

    Raises:
        PassportError: If the model has no graph.
        ValueError: If it is no built model of Keras 3.

    Example:

    >>> print(kp.inspect(base))
    layer    type                passport  why
    conv1    Conv2D              V3        with 'bn1'
    bn1      BatchNormalization  V3        becomes one with 'conv1'
    ...
    2 of 3 kernel layers protected
    """
    check_source(model)
    if protected_layers(model):
        function = function_of(model)
        if select is None and not insert:
            select = ()  # What is protected, not what else could be.
    return Plan(model, functions.get(function), select, insert).report


def reinitialize(
    model: keras.Model, seed: bytes | int | None = None
) -> keras.Model:
    """Gives a model the weights of an untrained one.

    The paper finds that a protected network trains better from scratch than
    from a trained network's kernels (Section 2.3, Figure 3).

    Kernels that were trained are still like those that they began as. Keras
    draws these from one of 10⁹ seeds for each, or from the one seed of a
    script, and who draws them again undoes a secret order of rows after a
    short training. So train what is to be protected from weights that follow
    from a secret: unless `seed` is an integer, each kernel's numbers are put
    in an order of its own.

    Args:
        model: Functional or Sequential model, protected or not.
        seed: An integer, for weights that anybody can draw again; or a
            secret of 16 bytes or more, such as a passport's. Defaults to one
            from `secrets`, which nobody has.

    Returns:
        The model itself.

    Raises:
        PassportError: If it has no graph, or the seed is too short a secret.
    """
    checks.check_graph(model)
    secret = None if isinstance(seed, int) else secret_seed(seed)
    state = random.getstate()
    try:
        # Initialisers without a seed draw one from here.
        random.seed(seed if secret is None else derive(secret, "initial"))
        fresh = graph.rebuild(model, state=False)
    finally:
        random.setstate(state)
    if secret is not None:
        forgetting.shuffle_kernels(fresh, secret)
    for old, new in zip(fresh.weights, model.weights, strict=True):
        graph.copy_variable(old, new)
    return model


def check_source(model) -> None:
    """Raises an error unless it is a model that can be rebuilt."""
    if not isinstance(model, keras.Model):
        if type(model).__module__.partition(".")[0] == "tf_keras":
            raise ValueError(
                "Expected a model of Keras 3. Received: a tf_keras (Keras 2) "
                f"model, '{model.name}'. Save it with model.save('model.h5'), "
                "load that with keras.saving.load_model('model.h5') and "
                "protect what you get; where Keras 3 refuses a layer's "
                "arguments, build the network with Keras 3 and hand the "
                "weights over: new.set_weights(old.get_weights())"
            )
        raise ValueError(
            f"Expected model to be a keras.Model. Received: model={model!r}"
        )
    if isinstance(model, keras.Sequential) and not model.built:
        raise ValueError(
            "Expected a built model. Received: Sequential model "
            f"'{model.name}' without an input shape; call "
            "model.build(input_shape) or add a keras.Input first"
        )
    checks.check_graph(
        model,
        ". Where its `call` is made of Keras layers and operations alone, "
        "`inputs = keras.Input(...)` and "
        "`keras.Model(inputs, model.call(inputs))` make a functional model of "
        "it. Else use the layer in its place: "
        "keras_passport.PassportNormalization(keras.layers.Conv2D(...)) "
        "instead of the convolution and its normalisation",
    )
    for part in (model, *(layer for _, layer in graph.walk(model))):
        if graph.is_model(part):
            subclasses.own_class(part)


def _insertable(model, function, insert) -> str:
    """A sentence on what `insert=True` would do for this model."""
    if insert:
        return ""
    count = len(Plan(model, function, None, insert=True).report.protected)
    if not count:
        return ""
    return (
        f"With insert=True, batch normalisations would be inserted after "
        f"{count} kernel layers. "
    )


class Protecting(graph.Rewrite):
    """Puts a passport layer in the place of each site of a plan.

    Args:
        plan: `sites.Plan` of the model.
        function: Passport function of the new layers.
    """

    def __init__(self, plan, function):
        super().__init__()
        self._plan = plan
        self._function = function

    def make(self, operation):
        if id(operation) in self._plan.merged:
            return None
        site = self._plan.sites.get(id(operation))
        if site is None:
            return super().make(self._plan.opened.get(id(operation), operation))
        kernel = graph.clone(site.kernel)
        activation, options = None, self.options(kernel)
        if site.normalization is None:
            # Scale and shift stand before the activation, as in Figure 2.
            activation = getattr(kernel, "activation", None)
            kernel.activation = keras.activations.linear
            # Of what the layer gives out, not of what its kernel does.
            options["activity_regularizer"] = kernel.activity_regularizer
            kernel.activity_regularizer = None
        return PassportNormalization(
            kernel,
            normalization=site.normalization,
            function=self._function,
            between=[graph.clone(layer) for layer in site.between],
            activation=activation,
            **options,
        )

    def options(self, kernel) -> dict:
        """Others of the passport layer's arguments, by its kernel layer."""
        return {}

    def call(self, operation, new, args, kwargs, extra):
        if id(operation) in self._plan.opened:
            given = composites.tensors(args, kwargs)
            args = given if len(given) == 1 else [given]
            kwargs = {k: v for k, v in kwargs.items() if k == "training"}
        site = self._plan.sites.get(id(operation))
        if site is not None:
            kwargs = {**kwargs, **site.arguments}
        return new(*args, **kwargs)

    def size(self, model):
        return self._plan.sizes.get(id(model))

    def copy_state(self, layer, new):
        site = self._plan.sites.get(id(layer))
        if site is None:
            super().copy_state(layer, new)
            return
        if layer is site.kernel:
            graph.copy_state(layer, new.layer)
        _copy_trainable(site, new)
        self.take_over(site, new)

    def take_over(self, site, wrapper):
        """Copies what a normalisation holds to the layer in its place.

        Args:
            site: The `Site`.
            wrapper: Its passport layer, which has the weights of the kernel
                layer already, if there is one.
        """
        if site.normalization is not None:
            _copy_normalization(site.normalization, wrapper)
        wrapper.fold_bias()


def _copy_trainable(site, wrapper):
    pairs = [(site.kernel, wrapper.layer)]
    if site.normalization is not None:
        pairs.append((site.normalization, wrapper.normalization))
    trainable = any(source.trainable for source, _ in pairs)
    if wrapper.trainable != trainable:
        wrapper.trainable = trainable
    for source, target in pairs:
        graph.copy_trainable(source, target)
    for role in ("gamma", "beta"):
        variable = getattr(wrapper, role)
        if variable is not None:
            # An inserted normalisation's has nothing to copy from.
            source = getattr(site.normalization, role, None)
            variable.trainable = (
                wrapper.normalization.trainable
                if source is None
                else source.trainable
            )


def _copy_normalization(source, wrapper):
    """Statistics, and what the passport function leaves trainable."""
    values = {variable.name: variable for variable in source.variables}
    for variable in (
        *wrapper.normalization.variables,
        *(v for v in (wrapper.gamma, wrapper.beta) if v is not None),
    ):
        graph.copy_variable(values[variable.name], variable)
