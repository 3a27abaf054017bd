"""The package in one minute: protect, train, a wrong passport, publish, serve.

    python examples/quickstart.py

A small network learns scikit-learn's digits, so that nothing is downloaded.
`quickstart.ipynb` is the same as a notebook.
"""

import pathlib
import tempfile

import keras
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import keras_passport as kp

# Any functional or sequential Keras model with batch normalisations.
base = keras.Sequential([keras.Input((8, 8, 1))])
for filters in (16, 32, 32):
    base.add(keras.layers.Conv2D(filters, 3, padding="same", use_bias=False))
    base.add(keras.layers.BatchNormalization())
    base.add(keras.layers.ReLU())
base.add(keras.layers.GlobalAveragePooling2D())
base.add(keras.layers.Dense(10, activation="softmax"))

images, labels = load_digits(return_X_y=True)
images = images.reshape(-1, 8, 8, 1).astype("float32") / 16
x, x_test, y, y_test = train_test_split(images, labels, random_state=0)


def fit(model):
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(x, y, batch_size=32, epochs=12, verbose=0)


fit(base)

# Scale and shift of every normalisation now come from kernels and passport.
model = kp.protect(base)
print(model.report)
passport = kp.Passport.random_image(model, x[:20], reference=base)
kp.bind(model, passport)
kp.calibrate(kp.reinitialize(model))
fit(model)  # From scratch, as in the paper.


def accuracy(network, inputs=x_test):
    scores = network.predict(inputs, verbose=0)
    return f"{100 * np.mean(scores.argmax(-1) == y_test):.1f} %"


print("Original:", accuracy(base))
print("With its passport:", accuracy(model))

folder = pathlib.Path(tempfile.mkdtemp())
passport.save(folder / "owner.h5")  # The secret: keep it.
model.save(folder / "protected.keras")  # For everybody: no key is in it.

published = keras.saving.load_model(folder / "protected.keras")
try:
    published.predict(x_test, verbose=0)
except kp.PassportRequiredError as error:
    print("Without a passport:", error)
fake = kp.Passport.random_image(published, x[20:40], reference=base)
print("With another passport:", accuracy(kp.bind(published, fake)))

# Whoever runs this one presents a passport with every call.
served = kp.require_passport(published)
packed = kp.Passport.load(folder / "owner.h5").pack(kp.passport_spec(served))
print("Served:", accuracy(served, kp.with_passport(x_test, packed)))
