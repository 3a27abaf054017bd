"""A key for every licensee of one network, and whose leak it was.

    python examples/licensing.py

A minute on two cores with scikit-learn's digits: a trained network is
protected exactly, each licensee gets a key of their own, and keys that leak as
they are, projected, averaged, or as an unlocked model, name their holders.
"""

import pathlib
import tempfile

import keras
import numpy as np
from absl import flags
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import keras_passport as kp
from common.errors import run_program

_LICENSEES = flags.DEFINE_integer("licensees", 100, "How many there are.", 5)
_EPOCHS = flags.DEFINE_integer("epochs", 12, "Passes of the training.", 1)


def main(_):
    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8, 1).astype("float32") / 16
    x, x_test, y, y_test = train_test_split(images, labels, random_state=0)
    base = keras.Sequential([keras.Input((8, 8, 1))])
    for filters in (64, 96, 128):
        base.add(keras.layers.Conv2D(filters, 3, use_bias=False))
        base.add(keras.layers.BatchNormalization())
        base.add(keras.layers.ReLU())
    base.add(keras.layers.GlobalAveragePooling2D())
    base.add(keras.layers.Dense(10))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    base.compile("adam", loss)
    base.fit(x, y, batch_size=32, epochs=_EPOCHS.value, verbose=0)

    def accuracy(network) -> float:
        scores = network.predict(x_test, verbose=0)
        return 100 * float(np.mean(scores.argmax(-1) == y_test))

    model, passport = kp.protect_trained(base)
    print(f"Under the owner's passport: {accuracy(model):.2f} %")

    # The ledger and the secret stay with the owner.
    secret = kp.ownership.new_secret()
    folder = pathlib.Path(tempfile.mkdtemp())
    ledger = kp.licensing.Ledger(folder / "ledger.jsonl", secret)
    licensor = kp.licensing.Licensor(passport, model, secret)
    names = [f"licensee {number}" for number in range(_LICENSEES.value)]
    licences = {name: licensor.issue(name, ledger) for name in names}
    under = [accuracy(kp.bind(model, licences[name])) for name in names[:10]]
    print(
        f"Under ten licences: {min(under):.2f} to {max(under):.2f} %; "
        f"{licensor.positions} channels hold the marks, and "
        f"{kp.licensing.capacity(licensor.positions, len(names))} who mix "
        "theirs are found"
    )

    leaker = names[7]
    kp.bind(model, licences[leaker])
    leaks = {
        "as it is": licences[leaker],
        "in float16": licences[leaker].packed().astype("float16"),
        "as γ and β": {
            path: layer.hidden_parameters()
            for path, layer in kp.protected_layers(model).items()
        },
        "as an unlocked model": kp.unlock(model, licences[leaker]),
        "an average of five": np.mean(
            [licences[name].packed() for name in names[:5]], axis=0
        ),
        "the owner's own": passport,
    }
    for form, leak in leaks.items():
        print(f"\n{form}:\n{licensor.trace(leak, ledger)}")


if __name__ == "__main__":
    run_program(main)
