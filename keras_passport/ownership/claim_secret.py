"""A claim's secret, and what follows from it: a passport's seed, γ's signs."""

import dataclasses
import secrets

import numpy as np

from keras_passport.errors import PassportError
from keras_passport.passports.derivation import derive
from keras_passport.secrecy import SecretBytes, hidden, type_of
from keras_passport.texts import shown

SECRET_BYTES = 32


def new_secret() -> bytes:
    """A secret of 256 bits, of which nothing but its owner's files tells."""
    return hidden(secrets.token_bytes(SECRET_BYTES))


def passport_seed(secret: bytes) -> bytes:
    """The seed of a passport whose choices follow from the claim's secret.

    Args:
        secret: As `new_secret` returns it.

    Returns:
        32 bytes, for `Passport.random_image(..., seed=)` and its like.

    Example:

    >>> secret = kp.ownership.new_secret()
    >>> seed = kp.ownership.passport_seed(secret)
    >>> passport = kp.Passport.random_pattern(model, seed=seed)
    """
    return derive(check_secret(secret), "passport")


@dataclasses.dataclass(frozen=True, repr=False)
class Signature:
    """Signs for γ that follow from a secret and a name, and tell neither.

    b = HMAC(s, "signature" ‖ owner ‖ layer), as many bits as a layer has
    channels. `calibrate(model, signs=signature)` starts a network's γ with
    these signs, and `protect_trained(model, signs=signature)` scrambles a
    trained network's with them.

    Args:
        secret: The claim's, 32 bytes.
        owner: Whose it is.

    Example:

    >>> secret = kp.ownership.new_secret()
    >>> signature = kp.ownership.Signature(secret, "Ada Ltd")
    >>> signature("conv", 16).shape
    (16,)
    """

    secret: bytes
    owner: str

    def __post_init__(self):
        object.__setattr__(self, "secret", check_secret(self.secret))

    def __repr__(self):
        return f"<Signature of '{shown(self.owner)}'>"

    def __call__(self, path: str, channels: int) -> np.ndarray:
        """Signs for one layer.

        Args:
            path: The layer's path.
            channels: How many it has.

        Returns:
            float64 array `(channels,)` of 1 and -1.
        """
        drawn = b"".join(
            derive(self.secret, "signature", self.owner, path, str(block))
            for block in range(-(-channels // 256))
        )
        bits = np.unpackbits(np.frombuffer(drawn, np.uint8))[:channels]
        return hidden(1.0 - 2.0 * bits)


def check_secret(secret: bytes) -> bytes:
    """The secret, if it is one such as `new_secret` returns."""
    secret = hidden(secret)
    if not isinstance(secret, SecretBytes) or len(secret) != SECRET_BYTES:
        raise PassportError(
            f"Expected a secret of {SECRET_BYTES} bytes, as new_secret makes "
            f"it. Received: a {type_of(secret)}"
        )
    return secret
