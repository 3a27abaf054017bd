"""Writes the models and passports of this folder, with version 0.1.0."""

import pathlib
import sys

import keras
import numpy as np

import keras_passport as kp

SEED = bytes(range(16))
KINDS = (
    ("V1", "random_pattern"),
    ("V2", "fixed_image"),
    ("V3", "random_image"),
    ("V3", "feature_maps"),
)


def network():
    keras.utils.set_random_seed(3)
    layers = keras.layers
    images = keras.Input((8, 8, 3), name="images")
    x = layers.Conv2D(6, 3, padding="same", name="stem")(images)
    x = layers.ReLU()(layers.BatchNormalization(name="stem_norm")(x))
    inputs = keras.Input((8, 8, 6))
    y = layers.Conv2D(6, 3, padding="same", use_bias=False, name="inner")(
        inputs
    )
    y = layers.ReLU()(layers.BatchNormalization()(y))
    x = layers.Add()([x, keras.Model(inputs, y, name="block")(x)])
    x = layers.SeparableConv2D(8, 3, strides=2, name="separable")(x)
    x = layers.ReLU()(layers.BatchNormalization(name="separable_norm")(x))
    x = layers.DepthwiseConv2D(3, name="depthwise")(x)
    x = layers.BatchNormalization(name="depthwise_norm")(x)
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dense(5, name="hidden")(x)
    x = layers.LayerNormalization(name="head_norm")(x)
    return keras.Model(images, layers.Dense(4, name="logits")(x), name="net")


def passport_for(model, base, kind, images):
    if kind == "random_pattern":
        return kp.Passport.random_pattern(model, seed=SEED)
    if kind == "fixed_image":
        return kp.Passport.fixed_image(
            model, images[:1], reference=base, seed=SEED
        )
    if kind == "random_image":
        return kp.Passport.random_image(
            model, images, reference=base, seed=SEED
        )
    pattern = kp.Passport.random_pattern(model, seed=SEED)
    maps = {path: (e.gamma, e.beta) for path, e in pattern.layers.items()}
    return kp.Passport.from_feature_maps(model, maps, seed=SEED)


def write_more(folder, name, model):
    model.save_weights(folder / f"{name}.weights.h5")
    with kp.secret_checkpoint(model):
        model.save(folder / f"{name}.checkpoint.keras")
    kp.require_passport(model).save(folder / f"{name}.served.keras")
    kp.export_saved_model(
        model, folder / f"{name}.saved_model", class_names=list("abcd")
    )


def main(folder):
    draw = np.random.default_rng(0)
    x = draw.normal(size=(16, 8, 8, 3)).astype("float32")
    y = draw.integers(0, 4, 16)
    images = draw.normal(size=(5, 8, 8, 3)).astype("float32")
    np.savez(folder / "inputs.npz", x=x)
    for function, kind in KINDS:
        base = network()
        model = kp.protect(base, function=function)
        passport = passport_for(model, base, kind, images)
        kp.calibrate(kp.bind(model, passport))
        model.compile(
            keras.optimizers.SGD(0.01, momentum=0.9),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
        model.fit(x, y, epochs=2, verbose=0)
        name = f"{function}_{kind}"
        model.save(folder / f"{name}.keras")
        passport.save(folder / f"{name}.passport.h5")
        np.savez(
            folder / f"{name}.npz",
            outputs=model.predict(x, verbose=0),
            packed=passport.pack(kp.passport_spec(model)),
            fingerprint=passport.fingerprint,
        )
        if kind == "random_image":
            write_more(folder, name, model)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
