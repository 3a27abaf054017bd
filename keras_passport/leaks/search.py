"""`find_leaks`: searches what is published for what a passport keeps secret.

Two searches know nothing of each other. One looks for the secrets' own bytes
and printed digits, the other for arrays that correlate with a secret, however
they are scaled, shifted or rounded.
"""

import functools
import math
import os
import re
import zipfile
import zlib
from collections.abc import Iterable

import numpy as np

from keras_passport.errors import PassportError
from keras_passport.leaks import (
    contents,
    folding,
    likenesses,
    scanned_files,
    searches,
)
from keras_passport.leaks.correlations import Correlations, cosines
from keras_passport.leaks.report import Leak, LeakReport, NotExamined, Trace
from keras_passport.passports import remaking
from keras_passport.passports.derivation import image_arrays
from keras_passport.passports.entries import ROLES
from keras_passport.passports.passport import Passport

__all__ = ["Leak", "LeakReport", "NotExamined", "Trace", "find_leaks"]

# Where Keras files hold a layer's own weights.
_OWN_PLACE = re.compile(r"^(?!.*optimizer).*(/vars/\d+$|kernel)", re.I)
# What follows from a public kernel, with which arrays may be alike.
_HIDDEN = ("hidden parameter", "folded scale", "folded bias")
# A model's config is smaller.
_LARGEST_CONFIG = 2**26


def find_leaks(
    passport: Passport,
    paths: str | os.PathLike | Iterable[str | os.PathLike],
    model=None,
    verbose: int = 0,
) -> LeakReport:
    """Searches files for a passport's maps, keys and hidden parameters.

    Reads `.keras`, HDF5, TensorFlow checkpoints, SavedModels and frozen
    graphs, ONNX (if `onnx` is installed), LiteRT, NumPy (structured, complex
    and object arrays too), JSON and other texts, whole and column by column
    or name by name, and pictures (with Pillow). Opens zip and tar archives,
    gzip, zlib, bz2, xz, lzma, lz4 and zstd (with their libraries), Base64,
    hexadecimal, UTF-16, UTF-32 and escaped text, in one another up to 8 deep,
    wherever they begin. Bytes of an unknown format (pickles, which are never
    loaded, and compilation caches among them) are taken for numbers of 16, 32
    and 64 bits. What is not examined, or not in every way, is in the report
    with the reason, and the report is then not clean: pipes, devices, links
    in a circle, sparse files, archives above the limits, damaged, encrypted
    and unknown compressed files.

    1. *Bytes.* No run of 16 bytes of the seed, a feature map, a key (as
       digested and as scaled, in every order of its axes) or a hidden
       parameter may occur, as float16, bfloat16, float32 or float64; nor 4
       consecutive values of a key or hidden parameter printed with 5 or more
       digits each. Runs of zeros and of few different values don't count.
    2. *Correlation.* No window of an array, in any order of its axes, may
       correlate with a key, a key's mean over its window, or a hidden
       parameter by more than chance. In an array of a kernel's shape, such as
       an optimizer's slots, neither may the leading left singular vectors.
    3. *Trace.* Kernels themselves are set aside: they hold γ and β by
       design, and what they show of keys is measured, not judged. A kernel is
       an array with the values of a protected layer's (in any order, up to
       float16's rounding), or one of such a shape in a layer's own place in a
       Keras file. So are arrays that are like γ or β as much as those of other
       keys would be.

    The bound: the squared centred correlation of a fixed vector with n
    independent normal numbers is Beta(1/2, (n - 2) / 2) distributed, and
    exceeds t with a chance of at most (1 - t)^((n - 2) / 2). A key's elements
    are not independent, as neighbours in its window see nearly the same
    positions of the map; nor are hidden parameters, as they all come from one
    public kernel. Of a vector with independent parts of variances v_1 ≥ v_2 ≥
    ..., the chance is at most Π_(i ≥ 2) (1 + v_i / v_1 · t / (1 - t))^(-1/2),
    which is the same where they are equal (n - 1 of them, as centring takes
    one). A key's parts are its own principal components over the window, for
    every channel; those of a hidden parameter what the kernel makes of them.
    The bound of a comparison is the t at which this chance is 1e-6 over the
    number of all comparisons that were made
    (Bonferroni's, half of it for windows and half for singular vectors). A
    correlation must also hold without the eighth of the elements that make
    most of it: one outlier that meets another is no leak.

    4. *Folded kernels.* An array that is a protected kernel but for a factor
       per channel, as `unlock` and frozen exports have it, is divided by that
       kernel, and the factors are judged as an array of their own. γ/σ and
       what is folded into the bias are secrets like γ and β.
    5. *Pictures.* No picture, nor array of a picture's shape, may be like an
       identity image or a map with 1 or 3 channels, in brightness and in its
       changes. No bound follows from chance there: the limits are such that
       no two of scikit-learn's 1,797 digits reach them.

    Limits: a quantised kernel counts as any array. A depthwise or grouped
    kernel's slots are searched in windows alone. Files of an unknown format
    above 32 MiB are searched for bytes alone, which is said, and taken for
    numbers of 8 bits up to 64 KiB. Of passports of more than a million map
    elements every n-th run is looked for. Other encodings of text, such as
    Base32 and Base85, are not known. With decoupled gradients and large keys,
    leading singular vectors of slots show no keys: a clean report does not
    make an optimizer's state fit to be published.

    Time grows with the bytes (unpacked) times the number of layers; memory is
    bounded by about 1 GB beyond the passport, the model and the largest
    array. HDF5 files are read by a process that is ended if it gives no answer
    for 30 seconds; it ends by itself after two idle minutes.

    Args:
        passport: The owner's `Passport`.
        paths: A file or folder, or several.
        model: The protected model, whose kernels tell the hidden parameters.
            Defaults to all `.keras` files among `paths` that the passport
            fits.
        verbose: 1 to show a progress bar, 0 to be silent.

    Returns:
        A `LeakReport`.

    Raises:
        FileNotFoundError: If a path does not exist.
        PassportError: If `passport` is none, or does not fit `model`.

    Example:

    >>> report = kp.find_leaks(passport, "public/")
    >>> assert report.clean, report
    """
    if not isinstance(passport, Passport):
        raise PassportError(
            "Expected passport to be a keras_passport.Passport. "
            f"Received: a {type(passport).__name__}"
        )
    if model is not None:
        passport.check(model)
    not_examined = {}

    def problem(path, place, reason):
        left = NotExamined(str(path), place, reason)
        not_examined[left] = None

    files = scanned_files.files_under(
        [paths] if isinstance(paths, (str, os.PathLike)) else paths,
        lambda path, reason: problem(path, "", reason),
    )
    notes = []
    models = [model] if model is not None else _fitting(passport, files)
    if not models:
        notes.append(
            "no model: hidden parameters and folded kernels were not looked for"
        )
    scan = _Scan(passport, models, notes)
    progress = _Progress(files, verbose)
    for file in files:
        data = scanned_files.contents_of(
            file, lambda path, reason: problem(path, "", reason)
        )
        if data is not None:
            scan.examined["files"] += 1
            for part in contents.parts_of(
                file,
                data,
                lambda place, reason, file=file: problem(file, place, reason),
            ):
                scan.search(part, problem)
                scanned_files.release(part.data)
        progress.done(file)
    return scan.report(notes, not_examined)


class _Progress:
    """A bar that goes on with every file, by its size."""

    def __init__(self, files, verbose):
        self._sizes = {file: _size(file) for file in files} if verbose else {}
        self._bar = None
        if self._sizes:
            import keras

            total = sum(self._sizes.values())
            self._bar = keras.utils.Progbar(total, unit_name="byte")

    def done(self, file):
        if self._bar is not None:
            self._bar.add(self._sizes[file])


def _size(file):
    try:
        return max(1, file.stat().st_size)
    except OSError:
        return 1


def _fitting(passport, files):
    """The models among files that the passport fits."""
    found = []
    for file in files:
        if file.suffix == ".keras" and _may_be_protected(file):
            import keras

            try:
                model = keras.saving.load_model(file, compile=False)
                passport.check(model)
            # A damaged or foreign model may fail in any way.
            except Exception:
                continue
            found.append(model)
    return found


def _may_be_protected(file) -> bool:
    """Whether a file is a model of this package's, and whole.

    Keras would load others for nothing, and damaged weights make the HDF5
    library run for ever.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            config = archive.getinfo("config.json")
            weights = archive.getinfo("model.weights.h5")
            if config.file_size > _LARGEST_CONFIG:
                return False
            if b"keras_passport" not in archive.read(config):
                return False
            with archive.open(weights) as content:
                while content.read(2**20):  # Its checksum is looked at.
                    pass
    except (OSError, KeyError, ValueError, RuntimeError, EOFError):
        return False
    except (zipfile.BadZipFile, NotImplementedError, zlib.error):
        return False
    return True


def _layers(models):
    """Path and layer of all protected layers of models."""
    if models:
        from keras_passport.layers.protected import protected_layers

    for model in models:
        yield from protected_layers(model).items()


def _secrets(passport, models) -> list[searches.Secret]:
    found = []

    def add(what, *of, parts=None):
        path, role, values = of
        # Of an ordinary type: what hides itself in messages is slower.
        values = np.asarray(values)
        found.append(searches.Secret(what, path, role, values, parts))

    keys = passport.keys()
    for path, entry in passport.layers.items():
        for role, scaled in keys[path].items():
            key, channels = entry.key(role), entry.geometry.channels
            add("key", path, role, scaled, parts=searches.key_parts(scaled)[0])
            if not np.array_equal(key, scaled):
                add("key before scaling", path, role, key)
            if scaled.size > channels:
                mean = scaled.reshape(-1, channels).mean(0)
                equal = np.ones(channels - 1)
                add("key's mean", path, role, mean, parts=equal)
    # The models may have other paths for the layers.
    fitted = [passport.fitted(model) for model in models]
    given = [key for one in fitted for key in one.keys().values()]
    rows = [row for one in fitted for row in one.rows().values()]
    for (path, layer), keys, row in zip(
        _layers(models), given, rows, strict=True
    ):
        hidden = dict(zip(ROLES, layer.hidden_parameters(row), strict=True))
        hidden = {r: v for r, v in hidden.items() if v is not None}
        # Others follow from the same kernel, so they are alike.
        others = {
            role: _responses(layer, searches.key_parts(keys[role])[1])
            for role in hidden
        }
        for role, value in hidden.items():
            parts = _variances(others[role])
            add("hidden parameter", path, role, value, parts=parts)
        for what, role, value, made in _folded(layer, hidden, others):
            parts = None if made is None else _variances(made)
            add(what, path, role, value, parts=parts)
    return found


def _maps(passport, notes) -> list[searches.Map]:
    """Feature maps, made anew where only their keys are kept, and images."""
    found, missing = [], False
    for path, entry in passport.layers.items():
        for role in passport.function.roles:
            value = getattr(entry, role)
            record = getattr(entry, f"{role}_record")
            if value is not None:
                size, make = value.size, functools.partial(np.asarray, value)
            elif record is not None and passport.kind == "random_pattern":
                size = math.prod(record.shape)
                make = functools.partial(remaking.drawn, passport, path, role)
            else:
                missing |= record is not None
                continue
            found.append(searches.Map("feature map", path, role, size, make))
    if missing:
        notes.append(
            "the passport's file holds keys and images instead of large "
            "feature maps: those maps themselves were not looked for"
        )
    for image in image_arrays(passport.images):
        make = functools.partial(np.asarray, image, "float32")
        found.append(
            searches.Map("identity image", "", "", np.size(image), make)
        )
    return found


def _responses(layer, keys):
    """What a layer's kernel makes of keys, as float64."""
    import keras

    made = layer.adapter.response(layer.layer, keys)
    return keras.ops.convert_to_numpy(made).astype("float64")


def _variances(others):
    """Those of the independent parts of random vectors, greatest first."""
    others = others - others.mean(1, keepdims=True)
    wide = others.shape[0] < others.shape[1]
    gram = others @ others.T if wide else others.T @ others
    return np.maximum(0, np.linalg.eigvalsh(gram)[::-1])


def _folded(layer, hidden, others):
    """What `unlock` folds into a layer's kernel and bias.

    Yields:
        What, role, value, and what it would be with other keys, or None if a
        part of it is public, so that a correlation says nothing.
    """
    deviations = folding.deviations_of(layer)
    if (
        deviations is None
        or deviations.shape != next(iter(hidden.values()), np.zeros(0)).shape
    ):
        return
    mean = np.asarray(layer.normalization.moving_mean, "float64")
    bias = getattr(layer.layer, "bias", None)
    mean = mean if bias is None else mean - np.asarray(bias, "float64")
    gamma, beta = (
        hidden.get(role, _public(getattr(layer, role, None), default))
        for role, default in zip(ROLES, (1.0, 0.0), strict=True)
    )
    if "gamma" in hidden:
        made = others["gamma"] / deviations
        yield (
            "folded scale",
            "gamma",
            (gamma / deviations).astype("float32"),
            made,
        )
    value = (beta - mean * gamma / deviations).astype("float32")
    made = None
    if len(hidden) == 2:
        made = -others["gamma"] * mean / deviations
        made = np.concatenate([made, others["beta"]])
    yield "folded bias", "beta" if "beta" in hidden else "gamma", value, made


def _public(value, default):
    return default if value is None else np.asarray(value, "float64")


def _sorted(array):
    """What arrays of the same values share, whatever their order."""
    with np.errstate(over="ignore"):
        # Adding 0 turns -0 into 0.
        return (np.sort(array, axis=None).astype("<f2") + 0).tobytes()


def _bytes_of(array):
    if array.dtype.hasobject:
        texts = [
            t if isinstance(t, bytes) else str(t).encode() for t in array.flat
        ]
        return np.frombuffer(b"\n".join(texts), "uint8")
    return np.frombuffer(array.tobytes(), "uint8")


class _Scan:
    """The searches, and what they have found so far."""

    def __init__(self, passport, models, notes):
        secrets = _secrets(passport, models)
        maps = _maps(passport, notes)
        self.runs = searches.Runs(secrets, maps, passport.seed)
        self.printed = searches.Printed(secrets)
        self.correlations = Correlations(secrets)
        self.likenesses = likenesses.Likenesses(passport)
        self.keys = [s for s in secrets if s.what == "key"]
        layers = list(_layers(models))
        self.folded = folding.kernels_of(layers)
        kernels = [
            (path, weight)
            for path, layer in layers
            for weight in layer.layer.get_weights()
            if weight.ndim > 1
        ]
        self.layers = {_sorted(kernel): path for path, kernel in kernels}
        self.sizes = {kernel.size for _, kernel in kernels}
        self.known = searches.Known(kernel for _, kernel in kernels)
        self.examined = {"files": 0, "arrays": 0, "kernels": 0, "bytes": 0}
        self.leaks, self.correlated, self.traces = {}, {}, {}

    def search(self, part, problem):
        """Searches a part of a file for all secrets."""
        self.examined["bytes"] += part.data.size
        self._bytes(part, part.place, part.data)
        for numbers in part.numbers():
            place = f"{part.place} {numbers.order}".lstrip()
            for secret, count in self.printed.search(numbers):
                what = f"{secret.what}, printed"
                about = secret.layer, secret.role
                self._add(part, place, what, count, *about)
            self._array(part, place, numbers.values)
        if part.picture:
            try:
                for found in self.likenesses.pictures(part.data):
                    self._like(part, part.place, found)
            except likenesses.NotReadable as error:
                problem(part.path, part.place, str(error))
        for name, array in part.arrays(self.known.without):
            self.examined["arrays"] += 1
            place = f"{part.place}/{name}".lstrip("/")
            self._bytes(part, place, _bytes_of(array))
            for found in self.likenesses.search(array):
                self._like(part, place, found)
            for one, scales in folding.scales_in(array, self.folded):
                where = f"{place}, divided by {one.path}'s kernel"
                self._array(part, where, scales)
            if not self._is_kernel(name, array):
                self._array(part, place, array)

    def _bytes(self, part, place, data):
        for (what, layer, role), first, count in self.runs.search(data):
            where = f"{place} byte {first}".lstrip()
            self._add(part, where, what, count, layer, role)

    def _add(self, part, place, what, measure, layer, role, bound=0.0):
        # An array's bytes are often those of its file: one row for both.
        leak = Leak(str(part.path), place, what, measure, bound, layer, role)
        self.leaks.setdefault((str(part.path), what, layer, role), leak)

    def _like(self, part, place, found):
        self._add(
            part,
            place,
            f"{found.what}, alike",
            found.measure,
            found.layer,
            found.role,
            found.least,
        )

    def _array(self, part, place, array):
        found = [
            *self.correlations.search(array),
            *self.correlations.vectors(array),
        ]
        for one in found:
            what = (str(part.path), place, one.secret, one.kind)
            best = self.correlated.get(what)
            if best is None or best.measure < one.measure:
                self.correlated[what] = one

    def _is_kernel(self, name, array):
        """Sets an array aside that is a kernel, and measures its traces."""
        if array.ndim < 2 or "float" not in array.dtype.name:
            return False
        layer = None
        if array.size in self.sizes:
            layer = self.layers.get(_sorted(array))
        if layer is None and not _OWN_PLACE.search(name):
            return False
        keys = [key for key in self.keys if layer in (None, key.layer)]
        found = cosines(array, keys)
        for key, cosine in found:
            bound = key.bound(0.01)
            trace = Trace(key.layer, key.role, "kernel", cosine, bound)
            best = self.traces.setdefault((key.layer, key.role), trace)
            if best.cosine < cosine:
                self.traces[key.layer, key.role] = trace
        self.examined["kernels"] += layer is not None or bool(found)
        return layer is not None or bool(found)

    def report(self, notes, not_examined) -> LeakReport:
        """All that was found, by the bounds for all comparisons made."""
        correlations = self.correlations
        traces = [
            self.traces[key.layer, key.role]
            for key in self.keys
            if (key.layer, key.role) in self.traces
        ]
        for (path, place, secret, kind), one in self.correlated.items():
            chance = correlations.chance(kind)
            bound = secret.bound(chance)
            about = secret.layer, secret.role
            if secret.tells(chance) and one.measure > bound:
                leak = Leak(path, place, one.what, one.measure, bound, *about)
                self.leaks[path, place, one.what, *about] = leak
            elif (
                secret.what in _HIDDEN
                and secret.different
                and one.measure > secret.simple_bound(chance)
            ):
                traces.append(Trace(*about, place, one.measure, bound))
        chance = correlations.chance("windows")
        untold = [
            f"{secret.what} of {secret.layer} {secret.role}"
            for secret in correlations.secrets
            if not secret.tells(chance)
        ]
        self.examined["comparisons"] = sum(correlations.compared.values())
        return LeakReport(
            tuple(self.leaks.values()),
            tuple(traces),
            self.examined,
            tuple(dict.fromkeys(untold)),
            tuple(notes),
            tuple(not_examined),
        )
