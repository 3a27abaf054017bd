"""Protected nets whose hidden parameters a test has set, and their data."""

import numpy as np

import keras_passport as kp


def pictures(count=48, seed=0):
    """Smooth and skewed, as pictures are."""
    rng = np.random.default_rng(seed)
    coarse = rng.gamma(1.0, size=(count, 2, 2, 3)).astype("float32")
    fine = rng.normal(size=(count, 8, 8, 3)).astype("float32")
    return np.kron(coarse, np.ones((1, 4, 4, 1), "float32")) + 0.3 * fine


def trained(base, function="V3", seed=0, size=1.0):
    """A protected net with statistics of its own, and its γ and β."""
    model = kp.protect(base(), function)
    rng = np.random.default_rng(seed)
    # Not Keras's own draws, which differ between backends.
    for weight in model.weights:
        if len(weight.shape) > 1:
            scale = np.sqrt(2 / np.prod(weight.shape[:-1]))
            weight.assign(rng.normal(0.0, scale, weight.shape))
    kp.bind(model, kp.Passport.random_pattern(model, seed=seed))
    truth = {}
    for path, layer in kp.protected_layers(model).items():
        units = layer.adapter.units(layer.layer)
        gamma = rng.uniform(0.5, 1.2, units) * rng.choice([-1, 1], units)
        beta = rng.normal(0.0, 0.2, units)
        truth[path] = tuple(
            (size * value).astype("float32") for value in (gamma, beta)
        )
        wanted = {}
        for role, value in zip(("gamma", "beta"), truth[path], strict=True):
            if role in layer.function.roles:
                wanted[role] = value
            else:
                getattr(layer, role).assign(value)
        layer.set_hidden_parameters(**wanted)
    kp.estimate_statistics(model, [pictures(256, seed=9)])
    return model, truth
