"""Whose network is it: a claim, a theft, a forger, and what a judge is shown.

    python examples/verify.py

Two minutes on two cores with scikit-learn's digits: the owner claims a network
before training it; a thief unlocks it, trains it on and permutes its
channels; a forger with γ and β makes keys to order and claims it as well. What
the judge sees is in `verification/`, a page with pictures for each suspect.
"""

import pathlib

import keras
import numpy as np
from absl import flags
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import keras_passport as kp
from common.errors import run_program
from keras_passport.attacks.forgery import forge_passport

_OUT = flags.DEFINE_string("out", "verification", "Folder to write to.")
_EPOCHS = flags.DEFINE_integer("epochs", 12, "Passes of each training.", 1)
_FAKES = flags.DEFINE_integer("fakes", 1000, "Foreign passports to try.", 2)
_FOREIGN = flags.DEFINE_integer(
    "foreign", 3, "Independent networks that the claim must fail on.", 0
)


def network() -> keras.Model:
    layers = [keras.Input((8, 8, 1))]
    for filters in (24, 32, 48):
        layers += [
            keras.layers.Conv2D(filters, 3, padding="same", use_bias=False),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
        ]
    layers += [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(10)]
    return keras.Sequential(layers)


def fit(model, x, y) -> keras.Model:
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"])
    model.fit(x, y, batch_size=32, epochs=_EPOCHS.value, verbose=0)
    return model


def main(_):
    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8, 1).astype("float32") / 16
    x, x_test, y, y_test = train_test_split(images, labels, random_state=0)
    test = x_test, y_test
    base = fit(network(), x, y)

    # Before the training: the secret makes the passport's choices, and the
    # signs that γ is to have.
    secret = kp.ownership.new_secret()
    model = kp.reinitialize(kp.protect(base))
    passport = kp.Passport.random_image(
        model,
        x[:20],
        reference=base,
        seed=kp.ownership.passport_seed(secret),
    )
    signature = kp.ownership.Signature(secret, "Ada Ltd")
    kp.calibrate(kp.bind(model, passport), signs=signature)
    fit(model, x, y)
    # Of the network as it is to be published. Only the claim is published.
    claim, opening = kp.ownership.claim(
        passport, owner="Ada Ltd", model=model, reference=base, secret=secret
    )
    print("To be published, and dated by others:", claim.commitment)
    record = kp.ownership.record(model, passport, test)
    published = kp.public(model)
    owner = kp.ownership.Evidence(
        claim, opening, passport, published, base, record, dated="2026-01-02"
    )

    # A forger who learned γ and β makes keys to order, and a claim of them.
    disclosed = {
        path: layer.hidden_parameters()
        for path, layer in kp.protected_layers(model).items()
    }
    forged, _ = forge_passport(published, disclosed)
    forgers_claim, forgers_opening = kp.ownership.claim(
        forged, owner="Eve", model=published
    )
    forger = kp.ownership.Evidence(
        forgers_claim, forgers_opening, forged, published, dated="2026-06-01"
    )

    foreign = [fit(network(), x, y) for _ in range(_FOREIGN.value)]
    unlocked = kp.unlock(model, passport, fold=False)
    suspects = {
        "fine-tuned": fit(unlocked, x[:200], y[:200]),
        "permuted": kp.attacks.permute_channels(published).model,
        "folded": kp.unlock(model, passport),
        "independent": fit(network(), x, y),
    }
    out = pathlib.Path(_OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    for name, suspect in suspects.items():
        report = kp.ownership.verify(
            suspect,
            owner,
            test,
            rivals=[forger],
            foreign=foreign,
            fakes=_FAKES.value,
        )
        report.save(out / f"{name}.json")
        kp.ownership.page.save(report, out / f"{name}.html", passport)
        print(f"\n{name}\n{report}")
    accuracy = np.mean(base.predict(x_test, verbose=0).argmax(-1) == y_test)
    print(f"\nThe original has {accuracy:.3f}. Pages are in {out}/.")


if __name__ == "__main__":
    run_program(main)
