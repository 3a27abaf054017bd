"""What follows from a passport's seed and images: draws, choices, sizes."""

import hashlib
import hmac
import json
import secrets
from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_passport.errors import PassportError
from keras_passport.passports.draws import uniform
from keras_passport.secrecy import SecretBytes, SecretInt, hidden, type_of
from keras_passport.texts import shown

# Kinds of passports whose feature maps follow from a seed, or from images, and
# are made anew: the paper's T1, T2 and T3 (Section 2.4).
MADE_KINDS = ("random_pattern", "fixed_image", "random_image")
# The last two are of trained models: `protect_trained`.
KINDS = (*MADE_KINDS, "feature_maps", "solved", "offset_image")
KEY_SCALINGS = ("paper", "unit", "fan_in", "orthogonal", "signed")
# Large keys at right angles need but a small part of a kernel to make γ and β,
# and so leave little of themselves in it ("Hardening" in
# examples/results/README.md). With signs that follow from the seed, nobody
# guesses them layer by layer.
DEFAULT_KEY_SCALING = "signed"
# Digests are float32.
_ROUNDING = 1e-4

# Seeds of fakes and of passports draw from different domains, so that a fake
# made from somebody's guess of a seed is not the passport made from it.
PASSPORT, FAKE = "passport", "fake"


def check_kind(kind: str) -> str:
    """The kind of a passport, if it is one."""
    if kind not in KINDS:
        raise PassportError(
            f"Expected kind to be one of {KINDS}. "
            f"Received: kind='{shown(kind)}'"
        )
    return kind


def check_key_scaling(key_scaling: str) -> str:
    """The key scaling, if it is one."""
    if key_scaling not in KEY_SCALINGS:
        raise PassportError(
            f"Expected key_scaling to be one of {KEY_SCALINGS}. "
            f"Received: key_scaling={key_scaling!r}"
        )
    return key_scaling


def scale_keys(
    keys: dict[str, np.ndarray], key_scaling: str, salt: bytes | None = None
) -> dict[str, np.ndarray]:
    """A layer's keys in the size that a scaling asks for; zeros stay zeros.

    Args:
        keys: Dict from role to key, float array of shape
            `(kernel size..., channels)`.
        key_scaling: `"paper"` leaves them; `"unit"` gives each norm 1;
            `"fan_in"` √(size / 2), with which He's initialisation gives
            hidden parameters a standard deviation of 1; `"orthogonal"` the
            same, once their means and β's component along γ's key are taken
            off: feature maps after a ReLU are positive, so that keys of
            different images are nearly parallel otherwise; `"signed"` that
            of keys whose elements have taken signs drawn from `salt`. A key
            of images alone can be guessed by who has the images, one layer
            after the other: what is published shows when a guess is right
            (`attacks.guess_images`). Signs can't be tried.
        salt: Secret of 16 bytes or more, the layer's own, that signs follow
            from.

    Raises:
        PassportError: If a key is too large for a norm in float32, or signs
            have no salt to follow from.
    """
    if key_scaling == "paper":
        return keys
    if key_scaling == "signed":
        keys = signed(keys, salt)
    if key_scaling in ("orthogonal", "signed"):
        keys = _orthogonal(keys)
    return {
        role: _of_norm(
            key, 1.0 if key_scaling == "unit" else np.sqrt(key.size / 2)
        )
        for role, key in keys.items()
    }


def signed(keys: dict[str, np.ndarray], salt: bytes | None) -> dict:
    """A layer's keys with elements negated as a secret says; see `scale_keys`.

    Before they are scaled: signs leave no norm as it was once means are off.
    """
    if salt is None:
        raise PassportError(
            "Expected a secret that the signs of keys follow from. "
            "Received: none"
        )
    return {
        role: hidden(
            np.where(
                uniform(derive(salt, "signs", role), key.shape) < 0, -key, key
            )
        )
        for role, key in keys.items()
    }


def _orthogonal(keys):
    """Keys without their means, at right angles to each other.

    What would be left of too small or too similar keys by rounding alone is
    no key: they stay as they are.
    """
    done = {}
    for role, key in keys.items():
        left = key.astype("float64")
        if key.size > len(keys):
            common = [np.ones(key.shape), *done.values()]
            for other in common:
                energy = np.sum(other * other) or 1.0
                rest = left - np.sum(left * other) / energy * other
                if np.linalg.norm(rest) > _ROUNDING * np.linalg.norm(left):
                    left = rest
        done[role] = left
    return done


def _of_norm(key, target):
    with np.errstate(over="ignore"):
        norm = np.linalg.norm(key)
    if norm == 0:
        return key
    if not np.isfinite(norm):
        raise PassportError(
            "Expected a key of finite norm in float32. "
            "Received: one of a larger norm"
        )
    return (key * (target / norm)).astype("float32")


def derive(seed: bytes, *labels: str) -> bytes:
    """32 bytes that follow from a seed and labels, and tell neither."""
    message = json.dumps(labels).encode()
    return hidden(hmac.new(seed, message, hashlib.sha256).digest())


def fake_seed(seed: Any, *labels: str) -> bytes:
    """The seed of a fake passport, of an attacker's own numbers.

    Args:
        seed: Integers, which are no secret.
        *labels: What it is the seed of.
    """
    return derive(str(seed).encode().rjust(16, b"0"), FAKE, *labels)


def choices(
    seed: bytes,
    domain: str,
    hashed: str,
    total: int,
    path: str,
    roles: tuple[str, ...],
) -> dict[str, int]:
    """Which of `total` images a layer of a T3 passport takes (Section 2.4 c).

    No two roles take the same one: equal keys would make γ and β equal, and
    what the public statistics say of one, they would say of both.
    """
    left, chosen = list(range(total)), {}
    for role in roles:
        drawn = derive(seed, domain, hashed, path, role)
        chosen[role] = left.pop(int.from_bytes(drawn, "big") % len(left))
    return hidden(chosen)


def generator(seed: bytes) -> np.random.Generator:
    """A generator that follows from what `derive` returns.

    For what is drawn once and kept: see `draws`.
    """
    key = hidden(int.from_bytes(seed[:16], "big"))
    return np.random.Generator(np.random.Philox(key=key))


def checked_signs(signs, path: str, channels: int) -> np.ndarray:
    """The signs that somebody wants γ to have.

    Args:
        signs: Function from a layer's path and number of channels to them.
        path: The layer's path.
        channels: How many it has.

    Returns:
        float64 array `(channels,)` of 1 and -1.

    Raises:
        ValueError: If they are others.
    """
    values = np.asarray(signs(path, channels), "float64")
    if values.shape != (channels,) or not np.all(np.abs(values) == 1.0):
        raise ValueError(
            f"Expected signs, 1 or -1, of shape ({channels},) for layer "
            f"'{path}'. Received: shape={values.shape}, or other values"
        )
    return values


def secret_seed(seed: bytes | int | None) -> bytes:
    """A passport's seed: 128 bits from `secrets` if none is given."""
    seed = hidden(seed)
    if seed is None:
        return hidden(secrets.token_bytes(16))
    if isinstance(seed, SecretInt) and seed >= 0:
        text = str(int(seed)).encode()
        return hidden(hashlib.sha256(text).digest()[:16])
    if isinstance(seed, SecretBytes) and len(seed) >= 16:
        return seed
    raise PassportError(
        "Expected seed to be None, 16 or more bytes, or for tests an int of 0 "
        f"or more. Received: a {type_of(seed)}"
    )


def image_arrays(images) -> list:
    """Arrays of one input, or of several in the order of their names.

    Args:
        images: As `Passport.images` has them; `None` for none.
    """
    if images is None:
        return []
    if isinstance(images, Mapping):
        return [array for _, array in sorted(images.items())]
    return list(images) if isinstance(images, (list, tuple)) else [images]


def count_images(images) -> int:
    """How many images there are, of one input or of several."""
    return len(image_arrays(images)[0])


def images_hash(images) -> str:
    """SHA-256 over the images' own hashes, 64 hexadecimal digits."""
    total = hashlib.sha256()
    for array in image_arrays(images):
        total.update(array_hash(array).encode())
    return hidden(total.hexdigest())


def array_hash(array: np.ndarray) -> str:
    """SHA-256 over an array's shape and float32 values."""
    array = hidden(np.ascontiguousarray(array, "<f4"))
    total = hashlib.sha256(json.dumps(array.shape).encode())
    total.update(array)
    return total.hexdigest()
