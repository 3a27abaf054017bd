"""The nets that benchmarks measure, by name."""

import pathlib
import sys

import keras
import numpy as np
from absl import flags

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "examples"))

import keras_passport as kp  # noqa: E402
from common import networks  # noqa: E402
from keras_passport.layers import normalization  # noqa: E402

_NET = flags.DEFINE_string(
    "net",
    "resnet18",
    "resnet18 or resnet20 (CIFAR), or a name in keras.applications.",
)
_SIZE = flags.DEFINE_integer("size", 32, "Pixels a side.")
_BATCH = flags.DEFINE_integer("batch", 64, "Pictures a call or step.")
_POLICY = flags.DEFINE_string(
    "policy", "float32", "Keras's dtype policy, such as mixed_bfloat16."
)


def build() -> keras.Model:
    """The net of the flags; its statistics are not those of a new one."""
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(_POLICY.value)
    shape = (_SIZE.value, _SIZE.value, 3)
    if _NET.value == "resnet18":
        base = networks.resnet(shape, 10, depth=18, width=64)
    elif _NET.value == "resnet20":
        base = networks.resnet(shape, 10, depth=20, width=16)
    else:
        base = getattr(keras.applications, _NET.value)(
            weights=None, input_shape=shape, classifier_activation=None
        )
    return kp.estimate_statistics(base, [pictures(4)])


class FusedNormalization(keras.layers.BatchNormalization):
    """Batch normalisation with γ and β of its own, as passport layers do it."""

    def call(self, inputs, training=None, mask=None):
        gamma, beta = self.gamma.value[None], self.beta.value[None]
        return normalization.normalize(self, inputs, gamma, beta, training)


def renormalized(base: keras.Model, normalization_class=None) -> keras.Model:
    """A copy with other batch normalisations, or none."""

    def call(layer, *args, **kwargs):
        if isinstance(layer, keras.layers.BatchNormalization):
            if normalization_class is None:
                return args[0]
            layer = normalization_class.from_config(layer.get_config())
        return layer(*args, **kwargs)

    return keras.models.clone_model(
        base,
        clone_function=lambda layer: layer.from_config(layer.get_config()),
        call_function=call,
    )


def training_step(model: keras.Model, x: np.ndarray):
    """Compiles the model as Keras does, and returns a function: its step.

    It learns so slowly that values stay finite: NaN would change its speed.
    """
    y = np.random.default_rng(0).integers(0, 10, len(x))
    model.compile(
        keras.optimizers.SGD(1e-6, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )

    def step():
        loss = model.train_on_batch(x, y)
        if not np.isfinite(loss):
            raise ValueError(f"Expected a finite loss. Received: {loss}")

    return step


def pictures(count: int | None = None) -> np.ndarray:
    """A batch of random pictures."""
    shape = (count or _BATCH.value, _SIZE.value, _SIZE.value, 3)
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def title(what: str, base: keras.Model) -> str:
    """What is measured, of which net, at which size."""
    return f"{what}, {base.name}, {_SIZE.value} pixels, batch {_BATCH.value}"
