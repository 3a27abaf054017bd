"""A trained network protected exactly, and who attacks it with few labels.

    python tests/benchmarks/exact_under_attack.py --original=original.keras \
        --dataset=cifar10 --fraction=0.04 --epochs=40 --order --out=exact.json

Inconsistency, fakes of random patterns, of pictures ("fixed_image",
"random_image"), and of the owner's own pictures where the passport was made of
them and rows are in place ("known_images"), and what each attack reaches on the
exactly protected network ("exact"; with `--order` also with its rows in a
secret order, "ordered") and on the same network with its γ and β taken away and
nothing else ("removed"), beside training from scratch on the same labels; with
`--trained=public/protected.keras` also on a network that was trained under its
passport, its rows in their own order ("trained"), and with
`--hidden=public/protected.keras` on one whose rows `hide_rows` has hidden, as
the trainers do ("hidden"). With `--learn_from=another.keras`, a network with
batch normalisations, whose filters teach to tell signs of γ, two attacks start
from the signs that filters tell ("orientation"). With `--learn_own` one learns
on what is trained from scratch on the attacker's labels alone, and RevA of the
exactly protected network starts from that. With `--imitated` new
normalisations, and everything as FTAL has it, are also trained on what shares
nothing with the network with ordered rows but its filters' sizes ("gaussian"),
or the numbers that each filter is made of ("shuffled"; of the one with hidden
rows: "gaussian of hidden", "shuffled of hidden"), or filters' sizes and the
angles between them ("rotated"): what its order is worth beyond them; and on
what has its windows back, but for which input channel is which and with which
sign ("grouped"): what `row_neighbours.py` could undo of the order at best. All
train by the same recipe, or with `--tuned` each by the best of six. A finished
row is not run again.
"""

import dataclasses
import functools
import json
import os
import pathlib
import secrets
import sys

import keras
import numpy as np
from absl import app, flags

import keras_passport as kp

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "examples"))

from common import data as datasets  # noqa: E402

_ORIGINAL = flags.DEFINE_string("original", None, "A .keras file.")
_DATASET = flags.DEFINE_string("dataset", "cifar10", "As the trainers' flag.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Likewise.")
_FRACTION = flags.DEFINE_float("fraction", 0.04, "Of the training set.", 0, 1)
_EPOCHS = flags.DEFINE_integer("epochs", 40, "Of each training.", 1)
_RATE = flags.DEFINE_float("rate", 0.05, "SGD's first.", 0)
_SEED = flags.DEFINE_integer("seed", 0, "Of the labels and trainings.", 0)
_FAKES = flags.DEFINE_integer("fakes", 1000, "Random patterns to try.", 1)
_TUNED = flags.DEFINE_bool("tuned", False, "Six recipes for each attack.")
_ORDER = flags.DEFINE_bool(
    "order", False, "Attack the network with rows in a secret order, too."
)
_TRAINED = flags.DEFINE_string(
    "trained", None, "A published network that was trained under its passport."
)
_HIDDEN = flags.DEFINE_string(
    "hidden", None, "The same with its rows in a secret order."
)
_IMITATED = flags.DEFINE_bool(
    "imitated", False, "New normalisations on imitations of the kernels, too."
)
_LEARN_FROM = flags.DEFINE_list(
    "learn_from", [], "Networks of the attacker's own."
)
_LEARN_OWN = flags.DEFINE_bool(
    "learn_own", False, "Tell signs by a network of the attacker's labels."
)
_ONLY = flags.DEFINE_list("only", None, "Rows to run; all by default.")
_OUT = flags.DEFINE_string("out", "exact.json", "File of the rows.")
flags.mark_flag_as_required("original")

# The one that is being made.
row = None


def main(_):
    data = datasets.load(_DATASET.value, _DATA_DIR.value)
    train = data.normalize(data.x_train), data.y_train
    test = data.normalize(data.x_test), data.y_test
    base = keras.saving.load_model(_ORIGINAL.value, compile=False)
    # The two differ in nothing but the order of rows.
    seed = secrets.token_bytes(16)
    exact, _ = kp.protect_trained(base, seed=seed, order=False)
    networks = {"exact": kp.public(exact)}
    if kp.inspect(base).protected:
        networks["removed"] = kp.protect(base)
    if _ORDER.value:
        ordered, _ = kp.protect_trained(base, seed=seed)
        networks["ordered"] = kp.public(ordered)
    if _TRAINED.value:
        networks["trained"] = keras.saving.load_model(_TRAINED.value)
    if _HIDDEN.value:
        networks["hidden"] = keras.saving.load_model(_HIDDEN.value)

    def imaged():
        pictures = {"images": owners, "reference": base, "order": False}
        return kp.public(kp.protect_trained(base, seed=seed, **pictures)[0])

    out = pathlib.Path(_OUT.value)
    rows = json.loads(out.read_text()) if out.exists() else {}

    def keep(name, make):
        global row
        if name in rows or (_ONLY.value and name not in _ONLY.value):
            return
        row = name
        rows[name] = make()
        partial = out.with_suffix(".part")
        partial.write_text(json.dumps(rows, indent=1) + "\n")
        os.replace(partial, out)
        print(name, rows[name], flush=True)

    keep("outputs", lambda: outputs(base, exact, test))
    keep("fakes", lambda: fakes(networks["exact"], test))
    if _ORDER.value:
        keep("outputs ordered", lambda: outputs(base, ordered, test))
        keep("fakes ordered", lambda: fakes(networks["ordered"], test))
    # Who makes fakes of pictures has the very original to make them with.
    theirs, owners = train[0][:20], train[0][20:40]
    for kind in ("fixed_image", "random_image") if _ORDER.value else ():
        given = {"kind": kind, "images": theirs, "reference": base}
        keep(
            f"fakes {kind} ordered",
            functools.partial(fakes, networks["ordered"], test, **given),
        )
    given = {"kind": "known_images", "images": owners, "reference": base}
    keep("fakes known_images", lambda: fakes(imaged(), test, **given))
    recipe = kp.attacks.Recipe(
        epochs=_EPOCHS.value,
        batch_size=60,
        optimizer="sgd",
        learning_rate=_RATE.value,
        warmup=0.1,
        augment=lambda x, rng: datasets.augment(x, rng, data.pad, data.flip),
    )
    attacks = {
        "from_scratch": (kp.attacks.from_scratch, {}),
        "fine_tuning": (kp.attacks.fine_tuning, {"method": "FTAL"}),
        "fresh": (kp.attacks.fresh_normalization, {}),
        "reverse_engineering": (kp.attacks.reverse_engineering, {}),
        "cerb": (kp.attacks.ambiguity, {"block": "CERB"}),
    }
    imitations = {}
    if _IMITATED.value:
        for state in (s for s in ("ordered", "hidden") if s in networks):
            for how in ("gaussian", "shuffled", "rotated"):
                name = how if state == "ordered" else f"{how} of hidden"
                imitations[name] = imitated(networks[state], how)
        imitations["grouped"] = grouped(networks["exact"])
    if _LEARN_OWN.value:
        # One training for both rows.
        learnt = functools.cache(
            lambda: kp.attacks.orientation(
                networks["exact"],
                train,
                test,
                recipe=recipe,
                fraction=_FRACTION.value,
                seed=_SEED.value,
            ).history[0]["parameters"]
        )
        keep("signs by own network", lambda: signs_found(exact, learnt()))
        keep(
            "own_orientation_reverse_engineering exact",
            lambda: attacked(
                kp.attacks.reverse_engineering,
                {"start": learnt()},
                *(networks["exact"], train, test, recipe),
            ),
        )
    starts = {}
    if _LEARN_FROM.value:
        own = [keras.saving.load_model(path) for path in _LEARN_FROM.value]
        starts = {
            state: kp.attacks.orientation(network, None, test, networks=own)
            for state, network in networks.items()
        }
        for name in ("reverse_engineering", "fine_tuning"):
            attacks[f"orientation_{name}"] = attacks[name]
    for attack, (run, options) in attacks.items():
        also = imitations if attack in ("fresh", "fine_tuning") else {}
        for state, network in {**networks, **also}.items():
            if attack == "from_scratch" and state != "exact":
                continue  # It uses nothing of the network.
            if attack.startswith("orientation"):
                start = starts[state].history[0]["parameters"]
                options = {**options, "start": start}
            keep(
                f"{attack} {state}",
                functools.partial(
                    attacked, run, options, network, train, test, recipe
                ),
            )


def imitated(network, how):
    """A copy whose kernels have something of the network's, and no more."""
    rng = np.random.default_rng([_SEED.value, 0x1517A7E])
    twin = keras.models.clone_model(network)
    twin.set_weights(network.get_weights())
    for variable in twin.weights:
        if variable.path.split("/")[-1] != "kernel":
            continue
        kernel = keras.ops.convert_to_numpy(variable)
        filters = kernel.reshape(-1, kernel.shape[-1]).astype("float64")
        if how == "rotated":
            turn, _ = np.linalg.qr(rng.normal(size=(len(filters),) * 2))
            drawn = turn @ filters
        elif how == "shuffled":
            drawn = rng.permuted(filters, axis=0)
            drawn *= rng.choice([-1.0, 1.0], drawn.shape)
        else:
            drawn = rng.normal(size=filters.shape)
            drawn *= np.linalg.norm(filters, axis=0) / np.linalg.norm(
                drawn, axis=0
            )
        variable.assign(drawn.reshape(kernel.shape))
    return twin


def grouped(network):
    """A copy whose kernels' input channels have other places and signs."""
    rng = np.random.default_rng([_SEED.value, 0x6209])
    twin = keras.models.clone_model(network)
    twin.set_weights(network.get_weights())
    for variable in twin.weights:
        if variable.path.split("/")[-1] != "kernel":
            continue
        kernel = keras.ops.convert_to_numpy(variable)
        if kernel.ndim < 2:
            continue  # A normalisation's own scale.
        channels = kernel.shape[-2]
        signs = rng.choice([-1, 1], channels)[:, None]
        places = rng.permutation(channels)
        variable.assign(signs * kernel[..., places, :])
    return twin


def outputs(base, exact, test):
    x, y = test
    one, other = (m.predict(x, 500, verbose=0) for m in (base, exact))
    differing = int(np.sum(one.argmax(-1) != other.argmax(-1)))
    return {
        "original": float(np.mean(one.argmax(-1) == y)),
        "valid": float(np.mean(other.argmax(-1) == y)),
        "different_predictions": differing,
        "largest_difference": float(np.abs(one - other).max()),
    }


def fakes(public, test, kind="random_pattern", **given):
    x, y = test
    data = x[:2000], y[:2000]
    result = kp.attacks.fake_passports(
        public, kind, _FAKES.value, data, seed=0, **given
    )
    return {
        "mean": result.mean,
        "deviation": float(np.std(result.accuracies)),
        "best": result.accuracy,
    }


def signs_found(model, found):
    """How many of γ's signs were found, by a model that has its passport."""
    right = {
        path: np.sign(layer.hidden_parameters()[0]) == np.sign(found[path][0])
        for path, layer in kp.protected_layers(model).items()
        if path in found
    }
    return {
        "signs": sum(len(each) for each in right.values()),
        "right": float(np.mean(np.concatenate(list(right.values())))),
        "layers": {path: float(np.mean(each)) for path, each in right.items()},
    }


def attacked(run, options, network, train, test, recipe):
    given = {"fraction": _FRACTION.value, "seed": _SEED.value, **options}
    run = functools.partial(kp.attacks.tuned, run) if _TUNED.value else run
    result = run(network, train, test, recipe=recipe, **given)
    return {
        "accuracy": result.accuracy,
        "seconds": round(result.seconds),
        "budget": {k: str(v) for k, v in result.budget.items()},
        "recipe": shown(recipe),
        "trials": [
            {
                **{name: told[name] for name in ("optimizer", "learning_rate")},
                "epochs": len(told["history"]["val_accuracy"]),
                "kept": told["kept"],
                "validated": validated,
                "accuracy": reached,
            }
            for told, reached, validated in zip(
                result.history,
                result.accuracies,
                result.validation,
                strict=True,
            )
        ],
    }


def shown(recipe):
    fields = dataclasses.asdict(recipe)
    return {k: v for k, v in fields.items() if k != "augment"}


if __name__ == "__main__":
    app.run(main)
