"""One scan of files for all secrets of a passport."""

import re

import numpy as np

from keras_passport.leaks import (
    likenesses,
    orientations,
    scaled_kernels,
    searches,
)
from keras_passport.leaks.correlations import Correlations, cosines
from keras_passport.leaks.report import Leak, LeakReport, Trace
from keras_passport.leaks.secrets import layers_of, maps_of, secrets_of

# Where Keras files hold a layer's own weights.
_OWN_PLACE = re.compile(r"^(?!.*optimizer).*(/vars/\d+$|kernel)", re.I)
# What follows from a public kernel, with which arrays may be alike.
_HIDDEN = ("hidden parameter", "folded scale", "folded bias")


class Scan:
    """The searches, and what they have found so far.

    Args:
        passport: `Passport`.
        models: Protected models that it fits.
        notes: List that is told what can't be looked for.
        texts: Dict from names to more bytes to look for.
    """

    def __init__(self, passport, models, notes, texts):
        secrets = secrets_of(passport, models)
        maps = maps_of(passport, notes)
        self.runs = searches.Runs(
            secrets, maps, {"seed": passport.seed, **texts}
        )
        self.printed = searches.Printed(secrets)
        self.correlations = Correlations(secrets)
        self.likenesses = likenesses.Likenesses(passport)
        self.keys = [s for s in secrets if s.what == "key"]
        layers = list(layers_of(models))
        fitted = [passport.fitted(model) for model in models]
        rows = [row for one in fitted for row in one.rows().values()]
        self.folded = scaled_kernels.kernels_of(layers, rows)
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
        self.orientations = orientations.traces_of(passport, models)

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
                for likeness in self.likenesses.pictures(part.data):
                    self._like(part, part.place, likeness)
            except likenesses.NotReadable as error:
                problem(part.path, part.place, str(error))
        for name, array in part.arrays(self.known.without):
            self.examined["arrays"] += 1
            place = f"{part.place}/{name}".lstrip("/")
            self._bytes(part, place, _bytes_of(array))
            for likeness in self.likenesses.search(array):
                self._like(part, place, likeness)
            for one, scales in scaled_kernels.scales_in(array, self.folded):
                where = f"{place}, divided by {one.path}'s kernel"
                if one.gathered:
                    what = "kernel with its rows in order"
                    self._add(part, place, what, 1, one.path, "")
                self._array(part, where, scales)
            if not self._is_kernel(name, array):
                self._array(part, place, array)

    def found(self, leaks):
        """Adds leaks that another search has found."""
        for leak in leaks:
            about = leak.path, leak.place, leak.what, leak.layer, leak.role
            self.leaks[about] = leak

    def _bytes(self, part, place, data):
        for (what, layer, role), first, count in self.runs.search(data):
            where = f"{place} byte {first}".lstrip()
            self._add(part, where, what, count, layer, role)

    def _add(self, part, place, what, measure, layer, role, bound=0.0):
        # An array's bytes are often those of its file: one row for both.
        leak = Leak(str(part.path), place, what, measure, bound, layer, role)
        self.leaks.setdefault((str(part.path), what, layer, role), leak)

    def _like(self, part, place, likeness):
        self._add(
            part,
            place,
            f"{likeness.what}, alike",
            likeness.measure,
            likeness.layer,
            likeness.role,
            likeness.least,
        )

    def _array(self, part, place, array):
        for one in (
            *self.correlations.search(array),
            *self.correlations.vectors(array),
        ):
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
        measured = cosines(array, keys)
        for key, cosine in measured:
            bound = key.bound(0.01)
            trace = Trace(key.layer, key.role, "kernel", cosine, bound)
            best = self.traces.setdefault((key.layer, key.role), trace)
            if best.cosine < cosine:
                self.traces[key.layer, key.role] = trace
        is_kernel = layer is not None or bool(measured)
        self.examined["kernels"] += is_kernel
        return is_kernel

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
        traces += self.orientations
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
