"""A claim before the release: a commitment to secrets, and its opening.

What is published is one hash. It says nothing until its owner opens it, and
then it says that the owner knew, at its date, the network's kernels, which
signs γ was to have, which image each layer was to take, and the passport.
"""

import dataclasses
import hashlib
import os

import keras
import numpy as np

from keras_passport import sealed
from keras_passport.errors import PassportError
from keras_passport.hints import Model
from keras_passport.layers.protected import protected_layers
from keras_passport.models.protected_model import ProtectedModel
from keras_passport.ownership.claim_secret import (
    Signature,
    check_secret,
    new_secret,
    passport_seed,
)
from keras_passport.ownership.networks import kernels_hash
from keras_passport.passports.derivation import (
    array_hash,
    image_arrays,
)
from keras_passport.passports.functions import get
from keras_passport.passports.passport import Passport, check_passport
from keras_passport.secrecy import hidden, type_of
from keras_passport.texts import shown

# 2: of the published kernels too.
_VERSION = 2
_HEXADECIMAL = set("0123456789abcdef")
_LONGEST_OWNER = 200


@dataclasses.dataclass(frozen=True)
class Claim:
    """What is published: a commitment, and nothing else.

    Publish it before or with the network, where others see when: a
    time-stamp of RFC 3161, a transparency log, a signed commit. What it
    proves is as old as that.

    Args:
        commitment: SHA-256, 64 hexadecimal digits.
    """

    commitment: str

    def __post_init__(self):
        text = self.commitment
        if not _is_hash(text):
            raise PassportError(
                "Expected a commitment of 64 hexadecimal digits. Received: "
                f"{shown(text, 80)}"
            )

    def save(self, path: str | os.PathLike) -> None:
        """Writes `claim.json`, which is to be published.

        Args:
            path: File to write, replaced if it exists.
        """
        sealed.save(path, "claim", self.to_dict(), private=False)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Claim":
        """Reads what `save` wrote.

        Args:
            path: The file.

        Raises:
            PassportError: If it is missing, no claim, or changed.
        """
        content = sealed.load(path, "claim")
        version = content.pop("version", None)
        if content.keys() != {"commitment"} or version != _VERSION:
            raise PassportError(
                f"Expected a claim in '{shown(path)}'. Received: one that "
                "says other things; a newer keras_passport may read it"
            )
        return cls(content["commitment"])

    def to_dict(self) -> dict:
        """What the file says."""
        return {"commitment": self.commitment, "version": _VERSION}


_NAMES = {
    "fingerprint",
    "function",
    "images",
    "kernels",
    "key_scaling",
    "kind",
    "layers",
    "owner",
    "reference",
    "secret",
    "seed",
    "version",
}


@dataclasses.dataclass(frozen=True, repr=False)
class Opening:
    """What opens a claim. It is a secret until the dispute.

    Args:
        secret: s, 32 bytes.
        owner: Whose network it is.
        function: Passport function.
        kind: Kind of the passport.
        key_scaling: Of its keys.
        seed: The passport's, hexadecimal.
        fingerprint: The passport's.
        kernels: SHA-256 of the kernels that it is for, as
            `networks.kernels_hash` returns it. Without it a claim would hold
            for any network of the architecture, later ones as well: what was
            published is brought by whoever claims.
        layers: Dict from path to the number of channels of each layer.
        images: SHA-256 of each input's identity images.
        reference: SHA-256 of the reference network's weights; `None` for
            none.

    Raises:
        PassportError: If it says anything else.
    """

    secret: bytes
    owner: str
    function: str
    kind: str
    key_scaling: str
    seed: str
    fingerprint: str
    kernels: str
    layers: dict
    images: tuple = ()
    reference: str | None = None

    def __post_init__(self):
        object.__setattr__(self, "secret", check_secret(self.secret))
        object.__setattr__(self, "seed", hidden(self.seed))
        _check_owner(self.owner)
        texts = (self.function, self.kind, self.key_scaling, self.seed)
        hashes = [self.fingerprint, self.kernels]
        if self.reference is not None:
            hashes.append(self.reference)
        if not (
            isinstance(self.images, list | tuple)
            and isinstance(self.layers, dict)
            and all(isinstance(path, str) for path in self.layers)
            and all(type(count) is int for count in self.layers.values())
            and all(isinstance(text, str) for text in texts)
            and all(_is_hash(text) for text in (*hashes, *self.images))
            and set(self.seed) <= _HEXADECIMAL
        ):
            raise PassportError(
                "Expected an opening as ownership.claim makes it. Received: "
                "one that says other things"
            )
        object.__setattr__(self, "images", tuple(self.images))

    def __repr__(self):
        return (
            f"<Opening of the claim of '{shown(self.owner)}', "
            f"{len(self.layers)} layers>"
        )

    @property
    def signature(self) -> Signature:
        """The signs that γ was to have."""
        return Signature(self.secret, self.owner)

    @property
    def seed_follows(self) -> bool:
        """Whether the passport's seed, and so its choices, follow from s."""
        return passport_seed(self.secret).hex() == self.seed

    def claim(self) -> Claim:
        """The claim that this opens, computed anew."""
        text = sealed.canonical(self._content())
        return Claim(hashlib.sha256(text).hexdigest())

    def check(
        self,
        passport: Passport,
        reference: Model = None,
        published: Model = None,
    ) -> list[str]:
        """What of a passport or a network is not what was committed to.

        Args:
            passport: The one that is presented.
            reference: The network that its images went through, if there is
                one.
            published: The network that is said to have been published.

        Returns:
            List of what differs, in words; empty if nothing does.
        """
        presented = _about(passport, reference)
        if published is not None:
            presented["kernels"] = kernels_hash(published, passport)
        mine = self._content()
        return [
            name
            for name, value in presented.items()
            if not (name == "reference" and reference is None)
            and mine[name] != value
        ]

    def save(self, path: str | os.PathLike) -> None:
        """Writes a file that only its owner can read.

        Args:
            path: File to write, replaced if it exists.
        """
        sealed.save(path, "opening", self._content(), self.secret)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Opening":
        """Reads what `save` wrote.

        Args:
            path: The file.

        Raises:
            PassportError: If it is missing, no opening, or changed.
        """
        content = _unsealed(path)
        if content.keys() != _NAMES or content.pop("version") != _VERSION:
            raise PassportError(
                f"Expected an opening in '{shown(path)}'. Received: one that "
                "says other things; a newer keras_passport may read it"
            )
        content["secret"] = hidden(bytes.fromhex(content["secret"]))
        return cls(**content)

    def _content(self) -> dict:
        return {
            "fingerprint": self.fingerprint,
            "function": self.function,
            "images": list(self.images),
            "kernels": self.kernels,
            "key_scaling": self.key_scaling,
            "kind": self.kind,
            "layers": dict(self.layers),
            "owner": self.owner,
            "reference": self.reference,
            "secret": hidden(self.secret.hex()),
            "seed": self.seed,
            "version": _VERSION,
        }


def claim(
    passport: Passport,
    *,
    owner: str,
    model: keras.Model,
    reference: keras.Model | None = None,
    secret: bytes | None = None,
) -> tuple[Claim, Opening]:
    """Claims a network before it is released (Section 3.2, step 1).

    The commitment is SHA-256 over a canonical text of the secret s, the
    owner's name, the identity images' hashes, the reference network's weights,
    passport function, key scaling, the passport's seed and fingerprint, and
    the network's kernels: what trains it on, or `hide_statistics`, makes
    another network, to be claimed anew. `hide_rows` does not.

    Args:
        passport: The owner's, made for `model`.
        owner: A name, at most 200 characters.
        model: The protected model, as it is to be published.
        reference: The network that the passport's images went through, for
            image kinds.
        secret: s, 32 bytes, where the passport's seed and the signs of γ were
            made of it before. Defaults to a new one.

    Returns:
        Tuple of the `Claim`, to be published, and its `Opening`, to be kept
        with the passport.

    Raises:
        PassportError: If the passport does not fit the model, images are
            there without a reference, or an argument is not what it must be.

    Example:

    >>> secret = kp.ownership.new_secret()
    >>> passport = kp.Passport.random_pattern(
    ...     model, seed=kp.ownership.passport_seed(secret)
    ... )
    >>> claim, opening = kp.ownership.claim(
    ...     passport, owner="Ada Ltd", model=model, secret=secret
    ... )
    >>> claim.save("claim.json")

    Reference:

    - Fan, Ng, Chan: Digital Passport, Section 3.2.
    """
    passport, secret = hidden(passport), hidden(secret)
    _check_owner(owner)
    check_passport(passport)
    passport.check(model)
    if not (reference is None or isinstance(reference, keras.Model)):
        raise PassportError(
            "Expected reference to be a Keras model. "
            f"Received: a {type_of(reference)}"
        )
    if passport.images is not None and reference is None:
        raise PassportError(
            "Expected the reference network that the passport's images went "
            "through. Received: reference=None"
        )
    about = _about(passport, reference)
    about["kernels"] = kernels_hash(model, passport)
    about["layers"] = {
        path: layer.adapter.units(layer.layer)
        for path, layer in protected_layers(model).items()
    }
    secret = new_secret() if secret is None else check_secret(secret)
    opening = Opening(secret=secret, owner=owner, **about)
    return opening.claim(), opening


def _check_owner(owner) -> None:
    if not isinstance(owner, str) or not 0 < len(owner) <= _LONGEST_OWNER:
        raise PassportError(
            f"Expected an owner's name of 1 to {_LONGEST_OWNER} characters. "
            f"Received: {shown(owner, 80)!r}"
        )


def _is_hash(text) -> bool:
    """Whether it may be SHA-256: 64 hexadecimal digits."""
    return (
        isinstance(text, str) and len(text) == 64 and set(text) <= _HEXADECIMAL
    )


def attach(model: keras.Model, claim: Claim) -> keras.Model:
    """Lets a claim travel with the network that it is for.

    It is in the `.keras` file of the model, of `kp.public(model)` and of
    `kp.require_passport(model)`, and beside the spec in a SavedModel's
    assets, as `claim.json`. That proves no date.

    Args:
        model: A `ProtectedModel`, as `protect` and `load_model` return it.
        claim: The claim; `None` takes it away.

    Returns:
        The model itself.

    Raises:
        PassportError: If the model is another.

    Example:

    >>> claim, opening = kp.ownership.claim(
    ...     passport, owner="Ada Ltd", model=model
    ... )
    >>> kp.ownership.attach(model, claim).save("protected.keras")
    >>> loaded = keras.saving.load_model("protected.keras")
    >>> kp.ownership.attached(loaded) == claim
    True
    """
    if not isinstance(model, ProtectedModel):
        raise PassportError(
            "Expected a ProtectedModel, as protect returns it. "
            f"Received: {type(model).__name__} "
            f"'{shown(getattr(model, 'name', model))}'"
        )
    if not (claim is None or isinstance(claim, Claim)):
        raise PassportError(
            "Expected a Claim, as ownership.claim returns it, or None. "
            f"Received: a {type_of(claim)}"
        )
    model.claim = None if claim is None else claim.to_dict()
    return model


def attached(model: keras.Model) -> Claim | None:
    """The claim that travels with a model; `None` if there is none.

    Args:
        model: Any model.

    Raises:
        PassportError: If it is no claim.
    """
    content = getattr(model, "claim", None)
    return None if content is None else Claim(content.get("commitment"))


def _about(passport, reference) -> dict:
    """What of a passport a claim commits to."""
    return {
        "fingerprint": passport.fingerprint,
        "function": get(passport.function).name,
        "images": [
            array_hash(array) for array in image_arrays(passport.images)
        ],
        "key_scaling": passport.key_scaling,
        "kind": passport.kind,
        "reference": None if reference is None else weights_hash(reference),
        "seed": hidden(passport.seed.hex()),
    }


def weights_hash(model: keras.Model) -> str:
    """SHA-256 over a network's variables, in its own order.

    Args:
        model: A built model.
    """
    total = hashlib.sha256()
    for variable in model.variables:
        values = keras.ops.convert_to_numpy(variable)
        total.update(f"{values.dtype}{values.shape}".encode())
        total.update(np.ascontiguousarray(values).tobytes())
    return total.hexdigest()


def _unsealed(path) -> dict:
    """An opening's content, sealed with the secret that it holds itself."""
    text = sealed.read(path, "opening")
    secret = hidden(sealed.peek(text, "secret"))
    try:
        key = hidden(bytes.fromhex(secret))
    except (TypeError, ValueError):
        key = new_secret()  # with which nothing was sealed
    content = sealed.loads(text, "opening", key, os.fspath(path))
    return {
        name: hidden(value) if name in ("secret", "seed") else value
        for name, value in content.items()
    }
