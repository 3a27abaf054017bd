"""What the size and the directions of keys cost, and what they hide.

    python tests/benchmarks/hardening.py --data_dir=DIR --json=hardening.json

A ResNet-14 of width 16 on CIFAR-10 scaled down to 16x16 pixels, for each kind
of passport, key scaling and gradient: accuracy with the valid passport, fakes
of the same kind, RevA from 1 and 0 and from what the spectral attack finds,
and how much the kernels show of the keys: the length of their first left
singular vectors' part in the keys' plane (1: all of it), mean and maximum over
the layers, and the kernels' energy in that plane over what any plane of the
same size holds on average. Finished rows of --json are not measured again.
"""

import pathlib
import sys
import tempfile

import keras
import numpy as np
from absl import app, flags

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "examples"))

import keras_passport as kp  # noqa: E402
from common import data, networks, training  # noqa: E402
from common.rundir import read_json, write_json  # noqa: E402
from keras_passport import attacks  # noqa: E402

_DATA_DIR = flags.DEFINE_string("data_dir", None, "As for the trainers.")
_JSON = flags.DEFINE_string("json", "hardening.json", "Where results go.")
_EXAMPLES = flags.DEFINE_integer("examples", 15_000, "To train on.")
_EPOCHS = flags.DEFINE_integer("epochs", 5, "Of every training.")
_SEED = flags.DEFINE_integer("seed", 0, "Of weights and passports.")
_FUNCTION = flags.DEFINE_string("function", "V3", "V1, V2 or V3.")
_PRECISION = flags.DEFINE_enum(
    "mixed_precision", "none", ["none", "bfloat16"], "As for the trainers."
)
_RESTARTS = flags.DEFINE_integer("restarts", 3, "Of the spectral attack.")
_ROWS = flags.DEFINE_list(
    "rows",
    [
        f"{kind}:{row}"
        for kind in ("random_image", "fixed_image", "random_pattern")
        for row in (
            "paper:coupled",
            "unit:coupled",
            "fan_in:coupled",
            "orthogonal:coupled",
            "unit:decoupled",
            "fan_in:decoupled",
            "orthogonal:decoupled",
        )
    ],
    "KIND:SCALING:GRADIENT. Decoupled ones start from γ = 1 or -1 and β = 0 "
    "(kp.calibrate), coupled ones as initialised. orthogonal*0.5 has keys of "
    "half the size; fan_in*warm has keys that grow from a tenth of their size "
    "to all of it in the first half of the epochs, while γ and β stay.",
)

# Pictures that judge, that fakes are judged on, and that an attacker has.
_JUDGE, _FAKES, _ATTACKER = 5000, 1000, 1500


def small_cifar() -> tuple[data.Dataset, tuple]:
    """The data to train on, and an attacker's own."""
    whole = data.load("cifar10", _DATA_DIR.value)

    def halve(x):
        x = x.reshape(-1, 16, 2, 16, 2, 3).mean((2, 4))
        return np.round(x).astype("uint8")

    count = _EXAMPLES.value
    dataset = data.Dataset(
        "cifar10 at 16x16",
        x_train=halve(whole.x_train[:count]),
        y_train=whole.y_train[:count],
        x_test=halve(whole.x_test[:_JUDGE]),
        y_test=whole.y_test[:_JUDGE],
        **{**data.SOURCES["cifar10"].properties, "pad": 2},
    )
    rest = slice(count, count + _ATTACKER)
    mine = dataset.normalize(halve(whole.x_train[rest])), whole.y_train[rest]
    return dataset, mine


def train(
    model: keras.Model, dataset: data.Dataset, watch: "Sizes | None" = None
) -> keras.Model:
    recipe = training.Recipe(_EPOCHS.value, 128, 0.1, 5e-4, _SEED.value)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "checkpoint.h5")
        training.train(model, dataset, recipe, path, watch)
    return model


class Sizes:
    """Binds keys of a size that changes from epoch to epoch.

    Args:
        model: protected.
        passport: its passport.
        sizes: what the keys are multiplied with in each epoch; the last holds
            for all that follow.
    """

    def __init__(
        self, model: keras.Model, passport: kp.Passport, sizes: list[float]
    ):
        self._layers = kp.protected_layers(model)
        self._keys = passport.keys(model)
        self._sizes = sizes
        self._epoch = 0
        kp.bind(model, passport)
        self._bind(sizes[0])

    def start(self) -> None:
        """Before an epoch: other keys, the same γ and β."""
        if 0 < self._epoch < len(self._sizes):
            hidden = {p: v.hidden_parameters() for p, v in self._layers.items()}
            self._bind(self._sizes[self._epoch])
            for path, layer in self._layers.items():
                layer.set_hidden_parameters(*hidden[path])
        self._epoch += 1

    def measure(self) -> dict[str, float]:
        return {}

    def _bind(self, size: float) -> None:
        for path, layer in self._layers.items():
            keys = self._keys[path]
            layer.bind_keys(**{role: size * key for role, key in keys.items()})


def sizes(factor: str) -> list[float]:
    """What keys are multiplied with, epoch by epoch."""
    if factor == "warm":
        return list(np.geomspace(1 / 10, 1, (_EPOCHS.value + 1) // 2))
    return [float(factor or 1)]


def traces(model: keras.Model, passport: kp.Passport) -> dict:
    """What the kernels show of the keys."""
    first, energies = [], []
    keys = passport.keys(model)
    for path, layer in kp.protected_layers(model).items():
        kernel = keras.ops.convert_to_numpy(layer.layer.kernel)
        kernel = kernel.reshape(-1, kernel.shape[-1])
        pair = np.stack([key.ravel() for key in keys[path].values()])
        plane = np.linalg.qr(pair.T)[0]
        vector = np.linalg.svd(kernel, full_matrices=False)[0][:, 0]
        first.append(np.linalg.norm(plane.T @ vector))
        energy = np.sum((plane.T @ kernel) ** 2) / np.sum(kernel**2)
        energies.append(energy * len(kernel) / len(pair))
    return {
        "trace": float(np.mean(first)),
        "largest_trace": float(np.max(first)),
        "energy": float(np.mean(energies)),
    }


def measure(row, original, dataset, mine) -> dict:
    """All that is measured of one protected network, in per cent."""
    kind, scaling, gradient = row.split(":")
    scaling, _, factor = scaling.partition("*")
    model = kp.protect(original, function=_FUNCTION.value)
    for layer in kp.protected_layers(model).values():
        layer.decouple = gradient == "decoupled"
    kp.reinitialize(model, seed=_SEED.value)
    rng = np.random.default_rng(_SEED.value)
    options = {"key_scaling": scaling}
    fakes = dict(options)
    if kind == "random_pattern":
        passport = kp.Passport.random_pattern(
            model, seed=_SEED.value, **options
        )
    else:
        count = 20 if kind == "random_image" else len(_roles(model))
        chosen = rng.choice(len(dataset.x_train), count, replace=False)
        passport = getattr(kp.Passport, kind)(
            model,
            dataset.normalize(dataset.x_train[chosen]),
            reference=original,
            seed=_SEED.value,
            **options,
        )
        fakes.update(images=mine[0][:60], reference=original)
    watch = Sizes(model, passport, sizes(factor))
    if gradient == "decoupled":
        kp.calibrate(model)
    train(model, dataset, watch)
    test = dataset.normalize(dataset.x_test), dataset.y_test
    tried = attacks.fake_passports(
        model,
        kind,
        50,
        tuple(array[:_FAKES] for array in test),
        seed=_SEED.value,
        **fakes,
    )
    result = {
        "valid": _accuracy(model, test),
        "fakes": 100 * tried.mean,
        "best_fake": 100 * tried.accuracy,
        **traces(model, passport),
    }
    seed = _SEED.value
    reverse = attacks.reverse_engineering(model, mine, test, seed=seed)
    result["reva"] = 100 * reverse.accuracy
    found = attacks.spectral(
        model, mine, test, restarts=_RESTARTS.value, seed=seed
    )
    result["spectral"] = 100 * found.accuracy
    start = found.history[found.chosen]["parameters"]
    reverse = attacks.reverse_engineering(
        model, mine, test, start=start, seed=seed
    )
    result["spectral_reva"] = 100 * reverse.accuracy
    return result


def _roles(model):
    return next(iter(kp.protected_layers(model).values())).function.roles


def _accuracy(model, test):
    predicted = training.predict_labels(model, test[0])
    return 100 * float(np.mean(predicted == test[1]))


def main(_):
    path = pathlib.Path(_JSON.value)
    results = read_json(path) or {}
    dataset, mine = small_cifar()
    keras.utils.set_random_seed(_SEED.value)
    with training.precision(_PRECISION.value):
        original = networks.resnet((16, 16, 3), 10, depth=14, width=16)
    train(original, dataset)
    test = dataset.normalize(dataset.x_test), dataset.y_test
    unprotected = _accuracy(original, test)
    print(f"original: {unprotected:.1f}")
    for row in _ROWS.value:
        name = ":".join(
            str(setting)
            for setting in (
                *(_FUNCTION.value, row, _EXAMPLES.value, _EPOCHS.value),
                *(_PRECISION.value, _RESTARTS.value, _SEED.value),
            )
        )
        if name not in results:
            # Each row leaves compiled functions behind.
            keras.utils.clear_session()
            found = measure(row, original, dataset, mine)
            found["inconsistency"] = unprotected - found["valid"]
            results[name] = found
            write_json(path, results)
        numbers = ", ".join(f"{k} {v:.2f}" for k, v in results[name].items())
        print(f"{name}: {numbers}", flush=True)


if __name__ == "__main__":
    app.run(main)
