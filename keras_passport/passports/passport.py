"""`Passport`: the secret that a protected model needs, and how it is made."""

import hashlib
import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from keras_passport.errors import PassportError
from keras_passport.hints import Inputs, Model
from keras_passport.lazy import above
from keras_passport.passports import functions, passport_file, remaking, specs
from keras_passport.passports.derivation import (
    DEFAULT_KEY_SCALING,
    KINDS,
    PASSPORT,
    check_key_scaling,
    check_kind,
    secret_seed,
)
from keras_passport.passports.entries import PassportEntry, check_entries
from keras_passport.passports.geometry import Geometry
from keras_passport.passports.matching import match
from keras_passport.secrecy import hidden, type_of

__all__ = ["KINDS", "Passport", "check_passport"]


class Passport:
    """A passport: per protected layer, the feature maps for γ and/or β.

    Make one with `random_pattern` (T1), `fixed_image` (T2), `random_image`
    (T3) or `from_feature_maps`, or let `protect_trained` solve for one; keep
    it with `save` and `load`. It is a secret: whoever holds it can run the
    model. `repr` shows no value of it.

    Args:
        kind: One of `KINDS`.
        function: Passport function that it serves.
        layers: Dict from path to `PassportEntry`, in the graph's order.
        seed: Secret of 16 bytes or more.
        key_scaling: `"paper"` takes keys as digested; `"unit"` scales each to
            norm 1, `"fan_in"` to √(size / 2), with which He's initialisation
            gives hidden parameters a standard deviation of 1; `"orthogonal"`
            does so too, after taking off each key's mean and what β's has
            in common with γ's; `"signed"` the same, of keys whose elements
            take signs that follow from the seed.
        images: Identity images of image kinds: a float32 array, or a dict of
            them for several inputs.

    Example:

    >>> passport = kp.Passport.random_pattern(model)
    >>> passport.save("owner.h5")
    >>> model = kp.bind(model, kp.Passport.load("owner.h5"))

    Reference:

    - Fan, Ng, Chan: Digital Passport, Section 2.4, Figure 4.
    """

    def __init__(
        self,
        kind: str,
        function: str | functions.PassportFunction,
        layers: Mapping[str, PassportEntry],
        seed: bytes,
        key_scaling: str = "paper",
        images: Inputs = None,
    ):
        seed, images = hidden(seed), hidden(images)
        self.kind = check_kind(kind)
        self.function = functions.get(function)
        self.layers = dict(layers)
        if not isinstance(seed, bytes):
            seed = hidden(b"")  # no other seed is anybody's secret
        self.seed = secret_seed(seed)
        self.key_scaling = check_key_scaling(key_scaling)
        self.images = images
        # Whether it came from a file that covers no keys by hashes of theirs;
        # its fingerprint, which may be published, stays as it was.
        self.first_version = False
        check_entries(self)

    # Making -------------------------------------------------------------

    @classmethod
    def random_pattern(
        cls,
        model: Model,
        *,
        seed: bytes | int | None = None,
        key_scaling: str = DEFAULT_KEY_SCALING,
        spatial_size: int | tuple[int, ...] | None = None,
        domain: str = PASSPORT,
    ) -> "Passport":
        """A T1 passport: independent uniform elements in [-1, 1] (Figure 4a).

        Args:
            model: Protected model; it knows layers, function and shapes.
            seed: Secret from which all is drawn. Defaults to 128 bits from
                `secrets`, which only the passport file keeps. An int can be
                guessed by trying: for tests alone.
            key_scaling: Size of the keys; see `Passport`.
            spatial_size: Size of the model's inputs where it leaves it open.
            domain: `FAKE` for an attacker's passports.

        Returns:
            A new `Passport`.

        Raises:
            PassportError: If the model is not protected or not built, or
                leaves its input size open and no `spatial_size` is given.

        Example:

        >>> passport = kp.Passport.random_pattern(model)
        """
        seed = hidden(seed)
        return above("models.making").random_pattern(
            cls, model, seed, key_scaling, spatial_size, domain
        )

    @classmethod
    def fixed_image(
        cls,
        model: Model,
        images: Inputs,
        *,
        reference: Model,
        seed: bytes | int | None = None,
        key_scaling: str = DEFAULT_KEY_SCALING,
    ) -> "Passport":
        """A T2 passport: one image's feature maps at every layer (Figure 4b).

        Args:
            model: Protected model.
            images: Identity images in the model's own input domain, float
                `(n, height, width, channels)`, or a dict for several inputs:
                one image for V1 and V2, two for V3 (γ's, then β's), such as a
                logo and a portrait.
            reference: Trained network of the same architecture.
            seed: Secret salt of the file's hash; see `random_pattern`.
            key_scaling: Size of the keys; see `Passport`.

        Returns:
            A new `Passport`.

        Raises:
            PassportError: If there are too few or too many images, or they
                or the reference don't fit the model.

        Example:

        >>> two = images[:2]
        >>> passport = kp.Passport.fixed_image(model, two, reference=base)
        """
        seed, images, reference = map(hidden, (seed, images, reference))
        return above("models.making").fixed_image(
            cls, model, images, reference, seed, key_scaling
        )

    @classmethod
    def random_image(
        cls,
        model: Model,
        images: Inputs,
        *,
        reference: Model,
        seed: bytes | int | None = None,
        key_scaling: str = DEFAULT_KEY_SCALING,
        domain: str = PASSPORT,
    ) -> "Passport":
        """A T3 passport: per layer, one of N images' feature maps (Figure 4c).

        Which images a layer takes, one for γ and another for β, follows from
        an HMAC of the seed over the images' hashes and the layer's path, so
        that whoever is shown the seed can derive it again. That alone does
        not say that it was not searched for: the maker picks the seed, and
        among 20,000 seeds finds one for any choice that he wants at any two
        layers. What says it is a commitment from before the training: a
        `fingerprint` that was published when there were no kernels yet to
        which a choice could have been fitted.

        Args:
            model: Protected model.
            images: N ≥ 2 identity images in the model's own input domain, as
                for `fixed_image`.
            reference: Trained network of the same architecture.
            seed: Secret from which the choices follow; see `random_pattern`.
            key_scaling: Size of the keys; see `Passport`.
            domain: `FAKE` for an attacker's passports.

        Returns:
            A new `Passport`.

        Raises:
            PassportError: If there are fewer than two images, or they or the
                reference don't fit the model.

        Example:

        >>> passport = kp.Passport.random_image(model, images, reference=base)
        """
        seed, images, reference = map(hidden, (seed, images, reference))
        return above("models.making").random_image(
            cls, model, images, reference, seed, key_scaling, domain
        )

    @classmethod
    def from_feature_maps(
        cls,
        model: Model,
        maps: Mapping[str, tuple],
        *,
        seed: bytes | int | None = None,
        key_scaling: str = "paper",
    ) -> "Passport":
        """A passport of feature maps that you bring.

        Args:
            model: Protected model.
            maps: Dict from path to `(gamma, beta)`, float arrays of the shape
                of that layer's input without batch axis; `None` for what the
                model's function does not hide.
            seed: Secret salt of the file's hash; see `random_pattern`.
            key_scaling: Size of the keys; see `Passport`.

        Returns:
            A new `Passport`.

        Raises:
            PassportError: If a layer's maps are missing, superfluous or of
                the wrong shape.

        Example:

        >>> maps = {
        ...     "conv1": (np.ones((8, 8, 3)), np.zeros((8, 8, 3))),
        ...     "conv2": (np.ones((8, 8, 4)), np.zeros((8, 8, 4))),
        ... }
        >>> passport = kp.Passport.from_feature_maps(model, maps)
        """
        seed, maps = hidden(seed), hidden(maps)
        return above("models.making").from_feature_maps(
            cls, model, maps, seed, key_scaling
        )

    # Using --------------------------------------------------------------

    def keys(self, model: Model = None) -> dict[str, dict[str, np.ndarray]]:
        """Digests the passport into keys κ(p).

        Args:
            model: Protected model to check the passport against; `None`
                digests without a check, and without Keras.

        Returns:
            Dict from path, the model's if there is one, to dict from
            `"gamma"` and/or `"beta"` to key, float32, of shape (kernel
            size..., channels).

        Raises:
            PassportError: If the passport was made for another architecture
                or passport function.
        """
        if model is not None:
            return self.fitted(model).keys()
        return specs.keys_of(self)

    def rows(self) -> dict[str, np.ndarray]:
        """Each layer's keys in one row, `(1, passport_size)` float32.

        The order of the layer's rows, if they have a secret one, comes last.
        """
        return specs.rows_of(self)

    def packed(self) -> np.ndarray:
        """All keys in one row, `(1, K)` float32, in the order of `layers`."""
        return np.concatenate(list(self.rows().values()), axis=1)

    def pack(self, spec: Mapping | str | os.PathLike) -> np.ndarray:
        """The vector that a deployed model takes as its passport.

        Needs NumPy alone.

        Args:
            spec: What `passport_spec(model)` returned, a JSON file of it,
                the SavedModel's folder, which holds one, or a protected model.

        Returns:
            float32 array `(1, K)`.

        Raises:
            PassportError: If the passport was made for another architecture
                or passport function, or this is no spec.

        Example:

        >>> served = kp.require_passport(model)
        >>> packed = kp.Passport.load("owner.h5").pack(kp.passport_spec(served))
        """
        return specs.pack(self, spec)

    def check(self, model: Model) -> None:
        """Raises `PassportError` unless the passport fits the model."""
        self.match(model)

    def match(self, model: Model) -> dict[str, str]:
        """Finds the passport's layer for each protected layer of a model.

        By path; else by what is left alike of their names, or by their order,
        if all geometries (kernel sizes, strides, channels, ...) agree, and
        with a warning: of two layers of equal geometry it can't be known that
        they have not changed places. So a backbone under a new head, and the
        same architecture made anew, are bound as they are. `bind`, `unlock`,
        `pack` and `check` are alike in this.

        Args:
            model: Protected model.

        Returns:
            Dict from the model's paths to the passport's.

        Raises:
            PassportError: If the passport was made for another passport
                function, or for other layers: what both sides have is shown,
                side by side. `renamed` is for layers that are the same.
        """
        protected = above("layers.protected")
        function = protected.function_of(model)
        specs.check_function(function.name, self.function.name, "the model's")
        layers = protected.protected_layers(model)
        geometries = {path: layer.geometry for path, layer in layers.items()}
        return match(geometries, self.geometries)

    @property
    def geometries(self) -> dict[str, Geometry]:
        """Each layer's geometry, by path."""
        return {path: entry.geometry for path, entry in self.layers.items()}

    def fitted(self, model: Model) -> "Passport":
        """This passport under the model's paths, in the model's order.

        And for rows in a secret order, where the model has them so.

        Args:
            model: Protected model.

        Raises:
            PassportError: As `match`.
        """
        names = self.match(model)
        layers = above("layers.protected").protected_layers(model)
        geometries = {path: layers[path].geometry for path in names}
        return remaking.fitted(self, names, geometries)

    def renamed(self, names: Mapping[str, str]) -> "Passport":
        """The same keys for layers of other paths.

        For a model whose layers have other names than those that the
        passport was made for. It is another passport in that it has another
        fingerprint, and that nothing of it follows from its seed any more:
        what a random pattern was drawn with, and which images were chosen, is
        bound to the paths. So keep the original as well.

        Args:
            names: Dict from old path to new, for the layers to rename.

        Returns:
            A new `Passport`.

        Raises:
            PassportError: If there is no layer of an old path, or two would
                have the same new one.

        Example:

        >>> renamed = passport.renamed({"conv1": "backbone/conv1"})
        >>> renamed.save("owner_of_the_product.h5")
        """
        return remaking.renamed(self, names)

    def part(self, paths: Iterable[str]) -> "Passport":
        """The same keys for some of the layers alone.

        For a model that has but those, such as a backbone whose head was
        replaced. It is another passport in that it has another fingerprint:
        keep the original as well.

        Args:
            paths: Of the layers to keep, as in `layers`.

        Returns:
            A new `Passport`.

        Raises:
            PassportError: If there is no layer of a path, or no path.

        Example:

        >>> backbone = passport.part(["conv1"])
        >>> list(backbone.layers)
        ['conv1']
        """
        return remaking.part(self, paths)

    def feature_maps(
        self, model: Model = None, reference: Model = None
    ) -> dict[str, tuple]:
        """The feature maps that the passport's keys are digests of.

        Files hold keys and what is needed to make the maps anew, but where
        the maps are small, or nobody could make them (`from_feature_maps`).
        Random patterns follow from the seed, bit for bit; maps of images are
        the reference's, equal but for the last bits of its arithmetic, and
        checked against the keys.

        Args:
            model: Protected model, for maps of images that are made anew.
            reference: Network that the passport was made with, for the same.

        Returns:
            Dict from path to `(gamma, beta)`, as `from_feature_maps` takes
            it; `None` for what is not hidden, or has a key but never a map.

        Raises:
            PassportError: If a map is to be made anew without model and
                reference, or they make another one.

        Example:

        >>> maps = kp.Passport.load("owner.h5").feature_maps(model, base)
        """
        return remaking.feature_maps(self, hidden(model), hidden(reference))

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the content, as 64 hexadecimal digits.

        The secret seed is part of the content, so nothing can be learned of
        the passport by trying: it may be published as a commitment. It is
        the same once the passport is saved and loaded, by later versions of
        this package too. Published before the training, it proves that the
        passport was not fitted to the network; see `random_image` for what
        it proves of the choice of images.
        """
        return hashlib.sha256(passport_file.header(self)).hexdigest()

    def __repr__(self):
        if "first_version" not in vars(self):
            # A traceback shows what never came to be.
            return "<Passport, unfinished>"
        return (
            f"<Passport {self.kind}, {self.function.name}, "
            f"{len(self.layers)} layers, {self.fingerprint[:8]}>"
        )

    def save(self, path: str | os.PathLike) -> None:
        """Writes an HDF5 file that only its owner can read.

        It holds the keys, the seed, identity images with the layers' choices,
        and hashes of feature maps; the maps themselves where they are small
        or can't be made anew (see `feature_maps`).

        Args:
            path: File to write, replaced if it exists. Where a link leads is
                replaced, not the link.

        Raises:
            OSError: If it can't be written, or is a folder, device or FIFO;
                what was there stays.
        """
        passport_file.save(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Passport":
        """Reads a file that `save` wrote. Needs NumPy alone.

        Args:
            path: The file.

        Raises:
            PassportError: If it is missing, damaged, or no passport.
        """
        return passport_file.load(path, cls)


def check_passport(passport: Any) -> None:
    """Raises `PassportError` unless it is a `Passport`."""
    passport = hidden(passport)
    if not isinstance(passport, Passport):
        raise PassportError(
            "Expected passport to be a keras_passport.Passport, such as "
            "Passport.load(path) returns. "
            f"Received: a {type_of(passport)}"
        )
