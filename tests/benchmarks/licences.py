"""A thousand licences to one network: what they cost, and when they are lost.

    python tests/benchmarks/licences.py --original=original.keras \
        --dataset=cifar10 --licences=1000 --out=licences.json

The network is a trained one, protected exactly, or that of a run. Measured
are the null-space mark's change of the outputs, the accuracy under both marks,
what becomes of leaks in five forms, of averages and mixtures of five keys, and
which mark outlives which noise, pruning and fine-tuning. A finished row is not
made again.
"""

import json
import pathlib
import sys

import keras
import numpy as np
from absl import app, flags
from keras import ops

import keras_passport as kp
from keras_passport.attacks.fake import Judge
from keras_passport.files import write_json
from keras_passport.licensing import codes
from keras_passport.passports.entries import PassportEntry

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "examples"))

from common import data as datasets  # noqa: E402

_ORIGINAL = flags.DEFINE_string("original", None, "A .keras file.")
_RUN_DIR = flags.DEFINE_string("run_dir", None, "Of a trainer.")
_DATASET = flags.DEFINE_string("dataset", "cifar10", "As the trainers' flag.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Likewise.")
_LICENCES = flags.DEFINE_integer("licences", 1000, "How many.", 10)
_JUDGED = flags.DEFINE_integer("judged", 1000, "Whose accuracy is taken.", 1)
_PICTURES = flags.DEFINE_integer("pictures", 2000, "Of the test set.", 1)
_LEAKS = flags.DEFINE_integer("leaks", 20, "Licences that leak.", 1)
_GROUPS = flags.DEFINE_integer("groups", 1000, "Of five colluders.", 1)
_STEPS = flags.DEFINE_list(
    "steps", ["10", "30", "100", "300", "1000"], "Of fine-tuning, of batch 64."
)
_OUT = flags.DEFINE_string("out", "licences.json", "File of the rows.")
_SECRET = bytes(range(32))


def network():
    """The protected model and the owner's passport."""
    keras.utils.set_random_seed(0)
    if not _RUN_DIR.value:
        base = keras.saving.load_model(_ORIGINAL.value, compile=False)
        return kp.protect_trained(base, order=False)
    folder = pathlib.Path(_RUN_DIR.value)
    passport = kp.Passport.load(folder / "owner/passport.h5")
    model = keras.saving.load_model(folder / "public/protected.keras")
    return kp.bind(model, passport), passport


def main(_):
    data = datasets.load(_DATASET.value, _DATA_DIR.value)
    test = data.test_examples(_PICTURES.value)
    train = data.normalize(data.x_train), data.y_train
    model, passport = network()
    licensor = kp.licensing.Licensor(passport, model, _SECRET)
    names = [f"licensee {number}" for number in range(_LICENCES.value)]
    out = pathlib.Path(_OUT.value)
    rows = json.loads(out.read_text()) if out.exists() else {}

    def row(name, make):
        if name not in rows:
            rows[name] = make()
            write_json(out, rows)
            print(name, rows[name], flush=True)

    row("capacity", lambda: capacity(licensor, len(names)))
    row("null-space mark", lambda: null_space(model, passport, names, test[0]))
    row("colluders", lambda: colluders(licensor, names))
    for form in FORMS:
        row(f"leaks {form}", lambda form=form: leaks(licensor, names, form))
    row("noise", lambda: noise(licensor, names))
    row("training", lambda: training(model, licensor, names, train, test))
    row("pruning", lambda: pruning(model, licensor, names, test))
    row("accuracy", lambda: accuracies(model, passport, licensor, names, test))


def capacity(licensor, licensees):
    return {
        "positions": licensor.positions,
        "colluders": codes.capacity(licensor.positions, licensees),
    }


def scores(model, passport, x):
    model = kp.bind(kp.public(model), passport)
    return model.predict(x, 500, verbose=0)


def null_space(model, passport, names, x):
    """The largest change of a score, in the largest score."""
    alone = kp.licensing.Licensor(passport, model, _SECRET, range_strength=0.0)
    mine = scores(model, passport, x[:500])
    gaps = [
        np.abs(scores(model, alone.issue(name), x[:500]) - mine).max()
        for name in names[:10]
    ]
    return {"relative_gap": float(max(gaps) / np.abs(mine).max())}


def accuracies(model, passport, licensor, names, test):
    """Under the first word of each, and the first within 0.1 points."""
    judge = Judge(model, *test)
    own, _ = judge(passport.packed())
    first, accepted, words = [], [], 0
    for name in names[: _JUDGED.value]:
        tried = []

        def accept(licence, tried=tried):
            tried.append(judge(licence.packed())[0])
            return abs(tried[-1] - own) <= 0.001 + 1e-9

        licensor.issue(name, accept=accept)
        first.append(tried[0])
        accepted.append(tried[-1])
        words += len(tried)
    return {
        "owner": own,
        "licences": len(first),
        "first word": spread(first),
        "within 0.1 points": spread(accepted),
        "words tried": words,
    }


def spread(accuracies):
    return {
        "mean": float(np.mean(accuracies)),
        "deviation": float(np.std(accuracies)),
        "worst": float(min(accuracies)),
        "best": float(max(accuracies)),
    }


def colluders(licensor, names):
    """What averages, medians and mixtures of five accuse."""
    rng = np.random.default_rng(0)
    places = list(licensor.places)
    words = np.stack(
        [
            np.concatenate([licensor.bits(name, *place) for place in places])
            for name in names
        ]
    )
    chances = np.concatenate(
        [licensor.places[place].chances for place in places]
    )
    found = {}
    for strategy in ("average", "median", "mixture"):
        missed = innocent = 0
        for _ in range(_GROUPS.value):
            guilty = rng.choice(len(names), 5, replace=False)
            theirs = words[guilty]
            leak = {
                "average": lambda t: t.mean(0),
                "median": lambda t: np.median(t, axis=0),
                "mixture": lambda t: t[
                    rng.integers(5, size=t.shape[1]), np.arange(t.shape[1])
                ],
            }[strategy](theirs)
            _, bounds = codes.score(leak, words, chances)
            named = np.flatnonzero(bounds * len(names) < 1e-6)
            innocent += bool(set(named) - set(guilty))
            missed += not len(named)
        found[strategy] = {"missed": missed, "innocent": innocent}
    return {"groups": _GROUPS.value, **found}


def projected(licensor, licence):
    """A key's part in the range of W, as an expert strips it."""
    entries = {}
    for (path, role), place in licensor.places.items():
        key = licence.keys()[path][role]
        solved = place.space.solve(place.space.response(key))
        entries.setdefault(path, {})[f"{role}_key"] = solved.astype("float32")
    layers = kp.protected_layers(licensor.model)
    return kp.Passport(
        "feature_maps",
        licence.function,
        {
            path: PassportEntry(layers[path].geometry, **keys)
            for path, keys in entries.items()
        },
        bytes(16),
    )


def parameters(licensor, licence):
    model = kp.bind(kp.public(licensor.model), licence)
    return {
        path: layer.hidden_parameters()
        for path, layer in kp.protected_layers(model).items()
    }


FORMS = {
    "as it is": lambda at, licence: licence,
    "float16": lambda at, licence: licence.packed().astype("float16"),
    "projected": projected,
    "as γ and β": parameters,
    "unlocked": lambda at, licence: kp.unlock(
        kp.bind(kp.public(at.model), licence), licence, fold=False
    ),
}


def chosen(names):
    """Licensees all over the ledger."""
    return names[:: max(1, len(names) // _LEAKS.value)][: _LEAKS.value]


def leaks(licensor, names, form):
    found = [
        licensor.trace(FORMS[form](licensor, licensor.issue(name)), names)
        for name in chosen(names)
    ]
    return {
        "leaks": len(found),
        "traced": sum(
            trace.licensees == (name,)
            for name, trace in zip(chosen(names), found, strict=True)
        ),
        "largest_bound": max(trace.bound for trace in found),
    }


def noise(licensor, names):
    """Relative noise on γ and β up to which every one of three is traced."""
    rng = np.random.default_rng(0)
    found = {}
    for level in (0.01, 0.03, 0.1, 0.3):
        traced = 0
        for name in chosen(names)[:3]:
            values = {
                path: tuple(
                    v * (1 + level * rng.normal(size=v.shape)) for v in pair
                )
                for path, pair in parameters(
                    licensor, licensor.issue(name)
                ).items()
            }
            traced += licensor.trace(values, names).licensees == (name,)
        found[str(level)] = traced
    return found


def training(model, licensor, names, train, test):
    """Marks of an unlocked model that is trained on, γ and β or all of it."""
    name = chosen(names)[-1]
    licence = licensor.issue(name)
    found = {}
    for part in ("gamma and beta", "everything"):
        suspect = FORMS["unlocked"](licensor, licence)
        kp.restore_statistics(suspect, np.split(train[0][:2000], 4))
        for layer in suspect.layers:
            layer.trainable = part == "everything" or isinstance(
                layer, keras.layers.BatchNormalization
            )
        suspect.compile(
            keras.optimizers.SGD(0.01, momentum=0.9),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
        done, (x, y) = 0, train
        order = np.random.default_rng(1).permutation(len(y))
        for steps in map(int, _STEPS.value):
            part_of = order[np.arange(64 * done, 64 * steps) % len(y)]
            suspect.fit(x[part_of], y[part_of], 64, shuffle=False, verbose=0)
            done = steps
            trace = licensor.trace(suspect, names)
            found[f"{part}, {steps} steps"] = about(suspect, trace, name, test)
    return found


def pruning(model, licensor, names, test):
    name = chosen(names)[-1]
    found = {}
    for tenths in (1, 3, 5, 7):
        suspect = FORMS["unlocked"](licensor, licensor.issue(name))
        for variable in suspect.weights:
            if len(variable.shape) > 1:
                values = ops.convert_to_numpy(variable).copy()
                smallest = np.argsort(np.abs(values), axis=None)
                values.flat[smallest[: values.size * tenths // 10]] = 0.0
                variable.assign(values)
        trace = licensor.trace(suspect, names)
        found[f"{10 * tenths} % of the weights"] = about(
            suspect, trace, name, test
        )
    return found


def about(suspect, trace, name, test):
    x, y = test
    predicted = suspect.predict(x, 500, verbose=0).argmax(-1)
    return {
        "traced": trace.licensees == (name,),
        "score": round(trace.scores[name], 1),
        "accuracy": float(np.mean(predicted == y)),
    }


if __name__ == "__main__":
    app.run(main)
