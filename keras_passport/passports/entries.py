"""`PassportEntry`: one layer's part of a passport."""

import dataclasses
import functools
import math

import numpy as np

from keras_passport.errors import PassportError
from keras_passport.passports.derivation import array_hash, count_images
from keras_passport.passports.geometry import Geometry, digest
from keras_passport.secrecy import SecretBytes, SecretInt, hidden, type_of
from keras_passport.texts import shown

ROLES = ("gamma", "beta")


# Elements. What a map is made anew of must not ask for gigabytes.
_LARGEST_MAP = 2**30


@dataclasses.dataclass(frozen=True)
class MapRecord:
    """What is known of a feature map: all that an array of it would hash to.

    Args:
        shape: Its shape.
        sha256: `derivation.array_hash` of it.
    """

    shape: tuple[int, ...]
    sha256: str = dataclasses.field(repr=False)

    def __post_init__(self):
        if (
            not isinstance(self.sha256, str)
            or not all(type(n) is int and n > 0 for n in self.shape)
            or math.prod(self.shape) > _LARGEST_MAP
        ):
            raise PassportError(
                "Expected the record of a feature map: its hash, and sizes "
                f"of shape (1 or more, ...), {_LARGEST_MAP:,} elements at "
                "most. Received: another one"
            )


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class PassportEntry:
    """One layer's part of a passport.

    Args:
        geometry: How the layer digests feature maps into keys.
        gamma: Feature map for γ, float32, `(height, width, channels)` for a
            Conv2D, in the layer's data_format; or `None`.
        beta: Feature map for β, of the same kind; or `None`.
        gamma_key: Key for γ where there is no map, float32, of shape
            `geometry.key_shape`; or `None`.
        beta_key: Key for β where there is no map, of the same shape.
        gamma_image: For image kinds, index of γ's identity image.
        beta_image: For image kinds, index of β's.
        gamma_record: Of γ's feature map, where the entry holds the key that
            it has instead of the map itself (`Passport.feature_maps`).
        beta_record: Of β's feature map, where its key is held instead.
        scales: What the layer's filters were multiplied by before they were
            published, float32 `(output channels,)`, none of them zero; or
            `None` where they are as they were trained.
        origin: The path that signs of keys and the order of rows follow from,
            where the layer has another one now; or `None`.
        order_seed: 32 bytes that the order of the layer's rows follows from;
            or `None` where it follows from the passport's seed.
        own_rows: Whether keys are for rows in their own order, and follow
            them to where they are stored now (`hide_rows` of versions before).
    """

    geometry: Geometry
    gamma: np.ndarray | None = None
    beta: np.ndarray | None = None
    gamma_key: np.ndarray | None = None
    beta_key: np.ndarray | None = None
    gamma_image: int | None = None
    beta_image: int | None = None
    gamma_record: MapRecord | None = None
    beta_record: MapRecord | None = None
    scales: np.ndarray | None = None
    origin: str | None = None
    order_seed: bytes | None = None
    own_rows: bool = False

    def __post_init__(self):
        # What follows from the arrays, once it is known: keys and records.
        object.__setattr__(self, "_known", {})
        for name in (*ROLES, *(f"{role}_key" for role in ROLES), "scales"):
            object.__setattr__(self, name, _kept(getattr(self, name)))
        self._check_scales()
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
            record = getattr(self, f"{role}_record")
            if record is not None:
                if key is None:
                    raise PassportError(
                        f"Expected a key for {role} beside the record of its "
                        "feature map. Received: none"
                    )
                self.geometry.check_shape(record.shape, role)
            image = hidden(getattr(self, f"{role}_image"))
            if image is not None and (
                not isinstance(image, SecretInt) or image < 0
            ):
                raise PassportError(
                    f"Expected {role}_image to be None or the index of an "
                    f"identity image. Received: a {type_of(image)}"
                )
            object.__setattr__(self, f"{role}_image", image)

        if self.origin is not None and not isinstance(self.origin, str):
            raise PassportError(
                "Expected origin to be the path of a layer, or None. "
                f"Received: a {type_of(self.origin)}"
            )
        seed = hidden(self.order_seed)
        if seed is not None and (
            not isinstance(seed, SecretBytes) or len(seed) != 32
        ):
            raise PassportError(
                "Expected order_seed to be 32 bytes, or None. "
                f"Received: a {type_of(seed)}"
            )
        object.__setattr__(self, "order_seed", seed)

    def _check_scales(self):
        scales = self.scales
        if scales is not None and (
            scales.ndim != 1
            or not np.all(np.isfinite(scales))
            or not np.all(scales)
        ):
            raise PassportError(
                "Expected scales of shape (output channels,), finite and not "
                f"zero. Received: shape={scales.shape}, or other values"
            )

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
        """The map or key for a role: what the entry holds of it."""
        value = getattr(self, role)
        return getattr(self, f"{role}_key") if value is None else value

    def map_size(self, role: str) -> int:
        """Number of elements of a role's map, here or not; 0 for none."""
        record = getattr(self, f"{role}_record")
        value = getattr(self, role)
        if record is not None:
            return math.prod(record.shape)
        return 0 if value is None else value.size

    def record(self, role: str) -> MapRecord | None:
        """The record of a role's map, here or not; `None` for a key alone."""
        value = getattr(self, role)
        if value is None:
            return getattr(self, f"{role}_record")
        if ("record", role) not in self._known:
            self.note_record(role, MapRecord(value.shape, array_hash(value)))
        return self._known["record", role]

    def note_record(self, role: str, record: MapRecord) -> None:
        """Spares the entry from hashing a map whose hash has been checked."""
        self._known["record", role] = record

    def key(self, role: str) -> np.ndarray | None:
        """The key for a role, before scaling; `None` if there is none."""
        feature_map = getattr(self, role)
        if feature_map is None:
            return getattr(self, f"{role}_key")
        if ("key", role) not in self._known:
            key = digest(feature_map, self.geometry)
            self._known["key", role] = hidden(key)
        return self._known["key", role].copy()


def _hiding(init):
    """A constructor without its arguments among its local variables."""

    @functools.wraps(init)
    def __init__(self, *args, **kwargs):
        args, kwargs = hidden(args), hidden(kwargs)
        init(self, *args, **kwargs)

    return __init__


PassportEntry.__init__ = _hiding(PassportEntry.__init__)


def _kept(value):
    """An array that shows nothing and, through the entry, stays as it is."""
    value = hidden(value)
    if isinstance(value, np.ndarray):
        value = value.view()
        value.flags.writeable = False
    return value


def check_entries(passport) -> None:
    """Raises `PassportError` unless layers have what the function hides.

    Args:
        passport: `Passport`, with the images that its entries name.
    """
    if not passport.layers:
        raise PassportError(
            "Expected a passport for at least one layer. Received: none"
        )
    images, function = passport.images, passport.function
    count = None if images is None else count_images(images)
    for path, entry in passport.layers.items():
        for index in (entry.gamma_image, entry.beta_image):
            if None not in (count, index) and index >= count:
                raise PassportError(
                    f"Expected layer '{shown(path)}' to name one of "
                    f"{count} identity images. Received: a larger index"
                )
        given = tuple(role for role in ROLES if entry.has(role))
        if given != function.roles:
            raise PassportError(
                f"Expected layer '{shown(path)}' to have "
                f"{' and '.join(function.roles)}, as {function.name} hides. "
                f"Received: {' and '.join(given) or 'neither'}"
            )
