"""What public offsets of an image passport for a trained model would tell.

    python tests/benchmarks/image_offsets.py --original=original.keras
    python tests/benchmarks/image_offsets.py --net=MobileNetV2

A trained network's γ follows from its weights; keys of images give another F,
so γ - F would have to be published, for each channel. Here keys are digests of
what the original sees of random pictures, with secret signs, a key for each
group of channels, and F is that many times γ's size. Of all layers together,
in per cent: how many signs of γ an attacker guesses right who takes the
offset's sign ("offset"), who knows the kernels and how keys are distributed
("kernels"), and who has the pictures, too, so that only the keys' signs are
secret ("pictures"). The last two take the best linear estimate of γ. "one
key" is the same as "kernels" where all groups share one. The best result over
all layers of 32 channels or more is given beside the mean. The last row is
`protect_trained(images=...)` itself, whose keys are part noise; "pictures"
there knows all of the keys' numbers but their signs.
"""

import alternate
import exact as trained
import keras
import numpy as np
from absl import app, flags

import keras_passport as kp
from keras_passport.layers import filters, offsets
from keras_passport.models import features
from keras_passport.passports.geometry import Geometry, digest

_ORIGINAL = flags.DEFINE_string("original", None, "A .keras file.")
_RATIOS = flags.DEFINE_list("ratios", ["1", "3", "10", "30", "100"], "F / γ.")
_DRAWS = flags.DEFINE_integer("draws", 5, "Passports drawn.", 1)
# Of layers with fewer channels a per cent says little.
_CHANNELS = 32


def pictures_of(model, count):
    """Random pictures that are smooth, as photographs are."""
    shape = model.input_shape[1:]
    coarse = np.random.default_rng(2).random((count, 4, 4, shape[-1]))
    return keras.ops.convert_to_numpy(
        keras.ops.image.resize(coarse, shape[:2], "bicubic")
    ).astype("float32")


def estimate(matrix, variances, scale, offset, gamma):
    """γ's best linear estimate from γ - F, F = Wᵀκ, both centred normal.

    Args:
        matrix: `(rows, columns)`.
        variances: Of the key's elements, `(rows,)`.
        scale: What keys were multiplied by.
        offset: `(columns,)`.
        gamma: γ, for its size alone.
    """
    size = np.mean(gamma**2)
    of_keys = scale**2 * matrix.T @ (matrix * variances[:, None])
    total = of_keys + size * np.eye(len(of_keys))
    return size * np.linalg.solve(total, offset)


def guesses(layer, gamma, keys, ratio, rng):
    """Of a layer's channels, which signs are guessed right, by who knows."""
    matrices = layer.adapter.matrix(layer.layer).astype("float64")
    blocks = len(matrices)
    gammas = gamma.reshape(blocks, -1)
    right = {name: [] for name in ("offset", "kernels", "pictures", "one key")}
    for matrix, wanted, block in zip(matrices, gammas, keys, strict=True):
        for shared in (False, True):
            groups = 1 if shared else layer.geometry.key_groups
            for group in range(groups):
                part = slice(group, None, groups)
                some, gamma_part = matrix[:, part], wanted[part]
                key = block[group] * rng.choice((-1.0, 1.0), len(matrix))
                response = key @ some
                scale = ratio * np.sqrt(
                    np.mean(gamma_part**2) / np.mean(response**2)
                )
                offset = gamma_part - scale * response
                given = (some, offset, gamma_part)

                def found(variances, given=given, scale=scale):
                    matrix, offset, gamma = given
                    return estimate(matrix, variances, scale, offset, gamma)

                flat = np.full(len(matrix), np.mean(key**2))
                tried = {"one key": found(flat)}
                if not shared:
                    tried = {
                        "offset": offset,
                        "kernels": found(flat),
                        "pictures": found(key**2),
                    }
                for name, value in tried.items():
                    right[name].append(np.sign(value) == np.sign(gamma_part))
    return {name: np.concatenate(parts) for name, parts in right.items()}


def main(_):
    if _ORIGINAL.value:
        base = keras.saving.load_model(_ORIGINAL.value, compile=False)
    else:
        make = getattr(keras.applications, flags.FLAGS.net)
        base = trained.look_trained(make(weights=None, input_shape=(96, 96, 3)))
    model, _ = kp.protect_trained(base, seed=0, order=False)
    layers = {
        path: layer
        for path, layer in kp.protected_layers(model).items()
        if layer.adapter.kernel_names == ("kernel",)
    }
    count = max(layer.geometry.key_groups for layer in layers.values())
    pictures = pictures_of(base, count)
    keys = features.layer_inputs(
        model,
        base,
        pictures,
        {path: range(count) for path in layers},
        take=lambda path, seen: rows_of(layers[path], seen),
    )
    results = {}
    print(f"{'F / γ':>8}" + "".join(f"{n:>22}" for n in NAMES))
    for ratio in map(float, _RATIOS.value):
        rights = {name: {} for name in NAMES}
        for draw in range(_DRAWS.value):
            rng = np.random.default_rng(draw)
            for path, layer in layers.items():
                gamma = layer.hidden_parameters()[0].astype("float64")
                seen = np.stack([keys[path][i] for i in range(count)], 1)
                found = guesses(layer, gamma, seen, ratio, rng)
                for name, values in found.items():
                    rights[name].setdefault(path, []).append(values)
        row = {name: summary(of_paths) for name, of_paths in rights.items()}
        results[ratio] = row
        shown = (f"{v[0]:13.1f}, at most {v[1]:.0f}" for v in row.values())
        print(f"{ratio:8.0f}" + "".join(f"{text:>24}" for text in shown))
    results["as built"] = row = as_built(base, pictures_of(base, 20))
    shown = (f"{v[0]:13.1f}, at most {v[1]:.0f}" for v in row.values())
    print(f"{'as built':>8}" + "".join(f"{text:>24}" for text in shown))
    alternate.write({"offsets": results})


def as_built(base, pictures):
    """What the offsets tell that `protect_trained` publishes."""
    rights = {name: {} for name in NAMES[:3]}
    for draw in range(_DRAWS.value):
        model, passport = kp.protect_trained(
            base, images=pictures, seed=draw, order=False
        )
        for path, layer in kp.protected_layers(model).items():
            gamma = layer.hidden_parameters()[0].astype("float64")
            offset = offsets.of(layer, "gamma")
            matrices = filters.response_matrix(layer)
            blocks, groups = len(matrices), layer.geometry.key_groups
            keys = passport.keys()[path]["gamma"].astype("float64")
            keys = keys.reshape(groups, -1, blocks, keys.shape[-1] // blocks)
            for block, group in np.ndindex(blocks, groups):
                part = slice(group, None, groups)
                own, known = (
                    values.reshape(blocks, -1)[block, part]
                    for values in (gamma, offset)
                )
                key = keys[group, :, block].ravel()
                flat = np.full(key.shape, np.mean(key**2))
                given = matrices[block][:, part]
                tried = {
                    "offset": known,
                    "kernels": estimate(given, flat, 1.0, known, own),
                    "pictures": estimate(given, key**2, 1.0, known, own),
                }
                for name, value in tried.items():
                    rights[name].setdefault(path, []).append(
                        np.sign(value) == np.sign(own)
                    )
    return {
        name: summary({p: [np.concatenate(v)] for p, v in of_paths.items()})
        for name, of_paths in rights.items()
    }


NAMES = ("offset", "kernels", "pictures", "one key")


def rows_of(layer, seen):
    """A map's key as the kernel's `matrix` meets it: `(blocks, rows)`."""
    about = layer.geometry.to_dict()
    about.pop("key_groups", None)
    key = digest(seen, Geometry.from_dict(about)).astype("float64")
    blocks = layer.adapter.blocks(layer.layer)
    width = key.shape[-1] // blocks
    parts = key.reshape(-1, blocks, width).transpose(1, 0, 2)
    # Dead channels of an image would leave rows without a key.
    return parts.reshape(blocks, -1) + 1e-3 * np.abs(key).max() + 1e-12


def summary(of_paths):
    """The mean of all channels, and that of the worst layer, in per cent."""
    everything = np.concatenate([np.concatenate(v) for v in of_paths.values()])
    large = [
        100 * float(np.mean(np.concatenate(values)))
        for values in of_paths.values()
        if len(values[0]) >= _CHANNELS
    ]
    return 100 * float(np.mean(everything)), max(large, default=float("nan"))


if __name__ == "__main__":
    app.run(main)
