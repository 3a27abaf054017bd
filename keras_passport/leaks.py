"""`find_leaks`: searches what is published for what a passport keeps secret.

Two searches know nothing of each other. One looks for the secrets' own bytes
and printed digits, the other for arrays that correlate with a secret, however
they are scaled, shifted or rounded.
"""

import dataclasses
import os
import pathlib
import re
import shutil
import textwrap
from collections.abc import Iterable

import numpy as np

from keras_passport import contents, searches
from keras_passport.errors import PassportError
from keras_passport.passports import ROLES, Passport

# Where Keras files hold a layer's own weights.
_OWN_PLACE = re.compile(r"^(?!.*optimizer).*(/vars/\d+$|kernel)", re.I)


@dataclasses.dataclass(frozen=True)
class Leak:
    """A secret, or a part of one, that was found.

    Args:
        path: The file.
        place: Where in it: archive members, an array's name, a position.
        what: Which secret, and in which form.
        measure: Absolute correlation, or for bytes and printed numbers how
            many runs of them were found.
        bound: What a secret that is not there reaches: 0 runs, or the
            correlation that has a chance of 1e-6 over all comparisons.
        layer: Path of the layer whose secret it is; "" for the seed.
        role: `"gamma"`, `"beta"`, or "" for the seed.
    """

    path: str
    place: str
    what: str
    measure: float
    bound: float
    layer: str
    role: str


@dataclasses.dataclass(frozen=True)
class Trace:
    """A likeness that a kernel explains; not a leak, but worth knowing.

    Args:
        layer: The layer's path.
        role: `"gamma"` or `"beta"`.
        place: `"kernel"` for what a trained kernel shows of its key. Else
            the array that is like the hidden parameter: by more than for
            independent numbers, but other keys of this kernel would be, too.
            Moving means are like the γ of image keys: both are what the
            kernel makes of a mean patch.
        cosine: Of the key and the kernel's first left singular vector, or of
            the hidden parameter and the array; centred.
        chance: For a kernel, what at most one in a hundred unrelated keys
            reaches; else the bound as for a leak.
    """

    layer: str
    role: str
    place: str
    cosine: float
    chance: float


@dataclasses.dataclass(frozen=True)
class LeakReport:
    """What `find_leaks` found, and where it looked.

    `print(report)` shows a table; `report.to_dict()` goes to JSON. No value
    of a secret is in either.

    Args:
        leaks: What was found.
        traces: Per protected layer and role, what its kernel shows of its
            key, and arrays that are like hidden parameters by the kernel.
        examined: Numbers of files, arrays, kernels among them, bytes
            (unpacked) and comparisons.
        untold: Secrets with too few independent elements, or different
            values, to tell a correlation from chance. They were looked for as
            bytes and printed numbers alone.
        notes: What could not be read or looked for.
    """

    leaks: tuple[Leak, ...]
    traces: tuple[Trace, ...]
    examined: dict[str, int]
    untold: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def clean(self) -> bool:
        """Whether nothing was found."""
        return not self.leaks

    def to_dict(self) -> dict:
        """Plain lists, strings and numbers, for JSON."""
        return {"clean": self.clean, **dataclasses.asdict(self)}

    def __str__(self):
        width = max(60, shutil.get_terminal_size().columns)
        blocks = []
        if self.leaks:
            head = ("file", "place", "layer", "secret", "found", "chance")
            rows = [
                (
                    pathlib.Path(leak.path).name,
                    leak.place,
                    f"{leak.layer} {leak.role}",
                    leak.what,
                    f"{leak.measure:.4g}",
                    f"{leak.bound:.4g}",
                )
                for leak in self.leaks
            ]
            blocks.append(_table(head, rows, width))
        if self.traces:
            found = {(t.place, t.layer, t.role): t for t in self.traces}
            rows = [
                (*names, *(_cosine(found.get((*names, r))) for r in ROLES))
                for names in dict.fromkeys(name[:2] for name in found)
            ]
            head = ("trace in", "of layer", "gamma (chance)", "beta (chance)")
            blocks.append(_table(head, rows, width))
        lines = [f"too small to tell: {name}" for name in self.untold]
        lines += [f"note: {note}" for note in self.notes]
        numbers = ", ".join(f"{n} {what}" for what, n in self.examined.items())
        lines.append(f"{len(self.leaks)} leaks found. Examined: {numbers}")
        blocks.append("\n".join(textwrap.fill(x, width) for x in lines))
        return "\n\n".join(blocks)


def _cut(text, width):
    return text if len(text) <= width else "…" + text[1 - width :]


def _cosine(trace):
    return f"{trace.cosine:.2f} ({trace.chance:.2f})" if trace else "-"


def _table(head, rows, width):
    """Lines of cells; the widest columns give way to fit the width."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    while sum(widths) + 2 * len(widths) - 2 > width:
        widths[widths.index(max(widths))] -= 1
    return "\n".join(
        "  ".join(
            _cut(cell, size).ljust(size)
            for cell, size in zip(row, widths, strict=True)
        ).rstrip()
        for row in [head, *rows]
    )


def find_leaks(
    passport: Passport,
    paths: str | os.PathLike | Iterable[str | os.PathLike],
    model=None,
) -> LeakReport:
    """Searches files for a passport's maps, keys and hidden parameters.

    Reads `.keras`, HDF5, TensorFlow checkpoints and SavedModels, ONNX (if
    `onnx` is installed), LiteRT, NumPy, zip and gzip files, JSON and other
    texts. Bytes of an unknown format are taken for float32 numbers.

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

    Limits: a quantised kernel counts as any array. A depthwise or grouped
    kernel's slots are searched in windows alone. In files of an unknown format
    above 16 MiB only bytes are looked for. Of passports of more than 4 million
    map elements every n-th run is looked for. With decoupled gradients and
    large keys, leading singular vectors of slots show no keys: a clean
    report does not make an optimizer's state fit to be published.

    Args:
        passport: The owner's `Passport`.
        paths: A file or folder, or several.
        model: The protected model, whose kernels tell the hidden parameters.
            Defaults to all `.keras` files among `paths` that the passport
            fits.

    Returns:
        A `LeakReport`.

    Raises:
        FileNotFoundError: If a path does not exist.
        PassportError: If `passport` is none, or does not fit `model`.

    Example:

    >>> report = find_leaks(passport, "public/")
    >>> assert report.clean, report
    """
    if not isinstance(passport, Passport):
        raise PassportError(
            "Expected passport to be a keras_passport.Passport. "
            f"Received: a {type(passport).__name__}"
        )
    if model is not None:
        passport.check(model)
    files = _files([paths] if isinstance(paths, (str, os.PathLike)) else paths)
    notes = []
    models = [model] if model is not None else _fitting(passport, files)
    if not models:
        notes.append("no model: hidden parameters were not looked for")
    scan = _Scan(passport, models)
    for file in files:
        for part in contents.parts_of(file):
            name = f"{file}: {part.place}" if part.place else str(file)
            if part.unread:
                notes.append(f"{name}: {part.unread}, searched as bytes")
            elif part.raw and part.data.size > contents.LARGEST_UNKNOWN:
                notes.append(f"{name}: unknown format, searched as bytes alone")
            scan.search(part)
    return scan.report(notes)


def _files(paths) -> list[pathlib.Path]:
    files = {}
    for path in map(pathlib.Path, paths):
        if not path.exists():
            raise FileNotFoundError(
                f"Expected an existing file or folder. Received: {path}"
            )
        inside = sorted(path.rglob("*")) if path.is_dir() else [path]
        files.update((file, None) for file in inside if file.is_file())
    return list(files)


def _fitting(passport, files):
    """The models among files that the passport fits."""
    found = []
    for file in files:
        if file.suffix == ".keras":
            import keras

            try:
                model = keras.saving.load_model(file, compile=False)
                passport.check(model)
            # A damaged or foreign model may fail in any way.
            except Exception:
                continue
            found.append(model)
    return found


def _layers(models):
    """Path and layer of all protected layers of models."""
    if models:
        from keras_passport.models import protected_layers

    for model in models:
        yield from protected_layers(model).items()


def _secrets(passport, models) -> list[searches.Secret]:
    found = []

    def add(what, *of, parts=None):
        found.append(searches.Secret(what, *of, parts))

    keys, rows = passport.keys(), passport.rows()
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
            if getattr(entry, role) is not None:
                add("feature map", path, role, getattr(entry, role))
    for path, layer in _layers(models):
        import keras

        hidden = layer.hidden_parameters(rows[path])
        for role, value in zip(ROLES, hidden, strict=True):
            if value is None:
                continue
            # Others follow from the same kernel, so they are alike.
            parts = searches.key_parts(keys[path][role])[1]
            others = layer.adapter.response(layer.layer, parts)
            others = keras.ops.convert_to_numpy(others)
            others = others - others.mean(1, keepdims=True)
            wide = others.shape[0] < others.shape[1]
            gram = others @ others.T if wide else others.T @ others
            parts = np.maximum(0, np.linalg.eigvalsh(gram)[::-1])
            add("hidden parameter", path, role, value, parts=parts)
    return found


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

    def __init__(self, passport, models):
        secrets = _secrets(passport, models)
        self.runs = searches.Runs(secrets, passport.seed)
        self.printed = searches.Printed(secrets)
        self.correlations = searches.Correlations(secrets)
        self.keys = [s for s in secrets if s.what == "key"]
        self.kernels = [
            (path, weight)
            for path, layer in _layers(models)
            for weight in layer.layer.get_weights()
            if weight.ndim > 1
        ]
        self.layers = {_sorted(kernel): path for path, kernel in self.kernels}
        self.examined = {"files": 0, "arrays": 0, "kernels": 0, "bytes": 0}
        self.leaks, self.correlated, self.traces = {}, {}, {}

    def _kernel_bytes(self):
        """Yields the bytes of all kernels, in every order of their axes."""
        for _, kernel in self.kernels:
            for order in searches.orders(kernel):
                yield order.tobytes()

    def search(self, part):
        """Searches a part of a file for all secrets."""
        self.examined["files"] += not part.place
        self.examined["bytes"] += part.data.size
        self._bytes(part, part.place, part.data)
        numbers = part.numbers()
        for secret, count in self.printed.search(numbers):
            what = f"{secret.what}, printed"
            self._add(part, part.place, what, count, secret.layer, secret.role)
        self._array(
            part, f"{part.place} numbers in text".lstrip(), numbers.values
        )
        for name, array in part.arrays(self._kernel_bytes()):
            self.examined["arrays"] += 1
            place = f"{part.place}/{name}".lstrip("/")
            self._bytes(part, place, _bytes_of(array))
            if not self._is_kernel(name, array):
                self._array(part, place, array)

    def _bytes(self, part, place, data):
        for (what, layer, role), first, count in self.runs.search(data):
            where = f"{place} byte {first}".lstrip()
            self._add(part, where, what, count, layer, role)

    def _add(self, part, place, what, measure, layer, role):
        # An array's bytes are often those of its file: one row for both.
        leak = Leak(str(part.path), place, what, measure, 0.0, layer, role)
        self.leaks.setdefault((str(part.path), what, layer, role), leak)

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
        layer = self.layers.get(_sorted(array))
        if layer is None and not _OWN_PLACE.search(name):
            return False
        keys = [key for key in self.keys if layer in (None, key.layer)]
        cosines = searches.cosines(array, keys)
        for key, cosine in cosines:
            bound = key.bound(0.01)
            trace = Trace(key.layer, key.role, "kernel", cosine, bound)
            best = self.traces.setdefault((key.layer, key.role), trace)
            if best.cosine < cosine:
                self.traces[key.layer, key.role] = trace
        self.examined["kernels"] += layer is not None or bool(cosines)
        return layer is not None or bool(cosines)

    def report(self, notes) -> LeakReport:
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
                secret.what == "hidden parameter"
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
        )
