"""`PassportEntry`: one layer's part of a passport."""

import dataclasses

import numpy as np

from keras_passport.errors import PassportError
from keras_passport.geometry import Geometry, digest
from keras_passport.secrecy import SecretInt, hidden, type_of

ROLES = ("gamma", "beta")


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class PassportEntry:
    """One layer's part of a passport.

    Args:
        geometry: How the layer digests feature maps into keys.
        gamma: Feature map for γ, float32, `(height, width, channels)` for a
            Conv2D, in the layer's data_format; or `None`.
        beta: Feature map for β, likewise.
        gamma_key: Key for γ where there is no map, float32, of shape
            `geometry.key_shape`; or `None`.
        beta_key: Key for β, likewise.
        gamma_image: For image kinds, index of γ's identity image.
        beta_image: For image kinds, index of β's.
    """

    geometry: Geometry
    gamma: np.ndarray | None = None
    beta: np.ndarray | None = None
    gamma_key: np.ndarray | None = None
    beta_key: np.ndarray | None = None
    gamma_image: int | None = None
    beta_image: int | None = None

    def __post_init__(self):
        for name in (*ROLES, *(f"{role}_key" for role in ROLES)):
            object.__setattr__(self, name, hidden(getattr(self, name)))
        for role in ROLES:
            feature_map = getattr(self, role)
            key = getattr(self, f"{role}_key")
            if feature_map is not None and key is not None:
                raise PassportError(
                    f"Expected a feature map or a key for {role}. "
                    "Received: both"
                )
            for value in (feature_map, key):
                if value is not None and not np.all(np.isfinite(value)):
                    raise PassportError(
                        f"Expected finite values for {role}. "
                        "Received: NaN or infinity"
                    )
            if feature_map is not None:
                self.geometry.check_map(feature_map, role)
            if key is not None and key.shape != self.geometry.key_shape:
                raise PassportError(
                    f"Expected a key for {role} of shape "
                    f"{self.geometry.key_shape}. Received: shape={key.shape}"
                )
            image = hidden(getattr(self, f"{role}_image"))
            if image is not None and (
                not isinstance(image, SecretInt) or image < 0
            ):
                raise PassportError(
                    f"Expected {role}_image to be None or the index of an "
                    f"identity image. Received: a {type_of(image)}"
                )
            object.__setattr__(self, f"{role}_image", image)

    def __repr__(self):
        roles = [role for role in ROLES if self.has(role)]
        return f"<PassportEntry for {' and '.join(roles)}>"

    def has(self, role: str) -> bool:
        """Whether there is a map or key for `"gamma"` or `"beta"`."""
        return (
            getattr(self, role) is not None
            or getattr(self, f"{role}_key") is not None
        )

    def array(self, role: str) -> np.ndarray | None:
        """The map or key for a role: what a file holds of it."""
        value = getattr(self, role)
        return getattr(self, f"{role}_key") if value is None else value

    def key(self, role: str) -> np.ndarray | None:
        """The key for a role, before scaling; `None` if there is none."""
        feature_map = getattr(self, role)
        if feature_map is None:
            return getattr(self, f"{role}_key")
        return digest(feature_map, self.geometry)
