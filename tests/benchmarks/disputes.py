"""What `ownership.verify` says of everything that was made of a network.

    python tests/benchmarks/disputes.py --original=original.keras \
        --dataset=cifar10 --foreign=30 --out=disputes.json
    python tests/benchmarks/disputes.py --original=original.keras \
        --dataset=cifar10 --function=V1 --only=RevA --out=disputes-V1.json
    python tests/benchmarks/disputes.py --run_dir=runs/... --out=disputes.json

The network is a trained one that is claimed and protected exactly, or
fine-tuned under a claimed passport, or that of a run with `--owner`. Thieves
unlock it, train it on, prune it until it has lost five points, quantise it,
rewrite it, or train γ and β anew; foreign ones are of the same architecture,
trained each on its own for `--foreign_steps`; forgers make keys to order, or
negate filters until the signs are theirs. A finished row is not made again.
"""

import json
import pathlib
import sys

import keras
import numpy as np
from absl import app, flags
from keras import ops

import keras_passport as kp
from keras_passport import attacks, ownership
from keras_passport.attacks.forgery import forge_passport
from keras_passport.files import write_json
from keras_passport.models.unlocking import with_parameters

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "examples"))

from common import data as datasets  # noqa: E402

_ORIGINAL = flags.DEFINE_string("original", None, "A .keras file.")
_RUN_DIR = flags.DEFINE_string("run_dir", None, "Of a trainer with --owner.")
_FUNCTION = flags.DEFINE_enum(
    "function", None, ["V1", "V2", "V3"], "Fine-tunes under it; exact if none."
)
_TUNING = flags.DEFINE_integer("tuning_steps", 700, "Of that, batch 64.", 1)
_ONLY = flags.DEFINE_list("only", None, "Rows to make; all if none.")
_DATASET = flags.DEFINE_string("dataset", "cifar10", "As the trainers' flag.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Likewise.")
_EPOCHS = flags.DEFINE_integer("epochs", 5, "Of fine-tuning and RevA.", 1)
_FRACTION = flags.DEFINE_float("fraction", 0.1, "Of the data they have.", 0, 1)
_FAKES = flags.DEFINE_integer("fakes", 100, "Foreign passports to try.", 2)
_PICTURES = flags.DEFINE_integer("pictures", 2000, "The judge's.", 1)
_FOREIGN = flags.DEFINE_integer("foreign", 30, "Independent networks.", 0)
_STEPS = flags.DEFINE_integer("foreign_steps", 100, "Of each's training.", 1)
_OUT = flags.DEFINE_string("out", "disputes.json", "File of the rows.")


class Case:
    """The owner's side, the thieves' data, and the rows so far."""

    def __init__(self):
        data = datasets.load(_DATASET.value, _DATA_DIR.value)
        self.data = data
        self.train = data.normalize(data.x_train), data.y_train
        self.test = data.test_examples(_PICTURES.value)
        keras.utils.set_random_seed(0)
        if _RUN_DIR.value:
            self.of_run(pathlib.Path(_RUN_DIR.value))
        else:
            self.of_original(_ORIGINAL.value)
        self.public = kp.public(self.model)
        self.parameters = {
            path: layer.hidden_parameters()
            for path, layer in kp.protected_layers(self.model).items()
        }
        self.out = pathlib.Path(_OUT.value)
        self.rows = (
            json.loads(self.out.read_text()) if self.out.exists() else {}
        )

    def of_run(self, folder):
        self.base = keras.saving.load_model(folder / "owner/original.keras")
        self.passport = kp.Passport.load(folder / "owner/passport.h5")
        self.model = kp.bind(
            keras.saving.load_model(folder / "public/protected.keras"),
            self.passport,
        )
        self.evidence = ownership.Evidence(
            ownership.Claim.load(folder / "public/claim.json"),
            ownership.Opening.load(folder / "owner/opening.json"),
            self.passport,
            kp.public(self.model),
            self.base if self.passport.images is not None else None,
            ownership.Record.load(folder / "owner/record.json"),
            dated="2026-01-02",
        )

    def of_original(self, path):
        self.base = keras.saving.load_model(path, compile=False)
        secret = ownership.new_secret()
        seed = ownership.passport_seed(secret)
        if _FUNCTION.value:
            self.model = kp.protect(self.base, function=_FUNCTION.value)
            self.passport = kp.Passport.random_pattern(self.model, seed=seed)
            kp.calibrate(kp.bind(self.model, self.passport), like=self.base)
            self.fit(self.model, 1, 1.0, _TUNING.value)
        else:
            self.model, self.passport = kp.protect_trained(
                self.base,
                seed=seed,
                order=False,
                signs=ownership.Signature(secret, "Ada Ltd"),
            )
        claim, opening = ownership.claim(
            self.passport, owner="Ada Ltd", model=self.model, secret=secret
        )
        self.evidence = ownership.Evidence(
            claim,
            opening,
            self.passport,
            kp.public(self.model),
            record=ownership.record(self.model, self.passport, self.test),
            dated="2026-01-02",
        )

    def row(self, name, make, expected, **options):
        """Verifies what `make` returns, unless that was done before."""
        if name in self.rows or (_ONLY.value and name not in _ONLY.value):
            return
        suspect = make()
        evidence = options.pop("evidence", self.evidence)
        report = ownership.verify(
            suspect, evidence, self.test, fakes=_FAKES.value, **options
        )
        self.rows[name] = {
            "verdict": report.verdict,
            "expected": expected,
            "accuracy": self.accuracy(suspect),
            "reason": report.reason,
            "false_positive": report.false_positive,
            **{
                step.name: {"holds": step.holds, "figure": step.figure}
                | {"null": step.null, "p": step.p}
                for step in report.steps
            },
        }
        write_json(self.out, self.rows)
        print(f"{name:14} {report.verdict:10} {report.reason}", flush=True)

    def accuracy(self, model):
        if kp.protected_layers(model):
            return None  # Whatever it is under no passport.
        x, y = self.test
        return float(np.mean(model.predict(x, 500, verbose=0).argmax(-1) == y))

    def fit(self, model, epochs, fraction, steps=None, rate=0.01):
        """Trains an ordinary model on, on a part of the training set."""
        x, y = self.train
        chosen = np.random.default_rng(1).permutation(len(y))
        chosen = chosen[: round(fraction * len(y))]
        if steps is not None:
            chosen = chosen[: 64 * steps]
        model.compile(
            keras.optimizers.SGD(rate, momentum=0.9),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
        model.fit(x[chosen], y[chosen], 64, epochs, verbose=0)
        return model


def main(_):
    case = Case()
    unlocked = lambda: kp.unlock(case.model, case.passport, fold=False)  # noqa: E731
    made = {
        "published": lambda: case.public,
        "unlocked": unlocked,
        "folded": lambda: kp.unlock(case.model, case.passport),
        "permuted": lambda: attacks.permute_channels(case.public).model,
        "negated": lambda: attacks.flip_signs(case.public, seed=1).model,
        "rescaled": lambda: attacks.scale_filters(case.public).model,
        "rewritten": lambda: rewritten(case),
        "int8": lambda: quantized(unlocked()),
        "pruned": lambda: pruned(case, unlocked()),
        "fine-tuned": lambda: case.fit(
            kp.restore_statistics(
                unlocked(), np.split(case.train[0][:2000], 4)
            ),
            _EPOCHS.value,
            _FRACTION.value,
        ),
        "RevA": lambda: recovered(case),
    }
    for name, make in made.items():
        case.row(name, make, "derived")
    for name, negates in (("forged keys", False), ("negated signs", True)):
        # V2 has no hidden γ whose signs a thief could make his.
        impossible = negates and _FUNCTION.value == "V2"
        if impossible or (_ONLY.value and name not in _ONLY.value):
            continue
        rival = forger(case, negates)
        case.row(
            name,
            lambda rival=rival: rival.published,
            "contested",
            rivals=[rival],
        )
    case.row(
        "another's",
        lambda: case.public,
        "not shown",
        evidence=stranger(case),
    )
    foreign = []
    for number in range(0 if _ONLY.value else _FOREIGN.value):
        network = fresh(case.base, number)
        foreign.append(case.fit(network, 1, 1.0, _STEPS.value, 0.05))
    if foreign:
        case.row("independent", lambda: foreign[0], "not shown")
        case.row("with nulls", unlocked, "derived", foreign=foreign)


def fresh(base, seed):
    """The same architecture; initializers of a clone repeat their draws."""
    model = keras.models.clone_model(base)
    rng = np.random.default_rng([2, seed])
    for variable in kernels(model):
        size = np.sqrt(2 / np.prod(variable.shape[:-1]))
        variable.assign(size * rng.normal(size=variable.shape))
    return model


def rewritten(case):
    model, parameters = case.public, case.parameters
    for rewrite in (
        attacks.permute_channels,
        attacks.flip_signs,
        attacks.scale_filters,
    ):
        done = rewrite(model, seed=5)
        model, parameters = done.model, done.parameters(parameters)
    return with_parameters(model, parameters, fold=False)


def kernels(model):
    return [w for w in model.weights if len(w.shape) > 1]


def quantized(model):
    """Kernels of int8: one of 255 values for each filter."""
    for variable in kernels(model):
        values = ops.convert_to_numpy(variable)
        step = np.abs(values).max(tuple(range(values.ndim - 1))) / 127
        variable.assign(np.round(values / np.maximum(step, 1e-30)) * step)
    return model


def pruned(case, model):
    """Without their smallest weights, until five points are lost."""
    before = case.accuracy(model)
    whole = [ops.convert_to_numpy(v).copy() for v in kernels(model)]
    for hundredths in range(5, 100, 5):
        for variable, values in zip(kernels(model), whole, strict=True):
            values = values.copy()
            smallest = np.argsort(np.abs(values), axis=None)
            values.flat[smallest[: values.size * hundredths // 100]] = 0.0
            variable.assign(values)
        if case.accuracy(model) <= before - 0.05:
            break
    print(f"pruned: {hundredths} % of the weights")
    return model


def recovered(case):
    return attacks.reverse_engineering(
        case.public,
        case.train,
        case.test,
        fraction=_FRACTION.value,
        recipe=attacks.Recipe(
            epochs=_EPOCHS.value,
            batch_size=60,
            optimizer="adam",
            learning_rate=0.005,
        ),
        keep_model=True,
    ).model


def forger(case, negates):
    """Somebody with γ and β: keys to order, or filters with signs of theirs."""
    public, parameters = case.public, case.parameters
    secret = ownership.new_secret()
    if negates:
        signature = ownership.Signature(secret, "Eve")
        public, parameters = kp.public(public), dict(parameters)
        for path, layer in kp.protected_layers(public).items():
            gamma, beta = parameters[path]
            flips = np.asarray(signature(path, len(gamma))) * np.where(
                gamma < 0, -1.0, 1.0
            )
            negated = [layer.layer.kernel, layer.normalization.moving_mean]
            if layer.layer.use_bias:
                negated.append(layer.layer.bias)
            for variable in negated:
                variable.assign(ops.convert_to_numpy(variable) * flips)
            parameters[path] = gamma * flips, beta
    passport, _ = forge_passport(public, parameters)
    claim, opening = ownership.claim(
        passport, owner="Eve", model=public, secret=secret
    )
    return ownership.Evidence(
        claim, opening, passport, public, dated="2026-03-01"
    )


def stranger(case):
    """Somebody with the published network and nothing else."""
    passport = kp.Passport.random_pattern(case.public)
    claim, opening = ownership.claim(passport, owner="Eve", model=case.public)
    return ownership.Evidence(
        claim, opening, passport, case.public, dated="2025-01-01"
    )


if __name__ == "__main__":
    app.run(main)
